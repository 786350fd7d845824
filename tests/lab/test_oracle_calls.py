"""How often Oracle is asked: counted in the lab's request log, over whole commands as a user runs them."""

from __future__ import annotations

import json
import time

import oci
import pytest
from life import PARAMS, Life

BUDGET = 12  # calls of an unchanged run of 020


@pytest.fixture(scope="module")
def made(life: Life) -> Life:
    """A clone with 010 and 020 done."""
    done = life.run("010", "020")
    assert done.status == 0, done.said
    return life


def asked(life: Life, since: float) -> list[str]:
    """What Oracle was asked since then: method and the resource's kind."""
    done = life.hybridlab("lab", "log", "--part", "oracle", "--json", "--since", f"{since:f}")
    assert done.status == 0, done.said
    return [f"{row['verb']} {row['target'].split('/', 2)[2]}" for row in json.loads(done.out)]


def test_an_unchanged_020_asks_at_most_twelve_times(made: Life) -> None:
    since = time.time()
    done = made.run("020")
    assert done.status == 0, done.said
    calls = asked(made, since)
    assert len(calls) <= BUDGET, "\n".join(calls)
    assert all(call.startswith("GET ") for call in calls), calls
    # it really looked: machines, volumes, network and rules
    assert {"GET instances", "GET bootVolumes", "GET vcns", "GET subnets", "GET publicIps"} <= set(calls)
    assert any(call.endswith("/securityRules") for call in calls), calls
    # and the report's bill, which no longer asks by itself, has the machines
    bill = made.last_run()["bill"]
    assert sorted(m["name"] for m in bill["machines"]) == ["amd-1", "arm-1", "arm-2"]
    assert {row["resource"]: row["used"] for row in bill["lines"]}["volumes GB"] == 150
    assert not bill["problem"]


def test_status_and_010_ask_no_more_than_a_look_does(made: Life) -> None:
    for words, most in ((("status",), BUDGET), (("plan", "010"), 6), (("plan", "020"), BUDGET)):
        since = time.time()
        done = made.hybridlab(*words, "--params", PARAMS)
        assert done.status == 0, done.said
        calls = asked(made, since)
        assert 0 < len(calls) <= most, f"{words}: {calls}"


def test_what_was_remembered_is_no_substitute_for_looking(made: Life) -> None:
    """Somebody stops a VM in the console just after a run: the next run sees it, and its bill is of the VMs then."""
    done = made.run("020")
    assert done.status == 0, done.said
    compute, _ = made.oci(oci.core.ComputeClient)
    victim = next(vm for vm in made.instances() if vm.display_name == "amd-1")
    compute.instance_action(victim.id, "STOP")
    oci.wait_until(compute, compute.get_instance(victim.id), "lifecycle_state", "STOPPED", max_wait_seconds=60)
    assert [step["id"] for step in made.steps()["provision"]] == ["start:amd-1"]
    since = time.time()
    done = made.run("020")
    assert done.status == 0, done.said
    calls = asked(made, since)
    started = next(i for i, call in enumerate(calls) if call.startswith("POST instances/"))
    # after the change verify has listed everything again
    assert "GET securityLists" in calls[started:]
    assert {m["state"] for m in made.last_run()["bill"]["machines"]} == {"RUNNING"}
