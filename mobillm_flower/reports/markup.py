"""HTML and SVG made of elements, in which every string is escaped unless it is markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_WITHOUT_CONTENT = frozenset({"br", "meta"})


class Markup(str):
    """Text that is markup already; `element` escapes every other string."""

    __slots__ = ()


Child = str | Iterable[str] | None
Attribute = str | float | bool | None


def escape(text: str) -> Markup:
    """Return text as markup; control characters and lone surrogates, which no page may hold, become U+FFFD."""
    return Markup(html.escape(_UNWRITABLE.sub("\ufffd", text), quote=True))


def element(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """Return one element.

    Parameters
    ----------
    name : str
        Its tag.
    children : str, iterable of str, or None
        Escaped unless they are `Markup`; None is left out.
    attributes : str, float, bool or None
        Escaped. ``class_`` is written "class", ``aria_label`` "aria-label"; None and False are left out, True
        is written without a value, numbers with at most two decimals.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{escape(value if isinstance(value, str) else number(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in _WITHOUT_CONTENT else f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Return children one after another, as `element` does with its own."""
    parts: list[str] = []
    for child in children:
        for item in () if child is None else (child,) if isinstance(child, str) else child:
            parts.append(item if isinstance(item, Markup) else escape(item))
    return Markup("".join(parts))


def number(value: float) -> str:
    """Return a number with at most two decimals, for coordinates."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Iterable[int] = (),
    total: Sequence[str] = (),
    class_: str = "",
) -> Markup:
    """Return a table in a box of its own, which scrolls where the page is narrower than the table.

    Parameters
    ----------
    caption : str
        What it holds; read out, and the name of the box.
    columns : sequence of str
        Headings.
    rows : iterable of sequences of str
        Cells; the first names the row.
    numeric : iterable of int
        Columns to set flush right.
    total : sequence of str
        A last row for sums.
    class_ : str
        CSS class of the box.
    """
    right = frozenset(numeric)

    def line(cells: Sequence[str]) -> Markup:
        return element("tr", [_cell(cell, first=i == 0, right=i in right) for i, cell in enumerate(cells)])

    heads = [
        element("th", name, scope="col", class_="number" if i in right else None) for i, name in enumerate(columns)
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", heads)),
        element("tbody", [line(cells) for cells in rows]),
        element("tfoot", line(total)) if total else None,
    )
    return _box(caption, content, class_=f"scroll {class_}".rstrip())


def matrix(caption: str, corner: tuple[str, str], names: Sequence[str], rows: Iterable[Iterable[Markup]]) -> Markup:
    """Return a table of which rows and columns have the same names, in a box of its own.

    Parameters
    ----------
    caption : str
        What it holds; read out, and the name of the box.
    corner : str, str
        What rows and columns are.
    names : sequence of str
        Of both.
    rows : iterable of iterables of Markup
        Cells.
    """
    heads = [element("th", element("span", name), scope="col") for name in names]
    lines = [element("tr", element("th", name, scope="row"), row) for name, row in zip(names, rows, strict=True)]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", element("td", corner[0], element("br"), corner[1]), heads)),
        element("tbody", lines),
    )
    return _box(caption, content, class_="scroll matrix")


def _box(caption: str, content: Markup, *, class_: str) -> Markup:
    return element("div", content, class_=class_, role="region", aria_label=caption, tabindex="0")


def _cell(content: str, *, first: bool, right: bool) -> Markup:
    class_ = "number" if right else None
    return element("th", content, scope="row", class_=class_) if first else element("td", content, class_=class_)


def says(statements: Iterable[tuple[str, str]]) -> Markup:
    """Return titles, each with what is said under it."""
    return element("dl", [join(element("dt", title), element("dd", text)) for title, text in statements], class_="says")


def document(title: str, *body: Markup, meta: Iterable[Markup] = ()) -> str:
    """Return a self-contained page with the style of all of ours; `meta` are further elements of its head."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        meta,
        element("title", title),
        element("style", Markup(Path(__file__).with_name("page.css").read_text("utf-8"))),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def paragraph(*children: Child, class_: str | None = None) -> Markup:
    """Return a paragraph."""
    return element("p", *children, class_=class_)
