"""Which start fits a Hugging Face architecture, without downloading anything.

``python -m attntut.recommend gpt2 --n-embd 64 --n-head 4`` builds the model from its configuration with fresh weights,
reads it by listening, and prints what the rules of the book's map say of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from attntut._huggingface import command, entries, made, random_loss
from attntut.diagnose.render import NARROWEST, show
from attntut.recommend import recommend
from attntut.recommend.render import text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; those of the process by default.

    Returns:
        0; wrong usage raises ``SystemExit(2)``, as in :mod:`argparse`.
    """
    description = "Which initialization fits a Hugging Face architecture, and how sure that is."
    parser = command("recommend", description, seq_len=64, batch=4, narrowest=NARROWEST)
    parser.add_argument(
        "--given", action="append", default=[], metavar="QUESTION=ANSWER", help="what only you know, as data=Yes"
    )
    known, rest = parser.parse_known_args(arguments)
    overrides = entries(rest, parser.prog)
    try:
        model, inputs = made(known, overrides)
        given = {id: said for id, _, said in (each.partition("=") for each in known.given)}
        answer = recommend(model, inputs, loss=random_loss, given=given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    show(answer, text, known.width)
    return 0


if __name__ == "__main__":
    sys.exit(main())
