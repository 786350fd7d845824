"""Tables that read well everywhere: HTML in notebooks and reports, aligned text elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GOOD, BAD, WARN, NOTE = "good", "bad", "warn", "note"
_SIGNS = {GOOD: "✓", BAD: "✗", WARN: "!", NOTE: "·", "create": "+", "change": "~", "delete": "−", "none": "…"}
_COLOURS = {
    GOOD: "#1a7f37",
    BAD: "#c62828",
    WARN: "#9a6700",
    NOTE: "#57606a",
    "create": "#1a7f37",
    "change": "#9a6700",
    "delete": "#c62828",
    "none": "#57606a",
}


_NAMES = {"create": GOOD, "change": WARN, "delete": BAD, "none": NOTE}


@dataclass(frozen=True)
class Mark:
    """A coloured sign with its word: never colour alone."""

    kind: str
    word: str

    def __str__(self) -> str:
        return f"{_SIGNS.get(self.kind, '·')} {self.word}"

    def html(self) -> str:
        colour = _COLOURS.get(self.kind, "#57606a")
        # a page may give the colour for its background; --hl-… is what hybridlab's report sets
        name = f"--hl-{_NAMES.get(self.kind, self.kind)}"
        style = f"color:var({name},{colour});white-space:nowrap;font-weight:600"
        return f'<span style="{style}">{html.escape(str(self))}</span>'


@dataclass(frozen=True)
class Table:
    """Rows of cells under a caption. Cells are text, numbers or Marks; numbers are set right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def _repr_html_(self) -> str:
        head = "".join(_head(c, _align(self.rows, i)) for i, c in enumerate(self.columns))
        body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>" for row in self.rows)
        if not self.rows:
            body = f'<tr><td colspan="{len(self.columns)}">nothing</td></tr>'
        return (
            f'<table class="hybridlab"><caption style="caption-side:top;text-align:left;font-weight:600">'
            f"{html.escape(self.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def __repr__(self) -> str:
        cells = [[str(c) for c in self.columns], *([_text(c) for c in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        return "\n".join([self.caption, *(f"  {line}" for line in lines)])


def _head(name: str, align: str) -> str:
    if not name:
        return "<td></td>"  # an empty heading says nothing to a screen reader
    return f'<th scope="col" style="text-align:{align}">{html.escape(name)}</th>'


def _align(rows: Sequence[Sequence[Any]], column: int) -> str:
    """A column of numbers is set right, heading included."""
    cells = [row[column] for row in rows]
    return "right" if cells and all(_is_number(c) or c == "" for c in cells) else "left"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, Mark):
        return f'<td style="text-align:left">{value.html()}</td>'
    align = "right;font-variant-numeric:tabular-nums" if _is_number(value) else "left"
    return f'<td style="text-align:{align}">{html.escape(_text(value))}</td>'


@dataclass(frozen=True)
class Line:
    """One sentence, with a mark."""

    mark: Mark
    text: str

    def _repr_html_(self) -> str:
        return f'<p class="hybridlab">{self.mark.html()} {html.escape(self.text)}</p>'

    def __repr__(self) -> str:
        return f"{self.mark} {self.text}"
