"""Healthchecks → probes. Docker never restarts on unhealthy: readiness and startup only, liveness on request.

Docker's defaults: interval 30 s, timeout 30 s, retries 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hybridlab.compose.fidelity import Record
from hybridlab.compose.units import seconds, whole_seconds
from hybridlab.models import ImageInfo, Json

INTERVAL_S, TIMEOUT_S, RETRIES = 30, 30, 3
# A failed startup probe kills the container, which Docker would never do: so it gets half an hour at least.
STARTUP_PATIENCE_S = 1800


def probe_command(test: Json) -> list[str] | None:
    """``["CMD-SHELL", text]`` or a string → ``["/bin/sh", "-c", text]``; ``["CMD", …]`` → the rest; NONE → None."""
    if isinstance(test, str):
        return ["/bin/sh", "-c", test] if test.strip() else None
    words = [str(word) for word in test or []]
    if not words or words[0] == "NONE":
        return None
    if words[0] == "CMD-SHELL":
        return ["/bin/sh", "-c", " ".join(words[1:])] if words[1:] else None
    return (words[1:] if words[0] == "CMD" else words) or None


def has_check(spec: Mapping[str, Json], image: ImageInfo | None) -> bool:
    """Whether Docker would call this service healthy or unhealthy at all."""
    check = spec.get("healthcheck") or {}
    if check.get("disable"):
        return False
    if check.get("test"):
        return probe_command(check["test"]) is not None
    return image is not None and probe_command(list(image.config.healthcheck)) is not None


def probes(
    service: str, spec: Mapping[str, Json], image: ImageInfo | None, record: Record, *, liveness: bool
) -> dict[str, Json]:
    """The container's probe fields; the image's own HEALTHCHECK counts where compose gives no test."""
    check = spec.get("healthcheck")
    given = check or {}
    if given.get("disable") or (given.get("test") and probe_command(given["test"]) is None):
        record.mapped(service, "healthcheck", "switched off, the image's own check, too")
        return {}
    source = "compose"
    command = probe_command(given.get("test"))
    if command is None and image is not None:
        source, command = "the image", probe_command(list(image.config.healthcheck))
    if command is None:
        if check is not None:
            record.mapped(service, "healthcheck", "no test here or in the image: nothing to probe")
        return {}
    interval = whole_seconds(given.get("interval"), INTERVAL_S)
    timeout = whole_seconds(given.get("timeout"), TIMEOUT_S)
    retries = int(given["retries"]) if given.get("retries") else RETRIES
    period = whole_seconds(given.get("start_interval"), min(interval, 10))
    wait_s = max(seconds(given.get("start_period"), 0.0) + retries * interval, STARTUP_PATIENCE_S)
    action = {"exec": {"command": command}}
    steady = {"periodSeconds": interval, "timeoutSeconds": timeout, "failureThreshold": retries}
    startup = {
        **action,
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": math.ceil(wait_s / period),
    }
    fields: dict[str, Json] = {"startupProbe": startup, "readinessProbe": {**action, **steady}}
    if liveness:
        fields["livenessProbe"] = {**action, **steady}
    note = "readiness and startup probes" + (
        ", liveness as asked" if liveness else "; Docker never restarts on unhealthy"
    )
    if check is not None:
        for key in given:
            record.mapped(service, f"healthcheck.{key}", note)
    record.why(service, f"probes: {note} (test from {source})")
    return fields
