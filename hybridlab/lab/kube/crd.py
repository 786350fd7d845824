"""CustomResourceDefinitions: what they define and how they become Established."""

from __future__ import annotations

from typing import Any

from hybridlab.lab.kube.resources import Resource, from_definition

Obj = dict[str, Any]


def resource_of(definition: Obj) -> Resource:
    """The resource that this CustomResourceDefinition defines."""
    return from_definition(definition)


def establish(definition: Obj, time: str) -> None:
    """Set the status the apiextensions controllers would set: names accepted, established, stored versions."""
    spec = definition["spec"]
    names = dict(spec["names"])
    names.setdefault("singular", names["kind"].lower())
    names.setdefault("listKind", names["kind"] + "List")
    status: Obj = definition.setdefault("status", {})
    before = {c["type"]: c for c in status.get("conditions") or ()}
    conditions = []
    for kind, reason, message in (
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ):
        since = before.get(kind, {}).get("lastTransitionTime", time)
        conditions.append(
            {"type": kind, "status": "True", "lastTransitionTime": since, "reason": reason, "message": message}
        )
    status["conditions"] = conditions
    status["acceptedNames"] = names
    stored = next(v["name"] for v in spec["versions"] if v.get("storage"))
    status["storedVersions"] = sorted({*(status.get("storedVersions") or ()), stored})


def _version(definition: Obj | None, name: str) -> Obj:
    rows = ((definition or {}).get("spec") or {}).get("versions") or ()
    return next((row for row in rows if row["name"] == name), {})


def printer_columns(definition: Obj | None, version: str) -> list[Obj]:
    """additionalPrinterColumns of a version, or none."""
    columns: list[Obj] = _version(definition, version).get("additionalPrinterColumns") or []
    return columns


def selectable_fields(definition: Obj | None, version: str) -> tuple[str, ...]:
    """Fields by which a version's objects may be selected."""
    rows = _version(definition, version).get("selectableFields") or ()
    return tuple(row["jsonPath"].lstrip(".") for row in rows)
