"""The controllers with a real store and admission, fake hosts and a fake registry, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridlab.lab.kube.admission import Admission
from hybridlab.lab.kube.controllers import Controllers
from hybridlab.lab.kube.store import Store
from hybridlab.lab.world import Arch, Clock, Faults, K3sService, Machine, RequestLog, World

Obj = dict[str, Any]

VERSION = "v1.34.2+k3s1"
DEADLINE_S = 15.0
BOTH = ("linux/amd64", "linux/arm64")


def machine(name: str, number: int, arch: Arch = "arm64", *, ocpus: float = 2, memory_gb: float = 12) -> Machine:
    address = f"10.0.0.{number}"
    return Machine(f"id-{name}", name, arch, ocpus, memory_gb, 50, address, None, "ubuntu", (), "Ubuntu-24.04")


class FakeHosts:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.journals: list[tuple[str, str, str]] = []
        self.without_iscsi: set[str] = set()

    def folder(self, machine_id: str) -> Path:
        path = self._root / machine_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def journal(self, machine_id: str, unit: str, line: str) -> None:
        self.journals.append((machine_id, unit, line))

    def iscsi_ready(self, machine_id: str) -> bool:
        return machine_id not in self.without_iscsi


class FakeRegistry:
    """Every image is there for both architectures, but for those named here."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, ...] | None] = {"nobody/has:this": None}
        self.single: set[str] = set()

    def platforms(self, image: str) -> tuple[str, ...] | None:
        return self.known.get(image, BOTH)

    def is_index(self, image: str) -> bool:
        return image not in self.single

    def config(self, image: str, platform: str) -> Mapping[str, Any]:
        return {"config": {"Entrypoint": ["/entrypoint.sh"], "Cmd": ["serve"]}}


class ControllersLab:
    """What a test works with: the store, the controllers, and waiting for conditions."""

    def __init__(self, folder: Path, store: Store, speed: float) -> None:
        self.folder = folder
        self.world = World(folder, Clock(speed), Faults(), RequestLog(folder / "requests.jsonl"))
        self.hosts = FakeHosts(folder / "hosts")
        self.registry = FakeRegistry()
        self.world.hosts = self.hosts  # type: ignore[assignment]
        self.world.registry = self.registry
        self.store = store
        Admission(store)
        self.controllers = Controllers(self.world, store, "root ca")

    # -- machines ----------------------------------------------------------------------------------------------------
    async def server(self, one: Machine, **settings: Any) -> None:
        settings.setdefault("disable", ["traefik", "metrics-server"])
        await self.controllers.node_joined(one, K3sService("server", VERSION, settings))

    async def agent(self, one: Machine, **settings: Any) -> None:
        await self.controllers.node_joined(one, K3sService("agent", VERSION, settings))

    async def three_nodes(self) -> None:
        """arm-1 (server, 2 CPUs, 12 GB), arm-2 (1 CPU, 6 GB), amd-1 (a micro)."""
        await self.server(machine("arm-1", 11))
        await self.agent(machine("arm-2", 12, ocpus=1, memory_gb=6))
        await self.agent(machine("amd-1", 13, "amd64", ocpus=0.125, memory_gb=1))
        await self.until(lambda: all(self.is_ready(n) for n in self.store.peek("nodes")), "nodes Ready")

    # -- looking -----------------------------------------------------------------------------------------------------
    async def until(self, test: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> Any:
        """Wait until ``test`` is true and return what it returned; fail with what is there otherwise."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s
        while True:
            found = test()
            if found:
                return found
            if loop.time() > end:
                rows = [(p["metadata"]["name"], p["status"]) for p in self.store.peek("pods")]
                said = [f"{e['reason']}: {e['message']}" for e in self.store.peek("events")][-12:]
                raise AssertionError(f"never came true: {what}\npods: {rows}\nevents: {said}\n{self.failures()}")
            await asyncio.sleep(0.02)

    def failures(self) -> str:
        """What the lab's log says about broken tasks."""
        lines = (self.folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if "task-failed" in line)

    def pods(self, namespace: str = "default", **labels: str) -> list[Obj]:
        text = ",".join(f"{k}={v}" for k, v in labels.items())
        return self.store.list("pods", namespace, labels=text or None)

    def pod(self, name: str, namespace: str = "default") -> Obj:
        return self.store.must_get("pods", name, namespace)

    def phase(self, name: str, namespace: str = "default") -> str:
        found = self.store.get("pods", name, namespace)
        return "" if found is None else str(found["status"].get("phase"))

    def state(self, pod: Obj) -> Obj:
        """The state of a pod's first container."""
        rows = pod["status"].get("containerStatuses") or [{"state": {}}]
        found: Obj = rows[0]["state"]
        return found

    def waiting(self, name: str) -> str:
        found = self.store.get("pods", name, "default")
        return str(self.state(found).get("waiting", {}).get("reason")) if found else ""

    @staticmethod
    def is_ready(obj: Obj) -> bool:
        conditions = obj.get("status", {}).get("conditions") or []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def condition(self, obj: Obj | None, kind: str) -> Obj:
        for entry in (obj or {}).get("status", {}).get("conditions") or []:
            if entry["type"] == kind:
                found: Obj = entry
                return found
        return {"status": "", "reason": "", "message": ""}

    def events(self, reason: str) -> list[str]:
        return [str(e["message"]) for e in self.store.peek("events") if e["reason"] == reason]

    async def exec(
        self, pod: str, *argv: str, stdin: bytes | None = None, namespace: str = "default"
    ) -> tuple[int, bytes, bytes]:
        out, err = bytearray(), bytearray()

        async def write_out(chunk: bytes) -> None:
            out.extend(chunk)

        async def write_err(chunk: bytes) -> None:
            err.extend(chunk)

        async def chunks() -> AsyncIterator[bytes]:
            if stdin:
                yield stdin

        source = chunks() if stdin is not None else None
        code = await self.controllers.exec(namespace, pod, None, argv, source, write_out, write_err)
        return code, bytes(out), bytes(err)


def pod(name: str, image: str = "app:1", namespace: str = "default", **spec: Any) -> Obj:
    container: Obj = {"name": "main", "image": image}
    for key in ("command", "args", "env", "envFrom", "volumeMounts", "resources", "readinessProbe"):
        if key in spec:
            container[key] = spec.pop(key)
    meta: Obj = {"name": name, "namespace": namespace, "labels": spec.pop("labels", {"app": name})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container], **spec}}


def workload(kind: str, name: str, image: str = "app:1", namespace: str = "default", **spec: Any) -> Obj:
    """A Deployment, StatefulSet, DaemonSet or Job of one container."""
    inner = pod(name, image, **spec.pop("pod", {}))
    body: Obj = {"template": {"metadata": {"labels": {"app": name}}, "spec": inner["spec"]}, **spec}
    if kind == "Job":
        inner["spec"].setdefault("restartPolicy", "Never")
        version = "batch/v1"
    else:
        body["selector"] = {"matchLabels": {"app": name}}
        version = "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": body}


def claim(name: str, storage_class: str | None = None, namespace: str = "default", size: str = "1Gi") -> Obj:
    spec: Obj = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def mounting(name: str, claim_name: str, *more: Obj, **spec: Any) -> Obj:
    """A pod with a claim at /data and the volumes ``more``, each mounted at /<its name>."""
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}, *more]
    mounts = [{"name": v["name"], "mountPath": f"/{v['name']}"} for v in volumes]
    return pod(name, volumes=volumes, volumeMounts=mounts, **spec)


def configmap(name: str, data: Mapping[str, str], namespace: str = "default") -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": dict(data),
    }


@contextlib.asynccontextmanager
async def controllers_lab(
    folder: Path, *, speed: float = 20.0, store: Store | None = None
) -> AsyncIterator[ControllersLab]:
    folder.mkdir(parents=True, exist_ok=True)
    lab = ControllersLab(folder, store or Store(), speed)
    await lab.controllers.start()
    try:
        yield lab
        failures = lab.failures()
        if failures:
            raise AssertionError(f"a controller broke: {failures}")
    finally:
        await lab.controllers.stop()
        lab.world.log.close()


def run(work: Callable[[ControllersLab], Awaitable[None]], folder: Path, **options: Any) -> None:
    """Run a test's body in a lab with three nodes."""

    async def body() -> None:
        async with controllers_lab(folder, **options) as lab:
            await lab.three_nodes()
            await work(lab)

    asyncio.run(body())


def names(objects: Sequence[Obj]) -> list[str]:
    return [o["metadata"]["name"] for o in objects]
