"""Runs that end before their time: killed, interrupted, doubled. The next one finishes what they began."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from life import NODES, Life, promptly, ready, told_in_one_message

WANTED = sorted(NODES)


def children(pid: int) -> list[int]:
    """The kernels of a run: its child processes, where the system has /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_killed_at_every_turn_a_run_is_finished_by_the_next(fresh: Life) -> None:
    """Without a chance to clean up, at three points: while VMs are launched, the server installed, the agents join."""
    cluster = fresh.cluster()
    fresh.stop()
    fresh.start(speed=3)  # slow enough to be caught in the act
    kernels: list[int] = []
    caught = 0
    for books, step in ((["020"], "launch:"), (["020", "030"], "install:arm-1"), (["030"], "install:arm-2")):
        before = len(fresh.ledger())
        with fresh.running(*books) as process:
            fresh.await_row("started", step, after=before)
            kernels += children(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
        open_steps = [s for stage in ("provision", "bootstrap") for s in cluster.ledger.open_steps(stage)]
        caught += any(s.startswith(step) for s in open_steps)
    assert caught, "a step was cut off at least once"
    done = fresh.run("020", "030")
    assert done.status == 0, done.said
    assert fresh.launched() == WANTED, "no VM was made twice"
    assert {name: ready(node) for name, node in fresh.nodes().items()} == dict.fromkeys(NODES, True)
    assert not set(fresh.steps()) & {"provision", "bootstrap"}
    assert not [pid for pid in kernels if alive(pid)], "no kernel outlives its run"


def test_ctrl_c_is_told_and_the_next_run_goes_on(fresh: Life) -> None:
    fresh.fault("out-of-capacity", count=1000, match="VM.Standard.A1.Flex")  # so that there is something to interrupt
    soon = ("--set", "provision.capacity_pause_s=2")  # the next run waits for the try that this one planned
    with fresh.running("020", *soon) as process:
        fresh.await_row("started", "launch:arm")
        second = fresh.run("020")
        told_in_one_message(second, "another run", f"process {process.pid}", "wait for it to end")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "interrupted" in err
    assert "Traceback" not in err
    record = fresh.last_run()
    assert (record["state"], record["exit_code"]) == ("interrupted", 6)
    assert record["runbooks"][0]["state"] == "interrupted"
    events: dict[str, Any] = {row.step: row.event for row in fresh.ledger()}
    assert events["launch:arm-1"] == "interrupted"
    fresh.stop()
    fresh.start()  # a lab that starts anew has forgotten its faults
    done = fresh.run("020", *soon)
    assert done.status == 0, done.said
    assert fresh.launched() == WANTED


LAUNCH = ("POST", "/20160918/instances")


def launches(life: Life) -> list[float]:
    """When Oracle was asked for a VM, by the lab's log."""
    return [row["time"] for row in life.mutating(0) if (row["verb"], row["target"]) == LAUNCH]


def test_a_killed_hunt_asks_no_earlier_than_it_had_planned(fresh: Life) -> None:
    fresh.fault("out-of-capacity", count=1000, match="VM.Standard.A1.Flex")
    paths = [fresh.state / "hunts" / f"{name}.json" for name in ("arm-1", "arm-2")]
    pause = ("--set", "provision.capacity_pause_s=12")

    def hunts() -> list[dict[str, Any]]:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]

    with fresh.running("020", *pause) as process:
        fresh.await_row("done", "launch:amd-1")  # the micro there was
        promptly(hunts, lambda seen: len(seen) == 2 and all(h["next_at"] for h in seen), "both hunts to rest")
        kernels = children(process.pid)
    promptly(lambda: [pid for pid in kernels if alive(pid)], lambda left: not left, "the kernel to end")
    before, planned = launches(fresh), hunts()
    assert len(before) == 1 + sum(len(hunt["attempts"]) for hunt in planned)
    done = fresh.run("020", "--set", "provision.capacity_deadline_s=0", *pause)  # one round each
    assert done.status == 5, done.said
    later = launches(fresh)[len(before) :]
    assert len(later) == 2 * len({a["availability_domain"] for a in planned[0]["attempts"]})
    assert min(later) >= min(hunt["next_at"] for hunt in planned), "in another process, but no earlier than planned"


def test_sigterm_before_anything_was_changed(fresh: Life) -> None:
    with fresh.running("010", "020") as process:
        promptly(fresh.runs, bool, "the run to begin")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert fresh.last_run()["state"] == "interrupted"
    assert fresh.launched() == []
