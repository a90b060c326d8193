"""A problem set is handed out, solved, handed in and graded; who cheats gets no more than the honest part."""

import csv
import dataclasses
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from attntut.exercises.public import variant_of
from exercises import exercises, problem_sets
from exercises.exercise import Choice, Code, Explain
from grading import grade, gradescope, release, sandbox, worker
from grading.judge import NUMERAL, Assignment, told
from grading.notebook import read
from grading.report import points_by_hand
from tests.grading_hostile import BROKEN_FILES, HARD_SOURCES, HOSTILE, WHERE_RIGHTS_MATTER

E = exercises()
NUMBERS = ["2.1", "2.2", "2.4", "2.6", "2.7"]
SET = {number: E[number] for number in NUMBERS}
ATTACKED = "2.4"
KEY = b"a secret of the tests"
GROUPS = 6  # one test each, of submissions with two attacks each
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not shutil.which("bwrap"), reason="bubblewrap is missing (Debian: apt install bubblewrap)"
)


def right(number, student=""):
    """A right answer's cell."""
    exercise = E[number]
    if isinstance(exercise, Code):
        return f"import math\nimport torch\nfrom torch import nn\n{exercise.source()}"
    if isinstance(exercise, Choice):
        return f"answer = {exercise.want(0)[0]!r}"
    answer = exercise.solve(**exercise.given(variant_of(student, number)))
    if isinstance(exercise, Explain):
        answer = dict(prediction=1.0, measured=answer, because="because " * 20)
    return f"answer = {answer!r}"


def notebook(answers, student=""):
    """What a student hands in, as JSON with nothing that the grader does not need."""
    sources = [f"%load_ext attntut.exercises\n%student {student}"]
    sources += [f"%%exercise {number}\n{source}" for number, source in answers.items()]
    return json.dumps({"cells": [{"cell_type": "code", "source": source} for source in sources]})


def honest(student=""):
    return {number: right(number, student) for number in NUMBERS}


@pytest.fixture(scope="module")
def assignment():
    return Assignment("ps1", list(SET.values()), KEY)


@pytest.fixture(scope="module")
def stage():
    with sandbox.staged() as stage:
        yield stage


@pytest.fixture(scope="module")
def bubblewrap(stage):
    try:
        return sandbox.started(sandbox.Sandbox("bubblewrap", stage))
    except sandbox.NoSandbox as reason:
        pytest.skip(f"bubblewrap does not start on this machine: {reason}")


def only_root():
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root can give students' code another user")


def copies(names):
    """The exercise that is attacked, once for each name, with little time."""
    return {f"2.4{k:02}": dataclasses.replace(E[ATTACKED], number=f"2.4{k:02}", seconds=1) for k in range(len(names))}


@pytest.fixture
def course(tmp_path):
    """Folders of a course, closed to others, and a server and a socket that nobody should reach."""
    tmp_path.chmod(0o700)
    (tmp_path / "in").mkdir()
    (tmp_path / "key").write_bytes(KEY)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        os.chdir(tmp_path)
        local.bind("socket")
        local.listen()
        os.chdir(ROOT)
        names = dict(key=tmp_path / "key", folder=tmp_path / "in", out=tmp_path / "out", root=ROOT)
        names |= dict(port=server.getsockname()[1], left=f"left-{uuid.uuid4().hex[:8]}", solution=right(ATTACKED))
        yield names | dict(public=[x.tolist() for x in E[ATTACKED].want(0)])


def filled(source, course):
    return re.sub("<<(.+?)>>", lambda match: str(course[match[1]]), source)


def graded_by_name(course, assignment, place, jobs=2):
    found = grade.grade_folder(course["folder"], course["out"], assignment, KEY, place, jobs)
    return {one.name: one for one in found}


def marks(graded):
    return {mark.number: mark.points for mark in graded.marks}


FULL = {number: E[number].points for number in NUMBERS}


# --- hostile

TWICE = copies("ab")
PAIRS = list(zip(list(HOSTILE)[::2], [*list(HOSTILE)[1::2], "uniform"], strict=False))


@pytest.mark.slow
@pytest.mark.parametrize("group", range(GROUPS))
def test_no_hostile_answer_gets_points_or_takes_them_from_another(group, course, bubblewrap):
    play(PAIRS[group::GROUPS], course, bubblewrap)


@pytest.mark.slow
def test_another_user_keeps_out_what_bubblewrap_does(course, stage):
    only_root()
    names = [name for name in HOSTILE if name in WHERE_RIGHTS_MATTER]
    place = sandbox.Sandbox("user", stage)
    play(list(zip(names[::2], names[1::2], strict=True)), course, place)
    left = [path for folder in worker.SHARED if folder.exists() for path in folder.iterdir()]
    assert not [path for path in left if path.lstat().st_uid in sandbox.UIDS]


def play(pairs, course, place):
    """Grade submissions with two attacks each, beside an honest one."""
    twice = Assignment("ps1", [TWICE["2.400"], E["2.1"], E["2.2"], TWICE["2.401"], E["2.6"]], KEY)
    rest = {number: E[number].points for number in ("2.1", "2.2", "2.6")}
    folder = course["folder"]
    for pair in [*pairs, ("honest", "honest")]:
        name = " and ".join(dict.fromkeys(pair))
        attacks = [right(ATTACKED) if attack == "honest" else filled(HOSTILE[attack], course) for attack in pair]
        cells = dict(zip(TWICE, attacks, strict=True)) | {number: right(number, name) for number in rest}
        (folder / f"{name}.ipynb").write_text(notebook(cells, name))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = graded_by_name(course, twice, place)
    assert marks(found.pop("honest")) == rest | dict.fromkeys(TWICE, E[ATTACKED].points)
    due = rest | dict.fromkeys(TWICE, 0)
    assert not [name for name, one in found.items() if any(marks(one)[number] for number in TWICE)]
    assert {name: (one.marks, one.notes) for name, one in found.items() if marks(one) != due} == {}
    assert len(found) == len(pairs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not left_behind(course["left"]), "A process was left behind."
    for name, one in found.items():
        page = (course["out"] / "feedback" / f"{name}.html").read_text("utf-8")
        for question in (mark.question for mark in one.marks if mark.number in TWICE):
            assert question.split("\n")[0].strip().endswith("?") and question in html.unescape(page)
            assert "secret" not in question and "<script>" not in page


def left_behind(name):
    """The processes that have a name, after a moment in which they may end."""
    for _ in range(20):
        found = [p.pid for p in psutil.process_iter(["name", "cmdline"]) if named(p.info, name)]
        if not found:
            return []
        time.sleep(0.1)
    return found


def named(info, name):
    return info["name"] == name[:15] or name in (info["cmdline"] or [])


def test_there_are_enough_kinds_of_hostile_answers():
    assert len(HOSTILE) >= 40


def test_a_process_that_is_left_behind_would_be_found():
    name = f"left-{uuid.uuid4().hex[:8]}"
    with subprocess.Popen([name, "1000"], executable=shutil.which("sleep")) as process:
        assert left_behind(name)
        process.kill()
    assert not left_behind(name)


def test_without_isolation_the_attacks_would_succeed(course, stage):
    names = ["reads the key", "reads the sources", "uses the network", "writes into the submissions"]
    those = copies(names)
    attacks = {number: filled(HOSTILE[name], course) for number, name in zip(those, names, strict=True)}
    (course["folder"] / "a.ipynb").write_text(notebook(attacks))
    found = graded_by_name(course, Assignment("ps1", list(those.values()), KEY), sandbox.Sandbox("trust", stage))
    assert marks(found["a"]) == dict.fromkeys(those, E[ATTACKED].points), found["a"].marks


def test_a_cell_that_is_hard_to_read_is_a_wrong_answer(course, bubblewrap):
    those = copies(HARD_SOURCES)
    sources = dict(zip(those, HARD_SOURCES.values(), strict=True))
    (course["folder"] / "a.ipynb").write_text(notebook({"2.1": right("2.1"), **sources}, "a"))
    hard = Assignment("ps1", [*those.values(), E["2.1"]], KEY)
    found = graded_by_name(course, hard, bubblewrap)["a"]
    assert marks(found) == dict.fromkeys(those, 0) | {"2.1": 1}
    assert all(mark.question.endswith("?") for mark in found.marks if mark.number in those)


def test_broken_files_are_reported_and_hurt_no_other(course, assignment, bubblewrap):
    folder = course["folder"]
    for name, content in BROKEN_FILES.items():
        (folder / name).write_bytes(content)
    (folder / "folder.ipynb").mkdir()
    (folder / "link.ipynb").symlink_to(course["key"])
    os.mkfifo(folder / "pipe.ipynb")
    (folder / "honest.ipynb").write_text(notebook(honest("ada"), "ada"))
    found = graded_by_name(course, assignment, bubblewrap)
    assert marks(found.pop("honest")) == FULL
    broken = {Path(name).stem for name in BROKEN_FILES} | {"link", "pipe"}
    assert found.keys() == broken
    for one in found.values():
        assert one.score is None and "no notebook" in one.notes[0]
        assert "Not graded" in (course["out"] / "feedback" / f"{one.name}.html").read_text()
    rows = table(course["out"] / "grades.csv")
    assert rows["'=cmd"]["score"] == rows["pipe"]["score"] == "" and rows["honest"]["score"] == f"{sum(FULL.values())}"


# --- what is graded


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {row.get("student_id") or row["Student"]: row for row in csv.DictReader(file)}


def test_every_solution_gets_all_points_and_every_starter_none(bubblewrap, tmp_path):
    everything = Assignment("all", list(E.values()), KEY)
    for answers, points in (
        ({n: right(n, "ada") for n in E}, {n: e.points for n, e in E.items()}),
        ({n: e.starter for n, e in E.items()}, dict.fromkeys(E, 0)),
        ({n: f"{e.starter}\n# {n}" for n, e in E.items()}, dict.fromkeys(E, 0)),
    ):
        path = tmp_path / "a.ipynb"
        path.write_text(notebook(answers, "ada"))
        found = everything.marks(read(path, "a", everything.starters), bubblewrap)
        assert {mark.number: mark.points for mark in found} == points, found


def test_a_wrong_answer_gets_the_question_of_its_mistake_and_no_hidden_case(course, assignment, bubblewrap):
    divisor = E["2.2"]
    trap, value = next(iter(divisor.traps.items()))
    wrong = {"2.1": "answer = 'a'", "2.2": f"answer = {value(**divisor.given(variant_of('ada', '2.2')))!r}"}
    wrong |= {ATTACKED: "def softmax(logits):\n    return logits.exp() / logits.exp().sum(-1, keepdim=True)"}
    (course["folder"] / "ada.ipynb").write_text(notebook(wrong, "ada"))
    found = graded_by_name(course, assignment, bubblewrap)["ada"]
    asked = {mark.number: mark.question for mark in found.marks}
    assert asked["2.1"] == next(q for q in E["2.1"].options.values() if q)
    assert asked["2.2"] == trap
    assert "infinite" in asked[ATTACKED] and "no answer" in asked["2.6"]
    page = html.unescape((course["out"] / "feedback" / "ada.html").read_text("utf-8"))
    assert all(question in page for question in asked.values()) and "logits.exp() / logits" in page
    body = E[ATTACKED].source().split("\n", 1)[1]
    assert body not in page and "0 of 3" in page and KEY.decode() not in page


def test_no_question_tells_a_number_of_a_hidden_case():
    raw, shown = [], []
    for exercise in (e for e in E.values() if isinstance(e, Code)):
        for mistake, (wrong, _) in exercise.wrong.items():
            asked = [questioned(exercise, wrong, seed) for seed in (11, 12)]
            for found, texts in ((raw, asked), (shown, [told(text, exercise) for text in asked])):
                first, second = ({*NUMERAL.findall(text)} for text in texts)
                if {number for number in first ^ second if "." in number}:
                    found.append((exercise.number, mistake, texts))
    assert raw, "No question holds a number of its case. Is this test still needed?"
    assert shown == []


def questioned(exercise, wrong, seed):
    """What a judge asks about a wrong answer."""
    for case in zip(exercise.cases(seed), exercise.probe(wrong, seed), exercise.want(seed), strict=True):
        try:
            exercise.judge(*case)
        except AssertionError as question:
            return str(question)
    return ""


def test_the_last_changed_cell_counts_and_metadata_do_not(tmp_path, assignment):
    cells = [("2.1", "answer = 'a'"), ("2.1", "answer = 'd'"), ("2.1", E["2.1"].starter), ("9.9", "x")]
    texts = ["%student ada", *(f"\n%%exercise {number} \n{source}\n" for number, source in cells)]
    path = tmp_path / "a.ipynb"
    for odd in ({}, {"metadata": 3, "id": "x", "cell_type": "raw"}):
        path.write_text(json.dumps({"cells": [{"source": text.splitlines(keepends=True), **odd} for text in texts]}))
        found = read(path, "a", assignment.starters)
        assert found.answers == {"2.1": "answer = 'd'"} and found.student == "ada"
        assert any("more than once" in note for note in found.notes) and any("9.9" in note for note in found.notes)


def test_a_student_is_named_by_the_file_or_its_folder(tmp_path):
    folder = tmp_path / "in"
    files = ["ada.ipynb", "Bob_1_assignsubmission_file/ps1.ipynb", "Bob_1_assignsubmission_file/plot.png"]
    files += ["eve/ps1.ipynb", "eve/ps1 (1).ipynb", "ADA.ipynb", ".ipynb_checkpoints/x.ipynb", "__MACOSX/ada.ipynb"]
    files += ["dan/ps1/ps1.ipynb", "kim/notes.docx", "x\x1b[2J.ipynb", f"{'n' * 240}.ipynb", "lee_12_34_ps1.ipynb"]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    found = grade.submissions(folder)
    names = {"Bob_1_assignsubmission_file", "eve--ps1", "eve--ps1 (1)", "dan", "kim", "x?[2J", "lee_12_34_ps1"}
    assert names < found.keys()
    assert len({name.casefold() for name in found}) == len(found) == 10
    assert grade.CANVAS.fullmatch("lee_LATE_12_34_ps1.ipynb")[1] == "12"
    assert max(map(len, found)) < 200


def test_who_says_to_be_another_is_reported_and_takes_no_grade(course, assignment, bubblewrap):
    for name in ("ada", "mallory"):
        (course["folder"] / f"{name}.ipynb").write_text(notebook({"2.1": right("2.1")}, "Ada"))
    found = graded_by_name(course, assignment, bubblewrap)
    assert "mallory" in found["ada"].private[0] and "ada" in found["mallory"].private[0]
    assert table(course["out"] / "grades.csv").keys() == {"ada", "mallory"}


def test_tables_have_the_columns_of_nbgrader_and_canvas(course, assignment, bubblewrap):
    (course["folder"] / "lovelaceada_12_34_ps1.ipynb").write_text(notebook(honest("ada"), "ada"))
    (course["folder"] / "bob.ipynb").write_text(notebook({}))
    graded_by_name(course, assignment, bubblewrap)
    grades, canvas = (table(course["out"] / name) for name in ("grades.csv", "canvas.csv"))
    columns = "assignment duedate timestamp student_id last_name first_name email raw_score late_submission_penalty"
    assert list(grades["bob"]) == [*columns.split(), "score", "max_score", *NUMBERS, "2.7 by hand (of 3)"]
    most, ada = sum(FULL.values()) + 3, "lovelaceada_12_34_ps1"
    assert (grades[ada]["score"], grades[ada]["max_score"], grades["bob"]["score"]) == (f"{most - 3}", f"{most}", "0")
    assert [grades[ada][number] for number in NUMBERS] == [str(points) for points in FULL.values()]
    assert grades[ada]["2.7 by hand (of 3)"] == ""
    assert canvas[ada]["ID"] == "12" and canvas[ada]["ps1"] == f"{most - 3}"
    assert canvas["bob"]["SIS Login ID"] == "bob" and canvas["    Points Possible"]["ps1"] == f"{most}"


def test_points_by_hand_are_kept_and_added(course, assignment, bubblewrap, monkeypatch):
    (course["folder"] / "ada.ipynb").write_text(notebook(honest("ada"), "ada"))
    graded_by_name(course, assignment, bubblewrap)
    path = course["out"] / "grades.csv"
    header, row = path.read_text().splitlines()
    path.write_text(f"{header}\n{row}2.5\n")
    monkeypatch.setattr(Assignment, "marks", None)  # nothing is run again
    for _ in range(2):
        found = graded_by_name(course, assignment, bubblewrap)["ada"]
        assert found.score == sum(FULL.values()) + 2.5
    assert table(path)["ada"]["score"] == f"{found.score:g}"
    assert "2.5 of 3" in (course["out"] / "feedback" / "ada.html").read_text()
    path.write_text("\ufeff" + path.read_text().replace(",", ";"), encoding="utf-8")  # a spreadsheet's own way
    assert points_by_hand(path, assignment) == {"ada": {"2.7": 2.5}}
    for broken in (f"{header}\n{row}4\n", f"{header}\n{row}good\n", "student_id\nada\n"):
        path.write_text(broken)
        with pytest.raises(SystemExit, match=r"grades.csv"):
            graded_by_name(course, assignment, bubblewrap)
        assert path.read_text() == broken


def test_a_second_run_grades_only_what_changed(course, assignment, bubblewrap, monkeypatch):
    for name in ("ada", "bob"):
        (course["folder"] / f"{name}.ipynb").write_text(notebook({"2.1": right("2.1")}, name))
    first = graded_by_name(course, assignment, bubblewrap)
    ran, run = [], Assignment.marks
    monkeypatch.setattr(Assignment, "marks", lambda self, one, *a: ran.append(one.name) or run(self, one, *a))
    again = graded_by_name(course, assignment, bubblewrap)
    assert ran == [] and [marks(one) for one in again.values()] == [marks(one) for one in first.values()]
    (course["folder"] / "bob.ipynb").write_text(notebook({"2.1": "answer = 'a'"}, "bob"))
    assert marks(graded_by_name(course, assignment, bubblewrap)["bob"])["2.1"] == 0
    assert ran == ["bob"]
    other = Assignment("ps1", list(SET.values()), KEY * 2)
    grade.grade_folder(course["folder"], course["out"], other, KEY * 2, bubblewrap)
    assert sorted(ran) == ["ada", "bob", "bob"]


def test_what_broke_off_is_not_lost(course, assignment, bubblewrap, monkeypatch):
    for name in ("ada", "bob"):
        (course["folder"] / f"{name}.ipynb").write_text(notebook({"2.1": right("2.1")}, name))
    run = Assignment.marks

    def interrupted(self, one, *rest):
        if one.name == "bob":
            raise KeyboardInterrupt
        return run(self, one, *rest)

    monkeypatch.setattr(Assignment, "marks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graded_by_name(course, assignment, bubblewrap, jobs=1)
    assert (course["out"] / "graded" / "ada.json").exists() and not (course["out"] / "grades.csv").exists()


# --- the commands


@pytest.fixture
def small_set(monkeypatch):
    monkeypatch.setitem(problem_sets(), "small", {"title": "A small set", "exercises": NUMBERS})
    return "small"


def test_the_command_grades_a_folder(course, small_set, bubblewrap, capsys):
    (course["folder"] / "ada.ipynb").write_text(notebook(honest("ada"), "ada"))
    (course["folder"] / "bob.ipynb").write_text("no")
    options = [str(course["folder"]), "--key", str(course["key"]), "--set", small_set]
    assert grade.main(options) == 0
    said = capsys.readouterr()
    assert "bubblewrap" in said.out and "by hand" in said.out and "100%" in said.err
    assert re.search(rf"ada +{sum(FULL.values())} of {sum(FULL.values()) + 3}", said.out)
    assert re.search(r"bob +\? of", said.out) and "1 of them could not be graded" in said.out
    assert table(course["folder"].with_name("in-graded") / "grades.csv").keys() == {"ada", "bob"}


@pytest.mark.parametrize(
    "options, said",
    [
        (["in", "--key", "none"], "no such file.*secrets"),
        (["in", "--key", "short"], "it has 1 bytes"),
        (["in", "--key", "key", "--set", "ps0"], "no problem set 'ps0'.*ps1"),
        (["none", "--key", "key"], None),
        (["in", "--key", "key", "--out", "in/out"], None),
        (["in", "--key", "key", "--jobs", "0"], None),
    ],
)
def test_a_wrong_command_says_what_is_wrong(options, said, course, monkeypatch):
    monkeypatch.chdir(course["key"].parent)
    Path("short").write_text("x")
    with pytest.raises(SystemExit) as raised:
        grade.main(options)
    assert raised.value.code == 2 if said is None else re.search(said, str(raised.value), re.DOTALL)
    assert not Path("in-graded").exists()


def test_a_key_where_students_code_could_read_it_is_refused(stage, tmp_path):
    inside = Path(sys.prefix) / "pyvenv.cfg"
    with pytest.raises(sandbox.NoSandbox, match="move"):
        sandbox.choose(stage, [inside])


def test_without_a_sandbox_nothing_is_graded(stage, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(sandbox.NoSandbox, match=r"--trust"):
        sandbox.choose(stage, [Path(sys.executable)])  # which everybody can read
    assert "none" in sandbox.choose(stage, [], trust=True).says


def test_the_released_notebook_runs_and_is_graded(course, small_set, assignment, bubblewrap):
    assert release.main([small_set, "--out", str(course["out"])]) == 0
    path = course["out"] / f"{small_set}.ipynb"
    released = nbformat.read(path, as_version=4)
    nbformat.validate(released)
    text = path.read_text("utf-8")
    for number in NUMBERS:
        assert f"%%exercise {number}" in text and E[number].title in text
        if isinstance(E[number], Code):
            body = E[number].source().split("\n", 1)[1]
            assert json.dumps(body)[1:-1] not in text
    first = next(cell for cell in released.cells if cell.cell_type == "code")
    assert "attntut" in first.source
    empty = read(path, "empty", assignment.starters)
    assert empty.answers == {}
    for cell in released.cells:
        cell.source = re.sub(r"^%student$", "%student ada", cell.source, flags=re.MULTILINE)
        if match := re.match(r"%%exercise (\S+)", cell.source):
            cell.source = f"{match[0]}\n{right(match[1], 'ada')}"
    NotebookClient(released, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    said = [output.text for cell in released.cells if "%%exercise" in cell.source for output in cell.get("outputs", [])]
    assert sum(": right, by the" in text or "measured is right" in text for text in said) == len(NUMBERS), said
    nbformat.write(released, course["folder"] / "ada.ipynb")
    assert marks(graded_by_name(course, assignment, bubblewrap)["ada"]) == FULL


@pytest.mark.parametrize("kind", ["user", "bubblewrap"])
def test_the_zip_grades_where_gradescope_runs_it(kind, course, small_set, tmp_path, request):
    if kind == "user":
        only_root()
    else:
        request.getfixturevalue("bubblewrap")
    out, root = tmp_path / "zip", tmp_path / "autograder"
    assert gradescope.main([small_set, "--key", str(course["key"]), "--out", str(out)]) == 0
    source = root / "source"
    with zipfile.ZipFile(out / f"{small_set}-gradescope.zip") as archive:
        archive.extractall(source)
    if os.name == "posix":
        assert (out / f"{small_set}-gradescope.zip").stat().st_mode & 0o077 == 0
    sets = source / "exercises" / "sets.toml"
    sets.write_text(f'[{small_set}]\ntitle = "A small set"\nexercises = {json.dumps(NUMBERS)}\n')
    (root / "submission").mkdir()
    where = "import os\nassert os.getuid() in [65534, *range(61_000, 61_176)]\n"
    answers = honest("ada") | {ATTACKED: where + right(ATTACKED), "2.1": "answer = 'a'"}
    answers |= {"2.6": filled("assert open('<<key>>').read()\n", {"key": source / "key"}) + right("2.6")}
    (root / "submission" / "mine.ipynb").write_text(notebook(answers, "ada"))
    users = [{"sid": "ada", "email": "ada@example.org", "name": "Ada"}]
    (root / "submission_metadata.json").write_text(json.dumps({"users": users}))
    programs = tmp_path / "bin"  # and no bubblewrap
    programs.mkdir()
    for program in ("bash", "mkdir", "chmod"):
        (programs / program).symlink_to(shutil.which(program))
    environment = {"AUTOGRADER": str(root), "AUTOGRADER_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = str(programs) if kind == "user" else os.environ["PATH"]
    command = [shutil.which("bash"), source / "run_autograder"]
    said = subprocess.run(command, env=environment, check=True, cwd="/", timeout=300, capture_output=True, text=True)
    results = json.loads((root / "results" / "results.json").read_text())
    scores = {test["number"]: test["score"] for test in results["tests"]}
    assert scores == FULL | {"2.1": 0, "2.6": 0}
    assert all(test["max_score"] == E[test["number"]].points and test["output"] for test in results["tests"])
    assert f"Isolation is {sandbox.SAYS[kind]}" in said.stdout and "not yours" not in results["output"]


# --- speed


def test_sixty_submissions_would_take_two_cores_no_longer_than_90_seconds(assignment, stage, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.ipynb"
    path.write_text(notebook(honest("ada"), "ada"))
    submission, took = read(path, "a", assignment.starters), []
    for _ in range(2):  # without bubblewrap, whose processes are nobody's children; the machine may be busy: no clock
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assignment.marks(submission, sandbox.Sandbox("trust", stage))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0.1 < min(took) < 2 * 90 / 60, took
