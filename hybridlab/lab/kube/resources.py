"""What kinds of objects the API server knows: one row a resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """One resource of the API; ``versions`` are all served ones, ``version`` the preferred and stored one.

    ``subresources`` are path segments ("status", "scale", "log", …). ``tracks_generation`` says whether
    metadata.generation counts changes of the spec. ``definition`` names the CustomResourceDefinition it comes from.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[str, ...] = ()
    tracks_generation: bool = False
    versions: tuple[str, ...] = ()
    definition: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def served(self) -> tuple[str, ...]:
        return self.versions or (self.version,)

    @property
    def qualified(self) -> str:
        """``deployments.apps``; ``pods`` for the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


def _row(
    api_version: str,
    plural: str,
    kind: str,
    flags: str = "",
    short: str = "",
    sub: str = "",
    verbs: tuple[str, ...] = ALL_VERBS,
) -> Resource:
    """``flags``: c cluster-scoped, g counts generations, a in category "all"."""
    group, _, version = api_version.rpartition("/")
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        namespaced="c" not in flags,
        singular=kind.lower(),
        short_names=tuple(short.split()),
        categories=("all",) if "a" in flags else (),
        verbs=verbs,
        subresources=tuple(sub.split()),
        tracks_generation="g" in flags,
    )


_RBAC = "rbac.authorization.k8s.io/v1"
_NO_COLLECTION = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")

BUILT_IN: tuple[Resource, ...] = (
    _row("v1", "configmaps", "ConfigMap", short="cm"),
    _row("v1", "endpoints", "Endpoints", short="ep"),
    _row("v1", "events", "Event", short="ev"),
    _row("v1", "limitranges", "LimitRange", short="limits"),
    _row("v1", "namespaces", "Namespace", "c", "ns", "status finalize", _NO_COLLECTION),
    _row("v1", "nodes", "Node", "c", "no", "status"),
    _row("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "", "pvc", "status"),
    _row("v1", "persistentvolumes", "PersistentVolume", "c", "pv", "status"),
    _row("v1", "pods", "Pod", "ga", "po", "status log exec binding eviction"),
    _row("v1", "podtemplates", "PodTemplate"),
    _row("v1", "replicationcontrollers", "ReplicationController", "ga", "rc", "status scale"),
    _row("v1", "resourcequotas", "ResourceQuota", "", "quota", "status"),
    _row("v1", "secrets", "Secret"),
    _row("v1", "serviceaccounts", "ServiceAccount", "", "sa", "token"),
    _row("v1", "services", "Service", "a", "svc", "status"),
    _row("apps/v1", "controllerrevisions", "ControllerRevision"),
    _row("apps/v1", "daemonsets", "DaemonSet", "ga", "ds", "status"),
    _row("apps/v1", "deployments", "Deployment", "ga", "deploy", "status scale"),
    _row("apps/v1", "replicasets", "ReplicaSet", "ga", "rs", "status scale"),
    _row("apps/v1", "statefulsets", "StatefulSet", "ga", "sts", "status scale"),
    _row("batch/v1", "cronjobs", "CronJob", "ga", "cj", "status"),
    _row("batch/v1", "jobs", "Job", "ga", "", "status"),
    _row("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "a", "hpa", "status"),
    _row("networking.k8s.io/v1", "ingressclasses", "IngressClass", "cg"),
    _row("networking.k8s.io/v1", "ingresses", "Ingress", "g", "ing", "status"),
    _row("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", "g", "netpol"),
    _row("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "g", "pdb", "status"),
    _row(_RBAC, "clusterrolebindings", "ClusterRoleBinding", "c"),
    _row(_RBAC, "clusterroles", "ClusterRole", "c"),
    _row(_RBAC, "rolebindings", "RoleBinding"),
    _row(_RBAC, "roles", "Role"),
    _row("storage.k8s.io/v1", "csidrivers", "CSIDriver", "c"),
    _row("storage.k8s.io/v1", "csinodes", "CSINode", "c"),
    _row("storage.k8s.io/v1", "csistoragecapacities", "CSIStorageCapacity"),
    _row("storage.k8s.io/v1", "storageclasses", "StorageClass", "c", "sc"),
    _row("storage.k8s.io/v1", "volumeattachments", "VolumeAttachment", "c", "", "status"),
    _row("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "c", "pc"),
    _row("coordination.k8s.io/v1", "leases", "Lease"),
    _row("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "g"),
    _row("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", "c"),
    _row(
        "apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", "cg", "crd crds", "status"
    ),
    _row("apiregistration.k8s.io/v1", "apiservices", "APIService", "c", "", "status"),
    _row("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", "cg"),
    _row("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", "cg"),
)


def from_definition(crd: Mapping[str, Any]) -> Resource:
    """The resource a CustomResourceDefinition defines."""
    spec = crd["spec"]
    names = spec["names"]
    served: Sequence[Mapping[str, Any]] = [v for v in spec["versions"] if v.get("served")]
    stored = next((v for v in spec["versions"] if v.get("storage")), spec["versions"][0])
    subresources = {s for v in served for s in v.get("subresources") or {}}
    return Resource(
        group=spec["group"],
        version=stored["name"],
        plural=names["plural"],
        kind=names["kind"],
        namespaced=spec["scope"] == "Namespaced",
        singular=names.get("singular") or names["kind"].lower(),
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        subresources=tuple(sorted(subresources)),
        tracks_generation=True,
        versions=tuple(v["name"] for v in served),
        definition=crd["metadata"]["name"],
    )
