"""One pod on one node: pulls its images, runs its containers, restarts them with back-off, and reports the status.

Containers are not emulated. A command the lab can run is really run; any other container only counts as running (a
Job's ends after half a second), and its log says so. Restart and pull back-off are ten times shorter than the real
ones: 1 s doubling to 30 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlab.lab.kube.controllers import commands, process
from hybridlab.lab.kube.controllers.images import Image, PullFailed
from hybridlab.lab.kube.controllers.mounts import ConfigMissing, MountFailed
from hybridlab.lab.kube.controllers.objects import (
    POD,
    Obj,
    controller_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.podstatus import is_sidecar, phase_of, put_conditions

if TYPE_CHECKING:
    from hybridlab.lab.kube.controllers.kubelet import Kubelets

FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 30.0
START_S = 0.05
NOT_RUN_S = 0.5
EXEC_FORMAT_ERROR = 255
LOST = 255
LOG_TAIL = 2048  # bytes of log that become the termination message (FallbackToLogsOnError)

# A program the lab itself plays in place of an image: (pod, container, log) -> exit status, termination message.
Program = Callable[[Obj, Obj, Callable[[str], None]], Awaitable[tuple[int, str]]]


@dataclass
class Box:
    """A container of the pod and what it does."""

    spec: Obj
    init: bool
    state: Obj = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Obj = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    started: bool = False
    image: Image | None = None
    container_id: str = ""
    crashes: int = 0

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    def status(self) -> Obj:
        return {
            "name": self.name,
            "image": self.image.name if self.image else self.spec["image"],
            "imageID": self.image.name if self.image else "",
            "containerID": self.container_id,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }

    def restore(self, status: Obj) -> None:
        """Go on from what was reported before the lab stopped."""
        self.state, self.last = status["state"], status.get("lastState") or {}
        self.restarts, self.ready = status.get("restartCount", 0), status.get("ready", False)
        self.started, self.container_id = bool(status.get("started")), status.get("containerID", "")

    @property
    def exit_code(self) -> int | None:
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])


class PodWorker:
    """Runs one pod until it is finished or stopped. ``poke`` says that something it may wait for has changed."""

    def __init__(self, kubelets: Kubelets, pod: Obj, node: str) -> None:
        self.kubelets = kubelets
        self.context = kubelets.context
        self.pod = pod
        self.node = node
        self.kubelet = kubelets.nodes.kubelets[node]
        self.volumes: dict[str, Path] = {}
        self.ip = str(status_of(pod).get("podIP") or "")
        self.changed = asyncio.Event()
        spec = spec_of(pod)
        self.inits = [Box(c, True) for c in spec.get("initContainers") or []]
        self.mains = [Box(c, False) for c in spec.get("containers") or []]
        known = status_of(pod)
        old = {s["name"]: s for key in ("initContainerStatuses", "containerStatuses") for s in known.get(key) or []}
        for box in (*self.inits, *self.mains):
            if box.name in old:
                box.restore(old[box.name])
            elif self.inits and not box.init:
                box.state = {"waiting": {"reason": "PodInitializing"}}
        self.task = asyncio.get_running_loop().create_task(self._guarded(), name=f"pod {name_of(pod)}")

    def poke(self) -> None:
        self.changed.set()

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def _guarded(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a pod: report it, others go on
            target = f"kube/pod {namespace_of(self.pod)}/{name_of(self.pod)}"
            self.context.world.log.add("lab", "task-failed", target, 500, mutating=False, detail=repr(error))

    async def _run(self) -> None:
        self.publish()
        await self._volumes_ready()
        if not self.ip:
            self.ip = self.kubelets.address_for(self.pod, self.node, self.kubelet.machine.private_ip)
        self.publish()
        sidecars: list[asyncio.Task[int]] = []
        try:
            for box in self.inits:
                if is_sidecar(box.spec):
                    sidecars.append(asyncio.ensure_future(self._live(box)))
                    while not box.started:
                        await self._wait(0.2)
                elif box.exit_code != 0 and await self._live(box) != 0:
                    self.publish()
                    return
            await asyncio.gather(*(self._live(box) for box in self.mains))
            self.publish()
        finally:
            for task in sidecars:
                task.cancel()
            await asyncio.gather(*sidecars, return_exceptions=True)

    # -- getting ready -----------------------------------------------------------------------------------------------
    async def _volumes_ready(self) -> None:
        """Wait until every volume is there; what is missing is an event, and tried again when something changes."""
        said, delay = "", 1.0
        while True:
            self.changed.clear()
            try:
                self.volumes = self.kubelets.mounts.prepare(self.pod, self.node, self.kubelet.machine.id)
                return
            except MountFailed as error:
                if str(error) != said:
                    said = str(error)
                    self._event("Warning", error.reason, said)
            await self._wait(delay)
            delay = min(delay * 2, LAST_BACKOFF_S)

    async def _wait(self, seconds: float) -> None:
        """Until something changed, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), self.context.scaled(seconds))

    async def _image_ready(self, box: Box) -> Image:
        """Pull, with back-off for as long as it fails."""
        image = str(box.spec["image"])
        arch = self.kubelet.machine.arch
        delay = FIRST_BACKOFF_S
        if box.spec.get("imagePullPolicy") != "Never" and not self.kubelets.images.present(self.node, image):
            self._event("Normal", "Pulling", f'Pulling image "{image}"', box)
            while True:
                try:
                    took = await self.kubelets.images.pull(self.node, arch, image)
                    break
                except PullFailed as error:
                    self._event("Warning", "Failed", f'Failed to pull image "{image}": {error}', box)
                    self._event("Warning", "Failed", "Error: ErrImagePull", box)
                    self._waits(box, "ErrImagePull", str(error))
                    await self.context.takes(0.3)
                    text = f'Back-off pulling image "{image}"'
                    self._event("Normal", "BackOff", text, box)
                    self._waits(box, "ImagePullBackOff", f"{text}: ErrImagePull: {error}")
                    await self.context.takes(delay)
                    delay = min(delay * 2, LAST_BACKOFF_S)
            self._event("Normal", "Pulled", f'Successfully pulled image "{image}" in {took:.3f}s', box)
        elif not self.kubelets.images.present(self.node, image):
            message = f'Container image "{image}" is not present with pull policy of Never'
            self._event("Warning", "ErrImageNeverPull", message, box)
            self._waits(box, "ErrImageNeverPull", message)
            await asyncio.Event().wait()
        return self.kubelets.images.describe(arch, image)

    async def _config_ready(self, box: Box) -> tuple[list[commands.Mount], Mapping[str, str]]:
        """Mounts and environment; a missing reference is CreateContainerConfigError until it is there."""
        while True:
            self.changed.clear()
            try:
                mounts = self.kubelets.mounts.of_container(self.pod, box.spec, self.volumes)
                return mounts, self.kubelets.mounts.environment(self.pod, box.spec)
            except ConfigMissing as error:
                if box.state.get("waiting", {}).get("message") != str(error):
                    self._event("Warning", "Failed", f"Error: {error}", box)
                self._waits(box, "CreateContainerConfigError", str(error))
            await self._wait(10.0)

    def _waits(self, box: Box, reason: str, message: str) -> None:
        box.state = {"waiting": {"reason": reason, "message": message}}
        box.ready = box.started = False
        self.publish()

    # -- running -----------------------------------------------------------------------------------------------------
    async def _live(self, box: Box) -> int:
        """Run a container, and again as the restart policy says; returns its last exit status."""
        if box.exit_code is not None and not self._restarts(box, box.exit_code):
            return box.exit_code
        while True:
            box.image = await self._image_ready(box)
            mounts, environment = await self._config_ready(box)
            code, message = await self._once(box, mounts, environment)
            self._ended(box, code, message)
            if not self._restarts(box, code):
                self.publish()
                return code
            box.crashes += 1
            self.publish()
            delay = 0.0 if box.crashes == 1 else min(FIRST_BACKOFF_S * 2 ** (box.crashes - 2), LAST_BACKOFF_S)
            if delay:
                where = f"{name_of(self.pod)}_{namespace_of(self.pod)}({uid_of(self.pod)})"
                self._event(
                    "Warning", "BackOff", f"Back-off restarting failed container {box.name} in pod {where}", box
                )
                text = f"back-off {delay:g}s restarting failed container={box.name} pod={where}"
                box.last = box.state
                self._waits(box, "CrashLoopBackOff", text)
                await self.context.takes(delay)
            else:
                await self.context.takes(START_S)
                box.last = box.state
            box.restarts += 1

    def _restarts(self, box: Box, code: int) -> bool:
        policy = spec_of(self.pod).get("restartPolicy", "Always")
        if box.init:
            return is_sidecar(box.spec) or (code != 0 and policy != "Never")
        return bool(policy == "Always" or (policy == "OnFailure" and code != 0))

    async def _once(self, box: Box, mounts: list[commands.Mount], environment: Mapping[str, str]) -> tuple[int, str]:
        """From start to end of one run of a container: exit status and termination message."""
        image = box.image
        assert image is not None
        argv = image.argv(box.spec.get("command"), box.spec.get("args"))
        program = self.kubelets.programs.get((image.name.rpartition(":")[0], box.name))
        runnable = self._runnable(argv, mounts, environment, box) if image.runs and program is None else None
        if "running" in box.state and box.container_id:  # the lab was stopped meanwhile
            if runnable is not None or program is not None:
                return LOST, "the process ended with the lab"
        else:
            await self.context.takes(START_S)
            box.container_id = f"containerd://{uuid.uuid4().hex}{uuid.uuid4().hex}"
            box.state = {"running": {"startedAt": timestamp(self.context.now())}}
            box.started, box.ready = True, False
            self._event("Normal", "Created", f"Created container: {box.name}", box)
            self._event("Normal", "Started", f"Started container {box.name}", box)
        readiness = asyncio.ensure_future(self._become_ready(box))
        try:
            if not image.runs:
                self._log(box, f"exec {argv[0] if argv else '/'}: exec format error")
                await self.context.takes(START_S)
                return EXEC_FORMAT_ERROR, ""
            if program is not None:
                return await program(self.pod, box.spec, lambda text: self._log(box, text))
            if runnable is not None:
                return await self._really_run(box, runnable), ""
            if not self.kubelets.logs.exists(uid_of(self.pod), box.name, box.restarts):
                self._log(box, f"lab: {image.name} is not really run")
            if box.init and not is_sidecar(box.spec):
                await self.context.takes(START_S)
                return 0, ""
            if (controller_of(self.pod) or {}).get("kind") == "Job" and not is_sidecar(box.spec):
                await self.context.takes(NOT_RUN_S)
                return 0, ""
            await asyncio.Event().wait()
            return 0, ""
        finally:
            readiness.cancel()

    def _runnable(
        self, argv: list[str], mounts: list[commands.Mount], environment: Mapping[str, str], box: Box
    ) -> commands.Command | None:
        scratch = self.context.folder("pods", uid_of(self.pod), "scratch")
        try:
            return commands.prepare(argv, mounts, environment, scratch, str(box.spec.get("workingDir") or "/"))
        except commands.CannotRun:
            return None

    async def _really_run(self, box: Box, command: commands.Command) -> int:
        with self.kubelets.logs.sink(uid_of(self.pod), box.name, box.restarts) as sink:

            async def out(chunk: bytes) -> None:
                sink.feed(chunk)

            async def err(chunk: bytes) -> None:
                sink.feed(chunk, "stderr")

            return await process.run(command, None, out, err)

    async def _become_ready(self, box: Box) -> None:
        if box.init and not is_sidecar(box.spec):
            self.publish()
            return
        delays = [
            float((box.spec.get(p) or {}).get("initialDelaySeconds") or 0) for p in ("startupProbe", "readinessProbe")
        ]
        if sum(delays):
            self.publish()
            await self.context.takes(sum(delays))
        if box.image is not None and box.image.runs and "running" in box.state:
            box.ready = True
        self.publish()

    def _ended(self, box: Box, code: int, message: str) -> None:
        started = box.state.get("running", {}).get("startedAt") or timestamp(self.context.now())
        reason = "Completed" if code == 0 else "Error"
        ended: Obj = {
            "exitCode": code,
            "reason": reason,
            "startedAt": started,
            "finishedAt": timestamp(self.context.now()),
            "containerID": box.container_id,
        }
        if not message and code and box.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            message = self.kubelets.logs.read(uid_of(self.pod), box.name, box.restarts, tail_lines=80)[-LOG_TAIL:]
        if message:
            ended["message"] = message
        box.state = {"terminated": ended}
        box.ready = False
        box.started = False

    # -- reporting ---------------------------------------------------------------------------------------------------
    def _log(self, box: Box, text: str) -> None:
        self.kubelets.logs.write(uid_of(self.pod), box.name, box.restarts, text)

    def _event(self, kind: str, reason: str, message: str, box: Box | None = None) -> None:
        self.context.event(self.pod, kind, reason, message, "kubelet")

    def publish(self) -> None:
        """Write the pod's status as its containers are now."""
        pod = self.context.current(POD, self.pod)
        if pod is None:
            return
        self.pod = pod
        status = status_of(pod)
        inits, mains = [b.status() for b in self.inits], [b.status() for b in self.mains]
        status["phase"] = phase_of(spec_of(pod), inits, mains)
        status["hostIP"] = self.kubelet.machine.private_ip
        status["hostIPs"] = [{"ip": status["hostIP"]}]
        status.setdefault("startTime", timestamp(self.context.now()))
        if self.ip:
            status["podIP"], status["podIPs"] = self.ip, [{"ip": self.ip}]
        status["containerStatuses"] = mains
        if inits:
            status["initContainerStatuses"] = inits
        put_conditions(status, spec_of(pod), inits, mains, self.context.now(), sandbox=bool(self.ip))
        self.context.set_status(POD, pod, status)
