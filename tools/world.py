"""How the architectures of transformers start: fresh weights at the widths of their default configurations.

    nox -s world                              every type, into runs/world.csv
    nox -s world -- bert gpt2                 only these
    nox -s world -- --trained FOLDER          one that was trained, beside fresh draws of it, into runs/trained.csv

Nothing is downloaded. As in ``nox -s coverage``, whose builder this is, each type has a process of its own, and a
second start goes on where the first ended.

A model keeps the widths, the heads and the rules of its default configuration, and loses layers (two are left, or one
of each kind), vocabulary, positions and experts. Where that is more than :data:`LARGEST` parameters, its feed-forward
networks become narrower; where it still is, only a tiny model is built, and what follows from its laws is computed.
More tiny models, of four times the layers and of doubled entries of the configuration, tell what a scale depends on.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import resource
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attntut.anatomy.places import shared
from tools.coverage import __main__ as coverage
from tools.coverage import tiny

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
LARGEST = 230e6  # parameters that are drawn
LIMIT, WAIT = 20, 900.0  # seconds of a core for a type; seconds on a busy machine
DEEPER = 4
NARROW = {r".*(intermediate|ffn|mlp).*(size|dim)|d_ff|n_inner|ffn_.*size": 1024}
OWN = r"initializer_range|init_std|initializer_std"
SCALES = r".*(initializer_(range|factor|std|cutoff_factor)|init_(xavier_)?std|w_init_variance_scale|axial_norm_std)"
ROLES = ("query", "key", "value", "output", "feed_forward_in", "feed_forward_out")
SHORT = ("q", "k", "v", "o", "up", "down")
COLUMNS = (
    "type how reason layers d heads d_head d_ff q k v o up down embedding law init by_width deep_q deep_o deep_down "
    "unread norm qk_norm scale seen reads apart logit entropy stream_1 stream_2 looks findings"
).split()
LEGEND = """\
how: whole widths; narrow (feed-forward networks); law (a tiny model was measured); not (reason)
layers: of the default; d: what the query reads; d_ff: as drawn; q … down, embedding: std of the first of its role
law: of the queries' entries; init: the configuration's own std; by_width: p of std ~ fan_in^-p, of queries
deep_q, deep_o, deep_down: p of std ~ layers^-p; unread: entries for the scale that change no parameter when doubled
seen: 1 - rows/keys of the first attention's map; reads: RMS of what query and key read, multiplied; apart: 1 - cosine
logit, entropy: of the first attention, measured, as a share of the largest; stream: RMS after the first, the last block
looks: the first scheme that all six matrices look like, at two layers; findings: of diagnose"""


def main(argv: list[str] | None = None) -> None:
    """Measure what is not measured yet."""
    from tqdm import tqdm
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parser = argparse.ArgumentParser(prog="nox -s world --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="all by default")
    parser.add_argument("--trained", type=Path, metavar="FOLDER", help="of a model that was trained: only that one")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "world.csv")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    options = parser.parse_args(argv)
    if options.trained:
        write_trained(options.trained, ROOT / "runs" / "trained.csv")
        return
    if unknown := [kind for kind in options.types if kind not in MODEL_MAPPING_NAMES]:
        parser.error(f"types must be keys of transformers' MODEL_MAPPING: got {', '.join(unknown)}.")
    done = {row["type"] for row in coverage.begin(options.out, COLUMNS, LEGEND)}
    todo = [(kind, ["eager"]) for kind in options.types or MODEL_MAPPING_NAMES if kind not in done]
    with (
        options.out.open("a", newline="", encoding="utf-8", buffering=1) as file,
        tqdm(total=len(todo), unit="type") as progress,
    ):
        for row in rows_of(todo, options.workers):
            csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore").writerow(row)
            progress.set_postfix_str(row["type"], refresh=False)
            progress.update()


def rows_of(todo: list[tuple[str, list[str]]], workers: int = 1) -> Iterator[Row]:
    """Rows as they come; a type that takes too long at its widths is computed from its laws."""
    late = []
    for row in coverage.measure(todo, workers, WAIT, partial(limited, largest=LARGEST)):
        if "how" in row:
            yield row
        else:
            late.append((row["type"], ["eager"]))
    for row in coverage.measure(late, workers, WAIT, partial(limited, largest=0)):
        yield row if "how" in row else row | {"how": "not", "reason": row["status"]}


def limited(kind: str, implementation: str, *, largest: float) -> Row:
    """A row, from a process that may take so much of a core."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    return check(kind, largest)


def check(kind: str, largest: float = LARGEST) -> Row:
    """One row of the table, of wide models with so many parameters at most: see :data:`COLUMNS`."""
    from attntut import _huggingface as huggingface

    try:
        plain = huggingface.configuration(kind, {}).to_dict()
        del plain["model_type"]
        small = Small(kind, plain)
    except Exception as error:
        return {"how": "not", "reason": reason(error)}
    row = small.row | {"layers": first(plain, tiny.LAYERS), "init": number(first(plain, OWN))}
    wide = next(wide_models(kind, plain, largest), None)
    if wide is None and row.get("how") == "not":
        return row
    if wide is None:
        return row | computed(plain, small, row["init"])
    how, model, inputs = wide
    row |= {"how": how} | measured(model, inputs)
    queries = {each.get("parameters", {}).get("query") for each in (row, small.row)}
    one_tower = len(queries) == 1
    if one_tower and (d := row.get("d")) and (q := row.get("q")) and small.row.get("q") and d != small.row["d"]:
        row["by_width"] = number(-math.log(q / small.row["q"]) / math.log(d / small.row["d"]), 2)
    return row


def reason(error: BaseException) -> str:
    """The beginning of an error, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:60].replace(",", ";")


def number(value: float | None, digits: int = 3) -> float | int | None:
    """A number of few digits; None for one that is not there."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def first(entries: Mapping[str, Any], pattern: str) -> Any:
    """The first number whose name matches, here or inside."""
    for key, value in entries.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and re.fullmatch(pattern, str(key)):
            return value
    inside = (first(each, pattern) for each in entries.values() if isinstance(each, dict))
    return next((each for each in inside if each is not None), None)


def ways(kind: str, plain: Row, *limits: dict[str, int]) -> Iterator[Row]:
    """Entries of a configuration, shrunk by each of these limits."""
    for each in limits:
        for fill in (False, True):
            entries = tiny.shrink(plain, each, fill=fill)
            tiny._update(entries, tiny.ADAPTED.get(kind, {}))
            yield entries


def runs(model: nn.Module) -> Iterator[Row]:
    """Inputs that a model takes; if there are none, the first error is raised."""
    failed, found = None, False
    for extras in tiny.EXTRAS:
        try:
            inputs = tiny.inputs_of(model, extras)
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            failed = failed or error
            continue
        found = True
        yield inputs
    if failed and not found:
        raise failed


def wide_models(kind: str, plain: Row, largest: float) -> Iterator[tuple[str, nn.Module, Row]]:
    """A model of the default widths, and its inputs."""
    for i, entries in enumerate(ways(kind, plain, tiny.ALWAYS, tiny.ALWAYS | NARROW)):
        with suppress(Exception):
            model = tiny.build(kind, entries, "eager", largest)
            yield ("whole", "whole", "narrow", "narrow")[i], model, next(runs(model))


def measured(model: nn.Module, inputs: Row) -> Row:
    """What a fresh model shows."""
    import attntut

    torch.manual_seed(0)
    report = attntut.diagnose(model, inputs, maps=64)
    row: Row = {"findings": ";".join(dict.fromkeys(each.name for each in report.findings))}
    groups: dict[str, dict[str, Row]] = {}
    for each in report.weights:
        groups.setdefault(each["layer"], {}).setdefault(each["role"], each)
    heads = report.heads()
    place = next((key for key in heads if {"query", "key"} <= groups.get(key[0], {}).keys()), None)
    if place is None:
        return row | {"how": "not", "reason": "no query and key found"}
    mine = dict(groups[place[0]])
    for role in (*ROLES[4:], "embedding"):
        if near := [each for each in report.weights if each["role"] == role]:
            mine[role] = max(near, key=lambda each: shared(each["parameter"], place[0]))
    row["parameters"] = {role: each["parameter"] for role, each in mine.items()}
    rows = heads[place]
    mean = report.layers()[list(heads).index(place)]
    traits = report.model.get("traits", {})
    row |= {short: number(mine[role]["std"]) for role, short in zip(ROLES, SHORT, strict=True) if role in mine}
    row |= {
        "d": mine["query"]["fan_in"],
        "heads": len(rows),
        "d_head": mine["query"]["fan_out"] // len(rows),
        "d_ff": mine["feed_forward_in"]["fan_out"] if "feed_forward_in" in mine else None,
        "embedding": number(mine["embedding"]["std"]) if "embedding" in mine else None,
        "law": mine["query"]["law"],
        "norm": traits.get("norm"),
        "qk_norm": int(bool(traits.get("qk_norm"))),
        "scale": number(traits.get("scale")),
        "seen": seen(report.maps, place),
        "logit": number(mean["logit_std"]),
        "entropy": number(mean["entropy_share"]),
        "looks": next(iter(alike([mine[role] for role in ROLES if role in mine])), None),
    }
    if report.stream:
        row |= {"stream_1": number(report.stream[0]["rms"]), "stream_2": number(report.stream[-1]["rms"])}
    return row | reads(model, inputs, mine["query"], mine["key"])


def seen(maps: list[Row], place: tuple[str, str]) -> float | None:
    """What is left of a variance when each row's own mean is taken off: 1 - rows/keys, of the first map."""
    first = next((each["weights"] for each in maps if (each["layer"], each["kind"]) == place), None)
    if not first:
        return None
    return number(1 - len(first) / sum(weight > 0 for row in first for weight in row))


def alike(weights: list[Row]) -> list[str]:
    """The schemes that all of these weights look like."""
    common = set.intersection(*(set(each["looks_like"]) for each in weights)) if weights else set()
    return [name for name in weights[0]["looks_like"] if name in common]


def reads(model: nn.Module, inputs: Row, query: Row, key: Row) -> Row:
    """The size of what query and key read, and how unlike the tokens are that the key reads."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, each in (("query", query), ("key", key)):
        module = model.get_submodule(each["parameter"].rpartition(".")[0])

        def hear(_: nn.Module, args: Any, options: Any, name: str = name, width: int = each["fan_in"]) -> None:
            tensors = [x for x in (*args, *options.values()) if isinstance(x, Tensor) and x.is_floating_point()]
            for x in tensors:
                if x.ndim > 1 and x.shape[-1] == width:
                    found.setdefault(name, x.detach())

        handles.append(module.register_forward_pre_hook(hear, with_kwargs=True))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < 2:
        return {}
    squares = [x.square().mean().item() for x in found.values()]
    x = found["key"]
    batch = len(next(iter(inputs.values())))
    if x.ndim == 3 and x.shape[0] != batch == x.shape[1]:  # tokens before batch
        x = x.transpose(0, 1)
    n = x.shape[-2]
    apart = (x - x.mean(-2, keepdim=True)).square().mean().item() * n / max(n - 1, 1) / x.square().mean().item()
    return {"reads": number(math.sqrt(squares[0] * squares[1])), "apart": number(apart)}


class Small:
    """A tiny model of a type, and what its scales depend on.

    Attributes:
        row: what is known of it, as in the table.
        model: itself.
    """

    def __init__(self, kind: str, plain: Row) -> None:
        failed: Exception | None = None
        most = tiny.ALWAYS | tiny.PICTURES
        for entries in ways(kind, plain, tiny.STRONGLY | most, most, tiny.ALWAYS):
            try:
                self.model = tiny.build(kind, entries, "eager")
                self.row = measured(self.model, next(runs(self.model)))
            except Exception as error:
                failed = failed or error
                continue
            break
        else:
            raise failed or ValueError("no way to build it")
        self.kind, self.entries = kind, entries
        self.row |= self.by_depth() | self.by_entries()

    def by_depth(self) -> Row:
        """By which power of the number of layers the matrices of the first block shrink."""
        entries, row = deeper(self.entries), dict[str, Any]()
        if entries == self.entries:  # none is for the layers
            return row
        try:
            deep = tiny.build(self.kind, entries, "eager").state_dict()
        except Exception:
            return row
        for role, column in (("query", "deep_q"), ("output", "deep_o"), ("feed_forward_out", "deep_down")):
            name = self.row.get("parameters", {}).get(role)
            here, there = self.model.state_dict().get(name), deep.get(name)
            if (
                here is not None
                and there is not None
                and here.shape == there.shape
                and min(here.std(), there.std()) > 0
            ):
                row[column] = number(math.log(here.std() / there.std()) / math.log(DEEPER), 2)
        return row

    def by_entries(self) -> Row:
        """Which entries for the scale change nothing."""
        names = {key for key in keys(self.entries) if re.fullmatch(SCALES, key)}
        before, unread = dict(self.model.named_parameters()), []
        for name in sorted(names):
            entries = doubled(self.entries, name)
            if entries == self.entries:
                continue
            try:
                after = dict(tiny.build(self.kind, entries, "eager").named_parameters())
            except Exception:
                continue
            if all(torch.equal(each, after[key]) for key, each in before.items()):
                unread.append(name)
        return {"unread": ";".join(unread)}


def keys(entries: Row) -> Iterator[str]:
    """All names of a configuration."""
    for key, value in entries.items():
        yield from keys(value) if isinstance(value, dict) else [str(key)]


def doubled(entries: Row, name: str) -> Row:
    """The entries with each number of this name doubled."""

    def new(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return doubled(value, name)
        return value * 2 if key == name and isinstance(value, int | float) else value

    return {key: new(key, value) for key, value in entries.items()}


def deeper(entries: Row, times: int = DEEPER) -> Row:
    """The entries of a model with more layers.

    >>> deeper({"n_layers": 2, "types": ["a", "b"], "width": 64})
    {'n_layers': 8, 'types': ['a', 'b', 'a', 'b', 'a', 'b', 'a', 'b'], 'width': 64}
    """

    def counts(key: str, value: Any) -> bool:
        return type(value) is int and re.fullmatch(tiny.LAYERS, str(key)) is not None

    numbers = {value for key, value in entries.items() if counts(key, value)}

    def new(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return deeper(value, times)
        return value * times if counts(key, value) or (isinstance(value, list) and len(value) in numbers) else value

    return {key: new(key, value) for key, value in entries.items()}


def computed(plain: Row, small: Small, init: float | None) -> Row:
    """What the default widths must show, where a std of the tiny model is its configuration's, or torch's default."""
    q, width, hidden = small.row.get("q"), small.row.get("d"), r"hidden_size|d_model|n_embd|dim"
    d = first(plain, hidden) if width == first(small.entries, hidden) else None
    scale = None
    if q and init and abs(q / init - 1) < 0.06:
        scale, p = 1.0, 0.0
    elif q and d and width and abs(q * math.sqrt(3 * width) - 1) < 0.06:
        scale, p = math.sqrt(width / d), 0.5
    unknown = dict.fromkeys("logit entropy reads apart stream_1 stream_2 findings looks seen d_ff d_head".split())
    row = unknown | {"how": "law", "d": d, "heads": first(plain, r"num_attention_heads|n_heads?")}
    if scale is None:
        return row | dict.fromkeys(SHORT)
    return row | {"by_width": p} | {each: number(small.row[each] * scale) for each in SHORT[:5] if small.row.get(each)}


# --- one that was trained ---------------------------------------------------------------------------------------------

TRAINED = (
    "model layer q k v o up down drawn logit foreseen entropy entropy_low entropy_high reads apart rms cosine".split()
)
FRESH = 3  # draws of its configuration
PASSAGES, LENGTH = 8, 64


def write_trained(folder: Path, out: Path) -> None:
    """What training made of a model, a row per layer, beside fresh draws of its configuration reading the same text."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    coverage.warm()
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (ROOT / "attntut" / "corpus" / "hamlet.txt").read_text(encoding="utf-8")[20_000:30_000]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][: PASSAGES * (LENGTH - 2)])
    ids = ids.view(PASSAGES, LENGTH - 2)
    ends = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id]).expand(PASSAGES, 2)
    inputs = {"input_ids": torch.cat([ends[:, :1], ids, ends[:, 1:]], 1)}
    rows = layers(AutoModel.from_pretrained(folder, attn_implementation="eager"), inputs, "trained")
    for seed in range(FRESH):
        torch.manual_seed(seed)
        rows += layers(AutoModel.from_config(config, attn_implementation="eager"), inputs, f"fresh {seed}")
    first = f"# {folder.name} of {folder.parent.name}, {PASSAGES} passages of {LENGTH} tokens of Hamlet"
    with out.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{first}, transformers {version('transformers')}\n")
        writer = csv.DictWriter(file, TRAINED, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def layers(model: nn.Module, inputs: Row, name: str) -> list[Row]:
    """A row for each attention layer of a model with one kind of block."""
    import attntut

    report, rows = attntut.diagnose(model.eval().float(), inputs), list[Row]()
    by_block: dict[str, dict[str, Row]] = {}
    for each in report.weights:
        if block := re.match(r".*\.\d+\.", each["parameter"]):
            by_block.setdefault(block[0], {})[each["role"]] = each
    for i, (place, heads) in enumerate(report.heads().items()):
        mine = by_block[re.match(r".*\.\d+\.", f"{place[0]}.")[0]]  # type: ignore[index]
        mean, read = report.layers()[i], reads(model, inputs, mine["query"], mine["key"])
        spread = math.sqrt(mine["query"]["fan_in"] * mine["key"]["fan_in"]) * mine["query"]["std"] * mine["key"]["std"]
        entropies = [row["entropy_share"] for row in heads]
        rows.append(
            {short: number(mine[role]["std"]) for role, short in zip(ROLES, SHORT, strict=True)}
            | {"model": name, "layer": i + 1, "drawn": int(mine["query"]["drawn"]), "logit": number(mean["logit_std"])}
            | {"foreseen": number(spread * read["reads"] * math.sqrt(read["apart"])), **read}
            | {"entropy": number(mean["entropy_share"])}
            | {"entropy_low": number(min(entropies)), "entropy_high": number(max(entropies))}
            | {"rms": number(report.stream[i]["rms"]), "cosine": number(report.stream[i]["token_cosine"])}
        )
    return rows


if __name__ == "__main__":
    main()
