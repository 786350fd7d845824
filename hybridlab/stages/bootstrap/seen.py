"""What the hosts and the API look like: one look over SSH, all hosts at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridlab.errors import AuthFailed, NotFound, Unreachable
from hybridlab.models import Json, NodeInfo
from hybridlab.ports import Context
from hybridlab.stages import firewall
from hybridlab.stages.bootstrap import k3s
from hybridlab.stages.nodes import (
    NodeHost,
    node_hosts,
    on_all,
)

MARKER = "/etc/hybridlab/cluster"
OTHER_FIREWALLS = ("firewalld", "ufw", "nftables")


@dataclass(frozen=True)
class HostSeen:
    """One host as it is. ``config`` is K3s' config.yaml without its token; ``unit`` what systemctl is-active says."""

    private_ip: str
    public_ip: str
    machine: str
    marker: str
    rejects_live: tuple[str, ...]
    rejects_saved: tuple[str, ...]
    other_firewalls: tuple[str, ...]
    swap: tuple[str, ...]
    k3s_version: str
    config: Mapping[str, Json]
    unit: str


@dataclass(frozen=True)
class Seen:
    """Every host that can be reached, the nodes that the API shows, and the state of our kubeconfig."""

    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    nodes: tuple[NodeInfo, ...] = ()
    kubeconfig: str = "missing"  # missing, refused, unreachable, ok
    k3s_version: str = ""  # the version to install


def look(ctx: Context) -> Seen:
    """Look at every host at once, and at the API if there is one."""
    hosts = on_all(node_hosts(ctx), lambda node: look_host(ctx, node))
    state, nodes = _look_kube(ctx)
    return Seen(hosts, nodes, state, ctx.site.k3s_source()[1])


def _look_kube(ctx: Context) -> tuple[str, tuple[NodeInfo, ...]]:
    try:
        return "ok", ctx.kube.nodes()
    except NotFound:
        return "missing", ()
    except AuthFailed:
        return "refused", ()
    except Unreachable:
        return "unreachable", ()


def look_host(ctx: Context, node: NodeHost) -> HostSeen:
    def run(*argv: str) -> str:
        return ctx.hosts.run(node.host, argv, sudo=True, check=False).stdout.strip()

    version = run(k3s.BINARY, "--version").split()
    others = run("systemctl", "is-active", *OTHER_FIREWALLS).splitlines()
    active = [n for n, state in zip(OTHER_FIREWALLS, others, strict=False) if state == "active"]
    return HostSeen(
        private_ip=node.private_ip,
        public_ip=node.public_ip,
        machine=run("uname", "-m"),
        marker=run("cat", MARKER),
        rejects_live=firewall.rejects_in(firewall.live_rules(ctx, node.host)),
        rejects_saved=firewall.rejects_in(firewall.saved_rules(ctx, node.host) or ""),
        other_firewalls=tuple(active),
        swap=tuple(run("swapon", "--show=NAME", "--noheadings", "--raw").split()),
        k3s_version=version[2] if len(version) > 2 and version[0] == "k3s" else "",
        config=k3s.read_config(run("cat", k3s.CONFIG)),
        unit=run("systemctl", "is-active", k3s.unit_of(node.wish.role)),
    )
