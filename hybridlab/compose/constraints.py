"""``deploy.placement`` and the rest of ``deploy`` that no other module speaks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybridlab.compose.fidelity import Record
from hybridlab.compose.model import ARCH_LABEL
from hybridlab.compose.names import is_annotation_key
from hybridlab.models import Json, NodeCapacity

_CONSTRAINT = re.compile(r"\s*([\w.\-/]+)\s*(==|!=)\s*(.+?)\s*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
# Each has its own line, from here or from the module that maps it.
_KNOWN = (
    "labels",
    "resources",
    "update_config",
    "restart_policy",
    "replicas",
    "mode",
    "placement",
    "endpoint_mode",
    "rollback_config",
)
_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True)
class Constraints:
    """``selector`` and ``expressions`` for the pod; ``platform`` where a constraint names an architecture."""

    selector: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[Mapping[str, Json], ...] = ()
    platform: str = ""


def constraints(service: str, spec: Mapping[str, Json], nodes: Sequence[NodeCapacity], record: Record) -> Constraints:
    """Swarm's placement constraints → node selection; one that no node satisfies is refused, not obeyed."""
    deploy = spec.get("deploy") or {}
    selector: dict[str, str] = {}
    expressions: list[Mapping[str, Json]] = []
    platform = ""
    for text in (deploy.get("placement") or {}).get("constraints") or []:
        match = _CONSTRAINT.fullmatch(str(text))
        if match is None:
            record.refused(service, "deploy.placement.constraints", f"{text}: not understood")
            continue
        key, value, equal = match[1], match[3], match[2] == "=="
        if key == "node.platform.arch" and equal:
            platform = value
            record.mapped(service, "deploy.placement.constraints", f"{text}: architecture")
            continue
        label, label_value = _label(key, value)
        if label is None or not (_LABEL_VALUE.fullmatch(label_value) and is_annotation_key(label)):
            record.refused(service, "deploy.placement.constraints", f"{text}: nodes have no such property")
        elif not equal or label == _CONTROL_PLANE:
            operator, values = ("NotIn", [label_value])
            if label == _CONTROL_PLANE:
                operator, values = ("Exists" if (value == "manager") == equal else "DoesNotExist"), []
            expression: dict[str, Json] = {"key": label, "operator": operator}
            expressions.append({**expression, "values": values} if values else expression)
            record.mapped(service, "deploy.placement.constraints", f"{text}: node affinity")
        elif nodes and not any(node.labels.get(label) == label_value for node in nodes):
            record.refused(
                service, "deploy.placement.constraints", f"{text}: no node has the label {label}={label_value}"
            )
        else:
            selector[label] = label_value
            record.mapped(service, "deploy.placement.constraints", f"{text}: nodeSelector")
    _rest(service, deploy, record)
    if "deploy" in spec and not deploy:
        record.mapped(service, "deploy", "empty")
    return Constraints(selector, tuple(expressions), platform)


def _label(key: str, value: str) -> tuple[str | None, str]:
    if key.startswith("node.labels."):
        return key.removeprefix("node.labels."), value
    known = {
        "node.hostname": "kubernetes.io/hostname",
        "node.platform.os": "kubernetes.io/os",
        "node.platform.arch": ARCH_LABEL,
        "node.role": _CONTROL_PLANE,
    }
    return known.get(key), value


def with_expressions(affinity: Mapping[str, Json], expressions: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """Node affinity with these expressions required as well (all of them: one term)."""
    if not expressions:
        return dict(affinity)
    node = dict(affinity.get("nodeAffinity") or {})
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = (node.get(key) or {}).get("nodeSelectorTerms") or [{"matchExpressions": []}]
    merged = [{"matchExpressions": [*term["matchExpressions"], *expressions]} for term in terms]
    return {
        **affinity,
        "nodeAffinity": {
            key: {"nodeSelectorTerms": merged},
            **{name: value for name, value in node.items() if name != key},
        },
    }


def _rest(service: str, deploy: Mapping[str, Json], record: Record) -> None:
    placement = deploy.get("placement") or {}
    if placement.get("preferences"):
        record.refused(
            service,
            "deploy.placement.preferences",
            "spreading: a topologySpreadConstraint needs several replicas "
            "and labelled zones, which a cluster of this size lacks",
        )
    if placement.get("max_replicas_per_node"):
        record.refused(
            service, "deploy.placement.max_replicas_per_node", "Kubernetes caps pods per node and not per service"
        )
    if "rollback_config" in deploy:
        record.refused(service, "deploy.rollback_config", "kubectl rollout undo is a person's decision")
    if "endpoint_mode" in deploy:
        mapped = deploy["endpoint_mode"] in ("vip", "")
        record.add(
            service,
            "deploy.endpoint_mode",
            "mapped" if mapped else "approximated",
            "ClusterIP" if mapped else "ClusterIP instead of DNS round robin",
        )
    for key, value in deploy.items():
        if not record.covers(service, f"deploy.{key}") and (not value or key == "placement"):
            record.mapped(service, f"deploy.{key}", "empty")
        elif key not in _KNOWN:
            record.refused(service, f"deploy.{key}", "hybridlab does not know this key of Compose")
