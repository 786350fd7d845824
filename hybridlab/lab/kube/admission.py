"""What happens to an object between the request and the store: defaults, custom schemas, validation."""

from __future__ import annotations

from typing import Any

from hybridlab.lab.kube import crd_schema, defaults
from hybridlab.lab.kube.decode import Decoder
from hybridlab.lab.kube.errors import ApiError, bad_request, invalid, unsupported
from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.schema import Shape, built_in_shape, custom_shape, type_of
from hybridlab.lab.kube.store import CRD_KEY, Obj, Store
from hybridlab.lab.kube.validation import validate


class Admission:
    """Decodes, defaults and validates objects; knows the schemas of custom resources from the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.admission.append(self.admit)

    # -- schemas ----------------------------------------------------------------------------------------------------
    def schema(self, resource: Resource, version: str | None = None) -> Obj | None:
        """The openAPIV3Schema of a custom resource at a version (default: the stored one)."""
        if not resource.definition:
            return None
        found = self._store.peek(CRD_KEY[1], group=CRD_KEY[0], fields=f"metadata.name={resource.definition}")
        for row in found[0]["spec"]["versions"] if found else ():
            if row["name"] == (version or resource.version):
                schema: Obj | None = (row.get("schema") or {}).get("openAPIV3Schema")
                return schema
        return None

    def shape(self, resource: Resource, version: str | None = None) -> Shape:
        """How objects of this resource merge."""
        if resource.definition:
            return custom_shape(self.schema(resource, version))
        name = type_of(resource.api_version, resource.kind)
        return built_in_shape(name or "")

    # -- from the wire ----------------------------------------------------------------------------------------------
    def decode(self, obj: Any, resource: Resource, version: str) -> tuple[Obj, list[str]]:
        """The object without what its type doesn't know, and the paths of that; ApiError 400 for wrong types.

        apiVersion and kind may be missing (the path says them) but not differ.
        """
        api_version = f"{resource.group}/{version}" if resource.group else version
        if not isinstance(obj, dict):
            raise bad_request("couldn't get version/kind; json parse error: json: cannot unmarshal into Go value")
        obj = {**obj}
        if obj.setdefault("apiVersion", api_version) != api_version:
            message = (
                f"the API version in the data ({obj['apiVersion']}) does not match the expected API version "
                f"({api_version})"
            )
            raise bad_request(message)
        if obj.setdefault("kind", resource.kind) != resource.kind:
            message = f'{resource.kind} in version "{version}" cannot be handled as a {resource.kind}: no kind "'
            raise bad_request(f'{message}{obj["kind"]}" is registered for version "{api_version}"')
        decoder = Decoder(api_version, resource.kind)
        if not resource.definition:
            decoded = decoder.decode(obj, type_of(api_version, resource.kind) or "object")
            return decoded, decoder.unknown
        meta = obj.get("metadata")
        obj["metadata"] = decoder.decode(meta, "V1ObjectMeta") if meta is not None else {}
        schema = self.schema(resource, version)
        unknown = [f"metadata.{path}" for path in decoder.unknown]
        if schema:
            obj = crd_schema.prune(obj, schema, "", unknown)
        return obj, unknown

    # -- before the store -------------------------------------------------------------------------------------------
    def admit(self, resource: Resource, obj: Obj, old: Obj | None) -> None:
        """Fill in defaults and refuse what the real server refuses; ApiError 422 names every field that is wrong."""
        if resource.definition:
            self._admit_custom(resource, obj, old)
            return
        defaults.fill(resource.group, resource.plural, obj, creating=old is None)
        defaults.allocate(resource.group, resource.plural, obj, old)
        causes = validate(resource, obj, old)
        if causes:
            raise invalid(resource.kind, resource.group, obj["metadata"].get("name") or "", causes)

    def _admit_custom(self, resource: Resource, obj: Obj, old: Obj | None) -> None:
        causes = validate(resource, obj, old)
        schema = self.schema(resource)
        if schema:
            pruned = crd_schema.prune(obj, schema, "", [])
            for key in list(obj):
                if key not in pruned:
                    del obj[key]
            obj.update(pruned)
            crd_schema.fill(obj, schema)
            causes += crd_schema.check(obj, schema)
            if old:
                causes += crd_schema.check_change(obj, old, schema)
        if causes:
            raise invalid(resource.kind, resource.group, obj["metadata"].get("name") or "", causes)

    def check_status(self, resource: Resource, obj: Obj) -> None:
        """Validate a status written through its subresource (custom resources only: built-in ones are decoded)."""
        schema = self.schema(resource)
        if schema and "status" in obj:
            status = (schema.get("properties") or {}).get("status") or {}
            causes = crd_schema.check(obj["status"], status, "status")
            if causes:
                raise invalid(resource.kind, resource.group, obj["metadata"]["name"], causes)


def strictness(query_value: str, unknown: list[str], duplicates: list[str]) -> list[str]:
    """The warnings to send for unknown and duplicate fields; ApiError 400 when the request asked to be strict."""
    texts = [f'unknown field "{path}"' for path in unknown] + [f'duplicate field "{path}"' for path in duplicates]
    if query_value not in ("", "Ignore", "Warn", "Strict"):
        cause = unsupported("fieldValidation", query_value, ["Ignore", "Strict", "Warn"])
        raise ApiError(422, "Invalid", f' "" is invalid: {cause}')
    if texts and query_value == "Strict":
        raise bad_request("strict decoding error: " + ", ".join(texts))
    return [] if query_value == "Ignore" else texts
