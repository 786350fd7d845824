"""What the hosts and the API look like: one look over SSH, all hosts at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from hybridlab.errors import AuthFailed, NotFound, Unreachable
from hybridlab.models import Json, NodeInfo
from hybridlab.ports import Context
from hybridlab.stages import firewall
from hybridlab.stages.bootstrap import k3s
from hybridlab.stages.bootstrap.reboots import Request, requests
from hybridlab.stages.nodes import (
    HELPER,
    NodeHost,
    helper_source,
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
    helper: bool = True  # whether the helper on it is this version's
    chosen: str = ""  # why private_ip is this one, where that isn't plain


@dataclass(frozen=True)
class Seen:
    """Every host that can be reached, the nodes that the API shows, and the state of our kubeconfig."""

    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    nodes: tuple[NodeInfo, ...] = ()
    kubeconfig: str = "missing"  # missing, refused, unreachable, ok
    k3s_version: str = ""  # the version to install
    k3s_images: tuple[str, ...] = ()  # architectures whose images the source brings along
    reboots: Mapping[str, Request] = field(default_factory=dict)  # what was asked for, by node


def look(ctx: Context) -> Seen:
    """Look at every host at once, and at the API if there is one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        kube = pool.submit(_look_kube, ctx)
        hosts = on_all(node_hosts(ctx), lambda node: look_host(ctx, node))
        state, nodes = kube.result()
    source, version = ctx.site.k3s_source()
    return Seen(hosts, nodes, state, version, k3s.images_in(source), requests(ctx))


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

    questions: Mapping[str, Callable[[], str]] = {
        "version": lambda: run(k3s.BINARY, "--version"),
        "others": lambda: run("systemctl", "is-active", *OTHER_FIREWALLS),
        "marker": lambda: run("cat", MARKER),
        "live": lambda: firewall.live_rules(ctx, node.host),
        "saved": lambda: firewall.saved_rules(ctx, node.host) or "",
        "swap": lambda: run("swapon", "--show=NAME", "--noheadings", "--raw"),
        "config": lambda: run("cat", k3s.CONFIG),
        "helper": lambda: run("sha256sum", HELPER),
        "unit": lambda: run("systemctl", "is-active", k3s.unit_of(node.wish.role)),
        "installed": lambda: run("stat", "-L", "-c", "%a %u", "--", k3s.unit_file(node.wish.role)),
    }
    machine = run("uname", "-m")  # alone: a host that can't be reached is found out once
    # the others at once: on a host that is far away each answer takes its time to come
    with ThreadPoolExecutor(max_workers=4) as pool:
        futures = {name: pool.submit(ask) for name, ask in questions.items()}
    said = {name: future.result() for name, future in futures.items()}
    is_installed = bool(said["installed"]) or said["unit"] == "active"
    version, others = said["version"].split(), said["others"].splitlines()
    return HostSeen(
        private_ip=node.private_ip,
        public_ip=node.public_ip,
        machine=machine,
        marker=said["marker"],
        rejects_live=firewall.rejects_in(said["live"]),
        rejects_saved=firewall.rejects_in(said["saved"]),
        other_firewalls=tuple(n for n, state in zip(OTHER_FIREWALLS, others, strict=False) if state == "active"),
        swap=tuple(said["swap"].split()),
        # the installer puts the binary first and the unit last: without a unit ours was broken off; a binary on a host
        # that isn't marked is somebody else's
        k3s_version=version[2] if len(version) > 2 and (is_installed or not said["marker"]) else "",
        config=k3s.read_config(said["config"]),
        unit=said["unit"],
        helper=said["helper"].startswith(hashlib.sha256(helper_source()).hexdigest()),
        chosen=node.chosen,
    )
