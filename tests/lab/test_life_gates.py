"""Gates: nothing changes without an approval of exactly that plan; and the same notebook under plain papermill."""

from __future__ import annotations

import json
import time

import nbformat
from life import NODES, PARAMS, Life


def plan_hash(life: Life) -> str:
    done = life.hybridlab("plan", "provision", "--json")
    assert done.status == 0, done.said
    found: str = json.loads(done.out)["hash"]
    return found


def test_a_closed_gate_changes_nothing(life: Life) -> None:
    since, wanted = time.time(), plan_hash(life)
    closed = life.hybridlab("run", "020", "--params", PARAMS)
    assert closed.status == 3, closed.said
    assert f"--approve {wanted}" in closed.err
    assert "nobody approved it" in closed.err
    wrong = life.run("020", approve="0123456789ab")
    assert wrong.status == 3, wrong.said
    assert "0123456789ab: the plan is another one" in wrong.err
    assert life.mutating(since) == []
    assert life.launched() == []
    assert {row.event for row in life.ledger()} <= {"planned", "failed"}
    assert not [row for row in life.ledger() if row.step], "no step was begun"
    # the hash is the plan's: it is the same in another process, and after the failed attempts
    assert plan_hash(life) == wanted
    opened = life.run("020", approve=wanted)
    assert opened.status == 0, opened.said
    assert life.launched() == sorted(NODES)
    approved = [row for row in life.ledger() if row.event == "approved"]
    assert [(row.stage, row.detail["hash"], row.detail["by"]) for row in approved] == [
        ("provision", wanted, f"--approve {wanted}")
    ]
    assert plan_hash(life) != wanted


def test_plain_papermill(fresh: Life) -> None:
    """The command of the README: no runner of ours, no approval; in the lab there is nothing to protect."""
    out = fresh.home / "out.ipynb"
    words = ["papermill", "runbooks/020-provision-vms.ipynb", str(out), "-p", "params_file", PARAMS]
    done = fresh.command(*words)
    assert done.status == 0, done.said
    assert fresh.launched() == sorted(NODES)
    notebook = nbformat.read(out, as_version=4)
    assert notebook.metadata.papermill.exception is None
    form = next(cell for cell in notebook.cells if "skip-execution" in cell.metadata.get("tags", []))
    assert form.outputs == []
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert all(name in shown for name in NODES)
    assert "PRIVATE KEY" not in shown
    # a parameter of the notebook reaches the plan: what the file says is not what is wanted now
    refused = fresh.command(*words, "-p", "approve", "000000000000", "-r", "operator_cidr", "203.0.113.0/24")
    assert refused.status != 0
    assert "GateClosed" in refused.said
    assert "is closed for plan" in refused.said
