"""Which matrix of a Hugging Face architecture plays which role, found by listening, without downloading anything.

``python -m attntut.anatomy phi3 --hidden-size 64 --num-attention-heads 4 --num-key-value-heads 2`` builds the model
from its configuration, runs it once on random inputs, and prints every projection with its rows and fans.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from attntut._huggingface import command, entries, made
from attntut.anatomy.listen import siblings
from attntut.anatomy.view import ModelView, listen, look


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; those of the process by default.

    Returns:
        0; wrong usage raises ``SystemExit(2)``, as in :mod:`argparse`.
    """
    description = "Which matrix of a Hugging Face architecture plays which role."
    parser = command("anatomy", description, seq_len=16, narrowest=60)
    known, rest = parser.parse_known_args(arguments)
    overrides = entries(rest, parser.prog)
    try:
        model, inputs = made(known, overrides)
        seen = look(model, heard=listen(model, inputs))
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    console = Console(width=known.width)
    console.print(table(seen))
    for line in remarks(seen):
        console.print(line, highlight=False)
    return 0


def table(seen: ModelView) -> Table:
    """The projections of a model, one row each; alike ones of several blocks are one row."""
    shown = Table(box=None, pad_edge=False)
    for name in ("role", "parameter", "fan_out", "fan_in", "heads", "rows", "parameters"):
        shown.add_column(name, overflow="fold")
    rows: dict[tuple[str, ...], set[str]] = {}
    kinds = siblings(seen.module, (entry.parameter for entry in seen.entries))
    for entry in seen.entries:
        heads = str(entry.weight.n_heads) if entry.role == "query" else ""
        kind, fans = kinds[entry.parameter], (str(entry.weight.fan_out), str(entry.weight.fan_in))
        rows.setdefault((entry.role, kind, *fans, heads, entry.rows), set()).add(entry.parameter)
    for row, names in rows.items():
        shown.add_row(*row, str(len(names)))
    return shown


def remarks(seen: ModelView) -> Iterator[str]:
    """What else is known of a model, and what is not."""
    layers = [entry.weight for entry in seen.by_role("query")]
    depth = max((weight.n_layers for weight in layers), default=0)
    count = f"{len(seen.attention)} attention modules, {depth} blocks deep"
    yield f"\n{count}, {len(seen.norms)} norms, {len(seen.gains)} gains"
    known = ", ".join(f"{name} {value}" for name, value in seen.traits.items() if value is not None)
    yield f"Architecture: {known or 'nothing known'}"
    for described in seen.unknown.values():
        yield f"No role known: {described}"
    for described in dict.fromkeys(seen.left.values()):
        yield f"No scheme speaks of it: {described}"
    yield from seen.unsure


if __name__ == "__main__":
    sys.exit(main())
