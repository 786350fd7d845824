"""Requests to registries: tokens, redirects, limits and retries, with credentials kept where they belong.

Rules: https://distribution.github.io/distribution/spec/auth/token/ and RFC 6750. A login goes to the registry itself or
to a token realm of the same domain, over https; nothing of it follows a redirect to another host.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import json
import logging
import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit, urlunsplit

from hybridlab.drivers._registry_login import Login
from hybridlab.drivers._registry_names import belongs_to, hostname, is_private
from hybridlab.wait import Clock

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
CONNECT_S = 10.0
TRIES = 3
WAIT_MAX_S = 30.0
BODY_MAX = 8 * 1024 * 1024
REDIRECTS = 5
_PARAMETER = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_RETRIED = frozenset({429, 500, 502, 503, 504})


class CouldNotAsk(Exception):
    """No usable answer. ``connected`` False: there was no connection at all."""

    def __init__(self, why: str, *, connected: bool = True) -> None:
        self.connected = connected
        super().__init__(why)


@dataclass(frozen=True)
class Answer:
    """``status`` is 200, 401, 403, 404, 405 or another 4xx."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """The registry's own words, as code and message."""
        try:
            first = json.loads(self.body)["errors"][0]
            return f"{self.status} {first.get('code', '')}: {first.get('message', '')}".strip(": ")
        except (ValueError, LookupError, TypeError, AttributeError):
            return str(self.status)


@dataclass(frozen=True)
class _Request:
    """``host``: who is meant, whatever the URL's address is."""

    method: str
    url: str
    host: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None
    query: Mapping[str, str] | None = None
    form: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Challenge:
    scheme: str
    realm: str
    service: str


class RegistryClient:
    """Asks registries. ``remaining`` holds what each host said is left of its pull limit; safe for threads."""

    def __init__(
        self,
        *,
        endpoint_for: Callable[[str], str | None],
        login_for: Callable[[str, str], Login | None],
        transport: httpx.BaseTransport | None,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        import httpx

        self.remaining: dict[str, int] = {}
        self._endpoint_for = endpoint_for
        self._login_for = login_for
        self._clock = clock
        self._rng = rng
        self._client = httpx.Client(
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S),
            transport=transport,
            headers={"User-Agent": "hybridlab"},
            mounts={} if transport else {"all://127.0.0.1": None, "all://localhost": None},  # never through a proxy
        )
        self._lock = threading.Lock()
        self._challenges: dict[str, _Challenge] = {}
        self._tokens: dict[tuple[str, str], tuple[str, float]] = {}
        self._closed: dict[str, CouldNotAsk] = {}

    def close(self) -> None:
        self._client.close()

    def new_round(self) -> None:
        """Forget which hosts were down or had their limit used up: ask them again."""
        with self._lock:
            self._closed.clear()

    def ask(self, method: str, host: str, repository: str, path: str, *, accept: str = "*/*") -> Answer:
        """One question about a repository (``path`` starts with /v2/). Raises CouldNotAsk."""
        authorization = self._known_authorization(host, repository)
        request = _Request(method, self._base(host) + path, host, {"Accept": accept}, authorization)
        answer = self._send(request)
        if answer.status != 401:
            return answer
        challenge = _challenge(answer.headers.get("www-authenticate", ""))
        if challenge is None:
            return answer
        with self._lock:
            self._challenges[host] = challenge
            self._tokens.pop((host, repository), None)
        authorization = self._known_authorization(host, repository)
        return self._send(replace(request, authorization=authorization)) if authorization else answer

    # -- credentials -----------------------------------------------------------------------------------------------
    def _known_authorization(self, host: str, repository: str) -> str | None:
        """The Authorization header as far as the host's last challenge is known; fetches a token where needed."""
        with self._lock:
            challenge = self._challenges.get(host)
            token, until = self._tokens.get((host, repository), ("", 0.0))
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            login = self._login(host, repository)
            return login.basic if login and login.user else None
        if not token or until < self._clock.now():
            token, lives_s = self._fetch_token(challenge, host, repository)
            with self._lock:
                self._tokens[(host, repository)] = (token, self._clock.now() + lives_s - 10)
        return f"Bearer {token}" if token else None

    def _login(self, host: str, repository: str) -> Login | None:
        """No login is sent to a stand-in for a registry: it would be somebody else's server."""
        return None if self._endpoint_for(host) else self._login_for(host, repository)

    def _fetch_token(self, challenge: _Challenge, host: str, repository: str) -> tuple[str, float]:
        """A token and its life in seconds; "" where the realm gives none."""
        self._check_realm(challenge.realm, host)
        realm_host = urlsplit(challenge.realm).netloc
        login = self._login(host, repository)
        if login and not belongs_to(hostname(realm_host), hostname(host)):
            log.warning("the login for %s was not sent to %s, which is another domain", host, realm_host)
            login = None
        query = {"scope": f"repository:{repository}:pull"}
        if challenge.service:
            query["service"] = challenge.service
        if login and login.identity_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "hybridlab"}
            form["refresh_token"] = login.identity_token
            answer = self._send(_Request("POST", challenge.realm, realm_host, form=form))
        else:
            authorization = login.basic if login else None
            answer = self._send(_Request("GET", challenge.realm, realm_host, {}, authorization, query))
        if answer.status != 200:
            return "", 0.0
        try:
            found = json.loads(answer.body)
            return str(found.get("token") or found.get("access_token") or ""), float(found.get("expires_in") or 60)
        except (ValueError, AttributeError, TypeError) as error:
            raise CouldNotAsk(f"the token realm {realm_host} answered no token") from error

    def _check_realm(self, realm: str, host: str) -> None:
        """A realm may be plain http or at a private address only if the registry is so itself."""
        parts = urlsplit(realm)
        base = urlsplit(self._base(host))
        ours_private = base.scheme == "http" or is_private(hostname(base.netloc))
        if not ours_private and (parts.scheme != "https" or is_private(hostname(parts.netloc))):
            raise CouldNotAsk(f"{host} sends for tokens to {realm}, which is no public https address: refused")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise CouldNotAsk(f"{host} sends for tokens to {realm!r}, which is no address")

    # -- requests --------------------------------------------------------------------------------------------------
    def _base(self, host: str) -> str:
        given = self._endpoint_for(host)
        if given:
            return given.rstrip("/")
        name = hostname(host)
        plain = name == "localhost" or name.startswith("127.") or name == "::1"  # as docker does
        return f"{'http' if plain else 'https'}://{host}"

    def _send(self, request: _Request) -> Answer:
        """Send, follow redirects, and retry what may pass: 429 as told, 5xx and broken answers after growing pauses."""
        host = request.host
        for attempt in range(1, TRIES + 1):
            with self._lock:
                closed = self._closed.get(host)
            if closed:
                raise closed
            last = attempt == TRIES
            try:
                answer = self._follow(request)
            except CouldNotAsk as error:
                if last or not error.connected:
                    if not error.connected:
                        self._close(host, error)
                    raise
                self._clock.sleep(self._pause(attempt))
                continue
            self._note_limit(host, answer)
            if answer.status not in _RETRIED:
                return answer
            spent = answer.status == 429 and self.remaining.get(host) == 0
            wait = max(self._pause(attempt), _retry_after(answer.headers.get("retry-after", ""), self._clock.now()))
            if last or spent or wait > WAIT_MAX_S:
                problem = CouldNotAsk(f"{host} answers {answer.message}" + (" (pull limit used up)" if spent else ""))
                if spent:
                    self._close(host, problem)
                raise problem
            log.info("%s answers %d: waiting %.1f s", host, answer.status, wait)
            self._clock.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    def _pause(self, attempt: int) -> float:
        return self._rng.uniform(0.5, 1.0) * (1 << (attempt - 1))

    def _close(self, host: str, why: CouldNotAsk) -> None:
        """Ask this host no more in this round: eight threads waiting for the same dead host help nobody."""
        with self._lock:
            self._closed[host] = why

    def _note_limit(self, host: str, answer: Answer) -> None:
        left = answer.headers.get("ratelimit-remaining", "").partition(";")[0].strip()
        if left.isdigit():
            with self._lock:
                self.remaining[host] = int(left)

    def _follow(self, request: _Request) -> Answer:
        url, host, query = request.url, request.host, request.query
        first = urlsplit(url)
        for _ in range(REDIRECTS + 1):
            here = urlsplit(url)
            same = (here.scheme, here.netloc) == (first.scheme, first.netloc)
            sent = {**request.headers}
            if same:
                sent["Host"] = host
                if request.authorization:
                    sent["Authorization"] = request.authorization
            answer = self._once(replace(request, url=url, headers=sent, query=query))
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            url = urljoin(url, answer.headers.get("location", ""))
            query = None
            there = urlsplit(url)
            open_world = first.scheme == "https" and not is_private(hostname(first.netloc))
            if open_world and (there.scheme != "https" or is_private(hostname(there.netloc))):
                target = urlunsplit((there.scheme, there.netloc, "", "", ""))
                raise CouldNotAsk(f"{host} redirects to {target}, which is no public https address: refused")
        raise CouldNotAsk(f"{host} redirects in circles")

    def _once(self, request: _Request) -> Answer:
        import httpx

        host, body = request.host, bytearray()
        headers, query, form = dict(request.headers), request.query, request.form
        try:
            with self._client.stream(request.method, request.url, headers=headers, params=query, data=form) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > BODY_MAX:
                        raise CouldNotAsk(f"{host} sends more than {BODY_MAX >> 20} MiB for a manifest or config")
                found = {k.lower(): v for k, v in response.headers.items()}
                return Answer(response.status_code, found, bytes(body))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise CouldNotAsk(f"no connection to {host}: {error or type(error).__name__}", connected=False) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CouldNotAsk(f"no answer from {host}: {str(error) or type(error).__name__}") from error


def _challenge(header: str) -> _Challenge | None:
    """The first Bearer or Basic challenge of a WWW-Authenticate header."""
    scheme, _, rest = header.strip().partition(" ")
    kind = scheme.lower()
    values = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    if kind == "basic":
        return _Challenge("basic", "", "")
    if kind == "bearer" and values.get("realm"):
        return _Challenge("bearer", values["realm"], values.get("service", ""))
    return None


def _retry_after(value: str, now: float) -> float:
    """Seconds, from a number or an HTTP date; 0 where there is none."""
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, moment.replace(tzinfo=moment.tzinfo or dt.UTC).timestamp() - now)
