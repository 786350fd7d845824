"""A cluster on live machines: a params file of site byo, and the stages run as a notebook would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machines import USER, LiveMachine

from hybridlab.cluster import Cluster, StageRun
from hybridlab.drivers.ssh import SshHosts
from hybridlab.params import read_params
from hybridlab.plan import Plan


@dataclass
class Home:
    """A folder with params, and the cluster it describes; ``settings`` are more parameters by dotted path."""

    folder: Path
    name: str
    machines: Sequence[LiveMachine]
    key: Path
    source: Path
    version: str
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what a node has otherwise, by name

    @property
    def params_file(self) -> Path:
        return self.folder / "params" / "byo.yaml"

    def open(self, **more: Any) -> Cluster:
        nodes = [
            {
                "name": machine.name,
                "role": "agent" if number else "server",
                # the agents' is found by looking
                **({} if number else {"arch": "amd64"}),
                "ocpus": 1,
                # the last of several counts as small: it gets swap and a taint
                "memory_gb": 1 if number and number == len(self.machines) - 1 else 4,
                "address": machine.address,
                **self.nodes.get(machine.name, {}),
            }
            for number, machine in enumerate(self.machines)
        ]
        bootstrap = {
            "ssh_user": USER,
            "ssh_key_file": str(self.key),
            "k3s_source": str(self.source),
            "k3s_version": self.version,
            "swap_gb": 1,
        }
        params = {"schema": 1, "cluster": self.name, "site": "byo", "nodes": nodes, "bootstrap": bootstrap}
        self.params_file.parent.mkdir(parents=True, exist_ok=True)
        self.params_file.write_text(json.dumps(params), encoding="utf-8")  # JSON is YAML
        found = read_params(self.params_file, {**self.settings, **more})
        said: list[str] = []
        return Cluster(found, root=self.folder, params_file=self.params_file, approvals=["all"], say=said.append)

    def plan(self, stage: str, **more: Any) -> Plan:
        return self.open(**more).stage(stage).plan()

    def run(self, stage: str, **more: Any) -> StageRun:
        """Look, plan, gate, apply, verify, hand over: raises what a notebook would show."""
        run = self.open(**more).stage(stage)
        run.look()
        run.plan()
        run.gate()
        run.apply()
        run.verify()
        run.hand_over()
        return run

    def ledger(self) -> list[Mapping[str, Any]]:
        path = self.folder / "state" / self.name / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Machine:
    """A live machine looked at from outside, beside the product's own connections."""

    machine: LiveMachine
    driver: SshHosts

    def out(self, *argv: str) -> str:
        return self.driver.run(self.machine.host, argv, sudo=True, check=False).stdout

    def lines(self, *argv: str) -> list[str]:
        return self.out(*argv).splitlines()

    def rules(self) -> list[str]:
        """Live rules without the chains that K3s keeps there."""
        return [line for line in self.lines("iptables", "-S") if "KUBE-ROUTER" not in line]

    def is_there(self, path: str) -> bool:
        return self.driver.run(self.machine.host, ["test", "-e", path], sudo=True, check=False).exit_status == 0

    def boot_id(self) -> str:
        return self.out("cat", "/proc/sys/kernel/random/boot_id")
