"""What bootstrap does on hosts and nodes; every action may be repeated."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.errors import NotFound, Unreachable
from hybridlab.models import Json, NodeInfo
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages import datastore, drains, firewall
from hybridlab.stages.base import Action
from hybridlab.stages.bootstrap import k3s, matrix
from hybridlab.stages.bootstrap.rebooting import reboot
from hybridlab.stages.bootstrap.seen import MARKER
from hybridlab.stages.hostundo import FSTAB, SWAP_FILE, with_swap
from hybridlab.stages.nodes import (
    SMALL_TAINT,
    NodeHost,
    install_helper,
    need_host,
    node_hosts,
)
from hybridlab.wait import wait_until

READY_DEADLINE_S = 300.0
API_DEADLINE_S = 180.0


def _mark(ctx: Context, step: Step) -> Mapping[str, Json]:
    node = need_host(ctx, step.args["node"])
    helper = install_helper(ctx, node)
    return {"changed": ctx.hosts.put(node.host, ctx.params.cluster.encode() + b"\n", MARKER, sudo=True) or helper}


def _probe(ctx: Context, step: Step) -> Mapping[str, Json]:
    paths = matrix.connectivity_before(ctx, node_hosts(ctx))
    rows = matrix.evidence_of(paths)
    ctx.evidence.save(matrix.BEFORE, {"paths": rows}, inputs={"nodes": sorted(node_hosts(ctx))})
    return {"open": sum(state == "ok" for state in paths.values()), "of": len(paths)}


def _open_firewall(ctx: Context, step: Step) -> Mapping[str, Json]:
    return firewall.open_firewall(ctx, need_host(ctx, step.args["node"]).host)


def _swap(ctx: Context, step: Step) -> Mapping[str, Json]:
    host = need_host(ctx, step.args["node"]).host

    def run(*argv: str, check: bool = True) -> str:
        return ctx.hosts.run(host, argv, sudo=True, check=check, timeout_s=300).stdout

    if SWAP_FILE in run("swapon", "--show=NAME", "--noheadings", "--raw").split():
        return {"changed": False}
    run("fallocate", "-l", f"{step.args['gb']}G", SWAP_FILE)
    run("chmod", "600", SWAP_FILE)
    run("mkswap", SWAP_FILE)
    # in use last: a look counts that as done, and someone killed in between would leave it to end at the next boot
    ctx.hosts.put(host, with_swap(run("cat", FSTAB, check=False)).encode(), FSTAB, sudo=True)
    run("swapon", SWAP_FILE)
    return {"gb": step.args["gb"]}


def _install(ctx: Context, step: Step) -> Mapping[str, Json]:
    node, server = _node_and_server(ctx, step)
    release = k3s.put_release(ctx, node)
    k3s.put_config(ctx, node, server)
    k3s.run_installer(ctx, node)
    if node is server or node.wish.role == "server":
        k3s.wait_for_server(ctx, node)
    else:
        _await_ready(ctx, node)
    return release


def _upgrade(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Another version over the one that is there: install.sh would not restart K3s, since the binary came before it."""
    node, server = _node_and_server(ctx, step)
    release = k3s.put_release(ctx, node)
    k3s.put_config(ctx, node, server)
    k3s.run_installer(ctx, node, force_restart=True)
    if node.wish.role == "server":
        k3s.wait_for_server(ctx, node)
    _await_version(ctx, node, step.args["version"])
    return release


def _snapshot(ctx: Context, step: Step) -> Mapping[str, Json]:
    return datastore.take_snapshot(ctx, need_host(ctx, step.args["node"]), datastore.new_name("before-upgrade"))


def _drain(ctx: Context, step: Step) -> Mapping[str, Json]:
    drains.cordon(ctx, step.args["node"], label=drains.UPGRADING)
    return {"pods": drains.drain(ctx, step.args["node"])}


def _uncordon(ctx: Context, step: Step) -> Mapping[str, Json]:
    drains.uncordon(ctx, step.args["node"], label=drains.UPGRADING)
    return {}


def _configure(ctx: Context, step: Step) -> Mapping[str, Json]:
    node, server = _node_and_server(ctx, step)
    changed = k3s.put_config(ctx, node, server)
    ctx.hosts.run(node.host, ["systemctl", "restart", k3s.unit_of(node.wish.role)], sudo=True, timeout_s=120)
    if node.wish.role == "server":
        k3s.wait_for_server(ctx, node)
    _await_ready(ctx, node)
    return {"changed": changed}


def _start(ctx: Context, step: Step) -> Mapping[str, Json]:
    node = need_host(ctx, step.args["node"])
    ctx.hosts.run(node.host, ["systemctl", "start", k3s.unit_of(node.wish.role)], sudo=True, timeout_s=120)
    _await_ready(ctx, node)
    return {}


def _node_and_server(ctx: Context, step: Step) -> tuple[NodeHost, NodeHost]:
    return need_host(ctx, step.args["node"]), need_host(ctx, ctx.params.server.name)


def _save_kubeconfig(ctx: Context, step: Step) -> Mapping[str, Json]:
    server = need_host(ctx, step.args["server"])
    k3s.wait_for_server(ctx, server)
    path = k3s.save_kubeconfig(ctx, server, _dial_api(ctx, server))
    _await_ready(ctx, server)
    return {"path": path.name}


def _dial_api(ctx: Context, server: NodeHost) -> tuple[str, int]:
    """What to connect to for the API, once the site lets us through to it."""

    def dial() -> tuple[tuple[str, int] | None, str]:
        try:
            return ctx.site.dial(server.public_ip, 6443), ""
        except Unreachable as error:
            return None, error.why

    found, _ = wait_until(
        dial,
        lambda answer: answer[0] is not None,
        what=f"the API of {server.wish.name} on {server.public_ip}:6443",
        deadline_s=API_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda answer: answer[1],
        next_move="is your address the one the security group lets in? Run 020 again",
    )
    assert found is not None
    return found


def _await_ready(ctx: Context, node: NodeHost) -> None:
    """Until the API shows the node Ready; the journal's last line explains when it doesn't."""

    def look_node() -> NodeInfo | None:
        return next((n for n in ctx.kube.nodes() if n.name == node.wish.name), None)

    wait_until(
        look_node,
        lambda n: n is not None and n.ready,
        what=f"node {node.wish.name} to be Ready",
        deadline_s=READY_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda n: ("not Ready" if n else "not in the cluster") + f"; its journal: {k3s.last_words(ctx, node)}",
        next_move="the journal's line says why; run 030 again after mending it",
    )


def _await_version(ctx: Context, node: NodeHost, version: str) -> None:
    """Until the API shows the node Ready in this version: for some seconds it still shows what was before."""

    def look_node() -> NodeInfo | None:
        kube = ctx.kube_or_none
        return None if kube is None else next((n for n in kube.nodes() if n.name == node.wish.name), None)

    wait_until(
        look_node,
        lambda n: n is not None and n.ready and n.version == version,
        what=f"node {node.wish.name} to be Ready with K3s {version}",
        deadline_s=READY_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda n: f"{n.version if n else 'not in the API'}; its journal: {k3s.last_words(ctx, node)}",
        next_move="the journal's line says why; run 030 again after mending it, or restore the snapshot with 910",
    )


def _await(ctx: Context, step: Step) -> Mapping[str, Json]:
    _await_ready(ctx, need_host(ctx, step.args["node"]))
    return {}


def _label(ctx: Context, step: Step) -> Mapping[str, Json]:
    ctx.kube.patch("v1", "Node", step.args["node"], None, {"metadata": {"labels": step.args["labels"]}})
    return {}


def _taint(ctx: Context, step: Step) -> Mapping[str, Json]:
    node = ctx.kube.get("v1", "Node", step.args["node"])
    if node is None:
        raise NotFound(f"node {step.args['node']} is not in the cluster", next_move="run 030 again")
    key, value, effect = SMALL_TAINT
    taints = [t for t in node["spec"].get("taints", []) if t["key"] != key]
    if step.args["tainted"]:
        taints.append({"key": key, "value": value, "effect": effect})
    ctx.kube.patch("v1", "Node", step.args["node"], None, {"spec": {"taints": taints}})
    return {}


ACTIONS: Mapping[str, Action] = {
    "mark": _mark,
    "probe": _probe,
    "open-firewall": _open_firewall,
    "swap": _swap,
    "install": _install,
    "upgrade": _upgrade,
    "snapshot": _snapshot,
    "drain": _drain,
    "uncordon": _uncordon,
    "reboot": reboot,
    "configure": _configure,
    "start": _start,
    "save-kubeconfig": _save_kubeconfig,
    "await": _await,
    "label": _label,
    "taint": _taint,
}
