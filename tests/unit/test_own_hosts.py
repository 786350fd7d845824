"""Hosts of one's own (site byo): architecture found by looking, names as addresses, user, port and key of one host."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeKube, make_params, node

from hybridlab.errors import BadInput, HybridlabError, ParamsError, Refused, Unreachable
from hybridlab.models import HostAddress
from hybridlab.params import Params
from hybridlab.plan import Plan
from hybridlab.sites import RealSite
from hybridlab.stages import bootstrap, layout, provision
from hybridlab.stages.migrate.project import capacities
from hybridlab.stages.nodes import address_among, arch_of, known_wishes, node_hosts

VERSION = "v1.34.2+k3s1"
BYO: dict[str, Any] = {
    "site": "byo",
    "nodes": [
        {"name": "pi-1", "role": "server", "address": "pi-1.lan", "memory_gb": 8},
        {"name": "nuc-1", "address": "192.168.1.22", "memory_gb": 16},
    ],
}
NAMES = {"pi-1.lan": ("192.168.1.21",)}
MACHINES = {"pi-1": "aarch64", "nuc-1": "x86_64"}


def own(changes: Mapping[str, Any] | None = None) -> Params:
    return make_params(changes, **BYO)


def context(
    folder: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    machines: Mapping[str, str] = MACHINES,
    kube: FakeKube | None = None,
) -> FakeContext:
    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        return 0, machines[name] + "\n" if argv == ("uname", "-m") else ""

    ctx = FakeContext(folder, own(changes), hosts=FakeHosts(answer), kube=kube)
    ctx.site.resolve = lambda name: NAMES[name]
    return ctx


def planned(ctx: FakeContext) -> Plan:
    before = {"provision": provision.plan(ctx.params, provision.look(ctx), {}).expected}
    return bootstrap.plan(ctx.params, bootstrap.look(ctx), before)


# -- architecture ------------------------------------------------------------------------------------------------------
def test_an_architecture_that_is_not_stated_is_found_and_said(tmp_path: Path) -> None:
    made = planned(context(tmp_path))
    assert made.refusals == ()
    assert {n["name"]: n["arch"] for n in made.expected["nodes"]} == {"pi-1": "arm64", "nuc-1": "amd64"}
    said = [f.text for f in made.findings if f.subject == "nuc-1"]
    assert said == ["the host is amd64, found by looking (uname says x86_64)"]


def test_a_stated_architecture_that_is_wrong_is_refused(tmp_path: Path) -> None:
    made = planned(context(tmp_path, {"nodes.nuc-1.arch": "arm64"}))
    assert [(f.subject, f.text) for f in made.refusals] == [("nuc-1", "the host is amd64, the params say arm64")]
    assert "leave it out" in made.refusals[0].next_move


def test_a_machine_that_nothing_is_built_for_is_refused(tmp_path: Path) -> None:
    made = planned(context(tmp_path, machines={**MACHINES, "nuc-1": "riscv64"}))
    assert [(f.subject, f.text) for f in made.refusals] == [
        ("nuc-1", "the host is riscv64: only arm64 and amd64 are handled")
    ]
    assert made.refusals[0].next_move
    ctx = context(tmp_path, machines={**MACHINES, "nuc-1": "riscv64"})
    with pytest.raises(Refused, match="riscv64"):
        arch_of(ctx, node_hosts(ctx)["nuc-1"])


@pytest.mark.parametrize("site", ["lab", "oracle"])
def test_other_sites_need_it_stated(site: str) -> None:
    with pytest.raises(ParamsError, match=f"site {site} needs an arch for arm-2"):
        make_params({"site": site, "nodes.arm-2.arch": None})


def test_the_found_architecture_chooses_the_files_of_the_release(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.site.source = (str(tmp_path), VERSION)
    asked = []
    for name, host in node_hosts(ctx).items():
        with pytest.raises(BadInput) as caught:
            bootstrap.k3s.put_release(ctx, host)  # the folder is empty: the first file that it misses is the binary
        asked.append((name, Path(caught.value.where).name))
    assert asked == [("pi-1", "k3s-arm64"), ("nuc-1", "k3s")]


def test_before_there_is_a_cluster_services_are_placed_on_what_was_found(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    assert [(c.name, c.arch) for c in capacities(None, ctx.params, known_wishes(ctx))] == [
        ("pi-1", "arm64"),
        ("nuc-1", "amd64"),
    ]
    with pytest.raises(BadInput, match="pi-1 is not known yet") as caught:
        capacities(None, ctx.params)
    assert "nodes[].arch" in caught.value.next_move


def test_nobody_looks_where_everything_is_stated(tmp_path: Path) -> None:
    ctx = context(tmp_path, {"nodes.pi-1.arch": "arm64", "nodes.nuc-1.arch": "amd64"})
    assert known_wishes(ctx) == ctx.params.wishes
    assert ctx.hosts.ran == []


def test_the_layout_says_nothing_of_architectures_it_does_not_know(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    made = layout.plan(ctx.params, layout.look(ctx), {})
    assert not any("None" in f.text for f in made.findings)


def test_verify_compares_the_api_with_the_machine(tmp_path: Path) -> None:
    rows = [node("pi-1"), node("nuc-1", "arm64")]
    ctx = context(tmp_path, {"bootstrap.prove_traffic": False}, kube=FakeKube(nodes=rows))
    looked = ctx.hosts.answer
    ctx.hosts.answer = lambda name, argv: (0, "[]") if "probe" in argv else looked(name, argv)
    ctx.state.mkdir(parents=True)
    (ctx.state / "kubeconfig").touch(mode=0o600)
    checks = {c.name: c for c in bootstrap.verify(ctx)}
    assert checks["node pi-1"].ok
    assert not checks["node nuc-1"].ok
    assert "API says arm64, uname says x86_64" in checks["node nuc-1"].evidence


# -- names -------------------------------------------------------------------------------------------------------------
def test_a_name_becomes_an_address_for_k3s_and_the_reason_is_said(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    hosts = node_hosts(ctx)
    assert hosts["pi-1"].host.address == "pi-1.lan"
    assert (hosts["pi-1"].private_ip, hosts["pi-1"].public_ip) == ("192.168.1.21", "pi-1.lan")
    made = planned(ctx)
    said = [f.text for f in made.findings if f.subject == "pi-1"]
    assert said[0] == "pi-1.lan is 192.168.1.21 as seen from here, and the nodes reach it there"
    ctx.hosts.files["pi-1", bootstrap.k3s.NODE_TOKEN_FILE] = b"K10abc::server:xyz"
    bootstrap.k3s.put_config(ctx, hosts["pi-1"], hosts["pi-1"])
    bootstrap.k3s.put_config(ctx, hosts["nuc-1"], hosts["pi-1"])
    server = bootstrap.k3s.read_config(ctx.hosts.files["pi-1", bootstrap.k3s.CONFIG].decode())
    agent = bootstrap.k3s.read_config(ctx.hosts.files["nuc-1", bootstrap.k3s.CONFIG].decode())
    assert (server["node-ip"], server["tls-san"]) == ("192.168.1.21", ["192.168.1.21", "pi-1.lan"])
    assert (agent["node-ip"], agent["server"]) == ("192.168.1.22", "https://192.168.1.21:6443")


def test_the_settings_of_a_named_server_are_no_drift(tmp_path: Path) -> None:
    ctx = context(tmp_path, kube=FakeKube(nodes=[node("pi-1"), node("nuc-1", "amd64")]))
    hosts = node_hosts(ctx)
    ctx.hosts.files["pi-1", bootstrap.k3s.NODE_TOKEN_FILE] = b"K10abc::server:xyz"
    for host in hosts.values():
        bootstrap.k3s.put_config(ctx, host, hosts["pi-1"])
    looked = ctx.hosts.answer

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv == ("cat", bootstrap.k3s.CONFIG):
            return 0, ctx.hosts.files[name, argv[1]].decode()
        if argv[-1] == "--version":
            return 0, f"k3s version {VERSION} (abc)"
        if argv == ("cat", "/etc/hybridlab/cluster"):
            return 0, "homelab"
        return (0, "active") if "is-active" in argv else looked(name, argv)

    ctx.hosts.answer = answer
    assert not [s.id for s in planned(ctx).steps if s.action in ("configure", "install", "upgrade")]


@pytest.mark.parametrize(
    ("found", "chosen", "word"),
    [
        (("192.168.1.21",), "192.168.1.21", "as seen from here"),
        (("192.168.1.21", "192.168.1.31"), "192.168.1.21", "its other addresses here are 192.168.1.31"),
        (("127.0.1.1", "192.168.1.21"), "192.168.1.21", "its other addresses here are 127.0.1.1"),
        (("fd00::21",), "fd00::21", "as seen from here"),
    ],
)
def test_which_address_of_a_name(found: tuple[str, ...], chosen: str, word: str) -> None:
    ip, why = address_among("pi-1.lan", found)
    assert ip == chosen
    assert word in why


@pytest.mark.parametrize("found", [("127.0.1.1",), ("::1", "127.0.0.1"), ("169.254.3.4",)])
def test_a_name_that_leads_nowhere_for_others(found: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="no address that other nodes could reach") as caught:
        address_among("pi-1", found)
    assert found[0] in caught.value.why
    assert "nodes[].node_ip" in caught.value.next_move


def test_the_address_that_others_use_can_be_stated(tmp_path: Path) -> None:
    """A name that leads to a public address, of a machine that has a private one."""
    ctx = context(tmp_path, {"nodes.pi-1.node_ip": "10.0.0.5"})
    ctx.site.resolve = lambda name: pytest.fail("there is nothing to resolve")
    assert node_hosts(ctx)["pi-1"].private_ip == "10.0.0.5"
    assert "nodes[].node_ip" in node_hosts(ctx)["pi-1"].chosen
    with pytest.raises(ParamsError, match=r"nodes\.0\.node_ip"):
        own({"nodes.pi-1.node_ip": "pi-1.lan"})


def answers(*rows: tuple[int, str] | OSError) -> Callable[..., Any]:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        if isinstance(rows[0], OSError):
            raise rows[0]
        return [(family, 1, 6, "", (ip, 0)) for family, ip in rows]  # type: ignore[misc]

    return getaddrinfo


def test_resolving_puts_ipv4_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = RealSite(own(), tmp_path)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        answers((socket.AF_INET6, "fd00::1"), (socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "10.0.0.1")),
    )
    assert site.resolve("pi-1.lan") == ("10.0.0.1", "fd00::1")


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            BadInput,
            "the host's name is not known here",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), Unreachable, "no name server answered"),
    ],
)
def test_a_name_that_does_not_resolve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[HybridlabError], said: str
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answers(error))
    with pytest.raises(kind, match=said) as caught:
        RealSite(own(), tmp_path).resolve("pi-1.lan")
    assert caught.value.where == "pi-1.lan"
    assert str(error.strerror) in caught.value.why
    assert "IP address" in caught.value.next_move


# -- user, port and key of one host ------------------------------------------------------------------------------------
def test_user_and_port_of_one_host(tmp_path: Path) -> None:
    found = node_hosts(context(tmp_path, {"nodes.pi-1.user": "pi", "nodes.pi-1.port": 2222}))
    assert found["pi-1"].host == HostAddress("pi-1", "pi-1.lan", "pi", 2222)
    assert found["nuc-1"].host == HostAddress("nuc-1", "192.168.1.22", "ubuntu", 22)


def test_the_key_of_one_host_and_of_the_others(tmp_path: Path) -> None:
    own_key = tmp_path / "secrets" / "ssh_key"
    pi, nuc = HostAddress("pi-1", "pi-1.lan"), HostAddress("nuc-1", "192.168.1.22")
    site = RealSite(own({"nodes.pi-1.key_file": "keys/pi", "bootstrap.ssh_key_file": "keys/all"}), tmp_path)
    assert site.ssh_key(own_key, pi) == tmp_path / "keys/pi"
    assert site.ssh_key(own_key, nuc) == tmp_path / "keys/all"
    assert RealSite(own(), tmp_path).ssh_key(own_key, pi) is None, "the agent, and ~/.ssh"
    assert RealSite(make_params({"site": "oracle"}), tmp_path).ssh_key(own_key, nuc) == own_key
