"""A reboot on request: its steps and their order, asked for once, and what counts as proved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeKube, make_params, node

from hybridlab.errors import DeadlineExceeded, Refused, Unreachable
from hybridlab.models import CommandResult, HostAddress
from hybridlab.plan import Plan, Step
from hybridlab.stages import bootstrap, firewall
from hybridlab.stages.bootstrap import reboots
from hybridlab.stages.bootstrap.reboots import Request

VERSION = "v1.34.2+k3s1"
ON = {"bootstrap.prove_reboot": True}
BYO: dict[str, Any] = {
    "site": "byo",
    "nodes": [
        {"name": "amd-1", "role": "server", "arch": "amd64", "address": "10.0.0.1", "memory_gb": 4},
        {"name": "amd-2", "arch": "amd64", "address": "10.0.0.2", "memory_gb": 1},
    ],
}
ASKED = Request("boot-0", "2026-01-01T10:00:00.000+00:00")
PROVED = Request("boot-0", "2026-01-01T10:00:00.000+00:00", "boot-1", "2026-01-01T10:01:00.000+00:00")


def steps(asked: Mapping[str, Request], *changing: str) -> list[tuple[str, str]]:
    return [(s.id, s.why) for s in reboots.reboot_steps(make_params(ON, **BYO), asked, set(changing))]


# -- the plan ----------------------------------------------------------------------------------------------------------
def test_agents_first_one_at_a_time_and_each_drained() -> None:
    made = reboots.reboot_steps(make_params(ON, **BYO), {}, set())
    assert [s.id for s in made] == [
        "drain-to-reboot:amd-2",
        "reboot:amd-2",
        "use-again:amd-2",
        "drain-to-reboot:amd-1",
        "reboot:amd-1",
        "use-again:amd-1",
    ]
    assert not any(s.batch for s in made), "never two at the same time"
    assert all(s.why for s in made)
    assert all(s.action in bootstrap.ACTIONS for s in made)


def test_the_only_node_is_not_drained() -> None:
    alone = {**BYO, "nodes": BYO["nodes"][:1]}
    assert [s.id for s in reboots.reboot_steps(make_params(ON, **alone), {}, set())] == ["reboot:amd-1"]


def test_only_on_request() -> None:
    assert reboots.reboot_steps(make_params(None, **BYO), {}, {"amd-2"}) == []


def test_what_is_proved_is_left_alone_until_it_changes() -> None:
    both = {"amd-1": PROVED, "amd-2": PROVED}
    assert steps(both) == []
    assert [i for i, _ in steps(both, "amd-2")] == ["drain-to-reboot:amd-2", "reboot:amd-2", "use-again:amd-2"]


def test_what_was_asked_for_and_not_proved_is_gone_on_with() -> None:
    found = dict(steps({"amd-1": PROVED, "amd-2": ASKED}))
    assert found["reboot:amd-2"] == (
        "its reboot was asked for at 2026-01-01T10:00, and what came back is not proved yet"
    )


@pytest.mark.parametrize(
    ("step", "event", "effect", "kept"),
    [
        ("install:amd-2", "done", "create", False),
        ("open-firewall:amd-2", "done", "change", False),
        ("upgrade:amd-2", "done", "change", False),
        ("configure:amd-2", "done", "change", False),
        ("swap:amd-2", "done", "create", False),
        ("configure:amd-2", "failed", "change", True),
        ("label:amd-2", "done", "change", True),
        ("reboot:amd-2", "done", "change", True),
        ("install:amd-1", "done", "create", True),
    ],
)
def test_which_steps_undo_a_proof(tmp_path: Path, step: str, event: Any, effect: Any, kept: bool) -> None:
    ctx = FakeContext(tmp_path, make_params(ON, **BYO))
    reboots.remember(ctx, "amd-2", PROVED)
    ctx.ledger.add("bootstrap", step, event, effect=effect)
    assert ("amd-2" in reboots.requests(ctx)) is kept


def test_what_was_done_before_undoes_nothing(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, make_params(ON, **BYO))
    row = ctx.ledger.add("bootstrap", "install:amd-2", "done", effect="create")
    reboots.remember(ctx, "amd-2", Request("a", row.time, "b", row.time))
    assert "amd-2" in reboots.requests(ctx)


# -- the reboot --------------------------------------------------------------------------------------------------------
class Machine:
    """One machine that reboots: gone for some looks, then there in another boot, with the rules of its file."""

    def __init__(self, folder: Path, *, name: str = "amd-2", saved: str = "", returns: bool = True) -> None:
        self.boots, self.down, self.returns, self.asked = 0, 0, returns, 0
        self.live, self.saved, self.swap = "", saved, "/swapfile-hybridlab"
        self.starting = 2  # looks until K3s is active
        self.kube = FakeKube(nodes=[node("amd-1", "amd64"), node("amd-2", "amd64")])
        self.renewals = 0
        self.name = name
        self.ctx = FakeContext(folder, make_params(ON, **BYO), hosts=FakeHosts(self.answer), kube=self.kube)
        self.ctx.hosts.wait_for_ssh = self.wait_for_ssh
        answer = self.ctx.hosts.run

        def run(host: HostAddress, argv: Any, **options: Any) -> CommandResult:
            if self.down:
                raise Unreachable("no SSH connection", where=host.name)
            self.renewals += 1
            self.lease()
            return answer(host, argv, **options)  # type: ignore[no-any-return]

        self.ctx.hosts.run = run

    def lease(self) -> None:
        spec = {"renewTime": f"2026-01-01T10:00:{self.renewals // 6:02d}Z"}
        meta = {"name": self.name, "namespace": "kube-node-lease"}
        self.kube.put({"kind": "Lease", "metadata": meta, "spec": spec})

    def wait_for_ssh(self, host: HostAddress, deadline_s: float) -> None:
        if self.down and self.returns:
            self.down -= 1
        if self.down:
            raise DeadlineExceeded("gave up waiting for SSH")

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv == ("systemctl", "reboot"):
            self.asked += 1
            self.boots, self.down, self.live, self.starting = self.boots + 1, 3, self.saved, 2
        if argv[:2] == ("systemctl", "is-active") and argv[2].startswith("k3s"):
            self.starting = max(0, self.starting - 1)
            return (3, "activating") if self.starting else (0, "active")
        said = {
            ("cat", "/proc/sys/kernel/random/boot_id"): f"boot-{self.boots}\n",
            ("iptables", "-S"): self.live,
            ("cat", firewall.RULES_FILE): self.saved,
            ("swapon", "--show=NAME", "--noheadings", "--raw"): self.swap,
            ("uname", "-m"): "x86_64",
        }
        return 0, said.get(argv, "")

    def reboot(self) -> Mapping[str, Any]:
        return bootstrap.ACTIONS["reboot"](
            self.ctx, Step(f"reboot:{self.name}", "reboot", self.name, "", "change", {"node": self.name})
        )

    @property
    def request(self) -> Request:
        return reboots.requests(self.ctx)[self.name]


def test_a_reboot_is_waited_out_and_proved(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.reboot() == {"boot": "boot-1", "before": "boot-0"}
    assert (machine.request.asked_boot, machine.request.proved_boot) == ("boot-0", "boot-1")
    assert machine.request.proved
    assert machine.reboot() == {"changed": False}
    assert machine.asked == 1


def test_a_run_killed_after_the_reboot_does_not_reboot_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    reboots.remember(machine.ctx, "amd-2", Request("boot-0", "2026-01-01T10:00:00.000+00:00"))
    machine.boots = 1  # it went through its reboot while nobody looked
    assert machine.reboot() == {"boot": "boot-1", "before": "boot-0", "rebooted_before": True}
    assert machine.asked == 0
    assert machine.request.proved


def test_a_run_killed_before_the_reboot_goes_on_with_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    reboots.remember(machine.ctx, "amd-2", Request("boot-0", "2026-01-01T10:00:00.000+00:00"))
    machine.reboot()
    assert machine.asked == 1


def test_it_is_remembered_before_it_is_asked_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    answer = machine.ctx.hosts.answer

    def killed(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv == ("systemctl", "reboot"):
            raise KeyboardInterrupt
        return answer(name, argv)  # type: ignore[no-any-return]

    machine.ctx.hosts.answer = killed
    with pytest.raises(KeyboardInterrupt):
        machine.reboot()
    assert (machine.request.asked_boot, machine.request.proved) == ("boot-0", "")


def test_a_machine_that_does_not_come_back_ends_at_the_deadline(tmp_path: Path) -> None:
    machine = Machine(tmp_path, returns=False)
    with pytest.raises(DeadlineExceeded, match="amd-2 to come back from its reboot after 600 s") as caught:
        machine.reboot()
    assert "no SSH" in caught.value.why
    assert "without rebooting twice" in caught.value.next_move
    machine.returns = True
    machine.down = 0
    machine.reboot()
    assert machine.asked == 1


def test_rules_that_come_back_are_named_and_nothing_is_proved(tmp_path: Path) -> None:
    rule = "-A INPUT -j REJECT --reject-with icmp-host-prohibited"
    machine = Machine(tmp_path, saved=rule)
    with pytest.raises(Refused, match="not everything survived the reboot of amd-2") as caught:
        machine.reboot()
    assert caught.value.why == f"live: {rule}; in the file: {rule}"
    assert "repairs what differs" in caught.value.next_move
    assert not machine.request.proved


def test_a_small_node_without_its_swap_is_not_as_before(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.swap = ""
    with pytest.raises(Refused, match="/swapfile-hybridlab is not in use"):
        machine.reboot()


def test_ready_as_before_the_reboot_proves_nothing(tmp_path: Path) -> None:
    """The API shows a node Ready for up to forty seconds after its kubelet is gone: only a renewed lease counts."""
    machine = Machine(tmp_path)
    machine.lease = lambda: None  # type: ignore[method-assign]
    meta = {"name": "amd-2", "namespace": "kube-node-lease"}
    machine.kube.put({"kind": "Lease", "metadata": meta, "spec": {"renewTime": "2026-01-01T09:00:00Z"}})
    with pytest.raises(DeadlineExceeded, match="Ready, as it was before the reboot"):
        machine.reboot()


def test_k3s_that_does_not_come_back_is_told_with_its_journal(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    answer = machine.ctx.hosts.answer

    def failed(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "journalctl":
            return 0, "level=fatal msg=no-token"
        return (3, "failed") if argv == ("systemctl", "is-active", "k3s-agent") else answer(name, argv)

    machine.ctx.hosts.answer = failed
    with pytest.raises(DeadlineExceeded, match="k3s-agent is failed; its journal: level=fatal msg=no-token"):
        machine.reboot()


# -- the proof ---------------------------------------------------------------------------------------------------------
def test_verify_says_of_each_node_whether_it_is_proved(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, make_params(ON, **BYO))
    reboots.remember(ctx, "amd-1", ASKED)
    reboots.remember(ctx, "amd-2", PROVED)
    checks = {c.name: c for c in reboots.reboot_checks(ctx)}
    assert {name: c.ok for name, c in checks.items()} == {"reboot amd-1": False, "reboot amd-2": True}
    assert checks["reboot amd-1"].next_move == "run 030 again"
    assert "2026-01-01T10:01" in checks["reboot amd-2"].evidence
    off = FakeContext(tmp_path / "off", make_params(None, **BYO))
    assert reboots.reboot_checks(off) == ()


def test_a_node_left_out_of_use_is_used_again_after_its_reboot_and_not_before(tmp_path: Path) -> None:
    labels = {"hybridlab.io/cluster": "homelab", "hybridlab.io/role": "agent", "hybridlab.io/upgrading": "true"}
    rows = (node("amd-1", "amd64"), node("amd-2", "amd64", labels=labels))
    ctx = FakeContext(tmp_path, make_params(ON, **BYO), hosts=FakeHosts(), kube=FakeKube(nodes=rows))

    def planned(asked: Mapping[str, Request]) -> Plan:
        wanted = {
            w.name: bootstrap.k3s.wanted_config(ctx.params, w, str(w.address), str(w.address), "10.0.0.1")
            for w in ctx.params.wishes
        }
        hosts = {
            w.name: bootstrap.HostSeen(
                str(w.address), str(w.address), "x86_64", "homelab", (), (), (), ("/swapfile-hybridlab",), VERSION,
                wanted[w.name], "active",
            )
            for w in ctx.params.wishes
        }  # fmt: skip
        seen = bootstrap.Seen(hosts, rows, "ok", VERSION, (), asked)
        upstream = {"provision": {"nodes": [{"name": w.name, "private_ip": w.address} for w in ctx.params.wishes]}}
        return bootstrap.plan(ctx.params, seen, upstream)

    ids = [s.id for s in planned({"amd-1": PROVED, "amd-2": ASKED}).steps if s.action == "uncordon"]
    assert ids == ["use-again:amd-2"]
    ids = [s.id for s in planned({"amd-1": PROVED, "amd-2": PROVED}).steps if s.action == "uncordon"]
    assert ids == ["uncordon:amd-2"]
