"""Which start fits a Hugging Face architecture, without downloading anything.

``python -m attntut.recommend gpt2 --n-embd 64 --n-head 4`` builds the model from its configuration with fresh weights,
reads it by listening, and prints what the rules of the book's map say of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from attntut._checks import check_int
from attntut._huggingface import build, configuration, entries, random_inputs, random_loss
from attntut.diagnose.render import NARROWEST
from attntut.recommend import recommend
from attntut.recommend.render import text

EPILOG = "Any other option sets an entry of the configuration: --hidden-size 256, --num-hidden-layers 4, --n-embd 64."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; those of the process by default.

    Returns:
        0; wrong usage raises ``SystemExit(2)``, as in :mod:`argparse`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m attntut.recommend",
        description="Which initialization fits a Hugging Face architecture, and how sure that is.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a model type (bert, gpt2, llama, t5, vit, whisper …) or a config.json")
    parser.add_argument("--seq-len", type=int, default=64, help="tokens of the random input (64)")
    parser.add_argument("--batch", type=int, default=4, help="sequences of the random input (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and inputs (0)")
    parser.add_argument("--width", type=int, default=100, help=f"of the text, at least {NARROWEST} (100)")
    known, rest = parser.parse_known_args(arguments)
    overrides = entries(rest, parser.prog)
    try:
        for name, low in (("seq-len", 1), ("batch", 1), ("width", NARROWEST)):
            check_int(f"--{name}", getattr(known, name.replace("-", "_")), low=low)
        model = build(configuration(known.model, overrides), known.seed)
        inputs = random_inputs(model, batch=known.batch, seq_len=known.seq_len, seed=known.seed)
        answer = recommend(model, inputs, loss=random_loss)
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    terminal = Console(width=known.width)
    if terminal.is_terminal:
        terminal.print(answer)
    else:
        print(text(answer, known.width))
    return 0


if __name__ == "__main__":
    sys.exit(main())
