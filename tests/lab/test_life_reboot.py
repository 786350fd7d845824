"""A reboot of every node on request: one at a time, once for one request, and proved by looking."""

from __future__ import annotations

import signal

import pytest
from life import Life, promptly

from hybridlab.errors import HybridlabError, StepFailed
from hybridlab.stages.nodes import need_host

REBOOT = "bootstrap.prove_reboot=true"
REJECT = "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n"


@pytest.fixture(scope="module")
def built(life: Life) -> Life:
    life.make("provision", "bootstrap")
    return life


def boots(life: Life) -> dict[str, str]:
    cluster = life.cluster()
    argv = ["cat", "/proc/sys/kernel/random/boot_id"]
    return {w.name: cluster.hosts.run(need_host(cluster, w.name).host, argv).stdout for w in cluster.params.wishes}


def steps(life: Life, *sets: str) -> list[str]:
    return [step.id for step in life.cluster(REBOOT, *sets).stage("bootstrap").plan().steps]


def test_a_killed_run_goes_on_without_rebooting_twice(built: Life) -> None:
    before = boots(built)
    with built.running("030", "--set", REBOOT) as process:
        built.await_row("started", "reboot:arm-2")
        evidence = built.state / "evidence" / "reboots.json"
        promptly(evidence.exists, bool, "the reboot to be remembered")
        cluster = built.cluster()
        host = need_host(cluster, "arm-2").host

        def rebooted() -> bool:
            try:
                return cluster.hosts.run(host, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before["arm-2"]
            except HybridlabError:
                return False

        cluster.hosts.wait_for_ssh(host, 60)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
        promptly(rebooted, bool, "arm-2 to be in another boot")
    first = boots(built)
    assert first["arm-1"] == before["arm-1"]
    assert "reboot:arm-2" in steps(built), "what came back is not proved yet"
    done = built.run("030", "--set", REBOOT)
    assert done.status == 0, done.said
    after = boots(built)
    assert after["arm-2"] == first["arm-2"], "one request, one reboot"
    assert after["amd-1"] != before["amd-1"]
    assert after["arm-1"] != before["arm-1"]
    order = [r.step.partition(":")[2] for r in built.ledger() if r.event == "done" and r.step.startswith("reboot:")]
    assert order == ["arm-2", "amd-1", "arm-1"], "agents first"
    assert all(n["spec"].get("unschedulable") is None for n in built.nodes().values()), "in use again"


def test_a_second_run_reboots_nothing_and_says_what_is_proved(built: Life) -> None:
    built.make("bootstrap", sets=(REBOOT,))
    before = boots(built)
    assert steps(built) == []
    again = built.make("bootstrap", sets=(REBOOT,))
    checks = {c.name: c for c in again.verify()}
    assert all(checks[f"reboot {name}"].ok for name in before)
    assert checks["pod-traffic"].ok
    assert boots(built) == before


def test_a_rule_that_is_only_in_the_file_comes_back_and_is_told(built: Life) -> None:
    """What 030 repairs is proved anew; rules that something writes back before the reboot are named by its step."""
    cluster = built.cluster()
    host = need_host(cluster, "amd-1").host
    rules = cluster.hosts.get(host, "/etc/iptables/rules.v4", sudo=True).decode()
    cluster.evidence.drop("reboots")
    run = built.cluster(REBOOT).stage("bootstrap")
    run.plan()
    spoiled = rules.replace("COMMIT", REJECT + "COMMIT", 1)
    cluster.hosts.put(host, spoiled.encode(), "/etc/iptables/rules.v4", mode=0o640, sudo=True)
    with pytest.raises(StepFailed) as caught:
        run.apply()
    assert "not everything survived the reboot of amd-1" in str(caught.value)
    assert REJECT.strip() in str(caught.value)
    assert "run 030 again" in caught.value.next_move
    assert [s for s in steps(built) if s.endswith(":amd-1")] == [
        "open-firewall:amd-1",
        "drain-to-reboot:amd-1",
        "reboot:amd-1",
        "use-again:amd-1",
    ]
    built.make("bootstrap", sets=(REBOOT,))
    assert steps(built) == []
