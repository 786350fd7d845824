"""The three sites: where the drivers connect to and where credentials lie. Nothing else differs between them."""

from __future__ import annotations

import configparser
import json
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hybridlab.errors import BadInput, LabNotRunning, Unreachable
from hybridlab.models import HostAddress, Json
from hybridlab.params import Params

K3S_RELEASES = "https://github.com/k3s-io/k3s/releases/download"
K3S_CHANNELS = "https://update.k3s.io/v1-release/channels"
K3S_VERSION = "v1.34.2+k3s1"
ADDRESS_SERVICE = "https://checkip.amazonaws.com"


@dataclass(frozen=True)
class OracleEndpoint:
    """How to reach Oracle's API; ``endpoint`` None means the real one of the configured region."""

    config_file: str | None
    profile: str
    endpoint: str | None


class RealSite:
    """oracle and byo: logical addresses are the real ones."""

    def __init__(self, params: Params, base: Path) -> None:
        self.name: Literal["lab", "oracle", "byo"] = params.site
        self._params = params
        self._base = base
        self._channel: str | None = None  # the version its channel had when it was first asked

    def dial(self, host: str, port: int) -> tuple[str, int]:
        return host, port

    def resolve(self, name: str) -> tuple[str, ...]:
        """The addresses that a host name has as seen from here, IPv4 first; an address is its own.

        Raises BadInput for a name that nobody knows, Unreachable where no name server answered.
        """
        try:
            rows = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as error:
            unknown = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            raise (BadInput if unknown else Unreachable)(
                "the host's name is not known here" if unknown else "no name server answered",
                where=name,
                why=error.strerror or str(error),
                next_move="correct nodes[].address, or give the host's IP address there",
            ) from error
        ordered = sorted(rows, key=lambda row: row[0] != socket.AF_INET)
        return tuple(dict.fromkeys(str(row[4][0]) for row in ordered))

    def operator_ip(self) -> str:
        try:
            with urllib.request.urlopen(ADDRESS_SERVICE, timeout=10) as answer:
                return str(answer.read().decode().strip())
        except OSError as error:
            raise Unreachable(
                "this machine's public address could not be found",
                where=ADDRESS_SERVICE,
                why=str(error),
                next_move="give provision.operator_cidr",
            ) from error

    def oracle_endpoint(self) -> OracleEndpoint:
        account = self._params.oracle
        return OracleEndpoint(_expand(account.config_file, self._base), account.profile, None)

    def registry_endpoint(self, host: str) -> str | None:
        """Base URL for a registry host; None for its usual https address."""
        return None

    def s3_settings(self) -> Mapping[str, str]:
        backup = self._params.backup
        if not backup.endpoint:
            raise BadInput("backup.endpoint is empty", next_move="give the S3 endpoint's URL in the params file")
        access, secret = _s3_credentials(_expand(backup.credentials_file, self._base))
        return {
            "endpoint": backup.endpoint,
            "cluster_endpoint": backup.endpoint,
            "region": backup.region,
            "access_key": access,
            "secret_key": secret,
        }

    def tunnel_token(self) -> str | None:
        return _token(self._params, self._base)

    def k3s_source(self) -> tuple[str, str]:
        bootstrap = self._params.bootstrap
        source = _expand(bootstrap.k3s_source, self._base) or K3S_RELEASES
        if bootstrap.k3s_version and not is_version(bootstrap.k3s_version):
            if self._channel is None:
                self._channel = channel_version(bootstrap.k3s_version)
            return source, self._channel
        return source, bootstrap.k3s_version or K3S_VERSION

    def ssh_key(self, own: Path, host: HostAddress) -> Path | None:
        """The key that opens a node: on site byo its own or all nodes' from the params (None: agent and ~/.ssh), else
        the cluster's own."""
        if self.name != "byo":
            return own
        named = next((n.key_file for n in self._params.nodes if n.name == host.name), None)
        path = _expand(named or self._params.bootstrap.ssh_key_file, self._base)
        return Path(path) if path else None

    def sudo_password(self, host: HostAddress) -> str | None:
        """sudo's password from the environment or a file, or None; asked only where sudo wants one."""
        bootstrap = self._params.bootstrap
        return os.environ.get(bootstrap.sudo_password_env) or _secret_in(
            _expand(bootstrap.sudo_password_file, self._base), "sudo's password"
        )

    def docker_host(self) -> HostAddress:
        return _docker_host(self._params)

    def docker_key(self) -> Path | None:
        host = self._params.migrate.docker_host
        path = _expand(host.key_file, self._base) if host else None
        return Path(path) if path else None


class LabSite(RealSite):
    """The embedded lab: the same protocols on loopback. Raises LabNotRunning when it doesn't answer."""

    def __init__(self, params: Params, base: Path, directory: Path) -> None:
        super().__init__(params, base)
        self._directory = directory
        self._status = self._read_status()

    def _read_status(self) -> Mapping[str, Json]:
        path = self._directory / "lab.json"
        hint = "start it: hybridlab lab start"
        if not path.exists():
            raise LabNotRunning("the lab is not running", where=str(self._directory), next_move=hint)
        status: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
        try:
            with urllib.request.urlopen(f"{status['control']}/status", timeout=5) as answer:
                answer.read()
        except OSError as error:
            raise LabNotRunning(
                "the lab is not running", where=str(self._directory), why=str(error), next_move=hint
            ) from error
        return status

    def _endpoint(self, part: str) -> Mapping[str, Json]:
        found: Mapping[str, Json] = self._status["endpoints"][part]
        return found

    def dial(self, host: str, port: int) -> tuple[str, int]:
        query = urllib.parse.urlencode({"host": host, "port": port})
        try:
            with urllib.request.urlopen(f"{self._status['control']}/dial?{query}", timeout=5) as answer:
                found = json.loads(answer.read())
        except OSError as error:
            raise LabNotRunning(
                "the lab stopped answering", where=str(self._directory), why=str(error), next_move="hybridlab lab start"
            ) from error
        if found["state"] == "open":
            return "127.0.0.1", int(found["port"])
        why = (
            "connection timed out (a security rule drops it)" if found["state"] == "filtered" else "connection refused"
        )
        raise Unreachable("no connection", where=f"{host}:{port}", why=why)

    def operator_ip(self) -> str:
        return str(self._status["operator_ip"])

    def oracle_endpoint(self) -> OracleEndpoint:
        lab = self._endpoint("oracle")
        return OracleEndpoint(str(lab["config_file"]), str(lab["profile"]), str(lab["endpoint"]))

    def registry_endpoint(self, host: str) -> str | None:
        return str(self._endpoint("registry")["endpoint"])

    def s3_settings(self) -> Mapping[str, str]:
        if self._params.backup.endpoint:
            return super().s3_settings()
        lab = self._endpoint("s3")
        access, secret = _s3_credentials(str(lab["credentials_file"]))
        endpoint = str(lab["endpoint"])
        return {
            "endpoint": endpoint,
            "cluster_endpoint": endpoint,
            "region": self._params.backup.region,
            "access_key": access,
            "secret_key": secret,
        }

    def tunnel_token(self) -> str | None:
        own = _token(self._params, self._base)
        return own or Path(self._endpoint("cloudflare")["token_file"]).read_text(encoding="utf-8").strip()

    def k3s_source(self) -> tuple[str, str]:
        bootstrap, lab = self._params.bootstrap, self._endpoint("k3s")
        source = _expand(bootstrap.k3s_source, self._base) or str(lab["source"])
        if bootstrap.k3s_version and not is_version(bootstrap.k3s_version):
            if self._channel is None:
                self._channel = channel_version(bootstrap.k3s_version, str(lab["channels"]))
            return source, self._channel
        return source, bootstrap.k3s_version or str(lab["version"])

    def docker_key(self) -> Path | None:
        return super().docker_key() or Path(self._endpoint("docker_host")["key_file"])


def open_site(params: Params, base: Path, lab_directory: Path) -> RealSite:
    """The site that params name. ``base`` is the folder relative paths in the params start from."""
    return LabSite(params, base, lab_directory) if params.site == "lab" else RealSite(params, base)


def is_version(text: str) -> bool:
    """Whether it is one version (``v1.34.2+k3s1``) rather than a channel (``stable``, ``v1.34``)."""
    return re.fullmatch(r"v\d+\.\d+\.\d+\S*", text) is not None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def channel_version(channel: str, server: str = K3S_CHANNELS) -> str:
    """The version that a channel names now: the last part of where its server sends us.

    Raises BadInput for a channel that isn't there, Unreachable.
    """
    move = "name a version in bootstrap.k3s_version, e.g. v1.34.2+k3s1"
    url = f"{server}/{urllib.parse.quote(channel)}"
    try:
        with urllib.request.build_opener(_NoRedirect).open(url, timeout=15) as answer:
            where = answer.geturl()
    except urllib.error.HTTPError as error:
        where = str(error.headers.get("Location", ""))
        if error.code == 404:
            raise BadInput(f"K3s has no channel {channel}", where=url, next_move=move) from error
    except OSError as error:
        raise Unreachable("K3s' channels could not be asked", where=url, why=str(error), next_move=move) from error
    version = urllib.parse.unquote(where.rpartition("/")[2])
    if not is_version(version):
        raise Unreachable("K3s' channel names no version", where=url, why=f"it leads to {where}", next_move=move)
    return version


def _expand(path: str | None, base: Path) -> str | None:
    if path is None or "://" in path:
        return path
    return str(base / Path(path).expanduser())


def _docker_host(params: Params) -> HostAddress:
    host = params.migrate.docker_host
    if host is None:
        raise BadInput("migrate.docker_host is empty", next_move="name the Docker host in the params file")
    return HostAddress("docker-host", host.address, host.user)


def _token(params: Params, base: Path) -> str | None:
    expose = params.expose
    if os.environ.get(expose.token_env):
        return os.environ[expose.token_env]
    return _secret_in(_expand(expose.token_file, base), "the tunnel token")


def _secret_in(path: str | None, what: str) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadInput(f"{what} can't be read", where=path, why=error.strerror or str(error)) from error


def _s3_credentials(path: str | None) -> tuple[str, str]:
    """Keys from an AWS credentials file (its [default] profile), else from the AWS_* environment."""
    if path is None:
        access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if access and secret:
            return access, secret
        raise BadInput(
            "no S3 credentials", next_move="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or backup.credentials_file"
        )
    parser = configparser.ConfigParser()
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"))
        section = parser[os.environ.get("AWS_PROFILE", "default")]
        return section["aws_access_key_id"], section["aws_secret_access_key"]
    except OSError as error:
        raise BadInput("the S3 credentials file can't be read", where=path, why=error.strerror or "") from error
    except (configparser.Error, KeyError) as error:
        raise BadInput("the S3 credentials file has no keys for the profile", where=path, why=str(error)) from error
