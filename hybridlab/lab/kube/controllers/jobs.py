"""Jobs and CronJobs: pods that are to end, again after failures up to a limit, on time.

The pause before a failed pod is made anew is ten times shorter than the real one: 1 s doubling to 36 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hybridlab.lab.kube.controllers import cron
from hybridlab.lab.kube.controllers.objects import (
    CRON_JOB,
    JOB,
    POD,
    Obj,
    annotations_of,
    condition_is,
    controller_of,
    is_deleting,
    is_finished,
    is_ready,
    key_of,
    name_of,
    namespace_of,
    owner_reference,
    pod_phase,
    seconds_of,
    set_condition,
    spec_of,
    status_of,
    timestamp,
)
from hybridlab.lab.kube.controllers.podcontrol import create_pod, delete_pod, owned, pod_from
from hybridlab.lab.kube.controllers.work import Controller, Key, on

INDEX = "batch.kubernetes.io/job-completion-index"
_SOURCE = "job-controller"
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 36.0


class Jobs(Controller):
    name = "job"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(JOB, kind):
            return [key_of(obj)]
        if on(POD, kind):
            owner = controller_of(obj)
            return [(namespace_of(obj), owner["name"])] if owner is not None and owner["kind"] == "Job" else []
        return []

    async def reconcile(self, key: Key) -> float | None:
        job = self.context.get(JOB, key[1], key[0])
        if job is None or is_deleting(job):
            return None
        if is_done(job):
            return self._expire(job)
        pods = owned(self.context, POD, job)
        failed = max(sum(1 for p in pods if pod_phase(p) == "Failed"), int(status_of(job).get("failed") or 0))
        succeeded = [p for p in pods if pod_phase(p) == "Succeeded"]
        count = max(len(_distinct(job, succeeded)), int(status_of(job).get("succeeded") or 0))
        running = [p for p in pods if not is_finished(p) and not is_deleting(p)]
        status = status_of(job)
        if spec_of(job).get("suspend"):
            self._suspend(job, status, running)
            return None
        if "startTime" not in status or condition_is(job, "Suspended"):
            status["startTime"] = timestamp(self.context.now())
            if condition_is(job, "Suspended"):
                set_condition(
                    status, "Suspended", False, self.context.now(), reason="JobResumed", message="Job resumed"
                )
        status.update(failed=failed, succeeded=count)
        verdict = self._verdict(job, status, running, failed, count)
        wait: float | None = None
        if verdict is None:
            wait = self._fill(job, pods, running, failed, count)
            running = [p for p in owned(self.context, POD, job) if not is_finished(p) and not is_deleting(p)]
        else:
            for pod in running:
                delete_pod(self.context, job, pod, _SOURCE)
            running = []
            self._conclude(job, status, *verdict)
        status.update(active=len(running), ready=sum(1 for p in running if is_ready(p)), uncountedTerminatedPods={})
        self.context.set_status(
            JOB, job, {k: v for k, v in status.items() if v or k in ("ready", "uncountedTerminatedPods")}
        )
        return wait

    def _verdict(
        self, job: Obj, status: Obj, running: Sequence[Obj], failed: int, succeeded: int
    ) -> tuple[str, str, str] | None:
        """(condition, reason, message) once the Job has ended."""
        spec = spec_of(job)
        wanted = spec.get("completions")
        if (wanted is not None and succeeded >= int(wanted)) or (wanted is None and succeeded and not running):
            return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
        limit = int(spec.get("backoffLimit", 6))
        restarts = sum(
            int(c.get("restartCount") or 0)
            for pod in running
            for c in [
                *(status_of(pod).get("containerStatuses") or []),
                *(status_of(pod).get("initContainerStatuses") or []),
            ]
        )
        on_failure = spec["template"]["spec"].get("restartPolicy") == "OnFailure"
        if failed > limit or (on_failure and restarts > 0 and restarts >= limit):
            return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        deadline = spec.get("activeDeadlineSeconds")
        if deadline is not None and self._passed(status["startTime"]) >= float(deadline):
            return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
        return None

    def _passed(self, since: str) -> float:
        """Lab seconds since a timestamp."""
        return (self.context.now() - seconds_of(since)) * self.context.world.clock.speed

    def _conclude(self, job: Obj, status: Obj, kind: str, reason: str, message: str) -> None:
        now = self.context.now()
        first = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
        for name in (first, kind):
            set_condition(
                status, name, True, now, reason=reason, message=message, extra={"lastProbeTime": timestamp(now)}
            )
        if kind == "Complete":
            status["completionTime"] = timestamp(now)
            self.context.event(job, "Normal", "Completed", "Job completed", _SOURCE)
        else:
            self.context.event(job, "Warning", reason, message, _SOURCE)

    def _fill(self, job: Obj, pods: Sequence[Obj], running: Sequence[Obj], failed: int, succeeded: int) -> float | None:
        """Make the pods that are missing; seconds to wait where a failure has to cool down or a deadline comes."""
        spec = spec_of(job)
        wanted, parallel = spec.get("completions"), int(spec.get("parallelism", 1))
        left = parallel if wanted is None else min(parallel, int(wanted) - succeeded)
        if wanted is None and succeeded:
            left = 0
        missing = left - len(running) - sum(1 for p in pods if is_deleting(p) and not is_finished(p))
        waits = []
        if spec.get("activeDeadlineSeconds") is not None:
            started = status_of(job).get("startTime") or timestamp(self.context.now())
            waits.append(max(0.0, float(spec["activeDeadlineSeconds"]) - self._passed(started)) + 0.1)
        if missing > 0 and failed:
            pause = min(_FIRST_PAUSE_S * 2 ** (failed - 1), _LAST_PAUSE_S)
            last = max((_ended_at(p) for p in pods if pod_phase(p) == "Failed"), default=0.0)
            passed = (self.context.now() - last) * self.context.world.clock.speed
            if passed < pause:
                waits.append(pause - passed + 0.05)
                missing = 0
        indexes = self._free_indexes(job, pods) if spec.get("completionMode") == "Indexed" else []
        for number in range(max(0, missing)):
            index = indexes[number] if number < len(indexes) else None
            if spec.get("completionMode") == "Indexed" and index is None:
                break
            create_pod(self.context, job, self._pod(job, index), _SOURCE)
        if len(running) > left:
            for pod in list(running)[left:]:
                delete_pod(self.context, job, pod, _SOURCE)
        return min(waits) if waits else None

    def _free_indexes(self, job: Obj, pods: Sequence[Obj]) -> list[int]:
        taken = {int(annotations_of(p).get(INDEX, -1)) for p in pods if pod_phase(p) != "Failed"}
        return [i for i in range(int(spec_of(job).get("completions") or 0)) if i not in taken]

    def _pod(self, job: Obj, index: int | None) -> Obj:
        pod = pod_from(spec_of(job)["template"], job)
        if index is None:
            return pod
        meta = pod["metadata"]
        meta["generateName"] = f"{name_of(job)}-{index}-"
        meta["annotations"][INDEX] = meta["labels"][INDEX] = str(index)
        pod["spec"] = {**pod["spec"], "hostname": f"{name_of(job)}-{index}"}
        variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
        pod["spec"]["containers"] = [{**c, "env": [*(c.get("env") or []), variable]} for c in pod["spec"]["containers"]]
        return pod

    def _suspend(self, job: Obj, status: Obj, running: Sequence[Obj]) -> None:
        for pod in running:
            delete_pod(self.context, job, pod, _SOURCE)
        status.pop("startTime", None)
        status.pop("active", None)
        set_condition(status, "Suspended", True, self.context.now(), reason="JobSuspended", message="Job suspended")
        self.context.set_status(JOB, job, status)

    def _expire(self, job: Obj) -> float | None:
        """Delete a finished Job when its ttlSecondsAfterFinished is over."""
        ttl = spec_of(job).get("ttlSecondsAfterFinished")
        if ttl is None:
            return None
        ended = max(
            (
                seconds_of(c.get("lastTransitionTime"))
                for c in status_of(job)["conditions"]
                if c["type"] in ("Complete", "Failed")
            ),
            default=self.context.now(),
        )
        left = float(ttl) - (self.context.now() - ended) * self.context.world.clock.speed
        if left > 0:
            return left + 0.1
        self.context.delete(JOB, job, propagation="Foreground")
        return None


def is_done(job: Obj) -> bool:
    return condition_is(job, "Complete") or condition_is(job, "Failed")


def _distinct(job: Obj, succeeded: Sequence[Obj]) -> Sequence[Obj]:
    """Succeeded pods, one an index where the Job is Indexed."""
    if spec_of(job).get("completionMode") != "Indexed":
        return succeeded
    return list({annotations_of(p).get(INDEX): p for p in succeeded}.values())


def _ended_at(pod: Obj) -> float:
    times = [
        seconds_of((c.get("state") or {}).get("terminated", {}).get("finishedAt"))
        for c in status_of(pod).get("containerStatuses") or []
    ]
    return max(times, default=0.0)


class CronJobs(Controller):
    name = "cronjob"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(CRON_JOB, kind):
            return [key_of(obj)]
        if on(JOB, kind):
            owner = controller_of(obj)
            return [(namespace_of(obj), owner["name"])] if owner is not None and owner["kind"] == "CronJob" else []
        return []

    async def reconcile(self, key: Key) -> float | None:
        owner = self.context.get(CRON_JOB, key[1], key[0])
        if owner is None or is_deleting(owner):
            return None
        jobs = owned(self.context, JOB, owner)
        running = [j for j in jobs if not is_done(j)]
        status = status_of(owner)
        self._forget_old(owner, jobs)
        wait: float | None = None
        if not spec_of(owner).get("suspend"):
            try:
                wait = self._due(owner, status, running)
            except cron.BadSchedule as error:
                self.context.event(
                    owner, "Warning", "InvalidSchedule", f"invalid schedule: {error}", "cronjob-controller"
                )
        running = [j for j in owned(self.context, JOB, owner) if not is_done(j)]
        status["active"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": name_of(j),
                "namespace": key[0],
                "uid": j["metadata"]["uid"],
            }
            for j in running
        ]
        done = [seconds_of(status_of(j).get("completionTime")) for j in jobs if condition_is(j, "Complete")]
        if done:
            status["lastSuccessfulTime"] = timestamp(max(done))
        self.context.set_status(CRON_JOB, owner, {k: v for k, v in status.items() if v})
        return wait

    def _due(self, owner: Obj, status: Obj, running: Sequence[Obj]) -> float:
        """Start a Job where its time has come; (lab) seconds until the next time."""
        schedule = cron.parse(str(spec_of(owner)["schedule"]))
        now = self.context.now()
        since = max(seconds_of(owner["metadata"]["creationTimestamp"]), seconds_of(status.get("lastScheduleTime")))
        due = schedule.after(since)
        latest = None
        while due <= now:
            latest, due = due, schedule.after(due)
        policy = spec_of(owner).get("concurrencyPolicy", "Allow")
        limit = spec_of(owner).get("startingDeadlineSeconds")
        late = latest is not None and limit is not None and now - latest > float(limit)
        if latest is not None and not late and not (policy == "Forbid" and running):
            if policy == "Replace":
                for job in running:
                    self.context.delete(JOB, job)
            template = spec_of(owner)["jobTemplate"]
            meta = template.get("metadata") or {}
            made = self.context.create(
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": {
                        "name": f"{name_of(owner)}-{int(latest // 60)}",
                        "namespace": namespace_of(owner),
                        "labels": dict(meta.get("labels") or {}),
                        "annotations": {
                            **(meta.get("annotations") or {}),
                            "batch.kubernetes.io/cronjob-scheduled-timestamp": timestamp(latest),
                        },
                        "ownerReferences": [owner_reference(owner)],
                    },
                    "spec": template["spec"],
                }
            )
            if made is not None:
                message = f"Created job {name_of(made)}"
                self.context.event(owner, "Normal", "SuccessfulCreate", message, "cronjob-controller")
            status["lastScheduleTime"] = timestamp(latest)
        return (due - now + 0.1) * self.context.world.clock.speed  # schedules follow the real clock

    def _forget_old(self, owner: Obj, jobs: Sequence[Obj]) -> None:
        for kind, field, default in (
            ("Complete", "successfulJobsHistoryLimit", 3),
            ("Failed", "failedJobsHistoryLimit", 1),
        ):
            ended = sorted(
                (j for j in jobs if condition_is(j, kind)), key=lambda j: str(j["metadata"]["creationTimestamp"])
            )
            keep = int(spec_of(owner).get(field, default))
            for job in ended[: max(0, len(ended) - keep)]:
                self.context.delete(JOB, job)
