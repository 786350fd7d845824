"""030 with another version: the server first, agents one by one and drained, never back and never over a minor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, make_params, node
from test_bootstrap import VERSION, ids, plan, seen

from hybridlab.errors import NotFound
from hybridlab.models import HostAddress
from hybridlab.stages import bootstrap, datastore
from hybridlab.stages.bootstrap.upgrading import version_of
from hybridlab.stages.drains import UPGRADING
from hybridlab.stages.nodes import NodeHost

OLD = "v1.33.4+k3s1"
ALL_OLD = {name: {"k3s_version": OLD} for name in ("arm-1", "arm-2", "amd-1")}


def test_server_first_then_agent_by_agent() -> None:
    made = plan(seen(ALL_OLD))
    assert [s.id for s in made.steps] == [
        "snapshot:arm-1",
        "upgrade:arm-1",
        "drain:arm-2",
        "upgrade:arm-2",
        "uncordon:arm-2",
        "drain:amd-1",
        "upgrade:amd-1",
        "uncordon:amd-1",
    ]
    assert {s.batch for s in made.steps} == {""}, "one after the other"
    assert made.steps[1].why == f"K3s is {OLD}, wanted {VERSION}"
    assert all(s.action in bootstrap.ACTIONS for s in made.steps)
    assert made.findings == ()


def test_only_the_agent_that_lags() -> None:
    assert ids(seen({"arm-2": {"k3s_version": OLD}})) == ["drain:arm-2", "upgrade:arm-2", "uncordon:arm-2"]


def test_an_agent_that_is_not_in_the_cluster_is_not_drained() -> None:
    assert ids(seen({"arm-2": {"k3s_version": OLD}}, {"arm-2": ...})) == ["upgrade:arm-2"]


def test_what_a_broken_run_left_cordoned_is_put_back() -> None:
    labels = {**node("arm-2").labels, UPGRADING: "true"}
    made = plan(seen({}, {"arm-2": {"labels": labels, "schedulable": False}}))
    assert [(s.id, s.why) for s in made.steps] == [
        ("uncordon:arm-2", "a run that broke off left it out of use"),
    ]
    assert ids(seen({}, {"arm-2": {"schedulable": False}})) == [], "somebody else's cordon is left alone"


@pytest.mark.parametrize(
    ("has", "level"),
    [
        ("v1.34.1+k3s1", None),
        ("v1.33.9+k3s2", None),
        ("v1.34.2-rc1+k3s1", None),
        ("v1.32.1+k3s1", "skips a minor version"),
        ("v1.34.3+k3s1", "going back"),
        ("v1.35.0+k3s1", "going back"),
        ("v1.34.2+k3s2", "going back"),
        ("nonsense", None),
    ],
)
def test_which_steps_are_refused(has: str, level: str | None) -> None:
    made = plan(seen({"arm-2": {"k3s_version": has}}))
    assert [f.subject for f in made.refusals] == (["arm-2"] if level else [])
    assert level is None or level in made.refusals[0].text
    assert all(f.next_move for f in made.refusals)


def test_versions_are_compared_as_numbers() -> None:
    assert version_of("v1.9.2+k3s1") < version_of("v1.10.0+k3s1") < version_of("v1.10.0+k3s10")
    assert version_of("") == ()


# -- the datastore -----------------------------------------------------------------------------------------------------
class Disk:
    """The server's folders as commands see them."""

    def __init__(self) -> None:
        self.folders: dict[str, set[str]] = {
            datastore.SERVER: {"db", "token", "cred", "tls", "static"},
            datastore.SNAPSHOTS: set(),
        }
        self.running = True
        self.copied_while_running = False

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "ls":
            return 0, "\n".join(sorted(n for n in self.folders[argv[-1]] if not n.startswith("."))) + "\n"
        if argv[0] == "systemctl" and argv[1] in ("stop", "start"):
            self.running = argv[1] == "start"
        elif argv[0] == "mkdir":
            parent, _, leaf = argv[-1].rpartition("/")
            self.folders.setdefault(parent, set()).add(leaf)
            self.folders.setdefault(argv[-1], set())
        elif argv[0] == "cp":
            self.copied_while_running |= self.running
            self.folders[argv[-1]] |= {part.rpartition("/")[2] for part in argv[2:-1]}
        elif argv[0] == "mv":
            source, target = argv[1], argv[2]
            parent, _, leaf = source.rpartition("/")
            self.folders[parent].discard(leaf)
            if source in self.folders:
                self.folders[target] = self.folders.pop(source)
                self.folders[parent].add(target.rpartition("/")[2])
            else:
                self.folders[target].add(leaf)
        return 0, ""


def server(tmp_path: Path, disk: Disk) -> tuple[Any, NodeHost]:
    ctx = FakeContext(tmp_path, make_params(), hosts=FakeHosts(disk.answer))
    address = HostAddress("arm-1", "198.51.100.1")
    return ctx, NodeHost(ctx.params.server, address, "10.0.0.11", address.address)


def test_a_snapshot_is_taken_while_k3s_is_down_and_put_back(tmp_path: Path) -> None:
    disk = Disk()
    ctx, host = server(tmp_path, disk)
    name = "20260102T030405Z-before-upgrade"
    assert datastore.take_snapshot(ctx, host, name)["files"] == 4
    assert disk.folders[f"{datastore.SNAPSHOTS}/{name}"] == {"db", "token", "cred", "tls"}
    assert (disk.running, disk.copied_while_running) == (True, False)
    assert datastore.snapshots(ctx, host) == (name,)
    datastore.restore_snapshot(ctx, host, name)
    assert disk.folders[datastore.SERVER] == {"db", "token", "cred", "tls", "static"}
    assert disk.folders[f"{datastore.SNAPSHOTS}/.replaced"] == {"db", "token", "cred", "tls"}
    assert (disk.running, disk.copied_while_running) == (True, False)
    with pytest.raises(NotFound, match="no snapshot other"):
        datastore.restore_snapshot(ctx, host, "other")
