"""The nodes of a cluster as hosts: where each wanted node is, on any site."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import resources
from typing import TypeVar

from hybridlab.errors import BadInput, NotFound, Refused
from hybridlab.models import MACHINE_ARCH, Arch, CloudInstance, HostAddress, NodeWish
from hybridlab.ports import TAG, Context

T = TypeVar("T")

NODE_TAG = "hybridlab-node"
HELPER = "/opt/hybridlab/node_helper.py"
SMALL_GB = 2.0
"""Nodes with less memory get swap and a taint: K3s' documented minimum for an agent is 512 MB, a kubelet needs air."""
SMALL_TAINT = ("hybridlab.io/small", "true", "NoSchedule")


@dataclass(frozen=True)
class NodeHost:
    """A wanted node that exists as a machine. ``private_ip`` is what the other nodes use, and ``chosen`` says why it is
    this one where that isn't plain; ``public_ip`` is what we use, on site byo maybe a name."""

    wish: NodeWish
    host: HostAddress
    private_ip: str
    public_ip: str
    instance_id: str = ""
    chosen: str = ""


def is_small(wish: NodeWish) -> bool:
    return wish.memory_gb < SMALL_GB


def ours(tags: Mapping[str, str], cluster: str) -> bool:
    return tags.get(TAG) == cluster


def node_hosts(ctx: Context) -> dict[str, NodeHost]:
    """The wanted nodes that exist now, by name, in the params' order."""
    params, user = ctx.params, ctx.params.bootstrap.ssh_user
    if params.site == "byo":
        return {wish.name: _own_host(ctx, wish) for wish in params.wishes}
    running = instances_by_node(ctx.oracle.instances(), params.cluster)
    hosts = {}
    for wish in params.wishes:
        vm = running.get(wish.name)
        if vm and vm.state == "RUNNING" and vm.public_ip and vm.private_ip:
            address = HostAddress(wish.name, vm.public_ip, user)
            hosts[wish.name] = NodeHost(wish, address, vm.private_ip, vm.public_ip, vm.id)
    return hosts


def _own_host(ctx: Context, wish: NodeWish) -> NodeHost:
    at = str(wish.address)
    host = HostAddress(wish.name, at, wish.user or ctx.params.bootstrap.ssh_user, wish.port)
    if wish.node_ip:
        return NodeHost(wish, host, wish.node_ip, at, chosen=f"the nodes reach it at {wish.node_ip}: nodes[].node_ip")
    if is_ip(at):
        return NodeHost(wish, host, at, at)
    ip, why = address_among(at, ctx.site.resolve(at))
    return NodeHost(wish, host, ip, at, chosen=why)


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def address_among(name: str, found: Sequence[str]) -> tuple[str, str]:
    """Which of a host name's addresses the nodes use, K3s' node-ip being an address, and why: the first of them (IPv4
    comes first) that another machine could reach. Raises BadInput where none is."""
    usable = [
        ip for ip in found if not (ipaddress.ip_address(ip).is_loopback or ipaddress.ip_address(ip).is_link_local)
    ]
    if not usable:
        raise BadInput(
            "the host's name leads to no address that other nodes could reach",
            where=name,
            why=f"here it is {', '.join(found)}",
            next_move="give the host's IP address in nodes[].address, or nodes[].node_ip beside the name",
        )
    rest = [ip for ip in found if ip != usable[0]]
    also = f"; its other addresses here are {', '.join(rest)}" if rest else ""
    return usable[0], f"{name} is {usable[0]} as seen from here, and the nodes reach it there{also}"


def arch_of(ctx: Context, node: NodeHost) -> Arch:
    """The architecture of a node: as stated, else found by looking. Raises Refused where K3s has none for it."""
    if node.wish.arch is not None:
        return node.wish.arch
    machine = ctx.hosts.run(node.host, ["uname", "-m"]).stdout.strip()
    if machine not in MACHINE_ARCH:
        raise Refused(f"the host is {machine}, and only arm64 and amd64 are handled", where=node.wish.name)
    return MACHINE_ARCH[machine]


def known_wishes(ctx: Context) -> tuple[NodeWish, ...]:
    """The wanted nodes with the architectures found by looking where the params leave them out."""
    if all(w.arch is not None for w in ctx.params.wishes):
        return ctx.params.wishes
    found = on_all(node_hosts(ctx), lambda node: arch_of(ctx, node))
    return tuple(replace(w, arch=found[w.name]) for w in ctx.params.wishes)


def instances_by_node(instances: tuple[CloudInstance, ...], cluster: str) -> dict[str, CloudInstance]:
    """Our VMs by the node they are; a VM that is going away doesn't count."""
    return {
        vm.tags[NODE_TAG]: vm
        for vm in instances
        if ours(vm.tags, cluster) and NODE_TAG in vm.tags and vm.state not in ("TERMINATING", "TERMINATED")
    }


def need_host(ctx: Context, name: str) -> NodeHost:
    """A node that must exist by now. Raises NotFound, which names the runbook that makes it."""
    found = node_hosts(ctx).get(name)
    if found is None:
        raise NotFound(f"node {name} has no running machine", next_move="run 020-provision-vms")
    return found


def on_all(hosts: Mapping[str, NodeHost], work: Callable[[NodeHost], T]) -> dict[str, T]:
    """Do the same on all hosts at once; the first error is raised after all have ended."""
    return on_all_names(list(hosts), lambda name: work(hosts[name]))


def on_all_names(names: Sequence[str], work: Callable[[str], T]) -> dict[str, T]:
    """Do the same for all names at once; the first error is raised after all have ended."""
    if not names:
        return {}
    with ThreadPoolExecutor(max_workers=min(16, len(names))) as pool:
        futures = {name: pool.submit(work, name) for name in names}
    return {name: future.result() for name, future in futures.items()}


def helper_source() -> bytes:
    """The one helper file, plain standard-library Python, that is uploaded for what must run on a node."""
    return resources.files("hybridlab.data").joinpath("node_helper.py").read_bytes()


def install_helper(ctx: Context, host: NodeHost) -> bool:
    """Put the helper on a node; returns whether it changed."""
    return ctx.hosts.put(host.host, helper_source(), HELPER, mode=0o755, sudo=True)
