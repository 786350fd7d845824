"""A run for machines and for GitHub: junit.xml and the step summary."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from hybridlab.ledger import Row, write_atomic
from hybridlab.runner.outcome import RunbookResult, RunRecord

SUMMARY_LIMIT = 900_000
"""GitHub refuses a step summary above 1,024 kB; other steps may have written to the same one."""
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def last_checks(rows: Sequence[Row], stage: str) -> list[dict[str, object]]:
    """The checks of a stage as it was verified last in these rows."""
    found = [row for row in rows if row.stage == stage and "checks" in row.detail]
    return list(found[-1].detail["checks"]) if found else []


def plan_counts(rows: Sequence[Row], stage: str) -> dict[str, int] | None:
    """How many things the first plan of a stage in these rows wanted to create, change and delete; None without one."""
    found = [row for row in rows if row.stage == stage and row.event == "planned"]
    if not found:
        return None
    return {effect: int(found[0].detail.get(effect, 0)) for effect in ("create", "change", "delete")}


def write_junit(path: Path, record: RunRecord, rows: Sequence[Row]) -> None:
    """One test suite a runbook: a case for the notebook itself, and one for each check it made."""
    top = Xml.Element("testsuites", name=record.run, time=f"{record.seconds:.3f}")
    for book in record.runbooks:
        suite = Xml.SubElement(top, "testsuite", name=book.name, time=f"{book.seconds:.3f}", timestamp=book.started)
        case = Xml.SubElement(suite, "testcase", classname=record.cluster, name=book.name, time=f"{book.seconds:.3f}")
        if book.state == "not run":
            Xml.SubElement(case, "skipped", message="not run")
        elif book.state != "done":
            text = book.problem.message() if book.problem else book.state
            kind = "failure" if book.state == "failed" else "error"
            Xml.SubElement(case, kind, message=_xml(text.splitlines()[0]), type=book.state).text = _xml(text)
        for check in last_checks(rows, book.stage):
            case = Xml.SubElement(
                suite, "testcase", classname=f"{record.cluster}.{book.name}", name=_xml(check["name"])
            )
            if not check["ok"]:
                Xml.SubElement(case, "failure", message=_xml(check["evidence"]))
        cases = suite.findall("testcase")
        suite.set("tests", str(len(cases)))
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(kind, str(sum(case.find(tag) is not None for case in cases)))
    Xml.indent(top)
    write_atomic(path, Xml.tostring(top, encoding="utf-8", xml_declaration=True))


def _xml(text: object) -> str:
    return _NOT_XML.sub("�", str(text))


def write_step_summary(
    path: str | None, record: RunRecord, rows: Sequence[Row], redact: Callable[[str], str] = str
) -> None:
    """Append the run to GitHub's step summary, when there is one (GITHUB_STEP_SUMMARY)."""
    if not path:
        return
    text = redact(step_summary(record, rows))
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text)


def step_summary(record: RunRecord, rows: Sequence[Row]) -> str:
    rehearsed = " (rehearsed in the lab)" if record.site == "lab" else ""
    lines = [f"## {record.cluster}: {record.state}{rehearsed}", ""]
    if record.problem:
        lines += [f"> {_cell(line)}" for line in record.problem.message().splitlines()] + [""]
    lines += ["| runbook | state | seconds | create | change | delete | checks |", "|---|---|--:|--:|--:|--:|---|"]
    lines += [_summary_row(book, rows) for book in record.runbooks]
    text = "\n".join(lines) + "\n\n"
    data = text.encode()
    return text if len(data) <= SUMMARY_LIMIT else data[:SUMMARY_LIMIT].decode(errors="ignore") + "\n\n(cut)\n\n"


def _summary_row(book: RunbookResult, rows: Sequence[Row]) -> str:
    counts = plan_counts(rows, book.stage) or {}
    numbers = " | ".join(str(counts.get(effect, "")) for effect in ("create", "change", "delete"))
    checks = last_checks(rows, book.stage)
    shown = f"{sum(bool(c['ok']) for c in checks)} of {len(checks)}" if checks else ""
    return f"| {book.name} | {book.state} | {book.seconds:.1f} | {numbers} | {shown} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
