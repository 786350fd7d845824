"""050: storage for claims: the engine against the nodes, its prerequisites, its chart, and a volume that moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridlab.models import Check, Finding, Json, NodeWish
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.charts import apply_chart
from hybridlab.stages.nodes import NodeHost, need_host, node_hosts, on_all
from hybridlab.stages.objects import Differences, apply_object, apply_steps, deployment_ready, look_objects
from hybridlab.stages.storage.engines import OPENEBS, Verdict, verdicts, wanted_objects
from hybridlab.stages.storage.moving import move_test, moving_inputs
from hybridlab.wait import wait_until

NAME = "storage"
NEEDS = ("bootstrap",)
EVIDENCE = "storage-moving"
MODULES_FILE = "/etc/modules-load.d/hybridlab-iscsi.conf"
PACKAGE = "open-iscsi"
RISKY_ISCSI = (2, 1, 10)  # from here on K3s' in-tree iSCSI broke (k3s#11708); Jiva brings its own CSI driver


@dataclass(frozen=True)
class HostSeen:
    """iSCSI on one host: the package's version ("" when missing), the service, the module now and at boot."""

    package: str
    service: str
    module_loaded: bool
    module_at_boot: bool

    @property
    def ready(self) -> bool:
        return bool(self.package) and self.service == "active" and self.module_loaded and self.module_at_boot


@dataclass(frozen=True)
class Seen:
    """Engines against the nodes, iSCSI on the hosts, objects against what is wanted, evidence of the moving test."""

    verdicts: tuple[Verdict, ...]
    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    objects: Differences = field(default_factory=Differences)
    evidence: str = ""  # why the moving test need not run again; empty when it must
    evidence_missing: str = ""


def look(ctx: Context) -> Seen:
    """Look at iSCSI on every host (for Jiva), at the engine's objects, and for evidence of the moving test."""
    params = ctx.params
    hosts = on_all(node_hosts(ctx), lambda n: _look_host(ctx, n)) if params.storage.engine == "jiva" else {}
    objects = look_objects(ctx.kube_or_none, wanted_objects(params))
    evidence, why = ctx.evidence.usable(EVIDENCE, inputs=moving_inputs(params), max_age_h=24 * 365, now=ctx.clock.now())
    return Seen(
        verdicts(params.wishes, params.storage.replicas),
        hosts,
        objects,
        why if evidence else "",
        "" if evidence else why,
    )


def _look_host(ctx: Context, node: NodeHost) -> HostSeen:
    def run(*argv: str) -> tuple[int, str]:
        result = ctx.hosts.run(node.host, argv, sudo=True, check=False)
        return result.exit_status, result.stdout.strip()

    status, version = run("dpkg-query", "-W", "-f=${Version}", PACKAGE)
    modules = run("lsmod")[1]
    return HostSeen(
        package=version if status == 0 else "",
        service=run("systemctl", "is-active", "iscsid")[1],
        module_loaded=any(line.split()[0] == "iscsi_tcp" for line in modules.splitlines() if line.split()),
        module_at_boot="iscsi_tcp" in run("cat", MODULES_FILE)[1].split(),
    )


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """iSCSI on the hosts, the engine's chart, policy and StorageClass, then the test that a volume moves."""
    storage = params.storage
    chosen = next(v for v in seen.verdicts if v.engine == storage.engine)
    findings = []
    if not chosen.fits:
        better = ", ".join(v.engine for v in seen.verdicts if v.fits)
        findings.append(
            Finding(
                "refusal",
                f"storage.engine {storage.engine}",
                chosen.why,
                f"these fit: {better or 'none'}" + ("; or storage.replicas 3 (or 1)" if storage.replicas == 2 else ""),
            )
        )
    elif storage.engine == "jiva" and storage.replicas == 1:
        findings.append(
            Finding(
                "warning", "storage.replicas 1", "one copy: a lost node is lost data", "3 copies, or frequent backups"
            )
        )
    elif not chosen.moves:
        findings.append(Finding("warning", f"storage.engine {storage.engine}", chosen.why))
    steps: list[Step] = []
    if storage.engine == "jiva":
        for wish in params.wishes:
            step, finding = _iscsi(wish, seen.hosts.get(wish.name))
            steps += [step] if step else []
            findings += [finding] if finding else []
    for step in apply_steps(wanted_objects(params), seen.objects, f"storage by {storage.engine}"):
        if step.target.startswith("HelmChart/"):
            step = Step(**{**step.__dict__, "action": "apply-chart"})
        steps.append(step)
    if not seen.evidence:
        what = "the same bytes on another node" if chosen.moves else "its bytes are read back"
        steps.append(
            Step(
                "test-volume",
                "test-volume",
                f"StorageClass {storage.storage_class}",
                f"proof by a test claim: {what} ({seen.evidence_missing})",
                "create",
                {"megabytes": storage.test_mb, "moves": chosen.moves},
            )
        )
    expected = {"storage_class": storage.storage_class, "moves": chosen.moves, "replicas": storage.replicas}
    return Plan(NAME, tuple(steps), expected, tuple(findings))


def _iscsi(wish: NodeWish, host: HostSeen | None) -> tuple[Step | None, Finding | None]:
    finding = None
    if host and host.package and _version(host.package) >= RISKY_ISCSI:
        finding = Finding(
            "note",
            wish.name,
            f"open-iscsi {host.package}: from 2.1.10 on K3s' own iSCSI plugin is broken; "
            "Jiva's driver is not concerned",
        )
    if host and host.ready:
        return None, finding
    missing = (
        "not looked at yet: no host"
        if host is None
        else ", ".join(
            text
            for text, bad in (
                ("open-iscsi is not installed", not host.package),
                ("iscsid is not active", host.service != "active"),
                ("iscsi_tcp is not loaded", not host.module_loaded),
                ("iscsi_tcp is not loaded at boot", not host.module_at_boot),
            )
            if bad
        )
    )
    step = Step(
        f"iscsi:{wish.name}",
        "iscsi",
        wish.name,
        f"Jiva's volumes are iSCSI: {missing}",
        "change",
        {"node": wish.name},
        batch="iscsi",
    )
    return step, finding


def _version(text: str) -> tuple[int, ...]:
    """``2.1.9-3ubuntu5`` → (2, 1, 9)"""
    numbers = text.split("-")[0].split("+")[0].split(".")
    return tuple(int(n) for n in numbers if n.isdigit())


# -- actions -----------------------------------------------------------------------------------------------------------
def _do_iscsi(ctx: Context, step: Step) -> Mapping[str, Json]:
    node = need_host(ctx, step.args["node"])
    seen = _look_host(ctx, node)

    def run(*argv: str) -> None:
        ctx.hosts.run(node.host, argv, sudo=True, timeout_s=300)

    if not seen.package:
        wait = ("-o", "DPkg::Lock::Timeout=300")  # a fresh machine upgrades itself meanwhile
        run("apt-get", "update", "-q", *wait)
        run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", *wait, PACKAGE)
    run("systemctl", "enable", "--now", "iscsid")
    run("modprobe", "iscsi_tcp")
    ctx.hosts.put(node.host, b"iscsi_tcp\n", MODULES_FILE, sudo=True)
    return {"package": _look_host(ctx, node).package}


ACTIONS: Mapping[str, Action] = {
    "iscsi": _do_iscsi,
    "apply": apply_object,
    "apply-chart": apply_chart,
    "test-volume": move_test,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """Prerequisites, the engine's workloads, the objects as wanted, and the evidence that a volume moved."""
    seen = look(ctx)
    checks = [
        Check(f"iSCSI {name}", host.ready, f"open-iscsi {host.package or 'missing'}, iscsid {host.service}")
        for name, host in seen.hosts.items()
    ]
    if ctx.params.storage.engine in ("jiva", "localpv"):
        waiting = wait_until(
            lambda: _unready(ctx),
            lambda names: not names,
            what=f"the workloads in {OPENEBS} to be ready",
            deadline_s=300,
            clock=ctx.clock,
            describe=", ".join,
        )
        checks.append(Check("engine", not waiting, f"all workloads in {OPENEBS} are ready"))
    different = ", ".join(f"{name}: {', '.join(p)}" for name, p in seen.objects.paths.items())
    checks.append(Check("objects", not different, different or "chart, policy and StorageClass are as wanted"))
    evidence = ctx.evidence.load(EVIDENCE)
    if evidence is None:
        checks.append(Check("test volume", False, "it was never tested", "run 050 again"))
    else:
        checks.append(Check("test volume", bool(evidence.data["same"]), str(evidence.data["summary"])))
    return tuple(checks)


def _unready(ctx: Context) -> list[str]:
    found = []
    for kind in ("Deployment", "StatefulSet"):
        for obj in ctx.kube.list("apps/v1", kind, OPENEBS):
            if not deployment_ready(obj):
                found.append(f"{kind} {obj['metadata']['name']}")
    for obj in ctx.kube.list("apps/v1", "DaemonSet", OPENEBS):
        status = obj.get("status", {})
        if status.get("numberReady", 0) < status.get("desiredNumberScheduled", 1):
            found.append(f"DaemonSet {obj['metadata']['name']}")
    return found
