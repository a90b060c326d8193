"""Hugging Face's architectures, with fresh weights and random inputs: for the command lines. Nothing is downloaded."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_int, nearest
from attntut.device import seeded


def entries(words: Sequence[str], program: str | None = None) -> dict[str, Any]:
    """Entries of a configuration from the words of a command line; values are JSON, or else text.

    Example:
        >>> entries(["--hidden-size", "256", "--hidden-act=relu"])
        {'hidden_size': 256, 'hidden_act': 'relu'}
    """
    parser = argparse.ArgumentParser(prog=program, add_help=False)
    for name in dict.fromkeys(word.partition("=")[0] for word in words if word.startswith("--")):
        parser.add_argument(name, type=_value)
    return vars(parser.parse_args(words))


EPILOG = "Any other option sets an entry of the configuration: --hidden-size 256, --num-hidden-layers 4, --n-embd 64."


def command(
    package: str, description: str, *, seq_len: int, narrowest: int, batch: int | None = None, more: str = ""
) -> argparse.ArgumentParser:
    """The parser of ``python -m attntut.PACKAGE MODEL``, with the options that :func:`made` reads.

    Args:
        package, description, more: its name, what it shows, and what else the epilog says.
        seq_len, batch: of the random input, by default; without ``batch``, neither it nor the seed is an option.
        narrowest: the least ``--width``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m attntut.{package}", description=description, epilog=f"{EPILOG}{more}", allow_abbrev=False
    )
    parser.add_argument("model", help="a model type (bert, gpt2, llama, t5, vit, whisper …) or a config.json")
    parser.add_argument("--seq-len", type=int, default=seq_len, help=f"tokens of the random input ({seq_len})")
    if batch is not None:
        parser.add_argument("--batch", type=int, default=batch, help=f"sequences of the random input ({batch})")
        parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs (0)")
    parser.add_argument("--width", type=int, default=100, help=f"of the text, at least {narrowest} (100)")
    parser.set_defaults(narrowest=narrowest, **{} if batch is not None else dict(batch=2, seed=0))
    return parser


def made(known: argparse.Namespace, overrides: dict[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model that a command line asks for, and its inputs."""
    for name, low in (("seq-len", 1), ("batch", 1), ("width", known.narrowest)):
        check_int(f"--{name}", getattr(known, name.replace("-", "_")), low=low)
    model = build(configuration(known.model, overrides), known.seed)
    return model, random_inputs(model, batch=known.batch, seq_len=known.seq_len, seed=known.seed)


def configuration(model: str, overrides: dict[str, Any]) -> Any:
    """A Hugging Face configuration by model type (``"bert"``) or from a ``config.json``.

    Args:
        model: the type, or the path of the file or of its folder.
        overrides: entries to change.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such type or entry; or the configuration refuses a value.
        OSError: the file is no JSON.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise ImportError(
            "This command builds Hugging Face models: install them with `pip install transformers`. "
            "From Python, attntut.diagnose takes any torch module."
        ) from error
    logging.set_verbosity_error()
    kind, said = model, dict[str, Any]()
    if model not in CONFIG_MAPPING and os.path.exists(model):
        said, _ = PreTrainedConfig.get_config_dict(model)
        kind = said.pop("model_type", "")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            "model must be a Hugging Face model type, or the path of a config.json whose model_type is one: "
            f"got {model!r}{f' with {kind!r}' if kind not in ('', model) else ''}.{nearest(kind, CONFIG_MAPPING)}"
        )
    plain = AutoConfig.for_model(kind)
    for name in overrides:
        if not hasattr(plain, name):
            known = [*vars(plain), *plain.attribute_map]
            raise ValueError(f"The configuration of {kind} has no {name!r}.{nearest(name, known)}")
    try:
        return AutoConfig.for_model(kind, **said | overrides)
    except StrictDataclassError as error:
        raise ValueError(error) from error


def build(config: Any, seed: int) -> nn.Module:
    """The model of a configuration, in evaluation mode, with weights drawn from ``seed``."""
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = AutoModel.from_config(config)
    return model.eval()


def random_inputs(model: nn.Module, *, batch: int, seq_len: int, seed: int) -> dict[str, Tensor]:
    """Inputs for a Hugging Face model: random tokens, or Gaussian pixels or features.

    Sequences have ``seq_len`` tokens, or as many as the model takes; images and sounds have the model's own length.
    """
    config: Any = model.config
    generator = seeded(seed)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None)
    tokens = min(seq_len, longest) if isinstance(longest, int) and longest > 0 else seq_len

    def words() -> Tensor:
        return torch.randint(config.vocab_size, (batch, tokens), generator=generator)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    main_input = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Tensor] = {}
    if main_input == "input_ids":
        inputs[main_input] = words()
    elif main_input == "pixel_values":
        height, width = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        inputs[main_input] = gaussian(config.num_channels, height, width)
    elif main_input == "input_features" and hasattr(config, "max_source_positions"):
        inputs[main_input] = gaussian(config.num_mel_bins, 2 * config.max_source_positions)
    else:
        raise ValueError(f"{type(model).__name__} takes {main_input}, which this command cannot make: call diagnose().")
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = words()
    return inputs


def random_loss(output: Any) -> Tensor:
    """A loss of a model's output whose gradient is independent from token to token, as theory's ratio assumes."""
    hidden = output.last_hidden_state
    return (hidden * torch.randn(hidden.shape, generator=seeded(0))).mean()


def _value(word: str) -> Any:
    with suppress(json.JSONDecodeError):
        return json.loads(word)
    return word
