"""A file that a host fetches itself, with curl; what curl's exit status means, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.errors import CommandFailed, NotFound
from hybridlab.models import HostAddress
from hybridlab.ports import Context

FOLDER = "or bring the release along: a folder as bootstrap.k3s_source needs no network (docs/k3s.md)"
REACH = f"let the host reach that server, {FOLDER}"
SOURCE = "check bootstrap.k3s_source and bootstrap.k3s_version"
MEANINGS: Mapping[int, tuple[str, str]] = {
    3: ("the K3s source is no URL", SOURCE),
    5: ("the host does not find its proxy by name", f"check the proxy that curl uses there, {FOLDER}"),
    6: ("the host does not know the K3s source by name", f"check DNS on the host, {FOLDER}"),
    7: ("the host reaches nobody at the K3s source", REACH),
    18: ("the download broke off", f"run it again, {FOLDER}"),
    22: ("the K3s source refused a file", f"{SOURCE}; if they are right, the server is in trouble: run it again later"),
    23: (
        "the host could not write the download: its disk is full",
        "free space on the host (df -h; apt-get clean; journalctl --vacuum-size=100M), then run it again",
    ),
    28: ("the download took too long", f"run it again, {FOLDER}"),
    35: ("no TLS with the K3s source", f"check the host's clock and the server's certificate, {FOLDER}"),
    56: ("the download broke off", f"run it again, {FOLDER}"),
    60: ("the host does not trust the K3s source", f"check the host's clock and its ca-certificates, {FOLDER}"),
    127: ("there is no curl on the host", f"apt-get install curl there, {FOLDER}"),
}
"""curl's exit statuses (https://curl.se/libcurl/c/libcurl-errors.html) and the shell's 127."""


def download(ctx: Context, host: HostAddress, url: str, path: str) -> None:
    """Fetch a URL into a file of the host. Raises NotFound for 404, CommandFailed with what curl's status means."""
    argv = ["curl", "-fsSL", "--retry", "3", "--max-time", "600", "--create-dirs", "-o", path, url]
    result = ctx.hosts.run(host, argv, sudo=True, timeout_s=660, check=False)
    if result.exit_status == 0:
        return
    what, move = MEANINGS.get(result.exit_status, ("curl failed on the host", REACH))
    said = result.stderr.strip()
    if result.exit_status == 22 and "404" in said:
        raise NotFound(
            "the K3s source has no such file", status=404, where=f"{host.name}: {url}", why=said, next_move=SOURCE
        )
    raise CommandFailed(what, exit_status=result.exit_status, stderr=said, where=f"{host.name}: {url}", next_move=move)
