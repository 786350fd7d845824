"""What K3s is told: /etc/rancher/k3s/config.yaml with its drop-ins, the unit's arguments, and its environment.

K3s reads them in that order, later ones win. A key of the file that is no flag of this command is skipped with a
warning (pkg/configfilearg, stripInvalidFlags); an unknown flag of the command line stops it.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.lab.hosts.files import Files

CONFIG = "/etc/rancher/k3s/config.yaml"
Role = Literal["server", "agent"]

_AGENT = """
alsologtostderr bind-address config container-runtime-endpoint data-dir debug default-runtime
disable-apiserver-lb disable-default-registry-endpoint docker embedded-registry enable-pprof flannel-conf
flannel-cni-conf flannel-iface image-credential-provider-bin-dir image-credential-provider-config
image-service-endpoint kubelet-arg kube-proxy-arg lb-server-port log logtostderr node-external-dns node-external-ip
node-internal-dns node-ip node-label node-name node-taint nonroot-devices pause-image prefer-bundled-bin
private-registry protect-kernel-defaults resolv-conf rootless selinux server snapshotter token token-file v vmodule
vpn-auth vpn-auth-file with-node-id
"""
_SERVER_ONLY = """
advertise-address advertise-port agent-token agent-token-file airgap-extra-registry cluster-cidr cluster-dns
cluster-domain cluster-init cluster-reset cluster-reset-restore-path datastore-cafile datastore-certfile
datastore-endpoint datastore-keyfile default-local-storage-path disable disable-agent disable-apiserver
disable-cloud-controller disable-controller-manager disable-etcd disable-helm-controller disable-kube-proxy
disable-network-policy disable-scheduler egress-selector-mode etcd-arg etcd-disable-snapshots etcd-expose-metrics
etcd-s3 etcd-snapshot-dir etcd-snapshot-name etcd-snapshot-retention etcd-snapshot-schedule-cron flannel-backend
flannel-external-ip flannel-ipv6-masq helm-job-image https-listen-port kine-tls kube-apiserver-arg
kube-cloud-controller-manager-arg kube-controller-manager-arg kube-scheduler-arg multus secrets-encryption
secrets-encryption-provider service-cidr service-node-port-range servicelb-namespace supervisor-metrics
system-default-registry tls-san tls-san-security write-kubeconfig write-kubeconfig-group write-kubeconfig-mode
"""
FLAGS: dict[Role, frozenset[str]] = {
    "agent": frozenset(_AGENT.split()),
    "server": frozenset(_AGENT.split()) | frozenset(_SERVER_ONLY.split()),
}
LISTS = frozenset(
    [
        "disable",
        "tls-san",
        "node-label",
        "node-taint",
        "node-ip",
        "node-external-ip",
        "kubelet-arg",
        "kube-proxy-arg",
        "kube-apiserver-arg",
        "kube-controller-manager-arg",
        "kube-scheduler-arg",
        "cluster-cidr",
        "service-cidr",
        "etcd-arg",
    ]
)
SWITCHES = frozenset(
    name
    for name in FLAGS["server"]
    if name.startswith(("disable-", "enable-"))
    or name
    in (
        "alsologtostderr",
        "debug",
        "docker",
        "embedded-registry",
        "prefer-bundled-bin",
        "protect-kernel-defaults",
        "rootless",
        "selinux",
        "with-node-id",
        "cluster-init",
        "cluster-reset",
        "etcd-disable-snapshots",
        "etcd-expose-metrics",
        "etcd-s3",
        "flannel-external-ip",
        "flannel-ipv6-masq",
        "kine-tls",
        "secrets-encryption",
        "supervisor-metrics",
        "tls-san-security",
    )
)
ENVIRONMENT = {
    "K3S_URL": "server",
    "K3S_TOKEN": "token",
    "K3S_AGENT_TOKEN": "agent-token",
    "K3S_NODE_NAME": "node-name",
    "K3S_KUBECONFIG_MODE": "write-kubeconfig-mode",
    "K3S_DATASTORE_ENDPOINT": "datastore-endpoint",
}


class BadSettings(Exception):
    """K3s would not start; the text is its journal line."""


def read_settings(
    files: Files, role: Role, arguments: list[str], environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The settings K3s starts with, and the warnings it logs. Raises BadSettings."""
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    for path in _config_files(files):
        for key, value in _load(files, path).items():
            append = key.endswith("+")
            key = key.removesuffix("+")
            if key not in FLAGS[role]:
                warnings.append(f'level=warning msg="Unknown flag --{key} found in config.yaml, skipping\\n"')
                continue
            value = _as_list(value) if key in LISTS else value
            settings[key] = [*settings.get(key, []), *value] if append and key in LISTS else value
    settings.update(_from_arguments(role, arguments))
    for name, key in ENVIRONMENT.items():
        if environment.get(name) and key in FLAGS[role]:
            settings.setdefault(key, environment[name])
    if role == "agent":
        for needed in ("server", "token"):
            if not settings.get(needed) and not (needed == "token" and settings.get("token-file")):
                raise BadSettings(f'level=fatal msg="--{needed} is required"')
    return settings, warnings


def _config_files(files: Files) -> list[str]:
    found = [CONFIG] if files.exists(CONFIG) else []
    folder = CONFIG + ".d"
    if files.exists(folder):
        found += [f"{folder}/{name}" for name in files.listdir(folder) if name.endswith((".yaml", ".yml"))]
    return found


def _load(files: Files, path: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(io.StringIO(files.text(path)))
    except YAMLError as error:
        raise BadSettings(f'level=fatal msg="{path}: yaml: {str(error).splitlines()[0]}"') from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadSettings(f'level=fatal msg="{path}: yaml: cannot unmarshal into a map of settings"')
    return {str(key): item for key, item in value.items()}


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _from_arguments(role: Role, arguments: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    rest = [word for argument in arguments for word in shlex.split(argument)]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in FLAGS[role]:
            raise BadSettings(f"Incorrect Usage: flag provided but not defined: -{name}")
        if not equals:
            if name in SWITCHES:
                settings[name] = True
                continue
            if not rest:
                raise BadSettings(f"Incorrect Usage: flag needs an argument: -{name}")
            value = rest.pop(0)
        if name in SWITCHES:
            settings[name] = value.lower() == "true"
        elif name in LISTS:
            settings[name] = [*settings.get(name, []), *value.split(",")]
        else:
            settings[name] = value
    return settings
