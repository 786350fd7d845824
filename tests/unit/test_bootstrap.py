"""030: exactly two firewall rules go; K3s' settings; the steps for what is missing or drifted, and nothing more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeKube, FakeOracle, make_params, node, vm
from ruamel.yaml import YAML

from hybridlab.errors import BadInput, DeadlineExceeded, NotFound, Refused
from hybridlab.models import HostAddress
from hybridlab.plan import Plan, Step, unknown
from hybridlab.stages import bootstrap, firewall
from hybridlab.stages.bootstrap import HostSeen, Seen, k3s

INPUT = "-A INPUT -j REJECT --reject-with icmp-host-prohibited"
FORWARD = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"
KEPT = """\
# made by the image
*filter
:INPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-port-unreachable
-A INPUT -s 10.0.0.9/32 -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT -j REJECT
-A INPUT -j REJECT --reject-with icmp-host-prohibited-not
#-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A OUTPUT -d 169.254.0.0/16 -j InstanceServices
-A InstanceServices -d 169.254.2.0/24 -p tcp -m owner --uid-owner 0 -m tcp --dport 3260 -j ACCEPT
COMMIT
"""
RULES = KEPT.replace("-A OUTPUT -d", f"{INPUT}\n{FORWARD}\n-A OUTPUT -d")


# -- firewall ----------------------------------------------------------------------------------------------------------
def test_exactly_two_lines_go_and_all_others_stay() -> None:
    assert firewall.rejects_in(RULES) == (INPUT, FORWARD)
    assert firewall.without_rejects(RULES) == KEPT
    assert firewall.rejects_in(KEPT) == ()
    assert firewall.without_rejects(KEPT) == KEPT


def test_a_rule_that_stands_twice_counts_twice() -> None:
    assert firewall.rejects_in(f"{INPUT}\n  {INPUT}\n") == (INPUT, INPUT)
    assert firewall.without_rejects(f"a\n{INPUT}\n  {INPUT}\nb") == "a\nb"


class Host:
    """One host's firewall: live rules and the saved file, changed by the commands that a real one takes."""

    def __init__(self, live: str = RULES, saved: str | None = RULES) -> None:
        self.live = live.splitlines()
        self.hosts = FakeHosts(self.answer)
        if saved is not None:
            self.hosts.files["h", firewall.RULES_FILE] = saved.encode()

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv == ("iptables", "-S"):
            return 0, "\n".join(self.live) + "\n"
        if argv[:2] == ("iptables", "-D"):
            self.live.remove("-A " + " ".join(argv[2:]))
        elif argv[:2] == ("iptables", "-A"):
            self.live.append(" ".join(argv[1:]))
        elif argv[0] == "cat":
            held = self.hosts.files.get((name, argv[1]))
            return (0, held.decode()) if held is not None else (1, "")
        elif argv[:2] == ("test", "-e"):
            return (0 if (name, argv[2]) in self.hosts.files else 1), ""
        else:
            raise AssertionError(f"unexpected command {argv}")
        return 0, ""

    def file(self, path: str) -> str:
        return self.hosts.files["h", path].decode()


ADDRESS = HostAddress("h", "198.51.100.1")


def test_opening_the_firewall_live_and_saved(tmp_path: Path) -> None:
    host = Host()
    ctx = FakeContext(tmp_path, hosts=host.hosts)
    assert firewall.open_firewall(ctx, ADDRESS) == {"live_removed": 2, "file_removed": 2}
    assert host.live == KEPT.splitlines()
    assert host.file(firewall.RULES_FILE) == KEPT
    assert host.file(firewall.ORIGINAL) == RULES
    assert host.hosts.modes["h", firewall.ORIGINAL] == 0o600
    before = dict(host.hosts.files)
    assert firewall.open_firewall(ctx, ADDRESS) == {"live_removed": 0, "file_removed": 0}
    assert (host.live, host.hosts.files) == (KEPT.splitlines(), before)


def test_the_original_is_kept_from_the_first_time(tmp_path: Path) -> None:
    host = Host()
    ctx = FakeContext(tmp_path, hosts=host.hosts)
    firewall.open_firewall(ctx, ADDRESS)
    host.hosts.files["h", firewall.RULES_FILE] = f"{INPUT}\n".encode()
    firewall.open_firewall(ctx, ADDRESS)
    assert host.file(firewall.RULES_FILE) == ""
    assert host.file(firewall.ORIGINAL) == RULES


def test_only_live_or_only_saved(tmp_path: Path) -> None:
    host = Host(live=KEPT)
    assert firewall.open_firewall(FakeContext(tmp_path, hosts=host.hosts), ADDRESS) == {
        "live_removed": 0,
        "file_removed": 2,
    }
    host = Host(saved=None)
    assert firewall.open_firewall(FakeContext(tmp_path, hosts=host.hosts), ADDRESS) == {
        "live_removed": 2,
        "file_removed": 0,
    }
    assert host.hosts.files == {}


def test_closing_puts_back_what_was_there(tmp_path: Path) -> None:
    host = Host()
    ctx = FakeContext(tmp_path, hosts=host.hosts)
    firewall.open_firewall(ctx, ADDRESS)
    assert firewall.close_firewall(ctx, ADDRESS) == {"restored": 2}
    assert host.file(firewall.RULES_FILE) == RULES
    assert host.live[-2:] == [INPUT, FORWARD]
    assert firewall.close_firewall(ctx, ADDRESS) == {"restored": 0}


def test_closing_keeps_what_others_changed_since(tmp_path: Path) -> None:
    host = Host()
    ctx = FakeContext(tmp_path, hosts=host.hosts)
    firewall.open_firewall(ctx, ADDRESS)
    mine = KEPT.replace("-A INPUT -p icmp", "-A INPUT -p tcp --dport 443 -j ACCEPT\n-A INPUT -p icmp")
    host.hosts.files["h", firewall.RULES_FILE] = mine.encode()
    firewall.close_firewall(ctx, ADDRESS)
    saved = host.file(firewall.RULES_FILE)
    assert firewall.without_rejects(saved) == mine
    assert firewall.rejects_in(saved) == (INPUT, FORWARD)
    assert saved.index(INPUT) > saved.rindex("\n-A INPUT -p"), "after the rules that accept"
    assert saved.index(FORWARD) < saved.index("COMMIT")


def test_closing_what_was_never_opened_adds_nothing(tmp_path: Path) -> None:
    host = Host(live=KEPT, saved=KEPT)
    assert firewall.close_firewall(FakeContext(tmp_path, hosts=host.hosts), ADDRESS) == {"restored": 0}
    assert host.live == KEPT.splitlines()


# -- settings ----------------------------------------------------------------------------------------------------------
PARAMS = make_params()
SERVER, AGENT, SMALL = PARAMS.wishes


def config(wish: Any = SERVER, **changes: Any) -> dict[str, Any]:
    return k3s.wanted_config(make_params(changes), wish, "10.0.0.2", "198.51.100.2", "10.0.0.1")


def test_server_settings() -> None:
    assert config() == {
        "node-name": "arm-1",
        "node-ip": "10.0.0.2",
        "tls-san": ["10.0.0.2", "198.51.100.2"],
        "write-kubeconfig-mode": "0600",
        "flannel-backend": "vxlan",
        "secrets-encryption": True,
        "disable": ["traefik"],
        "node-label": ["hybridlab.io/cluster=homelab", "hybridlab.io/role=server"],
    }


def test_agent_settings() -> None:
    assert config(AGENT) == {
        "node-name": "arm-2",
        "node-ip": "10.0.0.2",
        "server": "https://10.0.0.1:6443",
        "node-label": ["hybridlab.io/cluster=homelab", "hybridlab.io/role=agent"],
    }


def test_small_node_settings() -> None:
    small = config(SMALL)
    assert small["node-taint"] == ["hybridlab.io/small=true:NoSchedule"]
    assert small["kubelet-arg"] == ["kube-reserved=memory=100Mi", "system-reserved=memory=100Mi"]
    assert "node-taint" not in config(SMALL, **{"bootstrap.taint_small": False})
    assert "kubelet-arg" in config(SMALL, **{"bootstrap.taint_small": False})


@pytest.mark.parametrize(("gb", "small"), [(0.5, True), (1.9, True), (2, False), (6, False)])
def test_small_is_below_two_gigabytes(gb: float, small: bool) -> None:
    assert ("node-taint" in config(replace(SMALL, memory_gb=gb))) is small


@pytest.mark.parametrize(
    ("changes", "disabled"),
    [
        ({"bootstrap.traefik": True}, False),
        ({"expose.method": "traefik"}, False),
        ({"expose.method": "none"}, True),
    ],
)
def test_traefik_is_off_unless_wanted(changes: dict[str, Any], disabled: bool) -> None:
    assert ("disable" in config(**changes)) is disabled


def test_labels_of_ones_own() -> None:
    labels = config(**{"bootstrap.labels": {"zone": "home", "a": "b"}})["node-label"]
    assert labels == ["a=b", "hybridlab.io/cluster=homelab", "hybridlab.io/role=server", "zone=home"]


def test_config_round_trip_without_the_token() -> None:
    text = k3s.dump_config(config(), "K10abc::server:def").decode()
    assert "token: K10abc::server:def" in text
    assert k3s.read_config(text) == config()
    assert k3s.read_config("agent-token: x\nserver: y\n") == {"server": "y"}
    for nothing in ("", "- a\n", "a: [\n", "words"):
        assert k3s.read_config(nothing) == {}


def test_config_changes() -> None:
    assert k3s.config_changes(config(), config()) == ()
    live = {**config(), "flannel-backend": "wireguard-native", "extra": 1}
    del live["disable"]
    assert k3s.config_changes(config(), live) == ("disable", "extra", "flannel-backend")


# -- the release -------------------------------------------------------------------------------------------------------
SUM, OTHER_SUM = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        (f"{SUM}  k3s\n{OTHER_SUM}  k3s-airgap-images-amd64.tar\n", "k3s", SUM),
        (f"{OTHER_SUM}  k3s-arm64-extra\n{SUM}  k3s-arm64\n", "k3s-arm64", SUM),
        (f"{SUM} *k3s\n", "k3s", SUM),
    ],
)
def test_expected_checksum(text: str, file: str, expected: str) -> None:
    assert k3s.expected_checksum(text, file) == expected


@pytest.mark.parametrize("text", ["", f"{SUM}  k3s-arm64\n", "abc  k3s\n", f"{SUM.upper()}  k3s\n"])
def test_a_checksum_that_is_not_listed(text: str) -> None:
    with pytest.raises(Refused, match="don't list k3s"):
        k3s.expected_checksum(text, "k3s")


def test_release_files() -> None:
    github = "https://github.com/k3s-io/k3s/releases/download"
    assert k3s.release_files(github, "v1.34.2+k3s1", "arm64") == (
        f"{github}/v1.34.2%2Bk3s1/k3s-arm64",
        f"{github}/v1.34.2%2Bk3s1/sha256sum-arm64.txt",
        "https://raw.githubusercontent.com/k3s-io/k3s/v1.34.2%2Bk3s1/install.sh",
    )
    assert k3s.release_files("https://mirror/k3s/", "v1", "amd64") == (
        "https://mirror/k3s/v1/k3s",
        "https://mirror/k3s/v1/sha256sum-amd64.txt",
        "https://mirror/k3s/v1/install.sh",
    )
    assert k3s.release_files("/srv/k3s", "v1", "amd64")[0] == "/srv/k3s/k3s"


def release(folder: Path) -> FakeHosts:
    """A release in a folder, and a host whose sha256sum really sums."""
    binary = b"the binary"
    (folder / "k3s-arm64").write_bytes(binary)
    (folder / "install.sh").write_text("#!/bin/sh\n")
    (folder / "sha256sum-arm64.txt").write_text(f"{hashlib.sha256(binary).hexdigest()}  k3s-arm64\n")

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "sha256sum":
            return 0, f"{hashlib.sha256(hosts.files[name, argv[1]]).hexdigest()}  {argv[1]}\n"
        return 0, ""

    hosts = FakeHosts(answer)
    return hosts


def host_of(name: str = "arm-1") -> Any:
    from hybridlab.stages.nodes import NodeHost

    wish = next(w for w in PARAMS.wishes if w.name == name)
    return NodeHost(wish, HostAddress(name, "198.51.100.2"), "10.0.0.2", "198.51.100.2", "id")


def test_the_binary_is_installed_only_with_the_releases_checksum(tmp_path: Path) -> None:
    hosts = release(tmp_path)
    ctx = FakeContext(tmp_path, hosts=hosts)
    ctx.site.source = (str(tmp_path), "v1.34.2+k3s1")
    assert k3s.put_release(ctx, host_of())["version"] == "v1.34.2+k3s1"
    assert hosts.ran[-1][1][0] == "install"
    (tmp_path / "k3s-arm64").write_bytes(b"another binary")
    hosts.ran.clear()
    with pytest.raises(Refused, match="does not have the release's checksum"):
        k3s.put_release(ctx, host_of())
    assert not any(argv[0] == "install" for _, argv in hosts.ran)
    (tmp_path / "install.sh").unlink()
    with pytest.raises(BadInput, match="a file of the K3s release is missing"):
        k3s.put_release(ctx, host_of())


def test_the_installer_gets_the_role_and_no_secret(tmp_path: Path) -> None:
    hosts = FakeHosts()
    ctx = FakeContext(tmp_path, hosts=hosts)
    for name, role in (("arm-1", "server"), ("arm-2", "agent")):
        k3s.run_installer(ctx, host_of(name))
        assert f"INSTALL_K3S_EXEC={role}" in hosts.ran[-1][1]
        assert "INSTALL_K3S_SKIP_DOWNLOAD=true" in hosts.ran[-1][1]
    assert (k3s.unit_of("server"), k3s.unit_of("agent")) == ("k3s", "k3s-agent")


def test_config_file_is_the_owners_and_holds_the_right_token(tmp_path: Path) -> None:
    hosts = FakeHosts()
    ctx = FakeContext(tmp_path, hosts=hosts)
    assert k3s.put_config(ctx, host_of(), host_of()) is True
    assert k3s.put_config(ctx, host_of(), host_of()) is False
    own = ctx.secrets.get("k3s_token")
    assert own is not None
    assert own.reveal() in hosts.files["arm-1", k3s.CONFIG].decode()
    assert hosts.modes["arm-1", k3s.CONFIG] == 0o600
    hosts.files["arm-1", k3s.NODE_TOKEN_FILE] = b"K10abc::server:xyz\n"
    k3s.put_config(ctx, host_of("arm-2"), host_of())
    text = hosts.files["arm-2", k3s.CONFIG].decode()
    assert "token: K10abc::server:xyz\n" in text
    assert "server: https://10.0.0.2:6443" in text
    hosts.files["arm-1", k3s.NODE_TOKEN_FILE] = b"short\n"
    with pytest.raises(Refused, match="not a full one"):
        k3s.node_token(ctx, host_of())


def test_kubeconfig_is_renamed_pointed_and_kept_to_oneself(tmp_path: Path) -> None:
    hosts = FakeHosts()
    raw = {
        "clusters": [
            {"name": "default", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority-data": "Q0E="}}
        ],
        "users": [{"name": "default", "user": {"client-key-data": "S0VZ", "client-certificate-data": "Q0VSVA=="}}],
    }
    hosts.files["arm-1", k3s.KUBECONFIG] = json.dumps(raw).encode()
    ctx = FakeContext(tmp_path, hosts=hosts)
    path = k3s.save_kubeconfig(ctx, host_of(), ("198.51.100.2", 6443))
    assert path.stat().st_mode & 0o777 == 0o600
    data = YAML(typ="safe").load(path.read_text())
    assert data["clusters"][0]["name"] == data["users"][0]["name"] == data["current-context"] == "homelab"
    assert data["clusters"][0]["cluster"] == {
        "server": "https://198.51.100.2:6443",
        "certificate-authority-data": "Q0E=",
    }
    assert data["users"] == [{"name": "homelab", "user": raw["users"][0]["user"]}]
    assert data["contexts"] == [{"name": "homelab", "context": {"cluster": "homelab", "user": "homelab"}}]
    key = ctx.secrets.get("kube_client_key")
    assert key is not None
    assert key.reveal() == "S0VZ"
    assert ctx.refreshed == 1


# -- the plan ----------------------------------------------------------------------------------------------------------
VERSION = "v1.34.2+k3s1"
IPS = {"arm-1": "10.0.0.1", "arm-2": "10.0.0.2", "amd-1": "10.0.0.3"}
UPSTREAM: dict[str, Any] = {"provision": {"nodes": [{"name": n, "private_ip": ip} for n, ip in IPS.items()]}}


def host(name: str, **changes: Any) -> HostSeen:
    wish = next(w for w in PARAMS.wishes if w.name == name)
    wanted = k3s.wanted_config(PARAMS, wish, IPS[name], "198.51.100.9", IPS["arm-1"])
    made = HostSeen(
        private_ip=IPS[name],
        public_ip="198.51.100.9",
        machine="x86_64" if wish.arch == "amd64" else "aarch64",
        marker="homelab",
        rejects_live=(),
        rejects_saved=(),
        other_firewalls=(),
        swap=("/swapfile-hybridlab",) if name == "amd-1" else (),
        k3s_version=VERSION,
        config=wanted,
        unit="active",
    )
    return replace(made, **changes)


def seen(hosts: Mapping[str, Any] | None = None, nodes: Mapping[str, Any] | None = None, **more: Any) -> Seen:
    """A cluster that is as it should be, with changes by node; ``...`` takes a node away."""
    all_hosts = {n: host(n, **({} if (hosts or {}).get(n) is ... else (hosts or {}).get(n, {}))) for n in IPS}
    all_hosts = {n: h for n, h in all_hosts.items() if (hosts or {}).get(n) is not ...}
    rows = [
        node(n, "amd64" if n == "amd-1" else "arm64", **(nodes or {}).get(n, {}))
        for n in IPS
        if (nodes or {}).get(n) is not ...
    ]
    return replace(Seen(all_hosts, tuple(rows), "ok", VERSION), **more)


def plan(state: Seen, upstream: Any = UPSTREAM, **changes: Any) -> Plan:
    return bootstrap.plan(make_params(changes), state, upstream)


def ids(state: Seen, **changes: Any) -> list[str]:
    return [s.id for s in plan(state, **changes).steps]


def test_from_nothing_everything_in_order() -> None:
    nowhere = {"provision": {"nodes": [{"name": n, "private_ip": unknown(n)} for n in IPS]}}
    made = plan(Seen(k3s_version=VERSION), nowhere)
    assert [s.id for s in made.steps] == [
        "mark:arm-1",
        "mark:arm-2",
        "mark:amd-1",
        "probe",
        "open-firewall:arm-1",
        "open-firewall:arm-2",
        "open-firewall:amd-1",
        "swap:amd-1",
        "install:arm-1",
        "save-kubeconfig",
        "install:arm-2",
        "install:amd-1",
    ]
    assert {s.id: s.batch for s in made.steps if s.action == "install"} == {
        "install:arm-1": "",
        "install:arm-2": "agents",
        "install:amd-1": "agents",
    }
    assert {s.id: s.undo for s in made.steps if s.undo and "arm-2" in s.id} == {
        "mark:arm-2": "unmark",
        "open-firewall:arm-2": "close-firewall",
        "install:arm-2": "uninstall",
    }
    assert all(s.action in bootstrap.ACTIONS for s in made.steps)
    assert made.expected["nodes"][2] == {"name": "amd-1", "arch": "amd64", "small": True}
    assert made.steps[7].args == {"node": "amd-1", "gb": 2}


def test_what_is_there_needs_nothing() -> None:
    made = plan(seen())
    assert made.steps == ()
    assert made.findings == ()


@pytest.mark.parametrize(
    ("hosts", "nodes", "steps", "why"),
    [
        ({"arm-2": {"unit": "inactive"}}, {}, ["start:arm-2"], "k3s-agent is inactive"),
        ({"arm-2": {"unit": "failed"}}, {"arm-2": {"ready": False}}, ["start:arm-2"], "k3s-agent is failed"),
        ({"arm-1": {"unit": "inactive"}}, {}, ["start:arm-1"], "k3s is inactive"),
        ({"arm-2": {"k3s_version": ""}}, {"arm-2": ...}, ["install:arm-2"], f"K3s {VERSION} as agent"),
        ({"arm-2": {"rejects_live": (INPUT,)}}, {}, ["open-firewall:arm-2"], "REJECT rules live"),
        ({"arm-2": {"rejects_saved": (INPUT,)}}, {}, ["open-firewall:arm-2"], "REJECT rules in the file"),
        (
            {"arm-2": {"rejects_live": (INPUT,), "rejects_saved": (FORWARD,)}},
            {},
            ["open-firewall:arm-2"],
            "REJECT rules live and in the file",
        ),
        ({"arm-2": {"helper": False}}, {}, ["mark:arm-2"], "the helper on it is another version's"),
        ({"amd-1": {"swap": ("/swap.img",)}}, {}, ["swap:amd-1"], "1 GB of memory: a swap file of 2 GB"),
        ({}, {"arm-2": ...}, ["configure:arm-2"], "K3s runs and the node is not in the cluster"),
        ({}, {"arm-2": {"ready": False}}, ["await:arm-2"], "K3s runs and the node is not Ready"),
        (
            {},
            {"arm-2": {"labels": {"hybridlab.io/cluster": "homelab", "hybridlab.io/role": "server"}}},
            ["label:arm-2"],
            "hybridlab.io/role is server, wanted agent",
        ),
        (
            {},
            {"arm-2": {"labels": {"hybridlab.io/role": "agent"}}},
            ["label:arm-2"],
            "hybridlab.io/cluster is missing, wanted homelab",
        ),
        ({}, {"amd-1": {"taints": ()}}, ["taint:amd-1"], "a small node runs only what must run there"),
        (
            {},
            {"arm-2": {"taints": (("hybridlab.io/small", "true", "NoSchedule"),)}},
            ["taint:arm-2"],
            "the taint is no longer wanted",
        ),
        (
            {},
            {"amd-1": {"taints": (("hybridlab.io/small", "true", "NoExecute"),)}},
            ["taint:amd-1"],
            "a small node runs only what must run there",
        ),
    ],
)
def test_one_drift_one_step(hosts: Any, nodes: Any, steps: list[str], why: str) -> None:
    made = plan(seen(hosts, nodes))
    assert [s.id for s in made.steps] == steps
    assert made.steps[0].why == why
    assert made.steps[0].effect == ("none" if steps[0].startswith("await") else made.steps[0].effect)
    if not steps[0].startswith(("await", "install", "swap")):
        assert made.steps[0].effect == "change"


def test_label_and_taint_steps_carry_only_what_is_wrong() -> None:
    labels = {"hybridlab.io/cluster": "x", "hybridlab.io/role": "agent", "other": "stays"}
    made = plan(seen(nodes={"arm-2": {"labels": labels}, "amd-1": {"taints": ()}}))
    assert [dict(s.args) for s in made.steps] == [
        {"node": "arm-2", "labels": {"hybridlab.io/cluster": "homelab"}},
        {"node": "amd-1", "tainted": True},
    ]
    off = plan(seen(nodes={"amd-1": {}}), **{"bootstrap.taint_small": False})
    assert {s.id: s.args.get("tainted") for s in off.steps if s.action == "taint"} == {"taint:amd-1": False}


def test_config_drift_names_the_settings() -> None:
    live = {**host("arm-2").config, "server": "https://10.0.0.99:6443"}
    made = plan(seen({"arm-2": {"config": live}}))
    assert [(s.id, s.why, s.batch) for s in made.steps] == [("configure:arm-2", "settings differ: server", "agents")]


def test_config_is_not_judged_while_the_servers_address_is_unknown() -> None:
    nowhere = {"provision": {"nodes": [{"name": n, "private_ip": unknown(n)} for n in IPS]}}
    assert plan(seen({"arm-2": {"config": {}}}), nowhere).steps == ()


@pytest.mark.parametrize("state", ["missing", "refused", "unreachable"])
def test_the_kubeconfig(state: str) -> None:
    made = plan(replace(seen(kubeconfig=state), nodes=()))
    assert [s.id for s in made.steps] == ["save-kubeconfig"]
    assert made.steps[0].args == {"server": "arm-1"}


def test_a_new_server_has_a_new_kubeconfig() -> None:
    assert ids(seen({"arm-1": {"k3s_version": ""}}))[:2] == ["install:arm-1", "save-kubeconfig"]


def test_no_swap_where_none_is_wanted() -> None:
    assert ids(seen({"amd-1": {"swap": ()}}), **{"bootstrap.swap_gb": 0}) == []
    assert ids(seen({"arm-2": {"swap": ()}})) == []


@pytest.mark.parametrize(
    ("hosts", "level", "said"),
    [
        ({"marker": "another"}, "refusal", "the host belongs to cluster another"),
        ({"marker": ""}, "refusal", "K3s is there already, put there by someone else"),
        ({"machine": "x86_64"}, "refusal", "the host is amd64, the params say arm64"),
        ({"machine": "riscv64"}, "refusal", "the host is riscv64, the params say arm64"),
        ({"other_firewalls": ("ufw",)}, "warning", "ufw is active and is left alone"),
    ],
)
def test_hosts_that_are_not_what_they_should_be(hosts: dict[str, Any], level: str, said: str) -> None:
    made = plan(seen({"arm-2": hosts}))
    assert [(f.level, f.subject, f.text) for f in made.findings] == [(level, "arm-2", said)]


def test_an_unmarked_host_without_k3s_is_simply_marked() -> None:
    made = plan(seen({"arm-2": {"marker": "", "k3s_version": ""}}, {"arm-2": ...}))
    assert made.findings == ()
    assert [s.id for s in made.steps] == ["mark:arm-2", "install:arm-2"]


def test_a_byo_host_that_was_not_seen_is_not_said_to_reject() -> None:
    changes = {f"nodes.{n}.address": ip for n, ip in IPS.items()}
    made = plan(Seen(k3s_version=VERSION), **{"site": "byo", **changes})
    assert not [s for s in made.steps if s.action == "open-firewall"]


# -- actions on nodes --------------------------------------------------------------------------------------------------
def test_taints_of_others_stay(tmp_path: Path) -> None:
    others = {"key": "gpu", "value": "x", "effect": "NoSchedule"}
    stale = {"key": "hybridlab.io/small", "value": "true", "effect": "NoExecute"}
    own = {"key": "hybridlab.io/small", "value": "true", "effect": "NoSchedule"}
    kube = FakeKube({"kind": "Node", "metadata": {"name": "amd-1"}, "spec": {"taints": [others, stale]}})
    ctx = FakeContext(tmp_path, kube=kube)

    def taint(on: bool) -> list[dict[str, str]]:
        bootstrap.ACTIONS["taint"](ctx, Step("t", "taint", "", "", "change", {"node": "amd-1", "tainted": on}))
        taints: list[dict[str, str]] = kube.objects["Node", "", "amd-1"]["spec"]["taints"]
        return taints

    assert taint(True) == [others, own]
    assert taint(True) == [others, own]
    assert taint(False) == [others]
    with pytest.raises(NotFound):
        bootstrap.ACTIONS["taint"](ctx, Step("t", "taint", "", "", "change", {"node": "gone", "tainted": True}))


def test_labelling_touches_only_labels(tmp_path: Path) -> None:
    kube = FakeKube()
    ctx = FakeContext(tmp_path, kube=kube)
    args = {"node": "arm-2", "labels": {"hybridlab.io/role": "agent"}}
    bootstrap.ACTIONS["label"](ctx, Step("l", "label", "", "", "change", args))
    assert kube.calls == [("patch", "Node", "arm-2", {"metadata": {"labels": {"hybridlab.io/role": "agent"}}})]


def built(tmp_path: Path, answer: Any = None, kube: FakeKube | None = None) -> FakeContext:
    oracle = FakeOracle()
    oracle.vms = [vm("arm-1"), vm("arm-2"), vm("amd-1", "amd64")]
    return FakeContext(tmp_path, oracle=oracle, hosts=FakeHosts(answer), kube=kube)


def test_swap_is_made_once(tmp_path: Path) -> None:
    on: list[str] = []

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "swapon" and argv[1].startswith("--show"):
            return 0, "\n".join(on)
        if argv[0] == "swapon":
            assert ("amd-1", "/etc/fstab") in ctx.hosts.files, "killed after this, it would be gone at the next boot"
            on.append(argv[1])
        return (0, "LABEL=root / ext4\n") if argv[0] == "cat" else (0, "")

    ctx = built(tmp_path, answer)
    step = Step("swap:amd-1", "swap", "", "", "create", {"node": "amd-1", "gb": 2})
    assert bootstrap.ACTIONS["swap"](ctx, step) == {"gb": 2}
    assert ("amd-1", ("fallocate", "-l", "2G", "/swapfile-hybridlab")) in ctx.hosts.ran
    changes = [argv[0] for _, argv in ctx.hosts.ran if argv[-1] == "/swapfile-hybridlab"]
    assert changes == ["fallocate", "chmod", "mkswap", "swapon"]
    assert ("amd-1", ("chmod", "600", "/swapfile-hybridlab")) in ctx.hosts.ran
    fstab = ctx.hosts.files["amd-1", "/etc/fstab"].decode()
    assert fstab == "LABEL=root / ext4\n/swapfile-hybridlab none swap sw 0 0\n"
    assert bootstrap.ACTIONS["swap"](ctx, step) == {"changed": False}


def test_starting_k3s_waits_for_the_node_and_tells_the_journals_last_line(tmp_path: Path) -> None:
    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        return (0, "level=fatal msg=no-token\n") if argv[0] == "journalctl" else (0, "")

    kube = FakeKube(nodes=[node("arm-2", ready=False)])
    ctx = built(tmp_path, answer, kube)
    step = Step("start:arm-2", "start", "", "", "change", {"node": "arm-2"})
    with pytest.raises(DeadlineExceeded, match="msg=no-token"):
        bootstrap.ACTIONS["start"](ctx, step)
    assert ctx.hosts.ran[0] == ("arm-2", ("systemctl", "start", "k3s-agent"))
    kube.node_rows = (node("arm-2"),)
    assert bootstrap.ACTIONS["start"](ctx, step) == {}
    with pytest.raises(NotFound, match="no running machine"):
        bootstrap.ACTIONS["start"](ctx, Step("x", "start", "", "", "change", {"node": "arm-9"}))


# -- looking and proving -----------------------------------------------------------------------------------------------
def healthy(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
    """A host as 030 leaves it, on which only its two REJECT rules' nephews remain."""
    machine = "x86_64" if name == "amd-1" else "aarch64"
    table = {
        ("uname", "-m"): machine,
        ("cat", "/etc/hybridlab/cluster"): "homelab\n",
        ("iptables", "-S"): KEPT,
        ("cat", firewall.RULES_FILE): KEPT,
        ("/usr/local/bin/k3s", "--version"): "k3s version v1.34.2+k3s1 (abc)\ngo version go1.24\n",
        ("cat", k3s.CONFIG): "node-name: x\ntoken: secret\n",
        ("systemctl", "is-active", "firewalld", "ufw", "nftables"): "inactive\nactive\ninactive\n",
        ("systemctl", "is-active", "k3s"): "active\n",
        ("systemctl", "is-active", "k3s-agent"): "active\n",
        ("swapon", "--show=NAME", "--noheadings", "--raw"): "/swapfile-hybridlab\n/swap.img\n",
    }
    if "probe" in argv:
        return 0, json.dumps([{"target": t, "state": "silent" if "udp" in t else "open"} for t in argv[7:]])
    return 0, table.get(argv, "")


def test_look_at_a_host(tmp_path: Path) -> None:
    state = bootstrap.look(built(tmp_path, healthy, FakeKube(nodes=[node("arm-1")])))
    assert list(state.hosts) == ["arm-1", "arm-2", "amd-1"]
    arm = state.hosts["arm-2"]
    assert (arm.machine, arm.marker, arm.k3s_version, arm.unit) == ("aarch64", "homelab", VERSION, "active")
    assert arm.config == {"node-name": "x"}
    assert not arm.helper
    assert arm.other_firewalls == ("ufw",)
    assert arm.swap == ("/swapfile-hybridlab", "/swap.img")
    assert (arm.rejects_live, arm.rejects_saved) == ((), ())
    assert (state.kubeconfig, state.k3s_version, len(state.nodes)) == ("ok", VERSION, 1)
    assert bootstrap.look(built(tmp_path)).kubeconfig == "missing"
    assert bootstrap.look(built(tmp_path)).hosts["arm-1"].k3s_version == ""


def proved(tmp_path: Path, answer: Any = healthy, nodes: Any = None, mode: int = 0o600) -> dict[str, bool]:
    rows = nodes or [node("arm-1"), node("arm-2"), node("amd-1", "amd64")]
    ctx = built(tmp_path, answer, FakeKube(nodes=rows))
    ctx.state.mkdir(parents=True, exist_ok=True)
    (ctx.state / "kubeconfig").touch()
    (ctx.state / "kubeconfig").chmod(mode)
    return {c.name: c.ok for c in bootstrap.verify(ctx)}


def test_verify_holds_on_a_healthy_cluster(tmp_path: Path) -> None:
    checks = proved(tmp_path)
    assert len(checks) == 8
    assert all(checks.values()), checks


def test_verify_sees_each_failure(tmp_path: Path) -> None:
    def live(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        return (0, RULES) if (name, argv) == ("arm-2", ("iptables", "-S")) else healthy(name, argv)

    def saved(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        return (0, RULES) if (name, argv) == ("arm-2", ("cat", firewall.RULES_FILE)) else healthy(name, argv)

    def blocked(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if name == "arm-2" and "probe" in argv:
            states = ["rejected" if t.endswith("8472/udp") else "open" for t in argv[7:]]
            return 0, json.dumps([{"target": t, "state": s} for t, s in zip(argv[7:], states, strict=True)])
        return healthy(name, argv)

    def failed(checks: dict[str, bool]) -> list[str]:
        return [name for name, ok in checks.items() if not ok]

    arm1, arm2, amd = node("arm-1"), node("arm-2"), node("amd-1", "amd64")
    assert failed(proved(tmp_path, live)) == ["firewall arm-2"]
    assert failed(proved(tmp_path, saved)) == ["firewall arm-2"]
    assert failed(proved(tmp_path, blocked)) == ["connectivity"]
    assert failed(proved(tmp_path, nodes=[arm1, replace(arm2, ready=False), amd])) == ["node arm-2"]
    assert failed(proved(tmp_path, nodes=[arm1, replace(arm2, arch="amd64"), amd])) == ["node arm-2"]
    assert failed(proved(tmp_path, nodes=[arm1, arm2])) == ["node amd-1"]
    assert failed(proved(tmp_path, mode=0o644)) == ["kubeconfig"]


def test_one_closed_port_is_not_hidden_by_an_open_one(tmp_path: Path) -> None:
    def first_closed(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if name == "arm-2" and "probe" in argv:
            states = ["timeout" if t.endswith("10250/tcp") else "open" for t in argv[7:]]
            return 0, json.dumps([{"target": t, "state": s} for t, s in zip(argv[7:], states, strict=True)])
        return healthy(name, argv)

    ctx = built(tmp_path, first_closed)
    from hybridlab.stages.bootstrap.matrix import connectivity
    from hybridlab.stages.nodes import node_hosts

    found = connectivity(ctx, node_hosts(ctx))
    assert len(found) == 6
    assert {pair: state for pair, state in found.items() if state != "ok"} == {
        ("arm-2", "arm-1"): "10250/tcp timeout",
        ("arm-2", "amd-1"): "10250/tcp timeout",
    }
    targets = {t for name, argv in ctx.hosts.ran if name == "arm-2" and "probe" in argv for t in argv[7:]}
    server, agent = vm("arm-1").private_ip, vm("amd-1").private_ip
    assert targets == {
        f"{server}:10250/tcp",
        f"{server}:8472/udp",
        f"{server}:6443/tcp",
        f"{agent}:10250/tcp",
        f"{agent}:8472/udp",
    }


def test_a_path_without_an_answer_is_not_open_and_a_broken_answer_is_told(tmp_path: Path) -> None:
    from hybridlab.stages.bootstrap.matrix import connectivity
    from hybridlab.stages.nodes import node_hosts

    said = "[]"
    ctx = built(tmp_path, lambda name, argv: (0, said) if "probe" in argv else healthy(name, argv))
    assert set(connectivity(ctx, node_hosts(ctx)).values()) == {"6443/tcp not asked", "10250/tcp not asked"}
    said = "Traceback"
    with pytest.raises(Refused, match="the probe's answer can't be read"):
        connectivity(ctx, node_hosts(ctx))


# -- K3s brought onto hosts --------------------------------------------------------------------------------------------
KUBECONFIG = {
    "clusters": [{"name": "default", "cluster": {"server": "https://127.0.0.1:6443"}}],
    "users": [{"name": "default", "user": {"client-key-data": "S0VZ"}}],
}


class Machines:
    """Hosts on which install.sh and systemctl do what they say; a K3s that runs joins the cluster at once."""

    def __init__(self, folder: Path) -> None:
        self.hosts = release(folder)
        self.summing = self.hosts.answer
        self.hosts.answer = self.answer
        self.kube = FakeKube()
        for name in ("k3s", "k3s-arm64"):
            (folder / name).write_bytes(b"the binary")
        total = hashlib.sha256(b"the binary").hexdigest()
        (folder / "sha256sum-amd64.txt").write_text(f"{total}  k3s\n")

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        files = self.hosts.files
        if argv[-1] == k3s.INSTALLER or argv[:2] in (("systemctl", "restart"), ("systemctl", "start")):
            assert (name, k3s.CONFIG) in files, "the settings come before K3s starts"
            if name == "arm-1":
                files[name, k3s.NODE_TOKEN_FILE] = b"K10abc::server:xyz"
                files[name, k3s.KUBECONFIG] = json.dumps(KUBECONFIG).encode()
            self.kube.node_rows = (*self.kube.node_rows, node(name))
        if argv[:2] == ("test", "-s"):
            return (0 if (name, argv[2]) in files else 1), ""
        return self.summing(name, argv)


@pytest.fixture
def machines(tmp_path: Path) -> tuple[FakeContext, Machines]:
    made = Machines(tmp_path)
    ctx = built(tmp_path, kube=made.kube)
    ctx.hosts = made.hosts
    ctx.site.source = (str(tmp_path), VERSION)
    return ctx, made


def act(ctx: FakeContext, action: str, name: str = "arm-1", **args: Any) -> Mapping[str, Any]:
    return bootstrap.ACTIONS[action](ctx, Step(action, action, name, "", "change", {"node": name, **args}))


def test_server_then_agent(machines: tuple[FakeContext, Machines]) -> None:
    ctx, made = machines
    assert act(ctx, "install")["version"] == VERSION
    assert act(ctx, "save-kubeconfig", server="arm-1") == {"path": "kubeconfig"}
    made.kube.node_rows, joined = (), made.kube.node_rows
    with pytest.raises(DeadlineExceeded, match="node arm-1 to be Ready"):
        act(ctx, "save-kubeconfig", server="arm-1")
    made.kube.node_rows = joined
    data = YAML(typ="safe").load((ctx.state / "kubeconfig").read_text())
    assert data["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:16443"  # what the site dials
    act(ctx, "install", "amd-1")
    config = YAML(typ="safe").load(made.hosts.files["amd-1", k3s.CONFIG].decode())
    assert config["server"] == f"https://{vm('arm-1').private_ip}:6443"
    assert (config["node-name"], config["node-ip"]) == ("amd-1", vm("amd-1").private_ip)
    assert config["token"] == "K10abc::server:xyz"
    ran = [argv for name, argv in made.hosts.ran if name == "amd-1"]
    assert ran[-1][-1] == k3s.INSTALLER
    assert ran[-2][0] == "install"


def test_an_agent_that_does_not_join_fails_its_step(machines: tuple[FakeContext, Machines]) -> None:
    ctx, made = machines
    act(ctx, "install")
    made.hosts.answer = made.summing
    with pytest.raises(DeadlineExceeded, match="node amd-1 to be Ready"):
        act(ctx, "install", "amd-1")


def test_a_server_that_writes_no_kubeconfig_fails_its_step(machines: tuple[FakeContext, Machines]) -> None:
    ctx, made = machines
    made.hosts.answer = lambda name, argv: (1, "") if argv[0] == "test" else made.summing(name, argv)
    with pytest.raises(DeadlineExceeded, match="K3s on arm-1 to write its kubeconfig"):
        act(ctx, "install")


@pytest.mark.parametrize(("name", "unit"), [("arm-1", "k3s"), ("arm-2", "k3s-agent")])
def test_changed_settings_restart_k3s(machines: tuple[FakeContext, Machines], name: str, unit: str) -> None:
    ctx, made = machines
    made.hosts.files["arm-1", k3s.NODE_TOKEN_FILE] = b"K10abc::server:xyz"
    assert act(ctx, "configure", name) == {"changed": True}
    assert (name, ("systemctl", "restart", unit)) in made.hosts.ran
    assert act(ctx, "configure", name) == {"changed": False}
    made.hosts.answer = lambda n, argv: (0, "")
    made.kube.node_rows = ()
    with pytest.raises(DeadlineExceeded):
        act(ctx, "configure", name)


def test_awaiting_a_node(machines: tuple[FakeContext, Machines]) -> None:
    ctx, made = machines
    with pytest.raises(DeadlineExceeded, match="not in the cluster"):
        act(ctx, "await")
    made.kube.node_rows = (node("arm-1"),)
    assert act(ctx, "await") == {}


def test_a_host_is_marked_once(machines: tuple[FakeContext, Machines]) -> None:
    ctx, made = machines
    assert act(ctx, "mark") == {"changed": True}
    assert made.hosts.files["arm-1", "/etc/hybridlab/cluster"] == b"homelab\n"
    assert ("arm-1", "/opt/hybridlab/node_helper.py") in made.hosts.files
    assert act(ctx, "mark") == {"changed": False}
    del made.hosts.files["arm-1", "/opt/hybridlab/node_helper.py"]
    assert act(ctx, "mark") == {"changed": True}


def test_a_release_from_the_network_is_downloaded_by_the_host(tmp_path: Path) -> None:
    content = {"k3s-arm64": b"the binary", "install.sh": b"#!/bin/sh"}
    content["sha256sum-arm64.txt"] = f"{hashlib.sha256(content['k3s-arm64']).hexdigest()}  k3s-arm64".encode()

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "curl":
            assert argv[-1].startswith("https://mirror/k3s/v1.34.2%2Bk3s1/")
            hosts.files[name, argv[-2]] = content[argv[-1].rsplit("/", 1)[1]]
        if argv[0] == "sha256sum":
            return 0, hashlib.sha256(hosts.files[name, argv[1]]).hexdigest() + "  x"
        return 0, ""

    hosts = FakeHosts(answer)
    ctx = FakeContext(tmp_path, hosts=hosts)
    ctx.site.source = ("https://mirror/k3s", VERSION)
    k3s.put_release(ctx, host_of())
    assert hosts.files["arm-1", k3s.INSTALLER] == b"#!/bin/sh"
    assert hosts.ran[-1][1][-1] == k3s.BINARY
    content["k3s-arm64"] = b"tampered"
    with pytest.raises(Refused, match="checksum"):
        k3s.put_release(ctx, host_of())
