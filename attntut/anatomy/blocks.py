"""The repeated blocks of a model: elements of one class in a list of modules, one of which holds attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import nn

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class Block:
    """One of the blocks of a stack.

    Attributes:
        name: dotted name of the module; empty where there are no blocks.
        stack: dotted name of the list that it is in.
        layer: its number, from 1.
        n_layers: how many blocks the stack has.
    """

    name: str = ""
    stack: str = ""
    layer: int = 1
    n_layers: int = 1


def find_blocks(module: nn.Module, attention: Iterable[str], apart: Collection[str] = ()) -> dict[str, Block]:
    """The blocks of every stack of a model, by name: at least two of one class in a list, one of which holds attention.

    Beside them, two or more of another class that has parts count too: layers that mix tokens without attention.

    Args:
        module: the model.
        attention: names of the modules that attention runs in.
        apart: lists whose elements do not follow on each other (heads), which are no stacks.

    Example:
        >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 3, enable_nested_tensor=False)
        >>> [(each.name, each.layer) for each in find_blocks(encoder, ["layers.0.self_attn"]).values()]
        [('layers.0', 1), ('layers.1', 2), ('layers.2', 3)]
    """
    inside = {prefix for name in attention for prefix in prefixes(name)}
    blocks: dict[str, Block] = {}
    for name, container in module.named_modules():
        if not isinstance(container, LISTS) or name in apart:
            continue
        of_class: dict[type, list[str]] = defaultdict(list)
        for key, child in container.named_children():
            of_class[type(child)].append(f"{name}.{key}" if name else key)
        several = [members for members in of_class.values() if len(members) > 1]
        of_attention = [members for members in several if not inside.isdisjoint(members)]
        for members in several if of_attention else ():
            has_parts = isinstance(container, nn.ModuleList) and any(module.get_submodule(members[0]).children())
            if members in of_attention or has_parts:
                blocks |= {path: Block(path, name, i, len(members)) for i, path in enumerate(members, start=1)}
    return blocks


def without_branches(
    blocks: dict[str, Block], attention: Iterable[str], feed_forward: Iterable[str]
) -> dict[str, Block]:
    """The blocks without lists of branches: attention and feed-forward in one class of wrapper are no two blocks.

    Args:
        blocks: of a model.
        attention: names of the modules that attention runs in.
        feed_forward: names of the parameters of feed-forward networks.

    Example:
        >>> blocks = {"h.0": Block("h.0", "h"), "h.0.0": Block("h.0.0", "h.0"), "h.0.1": Block("h.0.1", "h.0")}
        >>> [*without_branches(blocks, ["h.0.0.fn"], ["h.0.1.fn.weight"])]
        ['h.0']
    """
    around = [{prefix for name in names for prefix in prefixes(name)} for names in (attention, feed_forward)]
    whole = {block.stack for name, block in blocks.items() if all(name in each for each in around)}
    inside = {
        name for name in blocks if any(blocks[each].stack in whole for each in prefixes(name)[1:] if each in blocks)
    }
    return {name: block for name, block in blocks.items() if block.stack in whole or name not in inside}


def block_of(blocks: dict[str, Block], name: str) -> Block:
    """The innermost block around a parameter or module.

    >>> block_of({"h.0": Block("h.0", "h", 1, 2)}, "h.0.attention").name
    'h.0'
    """
    return next((blocks[each] for each in prefixes(name) if each in blocks), Block())


def tower_of(blocks: dict[str, Block], name: str) -> str:
    """The outermost stack around a parameter or module: stages of one tower are in a list, several towers are not.

    >>> blocks = {f"sees.stage.{i}.h.{j}": Block("", f"sees.stage.{i}.h") for i in range(2) for j in range(2)}
    >>> blocks |= {f"sees.stage.{i}": Block("", "sees.stage") for i in range(2)} | {"h.0": Block("", "h")}
    >>> tower_of(blocks, "sees.stage.1.h.0.attention"), tower_of(blocks, "h.0.attention"), tower_of(blocks, "last")
    ('sees.stage', 'h', '')
    """
    stacks = {each.stack for each in blocks.values()}
    return next((each for each in reversed(prefixes(name)) if each in stacks), "")


def prefixes(name: str) -> list[str]:
    """A dotted name and those of the modules around it, from the inside out, the model itself left out.

    >>> prefixes("h.0.attention")
    ['h.0.attention', 'h.0', 'h']
    """
    path = name.split(".")
    return [".".join(path[:depth]) for depth in range(len(path), 0, -1)] if name else []


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: one of torch's, or one whose class says so and that has no matrix.

    >>> is_norm(nn.RMSNorm(8)), is_norm(nn.Linear(8, 8))
    (True, False)
    """
    if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase):
        return True
    return "norm" in type(module).__name__.lower() and all(
        max(each.shape, default=1) == each.numel() for each in module.parameters()
    )
