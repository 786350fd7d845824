"""Oracle's error answers: an HTTP status, a code and a message, always all three."""

from __future__ import annotations

from collections.abc import Sequence


class ApiError(Exception):
    """An answer that is not 2xx. Codes: https://docs.oracle.com/en-us/iaas/Content/API/References/apierrors.htm"""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{status} {code}: {message}")


def not_authenticated() -> ApiError:
    return ApiError(
        401,
        "NotAuthenticated",
        "The required information to complete authentication was not provided or was incorrect.",
    )


def not_found() -> ApiError:
    """What Oracle says for absent, foreign and forbidden alike; it never says which id it means."""
    return ApiError(404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.")


def invalid(message: str) -> ApiError:
    return ApiError(400, "InvalidParameter", message)


def missing(name: str) -> ApiError:
    return ApiError(400, "MissingParameter", f"{name} is required and was not given")


def conflict(message: str) -> ApiError:
    return ApiError(409, "Conflict", message)


def incorrect_state(message: str) -> ApiError:
    return ApiError(409, "IncorrectState", message)


def limit_exceeded(names: Sequence[str]) -> ApiError:
    """The real text, trailing blank included (oracle-freetier-instance-creation issues 15, 52 and 56)."""
    return ApiError(
        400,
        "LimitExceeded",
        f"The following service limits were exceeded: {', '.join(names)}. "
        "Request a service limit increase from the service limits page in the console. ",
    )


def quota_exceeded(names: Sequence[str]) -> ApiError:
    return ApiError(400, "QuotaExceeded", f"The following compartment quotas were exceeded: {', '.join(names)}.")


def references(kind: str, ident: str, other_kind: str, other: str) -> ApiError:
    """409 as for a subnet whose VNIC lingers (terraform-provider-oci issue 660)."""
    return conflict(
        f"The {kind} {ident} references the {other_kind} {other}. "
        "You must remove the reference to proceed with this operation."
    )
