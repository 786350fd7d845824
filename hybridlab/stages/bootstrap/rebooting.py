"""One node's reboot: asked for once, waited out, and what comes back proved."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.errors import AuthFailed, DeadlineExceeded, Refused, Unreachable
from hybridlab.ledger import now_iso
from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context, Kube
from hybridlab.stages.bootstrap import k3s
from hybridlab.stages.bootstrap.reboots import Request, remember, requests
from hybridlab.stages.bootstrap.seen import look_host
from hybridlab.stages.hostundo import SWAP_FILE
from hybridlab.stages.nodes import NodeHost, is_small, need_host
from hybridlab.wait import wait_until

BOOT_ID = "/proc/sys/kernel/random/boot_id"
REBOOT_DEADLINE_S = 600.0
READY_DEADLINE_S = 300.0
ANSWER_S = 20.0
NEXT = "look at the host (journalctl -b), mend it, and run 030 again: it goes on without rebooting twice"


def reboot(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Reboot a node unless that has happened since it was asked for, and prove what comes back. A proved one is left.

    Raises DeadlineExceeded where it does not come back, Refused where something did not survive.
    """
    node = need_host(ctx, step.args["node"])
    request = requests(ctx).get(node.wish.name)
    if request is not None and request.proved:
        return {"changed": False}
    now = _boot_id(ctx, node)
    if request is None:
        request = Request(now, now_iso())
        remember(ctx, node.wish.name, request)
    went_before = now != request.asked_boot
    if not went_before:
        _ask(ctx, node)
        now = _await_boot(ctx, node, request.asked_boot)
    _await_up(ctx, node)
    lost = _lost(ctx, node)
    if lost:
        raise Refused(
            f"not everything survived the reboot of {node.wish.name}",
            where=node.wish.name,
            why="; ".join(lost),
            next_move="run 030 again: it repairs what differs, and proves it by another reboot",
        )
    remember(ctx, node.wish.name, Request(request.asked_boot, request.asked, now, now_iso()))
    return {"boot": now, "before": request.asked_boot, **({"rebooted_before": True} if went_before else {})}


def _boot_id(ctx: Context, node: NodeHost) -> str:
    return ctx.hosts.run(node.host, ["cat", BOOT_ID], timeout_s=ANSWER_S).stdout.strip()


def _ask(ctx: Context, node: NodeHost) -> None:
    try:
        ctx.hosts.run(node.host, ["systemctl", "reboot"], sudo=True, timeout_s=ANSWER_S)
    except (Unreachable, DeadlineExceeded):
        return  # it went down before it could answer, or it didn't hear us: the boot id tells


def _await_boot(ctx: Context, node: NodeHost, before: str) -> str:
    def look() -> str:
        try:
            ctx.hosts.wait_for_ssh(node.host, ANSWER_S)  # over a new connection: the old one may hang half dead
            return _boot_id(ctx, node)
        except AuthFailed as error:
            if error.code == "host-key-changed":
                raise
            return ""  # while it goes down, sshd lets nobody in
        except (Unreachable, DeadlineExceeded):
            return ""

    return wait_until(
        look,
        lambda boot: boot not in ("", before),
        what=f"{node.wish.name} to come back from its reboot",
        deadline_s=REBOOT_DEADLINE_S,
        clock=ctx.clock,
        interval_s=0.5,
        describe=lambda boot: "it still runs the boot that was to end" if boot else "no SSH",
        next_move=NEXT,
    )


def _await_up(ctx: Context, node: NodeHost) -> None:
    """Until K3s runs and the API shows the node Ready by a lease that was renewed since we first looked: for up to
    forty seconds the API shows a node as it was before."""
    renewed: list[str] = []

    def look() -> str:
        unit = k3s.unit_of(node.wish.role)
        state = ctx.hosts.run(node.host, ["systemctl", "is-active", unit], sudo=True, check=False).stdout.strip()
        if state != "active":
            return f"{unit} is {state or 'unknown'}; its journal: {k3s.last_words(ctx, node)}"
        kube = ctx.kube_or_none
        if kube is None:
            return "the API does not answer"
        found = next((n for n in kube.nodes() if n.name == node.wish.name), None)
        renewed.append(_renewal(kube, node.wish.name))
        if found is None or not found.ready:
            return f"not Ready; its journal: {k3s.last_words(ctx, node)}"
        return "" if not renewed[-1] or renewed[-1] != renewed[0] else "Ready, as it was before the reboot"

    wait_until(
        look,
        lambda state: not state,
        what=f"node {node.wish.name} to be Ready after its reboot",
        deadline_s=READY_DEADLINE_S,
        clock=ctx.clock,
        next_move=NEXT,
    )


def _renewal(kube: Kube, name: str) -> str:
    """When the node's lease was renewed last; empty where the API has none."""
    lease = kube.get("coordination.k8s.io/v1", "Lease", name, "kube-node-lease")
    return str(lease.get("spec", {}).get("renewTime", "")) if lease else ""


def _lost(ctx: Context, node: NodeHost) -> list[str]:
    """What of 030's work the reboot undid."""
    host = look_host(ctx, node)
    lost = [f"live: {rule}" for rule in host.rejects_live] + [f"in the file: {rule}" for rule in host.rejects_saved]
    if is_small(node.wish) and ctx.params.bootstrap.swap_gb and SWAP_FILE not in host.swap:
        lost.append(f"{SWAP_FILE} is not in use")
    return lost
