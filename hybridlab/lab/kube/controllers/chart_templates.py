"""What the known charts' templates do with values: specs of their workloads, StorageClasses, policies, locations.

Only values that change what the lab does are looked at; others are accepted and have no effect, as helm accepts them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybridlab.lab.kube.controllers import charts
from hybridlab.lab.kube.controllers.charts import Chart, ChartError, Release
from hybridlab.lab.kube.controllers.objects import Obj

DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
SERVICE_PORTS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "velero": (("http-monitoring", 8085),),
    "traefik": (("web", 80), ("websecure", 443)),
    "longhorn-frontend": (("http", 80),),
    "longhorn-backend": (("manager", 9500),),
    "longhorn-admission-webhook": (("admission-webhook", 9502),),
    "longhorn-recovery-backend": (("recovery-backend", 9503),),
}


def fill(chart: Chart, release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    """The body of one object of a chart; none where a value switches it off."""
    special = _SPECIAL.get((chart.name, obj["kind"]))
    if special is not None:
        return special(release, obj, images)
    return [_plain(release, obj, images)]


def more(chart: Chart, release: Release) -> list[Obj]:
    """Objects of a chart's dependencies."""
    if chart.name == "jiva" and release.value("openebsLocalpv.enabled", True):
        values = release.value("localpv-provisioner", {})
        dependency = charts.known("localpv-provisioner")
        return charts.render(dependency, Release(release.name, release.namespace, values))
    return []


# -- objects that look alike in every chart ----------------------------------------------------------------------------
def _plain(release: Release, obj: Obj, images: list[str]) -> Obj:
    kind, name = obj["kind"], obj["metadata"]["name"]
    if kind in ("ClusterRole", "Role"):
        obj["rules"] = []
    elif kind in ("ClusterRoleBinding", "RoleBinding"):
        role = "Role" if kind == "RoleBinding" else "ClusterRole"
        target = name.removesuffix("-binding") + "-role" if name.endswith("-binding") else name
        obj["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": target}
        obj["subjects"] = [{"kind": "ServiceAccount", "name": name, "namespace": release.namespace}]
    elif kind == "PriorityClass":
        obj["value"] = 900001000 if name.endswith("node-critical") else 900000000
    elif kind == "CSIDriver":
        obj["spec"] = {"attachRequired": False, "podInfoOnMount": True}
    elif kind == "NetworkPolicy":
        obj["spec"] = {"podSelector": {"matchLabels": {"app": name}}}
    elif kind == "IngressClass":
        obj["metadata"].setdefault("annotations", {})["ingressclass.kubernetes.io/is-default-class"] = "true"
        obj["spec"] = {"controller": "traefik.io/ingress-controller"}
    elif kind == "ConfigMap":
        obj["data"] = {}
    elif kind == "Service":
        ports = SERVICE_PORTS.get(name, (("http", 80),))
        obj["spec"] = {
            "selector": {"app": name},
            "ports": [{"name": word, "port": port, "protocol": "TCP"} for word, port in ports],
        }
    elif images:
        workload(obj, images)
    return obj


def workload(obj: Obj, images: Sequence[str], **spec: Any) -> Obj:
    """The spec of a Deployment, StatefulSet or DaemonSet with one container an image; ``spec`` goes into the pods'."""
    name = obj["metadata"]["name"]
    replicas = spec.pop("replicas", 1)
    containers: list[Obj] = []
    for image in images:
        short = image.rpartition("/")[2].partition(":")[0].removeprefix("mirrored-library-")
        taken = sum(1 for c in containers if c["name"].startswith(short))
        containers.append({"name": short if not taken else f"{short}-{taken}", "image": image})
    body: Obj = {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}},
    }
    pods = body["template"]["spec"]
    pods.update({key: value for key, value in spec.items() if value})
    if obj["kind"] != "DaemonSet":
        body["replicas"] = replicas
    if obj["kind"] == "StatefulSet":
        body["serviceName"] = name
    obj["spec"] = body
    return obj


def placement(release: Release, *paths: str) -> Obj:
    """nodeSelector, tolerations, affinity and the first container's resources as values give them; later paths win."""
    result: Obj = {}
    for path in paths:
        for key in ("nodeSelector", "tolerations", "affinity"):
            value = release.value(f"{path}.{key}" if path else key)
            if value:
                result[key] = value
    return result


def resources(obj: Obj, value: Any) -> None:
    if value:
        obj["spec"]["template"]["spec"]["containers"][0]["resources"] = value


# -- jiva --------------------------------------------------------------------------------------------------------------
def _jiva_workload(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    section = {"Deployment": "jivaOperator", "StatefulSet": "csiController", "DaemonSet": "csiNode"}[obj["kind"]]
    workload(obj, images, replicas=int(release.value(f"{section}.replicas", 1)), **placement(release, section))
    resources(obj, release.value(f"{section}.resources"))
    role = {
        "Deployment": "jiva-operator",
        "StatefulSet": "openebs-jiva-csi-controller",
        "DaemonSet": "openebs-jiva-csi-node",
    }
    obj["spec"]["template"]["metadata"]["labels"]["openebs.io/component-name"] = role[obj["kind"]]
    return [obj]


def _jiva_policy(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("defaultPolicy.enabled", True):
        return []
    obj["metadata"]["name"] = release.value("defaultPolicy.name", "openebs-jiva-default-policy")
    obj["spec"] = {
        "replicaSC": release.value("defaultPolicy.replicaSC", "openebs-hostpath"),
        "target": {"replicationFactor": int(release.value("defaultPolicy.replicas", 3))},
    }
    return [obj]


def _jiva_class(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("storageClass.enabled", True):
        return []
    obj["metadata"]["name"] = release.value("storageClass.name", "openebs-jiva-csi-default")
    if release.value("storageClass.isDefaultClass", False):
        obj["metadata"]["annotations"] = {DEFAULT_CLASS: "true"}
    policy = release.value("defaultPolicy.name", "openebs-jiva-default-policy")
    obj.update(
        provisioner="jiva.csi.openebs.io",
        parameters={"cas-type": "jiva", "policy": policy},
        reclaimPolicy=release.value("storageClass.reclaimPolicy", "Delete"),
        allowVolumeExpansion=bool(release.value("storageClass.allowVolumeExpansion", True)),
        volumeBindingMode="Immediate",
    )
    return [obj]


# -- localpv-provisioner -----------------------------------------------------------------------------------------------
def _localpv_deployment(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    replicas = int(release.value("localpv.replicas", 1))
    return [workload(obj, images, replicas=replicas, **placement(release, "localpv"))]


def _localpv_class(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("hostpathClass.enabled", True):
        return []
    obj["metadata"]["name"] = release.value("hostpathClass.name", "openebs-hostpath")
    base = release.value("hostpathClass.basePath") or release.value("localpv.basePath", "/var/openebs/local")
    config = [{"name": "StorageType", "value": "hostpath"}, {"name": "BasePath", "value": base}]
    notes = {"openebs.io/cas-type": "local", "cas.openebs.io/config": json.dumps(config)}
    if release.value("hostpathClass.isDefaultClass", False):
        notes[DEFAULT_CLASS] = "true"
    obj["metadata"]["annotations"] = notes
    obj.update(
        provisioner="openebs.io/local",
        volumeBindingMode="WaitForFirstConsumer",
        reclaimPolicy=release.value("hostpathClass.reclaimPolicy", "Delete"),
    )
    return [obj]


# -- velero ------------------------------------------------------------------------------------------------------------
def _velero_deployment(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    workload(obj, images, **placement(release, ""))
    obj["spec"]["selector"]["matchLabels"] = {
        "app.kubernetes.io/name": "velero",
        "app.kubernetes.io/instance": release.name,
    }
    template = obj["spec"]["template"]
    template["metadata"]["labels"] = {**obj["spec"]["selector"]["matchLabels"], "name": "velero"}
    pods = template["spec"]
    pods["serviceAccountName"] = f"{release.full('velero')}-server"
    uploader = release.value("configuration.uploaderType", "kopia")
    args = ["server", f"--uploader-type={uploader}"]
    if release.value("configuration.defaultVolumesToFsBackup", False):
        args.append("--default-volumes-to-fs-backup")
    default = next((str(b.get("name") or "default") for b in _locations(release) if b.get("default")), "")
    if default:
        args.append(f"--default-backup-storage-location={default}")
    ttl = release.value("configuration.defaultBackupTTL")
    if ttl:
        args.append(f"--default-backup-ttl={ttl}")
    container = pods["containers"][0]
    container.update(name="velero", command=["/velero"], args=args)
    container["ports"] = [{"name": "http-monitoring", "containerPort": 8085}]
    default_resources = {
        "requests": {"cpu": "500m", "memory": "128Mi"},
        "limits": {"cpu": "1000m", "memory": "512Mi"},
    }
    resources(obj, charts.merge(default_resources, release.value("resources", {})))
    init = release.value("initContainers", [])
    if not isinstance(init, list):
        raise ChartError("velero: initContainers has to be a list")
    pods["initContainers"] = init
    volumes: list[Obj] = [{"name": "plugins", "emptyDir": {}}, {"name": "scratch", "emptyDir": {}}]
    secret = _velero_secret(release)
    if secret:
        volumes.append({"name": "cloud-credentials", "secret": {"secretName": secret}})
        container["volumeMounts"] = [{"name": "cloud-credentials", "mountPath": "/credentials"}]
    pods["volumes"] = volumes
    made: list[Obj] = [obj]
    contents = release.value("credentials.secretContents", {})
    if secret and contents and not release.value("credentials.existingSecret"):
        meta = {"name": secret, "namespace": release.namespace}
        made.append({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": dict(contents)})
    return made


def _velero_secret(release: Release) -> str:
    """The Secret with the store's credentials that the server mounts; "" where the values want none."""
    if not release.value("credentials.useSecret", True):
        return ""
    existing = release.value("credentials.existingSecret")
    return str(existing or release.value("credentials.name") or release.full("velero"))


def _locations(release: Release) -> list[Obj]:
    found = release.value("configuration.backupStorageLocation", [])
    if not isinstance(found, list):
        raise ChartError("velero: configuration.backupStorageLocation has to be a list")
    return [dict(entry) for entry in found if isinstance(entry, Mapping)]


def _velero_locations(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("backupsEnabled", True):
        return []
    made = []
    for entry in _locations(release):
        spec: Obj = {
            "provider": entry.get("provider") or "",
            "objectStorage": {"bucket": entry.get("bucket") or ""},
        }
        if entry.get("prefix"):
            spec["objectStorage"]["prefix"] = entry["prefix"]
        for key in ("default", "accessMode", "backupSyncPeriod", "validationFrequency"):
            if entry.get(key) is not None:
                spec[key] = entry[key]
        if entry.get("config"):
            spec["config"] = {
                k: str(v) if not isinstance(v, bool) else str(v).lower() for k, v in entry["config"].items()
            }
        credential = entry.get("credential") or {}
        if credential.get("name"):
            spec["credential"] = {"name": credential["name"], "key": credential.get("key", "cloud")}
        meta = {**obj["metadata"], "name": str(entry.get("name") or "default")}
        made.append({**obj, "metadata": meta, "spec": spec})
    return made


def _velero_agent(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("deployNodeAgent", False):
        return []
    workload(obj, images, **placement(release, "nodeAgent"))
    template = obj["spec"]["template"]
    labels = {"name": "node-agent", "role": "node-agent"}
    obj["spec"]["selector"]["matchLabels"] = {"name": "node-agent"}
    template["metadata"]["labels"] = labels
    template["spec"]["containers"][0].update(name="node-agent", command=["/velero"], args=["node-agent", "server"])
    resources(obj, release.value("nodeAgent.resources"))
    template["spec"]["volumes"] = [{"name": "host-pods", "hostPath": {"path": "/var/lib/kubelet/pods"}}]
    return [obj]


def _velero_service(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("metrics.enabled", True):
        return []
    made = _plain(release, obj, images)
    made["spec"]["selector"] = {"app.kubernetes.io/name": "velero", "app.kubernetes.io/instance": release.name}
    return [made]


# -- traefik and longhorn ----------------------------------------------------------------------------------------------
def _traefik_deployment(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    tolerations = [
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
    ]
    spec = {"tolerations": tolerations, "priorityClassName": "system-cluster-critical", **placement(release, "")}
    workload(obj, images, replicas=int(release.value("deployment.replicas", 1)), **spec)
    resources(obj, release.value("resources"))
    return [obj]


def _traefik_service(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    if not release.value("service.enabled", True):
        return []
    made = _plain(release, obj, images)
    made["spec"]["type"] = release.value("service.type") or release.value("service.spec.type", "LoadBalancer")
    return [made]


def _longhorn_workload(release: Release, obj: Obj, images: list[str]) -> list[Obj]:
    name = obj["metadata"]["name"]
    section = {"longhorn-manager": "longhornManager", "longhorn-ui": "longhornUI"}.get(name, "longhornDriver")
    replicas = int(release.value("longhornUI.replicas", 2)) if name == "longhorn-ui" else 1
    return [workload(obj, images, replicas=replicas, **placement(release, section))]


_SPECIAL: Mapping[tuple[str, str], Callable[[Release, Obj, list[str]], list[Obj]]] = {
    ("jiva", "Deployment"): _jiva_workload,
    ("jiva", "StatefulSet"): _jiva_workload,
    ("jiva", "DaemonSet"): _jiva_workload,
    ("jiva", "JivaVolumePolicy"): _jiva_policy,
    ("jiva", "StorageClass"): _jiva_class,
    ("localpv-provisioner", "Deployment"): _localpv_deployment,
    ("localpv-provisioner", "StorageClass"): _localpv_class,
    ("velero", "Deployment"): _velero_deployment,
    ("velero", "BackupStorageLocation"): _velero_locations,
    ("velero", "DaemonSet"): _velero_agent,
    ("velero", "Service"): _velero_service,
    ("traefik", "Deployment"): _traefik_deployment,
    ("traefik", "Service"): _traefik_service,
    ("longhorn", "Deployment"): _longhorn_workload,
    ("longhorn", "DaemonSet"): _longhorn_workload,
}
