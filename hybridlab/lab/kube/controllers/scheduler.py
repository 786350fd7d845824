"""The scheduler: gives every pod that has no node the best of those that pass, or says why none does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hybridlab.lab.kube.controllers import predicates, scores
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    STORAGE_CLASS,
    VOLUME,
    Obj,
    annotations_of,
    is_deleting,
    is_finished,
    key_of,
    name_of,
    namespace_of,
    set_condition,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.predicates import SELECTED_NODE, CannotSchedule, Snapshot
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

SCHEDULER = "default-scheduler"
_ALL: Key = ("", "*")


class Scheduler(Controller):
    """One key for all waiting pods: they are looked at in the order of priority, then age."""

    name = "scheduler"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._assumed: dict[str, str] = {}  # uid → node, of pods whose claims are being provisioned for that node

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(POD, kind):
            frees = event == "DELETED" or is_finished(obj)
            return [_ALL] if frees or not spec_of(obj).get("nodeName") else []
        return [_ALL] if any(on(k, kind) for k in (NODE, CLAIM, VOLUME, STORAGE_CLASS)) else []

    async def reconcile(self, key: Key) -> float | None:
        waiting = [pod for pod in self.context.peek(POD) if _is_ours(pod)]
        present = {uid_of(pod) for pod in waiting}
        self._assumed = {uid: node for uid, node in self._assumed.items() if uid in present}
        waiting.sort(
            key=lambda p: (-int(spec_of(p).get("priority") or 0), p["metadata"]["creationTimestamp"], name_of(p))
        )
        for pod in waiting:
            self._assumed.pop(uid_of(pod), None)
            self._schedule(pod, self.snapshot())
        return None

    def snapshot(self) -> Snapshot:
        context = self.context
        by_node: dict[str, list[Obj]] = defaultdict(list)
        for pod in context.peek(POD):
            node = spec_of(pod).get("nodeName") or self._assumed.get(uid_of(pod))
            if node:
                by_node[node].append(pod)
        nodes = {name_of(n): n for n in context.peek(NODE)}
        return Snapshot(
            nodes=nodes,
            pods=by_node,
            claims={key_of(c): c for c in context.peek(CLAIM)},
            volumes={name_of(v): v for v in context.peek(VOLUME)},
            classes={name_of(c): c for c in context.peek(STORAGE_CLASS)},
            services=context.peek(SERVICE),
            namespaces={name_of(n): n for n in context.peek(NAMESPACE)},
            images={
                name: frozenset(i for entry in status_of(n).get("images") or [] for i in entry.get("names") or [])
                for name, n in nodes.items()
            },
        )

    def _schedule(self, pod: Obj, snapshot: Snapshot) -> None:
        if spec_of(pod).get("schedulingGates"):
            self._refuse(pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
            return
        try:
            passing, failing = predicates.feasible(pod, snapshot)
        except CannotSchedule as error:
            self._refuse(pod, "Unschedulable", predicates.explain_prefilter(str(error), len(snapshot.nodes)))
            return
        if not passing:
            self._refuse(pod, "Unschedulable", predicates.explain(failing, len(snapshot.nodes)))
            return
        best = choose(pod, passing, snapshot)
        if self._claims_ready(pod, best, snapshot):
            self._bind(pod, best)
        else:
            self._assumed[uid_of(pod)] = best

    def _claims_ready(self, pod: Obj, node: str, snapshot: Snapshot) -> bool:
        """Whether all claims are bound; those that wait for their consumer are told its node first."""
        ready = True
        for name in predicates.claims_of(pod):
            claim = snapshot.claims[(namespace_of(pod), name)]
            if status_of(claim).get("phase") == "Bound":
                continue
            ready = False
            if not spec_of(claim).get("volumeName") and annotations_of(claim).get(SELECTED_NODE) != node:
                self.context.change(CLAIM, claim, lambda found: _select(found, node))
        return ready

    def _bind(self, pod: Obj, node: str) -> None:
        def put(found: Obj) -> None:
            found["spec"]["nodeName"] = node

        bound = self.context.change(POD, pod, put)
        if bound is None:
            return
        status = status_of(bound)
        set_condition(status, "PodScheduled", True, self.context.now())
        self.context.set_status(POD, bound, status)
        where = f"{namespace_of(pod)}/{name_of(pod)}"
        self.context.event(bound, "Normal", "Scheduled", f"Successfully assigned {where} to {node}", SCHEDULER)

    def _refuse(self, pod: Obj, reason: str, message: str) -> None:
        current = self.context.current(POD, pod)
        if current is None:
            return
        status = status_of(current)
        if set_condition(status, "PodScheduled", False, self.context.now(), reason=reason, message=message):
            status.setdefault("phase", "Pending")
            self.context.set_status(POD, current, status)
            if reason == "Unschedulable":
                self.context.event(current, "Warning", "FailedScheduling", message, SCHEDULER)


def choose(pod: Obj, passing: list[str], snapshot: Snapshot) -> str:
    """The node with the highest score; ties (random in the real scheduler) go to the fewest pods, then by name."""
    if len(passing) == 1:
        return passing[0]
    points = scores.total(pod, passing, snapshot)
    return min(passing, key=lambda n: (-round(points[n], 6), len(snapshot.pods.get(n, ())), n))


def _select(claim: Obj, node: str) -> None:
    claim["metadata"].setdefault("annotations", {})[SELECTED_NODE] = node


def _is_ours(pod: Obj) -> bool:
    spec = spec_of(pod)
    named = spec.get("schedulerName") or SCHEDULER
    return not spec.get("nodeName") and named == SCHEDULER and not is_finished(pod) and not is_deleting(pod)
