"""A pod's status from what its containers do: phase and conditions as the kubelet computes them, pure."""

from __future__ import annotations

from collections.abc import Sequence

from hybridlab.lab.kube.controllers.objects import Obj, set_condition


def is_sidecar(container: Obj) -> bool:
    return container.get("restartPolicy") == "Always"


def phase_of(spec: Obj, init: Sequence[Obj], main: Sequence[Obj]) -> str:
    """Pending, Running, Succeeded or Failed from the container statuses (kubelet_pods.go, getPhase)."""
    policy = spec.get("restartPolicy", "Always")
    sidecars = {c["name"] for c in spec.get("initContainers") or [] if is_sidecar(c)}
    for status in init:
        ended = status["state"].get("terminated")
        if status["name"] in sidecars:
            if not status.get("started"):
                return "Pending"
        elif ended is None or ended["exitCode"] != 0:
            return "Failed" if ended is not None and policy == "Never" else "Pending"
    running = waiting = stopped = succeeded = 0
    for status in main:
        state = status["state"]
        if "running" in state:
            running += 1
        elif "terminated" in state:
            stopped += 1
            succeeded += int(state["terminated"]["exitCode"] == 0)
        elif status.get("lastState", {}).get("terminated"):
            stopped += 1
        else:
            waiting += 1
    if waiting or len(main) < len(spec.get("containers") or []):
        return "Pending"
    if running:
        return "Running"
    if policy == "Always":
        return "Running"
    if stopped == succeeded:
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def put_conditions(
    status: Obj, spec: Obj, init: Sequence[Obj], main: Sequence[Obj], now: float, *, sandbox: bool
) -> None:
    """Initialized, ContainersReady, Ready and PodReadyToStartContainers."""
    done = status["phase"] == "Succeeded"
    sidecars = {c["name"] for c in spec.get("initContainers") or [] if is_sidecar(c)}
    incomplete = [s["name"] for s in init if not _initialised(s, s["name"] in sidecars)]
    unready = [s["name"] for s in main if not s.get("ready")]
    set_condition(status, "PodReadyToStartContainers", sandbox and not done, now)
    if incomplete:
        message = f"containers with incomplete status: [{' '.join(incomplete)}]"
        set_condition(status, "Initialized", False, now, reason="ContainersNotInitialized", message=message)
    else:
        set_condition(status, "Initialized", True, now, reason="PodCompleted" if done else "")
    for kind in ("Ready", "ContainersReady"):
        if done:
            set_condition(status, kind, False, now, reason="PodCompleted")
        elif status["phase"] == "Failed":
            set_condition(status, kind, False, now, reason="PodFailed")
        elif unready:
            message = f"containers with unready status: [{' '.join(unready)}]"
            set_condition(status, kind, False, now, reason="ContainersNotReady", message=message)
        else:
            set_condition(status, kind, True, now)


def _initialised(status: Obj, sidecar: bool) -> bool:
    if sidecar:
        return bool(status.get("started"))
    ended = status["state"].get("terminated")
    return ended is not None and ended["exitCode"] == 0
