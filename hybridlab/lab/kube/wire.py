"""One request as the API server sees it: what the path names, who asks, and in which form the answer is wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from hybridlab.lab.kube.errors import ApiError, bad_request
from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.store import Obj, Store


@dataclass(frozen=True)
class Target:
    """What a path names. ``version`` is the one asked for, which may not be the stored one."""

    resource: Resource
    version: str
    namespace: str | None = None
    name: str | None = None
    subresource: str = ""
    rest: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.resource.group}/{self.version}" if self.resource.group else self.version


@dataclass(frozen=True)
class User:
    """Who the client certificate or token says is asking."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""

    @property
    def is_admin(self) -> bool:
        return "system:masters" in self.groups


def no_such_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def parse_path(path: str, store: Store) -> Target | None:
    """The target of ``/api/v1/…`` or ``/apis/GROUP/VERSION/…``; None for any other path; ApiError 404 if unknown."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[:2] == ["api", "v1"]:
        group, version, parts = "", "v1", parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, parts = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace: str | None = None
    in_namespace = parts[0] == "namespaces" and len(parts) >= 3
    if in_namespace and not (not group and len(parts) == 3 and parts[2] in ("status", "finalize")):
        namespace, parts = parts[1], parts[2:]
    resource = store.resources.get((group, parts[0]))
    if resource is None or version not in resource.served:
        raise no_such_path()
    if namespace is not None and not resource.namespaced:
        raise no_such_path()
    name = parts[1] if len(parts) > 1 else None
    if name and resource.namespaced and namespace is None:
        raise no_such_path()
    subresource = parts[2] if len(parts) > 2 else ""
    if subresource and subresource not in resource.subresources:
        raise no_such_path()
    return Target(resource, version, namespace, name, subresource, "/".join(parts[3:]))


def flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("true", "1", "t")


def number(query: Mapping[str, str], name: str) -> int | None:
    """An integer query parameter, None where absent or empty."""
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def dry_run(query: Mapping[str, str]) -> bool:
    """Whether dryRun=All; ApiError 422 for another value."""
    value = query.get("dryRun", "")
    if value not in ("", "All"):
        message = f' "" is invalid: dryRun: Unsupported value: ["{value}"]: supported values: "All"'
        raise ApiError(422, "Invalid", message)
    return value == "All"


def manager_of(request: web.Request) -> str:
    """The field manager: as asked, else the first part of the user agent."""
    asked = request.query.get("fieldManager")
    agent = request.headers.get("User-Agent", "") or "unknown"
    return asked or agent.split("/")[0]


_AS = re.compile(r"as=([A-Za-z]+)")


def wanted_form(request: web.Request) -> str:
    """ "Table", "PartialObjectMetadata", "PartialObjectMetadataList", or "" for plain objects.

    The first media type of Accept that can be answered counts.
    """
    for choice in request.headers.get("Accept", "").split(","):
        kind = choice.split(";")[0].strip()
        if kind not in ("application/json", "*/*", ""):
            continue
        found = _AS.search(choice)
        if not found:
            return ""
        if found[1] in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList") and "g=meta.k8s.io" in choice:
            return found[1]
    return ""


def at_version(obj: Obj, target: Target) -> Obj:
    """The object as the asked-for version shows it (conversion strategy None: only apiVersion differs)."""
    if obj.get("apiVersion") == target.api_version:
        return obj
    return {**obj, "apiVersion": target.api_version}


def metadata_only(obj: Obj) -> Obj:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def warnings_header(texts: list[str]) -> dict[str, str]:
    """The Warning header (RFC 7234) that kubectl prints."""
    if not texts:
        return {}
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    return {"Warning": ", ".join(f'299 - "{text}"' for text in quoted)}
