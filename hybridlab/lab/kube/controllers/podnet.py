"""The network between pods, answered from the rules of the machines: the node helper's ``probe`` in a pod.

A pod of the lab has an address and no sockets. A pod whose command is the helper's ``listen`` counts as listening on
its ports; whether another reaches it depends on what the machines' firewalls let through, as on a real overlay network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hybridlab.lab.kube.controllers.objects import POD, Obj, is_ready, labels_of, spec_of, status_of
from hybridlab.lab.kube.controllers.process import Write
from hybridlab.lab.kube.controllers.work import Context

API_NAME = "kubernetes.default.svc.cluster.local"
DNS_LABEL = "kube-dns"
UNRESOLVED = "Temporary failure in name resolution"


class PodNet:
    """Who can talk to whom."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def answer(self, pod: Obj, argv: Sequence[str], stdout: Write) -> int | None:
        """The helper's ``probe`` of pods' addresses and of the API's name; None for anything else."""
        if len(argv) < 4 or not argv[1].endswith("node_helper.py") or argv[2] != "probe":
            return None
        words, size, timeout = list(argv[3:]), 64, 2.0
        while words and words[0].startswith("--"):
            option, value = words.pop(0), words.pop(0)
            size = int(value) if option == "--size" else size
            timeout = float(value) if option == "--timeout" else timeout
        hosts = {target.rpartition(":")[0] for target in words}
        if not hosts <= {API_NAME, *(status_of(p).get("podIP") for p in self.context.peek(POD))}:
            return None
        rows = [self._row(pod, target, size, timeout) for target in words]
        if any(row["ms"] > 1000 * timeout - 1 for row in rows):
            await self.context.takes(timeout)
        await stdout(json.dumps(rows).encode() + b"\n")
        return 0

    def _row(self, pod: Obj, target: str, size: int, timeout: float) -> dict[str, Any]:
        address, _, kind = target.rpartition("/")
        host, _, port = address.rpartition(":")
        state, error = self._by_name(pod) if host == API_NAME else self._by_address(pod, host, kind, port)
        row: dict[str, Any] = {"target": target, "size": size, "state": state, "ms": 0.5}
        if state in ("filtered", "silent"):
            row["ms"] = timeout * 1000
        return {**row, **({"error": error} if error else {})}

    def _by_name(self, pod: Obj) -> tuple[str, str]:
        """The API's service by its name: a DNS pod must be reached first."""
        for other in self.context.peek(POD, "kube-system"):
            if labels_of(other).get("k8s-app") == DNS_LABEL and is_ready(other) and self._reaches(pod, other):
                return "open", ""
        return "refused", UNRESOLVED

    def _by_address(self, pod: Obj, ip: str, kind: str, port: str) -> tuple[str, str]:
        other = next((p for p in self.context.peek(POD) if status_of(p).get("podIP") == ip and is_ready(p)), None)
        if other is None or not self._reaches(pod, other):
            return ("filtered" if kind == "tcp" else "silent"), ""
        command = spec_of(other)["containers"][0].get("command") or []
        if "listen" in command and port in command:
            return "echo", ""
        return "refused", "Connection refused"

    def _reaches(self, pod: Obj, other: Obj) -> bool:
        here, there = status_of(pod).get("hostIP"), status_of(other).get("hostIP")
        return here == there or self.context.world.kube.traffic_ok(str(here), str(there))
