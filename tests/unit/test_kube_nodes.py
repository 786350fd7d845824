"""What a pod asks for, and what is left of a node."""

from __future__ import annotations

from typing import Any

import pytest

from hybridlab.drivers._kube_nodes import node_infos, pod_requests

MI = 2**20


def asks(cpu: str, memory: str = "0", **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": memory}}, **more}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [{}]}, (0, 0)),
        ({"containers": [asks("100m", "64Mi"), asks("0.2", "1Mi")]}, (300, 65 * MI)),
        ({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "2Mi"}}}]}, (1000, 2 * MI)),
        ({"containers": [asks("100m", "1Mi")], "initContainers": [asks("1", "0"), asks("50m", "5Mi")]}, (1000, 5 * MI)),
        # a sidecar runs beside the others, and beside the init containers after it
        (
            {"containers": [asks("100m")], "initContainers": [asks("50m", restartPolicy="Always"), asks("200m")]},
            (250, 0),
        ),
        (
            {"containers": [asks("100m")], "initContainers": [asks("200m"), asks("50m", restartPolicy="Always")]},
            (200, 0),
        ),
        ({"containers": [asks("100m", "1Mi")], "overhead": {"cpu": "10m", "memory": "3Mi"}}, (110, 4 * MI)),
        ({"containers": [asks("100m", "1Mi")], "resources": {"requests": {"cpu": "1"}}}, (1000, 1 * MI)),
    ],
)
def test_pod_requests(spec: dict[str, Any], expected: tuple[int, int]) -> None:
    assert pod_requests(spec) == expected


def node(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"a": "b"}},
        "spec": spec,
        "status": {
            "nodeInfo": {"architecture": "arm64", "kubeletVersion": "v1"},
            "conditions": [
                {"type": "MemoryPressure", "status": "False"},
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ],
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "10.0.0.2"}],
            "capacity": {"cpu": "2", "memory": "200Mi"},
            "allocatable": {"cpu": "2", "memory": "100Mi"},
        },
    }


def pod(node_name: str | None, phase: str, cpu: str) -> dict[str, Any]:
    return {"spec": {"nodeName": node_name, "containers": [asks(cpu, "10Mi")]}, "status": {"phase": phase}}


def test_free_is_allocatable_minus_what_running_and_pending_pods_ask_for() -> None:
    pods = [
        pod("a", "Running", "500m"),
        pod("a", "Pending", "100m"),
        pod("a", "Succeeded", "1"),
        pod("a", "Failed", "1"),
        pod("b", "Running", "1500m"),
        pod(None, "Pending", "1"),
    ]
    a, b = node_infos([node("b"), node("a")], pods)
    assert (a.name, a.cpu_m, a.cpu_free_m, a.memory, a.memory_free) == ("a", 2000, 1400, 100 * MI, 80 * MI)
    assert (b.name, b.cpu_free_m) == ("b", 500)
    assert (a.arch, a.ready, a.ready_since, a.internal_ip) == ("arm64", True, "2026-01-01T00:00:00Z", "10.0.0.2")


def test_taints_and_cordon() -> None:
    taints = [{"key": "small", "effect": "NoSchedule"}, {"key": "k", "value": "v", "effect": "NoExecute"}]
    (found,) = node_infos([node("a", unschedulable=True, taints=taints)], [])
    assert found.taints == (("small", "", "NoSchedule"), ("k", "v", "NoExecute"))
    assert not found.schedulable
