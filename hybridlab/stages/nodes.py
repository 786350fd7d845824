"""The nodes of a cluster as hosts: where each wanted node is, on any site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

from hybridlab.errors import NotFound
from hybridlab.models import CloudInstance, HostAddress, NodeWish
from hybridlab.ports import TAG, Context

T = TypeVar("T")

NODE_TAG = "hybridlab-node"
HELPER = "/opt/hybridlab/node_helper.py"
SMALL_GB = 2.0
"""Nodes with less memory get swap and a taint: K3s' documented minimum for an agent is 512 MB, a kubelet needs air."""
SMALL_TAINT = ("hybridlab.io/small", "true", "NoSchedule")


@dataclass(frozen=True)
class NodeHost:
    """A wanted node that exists as a machine. ``private_ip`` is what the other nodes use."""

    wish: NodeWish
    host: HostAddress
    private_ip: str
    public_ip: str
    instance_id: str = ""


def is_small(wish: NodeWish) -> bool:
    return wish.memory_gb < SMALL_GB


def ours(tags: Mapping[str, str], cluster: str) -> bool:
    return tags.get(TAG) == cluster


def node_hosts(ctx: Context) -> dict[str, NodeHost]:
    """The wanted nodes that exist now, by name, in the params' order."""
    params, user = ctx.params, ctx.params.bootstrap.ssh_user
    if params.site == "byo":
        found = {}
        for wish in params.wishes:
            at = str(wish.address)
            found[wish.name] = NodeHost(wish, HostAddress(wish.name, at, wish.user or user), at, at)
        return found
    running = instances_by_node(ctx.oracle.instances(), params.cluster)
    hosts = {}
    for wish in params.wishes:
        vm = running.get(wish.name)
        if vm and vm.state == "RUNNING" and vm.public_ip and vm.private_ip:
            address = HostAddress(wish.name, vm.public_ip, user)
            hosts[wish.name] = NodeHost(wish, address, vm.private_ip, vm.public_ip, vm.id)
    return hosts


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
