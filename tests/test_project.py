"""The files around the book: versions, workflows, licences, the README."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import table


def pins(repository) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(repository) -> list[Requirement]:
    about = project(repository)
    lists = [about["dependencies"], *about["optional-dependencies"].values()]
    found = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in found if requirement.name != about["name"]]  # an extra may hold another


def test_every_dependency_has_a_tested_version_that_it_allows(repository):
    tested = pins(repository)
    for requirement in requirements(repository):
        name = canonicalize_name(requirement.name)
        assert name in tested, f"{name} is in pyproject.toml, but not in constraints.txt."
        assert requirement.specifier.contains(tested[name], prereleases=True), f"{requirement} excludes {tested[name]}."


def test_what_dependencies_depend_on_has_a_tested_version(repository):
    tested, seen = pins(repository), set()
    todo = [(requirement.name, requirement.extras) for requirement in requirements(repository)]
    if any(version(name).split("+")[0] != tested[canonicalize_name(name)] for name, _ in todo):
        pytest.skip("other versions are installed than the tested ones")
    while todo:
        name, extras = todo.pop()
        if (canonicalize_name(name), frozenset(extras)) in seen:
            continue
        seen.add((canonicalize_name(name), frozenset(extras)))
        try:
            needs = [Requirement(text) for text in requires(name) or []]
        except ImportError:
            continue  # a dependency of another platform
        for need in needs:
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""}):
                todo.append((need.name, need.extras))
    platform = re.compile("nvidia|cuda|triton|^(setuptools|wheel|pip)$")
    missing = sorted({name for name, _ in seen if name not in tested and not platform.search(name)})
    assert not missing, f"constraints.txt does not pin {missing}."


def test_no_version_is_pinned_twice(repository):
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", ["tests", "weekly", "publish"])
def test_a_workflow_is_valid_and_runs_the_sessions(repository, name):
    text = (repository / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert set(workflow) >= {"name", True, "permissions", "jobs"}  # YAML 1.1 reads `on` as true
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert "python -m pip install nox" in commands
    called = {match for command in commands for match in re.findall(r"nox -s (\w+)", command)}
    noxfile = (repository / "noxfile.py").read_text(encoding="utf-8")
    assert called, "The workflow runs no session of nox."
    assert all(f"def {session}(session" in noxfile for session in called)


def test_no_repository_is_invented(repository):
    names = ["README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml", "_config.yml"]
    texts = [(repository / name).read_text(encoding="utf-8") for name in names]
    texts += [path.read_text(encoding="utf-8") for path in (repository / ".github").rglob("*.yml")]
    assert not re.findall(r"github\.com/|github\.io|mybinder\.org|colab\.research", "\n".join(texts))


def test_every_session_is_in_the_readme(repository):
    noxfile = (repository / "noxfile.py").read_text(encoding="utf-8")
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", noxfile, re.MULTILINE)
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert len(sessions) >= 9
    assert [name for name in sessions if f"`nox -s {name}`" not in readme] == []


def test_ci_runs_the_test_command_of_the_readme(repository):
    script = repository / ".ci" / "run"
    assert "-m pip install nox" in script.read_text(encoding="utf-8")
    assert "nox -s test" in script.read_text(encoding="utf-8")
    if sys.platform == "linux":
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111, ".ci/run is not executable."


def test_the_citation_agrees_with_the_package(repository):
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= set(citation)
    assert citation["version"] == project(repository)["version"]
    assert citation["authors"] == project(repository)["authors"]


def test_the_examples_of_the_readme_run(repository):
    import doctest

    failed, tried = doctest.testfile(str(repository / "README.md"), module_relative=False, encoding="utf-8")
    assert tried
    assert not failed


def test_the_table_goes_between_the_markers_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{table.START}\nold\n{table.END}\nafter\n", encoding="utf-8")
    table.write("new", path)
    assert path.read_text(encoding="utf-8") == f"before\n{table.START}\nnew\n{table.END}\nafter\n"
    path.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold the markers"):
        table.write("new", path)


def test_times_are_medians_of_calls_that_take_turns(monkeypatch):
    clock, calls = [0.0], []

    def call(name, *seconds):
        durations = iter(seconds)

        def run():
            calls.append(name)
            clock[0] += next(durations)

        return run

    monkeypatch.setattr(table.time, "perf_counter", lambda: clock[0])
    first, second = call("a", 100, 1, 2, 9), call("b", 100, 5, 3, 4)  # the first call of each warms up
    assert table.seconds(first, second, repeats=3) == [2, 4], "Neither the least, 1 and 3, nor the mean, 4 and 4."
    assert "".join(calls) == "ab" * 4
