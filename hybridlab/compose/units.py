"""Compose's durations, sizes and shares → Kubernetes' quantities."""

from __future__ import annotations

import math
import re

from hybridlab.models import Json

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)i?b?\s*", re.IGNORECASE)
MI = 1024 * 1024


def seconds(text: Json, default: float) -> float:
    """``1m30s`` → 90.0; a bare number is nanoseconds in Compose's model, seconds nowhere."""
    if text is None or text == "":
        return default
    if isinstance(text, int | float):
        return float(text) / 1e9
    found = _DURATION.findall(str(text))
    return sum(float(number) * _SECONDS[unit] for number, unit in found) if found else default


def whole_seconds(text: Json, default: int) -> int:
    """At least 1, rounded up: Kubernetes counts probe times in whole seconds."""
    return max(1, math.ceil(seconds(text, float(default))))


def size_bytes(text: Json) -> int | None:
    """``512m`` → 536870912 (Docker counts in powers of 1024); None when it is not a size."""
    if isinstance(text, int | float):
        return int(text)
    match = _SIZE.fullmatch(str(text or ""))
    if not match:
        return None
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


def memory_quantity(count: int) -> str:
    """536870912 → ``512Mi``; in Kubernetes ``512m`` would be half a byte."""
    if count >= MI and count % MI == 0:
        return f"{count // MI}Mi"
    if count >= 1024 and count % 1024 == 0:
        return f"{count // 1024}Ki"
    return str(count)


def cpu_millis(text: Json) -> int | None:
    try:
        return max(1, round(float(text) * 1000))
    except (TypeError, ValueError):
        return None


def cpu_quantity(millis: int) -> str:
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def quantity_bytes(quantity: str) -> int:
    """A Kubernetes memory quantity → bytes (what placement compares)."""
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", quantity)
    if not match:
        return 0
    return int(match[1]) * {None: 1, "Ki": 1024, "Mi": MI, "Gi": 1024 * MI}[match[2]]
