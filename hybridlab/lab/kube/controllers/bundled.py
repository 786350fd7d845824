"""What a K3s server brings along: namespaces, coredns, local-path, metrics-server, Traefik's HelmChart.

Images, labels, requests and tolerations are those of K3s 1.33's packaged manifests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    NAMESPACE,
    SERVICE_ACCOUNT,
    Obj,
    is_deleting,
    name_of,
    namespace_of,
)
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

SYSTEM = "kube-system"
_CONTROL_PLANE = {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}
_CRITICAL = {"key": "CriticalAddonsOnly", "operator": "Exists"}
_LOCAL_PATH_CONFIG = {
    "nodePathMap": [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": ["/var/lib/rancher/k3s/storage"]}]
}
_COREFILE = """.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
      pods insecure
      fallthrough in-addr.arpa ip6.arpa
    }
    hosts /etc/coredns/NodeHosts {
      ttl 60
      reload 15s
      fallthrough
    }
    prometheus :9153
    forward . /etc/resolv.conf
    cache 30
    loop
    reload
    loadbalance
}
"""


def manifests(server_ip: str, disabled: Iterable[str], *, charts: bool) -> list[Obj]:
    """The objects in the order they are made; ``charts`` says whether HelmChart is defined."""
    skip = set(disabled)
    result: list[Obj] = [*_base(server_ip)]
    if "coredns" not in skip:
        result += _coredns()
    if "local-storage" not in skip:
        result += _local_path()
    if "metrics-server" not in skip:
        result += _metrics_server()
    if "traefik" not in skip and charts:
        result += _traefik()
    return result


def _object(api_version: str, kind: str, name: str, namespace: str = "", **body: Any) -> Obj:
    meta: Obj = {"name": name}
    if namespace:
        meta["namespace"] = namespace
    if "labels" in body:
        meta["labels"] = body.pop("labels")
    if "annotations" in body:
        meta["annotations"] = body.pop("annotations")
    return {"apiVersion": api_version, "kind": kind, "metadata": meta, **body}


def _base(server_ip: str) -> Iterable[Obj]:
    for name in ("kube-system", "default", "kube-public", "kube-node-lease"):
        yield _object("v1", "Namespace", name)
    for name, value in (("system-cluster-critical", 2000000000), ("system-node-critical", 2000001000)):
        yield _object("scheduling.k8s.io/v1", "PriorityClass", name, value=value)
    spec = {
        "type": "ClusterIP",
        "clusterIP": "10.43.0.1",
        "clusterIPs": ["10.43.0.1"],
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
    }
    labels = {"component": "apiserver", "provider": "kubernetes"}
    yield _object("v1", "Service", "kubernetes", "default", spec=spec, labels=labels)
    port = {"name": "https", "port": 6443, "protocol": "TCP"}
    subsets = [{"addresses": [{"ip": server_ip}], "ports": [port]}]
    labels = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    yield _object("v1", "Endpoints", "kubernetes", "default", subsets=subsets, labels=labels)
    yield _object(
        ENDPOINT_SLICE.api_version,
        "EndpointSlice",
        "kubernetes",
        "default",
        labels={"kubernetes.io/service-name": "kubernetes"},
        addressType="IPv4",
        endpoints=[{"addresses": [server_ip], "conditions": {"ready": True}}],
        ports=[port],
    )


def _deployment(name: str, labels: Mapping[str, str], container: Obj, tolerations: Sequence[Obj], **spec: Any) -> Obj:
    template = {
        "metadata": {"labels": dict(labels)},
        "spec": {
            "serviceAccountName": name,
            "tolerations": list(tolerations),
            "containers": [container],
            **spec,
        },
    }
    body = {"selector": {"matchLabels": dict(labels)}, "revisionHistoryLimit": 0, "template": template}
    return _object("apps/v1", "Deployment", name, SYSTEM, spec=body, labels=dict(labels))


def _account(name: str) -> Obj:
    return _object("v1", "ServiceAccount", name, SYSTEM)


def _coredns() -> Iterable[Obj]:
    labels = {"k8s-app": "kube-dns"}
    yield _account("coredns")
    yield _object("v1", "ConfigMap", "coredns", SYSTEM, data={"Corefile": _COREFILE, "NodeHosts": ""})
    container: Obj = {
        "name": "coredns",
        "image": "rancher/mirrored-coredns-coredns:1.12.1",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
        "ports": [
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
            {"name": "metrics", "containerPort": 9153, "protocol": "TCP"},
        ],
        "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    yield _deployment(
        "coredns",
        labels,
        container,
        [_CRITICAL, _CONTROL_PLANE],
        priorityClassName="system-cluster-critical",
        nodeSelector={"kubernetes.io/os": "linux"},
        dnsPolicy="Default",
        volumes=[{"name": "config-volume", "configMap": {"name": "coredns"}}],
    )
    spec = {
        "clusterIP": "10.43.0.10",
        "clusterIPs": ["10.43.0.10"],
        "selector": labels,
        "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "metrics", "port": 9153, "protocol": "TCP"},
        ],
    }
    yield _object("v1", "Service", "kube-dns", SYSTEM, spec=spec, labels={**labels, "kubernetes.io/name": "CoreDNS"})


def _local_path() -> Iterable[Obj]:
    name = "local-path-provisioner"
    yield _account(name)
    yield _object("v1", "ConfigMap", "local-path-config", SYSTEM, data={"config.json": json.dumps(_LOCAL_PATH_CONFIG)})
    container = {"name": name, "image": "rancher/local-path-provisioner:v0.0.31"}
    yield _deployment(
        name, {"app": name}, container, [_CRITICAL, _CONTROL_PLANE], priorityClassName="system-node-critical"
    )
    yield _object(
        "storage.k8s.io/v1",
        "StorageClass",
        "local-path",
        annotations={"defaultVolumeType": "local", "storageclass.kubernetes.io/is-default-class": "true"},
        provisioner="rancher.io/local-path",
        volumeBindingMode="WaitForFirstConsumer",
        reclaimPolicy="Delete",
    )


def _metrics_server() -> Iterable[Obj]:
    name, labels = "metrics-server", {"k8s-app": "metrics-server"}
    yield _account(name)
    container: Obj = {
        "name": name,
        "image": "rancher/mirrored-metrics-server:v0.7.2",
        "resources": {"requests": {"cpu": "100m", "memory": "70Mi"}},
        "ports": [{"name": "https", "containerPort": 10250, "protocol": "TCP"}],
    }
    yield _deployment(name, labels, container, [_CRITICAL, _CONTROL_PLANE], priorityClassName="system-node-critical")
    spec = {"selector": labels, "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": "https"}]}
    yield _object("v1", "Service", name, SYSTEM, spec=spec, labels=labels)


def _traefik() -> Iterable[Obj]:
    base = "https://%{KUBERNETES_API}%/static/charts"
    crd = {"chart": f"{base}/traefik-crd-34.2.1+up34.2.0.tgz"}
    yield _object("helm.cattle.io/v1", "HelmChart", "traefik-crd", SYSTEM, spec=crd)
    spec = {"chart": f"{base}/traefik-34.2.1+up34.2.0.tgz", "set": {"global.systemDefaultRegistry": ""}}
    yield _object("helm.cattle.io/v1", "HelmChart", "traefik", SYSTEM, spec=spec)


def definitions(group: str) -> list[Obj]:
    """The CustomResourceDefinitions of one API group that are shipped in hybridlab/data/crds."""
    folder = resources.files("hybridlab.data") / "crds"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(f".{group}.json"))
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in names]


class Namespaces(Controller):
    """Every namespace has the ServiceAccount ``default`` and the ConfigMap ``kube-root-ca.crt``."""

    name = "namespace-defaults"

    def __init__(self, context: Context, root_ca: Callable[[], str]) -> None:
        super().__init__(context)
        self._root_ca = root_ca

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(NAMESPACE, kind):
            return [("", name_of(obj))]
        ours = (on(SERVICE_ACCOUNT, kind) and name_of(obj) == "default") or (
            on(CONFIG_MAP, kind) and name_of(obj) == "kube-root-ca.crt"
        )
        return [("", namespace_of(obj))] if ours and event == "DELETED" else []

    async def reconcile(self, key: Key) -> float | None:
        namespace = self.context.get(NAMESPACE, key[1])
        if namespace is None or is_deleting(namespace):
            return None
        self.context.create(_object("v1", "ServiceAccount", "default", key[1]))
        text = {"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver."}
        data = {"ca.crt": self._root_ca()}
        self.context.create(_object("v1", "ConfigMap", "kube-root-ca.crt", key[1], data=data, annotations=text))
        return None
