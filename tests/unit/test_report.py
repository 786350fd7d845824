"""The report: what a reader needs is in it, and nothing in it needs a network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from toy_report import RUN, toy_run

from hybridlab.errors import BadInput
from hybridlab.runner.outcome import load_record, save_record
from hybridlab.runner.report import find_run, span, write_report
from hybridlab.runner.safe_html import safe_html


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_run(tmp_path)


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
        "jiva volumes ×10 1 not ready",
        "amd-1 amd64 ready, cordoned, 1 CPU, 1 GiB",
        "On no node: services/legacy-feed ×2",
        "Over the free allowance : 1 too many A1 OCPUs",
        "36 US$ a month",
        "unattached boot volumes, GB",
        "VM.Standard.A1.Flex 2 12 GiB 50 GB not ours",
        "Rehearsed in the lab",
    ):
        assert said in flat, said
    assert flat.index("services forgejo") < flat.index("openebs jiva"), "what it is all for comes first"
    failure, timeline = flat.index("install failed"), flat.index("In the order they ran")
    assert failure < timeline, "failures come first"


def test_without_an_answer_the_wanted_nodes_are_shown(folder: Path) -> None:
    record = load_record(folder)
    save_record(folder, replace(record, picture={}, bill={}))
    flat = " ".join(re.sub(r"<[^>]+>", " ", pages(folder)["index.html"]).split())
    assert "no cluster answered" in flat
    assert "server, 2 OCPU, 12 GiB" in flat
    assert "Cost and limits" not in flat


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "made in this run"),
        ({"cluster": "elsewhere"}, "refused: it belongs to another cluster (elsewhere)"),
        ({"made": "2020-01-01T00:00:00+00:00"}, "refused: older than 24 h"),
        ({"run": "an-earlier-one"}, "may be relied on, at most 24 h old"),
        ({"schema": 2}, "refused: it can&#39;t be read"),
    ],
)
def test_evidence_that_may_not_be_relied_on_says_why(folder: Path, change: dict[str, Any], word: str) -> None:
    record = load_record(folder)
    save_record(folder, replace(record, params={**record.params, "benchmark": {"max_age_h": 24.0}}))
    path = folder.parent.parent / "state/toybox/evidence/benchmark.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    text = pages(folder)["index.html"]
    assert word in text
    assert ("level refusal" in text) == word.startswith("refused")


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
        ('<img src="data:image/png;base64,AA==">', '<img alt="" src="data:image/png;base64,AA==">'),
        ('<p><img src="https://x/y.png" alt="a < b"></p>', "<p>a &lt; b</p>"),
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
