"""What Oracle's error answers mean: classified by status, code and message, for none of them is enough alone."""

from __future__ import annotations

import re

from hybridlab.errors import (
    AuthFailed,
    Conflict,
    DriverError,
    LimitReached,
    NotFound,
    OutOfCapacity,
    Refused,
    TooManyRequests,
    Unreachable,
)

_CAPACITY = re.compile(r"out of (host )?capacity", re.IGNORECASE)
_LIMIT_CODES = frozenset({"LimitExceeded", "QuotaExceeded"})
_LIMIT_TEXT = re.compile(r"(service limits|quotas?) were exceeded", re.IGNORECASE)
_LIMIT_NAMES = re.compile(r"were exceeded: ([\w, -]*\w)")
_CONFLICT_CODES = frozenset({"NoEtagMatch", "IncorrectState", "Conflict", "InvalidatedRetryToken"})


def classify(status: int, code: str, message: str, *, what: str, about: str) -> DriverError:
    """The error for an answer that is not 2xx. ``what`` was tried, ``about`` names the ids that were asked for.

    502, 503 and 504 come from something in front of the service: whether it did the work is unknown (Unreachable).
    """
    why = f"{status} {code}: {message.strip()}" if message else f"{status} {code}"
    failed = f"Oracle refused to {what}"
    if status in (502, 503, 504):
        return Unreachable(
            f"no answer from Oracle to: {what}",
            where=about,
            why=why,
            next_move="look whether it happened before asking again",
        )
    kind, move = _kind(status, code, message)
    return kind(failed, status=status, code=code, where=about, why=why, next_move=move)


def _kind(status: int, code: str, message: str) -> tuple[type[Refused], str]:
    if _CAPACITY.search(message) or code == "OutOfHostCapacity":
        return OutOfCapacity, "another availability domain, or again in some minutes"
    if status == 429:
        return TooManyRequests, "ask less often: wait some minutes"
    if code == "QuotaExceeded":
        return LimitReached, "a compartment quota of your own forbids it: change the quota or ask for less"
    if code in _LIMIT_CODES or _LIMIT_TEXT.search(message):
        return LimitReached, "compare with what is used; with nothing used it is known to clear within about an hour"
    if status == 401:
        return AuthFailed, "check key_file, fingerprint, user and tenancy of the profile, and this machine's clock"
    if status == 404:
        return NotFound, "the id is wrong, its region is another, or a policy for it is missing"
    if status in (409, 412) or code in _CONFLICT_CODES:
        return Conflict, "look again, then repeat"
    return Refused, ""


def limit_names(message: str) -> tuple[str, ...]:
    """The limits a LimitExceeded message names; empty where it names none."""
    found = _LIMIT_NAMES.search(message)
    return tuple(name.strip() for name in found[1].split(",")) if found else ()
