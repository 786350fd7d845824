"""Which names services call each other by, and what ports those mentions give away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hybridlab.compose.model import Project
from hybridlab.models import Json

_HOST_KEY = re.compile(r"(.*?)_?(?:HOST|HOSTNAME|HOST_NAME|SERVER|ADDR|ADDRESS|ENDPOINT|URL)$", re.IGNORECASE)
_OWN_PORT = re.compile(r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\]|\$HOSTNAME):(\d{2,5})(?!\d)")


@dataclass(frozen=True)
class Mentions:
    """``by_name``: name → services that use it; ``ports``: service → port → who said so."""

    by_name: Mapping[str, frozenset[str]]
    ports: Mapping[str, Mapping[int, str]]


def names_of(project: Project) -> dict[str, dict[str, str]]:
    """Service → every name Docker resolves to it, each with the key it comes from; its own name first."""
    found: dict[str, dict[str, str]] = {service: {service: "name"} for service in project.services}
    owner = {service: service for service in project.services}
    for service, spec in project.services.items():
        if spec.get("container_name"):
            owner.setdefault(str(spec["container_name"]), service)
    for service, spec in project.services.items():
        _add(found, service, spec.get("container_name"), "container_name")
        for network in (spec.get("networks") or {}).values():
            for alias in (network or {}).get("aliases") or []:
                _add(found, service, alias, "networks")
        for key in ("links", "external_links"):
            for link in spec.get(key) or []:
                target, _, alias = str(link).partition(":")
                if target in owner:
                    _add(found, owner[target], alias or target, key)
        _add(found, service, spec.get("hostname"), "hostname")
    return found


def _add(found: dict[str, dict[str, str]], service: str, name: Json, key: str) -> None:
    if name:
        found[service].setdefault(str(name), key)


def find_mentions(project: Project, names: Mapping[str, Mapping[str, str]]) -> Mentions:
    """Read environment, commands, healthchecks, labels and inline configs of every service for the others' names."""
    owners: dict[str, set[str]] = {}
    for service, own in names.items():
        for name in own:
            owners.setdefault(name, set()).add(service)
    by_name: dict[str, set[str]] = {}
    ports: dict[str, dict[int, str]] = {service: {} for service in project.services}
    if not owners:
        return Mentions({}, ports)
    words = "|".join(re.escape(name) for name in sorted(owners, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w.-])({words})(?::(\d{{2,5}})(?!\d))?(?![\w-]|\.\w)")
    for service, spec in project.services.items():
        for where, text in texts(project, spec):
            for match in pattern.finditer(text):
                for target in owners[match[1]] - {service}:
                    by_name.setdefault(match[1], set()).add(service)
                    if match[2] and int(match[2]) < 65536:
                        ports[target].setdefault(int(match[2]), f"{service}'s {where} says {match[0]}")
        for target, port, reason in _pairs(service, spec.get("environment") or {}, owners):
            ports[target].setdefault(port, reason)
        for target in _depended(spec, owners):
            by_name.setdefault(target, set()).add(service)
    return Mentions({name: frozenset(users) for name, users in by_name.items()}, ports)


def _depended(spec: Mapping[str, Json], owners: Mapping[str, set[str]]) -> Iterator[str]:
    for target in spec.get("depends_on") or {}:
        if target in owners:
            yield target
    for key in ("links", "external_links"):
        for link in spec.get(key) or []:
            target, _, alias = str(link).partition(":")
            yield from (name for name in (target, alias) if name in owners)


def texts(project: Project, spec: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """Where a name may stand, with what to call the place."""
    for name, value in (spec.get("environment") or {}).items():
        if value is not None:
            yield f"environment {name}", str(value)
    for key in ("command", "entrypoint"):
        if spec.get(key):
            yield key, _joined(spec[key])
    test = (spec.get("healthcheck") or {}).get("test")
    if test:
        yield "healthcheck", _joined(test)
    for value in (spec.get("labels") or {}).values():
        yield "labels", str(value)
    for used in spec.get("configs") or []:
        content = (project.configs.get(used.get("source", "")) or {}).get("content")
        if content:
            yield f"config {used['source']}", str(content)
    args = (spec.get("build") or {}).get("args")
    if args:
        yield "build args", json.dumps(args)


def _joined(value: Json) -> str:
    return value if isinstance(value, str) else " ".join(str(word) for word in value)


def _pairs(
    service: str, environment: Mapping[str, Json], owners: Mapping[str, set[str]]
) -> Iterator[tuple[str, int, str]]:
    """``DB_HOST=db`` with ``DB_PORT=5432`` → port 5432 of db."""
    for name, value in environment.items():
        match = _HOST_KEY.fullmatch(name)
        if match is None or value not in owners:
            continue
        for port_key in (f"{match[1]}_PORT", f"{match[1]}PORT", f"{name}_PORT"):
            text = str(environment.get(port_key) or "")
            if text.isdigit() and 0 < int(text) < 65536:
                for target in owners[value] - {service}:
                    yield target, int(text), f"{service} has {name}={value} and {port_key}={text}"


def own_ports(spec: Mapping[str, Json]) -> list[int]:
    """Ports that a service's own healthcheck asks on localhost: it listens there."""
    test = (spec.get("healthcheck") or {}).get("test")
    found = _OWN_PORT.findall(_joined(test)) if test else []
    return [int(port) for port in dict.fromkeys(found) if 0 < int(port) < 65536]


def rewrite(text: str, renamed: Mapping[str, str]) -> str:
    """Replace names that Kubernetes' DNS cannot carry (``my_db``) where they clearly stand for a host.

    Clearly: after ``//`` or ``@``, or before ``:port``. A value that is nothing but the name is the caller's to judge.
    """
    for old, new in renamed.items():
        word = re.escape(old)
        text = re.sub(
            rf"(?<=//){word}(?![\w.-])|(?<=@){word}(?![\w.-])|(?<![\w.-]){word}(?=:\d{{2,5}}(?!\d))", new, text
        )
    return text


def rewrite_value(name: str, value: str, renamed: Mapping[str, str]) -> str:
    """``rewrite`` for an environment variable: a bare name counts where the variable's name speaks of a host."""
    if value in renamed and _HOST_KEY.fullmatch(name):
        return renamed[value]
    return rewrite(value, renamed)


def unreachable(names: Iterable[str]) -> list[str]:
    """Names with an inner dot or otherwise no DNS label at all, which no Service can have."""
    return [name for name in names if "." in name.strip(".")]
