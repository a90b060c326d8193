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

from attntut._huggingface import command, entries, made, random_loss
from attntut.device import seeded
from attntut.diagnose import diagnose
from attntut.diagnose.render import NARROWEST, comparison, show, text
from attntut.init import initialize_

MORE = " Nothing is downloaded: the weights are random, as the library initializes them."


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
        model, inputs = made(known, overrides)
        report = diagnose(model, inputs, loss=random_loss)
        if known.init:
            model = copy.deepcopy(model)
            initialize_(model, known.init, inputs=inputs, generator=seeded(known.seed), force=known.force)
            before, report = report, diagnose(model, inputs, loss=random_loss)
            print(comparison(before, report, known.width, ("as it comes", known.init)), end="\n\n")
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    show(report, text, known.width)
    if known.json:
        Path(known.json).write_text(report.to_json(indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "What the attention of a Hugging Face architecture does at initialization."
    parser = command("diagnose", description, seq_len=128, batch=4, narrowest=NARROWEST, more=MORE)
    parser.add_argument("--init", metavar="NAME", help="also initialize by this scheme, and show what changes")
    parser.add_argument("--force", action="store_true", help="… although the model lacks what the scheme requires")
    parser.add_argument("--json", metavar="FILE", help="write the report there (with --init, the one after)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
