"""The cells of an executed notebook as HTML for the report."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import mistune
from markupsafe import Markup
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import PythonLexer  # type: ignore[import-untyped]

from hybridlab.runner.outcome import CellState
from hybridlab.runner.record import SKIP_TAG, heading_before
from hybridlab.runner.safe_html import safe_html

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
MARKER = "papermill-error-cell-tag"
IMAGES = ("image/svg+xml", "image/png", "image/jpeg")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
LONG_LINES = 40
LONG_TABLE = 24


@dataclass(frozen=True)
class CellView:
    """A cell ready to be placed in a page; ``note`` says why it has no output."""

    kind: str  # markdown or code
    body: Markup
    outputs: tuple[Markup, ...] = ()
    state: str = ""
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class NotebookView:
    """A notebook ready to be placed in a page; ``states`` counts its code cells, in the order of CellState."""

    title: str
    cells: tuple[CellView, ...]
    figures: int
    states: tuple[tuple[str, int], ...]


def code_cells(nb: Any) -> list[Any]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def view_notebook(nb: Any, states: Sequence[str], *, prefix: str) -> NotebookView:
    """All cells of a notebook, the code cells with these states; ids start with ``prefix``."""
    state_of = {id(cell): state for cell, state in zip(code_cells(nb), states, strict=True)}
    cells = [c for c in nb.cells if MARKER not in c.metadata.get("tags", [])]
    title = ""
    views: list[CellView] = []
    figures = _Figures(prefix)
    for index, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            source = cell.source
            if not title:
                found = re.search(r"^#\s+(.+?)\s*#*\s*$", source, re.MULTILINE)
                if found:
                    title = found.group(1)
                    source = source[: found.start()] + source[found.end() :]
            if source.strip():
                views.append(CellView("markdown", _markdown(source, label=heading_before(cells, index))))
        elif cell.cell_type == "code" and cell.source.strip():
            views.append(_code(cell, state_of[id(cell)], heading_before(cells, index), figures))
    counts = tuple((state, states.count(state)) for state in get_args(CellState) if state in states)
    return NotebookView(title, tuple(views), figures.count, counts)


@cache
def _markdown_parser() -> Any:
    return mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url", "task_lists", "footnotes"])


def _markdown(source: str, *, label: str = "") -> Markup:
    return Markup(safe_html(str(_markdown_parser()(source)), label=label))


class _Figures:
    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.count = 0

    def place(self, figure: Any, label: str) -> Markup:
        """A div that figures.js draws the figure into, from data beside it."""
        self.count += 1
        name = f"{self._prefix}-figure-{self.count}"
        layout = figure.get("layout", {})
        title = layout.get("title") or {}
        text = title.get("text", "") if isinstance(title, dict) else str(title)
        shown = re.sub(r"<[^>]+>", "", str(text)) or label or "figure"
        height = layout.get("height") or 420
        # in a script element only "</" and "<!--" would end the data
        data = json.dumps({"data": figure.get("data", []), "layout": layout}).replace("<", "\\u003c")
        return Markup(
            f'<figure class="figure" aria-label="{html.escape(shown, quote=True)}">'
            f'<div id="{name}" class="plot" style="min-height:{int(height)}px"></div>'
            f'<script type="application/json" data-figure="{name}">{data}</script>'
            f"<noscript><p>{html.escape(shown)}: this figure needs JavaScript.</p></noscript></figure>"
        )


def _code(cell: Any, state: str, label: str, figures: _Figures) -> CellView:
    info = cell.metadata.get("hybridlab", {})
    saved = info.get("state", "")
    body = Markup(highlight(cell.source.rstrip(), PythonLexer(), HtmlFormatter(nowrap=True)))
    outputs = tuple(o for o in (_output(output, label, figures) for output in cell.outputs) if o)
    note = ""
    if state == "skipped":
        form = SKIP_TAG in cell.metadata.get("tags", [])
        note = "A form for JupyterLab, left out of unattended runs." if form else "Nothing to run."
    elif state == "not run":
        note = "Not run: an earlier cell ended the runbook."
    elif state != saved and state == "interrupted":
        note = "No end was recorded: the run was killed in this cell, or a moment before it."
    elif state != saved:
        note = "The ledger has its end; the notebook was not saved after it, so there may be output missing here."
    seconds = float(info.get("seconds", 0.0))
    return CellView("code", body, outputs, state, seconds, note)


def _output(output: Any, label: str, figures: _Figures) -> Markup:
    kind = output.output_type
    if kind == "stream":
        return _text(output.text, "stderr" if output.name == "stderr" else "stdout", label)
    if kind == "error":
        return _error(output)
    data = output.data
    if PLOTLY in data:
        return figures.place(data[PLOTLY], label)
    if "text/html" in data:
        return _html(_joined(data["text/html"]), label)
    for mime in IMAGES:
        if mime in data:
            return _image(mime, _joined(data[mime]), output.metadata.get(mime, {}).get("alt") or label)
    if "text/markdown" in data:
        return _markdown(_joined(data["text/markdown"]), label=label)
    if WIDGET in data:
        return Markup('<p class="aside">An interactive control: open the notebook in JupyterLab to use it.</p>')
    return _text(_joined(data["text/plain"]), "stdout", label) if "text/plain" in data else Markup("")


def _joined(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _html(text: str, label: str) -> Markup:
    """Safe HTML; a long table is folded under its caption, which says how long it is."""
    block = f'<div class="html">{safe_html(text, label=label)}</div>'
    rows = len(re.findall(r"<tr\b", text)) - 1
    if rows <= LONG_TABLE:
        return Markup(block)
    caption = re.search(r"<caption\b[^>]*>(.*?)</caption>", text, re.DOTALL)
    name = html.unescape(re.sub(r"<[^>]+>", "", caption[1])) if caption else label or "table"
    return Markup(f'<details class="more"><summary>{html.escape(name)}, {rows} rows</summary>{block}</details>')


def _image(mime: str, data: str, alt: str) -> Markup:
    import base64

    if mime == "image/svg+xml":
        data = base64.b64encode(data.encode()).decode()
    source = f"data:{mime};base64,{''.join(data.split())}"
    return Markup(f'<img class="image" alt="{html.escape(alt or "figure", quote=True)}" src="{source}">')


def _text(text: str, css: str, label: str) -> Markup:
    plain = html.escape(_ANSI.sub("", text).rstrip())
    if not plain:
        return Markup("")
    name = html.escape(f"output: {label}" if label else "output", quote=True)
    block = f'<pre class="text {css}" tabindex="0" role="group" aria-label="{name}">{plain}</pre>'
    lines = plain.count("\n") + 1
    if css == "stderr" or lines > LONG_LINES:
        what, log = ("progress", " log") if css == "stderr" else ("output", "")
        return Markup(f'<details class="more{log}"><summary>{what}, {lines} lines</summary>{block}</details>')
    return Markup(block)


def _error(output: Any) -> Markup:
    """What went wrong first; the traceback for whoever wants it."""
    what, _, move = str(output.evalue).partition("\n  next: ")
    trace = html.escape(_ANSI.sub("", "\n".join(output.traceback)))
    next_move = f'<p class="next"><b>Next:</b> {html.escape(move)}</p>' if move else ""
    return Markup(
        f'<div class="error" role="note"><p><b>{html.escape(output.ename)}</b> {html.escape(what)}</p>{next_move}'
        f'<details class="more log"><summary>traceback</summary><pre class="text" tabindex="0" role="group"'
        f' aria-label="traceback">{trace}</pre></details></div>'
    )
