"""User, capabilities, sysctls and namespaces of a service → security contexts of container and pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybridlab.compose.fidelity import Record
from hybridlab.models import ImageInfo, Json

# Numbers that are the same in every distribution people build images on.
_USERS = {"root": 0, "nobody": 65534}
_GROUPS = {"root": 0, "nogroup": 65534}
_ID_MAX = (1 << 31) - 1  # Docker's bound and Kubernetes'
# kubelet admits these without a flag (Kubernetes documentation, "Using sysctls in a cluster", 1.36).
_SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
}


@dataclass(frozen=True)
class Security:
    """``container`` and ``pod`` security contexts, and fields of the pod spec itself."""

    container: Mapping[str, Json] = field(default_factory=dict)
    pod: Mapping[str, Json] = field(default_factory=dict)
    fields: Mapping[str, Json] = field(default_factory=dict)


def security(
    service: str, spec: Mapping[str, Json], image: ImageInfo | None, record: Record, *, needs_privilege: bool
) -> Security:
    """Contexts of one service; ``needs_privilege`` where it opens devices of the host."""
    container: dict[str, Json] = {}
    pod: dict[str, Json] = {}
    container.update(_user(service, spec, image, record))
    capabilities = _capabilities(service, spec, record)
    if capabilities:
        container["capabilities"] = capabilities
    if "privileged" in spec or needs_privilege:
        if spec.get("privileged") or needs_privilege:
            container["privileged"] = True
        if "privileged" in spec:
            record.mapped(service, "privileged", "securityContext.privileged")
    if "read_only" in spec:
        record.mapped(service, "read_only", "readOnlyRootFilesystem")
        if spec["read_only"]:
            container["readOnlyRootFilesystem"] = True
    for option in spec.get("security_opt") or []:
        _security_option(service, str(option), container, record)
    groups = _groups(service, spec.get("group_add") or [], record)
    if groups:
        pod["supplementalGroups"] = groups
    host_network = spec.get("network_mode") == "host"
    sysctls = _sysctls(
        service, spec.get("sysctls") or {}, record, host_network=host_network, host_ipc=spec.get("ipc") == "host"
    )
    if sysctls:
        pod["sysctls"] = sysctls
    return Security(container, pod, _namespaces(service, spec, record))


def _user(service: str, spec: Mapping[str, Json], image: ImageInfo | None, record: Record) -> dict[str, int]:
    if "user" not in spec:
        return {}
    user, _, group = str(spec["user"]).partition(":")
    if image is not None and image.known and image.config.user and image.config.user == spec["user"]:
        record.mapped(service, "user", "the image's own user")
        return {}
    uid, gid = _number(user, _USERS), _number(group, _GROUPS) if group else None
    out = {}
    if uid is not None:
        out["runAsUser"] = uid
    if gid is not None:
        out["runAsGroup"] = gid
    elif uid == 0 and not group:
        out["runAsGroup"] = 0
    unresolved = [word for word, number in ((user, uid), (group, gid)) if word and number is None]
    if unresolved:
        record.refused(
            service,
            "user",
            " and ".join(map(_why_not, unresolved)) + ": write it in the compose file (docker run --rm IMAGE id)",
        )
    else:
        record.mapped(service, "user", "runAsUser" + (", runAsGroup" if "runAsGroup" in out else ""))
    return out


def _number(text: str, known: Mapping[str, int]) -> int | None:
    if text.isdecimal() and text.isascii():
        return int(text) if int(text) <= _ID_MAX else None
    return known.get(text)


def _why_not(text: str) -> str:
    if text.lstrip("-").isdecimal():
        return f"{text} is outside 0 to {_ID_MAX}"
    return f"{text} has a number only inside the image"


def _groups(service: str, groups: Sequence[Json], record: Record) -> list[int]:
    numbers = []
    for group in groups:
        number = _number(str(group), _GROUPS)
        if number is None:
            record.refused(service, "group_add", f"group {_why_not(str(group))}")
        else:
            record.mapped(service, "group_add", "supplementalGroups")
            numbers.append(number)
    return numbers


def _capabilities(service: str, spec: Mapping[str, Json], record: Record) -> dict[str, list[str]]:
    out = {}
    for key, word in (("cap_add", "add"), ("cap_drop", "drop")):
        names = [str(name).upper().removeprefix("CAP_") for name in spec.get(key) or []]
        if key in spec:
            record.mapped(service, key, f"capabilities.{word}")
        if names:
            out[word] = list(dict.fromkeys(names))
    return out


def _security_option(service: str, option: str, container: dict[str, Json], record: Record) -> None:
    name, _, value = option.replace("=", ":", 1).partition(":")
    if name == "no-new-privileges":
        off = value in ("", "true")
        if off and (container.get("privileged") or "SYS_ADMIN" in _added(container)):
            record.refused(
                service, "security_opt", "no-new-privileges contradicts privileged or SYS_ADMIN in Kubernetes"
            )
            return
        container["allowPrivilegeEscalation"] = not off
        record.mapped(service, "security_opt", "allowPrivilegeEscalation")
    elif name in ("seccomp", "apparmor"):
        field_name = "seccompProfile" if name == "seccomp" else "appArmorProfile"
        if value == "unconfined":
            container[field_name] = {"type": "Unconfined"}
            record.mapped(service, "security_opt", f"{field_name} Unconfined")
        elif value in ("docker-default", "runtime/default", "builtin"):
            container[field_name] = {"type": "RuntimeDefault"}
            record.mapped(service, "security_opt", f"{field_name} RuntimeDefault")
        elif name == "apparmor" and value:
            container[field_name] = {"type": "Localhost", "localhostProfile": value}
            record.approximated(service, "security_opt", f"AppArmor profile {value} must be loaded on every node")
        else:
            record.refused(service, "security_opt", f"the seccomp profile {value} must first be put on the nodes")
    elif name == "label":
        key, _, setting = value.replace("=", ":").partition(":")
        if value == "disable":
            record.approximated(
                service,
                "security_opt",
                "label=disable: only SELinux nodes label containers, there it takes seLinuxOptions.type spc_t",
            )
        elif key in ("user", "role", "type", "level"):
            container.setdefault("seLinuxOptions", {})[key] = setting
            record.mapped(service, "security_opt", f"seLinuxOptions.{key}")
        else:
            record.refused(service, "security_opt", f"label {value} is not known")
    else:
        record.refused(service, "security_opt", f"{option}: no equivalent in Kubernetes")


def _added(container: Mapping[str, Json]) -> list[str]:
    return (container.get("capabilities") or {}).get("add") or []


def _sysctls(service: str, given: Json, record: Record, *, host_network: bool, host_ipc: bool) -> list[dict[str, str]]:
    pairs = given.items() if isinstance(given, Mapping) else (str(item).split("=", 1) for item in given)
    out = []
    for given_name, value in pairs:
        name = str(given_name).replace("/", ".")  # both spellings are the kernel's
        if host_network and name.startswith("net."):
            record.refused(service, "sysctls", f"{name} would change the node itself (host network): set it there")
            continue
        if host_ipc and name.startswith(("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")):
            record.refused(service, "sysctls", f"{name} would change the node itself (host IPC): set it there")
            continue
        out.append({"name": name, "value": str(value)})
        if name in _SAFE_SYSCTLS:
            record.mapped(service, "sysctls", "pod securityContext.sysctls")
        else:
            record.approximated(
                service,
                "sysctls",
                f"pod securityContext.sysctls; nodes must allow it, else the pod is "
                f"rejected: k3s --kubelet-arg=allowed-unsafe-sysctls={name}",
            )
    return out


def _namespaces(service: str, spec: Mapping[str, Json], record: Record) -> dict[str, Json]:
    fields: dict[str, Json] = {}
    for key, name in (("pid", "hostPID"), ("ipc", "hostIPC")):
        value = spec.get(key)
        if value == "host":
            fields[name] = True
            record.mapped(service, key, name)
        elif value in ("private", "shareable", "none"):
            record.mapped(service, key, "the pod's own")
        elif value:
            record.refused(service, key, f"{value}: pods do not share this namespace with one another")
    for key, note in (
        ("userns_mode", "pods use the node's user namespace unless hostUsers is false"),
        ("cgroup", "the container runtime's choice"),
    ):
        if key in spec:
            record.approximated(service, key, note)
    if "uts" in spec:
        record.refused(service, "uts", "a pod has its own host name; the node's only with the host network")
    if "init" in spec:
        if spec["init"] and fields.get("hostPID"):
            record.mapped(service, "init", "the node's own init reaps zombies (pid: host)")
        elif spec["init"]:
            fields["shareProcessNamespace"] = True
            record.approximated(
                service,
                "init",
                "no init process in containerd; shareProcessNamespace lets the pod's pause process reap zombies",
            )
        else:
            record.mapped(service, "init", "no init process")
    return fields
