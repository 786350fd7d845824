"""Gates: nothing changes without an approval of exactly that plan; and the same notebook under plain papermill."""

from __future__ import annotations

import json
import time

import nbformat
import oci
from life import NODES, PARAMS, Done, Life, promptly

from hybridlab.ledger import now_iso, who


def plan_hash(life: Life, *words: str) -> str:
    done = life.hybridlab("plan", "provision", "--json", *words)
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
    assert {row.event for row in life.ledger()} <= {"planned", "refused", "failed"}
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


def terminate(life: Life, name: str) -> None:
    """What somebody does in Oracle's console while nobody looks."""
    compute, _ = life.oci(oci.core.ComputeClient)
    (vm,) = (vm for vm in life.instances() if vm.display_name == name)
    compute.terminate_instance(vm.id, preserve_boot_volume=False)
    promptly(life.instances, lambda vms: name not in [vm.display_name for vm in vms], f"{name} to be gone")


def refused(life: Life, done: Done, *, approved: str, now: str, since: str) -> None:
    """The run ended at the gate, and the record says who tried, when, with which hash, and which one it would be."""
    assert done.status == 3, done.said
    assert f"approved was {approved}: the plan is another one" in done.err
    assert f"--approve {now}" in done.err
    assert "Traceback" not in done.said
    row = [row for row in life.ledger() if row.event == "refused"][-1]
    assert (row.stage, row.detail["given"], row.detail["hash"]) == ("provision", [approved], now)
    assert row.detail["who"] == who()
    assert since < row.time < now_iso()
    run = life.last_run()
    assert (run["run"], run["exit_code"], run["approvals"]) == (row.run, 3, [approved])
    assert f"{run['user']} on {run['host']}" == who()


def test_a_plan_that_changed_since_it_was_approved_is_refused(fresh: Life) -> None:
    """Approved is exactly that plan: not one with another choice, nor the one that a changed world asks for."""
    since, began = time.time(), now_iso()
    approved = plan_hash(fresh)
    other = ("--set", "nodes.arm-2.memory_gb=5")
    closed = fresh.run("020", *other, approve=approved)
    refused(fresh, closed, approved=approved, now=plan_hash(fresh, *other), since=began)
    assert fresh.mutating(since) == []
    assert fresh.run("020", approve=approved).status == 0, "the plan as it was approved"
    terminate(fresh, "amd-1")
    since, began, approved = time.time(), now_iso(), plan_hash(fresh)  # to launch amd-1 anew
    terminate(fresh, "arm-2")
    changed = plan_hash(fresh)
    assert changed != approved
    mine = len(fresh.mutating(since))
    closed = fresh.run("020", approve=approved)
    refused(fresh, closed, approved=approved, now=changed, since=began)
    assert len(fresh.mutating(since)) == mine, "nothing was changed"
    assert fresh.launched() == sorted(NODES)
    assert fresh.run("020", approve=changed).status == 0
    assert fresh.launched() == sorted([*NODES, "amd-1", "arm-2"])
    approvals = [(row.detail["hash"], row.detail["who"]) for row in fresh.ledger() if row.event == "approved"]
    assert approvals[-1] == (changed, who())
    assert [hash_ for hash_, _ in approvals].count(approved) == 0, "what was refused never counted as approved"


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
