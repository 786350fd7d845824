"""On which side a cut-over, or the way back, left the services: an annotation on their namespace, in the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import Json

WHERE = "hybridlab.io/cut-over"
"""Annotation on the namespace: on which side the services are, and since when."""


def mark_of(namespace: Mapping[str, Json] | None) -> tuple[str, str]:
    """The side that a finished cut-over left the services on ("cluster", "docker", or ""), and since when."""
    text = str((namespace or {}).get("metadata", {}).get("annotations", {}).get(WHERE, ""))
    state, _, since = text.partition(" ")
    return state, since


def back_since(namespace: Mapping[str, Json] | None) -> str:
    """Since when the services are back on the Docker host; empty where they never went back, or came again."""
    state, since = mark_of(namespace)
    return (since or "an earlier run") if state == "docker" else ""
