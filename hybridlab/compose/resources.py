"""Memory, CPU and GPU of a service → requests and limits, with the units right (``512m`` of memory is 512Mi)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.compose.fidelity import Record
from hybridlab.compose.units import cpu_millis, cpu_quantity, memory_quantity, size_bytes
from hybridlab.models import Json

_DEFAULT_PERIOD = 100_000  # microseconds, the kernel's


@dataclass(frozen=True)
class Resources:
    """``spec`` for the container; what the scheduler will count, in millicores and bytes."""

    spec: Mapping[str, Json]
    cpu_m: int = 0
    memory: int = 0


def resources(service: str, spec: Mapping[str, Json], record: Record) -> Resources:
    """Limits and requests. A limit without a request requests as much: that is Kubernetes' own rule."""
    deploy = (spec.get("deploy") or {}).get("resources") or {}
    limits, asks = deploy.get("limits") or {}, deploy.get("reservations") or {}
    memory_limit = _memory(service, spec, record, "mem_limit", limits.get("memory"))
    memory_ask = _memory(service, spec, record, "mem_reservation", asks.get("memory"))
    cpu_limit = _cpu_limit(service, spec, record, limits.get("cpus"))
    cpu_ask = cpu_millis(asks.get("cpus"))
    shares = spec.get("cpu_shares")
    if shares and cpu_ask is None:
        cpu_ask = max(1, round(int(shares) * 1000 / 1024))
        if cpu_limit is not None:
            cpu_ask = min(cpu_ask, cpu_limit)
    if shares:
        record.approximated(service, "cpu_shares", f"a CPU request of {cpu_ask}m: kubelet gives shares by request")
    if memory_ask is not None and memory_limit is not None:
        memory_ask = min(memory_ask, memory_limit)
    if cpu_ask is not None and cpu_limit is not None:
        cpu_ask = min(cpu_ask, cpu_limit)
    gpus = _gpus(service, spec, asks, record)
    requests_out = _amounts(cpu_ask, memory_ask)
    limits_out = {**_amounts(cpu_limit, memory_limit), **gpus}
    out: dict[str, Json] = {}
    if requests_out:
        out["requests"] = requests_out
    if limits_out:
        out["limits"] = limits_out
    _deploy_lines(service, limits, asks, record)
    return Resources(out, cpu_ask or cpu_limit or 0, memory_ask or memory_limit or 0)


def _memory(service: str, spec: Mapping[str, Json], record: Record, key: str, deploy: Json) -> int | None:
    value = spec.get(key) or deploy
    count = size_bytes(value) if value else None
    if key in spec:
        if count:
            record.mapped(service, key, f"{memory_quantity(count)} (Docker's m is MiB)")
        else:
            record.mapped(service, key, "0: no limit")
    return count or None


def _cpu_limit(service: str, spec: Mapping[str, Json], record: Record, deploy: Json) -> int | None:
    value = spec.get("cpus") or deploy
    limit = cpu_millis(value) if value and float(value) > 0 else None
    if "cpus" in spec:
        record.mapped(service, "cpus", f"CPU limit {cpu_quantity(limit)}" if limit else "0: no limit")
    quota = size_bytes(spec.get("cpu_quota"))
    if limit is None and quota and quota > 0:
        limit = max(1, round(quota * 1000 / (size_bytes(spec.get("cpu_period")) or _DEFAULT_PERIOD)))
    return limit


def _gpus(service: str, spec: Mapping[str, Json], asks: Mapping[str, Json], record: Record) -> dict[str, str]:
    devices = [("deploy.resources.reservations.devices", device) for device in asks.get("devices") or []]
    devices += [("gpus", device) for device in spec.get("gpus") or [] if isinstance(device, Mapping)]
    count = 0
    for key, device in devices:
        driver = device.get("driver") or "nvidia"
        capabilities = [str(word) for word in device.get("capabilities") or ["gpu"]]
        if "gpu" not in capabilities and driver != "nvidia":
            record.refused(service, key, f"no device plugin is known for {driver} {'/'.join(capabilities)}")
            continue
        wanted = device.get("count")
        if device.get("device_ids"):
            wanted = len(device["device_ids"])
        count += int(wanted) if isinstance(wanted, int) and wanted > 0 else 1
        record.approximated(service, key, "limit nvidia.com/gpu; needs NVIDIA's device plugin on a node that has one")
    return {"nvidia.com/gpu": str(count)} if count else {}


def _amounts(cpu_m: int | None, memory: int | None) -> dict[str, str]:
    out = {}
    if cpu_m:
        out["cpu"] = cpu_quantity(cpu_m)
    if memory:
        out["memory"] = memory_quantity(memory)
    return out


def _deploy_lines(service: str, limits: Mapping[str, Json], asks: Mapping[str, Json], record: Record) -> None:
    for section, given in (("limits", limits), ("reservations", asks)):
        for key in given:
            path = f"deploy.resources.{section}.{key}"
            if key in ("cpus", "memory"):
                record.mapped(service, path, f"resources.{'limits' if section == 'limits' else 'requests'}")
            elif key == "pids":
                record.refused(service, path, "a process limit is kubelet's setting per node (podPidsLimit)")
            elif key == "generic_resources":
                record.refused(service, path, "Swarm only; extended resources need a device plugin's name")
            elif key != "devices":
                record.refused(service, path, "hybridlab does not know this resource")
