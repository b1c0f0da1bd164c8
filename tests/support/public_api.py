"""Which names are public, and what their docstrings say of their arguments.

A name is public if `mobillm_flower.__all__` has it, if it is one of the exceptions, if a how-to guide imports it, or
if the signature of a public name mentions it.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import mobillm_flower
from mobillm_flower import errors
from mobillm_flower.config.describe import parameters
from tests.support.pages import ROOT, python_blocks

PACKAGE = mobillm_flower.__name__


def public_names() -> dict[str, Any]:
    """Return every public thing by where it is defined (registries: by where they are listed)."""
    waiting = {f"{PACKAGE}.{name}": getattr(mobillm_flower, name) for name in mobillm_flower.__all__}
    waiting |= {_place(thing): thing for thing in vars(errors).values() if isinstance(thing, type)}
    for page in sorted((ROOT / "docs" / "how-to").glob("*.md")):
        waiting |= _imported(page)
    found: dict[str, Any] = {}
    while waiting:
        name, thing = waiting.popitem()
        place = _place(thing) if _has_place(thing) else name
        if place not in found:
            found[place] = thing
            waiting |= {_place(other): other for other in _mentioned(thing)}
    return found


def undocumented(thing: Any) -> set[str]:
    """Return the arguments of a function or constructor that no "Parameters" section names.

    What an inherited constructor takes may be said where it is defined. Protocols and enumerations take nothing, nor do
    exceptions without a constructor of their own.
    """
    if not isinstance(thing, type):
        return set(inspect.signature(thing).parameters) - parameters(thing.__doc__ or "").keys()
    if issubclass(thing, enum.Enum) or getattr(thing, "_is_protocol", False):
        return set()
    owner = next(base for base in thing.__mro__ if "__init__" in vars(base))
    if not owner.__module__.startswith(PACKAGE):
        return set()
    documented = {name for base in thing.__mro__ for name in parameters(base.__doc__ or "")}
    return set(inspect.signature(thing).parameters) - documented


def find(dotted: str) -> Any:
    """Return what a dotted name stands for; raises AttributeError where it stands for nothing."""
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def _has_place(thing: Any) -> bool:
    return isinstance(thing, type) or inspect.isfunction(thing)


def _place(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _imported(page: Path) -> dict[str, Any]:
    """What the code of a page imports from the package, modules aside."""
    found = {}
    for _, code in python_blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                for alias in node.names:
                    thing = find(f"{node.module}.{alias.name}")
                    if not isinstance(thing, ModuleType):
                        found[f"{node.module}.{alias.name}"] = thing
    return found


def _mentioned(thing: Any) -> Iterator[type]:
    """The package's public classes in the annotations and bases of a public thing."""
    if inspect.isfunction(thing):
        yield from _classes(list(typing.get_type_hints(thing).values()))
    elif isinstance(thing, type):
        yield from _classes(vars(thing).get("__orig_bases__", thing.__bases__))
        for owner in [base for base in thing.__mro__ if base.__module__.startswith(PACKAGE)]:
            hints = typing.get_type_hints(owner)
            yield from _classes([hint for name, hint in hints.items() if not name.startswith("_")])
            for name, member in vars(owner).items():
                if not name.startswith("_") or name in ("__init__", "__call__"):
                    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                    if inspect.isfunction(function):
                        yield from _classes(list(typing.get_type_hints(function).values()))
    else:  # a registry: what it holds, as annotated where it is made
        for module in [module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE]:
            hints = typing.get_type_hints(module)
            yield from _classes([hint for name, hint in hints.items() if vars(module).get(name) is thing])


def _classes(hint: Any) -> Iterator[type]:
    """The package's public classes in an annotation."""
    if isinstance(hint, list | tuple):
        for part in hint:
            yield from _classes(part)
    elif typing.get_args(hint):
        yield from _classes([typing.get_origin(hint), *typing.get_args(hint)])
    elif isinstance(hint, type) and hint.__module__.split(".")[0] == PACKAGE and not hint.__name__.startswith("_"):
        yield hint
