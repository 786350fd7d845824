"""The HTTP side of the Kubernetes driver: the official client's kubeconfig, TLS and authentication, and nothing else.

Every request has a time limit; every answer that is not 2xx becomes one of hybridlab's errors here.
"""

from __future__ import annotations

import json
import ssl
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridlab.errors import (
    AuthFailed,
    BadInput,
    Conflict,
    DriverError,
    NotFound,
    Refused,
    TooManyRequests,
    Unreachable,
)
from hybridlab.models import Json

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
TIMEOUT_S = (10.0, 60.0)  # connect, read


class Transport:
    """Requests to the API server of a kubeconfig's current context. Raises BadInput for one that can't be used."""

    def __init__(self, kubeconfig: Path) -> None:
        import yaml  # type: ignore[import-untyped]
        from kubernetes.client.api_client import ApiClient
        from kubernetes.client.configuration import Configuration
        from kubernetes.config import ConfigException
        from kubernetes.config.kube_config import load_kube_config
        from urllib3.util.retry import Retry

        self._kubeconfig = kubeconfig
        configuration: Any = Configuration()
        load: Any = load_kube_config
        try:
            load(config_file=str(kubeconfig), client_configuration=configuration, persist_config=False)
        except (ConfigException, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise BadInput(
                "the kubeconfig can't be used",
                where=str(kubeconfig),
                why=" ".join(str(error).split()) or type(error).__name__,
                next_move="remove it and run 030-bootstrap-k3s, which fetches it anew",
            ) from error
        # one more try of a read whose connection was closed under it; anything else is the caller's decision
        configuration.retries = Retry(
            total=1, connect=0, read=1, redirect=0, status=0, other=0, allowed_methods=frozenset({"GET"})
        )
        if urllib.parse.urlsplit(configuration.host).hostname in LOOPBACK:
            configuration.proxy = None
        self._configuration: Any = configuration
        self._client: Any = ApiClient(configuration)

    def close(self) -> None:
        self._client.close()

    @property
    def host(self) -> str:
        """The API server's base URL."""
        return str(self._configuration.host)

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Json] | None = None,
        content_type: str = "application/json",
        about: str,
    ) -> dict[str, Json]:
        answer = self.request(method, path, query=query, body=body, content_type=content_type, about=about)
        try:
            found = json.loads(answer)
        except ValueError as error:
            raise Refused(f"{method} {path}: no JSON came", where=about, why=repr(answer[:200])) from error
        if not isinstance(found, dict):
            raise Refused(f"{method} {path}: no object came", where=about, why=repr(answer[:200]))
        return found

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Json] | None = None,
        content_type: str = "application/json",
        about: str,
    ) -> bytes:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        url = self._configuration.host.rstrip("/") + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        headers = {"Accept": "application/json", "User-Agent": "hybridlab", **self.auth_headers()}
        content = None
        if body is not None:
            headers["Content-Type"] = content_type
            content = dict(body)  # the client writes it as JSON, which YAML content types take too
        try:
            response = self._client.call_api(method, url, headers, content, _request_timeout=TIMEOUT_S)
            answer = bytes(response.read())
        except ApiException as error:  # the client turns TLS failures into this, with status 0
            raise self._tls_failure(error) from error
        except HTTPError as error:
            if _is_tls(error):
                raise self._tls_failure(error) from error
            raise Unreachable(
                "no answer from the Kubernetes API",
                where=self._configuration.host,
                why=_reason(error),
                next_move="is K3s running on the server node?",
            ) from error
        if not 200 <= response.status < 300:
            raise refusal(int(response.status), answer, about)
        return answer

    def _tls_failure(self, error: Exception) -> BadInput:
        return BadInput(
            "the kubeconfig does not fit the cluster that answers",
            where=f"{self._kubeconfig} → {self._configuration.host}",
            why=_reason(error),
            next_move="remove the kubeconfig and run 030-bootstrap-k3s, which fetches it anew",
        )

    def auth_headers(self) -> dict[str, str]:
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": token} if token else {}

    def tls_options(self) -> dict[str, Any]:
        ours = self._configuration
        options: dict[str, Any] = {"cert_reqs": ssl.CERT_REQUIRED if ours.verify_ssl else ssl.CERT_NONE}
        if ours.verify_ssl and ours.ssl_ca_cert:
            options["ca_certs"] = ours.ssl_ca_cert
        if ours.cert_file:
            options["certfile"], options["keyfile"] = ours.cert_file, ours.key_file
        if ours.tls_server_name:
            options["server_hostname"] = ours.tls_server_name
        if ours.assert_hostname is False or not ours.verify_ssl:
            options["check_hostname"] = False
        return options


def refusal(status: int, body: bytes, about: str) -> DriverError:
    """The error for an answer that is not 2xx, from its Status object."""
    try:
        answer = json.loads(body)
        why, code = str(answer.get("message", "")), str(answer.get("reason", ""))
    except (ValueError, AttributeError):
        why, code = body[:300].decode(errors="replace").strip(), ""
    what = "the Kubernetes API said no"
    if status in (502, 503, 504):
        return Unreachable("the Kubernetes API is not ready", where=about, why=why or f"HTTP {status}")
    kinds: dict[int, type[Refused]] = {401: AuthFailed, 404: NotFound, 409: Conflict, 429: TooManyRequests}
    moves = {
        401: "the kubeconfig's credentials are not this cluster's: run 030-bootstrap-k3s to fetch them anew",
        403: "these credentials lack the right, or a quota or admission rule forbids it",
    }
    kind, move = kinds.get(status, Refused), moves.get(status, "")
    return kind(what, status=status, code=code, where=about, why=why or f"HTTP {status}", next_move=move)


def _is_tls(error: Exception) -> bool:
    from urllib3.exceptions import MaxRetryError, SSLError

    return isinstance(error, SSLError) or (isinstance(error, MaxRetryError) and isinstance(error.reason, SSLError))


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__
