"""The ways a secret value may appear in text, for what must not show it: ledger, notebooks, logs, reports."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterable

MASK = "***"
SHORTEST = 6
"""A shorter value is left alone: masking ``1`` or ``yes`` everywhere would make a record unreadable."""
SHORTEST_LINE = 24
"""Lines of a longer secret (a PEM key) that are masked on their own too."""


def all_forms(values: Iterable[str]) -> tuple[str, ...]:
    """Every form of every value, longest first: a form that contains another one must go as a whole."""
    return tuple(sorted({form for value in values for form in forms(value)}, key=len, reverse=True))


def mask(text: str, found: Iterable[str]) -> str:
    """The text with each of these forms replaced."""
    for form in found:
        if form in text:
            text = text.replace(form, MASK)
    return text


def forms(value: str) -> Iterable[str]:
    """The ways a secret value may appear in text: plain, by line, in JSON, in a URL, in base64 at any offset."""
    plain = value.strip()
    if len(plain) < SHORTEST:
        return
    for text in {value, plain}:
        yield text
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield urllib.parse.quote(text, safe="")
        yield urllib.parse.quote_plus(text)
        yield base64.b64encode(text.encode()).decode()
        yield base64.urlsafe_b64encode(text.encode()).decode()
    yield repr(plain)[1:-1]
    yield from _base64_inside(plain.encode())
    lines = plain.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= SHORTEST_LINE and "-----" not in line)


def _base64_inside(value: bytes) -> Iterable[str]:
    """What is the same in the base64 of any text that contains the value, e.g. of ``user:password``."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + value).decode().rstrip("=")
        first = -(-offset * 8 // 6)
        last = (offset + len(value)) * 8 // 6
        middle = encoded[first:last]
        if len(middle) >= SHORTEST:
            yield middle
            yield middle.replace("+", "-").replace("/", "_")
