"""What real clouds and networks do to a run, and that the next one (or the same) gets there all the same."""

from __future__ import annotations

import pytest
from life import NODES, Life, ready

from hybridlab.errors import DeadlineExceeded, StepFailed

QUICK = ("provision.capacity_pause_s=0.05",)
WANTED = sorted(NODES)


def sizes(life: Life) -> dict[str, tuple[float, float]]:
    return {vm.display_name: (vm.shape_config.ocpus, vm.shape_config.memory_in_gbs) for vm in life.instances()}


def test_out_of_capacity_is_hunted_without_taking_less(fresh: Life) -> None:
    fresh.fault("out-of-capacity", count=7, match="VM.Standard.A1.Flex")
    done = fresh.make("provision", sets=QUICK)
    assert fresh.faults_left() == []
    assert fresh.launched() == WANTED
    assert sizes(fresh) == {"arm-1": (2, 12), "arm-2": (1, 6), "amd-1": (1, 1)}
    rows = [r for r in fresh.ledger() if r.event == "done" and r.step.startswith("launch:")]
    answers = [a["answer"] for row in rows for a in row.detail["attempts"]]
    assert answers.count("out of capacity") == 7
    assert answers.count("accepted") == 3
    assert not done.cluster.stage("provision").plan().steps


def test_no_capacity_ends_at_the_deadline_and_the_next_run_goes_on(fresh: Life) -> None:
    fresh.fault("out-of-capacity", count=1000, match="VM.Standard.A1.Flex")
    with pytest.raises(StepFailed) as caught:
        fresh.make("provision", sets=(*QUICK, "provision.capacity_deadline_s=0.5"))
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert caught.value.exit_code == 5
    assert "degrade" in caught.value.next_move
    assert [vm.display_name for vm in fresh.instances()] == ["amd-1"], "the rest of a batch is finished"
    fresh.stop()
    fresh.start()  # a lab that starts anew has forgotten its faults
    fresh.make("provision", sets=QUICK)
    assert fresh.launched() == WANTED


def test_launches_whose_answer_is_lost_are_not_doubled(fresh: Life) -> None:
    fresh.fault("lost-answer", count=2)
    fresh.fault("bad-gateway", count=1)
    fresh.fault("too-many-requests", count=3)
    fresh.fault("too-many-requests", count=2, match="POST /20160918/instances")
    fresh.make("provision", sets=QUICK)
    assert fresh.faults_left() == []
    assert fresh.launched() == WANTED


def test_a_dropped_command_is_unknown_and_the_next_run_goes_on(fresh: Life) -> None:
    fresh.make("provision")
    fresh.fault("ssh-drop", match="arm-1 sudo -n env INSTALL_K3S")
    broken = fresh.run("030")
    assert fresh.faults_left() == [], "the fault struck"
    assert broken.status == 4, broken.said
    assert "install:arm-1 has an unknown outcome" in broken.err
    assert "next: run it again" in broken.err
    last = {row.step: row.event for row in fresh.ledger() if row.step}
    assert last["install:arm-1"] == "unknown"
    assert "install:arm-2" not in last, "nothing is built on what nobody knows"
    again = fresh.run("030")
    assert again.status == 0, again.said
    assert {name: ready(node) for name, node in fresh.nodes().items()} == dict.fromkeys(NODES, True)
    assert fresh.launched() == WANTED
