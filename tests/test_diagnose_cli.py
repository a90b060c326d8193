"""The command line: a first look at a Hugging Face architecture."""

import builtins
import json
import os
import socket

import pytest

from attntut._huggingface import configuration
from attntut.diagnose import Report
from attntut.diagnose.__main__ import main

transformers = pytest.importorskip("transformers", reason="Hugging Face models are not installed")

SMALL = "--hidden-size 32 --num-hidden-layers 2 --num-attention-heads 4 --intermediate-size 64 --vocab-size 50".split()
GPT2 = "gpt2 --n-embd 32 --n-layer 2 --n-head 4 --vocab-size 50 --bos-token-id 1 --eos-token-id 2".split()
WHISPER = (
    "whisper --d-model 32 --encoder-layers 1 --decoder-layers 1 --encoder-attention-heads 2 "
    "--decoder-attention-heads 2 --encoder-ffn-dim 32 --decoder-ffn-dim 32 --max-source-positions 12 "
    "--num-mel-bins 8 --vocab-size 50 --pad-token-id 0 --bos-token-id 1 --eos-token-id 2 --decoder-start-token-id 1"
).split()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("The command line must not download anything.")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE", "1"))


def output(capsys, *arguments):
    assert main(["--seq-len", "16", "--batch", "2", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, layers",
    [
        (["bert", *SMALL], 2),
        (GPT2, 2),
        (["llama", *SMALL, "--num-key-value-heads", "2"], 2),
        ("t5 --d-model 32 --d-kv 8 --d-ff 64 --num-layers 1 --num-heads 4 --vocab-size 50".split(), 3),
        (["vit", *SMALL[:-2], "--image-size=16", "--patch-size=8"], 2),
        (WHISPER, 3),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_family_by_name(capsys, arguments, layers):
    shown = output(capsys, *arguments)
    assert f"{layers} attention layers" in shown and "No findings." in shown


def test_a_configuration_file(capsys, tmp_path):
    path = tmp_path / "config.json"
    transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=50).to_json_file(
        path
    )
    assert "1 attention layer," in output(capsys, str(path)) == output(capsys, str(tmp_path))
    assert "2 attention layers" in output(capsys, str(path), "--num-hidden-layers", "2")


def test_the_seed_decides_all(capsys):
    first, again, other = (output(capsys, "bert", *SMALL, "--seed", seed) for seed in "001")
    assert first == again != other


def test_an_initialization_is_compared(capsys, tmp_path):
    path = tmp_path / "report.json"
    shown = output(capsys, *GPT2, "--init", "xavier_normal", "--json", str(path), "--width", "90")
    assert "as it comes: no findings" in shown and "xavier_normal: no findings" in shown
    assert max(map(len, shown.splitlines())) <= 90
    before, after = (float(part) for part in shown.splitlines()[1].split()[1:4:2])
    assert before < 0.02 < 0.5 < after, "N(0, 0.02²) at width 32 gives a logit std of 0.013, Xavier's rule gives 1."
    report = Report.from_json(path.read_text(encoding="utf-8"))
    assert report.layers()[0]["logit_std"] == pytest.approx(after, rel=0.1)


def test_what_an_initialization_requires_is_said(capsys):
    with pytest.raises(SystemExit):
        main([*GPT2, "--init", "t_fixup"])
    assert "norm" in capsys.readouterr().err
    assert "t_fixup: " in output(capsys, *GPT2, "--init", "t_fixup", "--force")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["brt"], "got 'brt'. Did you mean 'bert'?"),
        (
            ["bert", "--hidden-sise", "32"],
            "The configuration of bert has no 'hidden_sise'. Did you mean 'hidden_size'?",
        ),
        (["bert", "--hidden-size", "256"], "not a multiple of the number of attention heads"),
        (["bert", "--hidden-size"], "argument --hidden-size: expected one argument"),
        (["bert", "loud"], "unrecognized arguments: loud"),
        (["bert", *SMALL, "--init", "xavier"], "Did you mean 'xavier"),
        (["bert", "--batch", "0"], "--batch must be an integer ≥ 1: got 0"),
        (["bert", "--width", "10"], "--width must be an integer ≥ 40: got 10"),
        (["nowhere/config.json"], "the path of a config.json whose model_type is one: got 'nowhere/config.json'."),
        (["bert", "--is-decoder", "perhaps"], "bool"),
        (["wav2vec2", *SMALL], "takes input_values, which this command cannot make"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_says_what_to_do(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"hidden_size": 32}, r"whose model_type is one: got '.*config\.json'\.$"),
        ({"model_type": "brt"}, r"whose model_type is one: got '.*config\.json' with 'brt'\. Did you mean 'bert'\?$"),
    ],
)
def test_a_file_without_a_known_type(tmp_path, entries, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        configuration(str(path), {})


def test_a_terminal_gets_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    arguments = ["bert", *SMALL, "--initializer-range", "5.0"]
    assert "\x1b[1;33mWARNING:\x1b[0m logits too large" in output(capsys, *arguments)
    monkeypatch.delenv("FORCE_COLOR")
    assert "\nWARNING: logits too large" in output(capsys, *arguments)


def test_without_transformers_it_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit):
        main(["bert"])
    assert "pip install transformers" in capsys.readouterr().err
