"""A run to report on: a good runbook with every kind of output, a failed one, one that was not run."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from hybridlab.ledger import EvidenceStore, Ledger, SecretStore, now_iso
from hybridlab.runner.outcome import Problem, RunbookResult, RunRecord, save_record
from hybridlab.ui.tables import BAD, GOOD, WARN, Mark, Table

RUN = "20260101T000000Z-toybox"
FIGURE = {
    "data": [
        {"type": "bar", "name": "arm-1", "x": ["</script><b>", "cpu"], "y": [1, 2]},
        {"type": "bar", "name": "amd-1", "x": ["cpu"], "y": [1]},
    ],
    "layout": {"title": {"text": "Memory"}, "xaxis": {"title": {"text": "test"}}},
}
NODES = [{"name": "arm-1", "role": "server", "arch": "arm64", "ocpus": 2.0, "memory_gb": 12.0, "boot_volume_gb": 50}]
PICTURE = {
    "taken": "2026-01-01T00:00:00+00:00",
    "unscheduled": [{"name": "legacy-feed", "namespace": "services", "pods": 2, "waiting": 2}],
    "nodes": [
        {"name": "arm-1", "arch": "arm64", "ready": True, "schedulable": True, "version": "v1.34.2+k3s1", "cpu_m": 2000,
         "memory": 12 * 2**30, "taints": [], "apps": [
             {"name": "jiva volumes", "namespace": "openebs", "pods": 10, "waiting": 1},
             {"name": "forgejo", "namespace": "services", "pods": 1, "waiting": 0}]},
        {"name": "amd-1", "arch": "amd64", "ready": True, "schedulable": False, "version": "v1.34", "cpu_m": 1000,
         "memory": 2**30, "taints": ["hybridlab.io/small"], "apps": []},
    ],
}  # fmt: skip
BILL = {
    "allowance": {"name": "since-2026-06", "since": "2026-06", "until": None, "source": "a page", "a1_ocpus": 2,
                  "a1_memory_gb": 12, "micros": 2, "storage_gb": 200, "volumes_max": 4},
    "lines": [
        {"resource": "A1 OCPUs", "asked": 3.0, "used": 3.0, "free": 2.0, "left": -1.0, "costs": True},
        {"resource": "AMD micros", "asked": 1, "used": None, "free": 2, "left": 1, "costs": False},
    ],
    "extra": [{"resource": "unattached boot volumes, GB", "used": 50.0, "free": 0, "costs": False}],
    "machines": [{"name": "arm-1", "state": "RUNNING", "shape": "VM.Standard.A1.Flex", "ocpus": 2.0, "memory_gb": 12.0,
                  "boot_volume_gb": 50, "public_ip": "", "private_ip": "", "ours": False}],
    "problem": "", "elsewhere_usd": 36.0, "elsewhere_usd_per_node": 12.0,
}  # fmt: skip
LONG = Table(
    "Plan: 40 steps",
    ("effect", "on", "why"),
    [(Mark("create", "create"), f"a-very-long-name/{'x' * 60}-{n}", "because") for n in range(40)],
)
SHORT = Table(
    "Fit",
    ("", "resource", "left"),
    [(Mark(GOOD, "fits"), "cpu", 1), (Mark(BAD, "over"), "memory", -6), (Mark(WARN, "close"), "disk", 0)],
)


def cell(source: str, state: str = "done", outputs: list[Any] | None = None, tag: str = "") -> Any:
    made = new_code_cell(source, outputs=outputs or [])
    made.metadata["hybridlab"] = {"state": state, "seconds": 1.0}
    made.metadata["tags"] = [tag] if tag else []
    return made


def toy_run(root: Path) -> Path:
    """Make the run under this root, with its state; returns its folder."""
    state = root / "state" / "toybox"
    folder = root / "runs" / RUN
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
        new_output("display_data", data={"text/html": LONG._repr_html_(), "text/plain": repr(LONG)}),
        new_output("display_data", data={"text/html": SHORT._repr_html_(), "text/plain": repr(SHORT)}),
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
            params={"cluster": "toybox", "site": "lab", "nodes": NODES, "storage": {"replicas": 1},
                    "migrate": {"namespace": "services"}},
            sets=("storage.replicas=1",), approvals=("all",), strict=False, started=now_iso(), pid=os.getpid(),
            host=socket.gethostname(), user="someone", version="0", state="failed", exit_code=4, seconds=3.0,
            runbooks=books, picture=PICTURE, bill=BILL,
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
