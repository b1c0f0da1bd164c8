"""Files that are damaged as disks, copies and hands damage them: bits flipped, bytes cut, values of other types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (None, True, 7, -1, 1e300, 10**30, "x", "", [], [1], [None], [{}], {}, {"x": 1})
"""Values of every type, for the place of others."""

_WHOLE = (b"", b"[]", b"null", b"{}", b'"x"', b"[1]\n", b"{", b"\x00" * 50, b"\xff\xfe", b"a: [", b"- a\n- b\n")
_YAML: tuple[str, ...] = (
    "[1, 2]",
    "{a: 1}",
    "[{a: 1}]",
    "[[1]]",
    "null",
    "-7",
    "1e300",
    "x",
    "'${a}'",
    "???",
    "!!python/object:os.system x",
)
_YAML += ("\t", "&a *a", "yes", "2020-01-01", ".nan", ".inf", "!!binary aGk=", "{1: 2}", "!!set {a}")


def damaged(name: str, whole: bytes, draw: Random) -> bytes:
    """Return a file's content damaged in a way that is drawn; what its name says it is tells which values there are."""
    kind = draw.choice(("bits", "cut", "other", "values", "values", "values"))
    if kind == "cut":
        return whole[: draw.randrange(len(whole))]
    if kind == "other":
        return draw.choice(_WHOLE)
    if kind == "values" and name.endswith((".json", ".jsonl", ".yaml")):
        lines = [whole] if name.endswith(".json") else whole.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = (_other_yaml if name.endswith(".yaml") else _other_json)(lines[place].decode(), draw).encode()
        return b"\n".join(lines) + b"\n"
    content = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(content))
        if kind == "bits":
            content[place] ^= 1 << draw.randrange(8)
        else:
            content[place : place + draw.randint(1, 64)] = draw.randbytes(draw.randint(0, 64))
    return bytes(content)


def _other_yaml(line: str, draw: Random) -> str:
    return f"{line.partition(':')[0]}: {draw.choice(_YAML)}"


def _other_json(text: str, draw: Random) -> str:
    value = json.loads(text)
    return json.dumps(_put(value, draw.choice(list(_places(value))), draw.choice(ODD)))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from _places(part, (*path, key))


def _put(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    changed = value.copy()
    changed[path[0]] = _put(value[path[0]], path[1:], other)
    return changed
