"""A service's environment → one ConfigMap and one Secret, taken whole by ``envFrom``.

kubelet expands ``$(VAR)`` in command, args and inline env values, not in what comes from a ConfigMap or Secret: so only
the former are escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.models import Json

_SECRET_WORD = re.compile(
    r"(?:^|_)(?:\w*PASS(?:WORD|WD|PHRASE)?|PWD|\w*SECRETS?|\w*TOKEN|CREDENTIALS?|SALT|PEPPER|COOKIE|DSN|"
    r"API_?KEY|APIKEY|AUTH_?KEY|PRIVATE_?KEY|ACCESS_?KEY|MASTER_?KEY|ENCRYPTION_?KEY|SIGNING_?KEY|LICENSE_?KEY|"
    r"APP_?KEY|KEY_?BASE|PRIVATE|JWT|OTP|DBROOT|DBPASS)(?:_|$|\d)",
    re.IGNORECASE,
)
_ENDS_IN_KEY = re.compile(r"(?:^|_)(?:KEY|PW)$|SECRET|PASSW|TOKEN$|PASS$", re.IGNORECASE)
# What names a secret without being one: a file's path, a switch, a length of time, a public half.
_NOT_SECRET = re.compile(
    r"(?:_FILE|_PATH|_DIR|_LENGTH|_SIZE|_TTL|_LIFETIME|_EXPIR\w*|_ENABLED?|_DISABLED?|_SCHEME|_METHOD|_NAME|_HEADER|"
    r"_ALGORITHM|_TYPE|_TIMEOUT|_PUBLIC_KEY)$|^(?:PUBLIC|PASSENGER)_|BYPASS|COMPASS|PASSIVE|PASSTHR",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)
_POSSIBLE = re.compile(r"[ -<>-~]+")  # printable ASCII but for "=": EnvVar in the API reference, since 1.34
_ORDINARY = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


@dataclass(frozen=True)
class Environment:
    """``plain`` and ``secret`` go to a ConfigMap and a Secret; ``inline`` fits neither; ``unset`` has no value.

    ``impossible``: names that Kubernetes takes nowhere.
    """

    plain: Mapping[str, str]
    secret: Mapping[str, str]
    inline: Mapping[str, str]
    unset: tuple[str, ...]
    impossible: tuple[str, ...] = ()


def secret_like(name: str, value: str = "") -> bool:
    """Whether a variable should not be readable by everyone: by its name, or a login inside a URL."""
    if _URL_LOGIN.search(value):
        return True
    if _NOT_SECRET.search(name) or value.lower() in ("true", "false", "yes", "no"):
        return False
    return bool(_SECRET_WORD.search(name) or _ENDS_IN_KEY.search(name))


def split(environment: Mapping[str, Json]) -> Environment:
    plain: dict[str, str] = {}
    secret: dict[str, str] = {}
    inline: dict[str, str] = {}
    unset: list[str] = []
    impossible: list[str] = []
    for name, value in environment.items():
        if value is None:
            unset.append(name)
        elif not _POSSIBLE.fullmatch(name):
            impossible.append(name)
        elif not _ORDINARY.fullmatch(name) or name in (".", "..") or len(name) > 253:
            inline[name] = str(value)
        else:
            (secret if secret_like(name, str(value)) else plain)[name] = str(value)
    return Environment(plain, secret, inline, tuple(unset), tuple(impossible))


def escape(text: str) -> str:
    """Text that kubelet's expansion turns back: ``$(X)`` → ``$$(X)``, ``$$`` → ``$$$$``, ``$X`` as it is."""
    return re.sub(r"(\$+)(\(?)", _escape_run, text)


def _escape_run(match: re.Match[str]) -> str:
    dollars, bracket = match[1], match[2]
    return match[0] if len(dollars) == 1 and not bracket else dollars * 2 + bracket


def encode(value: str | bytes) -> str:
    """A Secret's data value."""
    return base64.b64encode(value if isinstance(value, bytes) else value.encode()).decode()
