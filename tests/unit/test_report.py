"""The report: what a reader needs is in it, and nothing in it needs a network."""

from __future__ import annotations

import os
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hybridlab.errors import BadInput
from hybridlab.ledger import EvidenceStore, Ledger, SecretStore, now_iso
from hybridlab.runner.outcome import Problem, RunbookResult, RunRecord, save_record
from hybridlab.runner.report import find_run, span, write_report
from hybridlab.runner.safe_html import safe_html

RUN = "20260101T000000Z-toybox"
FIGURE = {"data": [{"type": "bar", "x": ["</script><b>"], "y": [1]}], "layout": {"title": {"text": "Memory"}}}
NODES = [{"name": "arm-1", "role": "server", "arch": "arm64", "ocpus": 2.0, "memory_gb": 12.0, "boot_volume_gb": 50}]


class Page(HTMLParser):
    """What a browser would load, and what a reader with a screen reader would meet."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.lang = ""
        self.captions = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.open.append(tag)
        self.tags.append(tag)
        self.captions += tag == "caption"
        self.lang = given.get("lang") or self.lang
        if given.get("id"):
            self.ids.append(str(given["id"]))
        for key in ("src", "srcset", "poster", "data", "action"):
            if given.get(key):
                self.loads.append(str(given[key]))
        assert not any('"' in key or "<" in key for key in given), f"a broken tag: {tag} {attrs}"
        if given.get("href"):
            (self.links if tag == "a" else self.loads).append(str(given["href"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def cell(source: str, state: str = "done", outputs: list[Any] | None = None, tag: str = "") -> Any:
    made = new_code_cell(source, outputs=outputs or [])
    made.metadata["hybridlab"] = {"state": state, "seconds": 1.0}
    made.metadata["tags"] = [tag] if tag else []
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with one run: a good runbook with every kind of output, a failed one, one that was not run."""
    state = tmp_path / "state" / "toybox"
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    bad_html = (
        '<h1>big</h1><script src="https://cdn.example/x.js"></script><img src="https://cdn.example/x.png" alt="x">'
        '<table onclick="x()"><tr><th>node</th></tr></table><p style="background:url(https://cdn.example/y.png)">p</p>'
    )
    outputs = [
        new_output("display_data", data={"application/vnd.plotly.v1+json": FIGURE}),
        new_output("display_data", data={"text/html": bad_html, "text/plain": "plain"}),
        new_output(
            "display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/html": "<p>form as text</p>"}
        ),
        new_output("stream", name="stdout", text="\x1b[31m<not bold> hunter2hunter2\x1b[0m\n"),
    ]
    good = [
        new_markdown_cell("# Plan **it**\n\nSee [docs](https://example.com) <img src='https://cdn.example/z.png'>"),
        cell("form(cluster)", "skipped", tag="skip-execution"),
        cell("show(x)", outputs=outputs),
    ]
    error = new_output("error", ename="StepFailed", evalue="no route\n  next: plug it in", traceback=["Traceback: <x>"])
    failed = [new_markdown_cell("# Boot"), cell("apply()", "failed", [error]), cell("verify()", "not run")]
    for name, cells in (("010-plan-cluster", good), ("030-bootstrap-k3s", failed)):
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    problem = Problem("StepFailed", "install failed <b>", "arm-1", "no route", "plug it in")
    books = (
        RunbookResult("010-plan-cluster", "Plan it", "010-plan-cluster.ipynb", "layout", "done", now_iso(), 2.0),
        RunbookResult(
            "030-bootstrap-k3s", "Boot", "030-bootstrap-k3s.ipynb", "bootstrap", "failed", now_iso(), 1.0,
            cell="5. Apply", problem=problem,
        ),
        RunbookResult("040-benchmark-nodes", "Measure", "040-benchmark-nodes.ipynb", "benchmark"),
    )  # fmt: skip
    save_record(
        folder,
        RunRecord(
            run=RUN, cluster="toybox", site="lab", params_file="params/toy.yaml",
            params={"cluster": "toybox", "site": "lab", "nodes": NODES, "storage": {"replicas": 1}},
            sets=("storage.replicas=1",), approvals=("all",), strict=False, started=now_iso(), pid=os.getpid(),
            host=socket.gethostname(), user="someone", version="0", state="failed", exit_code=4, seconds=3.0,
            runbooks=books,
        ),
    )  # fmt: skip
    ledger = Ledger(state / "ledger.jsonl", run=RUN)
    finding = {"level": "warning", "subject": "arm-1", "text": "over the allowance", "strict": False}
    ledger.add("layout", "", "planned", detail={"hash": "a" * 12, "create": 0, "findings": [finding]})
    check = {"name": "the layout fits", "ok": True, "evidence": "3 of 4 OCPU"}
    ledger.add("layout", "", "verified", detail={"steps": 0, "checks": [check]})
    ledger.add("bootstrap", "", "planned", detail={"hash": "b" * 12, "create": 2, "change": 1, "delete": 0})
    ledger.add("bootstrap", "", "approved", detail={"hash": "b" * 12, "by": "--approve all"})
    ledger.add("bootstrap", "install:arm-1", "started", effect="create", target="arm-1", detail={"why": "no K3s"})
    EvidenceStore(state / "evidence", cluster="toybox", run=RUN).save("benchmark", {}, inputs=None)
    SecretStore(state / "secrets").put("token", "hunter2hunter2")
    return folder


def pages(folder: Path) -> dict[str, str]:
    write_report(folder, root=folder.parent.parent)
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / "report").glob("*.html")}


def test_nothing_is_loaded_from_elsewhere(folder: Path) -> None:
    found = pages(folder)
    assert set(found) == {"index.html", "010-plan-cluster.html", "030-bootstrap-k3s.html"}
    for name, text in found.items():
        page = Page(text)
        for load in page.loads:
            assert (folder / "report" / load).exists() or load.startswith("data:"), f"{name} loads {load}"
        for link in page.links:
            target, _, anchor = link.partition("#")
            assert link.startswith("https://example.com") or (folder / "report" / (target or name)).exists(), link
            assert not anchor or anchor in page.ids
        assert "cdn.example" not in text
    css = (folder / "report" / "assets" / "style.css").read_text()
    assert "http" not in css
    assert "@import" not in css


def test_the_index_tells_a_stranger_what_happened(folder: Path) -> None:
    text = pages(folder)["index.html"]
    flat = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    for said in (
        "Failed in 030-bootstrap-k3s; 1 of 3 runbooks were done before",
        "install failed &lt;b&gt;",
        "plug it in",
        "2 create , 1 change",
        "the layout fits",
        "3 of 4 OCPU",
        "over the allowance",
        "benchmark",
        "storage.replicas=1",
        "server, 2 OCPU, 12 GiB",
        "Rehearsed in the lab",
    ):
        assert said in flat, said
    failure, timeline = flat.index("install failed"), flat.index("In the order they ran")
    assert failure < timeline, "failures come first"


def test_a_page_shows_outputs_and_escapes_them(folder: Path) -> None:
    text = pages(folder)["010-plan-cluster.html"]
    assert "&lt;not bold&gt; ***" in text
    assert "\x1b" not in text
    assert "form as text" in text
    assert "A form for JupyterLab" in text
    assert text.count("<script") == text.count("</script>") == 3  # the figure's data, plotly and figures.js
    assert "</script><b>" not in text
    assert 'data-figure="n010-figure-1"' in text
    assert (folder / "report/assets/plotly.min.js").stat().st_size > 1_000_000


def test_a_failed_page_shows_steps_and_cells_as_they_ended(folder: Path) -> None:
    text = pages(folder)["030-bootstrap-k3s.html"]
    assert re.search(r'class="state unknown">unknown<.*?install:arm-1', text, re.DOTALL)
    assert "Not run: an earlier cell ended the runbook." in text
    assert "Traceback: &lt;x&gt;" in text
    assert "approved by --approve all" in text
    assert "plotly" not in text


@pytest.mark.parametrize("single", [False, True])
def test_pages_are_well_made(folder: Path, single: bool) -> None:
    if single:
        found = [write_report(folder, root=folder.parent.parent, single_file=True).read_text(encoding="utf-8")]
        assert not (folder / "report").exists()
    else:
        found = list(pages(folder).values())
    for text in found:
        page = Page(text)
        assert page.lang == "en"
        assert page.open == [], "every element is closed, in order"
        assert page.tags.count("h1") == 1
        assert page.tags.count("main") == 1
        assert page.captions == page.tags.count("table")
        assert len(page.ids) == len(set(page.ids))
        assert 'name="viewport"' in text
        assert "hunter2" not in text
        assert not single or page.loads == []


def test_a_run_that_was_killed_is_shown_as_interrupted(folder: Path) -> None:
    record_text = (folder / "run.json").read_text().replace('"state": "failed"', '"state": "running"')
    dead = re.sub(r'"pid": \d+', '"pid": 4194300', record_text)
    (folder / "run.json").write_text(dead)
    assert 'class="state running"' not in pages(folder)["index.html"]
    assert "Interrupted in 030-bootstrap-k3s" in pages(folder)["index.html"]


def test_finding_runs(folder: Path) -> None:
    root = folder.parent.parent
    for name in (RUN, "20260101", "last", str(folder)):
        assert find_run(root, name) == folder
    with pytest.raises(BadInput, match=RUN):
        find_run(root, "2031")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("<p onclick=x>a</p>", "<p>a</p>"),
        ("<script>alert(1)</script>b", "b"),
        ("<iframe src=//x></iframe>c", "c"),
        ('<a href="javascript:x()">d</a>', "<a>d</a>"),
        ('<a href="https://k3s.io">e</a>', '<a href="https://k3s.io">e</a>'),
        ("<style>@import url(http://x); p{color:red}</style>", "<style> p{color:red}</style>"),
        ("<h1>f</h1>", "<h2>f</h2>"),
        ("a &lt; b &#38; c", "a &lt; b &#38; c"),
        ('<img src="data:image/png;base64,AA==">', '<img src="data:image/png;base64,AA==">'),
        ("<svg><use href='#a'/><image href='http://x'/></svg>", '<svg><use href="#a"></use><image></image></svg>'),
    ],
)
def test_safe_html(given: str, expected: str) -> None:
    assert safe_html(given) == expected


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (65, "1 min 05 s"), (3725, "1 h 02 min"), (90000, "1 d 1 h")],
)
def test_span(seconds: float, shown: str) -> None:
    assert span(seconds) == shown
