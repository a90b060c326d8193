"""Every exercise takes its solution under any key, and answers each wrong answer with the right question."""

import ast
import copy
import json
import math
import re
import sys
from collections import OrderedDict

import nbformat
import numpy as np
import pytest
import torch

from attntut.exercises.public import VARIANTS, check, records, refuse_forbidden, variant_of
from attntut.exercises.wire import Odd, pack, unpack
from exercises import exercises, problem_sets
from exercises.exercise import Choice, Code, Explain, Number
from tools import exercise_sections as tool

EXERCISES = exercises()
OF = {kind: [n for n, e in EXERCISES.items() if isinstance(e, kind)] for kind in (Code, Number, Choice)}
WRONG = [(n, mistake) for n in OF[Code] for mistake in EXERCISES[n].wrong]
SEEDS = range(1, 201)
CHAPTERS = sorted({number.split(".")[0] for number in EXERCISES}, key=int)


def judged(exercise, answers, seed):
    """Judge what came back, after the way over the wire."""
    for case, got, want in zip(exercise.cases(seed), answers, exercise.want(seed), strict=True):
        exercise.judge(case, unpack(pack(got)), want)


# --- numbers and choices


@pytest.mark.parametrize("number", OF[Number])
def test_a_right_number_is_right_in_every_variant(number):
    exercise = EXERCISES[number]
    for variant in range(VARIANTS):
        right = exercise.solve(**exercise.given(variant))
        for digits in (7, 3):  # rounding to three digits is no mistake
            values = [float(f"{x:.{digits}g}") for x in (right if isinstance(right, tuple) else (right,))]
            answer = values[0] if len(values) == 1 else tuple(values)
            exercise.judge(variant, explained(exercise, answer), None)


@pytest.mark.parametrize(
    "kind", [torch.tensor, np.float32, np.float64, int], ids=["tensor", "float32", "float64", "int"]
)
def test_a_number_may_be_a_tensor_or_of_numpy(kind):
    EXERCISES["5.2"].judge(0, (kind(8), kind(96)), None)
    with pytest.raises(AssertionError, match=r"order .*\?$"):
        EXERCISES["5.2"].judge(0, (kind(96), kind(8)), None)


def explained(exercise, measured):
    if not isinstance(exercise, Explain):
        return measured
    return dict(prediction=1.0, measured=measured, because="because " * 20)


@pytest.mark.parametrize("number", OF[Number])
def test_a_trap_leads_to_its_own_question_in_every_variant(number):
    exercise = EXERCISES[number]
    assert len(exercise.traps) + len(exercise.wrong) >= 5
    asked = [*exercise.traps.items(), *((exercise.ask, wrong) for wrong in exercise.wrong.values())]
    for variant in range(VARIANTS):
        for question, trap in asked:
            with pytest.raises(AssertionError) as raised:
                exercise.judge(variant, explained(exercise, trap(**exercise.given(variant))), None)
            assert str(raised.value) == question, (variant, exercise.given(variant))
            assert question.strip().endswith("?")


@pytest.mark.parametrize("number", OF[Choice])
def test_a_choice_has_one_right_option_and_a_question_for_each_other(number):
    exercise = EXERCISES[number]
    questions = [question for question in exercise.options.values() if question]
    assert len(questions) == len(exercise.options) - 1 >= 5
    assert len(set(questions)) == len(questions)
    exercise.judge(0, exercise.want(0)[0].upper() + " ", None)
    for letter, (_, question) in exercise.letters().items():
        if question:
            with pytest.raises(AssertionError) as raised:
                exercise.judge(0, letter, None)
            assert str(raised.value) == question
            assert question.endswith("?")


@pytest.mark.parametrize("number", OF[Number] + OF[Choice])
@pytest.mark.parametrize(
    "odd", [None, ..., math.nan, math.inf, "", [], Odd("Everything"), torch.ones(1), True, {}], ids=repr
)
def test_what_is_no_answer_is_asked_for_one(number, odd):
    exercise = EXERCISES[number]
    with pytest.raises(AssertionError, match=r"\?$"):
        exercise.judge(0, odd, None)
    if isinstance(exercise, Explain):
        with pytest.raises(AssertionError, match=r"\?$"):
            exercise.judge(0, explained(exercise, odd), None)


@pytest.mark.parametrize("number", [n for n in OF[Number] if isinstance(EXERCISES[n], Explain)])
def test_an_explanation_has_three_parts(number):
    exercise = EXERCISES[number]
    right = dict(prediction=1, measured=exercise.solve(**exercise.given(0)), because="because " * 20)
    exercise.judge(0, right, None)
    for broken in ({"because": "so"}, {"because": "因为分数"}, {"prediction": None}, {"because": None}):
        with pytest.raises(AssertionError, match=r"\?$"):
            exercise.judge(0, right | broken, None)
    exercise.judge(0, right | {"because": "因为所有得分现在都是正的，所以墨迹得到更多权重。"}, None)
    assert exercise.manual and exercise.rubric


# --- code


@pytest.mark.parametrize("number", OF[Code])
def test_the_solution_passes_under_200_keys(number):
    exercise = EXERCISES[number]
    for seed in SEEDS:
        judged(exercise, exercise.probe(exercise.solution, seed), seed)


@pytest.mark.parametrize("number, double", [
    ("2.4", lambda logits: EXERCISES["2.4"].solution(logits.double())),
    ("2.5", lambda *case: EXERCISES["2.5"].solution(*(x.double() for x in case))),
    ("6.4", lambda x, *sigmas: EXERCISES["6.4"].solution(x.double(), *sigmas)),
    ("5.5", lambda *case: OrderedDict(EXERCISES["5.5"].solution(*case))),
])  # fmt: skip
def test_double_precision_and_another_kind_of_dictionary_are_right(number, double):
    judged(EXERCISES[number], EXERCISES[number].probe(double, 1), 1)


def test_a_mend_may_draw_numbers():
    def mend(layer):
        new = torch.nn.Linear(layer.query.in_features, layer.query.out_features)
        new.load_state_dict(layer.query.state_dict())
        layer.query = new
        EXERCISES["2.6"].solution(layer)

    judged(EXERCISES["2.6"], EXERCISES["2.6"].probe(mend, 1), 1)


@pytest.mark.parametrize("number", OF[Code])
def test_there_are_five_wrong_answers(number):
    assert len(EXERCISES[number].wrong) >= 5


@pytest.mark.parametrize("number, mistake", WRONG)
def test_a_wrong_answer_is_asked_the_question_that_leads_to_its_mistake(number, mistake):
    exercise = EXERCISES[number]
    wrong, part = exercise.wrong[mistake]
    for seed in (0, 1, 2):
        with pytest.raises(AssertionError) as raised:
            judged(exercise, exercise.probe(wrong, seed), seed)
        assert part in str(raised.value), str(raised.value)
        assert str(raised.value).split("\n")[0].strip().endswith("?")


@pytest.mark.parametrize("number", OF[Code])
def test_cases_differ_by_the_key_and_have_no_two_sizes_alike(number):
    exercise = EXERCISES[number]
    assert repr(exercise.cases(3)) == repr(exercise.cases(3))
    assert pack(exercise.cases(3)) != pack(exercise.cases(4))


class Mutation(ast.NodeTransformer):
    """Change the ``target``-th operator, comparison, number or sign of a function."""

    SWAPS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.MatMult: ast.Mult,
             ast.Pow: ast.Mult, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.Gt: ast.LtE,
             ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.And: ast.Or, ast.Or: ast.And, ast.FloorDiv: ast.Mult}  # fmt: skip

    def __init__(self, target):
        self.target, self.seen = target, 0

    def now(self):
        self.seen += 1
        return self.seen - 1 == self.target

    def generic_visit(self, node):
        super().generic_visit(node)
        for field in ("op", "ops"):
            operators = getattr(node, field, None)
            for index, operator in enumerate(operators if isinstance(operators, list) else [operators]):
                swap = self.SWAPS.get(type(operator))
                if swap and self.now():
                    if field == "op":
                        node.op = swap()
                    else:
                        node.ops[index] = swap()
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and self.now():
            node.value += 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and self.now():
            return node.operand
        return node


def mutants(source):
    tree = ast.parse(source)
    counter = Mutation(-1)
    counter.visit(copy.deepcopy(tree))
    for target in range(counter.seen):
        yield ast.unparse(Mutation(target).visit(copy.deepcopy(tree)))


def is_rejected(exercise, source):
    space = {}
    try:
        exec("import math\nimport torch\n" + exercise.prelude() + "\n" + source, space)
        judged(exercise, exercise.probe(space[exercise.name], 1), 1)
        judged(exercise, exercise.probe(space[exercise.name], 2), 2)
    except Exception:
        return True
    return False


@pytest.mark.slow
def test_a_solution_with_one_thing_changed_is_rejected():
    accepted, total = [], 0
    for number in OF[Code]:
        for mutant in mutants(EXERCISES[number].source()):
            total += 1
            if any(piece in mutant for piece in EXERCISES[number].equivalent):
                continue
            if not is_rejected(EXERCISES[number], mutant):
                accepted.append(f"# {number}\n{mutant}")
    print("\n\n".join(accepted))
    assert len(accepted) <= 0.05 * total, f"{len(accepted)} of {total} changed solutions were accepted:\n" + "\n".join(
        accepted
    )


@pytest.mark.parametrize("number", OF[Code])
@pytest.mark.parametrize("odd", [None, ..., math.nan, "", [], (), {print: 1}, torch.ones(1), (None,) * 4], ids=repr)
def test_a_judge_asks_about_what_is_no_result(number, odd):
    exercise = EXERCISES[number]
    for case, want in zip(exercise.cases(1), exercise.want(1), strict=True):
        with pytest.raises(AssertionError, match=r"\?"):
            exercise.judge(case, unpack(pack(odd)), want)


# --- what is shipped


@pytest.mark.parametrize("number", OF[Code])
def test_the_public_check_takes_the_solution_and_asks_about_the_starter(number):
    exercise = EXERCISES[number]
    check(number, exercise.source())
    with pytest.raises((AssertionError, TypeError, AttributeError)):
        check(number, exercise.starter)


@pytest.mark.parametrize("number", OF[Number] + OF[Choice])
def test_the_public_check_takes_the_answer_of_a_student(number):
    exercise = EXERCISES[number]
    for student in ("", "ada", "42"):
        variant = variant_of(student, number)
        right = exercise.want(variant)[0] if isinstance(exercise, Choice) else exercise.solve(**exercise.given(variant))
        check(number, f"answer = {explained(exercise, right)!r}", student)
        with pytest.raises(AssertionError, match=r"\?$"):
            check(number, exercise.starter, student)


def test_the_chapters_and_the_shipped_checks_are_what_the_exercises_give(repository):
    if f"torch=={torch.__version__.split('+')[0]}\n" not in (repository / "constraints.txt").read_text("utf-8"):
        pytest.skip("another torch than the tested one draws other numbers")
    assert tool.main(["--check"]) == 0, "Run `nox -s exercises`."


def test_no_solution_is_shipped():
    shipped = json.dumps(records(), ensure_ascii=False)
    for number in OF[Code]:
        body = EXERCISES[number].source().split("\n", 1)[1]
        assert json.dumps(body, ensure_ascii=False)[1:-1] not in shipped, number


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_seven_exercises_of_every_kind(chapter):
    kinds = [e.kind for number, e in EXERCISES.items() if number.split(".")[0] == chapter]
    assert [n for n in EXERCISES if n.split(".")[0] == chapter] == [f"{chapter}.{k}" for k in range(1, 8)]
    clinic = chapter == "21"  # its patients ask for no code but what mends them
    least = {"code": 0, "mend": 4} if clinic else {"code": 2, "mend": 1}
    assert len(kinds) == 7 and {"explain", "number"} <= set(kinds)
    assert all(kinds.count(kind) >= count for kind, count in least.items())
    assert sum(kind in ("number", "choice") for kind in kinds) >= (2 if clinic else 3)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_an_exercise_needs_is_an_earlier_one_or_a_section_of_its_chapter(chapter):
    (path,) = (tool.ROOT / "notebooks").glob(f"{int(chapter):02}-*.ipynb")
    markdown = "\n".join(
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
    )
    known = set(re.findall(r"^#+ (.+)$", markdown, re.MULTILINE))
    for number, exercise in EXERCISES.items():
        if number.split(".")[0] == chapter:
            assert set(exercise.needs) <= known, (number, exercise.needs)
        known.add(number)


@pytest.mark.parametrize("name", problem_sets())
def test_a_problem_set_has_exercises(name):
    unknown = set(problem_sets()[name]["exercises"]) - set(EXERCISES)
    assert not unknown, f"sets.toml: {name} has {sorted(unknown)}, which are no exercises."


# --- the way over the wire, and names


def test_data_come_back_as_they_were():
    data = {
        "a": (1, 2.5, -math.inf),
        "b": [torch.eye(2, dtype=torch.float64), {3, "x"}, None, True],
        "c": torch.empty(0, 3),
    }
    back = unpack(json.loads(json.dumps(pack(data))))
    assert back["a"] == data["a"] and back["b"][1:] == data["b"][1:]
    assert torch.equal(back["b"][0], data["b"][0]) and back["b"][0].dtype == torch.float64
    assert back["c"].shape == (0, 3)


def test_what_is_no_data_equals_nothing():
    class Everything(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Lying(torch.Tensor):
        def detach(self):
            sys.exit()

    for thing in (Everything(3), print, object(), iter([]), [[[]]] * 20_000):
        back = unpack(pack(thing))
        assert isinstance(back, Odd) and back != back


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return torch.softmax(x, -1)",
        "from torch import softmax as s",
        "s = getattr(torch, 'softmax')",
        "import torch.nn.functional as F; f = F.softmax",
        "softmax = torch.nn.Softmax",
    ],
)
def test_a_forbidden_name_is_seen(source):
    with pytest.raises(AssertionError, match=r"without .*oftmax.*\?"):
        refuse_forbidden("2.4", source, ["softmax", "Softmax"])


def test_a_name_of_ones_own_is_not_forbidden():
    refuse_forbidden("2.4", "def softmax(x):\n    return x\nprint(softmax(3))", ["softmax"])
