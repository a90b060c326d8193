"""What the package does where only its core is installed: what comes with an extra cannot be imported."""

import json
import re
import subprocess
import sys
import tomllib

import pytest

import attntut

EXTRAS = {"plots": ["matplotlib", "scipy"], "tables": ["pandas"], "train": ["tqdm"]}
EXTRAS["jupyter"] = ["IPython", "ipywidgets", "anywidget", "traitlets"]

CORE = """
import json, sys
import torch
sys.modules |= dict.fromkeys(sys.argv[1:])  # None: an import says that there is no such module
before = set(sys.modules)
import attntut
brought = {name.partition(".")[0] for name in set(sys.modules) - before}

model, x = torch.nn.MultiheadAttention(16, num_heads=2), torch.ones(4, 1, 16)
attntut.initialize_(model, "zeros", force=True)
report = attntut.diagnose(model, (x, x, x))
attntut.compare("one number", 1, 1, atol=0)

def explorer(): attntut.Explorer
def interval(): attntut.compare("several numbers", 1, [1, 1.1], rtol=0.1)
def listening(): attntut.listen(model, steps=1).__enter__()
def plots(): from attntut import plots
def panels(): from attntut.explorer import lines

said = {}
for call in (report.plot, report.frame, explorer, interval, listening, plots, panels):
    try:
        call()
    except ModuleNotFoundError as error:
        said[call.__name__] = str(error)
print(json.dumps(dict(text=str(report), html=report._repr_html_(), said=said, brought=sorted(brought))))
"""


@pytest.fixture(scope="module")
def core():
    blocked = [package for packages in EXTRAS.values() for package in packages]
    ran = subprocess.run([sys.executable, "-c", CORE, *blocked], capture_output=True, text=True, check=True)
    record, result = ran.stdout.splitlines()
    assert record == "one number   predicted 1   measured 1   ✓ exactly"
    return json.loads(result)


def test_a_model_is_initialized_and_its_report_printed(core):
    assert "ERROR: attention uniform in (model)" in core["text"] and "heads  keys  logit std" in core["text"]
    assert "attention uniform</strong> in (model)" in core["html"]


def test_html_without_a_figure_says_why(core):
    assert "<img" not in core["html"] and "<svg" not in core["html"]
    assert "Note: No figure: matplotlib is not installed, and this needs it: pip install" in core["html"]


def test_what_comes_with_an_extra_names_it(core, repository):
    needs = dict(plot="matplotlib", frame="pandas", interval="scipy", listening="tqdm", plots="matplotlib")
    needs |= dict(explorer="ipywidgets", panels="ipywidgets")
    extra_of = {package: extra for extra, packages in EXTRAS.items() for package in packages}
    assert core["said"].keys() == needs.keys()
    for call, package in needs.items():
        assert core["said"][call].startswith(package)
        assert core["said"][call].endswith(
            f"is not installed, and this needs it: pip install 'attntut[{extra_of[package]}]'"
        )
    offered = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package in needs.values():
        names = {re.split(r"\W", need)[0] for need in offered["optional-dependencies"][extra_of[package]]}
        assert package in names, f"attntut[{extra_of[package]}] does not bring {package}."


def test_what_is_imported_when_it_is_used_is_there():
    assert attntut.Explorer is attntut.explorer.Explorer
    with pytest.raises(AttributeError, match="module 'attntut' has no attribute 'explore'"):
        attntut.explore  # noqa: B018


def test_importing_the_package_brings_torch_and_nothing_else(core):
    """Not even what a report is printed with, before one is printed."""
    assert set(core["brought"]) - sys.stdlib_module_names <= {"attntut", "numpy", "torch", "torchgen", "triton"}
