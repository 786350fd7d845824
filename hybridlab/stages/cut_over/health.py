"""Health checks that the params define: a GET, a connection, or a command in a service's own pod."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from hybridlab.compose.model import LABEL_NAME
from hybridlab.errors import DeadlineExceeded, HybridlabError, Refused
from hybridlab.models import Json
from hybridlab.ports import Context
from hybridlab.sections import HealthCheck
from hybridlab.stages.helperpod import pod_ready, running_helper
from hybridlab.stages.migrate.moving import pod_label
from hybridlab.stages.migrate.project import Move
from hybridlab.stages.migrate.transfers import workloads
from hybridlab.wait import wait_until

COMMAND_S = 60.0
Call = Callable[..., str]


def words(check: HealthCheck) -> str:
    """A check in a few words: what is asked, of whom."""
    if check.kind == "http":
        return f"GET http://{check.service}:{check.port}{check.path}"
    if check.kind == "tcp":
        return f"connection to {check.service}:{check.port}"
    return f"{' '.join(check.command)} in {check.service}"


def healthy(ctx: Context, check: HealthCheck, move: Move) -> Mapping[str, Json]:
    """Ask until the answer is good. Raises Refused with the last answer when the deadline is over.

    GET and connection go to the Service's name from a pod of our own, as another service would.
    """
    if check.kind == "command":
        return _until_good(ctx, check, lambda: _command(ctx, check, move))
    namespace = ctx.params.migrate.namespace
    with running_helper(ctx, namespace, "hybridlab-health", {}) as call:
        return _until_good(ctx, check, lambda: _ask(call, check))


def _until_good(ctx: Context, check: HealthCheck, ask: Callable[[], tuple[bool, str]]) -> Mapping[str, Json]:
    try:
        _, answer = wait_until(
            ask,
            lambda found: found[0],
            what=f"{words(check)} to be good",
            deadline_s=check.deadline_s,
            clock=ctx.clock,
            describe=lambda found: found[1],
        )
    except DeadlineExceeded as error:
        raise Refused(
            f"{check.service} is not healthy in the cluster",
            where=words(check),
            why=error.why,
            next_move=f"look at: kubectl -n {ctx.params.migrate.namespace} logs -l {LABEL_NAME}={check.service}",
        ) from error
    return {"check": words(check), "answer": answer}


def _ask(call: Call, check: HealthCheck) -> tuple[bool, str]:
    if check.kind == "http":
        row = json.loads(call("fetch", f"http://{check.service}:{check.port}{check.path}"))
        answer = f"status {row['status']}" if row["status"] else str(row.get("error"))
        return row["status"] in check.status, answer
    row = json.loads(call("probe", f"{check.service}:{check.port}/tcp"))[0]
    return row["state"] in ("open", "echo"), str(row.get("error") or row["state"])


def _command(ctx: Context, check: HealthCheck, move: Move) -> tuple[bool, str]:
    workload = workloads(move).get(check.service)
    if workload is None:
        return False, "it has no workload in the cluster"
    namespace = ctx.params.migrate.namespace
    pods = ctx.kube.list("v1", "Pod", namespace, labels=f"{LABEL_NAME}={pod_label(workload)}")
    ready = next((p["metadata"]["name"] for p in pods if pod_ready(p)), None)
    if ready is None:
        return False, "no pod is Ready"
    try:
        done = ctx.kube.exec(namespace, ready, check.command, timeout_s=COMMAND_S)
    except HybridlabError as error:
        return False, str(error).split("\n")[0]
    said = (done.stderr.strip() or done.stdout.decode(errors="replace").strip()).splitlines()[-1:] or [""]
    return done.exit_status == 0, f"exit status {done.exit_status} {said[0][:200]}".strip()
