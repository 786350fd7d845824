"""``open_cluster``: a params file becomes a cluster whose stages look, plan, ask, apply and verify."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hybridlab import ports
from hybridlab.errors import BadInput, GateClosed, NotFound, Unreachable, VerifyFailed
from hybridlab.home import find_root, lab_directory
from hybridlab.ledger import EvidenceStore, Ledger, SecretStore, locked, who
from hybridlab.masking import all_forms, mask
from hybridlab.models import Check, Gate, HandOver, HostAddress, Json
from hybridlab.params import Params, check_params, parse_override, read_params, set_path
from hybridlab.plan import Plan, plan_hash
from hybridlab.sites import RealSite, open_site
from hybridlab.stages.base import Stage, StepOutcome, Upstream, apply, ending_threads
from hybridlab.wait import Clock, SystemClock

STAGES: Mapping[str, str] = {
    "layout": "010-plan-cluster",
    "provision": "020-provision-vms",
    "bootstrap": "030-bootstrap-k3s",
    "benchmark": "040-benchmark-nodes",
    "storage": "050-deploy-storage",
    "expose": "060-expose-services",
    "migrate": "070-migrate-services",
    "cut_over": "075-cut-over",
    "backup": "080-back-up",
    "drill": "090-rehearse-restore",
    "teardown": "900-tear-down",
    "maintain": "910-maintain-nodes",
}
"""Each stage's name and its runbook, in order."""

ON_REQUEST = ("cut_over", "teardown", "maintain")  # run only when named: they stop services, or take things away


def new_run_id(cluster: str) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{cluster}"


def open_cluster(params_file: str | Path, *, stage: str | None = None, **overrides: Json) -> Cluster:
    """Open the cluster that a params file describes.

    ``overrides`` replace single parameters: dotted paths, or with ``stage`` the flat names of that stage's section;
    None leaves the file's value. ``approve`` is special: ``all`` or a plan's hash (see StageRun.gate). Nothing is
    connected to yet, except that on site lab the lab must answer. Raises ParamsError, LabNotRunning.
    """
    root = find_root()
    path = Path(params_file)
    if not path.is_absolute() and not path.exists():
        path = root / path
    approve = overrides.pop("approve", None)
    dotted = {(f"{stage}.{k}" if stage and "." not in k else k): v for k, v in overrides.items()}
    for item in filter(None, os.environ.get("HYBRIDLAB_SET", "").split("\n")):
        key, value = parse_override(item)
        dotted[key] = value
    params = read_params(path, dotted)
    # papermill's -p makes a number of a hash that looks like one: that approves nothing, and must not be taken for none
    approvals = [] if approve in (None, "") else [str(approve)]
    return Cluster(params, root=root, params_file=path, approvals=approvals)


class Cluster:
    """One cluster: its params, record and drivers. It is the ``Context`` that stages get."""

    def __init__(
        self,
        params: Params,
        *,
        root: Path,
        params_file: Path,
        approvals: list[str] | None = None,
        clock: Clock | None = None,
        say: ports.Progress | None = None,
    ) -> None:
        self.params = params
        self.root = root
        self.params_file = params_file
        self.params_base = params_file.parent
        self.state = root / "state" / params.cluster
        self.run = os.environ.get("HYBRIDLAB_RUN") or new_run_id(params.cluster)
        self.clock: Clock = clock or SystemClock()
        self.say: ports.Progress = say or _say
        self.secrets = SecretStore(self.state / "secrets")
        self.ledger = Ledger(self.state / "ledger.jsonl", run=self.run, redact=self._redact)
        self.evidence = EvidenceStore(self.state / "evidence", cluster=params.cluster, run=self.run)
        self.approvals = [*(approvals or []), *filter(None, os.environ.get("HYBRIDLAB_APPROVE", "").split(","))]
        self.site: RealSite = open_site(params, params_file.parent, lab_directory(root))
        self.notes: dict[str, Any] = {}
        self.max_age_s = 0.0  # of what a look uses, see ``upstream``
        self.revision = 0  # of the params in this session: what was seen and planned before is stale
        self._kube: ports.Kube | None = None

    def _redact(self, text: str) -> str:
        return mask(text, all_forms(self.secrets.values()))

    def _first_contact(self, host: HostAddress, fingerprint: str) -> None:
        detail = {"fingerprint": fingerprint, "trust": "accepted as new"}
        self.ledger.add("bootstrap", "first-contact", "done", effect="none", target=host.address, detail=detail)

    # -- drivers, connected on first use ---------------------------------------------------------------------------
    @cached_property
    def oracle(self) -> ports.Oracle:
        from hybridlab.drivers.oracle import OracleDriver

        where = self.site.oracle_endpoint()
        return OracleDriver(
            config_file=where.config_file,
            profile=where.profile,
            endpoint=where.endpoint,
            compartment=self.params.oracle.compartment,
            memory=self.state / "oracle.json",
        )

    @cached_property
    def hosts(self) -> ports.Hosts:
        own = self.secrets.path("ssh_key")
        return self._ssh(lambda host: self.site.ssh_key(own, host), sudo_password=self.site.sudo_password)

    @cached_property
    def docker_hosts(self) -> ports.Hosts:
        key = self.site.docker_key()
        return self._ssh(lambda _: key)

    def _ssh(self, key: Callable[[HostAddress], Path | None], **options: Any) -> ports.Hosts:
        from hybridlab.drivers.ssh import SshHosts

        known = self.state / "known_hosts"
        return SshHosts(self.site.dial, known, key, on_first_contact=self._first_contact, **options)

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def kube(self) -> ports.Kube:
        if self._kube is None:
            from hybridlab.drivers.kube import KubeDriver

            if not self.kubeconfig.exists():
                raise NotFound(
                    "there is no kubeconfig yet",
                    where=str(self.kubeconfig),
                    next_move="run 030-bootstrap-k3s first",
                )
            self._kube = KubeDriver(self.kubeconfig)
        return self._kube

    @property
    def kube_or_none(self) -> ports.Kube | None:
        try:
            self.kube.version()
        except (NotFound, Unreachable):
            return None
        return self.kube

    @cached_property
    def registry(self) -> ports.Registry:
        from hybridlab.drivers.registry import RegistryDriver

        return RegistryDriver(cache=self.root / "state" / "image-cache", endpoint_for=self.site.registry_endpoint)

    @cached_property
    def s3(self) -> ports.S3:
        from hybridlab.drivers.s3 import S3Driver

        settings = self.site.s3_settings()
        return S3Driver(
            endpoint=settings["endpoint"],
            region=settings["region"],
            bucket=self.params.backup.bucket,
            access_key=settings["access_key"],
            secret_key=settings["secret_key"],
        )

    def interrupt(self) -> None:
        if isinstance(self.clock, SystemClock):
            self.clock.interrupt()
        for name in ("hosts", "docker_hosts"):
            if name in self.__dict__:  # opened: there may be something under way
                getattr(self, name).interrupt()

    def refresh(self) -> None:
        kube, self._kube = self._kube, None
        if kube is not None:
            kube.close()

    def close(self) -> None:
        """Let go of every connection; whatever is used again connects anew."""
        for name in ("oracle", "hosts", "docker_hosts", "registry", "s3"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        self.refresh()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def override(self, **changes: Json) -> None:
        """Change params for this session only, by dotted path; drivers are opened anew. Raises ParamsError."""
        data = self.params.plain()
        for key, value in changes.items():
            set_path(data, key, value)
        self.params = check_params(data, where=str(self.params_file))
        self.close()
        self.site = open_site(self.params, self.params_base, lab_directory(self.root))
        self.notes.clear()
        self.revision += 1

    # -- stages ----------------------------------------------------------------------------------------------------
    def stage(self, name: str) -> StageRun:
        """One stage of this cluster's life, by its word. Raises BadInput for a word that names none."""
        return StageRun(self, load_stage(name))

    def upstream(self, stage: Stage, cache: dict[str, Mapping[str, Json]] | None = None) -> Upstream:
        """What the needed stages will have made so: the fold of their plans over what is really there.

        What was seen of Oracle moments ago in this process will do for that; the stage itself has looked afresh.
        """
        known: dict[str, Mapping[str, Json]] = {} if cache is None else cache
        age, self.max_age_s = self.max_age_s, ports.FRESH_S
        try:
            for name in stage.NEEDS:
                if name not in known:
                    needed = load_stage(name)
                    before = self.upstream(needed, known)
                    known[name] = needed.plan(self.params, needed.look(self), before).expected
        finally:
            self.max_age_s = age
        return known

    def writing(self) -> Any:
        """Hold the cluster's lock, unless the run this process belongs to already does."""
        if os.environ.get("HYBRIDLAB_LOCKED") == self.run:
            return nullcontext()
        return locked(self.state / "lock", run=self.run)


def load_stage(name: str) -> Stage:
    if name not in STAGES:
        raise BadInput(f"no stage is called {name!r}", next_move=f"one of: {', '.join(STAGES)}")
    return cast(Stage, importlib.import_module(f"hybridlab.stages.{name}"))


class StageRun:
    """A stage's five moves on one cluster, each remembered for the next: look → plan → gate → apply → verify."""

    def __init__(self, cluster: Cluster, stage: Stage) -> None:
        self.cluster = cluster
        self.name = stage.NAME
        self._stage = stage
        self._seen: Any = None
        self._plan: Plan | None = None
        self._revision = cluster.revision
        self._approved: dict[str, str] = {}
        self._outcomes: tuple[StepOutcome, ...] = ()
        self._checks: tuple[Check, ...] = ()

    def look(self) -> Any:
        """Read what is really there; the stage's ``Seen``."""
        with ending_threads(self.cluster):
            self._seen = self._stage.look(self.cluster)
        self._plan, self._revision = None, self.cluster.revision
        return self._seen

    def plan(self) -> Plan:
        """What applying would do. Looks first if that wasn't done; records the plan's hash in the ledger."""
        if self._seen is None or self._revision != self.cluster.revision:
            self.look()
        self._plan = self._stage.plan(self.cluster.params, self._seen, self.cluster.upstream(self._stage))
        return self._plan

    @property
    def hash(self) -> str:
        return plan_hash(self.cluster.params.plain(self.name), self._need_plan())

    def _need_plan(self) -> Plan:
        return self._plan if self._plan and self._revision == self.cluster.revision else self.plan()

    def gate(self) -> Gate:
        """Whether the plan may be applied.

        An empty plan needs no approval. In JupyterLab a closed gate is returned, for a button to open. Elsewhere a
        closed gate raises GateClosed, which names the hash to approve.
        """
        plan = self._need_plan()
        plan.expect_applicable()
        by = self._approved_by(plan)
        gate = Gate(self.name, self.hash, bool(by), by, len(plan.steps))
        if not gate.open and not in_jupyterlab():
            raise self._closed()
        counts = {effect: sum(s.effect == effect for s in plan.steps) for effect in ("create", "change", "delete")}
        findings = [{"level": f.level, "subject": f.subject, "text": f.text, "strict": f.strict} for f in plan.findings]
        self.cluster.ledger.add(self.name, "", "planned", detail={"hash": self.hash, **counts, "findings": findings})
        if gate.open and plan.changes:
            self._record_approval(by)
        return gate

    def _approved_by(self, plan: Plan) -> str:
        if not plan.changes:
            return "nothing to approve"
        if self.hash in self._approved:
            return self._approved[self.hash]
        if "all" in self.cluster.approvals:
            return "--approve all"
        if self.hash in self.cluster.approvals:
            return f"--approve {self.hash}"
        driven = "HYBRIDLAB_APPROVE" in os.environ or self.cluster.approvals
        if self.cluster.params.site == "lab" and not driven and not in_jupyterlab():
            # a notebook run bare, e.g. by the papermill command: a rehearsal has nothing to protect
            return "rehearsal in the lab"
        return ""

    def _closed(self) -> GateClosed:
        """The error of somebody's try without an approval of this very plan; the ledger remembers the try."""
        given = [a for a in self.cluster.approvals if a != "all"]
        why = f"approved was {', '.join(given)}: the plan is another one" if given else "nobody approved it"
        self.cluster.ledger.add(self.name, "", "refused", detail={"hash": self.hash, "given": given, "who": who()})
        return GateClosed(
            f"the gate of {self.name} is closed for plan {self.hash}",
            where=self.cluster.params.cluster,
            why=why,
            next_move=f"hybridlab plan {self.name} --params {self.cluster.params_file}; then --approve {self.hash}",
        )

    def approve(self, by: str) -> Gate:
        """Open the gate for the plan as it is now (what the button in JupyterLab does)."""
        plan = self._need_plan()
        self._approved[self.hash] = by
        self._record_approval(by)
        return Gate(self.name, self.hash, True, by, len(plan.steps))

    def _record_approval(self, by: str) -> None:
        rows = self.cluster.ledger.rows(stage=self.name)
        last = next((r for r in reversed(rows) if r.event == "approved"), None)
        if last and last.run == self.cluster.run and last.detail.get("hash") == self.hash:
            return
        self.cluster.ledger.add(self.name, "", "approved", detail={"hash": self.hash, "by": by, "who": who()})

    def apply(self, on_step: Callable[[StepOutcome], None] | None = None) -> tuple[StepOutcome, ...]:
        """Run the approved plan's steps. Raises GateClosed, StepFailed, Interrupted."""
        plan = self._need_plan()
        if not self._approved_by(plan):
            raise self._closed()
        if not plan.changes:
            self._outcomes = ()
            return ()
        with self.cluster.writing():
            self._outcomes = apply(self.cluster, plan, self._stage.ACTIONS, on_step=on_step)
        return self._outcomes

    def verify(self) -> tuple[Check, ...]:
        """Look again and prove it; the checks, also those that failed (``hand_over`` raises for them)."""
        with ending_threads(self.cluster):
            self._checks = self._stage.verify(self.cluster)
        return self._checks

    def hand_over(self) -> HandOver:
        """Record how the stage ended. Raises VerifyFailed where a check failed."""
        failed = [c for c in self._checks if not c.ok]
        plan = self._need_plan()
        checks = [{"name": c.name, "ok": c.ok, "evidence": c.evidence} for c in self._checks]
        detail = {"steps": len(self._outcomes), "checks": checks}
        self.cluster.ledger.add(self.name, "", "failed" if failed else "verified", detail=detail)
        if failed:
            raise VerifyFailed(
                f"{self.name}: {len(failed)} of {len(self._checks)} checks failed",
                where=failed[0].name,
                why=failed[0].evidence,
                next_move=failed[0].next_move or "run the stage again: it repairs what differs",
            )
        later = list(STAGES)[list(STAGES).index(self.name) + 1 :]
        following = next((STAGES[n] for n in later if n not in ON_REQUEST), "")
        return HandOver(self.name, len(self._outcomes), self._checks, plan.findings, following)


def in_jupyterlab() -> bool:
    """Whether a Jupyter server started this kernel, so that a person can press a button."""
    return "JPY_SESSION_NAME" in os.environ and not os.environ.get("HYBRIDLAB_HEADLESS")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
