"""The report in a browser: axe finds nothing serious, figures fit and follow the colours, paper shows what is folded.

Needs Chromium (HYBRIDLAB_CHROMIUM, or one on PATH) and, for axe, ``axe.min.js``: HYBRIDLAB_AXE names it, else it is
looked for in the cache folder that ``npm install --prefix ~/.cache/hybridlab axe-core`` fills.
HYBRIDLAB_TEST_RUN=FOLDER looks at the report of a real run (``runs/…``, made anew) instead of the one made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium
from toy_report import toy_run

from hybridlab.runner.report import write_report

SERIOUS = ("serious", "critical")
AXE = Path("~/.cache/hybridlab/node_modules/axe-core/axe.min.js")
LOOK = (
    "axe.run({preload: false, resultTypes: ['violations']})"
    ".then(found => found.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 200)).slice(0, 3)]))"
)
PLOTLY_TEXT = "getComputedStyle(document.querySelector('.plot .gtitle, .plot .legendtext')).fill"
WIDER = "document.documentElement.scrollWidth - window.innerWidth"


@pytest.fixture(scope="module")
def axe() -> str:
    path = Path(os.environ.get("HYBRIDLAB_AXE") or AXE.expanduser())
    if not path.exists():
        pytest.skip(f"no {path}: npm install --prefix ~/.cache/hybridlab axe-core, or HYBRIDLAB_AXE=path of axe.min.js")
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("HYBRIDLAB_TEST_RUN")
    return Path(given).resolve() if given else toy_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def pages(run_folder: Path) -> list[Path]:
    """Every page, the index and the single file too."""
    root = run_folder.parent.parent
    index = write_report(run_folder, root=root)
    single = write_report(run_folder, root=root, single_file=True)
    return [*sorted(index.parent.glob("*.html")), single]


def with_figures(pages: list[Path]) -> Iterator[Path]:
    return (page for page in pages if "data-figure=" in page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1100, 390], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(browser: Chromium, pages: list[Path], axe: str, width: int, dark: bool) -> None:
    wrong: dict[str, Any] = {}
    for page in pages:
        browser.open(page, width=width, dark=dark)
        browser.value("document.querySelectorAll('details').forEach(d => { d.open = true; })")  # what is folded counts
        browser.say("Runtime.evaluate", expression=axe)
        found = [row for row in browser.value(LOOK) if row[0] in SERIOUS]
        if found:
            wrong[page.name] = found
    assert not wrong


@pytest.mark.parametrize("width", [1100, 390], ids=["desk", "phone"])
def test_pages_load_nothing_and_fit(browser: Chromium, pages: list[Path], width: int) -> None:
    for page in pages:
        browser.open(page, width=width)
        assert browser.problems == [], page.name
        elsewhere = [url for url in browser.requested if not url.startswith(("file:", "data:", "blob:"))]
        assert elsewhere == [], page.name
        if page.name == "report.html":
            assert [url for url in browser.requested if url.startswith("file:")] == [page.resolve().as_uri()]
        assert browser.value(WIDER) <= 0, f"{page.name} is wider than a window of {width} pixels"


def test_figures_are_drawn_resize_and_follow_the_colours(browser: Chromium, pages: list[Path]) -> None:
    found = list(with_figures(pages))
    assert found
    for page in found:
        fills = []
        for dark in (False, True):
            browser.open(page, dark=dark)
            assert browser.value("document.querySelectorAll('.plot svg.main-svg').length") > 0
            fills.append(browser.value(PLOTLY_TEXT))
        assert brightness(fills[0]) < 100 < 180 < brightness(fills[1]), f"{page.name}: {fills}"
        browser.resize(390)
        # plotly redraws a moment after the window changed
        script = (
            "new Promise(done => { const ends = Date.now() + 5000; (function look() {"
            "const all = [...document.querySelectorAll('.plot:not(.wide) .main-svg, figure.figure')];"
            "const widths = all.map(s => s.getBoundingClientRect().width);"
            "if (Math.max(...widths) <= window.innerWidth || Date.now() > ends) done(Math.max(...widths));"
            "else setTimeout(look, 50); })(); })"
        )
        assert browser.value(script) <= 390, f"a figure of {page.name} is wider than a phone"


def brightness(colour: str) -> float:
    numbers = [float(n) for n in re.findall(r"[\d.]+", colour)[:3]]
    return sum(numbers) / 3


def test_paper_shows_what_is_folded(browser: Chromium, pages: list[Path], tmp_path: Path) -> None:
    page = next(p for p in pages if p.name == "index.html")
    browser.open(page, dark=True)
    folded = "[...document.querySelectorAll('details.more:not(.log) > :not(summary)')]"
    browser.say("Emulation.setEmulatedMedia", media="print")
    assert browser.value(f"{folded}.every(e => e.getBoundingClientRect().height > 0)"), "a folded part is not printed"
    assert brightness(browser.value("getComputedStyle(document.body).backgroundColor")) > 250, "paper is white"
    browser.pdf(tmp_path / "index.pdf")
    browser.say("Emulation.setEmulatedMedia", media="")
    assert (tmp_path / "index.pdf").read_bytes().startswith(b"%PDF")
