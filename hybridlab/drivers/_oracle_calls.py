"""How calls to Oracle are made: the config file, the clients, counting, paging, and waiting out 429s on reads."""

from __future__ import annotations

import configparser
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

from hybridlab.drivers._oracle_errors import classify
from hybridlab.errors import BadInput, TooManyRequests, Unreachable
from hybridlab.wait import Clock

log = logging.getLogger(__name__)

TIMEOUT_S = (10.0, 60.0)  # connect, read
READ_TRIES = 8
READ_BUDGET_S = 60.0
PAGE = 1000


def read_config(config_file: str | None, profile: str) -> dict[str, Any]:
    """The profile's settings. Raises BadInput with the next move for anything that makes it unusable."""
    from oci import config as oci_config
    from oci import exceptions as oci_errors

    path = config_file or oci_config.DEFAULT_LOCATION
    try:
        found: dict[str, Any] = oci_config.from_file(path, profile)
        oci_config.validate_config(found)
    except oci_errors.ConfigFileNotFound as error:
        raise BadInput(
            "there is no Oracle config file",
            where=path,
            next_move="make one (oci setup config), or set oracle.config_file in the params",
        ) from error
    except oci_errors.ProfileNotFound as error:
        raise BadInput(
            f"the Oracle config file has no profile [{profile}]",
            where=path,
            next_move=f"set oracle.profile; it has: {', '.join(_profiles(path)) or 'none'}",
        ) from error
    except oci_errors.InvalidKeyFilePath as error:
        raise BadInput(
            "the API key that the Oracle config file names is not there",
            where=f"{path} [{profile}] key_file",
            next_move="correct key_file, or make a key and upload its public half in the console",
        ) from error
    except oci_errors.InvalidConfig as error:
        fields = ", ".join(f"{name} is {problem}" for name, problem in sorted(error.errors.items()))
        raise BadInput(
            "the Oracle config file is not complete",
            where=f"{path} [{profile}]",
            why=fields,
            next_move="compare it with Configuration file preview in the console (your profile, API keys)",
        ) from error
    except (configparser.Error, ValueError, OSError) as error:
        raise BadInput("the Oracle config file can't be read", where=path, why=str(error).splitlines()[0]) from error
    return found


def _profiles(path: str) -> list[str]:
    from pathlib import Path

    parser = configparser.ConfigParser(interpolation=None)
    parser.read(Path(path).expanduser())
    return [*(["DEFAULT"] if parser.defaults() else []), *parser.sections()]


def make_client(kind: Any, config: dict[str, Any], endpoint: str | None) -> Any:
    """A client of one service that never retries by itself. Raises BadInput for a key that can't be used."""
    from oci import exceptions as oci_errors
    from oci.circuit_breaker import NoCircuitBreakerStrategy
    from oci.retry import NoneRetryStrategy

    options: dict[str, Any] = {
        "timeout": TIMEOUT_S,
        "retry_strategy": NoneRetryStrategy(),
        "circuit_breaker_strategy": NoCircuitBreakerStrategy(),
    }
    if endpoint:
        options["service_endpoint"] = endpoint.rstrip("/")
    try:
        client = kind(config, **options)
    except oci_errors.MissingPrivateKeyPassphrase as error:
        raise BadInput(
            "the Oracle API key has a passphrase",
            where=str(config.get("key_file")),
            next_move="give pass_phrase in the profile, or use a key without one",
        ) from error
    except (oci_errors.InvalidPrivateKey, ValueError, OSError) as error:
        raise BadInput(
            "the Oracle API key can't be used",
            where=str(config.get("key_file")),
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_move="key_file must be the private half (PEM) of an RSA key",
        ) from error
    if endpoint:
        client.base_client.session.trust_env = False  # no proxy between us and a given endpoint
    return client


class Caller:
    """Makes single calls and counts them. ``calls`` counts HTTP requests; ``changing`` is told of changes."""

    def __init__(self, clock: Clock, rng: random.Random, changing: Callable[[float], None]) -> None:
        self.calls = 0
        self._lock = threading.Lock()
        self._clock = clock
        self._rng = rng
        self._changing = changing

    def once(self, call: Callable[..., Any], *args: Any, what: str, about: str, **options: Any) -> Any:
        """One request that changes something, asked once; the SDK's Response. ``what`` completes "refused to …"."""
        self._changing(self._clock.now())
        try:
            return self._call(call, *args, what=what, about=about, **options)
        finally:
            self._changing(self._clock.now())

    def _call(self, call: Callable[..., Any], *args: Any, what: str, about: str, **options: Any) -> Any:
        from oci import exceptions as oci_errors

        with self._lock:
            self.calls += 1
        try:
            return call(*args, **options)
        except oci_errors.ServiceError as error:
            code, message = str(error.code or ""), str(error.message or "")
            raise classify(int(error.status), code, message, what=what, about=about) from error
        except oci_errors.ConnectTimeout as error:
            raise Unreachable(f"no connection to Oracle to {what}", where=about, why=_reason(error)) from error
        except oci_errors.RequestException as error:
            raise Unreachable(
                f"no answer from Oracle to: {what}",
                where=about,
                why=_reason(error),
                next_move="look whether it happened before asking again",
            ) from error

    def read(self, call: Callable[..., Any], *args: Any, what: str, about: str, **options: Any) -> Any:
        """One question. A 429 is waited out with growing, jittered pauses: at most 8 tries and 60 s."""
        end = self._clock.now() + READ_BUDGET_S
        pause = 1.0
        for attempt in range(1, READ_TRIES + 1):
            try:
                return self._call(call, *args, what=what, about=about, **options)
            except TooManyRequests as error:
                wait = max(self._rng.uniform(pause / 2, pause), _retry_after(error))
                if attempt == READ_TRIES or self._clock.now() + wait > end:
                    raise
                log.info("Oracle says 429 to %s (try %d): waiting %.1f s", what, attempt, wait)
                self._clock.sleep(wait)
                pause = min(pause * 2, 15.0)
        raise AssertionError("unreachable: the last try returns or raises")

    def pages(self, call: Callable[..., Any], *args: Any, what: str, about: str, **options: Any) -> list[Any]:
        """All items of a list operation; waits out 429s."""
        items: list[Any] = []
        token: str | None = None
        while True:
            page = {"page": token} if token else {}
            answer = self.read(call, *args, what=what, about=about, **options, **page)
            items += answer.data
            following = answer.headers.get("opc-next-page")
            if not following or following == token:
                return items
            token = following


def _retry_after(error: TooManyRequests) -> float:
    """Seconds from the answer's Retry-After header, 0 where there is none."""
    headers = getattr(error.__cause__, "headers", None) or {}
    try:
        return max(0.0, float(headers.get("retry-after") or 0))
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    """The innermost reason; the SDK wraps it in several layers and adds advice of its own."""
    inner: BaseException = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    return (str(inner.args[0]) if inner.args else "") or type(inner).__name__
