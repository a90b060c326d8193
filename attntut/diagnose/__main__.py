"""A first look at a Hugging Face architecture, at initialization, without downloading anything.

``python -m attntut.diagnose bert --hidden-size 256 --num-attention-heads 4 --num-hidden-layers 4`` builds the model
from its configuration with fresh weights, runs it on random inputs, and prints the report.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from attntut._checks import check_int
from attntut._huggingface import build, configuration, entries, random_inputs, random_loss
from attntut.device import seeded
from attntut.diagnose import diagnose
from attntut.diagnose.render import NARROWEST, comparison, text
from attntut.init import initialize_

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
    overrides = entries(rest, parser.prog)
    try:
        for name, low in (("seq-len", 1), ("batch", 1), ("width", NARROWEST)):
            check_int(f"--{name}", getattr(known, name.replace("-", "_")), low=low)
        model = build(configuration(known.model, overrides), known.seed)
        inputs = random_inputs(model, batch=known.batch, seq_len=known.seq_len, seed=known.seed)
        report = diagnose(model, inputs, loss=random_loss)
        if known.init:
            model = copy.deepcopy(model)
            initialize_(model, known.init, inputs=inputs, generator=seeded(known.seed), force=known.force)
            before, report = report, diagnose(model, inputs, loss=random_loss)
            print(comparison(before, report, known.width, ("as it comes", known.init)), end="\n\n")
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    terminal = Console(width=known.width)
    if terminal.is_terminal:
        terminal.print(report)
    else:
        print(text(report, known.width))
    if known.json:
        Path(known.json).write_text(report.to_json(indent=1) + "\n", encoding="utf-8")
    return 0


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
