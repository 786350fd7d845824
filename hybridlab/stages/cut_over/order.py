"""In which order services start and stop: after what they depend on, and before it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hybridlab.compose import Project
from hybridlab.models import Json


def needs(spec: Mapping[str, Json]) -> set[str]:
    """The services that a service names in depends_on, links, network_mode and volumes_from."""
    found = set(spec.get("depends_on") or ())
    found |= {str(link).split(":")[0] for link in spec.get("links") or ()}
    found |= {str(item).split(":")[0] for item in spec.get("volumes_from") or ()}
    mode = str(spec.get("network_mode") or "")
    return found | ({mode.removeprefix("service:")} if mode.startswith("service:") else set())


def start_order(project: Project, services: Iterable[str]) -> tuple[str, ...]:
    """Every service after what it depends on; else in the compose file's order. A circle is cut where it is met."""
    wanted, done, open_ = set(services), list[str](), set[str]()

    def visit(name: str) -> None:
        if name in done or name in open_ or name not in project.services:
            return
        open_.add(name)
        for other in sorted(needs(project.services[name])):
            visit(other)
        done.append(name)

    for name in project.services:
        visit(name)
    return tuple(name for name in done if name in wanted)
