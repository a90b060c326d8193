"""The code that a function depends on, as one hash: what a stored result must be of, to be worth keeping."""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
Code = dict[str, str]


@functools.cache
def digest(function: Callable[..., Any]) -> str:
    """Hash of the code that a function depends on, twelve digits; comments, docstrings and layout do not count.

    Example:
        >>> from attntut.sweeps.depth import run
        >>> len(digest(run))
        12
    """
    code = sorted(dependencies(function).items())
    return hashlib.sha256(repr(code).encode()).hexdigest()[:12]


def dependencies(function: Callable[..., Any]) -> Code:
    """What a function depends on, as far as it is this package or the function's own: name to source.

    Of the function's own module these are the top-level statements that it names, directly or through others. Of each
    module that these import, and of what that imports in turn, it is the whole file, because a module may act when it
    is imported (schemes register). The root of the package only gives names away and counts where one is from. Nothing
    is executed but imports; what a function reaches by ``getattr`` or by a name made up at run time is not seen.

    Args:
        function: defined at the top level of a file that can be imported.

    Raises:
        ValueError: it is something else, such as a lambda, a closure, or a function of a notebook or a script.

    Example:
        >>> from attntut.sweeps.depth import run
        >>> found = dependencies(run)
        >>> "attntut.init.depth" in found, "attntut.sweeps.depth:run" in found, "attntut.sweeps.depth:SWEEP" in found
        (True, True, False)
    """
    name, own = getattr(function, "__qualname__", ""), getattr(function, "__module__", None) or ""
    path = _path(own)
    statements = defaultdict(list)
    for statement in ast.parse(path.read_bytes()).body if path else ():
        for bound in _bound(statement):
            statements[bound].append(statement)
    if name not in statements:
        where = f"at the top level of a file that other processes can import: got {function!r} of {own!r}"
        raise ValueError(f"run must be a function {where}.")
    roots = {PACKAGE, own.partition(".")[0]}
    found: Code = {}
    names, modules = [name], set[str]()
    while names:
        bound = names.pop()
        for statement in statements.pop(bound, ()):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                statement = copy.copy(statement)
                statement.names = [alias for alias in statement.names if bound in _bound(alias)]
            else:
                found[f"{own}:{bound}"] = found.get(f"{own}:{bound}", "") + _plain(statement)
                names += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
            modules |= set(_imported(statement, own, roots))
    todo = sorted(modules - {own})
    while todo:
        module = todo.pop()
        path = _path(module)
        if module not in found and module != own and path is not None:
            tree = ast.parse(path.read_bytes())
            found[module] = _plain(tree)
            todo += _imported(tree, module, roots)
    return found


def _path(module: str) -> Path | None:
    """The file that a module is imported from, if it is."""
    try:
        spec = None if module == "__main__" else importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _bound(node: ast.AST) -> set[str]:
    """The names that a statement at the top level binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.alias):
        return {(node.asname or node.name).partition(".")[0]}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    if isinstance(node, ast.comprehension | ast.Lambda):
        return set()
    return set().union(*map(_bound, ast.iter_child_nodes(node)))


def _imported(tree: ast.AST, module: str, roots: set[str]) -> Iterator[str]:
    """The modules below ``roots`` that code in ``module`` imports, with the packages that hold them."""
    path = _path(module)
    package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package) if node.level else relative
            if source.partition(".")[0] in roots:
                names = [_owner(source, alias.name, roots) for alias in node.names]
        for name in names:
            if name.partition(".")[0] in roots:
                parts = name.split(".")
                yield from (".".join(parts[:end]) for end in range(2, len(parts) + 1))
                yield from [name] if len(parts) == 1 else []


def _owner(source: str, name: str, roots: set[str]) -> str:
    """The module that ``from source import name`` gets, or that defines what it gets."""
    if _path(f"{source}.{name}"):
        return f"{source}.{name}"
    owner = getattr(getattr(importlib.import_module(source), name, None), "__module__", None) or source
    return owner if owner.partition(".")[0] in roots else source


def _plain(tree: ast.AST) -> str:
    """The code without comments, docstrings and layout."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value = ast.Constant("")
    return ast.unparse(tree)
