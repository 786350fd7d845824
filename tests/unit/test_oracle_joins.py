"""Which boot volume is whose, told by tags: only where no other answer is possible; else Oracle is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hybridlab.drivers._oracle_reads import told_by_tags

ONE, TWO = {"hybridlab": "homelab", "hybridlab-node": "one"}, {"hybridlab": "homelab", "hybridlab-node": "two"}


def machine(ident: str, tags: dict[str, str], state: str = "RUNNING") -> Any:
    return SimpleNamespace(id=ident, freeform_tags=tags, lifecycle_state=state)


def volume(ident: str, tags: dict[str, str], state: str = "AVAILABLE") -> Any:
    return SimpleNamespace(id=ident, freeform_tags=tags, lifecycle_state=state)


M1, M2, V1, V2 = machine("m1", ONE), machine("m2", TWO), volume("v1", ONE), volume("v2", TWO)
CASES: dict[str, tuple[list[Any], list[Any], dict[str, str] | None]] = {
    "nothing there": ([], [], {}),
    "each its own": ([M1, M2], [V2, V1], {"m1": "v1", "m2": "v2"}),
    "more tags on the volume": ([M1], [volume("v1", {**ONE, "mine": "yes"})], {"m1": "v1"}),
    "a volume left over": ([M1], [V1, V2], None),
    "the new volume of a VM is not tagged, its old one is": ([M1], [V1, volume("v3", {})], None),
    "a volume missing": ([M1, M2], [V1], None),
    "somebody's VM without tags": ([M1, machine("x", {})], [V1, volume("y", {})], None),
    "not tagged yet": ([M1], [volume("v1", {})], None),
    "tags of another": ([M1], [V2], None),
    "two VMs with the same tags": ([M1, machine("m3", ONE)], [V1, volume("v3", ONE)], None),
    "a VM that claims both": ([M1, machine("m3", {"hybridlab": "homelab"})], [V1, V2], None),
    "stopped: it may have been detached": ([machine("m1", ONE, "STOPPED")], [V1], None),
    "the volume is coming": ([M1], [volume("v1", ONE, "PROVISIONING")], None),
}


@pytest.mark.parametrize(("machines", "volumes", "told"), CASES.values(), ids=CASES.keys())
def test_told_by_tags(machines: list[Any], volumes: list[Any], told: dict[str, str] | None) -> None:
    assert told_by_tags(machines, volumes) == told
