"""A first look at a Hugging Face architecture, at initialization, without downloading anything.

``python -m attntut.diagnose bert --hidden-size 256 --num-attention-heads 4 --num-hidden-layers 4`` builds the model
from its configuration with fresh weights, runs it on random inputs, and prints the report.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attntut.diagnose import Report, diagnose
from attntut.diagnose.render import NARROWEST, comparison, text

EPILOG = """Any other option sets an entry of the configuration: --hidden-size 256, --num-hidden-layers 4, --n-embd 64.
Nothing is downloaded: the weights are random, as the library initializes them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; those of the process by default.

    Returns:
        0; wrong usage raises ``SystemExit(2)``, as in :mod:`argparse`.
    """
    parser = _parser()
    known, rest = parser.parse_known_args(arguments)
    try:
        for name in ("seq_len", "batch"):
            _at_least(name, getattr(known, name), 1)
        _at_least("width", known.width, NARROWEST)
        config = configuration(known.model, _overrides(rest))
        model = build(config, known.seed)
        inputs = random_inputs(model, batch=known.batch, seq_len=known.seq_len, seed=known.seed)
        report = _look(model, inputs)
        after = _look(_initialized(model, known.init, known.seed, known.force), inputs) if known.init else None
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    if after is None:
        print(text(report, known.width))
    else:
        print(comparison(report, after, known.width, ("as it comes", known.init)), text(after, known.width), sep="\n\n")
    if known.json:
        Path(known.json).write_text((after or report).to_json(indent=1) + "\n", encoding="utf-8")
    return 0


def configuration(model: str, overrides: dict[str, Any]) -> Any:
    """A Hugging Face configuration by model type (``"bert"``) or from a ``config.json``.

    Args:
        model: the type, or the path of the file.
        overrides: entries to change.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such type, or no such entry; the nearest one is named.
        OSError: the file cannot be read.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from transformers import CONFIG_MAPPING
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise ImportError(
            "This command builds Hugging Face models: install them with `pip install transformers`. "
            "From Python, attntut.diagnose.diagnose takes any torch module."
        ) from error
    logging.set_verbosity_error()
    entries: dict[str, Any] = {}
    if model.endswith(".json") or os.sep in model:
        entries = json.loads(Path(model).read_text(encoding="utf-8"))
        if not isinstance(entries, dict) or "model_type" not in entries:
            raise ValueError(f"{model} must be a config.json with a model_type: it has none.")
        model = entries.pop("model_type")
    if model not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model, list(CONFIG_MAPPING), n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model must be a Hugging Face model type or a config.json: got {model!r}.{hint}")
    kind = CONFIG_MAPPING[model]
    plain = kind()
    for name in overrides:
        if not hasattr(plain, name):
            near = difflib.get_close_matches(name, [*vars(plain), *plain.attribute_map], n=1, cutoff=0.4)
            hint = f" Did you mean --{near[0].replace('_', '-')}?" if near else ""
            raise ValueError(f"The configuration of {model} has no {name!r}.{hint}")
    return kind(**entries | overrides)


def build(config: Any, seed: int) -> nn.Module:
    """The model of a configuration, in evaluation mode, with weights drawn from ``seed``."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = AutoModel.from_config(config)
    return model.eval()


def random_inputs(model: nn.Module, *, batch: int, seq_len: int, seed: int) -> dict[str, Tensor]:
    """Inputs for a Hugging Face model: random tokens, or Gaussian pixels or features.

    Args:
        model: what they are for.
        batch: how many sequences.
        seq_len: tokens in each; fewer if the model takes fewer; images and sounds have the model's own length.
        seed: of the draw.

    Raises:
        ValueError: the model takes something else.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(seed)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None)
    tokens = min(seq_len, longest) if isinstance(longest, int) and longest > 0 else seq_len

    def words() -> Tensor:
        return torch.randint(config.vocab_size, (batch, tokens), generator=generator)

    main_input = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Tensor] = {}
    if main_input == "input_ids":
        inputs["input_ids"] = words()
    elif main_input == "pixel_values":
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        inputs["pixel_values"] = torch.randn(batch, config.num_channels, height, width, generator=generator)
    elif main_input == "input_features" and hasattr(config, "max_source_positions"):
        frames = 2 * config.max_source_positions
        inputs["input_features"] = torch.randn(batch, config.num_mel_bins, frames, generator=generator)
    else:
        raise ValueError(f"{type(model).__name__} takes {main_input}, which this command cannot make: call diagnose().")
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = words()
    return inputs


def _look(model: nn.Module, inputs: dict[str, Tensor]) -> Report:
    """Diagnose with a loss whose gradient is independent from token to token, as theory's ratio assumes."""

    def loss(output: Any) -> Tensor:
        hidden = output.last_hidden_state
        weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        return (hidden * weights).mean()

    return diagnose(model, inputs, loss=loss)


def _initialized(model: nn.Module, scheme: str, seed: int, force: bool) -> nn.Module:
    from attntut.init import initialize_

    return initialize_(copy.deepcopy(model), scheme, generator=torch.Generator().manual_seed(seed), force=force)


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    """``["--hidden-size", "256"]`` as ``{"hidden_size": 256}``.

    >>> _overrides(["--hidden-size", "256", "--hidden-act=relu"])
    {'hidden_size': 256, 'hidden_act': 'relu'}
    """
    overrides: dict[str, Any] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"Options begin with --: got {name!r}.")
        if not equals:
            if not rest:
                raise ValueError(f"{name} must be followed by a value.")
            value = rest.pop(0)
        try:
            overrides[name[2:].replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name[2:].replace("-", "_")] = value
    return overrides


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"--{name.replace('_', '-')} must be at least {low}: got {value}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attntut.diagnose",
        description="What the attention of a Hugging Face architecture does at initialization.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a model type (bert, gpt2, llama, t5, vit, whisper …) or a config.json")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens of the random input (128)")
    parser.add_argument("--batch", type=int, default=4, help="sequences of the random input (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs (0)")
    parser.add_argument("--init", metavar="NAME", help="also initialize by this scheme, and show what changes")
    parser.add_argument("--force", action="store_true", help="… although the model lacks what the scheme requires")
    parser.add_argument("--json", metavar="FILE", help="write the report there (with --init, the one after)")
    parser.add_argument("--width", type=int, default=100, help=f"of the text, at least {NARROWEST} (100)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
