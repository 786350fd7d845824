"""The pod of one service: its container, volumes, and the rest of the pod spec."""

from __future__ import annotations

import posixpath
import shlex
import signal
from collections.abc import Mapping, Sequence

from hybridlab.compose.env import Environment, escape
from hybridlab.compose.fidelity import Record
from hybridlab.compose.files import FileVolume
from hybridlab.compose.mentions import rewrite, rewrite_value
from hybridlab.compose.model import Obj
from hybridlab.compose.mounts import Mount
from hybridlab.compose.names import is_label, label
from hybridlab.compose.network import Port
from hybridlab.compose.resolving import dns_config, host_aliases
from hybridlab.compose.units import memory_quantity, size_bytes, whole_seconds
from hybridlab.models import ImageInfo, Json

_SHELLS = ("sh", "bash", "ash", "dash", "/bin/sh", "/bin/bash", "/bin/ash", "/usr/bin/env")


def command_and_args(
    service: str, spec: Mapping[str, Json], image: ImageInfo | None, renamed: Mapping[str, str], record: Record
) -> dict[str, Json]:
    """``entrypoint`` replaces ENTRYPOINT (and drops CMD), ``command`` replaces CMD: in Kubernetes as in Docker."""
    entrypoint, command = _words(spec.get("entrypoint")), _words(spec.get("command"))
    out: dict[str, Json] = {}
    known = image if image is not None and image.known else None
    if entrypoint is None:
        record.mapped(service, "entrypoint", "the image's ENTRYPOINT")
    elif entrypoint:
        out["command"] = entrypoint
        record.mapped(service, "entrypoint", "command")
    else:
        cleared = command or (list(known.config.cmd) if known else [])
        if cleared:
            out["command"], command = cleared, None
            record.mapped(service, "entrypoint", "cleared: the words of CMD are the command")
        else:
            record.approximated(
                service, "entrypoint", "cleared in Compose; the image's ENTRYPOINT stands, its CMD is not known"
            )
    if command:
        out["args"] = command
        record.mapped(service, "command", "args")
    elif command == [] and "command" not in out and known and known.config.cmd and known.config.entrypoint:
        out["command"] = list(known.config.entrypoint)
        record.mapped(service, "command", "cleared: the image's ENTRYPOINT alone")
    else:
        record.mapped(service, "command", "the image's CMD" if "command" not in out else "in command")
    return {key: [escape(rewrite(word, renamed)) for word in words] for key, words in out.items()}


def _words(value: Json) -> list[str] | None:
    if value is None:
        return None
    return shlex.split(value) if isinstance(value, str) else [str(word) for word in value]


def rewritten(environment: Mapping[str, Json], renamed: Mapping[str, str]) -> dict[str, Json]:
    return {
        name: rewrite_value(name, str(value), renamed) if value is not None else None
        for name, value in environment.items()
    }


def environment_fields(name: str, environment: Environment) -> dict[str, Json]:
    out: dict[str, Json] = {}
    sources: list[Obj] = []
    if environment.plain:
        sources.append({"configMapRef": {"name": f"{name}-env"}})
    if environment.secret:
        sources.append({"secretRef": {"name": f"{name}-env"}})
    if sources:
        out["envFrom"] = sources
    if environment.inline:
        out["env"] = [{"name": key, "value": escape(value)} for key, value in environment.inline.items()]
    return out


def container_ports(ports: Sequence[Port], *, host_network: bool) -> list[Obj]:
    """Declared ports; none on the host network, where each would be claimed from the whole node."""
    if host_network:
        return []
    return [
        {"name": f"{p.protocol.lower()}-{p.number}", "containerPort": p.number, "protocol": p.protocol} for p in ports
    ]


class Volumes:
    """Pod volumes by name and the container's mounts of them; the same source is listed once."""

    def __init__(self) -> None:
        self._by_name: dict[str, Obj] = {}
        self.mounts: list[Obj] = []
        self._targets: set[str] = set()

    def add(self, mount: Mount) -> str:
        """Mount it unless something is mounted there already; returns the pod volume's name, or ""."""
        if mount.target in self._targets:
            return ""
        self._targets.add(mount.target)
        name = self._name(mount.volume, mount.source)
        row: Obj = {"name": name, "mountPath": mount.target}
        if mount.sub_path:
            row["subPath"] = mount.sub_path
        if mount.read_only:
            row["readOnly"] = True
        if mount.propagation:
            row["mountPropagation"] = mount.propagation
        self.mounts.append(row)
        return name

    def _name(self, wanted: str, source: Obj) -> str:
        base, name, count = label(wanted, fallback="volume"), label(wanted, fallback="volume"), 1
        while name in self._by_name and self._by_name[name] != source:
            count += 1
            name = label(f"{base[:58]}-{count}")
        self._by_name[name] = source
        return name

    @property
    def volumes(self) -> list[Obj]:
        return [{"name": name, **source} for name, source in self._by_name.items()]


def extra_mounts(service: str, spec: Mapping[str, Json], record: Record) -> list[Mount]:
    """Mounts from tmpfs, shm_size and devices."""
    out = []
    tmpfs = spec.get("tmpfs") or []
    for text in [tmpfs] if isinstance(tmpfs, str) else tmpfs:
        target, _, options = str(text).partition(":")
        settings = dict(word.partition("=")[::2] for word in options.split(",") if word)
        body: Obj = {"medium": "Memory"}
        size = size_bytes(settings.pop("size", None))
        if size:
            body["sizeLimit"] = memory_quantity(size)
        rest = ", ".join(sorted(settings))
        record.add(
            service,
            "tmpfs",
            "approximated" if rest else "mapped",
            "emptyDir in memory" + (f"; its options {rest} have no equivalent" if rest else ""),
        )
        out.append(Mount(posixpath.normpath(target), label(f"tmp-{target}"), {"emptyDir": body}))
    shm = size_bytes(spec.get("shm_size")) if spec.get("shm_size") else None
    if shm:
        record.mapped(service, "shm_size", "emptyDir in memory at /dev/shm")
        out.append(Mount("/dev/shm", "dev-shm", {"emptyDir": {"medium": "Memory", "sizeLimit": memory_quantity(shm)}}))
    for device in spec.get("devices") or []:
        words = str(device).split(":") if isinstance(device, str) else []
        source = words[0] if words else str(device.get("source"))
        target = (words[1] if len(words) > 1 else source) if words else str(device.get("target") or source)
        if "=" in source:
            record.refused(service, f"devices.{source}", "a CDI device needs its vendor's device plugin")
            continue
        note = f"hostPath {source}" + (
            ""
            if spec.get("privileged")
            else " and privileged: only privileged containers may open host devices; a device plugin would need less"
        )
        record.approximated(service, f"devices.{source}", note)
        out.append(Mount(posixpath.normpath(target), label(f"dev-{source}"), {"hostPath": {"path": source}}))
    return out


def opens_devices(mounts: Sequence[Mount]) -> bool:
    return any(mount.volume.startswith("dev-") and "hostPath" in mount.source for mount in mounts)


def file_mounts(used: Sequence[tuple[str, FileVolume]]) -> list[Mount]:
    """Compose's configs and secrets: one file each at its target."""
    return [Mount(posixpath.normpath(target), volume.name, volume.source, True, volume.key) for target, volume in used]


def seed_container(image: str, pod_volume: str, mount: Mount, evidence: bool) -> Obj | None:
    """Copies the image's files into an empty volume, as Docker does with a new one. Needs a shell in the image."""
    if not mount.seed or not evidence:
        return None
    target = shlex.quote(mount.target)
    script = f'[ -n "$(ls -A /seed | grep -vx lost+found)" ] || [ ! -d {target} ] || cp -a {target}/. /seed/'
    return {
        "name": label(f"seed-{pod_volume}"),
        "image": image,
        "command": ["/bin/sh", "-c", escape(script)],
        "securityContext": {"runAsUser": 0, "runAsGroup": 0},
        "volumeMounts": [{"name": pod_volume, "mountPath": "/seed"}],
    }


def has_shell(spec: Mapping[str, Json], image: ImageInfo | None) -> bool:
    """Whether something shows that the image has /bin/sh: a shell or script among its commands, a CMD-SHELL."""
    test = (spec.get("healthcheck") or {}).get("test") or []
    words = [*(_words(spec.get("entrypoint")) or [])[:1], *(_words(spec.get("command")) or [])[:1], *list(test)[:1]]
    if image is not None and image.known:
        words += [*image.config.entrypoint[:1], *image.config.cmd[:1], *image.config.healthcheck[:1]]
    return any(word in _SHELLS or word == "CMD-SHELL" or word.endswith(".sh") for word in words)


def lifecycle(service: str, spec: Mapping[str, Json], record: Record) -> dict[str, Json]:
    """post_start and pre_stop hooks, and stop_signal."""
    out: dict[str, Json] = {}
    for key, field in (("post_start", "postStart"), ("pre_stop", "preStop")):
        hooks = [hook for hook in spec.get(key) or [] if _words(hook.get("command"))]
        if not hooks:
            continue
        commands = [_words(hook["command"]) or [] for hook in hooks]
        command = commands[0] if len(commands) == 1 else ["/bin/sh", "-c", " && ".join(map(shlex.join, commands))]
        out[field] = {"exec": {"command": command}}
        extras = sorted({name for hook in hooks for name in hook} - {"command"})
        record.add(
            service,
            key,
            "approximated" if extras else "mapped",
            f"lifecycle.{field}" + (f"; {', '.join(extras)} of a hook: as the container's own" if extras else ""),
        )
    if spec.get("stop_signal"):
        name = "SIG" + str(spec["stop_signal"]).upper().removeprefix("SIG")
        if name not in {known.name for known in signal.Signals}:
            record.refused(service, "stop_signal", f"{spec['stop_signal']}: write a signal's name, such as SIGINT")
        else:
            out["stopSignal"] = name
            record.approximated(
                service,
                "stop_signal",
                "lifecycle.stopSignal, which clusters without the feature "
                "ContainerStopSignals ignore (the image's STOPSIGNAL then holds)",
            )
    return out


def pre_start(service: str, spec: Mapping[str, Json], image: str, record: Record) -> list[Obj]:
    """Compose's pre_start steps → init containers of their own or the same image."""
    out = []
    for index, hook in enumerate(spec.get("pre_start") or []):
        words = _words(hook.get("command"))
        step: Obj = {"name": f"pre-start-{index + 1}", "image": str(hook.get("image") or image)}
        if words:
            step["command"] = [escape(word) for word in words]
        out.append(step)
        record.approximated(service, "pre_start", "init container with the service's environment and volumes")
    return out


def pod_fields(service: str, spec: Mapping[str, Json], addresses: Mapping[str, str], record: Record) -> dict[str, Json]:
    """Network and name settings of the pod. ``addresses``: fixed IPs in the project → the service that has it."""
    fields: dict[str, Json] = {}
    mode = str(spec.get("network_mode") or "")
    if mode == "host":
        fields["hostNetwork"] = True
        fields["dnsPolicy"] = "ClusterFirstWithHostNet"
        record.mapped(service, "network_mode", "hostNetwork, with cluster names still resolved")
    elif mode == "none":
        record.mapped(service, "network_mode", "a NetworkPolicy that lets nothing in or out")
    elif mode in ("bridge", "default"):
        record.mapped(service, "network_mode", "the pod network")
    elif mode:
        record.refused(
            service,
            "network_mode",
            f"{mode}: pods do not share a network namespace; it has an address of its own, "
            "reach the other by name instead of localhost",
        )
    fields.update(_hostname(service, spec, record))
    aliases = host_aliases(service, spec, record)
    if aliases:
        fields["hostAliases"] = aliases
    dns = dns_config(service, spec, addresses, record)
    if dns:
        fields["dnsConfig"] = dns
    if "stop_grace_period" in spec:
        fields["terminationGracePeriodSeconds"] = whole_seconds(spec["stop_grace_period"], 10)
        record.mapped(service, "stop_grace_period", "terminationGracePeriodSeconds")
    if spec.get("runtime"):
        _runtime(service, str(spec["runtime"]), fields, record)
    return fields


def _hostname(service: str, spec: Mapping[str, Json], record: Record) -> dict[str, str]:
    if not spec.get("hostname"):
        return {}
    first, dot, _ = str(spec["hostname"]).partition(".")
    name = first if is_label(first) else label(first)
    if dot or name != first or len(name) > 63:
        record.approximated(service, "hostname", f"{name}: a pod's host name is one label, {spec['hostname']} is not")
    else:
        record.mapped(service, "hostname", "the pod's host name")
    return {"hostname": name}


def _runtime(service: str, runtime: str, fields: dict[str, Json], record: Record) -> None:
    short = runtime.split(".")[-2] if runtime.startswith("io.containerd.") and runtime.count(".") >= 3 else runtime
    if short in ("runc", "io.containerd.runc.v2"):
        record.mapped(service, "runtime", "the nodes' default")
        return
    fields["runtimeClassName"] = label(short)
    record.approximated(
        service,
        "runtime",
        f"runtimeClassName {label(short)}: the RuntimeClass must exist "
        "(K3s makes one for a runtime it finds on the node)",
    )
