"""A host as it was before bootstrap: K3s, swap, helper and marker go, the firewall's rules come back.

The marker goes last, so that an undo that broke off is found again by the next look.
"""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import HostAddress, Json
from hybridlab.ports import Context
from hybridlab.stages import firewall
from hybridlab.stages.nodes import NodeHost

MARKS = "/etc/hybridlab"
OURS = "/opt/hybridlab"
SNAPSHOTS = "/var/lib/hybridlab"
FSTAB = "/etc/fstab"
SWAP_FILE = "/swapfile-hybridlab"
UNINSTALL_DEADLINE_S = 300.0
UNINSTALLERS: Mapping[str, str] = {
    "server": "/usr/local/bin/k3s-uninstall.sh",
    "agent": "/usr/local/bin/k3s-agent-uninstall.sh",
}


def undo_host(ctx: Context, node: NodeHost) -> Mapping[str, Json]:
    """Undo everything that bootstrap did on a host; what was done by others stays. May be repeated."""
    removed = uninstall_k3s(ctx, node)
    restored = firewall.close_firewall(ctx, node.host)
    swap = drop_swap(ctx, node.host)
    ctx.hosts.run(node.host, ["rm", "-rf", OURS, SNAPSHOTS], sudo=True)
    ctx.hosts.run(node.host, ["rm", "-rf", MARKS], sudo=True)
    return {**restored, "k3s_removed": removed, "swap_removed": swap}


def uninstall_k3s(ctx: Context, node: NodeHost) -> bool:
    """Run the script that K3s' install.sh left behind; returns whether there was one."""
    script = UNINSTALLERS[node.wish.role]
    if ctx.hosts.run(node.host, ["test", "-e", script], sudo=True, check=False).exit_status:
        return False
    ctx.hosts.run(node.host, [script], sudo=True, timeout_s=UNINSTALL_DEADLINE_S)
    # K3s' script leaves the node's password, with which a machine of another name or cluster would be refused
    ctx.hosts.run(node.host, ["rm", "-rf", "/etc/rancher/node"], sudo=True)
    ctx.hosts.run(node.host, ["rmdir", "/etc/rancher", "/var/lib/rancher"], sudo=True, check=False)
    return True


def drop_swap(ctx: Context, host: HostAddress) -> bool:
    """Take our swap file out of use, out of fstab and off the disk; returns whether any of it was there."""
    there = ctx.hosts.run(host, ["test", "-e", SWAP_FILE], sudo=True, check=False).exit_status == 0
    shown = ctx.hosts.run(host, ["swapon", "--show=NAME", "--noheadings", "--raw"], sudo=True, check=False).stdout
    if there and SWAP_FILE in shown.split():
        ctx.hosts.run(host, ["swapoff", SWAP_FILE], sudo=True, timeout_s=300)
    fstab = ctx.hosts.run(host, ["cat", FSTAB], check=False).stdout
    kept = without_swap(fstab)
    if kept != fstab:
        ctx.hosts.put(host, kept.encode(), FSTAB, sudo=True)
    ctx.hosts.run(host, ["rm", "-f", SWAP_FILE], sudo=True)
    return there or kept != fstab


def with_swap(fstab: str) -> str:
    """fstab with the line of our swap file, once, at the end."""
    kept = without_swap(fstab)
    return f"{kept}{'' if not kept or kept.endswith(chr(10)) else chr(10)}{SWAP_FILE} none swap sw 0 0\n"


def without_swap(fstab: str) -> str:
    return "".join(line for line in fstab.splitlines(keepends=True) if line.split()[:1] != [SWAP_FILE])
