"""K3s on a host: its configuration file, the release's files with their checksums, install, start, kubeconfig."""

from __future__ import annotations

import io
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.errors import BadInput, Refused
from hybridlab.ledger import write_atomic
from hybridlab.models import Arch, Json, NodeWish
from hybridlab.params import Params
from hybridlab.ports import Context
from hybridlab.stages.bootstrap.download import download
from hybridlab.stages.nodes import SMALL_TAINT, NodeHost, arch_of, is_small
from hybridlab.wait import wait_until

CONFIG = "/etc/rancher/k3s/config.yaml"
KUBECONFIG = "/etc/rancher/k3s/k3s.yaml"
NODE_TOKEN_FILE = "/var/lib/rancher/k3s/server/node-token"
BINARY = "/usr/local/bin/k3s"
INSTALLER = "/opt/hybridlab/k3s-install.sh"
INSTALL_DEADLINE_S = 600.0
SERVER_DEADLINE_S = 180.0
INSTALLER_AT_TAG = "https://raw.githubusercontent.com/k3s-io/k3s/{tag}/install.sh"
IMAGES = "k3s-airgap-images-{arch}.tar.zst"
IMAGES_FOLDER = "/var/lib/rancher/k3s/agent/images"
SEE_DOCS = "see docs/k3s.md for what belongs in the folder"
SUFFIX: Mapping[str, str] = {"arm64": "-arm64", "amd64": ""}


def unit_of(role: str) -> str:
    return "k3s" if role == "server" else "k3s-agent"


def unit_file(role: str) -> str:
    """Where install.sh puts the unit."""
    return f"/etc/systemd/system/{unit_of(role)}.service"


def wanted_config(params: Params, wish: NodeWish, private_ip: str, public_ip: str, server_ip: str) -> dict[str, Json]:
    """Every setting of a node's K3s but the token, with the keys of the flags.

    All of it is in the file: install.sh run again without the same environment would lose settings given there.
    """
    bootstrap = params.bootstrap
    config: dict[str, Json] = {"node-name": wish.name, "node-ip": private_ip}
    if wish.role == "server":
        config["tls-san"] = sorted({public_ip, private_ip})
        config["write-kubeconfig-mode"] = "0600"
        config["flannel-backend"] = bootstrap.flannel_backend
        config["secrets-encryption"] = bootstrap.secrets_encryption
        if not bootstrap.traefik and params.expose.method != "traefik":
            config["disable"] = ["traefik"]
    else:
        config["server"] = f"https://{server_ip}:6443"
    config["node-label"] = [f"{k}={v}" for k, v in sorted(wanted_labels(params, wish).items())]
    if is_small(wish):
        if bootstrap.taint_small:
            config["node-taint"] = ["{}={}:{}".format(*SMALL_TAINT)]
        config["kubelet-arg"] = ["kube-reserved=memory=100Mi", "system-reserved=memory=100Mi"]
    return config


def wanted_labels(params: Params, wish: NodeWish) -> dict[str, str]:
    """Labels that a node must carry: node-label works at registration only, so they are reconciled by the API."""
    return {"hybridlab.io/cluster": params.cluster, "hybridlab.io/role": wish.role, **params.bootstrap.labels}


def dump_config(config: Mapping[str, Json], token: str) -> bytes:
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump({**config, "token": token}, out)
    return out.getvalue().encode()


def read_config(text: str) -> dict[str, Json]:
    """A config file without its token; empty for none or for one that isn't YAML."""
    try:
        data = YAML(typ="safe").load(text)
    except YAMLError:
        return {}
    return {k: v for k, v in data.items() if k not in ("token", "agent-token")} if isinstance(data, dict) else {}


def config_changes(wanted: Mapping[str, Json], live: Mapping[str, Json]) -> tuple[str, ...]:
    return tuple(sorted(k for k in {*wanted, *live} if wanted.get(k) != live.get(k)))


# -- installing --------------------------------------------------------------------------------------------------------
def expected_checksum(checksums: str, file: str) -> str:
    """The SHA-256 of a release file from sha256sum-<arch>.txt. Raises Refused when it isn't listed."""
    for line in checksums.splitlines():
        digest, _, name = line.partition(" ")
        if name.strip().lstrip("*") == file and re.fullmatch(r"[0-9a-f]{64}", digest):
            return digest
    raise Refused(f"the release's checksums don't list {file}", next_move="check bootstrap.k3s_source")


def release_files(source: str, version: str, arch: str) -> tuple[str, str, str]:
    """Where the binary, the checksums and install.sh of a release are: paths in a folder, or URLs."""
    binary, sums = f"k3s{SUFFIX[arch]}", f"sha256sum-{arch}.txt"
    if "://" not in source:
        return tuple(str(Path(source) / name) for name in (binary, sums, "install.sh"))  # type: ignore[return-value]
    base = f"{source.rstrip('/')}/{urllib.parse.quote(version)}"
    if source.startswith("https://github.com/"):
        return f"{base}/{binary}", f"{base}/{sums}", INSTALLER_AT_TAG.format(tag=urllib.parse.quote(version))
    return f"{base}/{binary}", f"{base}/{sums}", f"{base}/install.sh"


def put_release(ctx: Context, node: NodeHost) -> Mapping[str, Json]:
    """Bring the binary and install.sh onto the host and check the binary's SHA-256 there."""
    source, version = ctx.site.k3s_source()
    arch = arch_of(ctx, node)
    binary, sums, installer = release_files(source, version, arch)
    staged = f"/opt/hybridlab/k3s-{version}"
    if "://" in source:
        for url, path in ((binary, staged), (sums, staged + ".sums"), (installer, INSTALLER)):
            download(ctx, node.host, url, path)
        checksums = ctx.hosts.get(node.host, staged + ".sums", sudo=True).decode()
    else:
        for path in (binary, sums, installer):
            if not Path(path).is_file():
                raise BadInput("a file of the K3s release is missing", where=path, next_move=SEE_DOCS)
        ctx.hosts.put(node.host, Path(binary), staged, mode=0o755, sudo=True)
        ctx.hosts.put(node.host, Path(installer), INSTALLER, mode=0o755, sudo=True)
        checksums = Path(sums).read_text(encoding="utf-8")
    wanted = expected_checksum(checksums, f"k3s{SUFFIX[arch]}")
    found = ctx.hosts.run(node.host, ["sha256sum", staged], sudo=True).stdout.split(" ")[0]
    if found != wanted:
        raise Refused(
            "the K3s binary does not have the release's checksum",
            where=f"{node.wish.name}:{staged}",
            why=f"found {found[:12]}…, wanted {wanted[:12]}…",
            next_move="check bootstrap.k3s_source; nothing was installed",
        )
    images = _put_images(ctx, node, arch, source, version, checksums)
    ctx.hosts.run(node.host, ["install", "-m", "0755", staged, BINARY], sudo=True)
    return {"version": version, "sha256": found, **({"images": images} if images else {})}


def images_in(source: str) -> tuple[Arch, ...]:
    """For which architectures a folder has the archive of K3s' own images; none for a URL."""
    if "://" in source:
        return ()
    return tuple(arch for arch in ("amd64", "arm64") if (Path(source) / IMAGES.format(arch=arch)).is_file())


def _put_images(ctx: Context, node: NodeHost, arch: Arch, source: str, version: str, checksums: str) -> str:
    """Bring the archive of K3s' images to where K3s loads it from, where the source has one or it is asked for.

    Its SHA-256 is checked on the host before K3s can see it. Returns the archive's name, or nothing.
    """
    name = IMAGES.format(arch=arch)
    if not ctx.params.bootstrap.airgap_images and arch not in images_in(source):
        return ""
    staged = f"/opt/hybridlab/{name}"
    if "://" in source:
        download(ctx, node.host, f"{source.rstrip('/')}/{urllib.parse.quote(version)}/{name}", staged)
    elif arch in images_in(source):
        ctx.hosts.put(node.host, Path(source) / name, staged, sudo=True)
    else:
        raise BadInput("the images of the K3s release are missing", where=str(Path(source) / name), next_move=SEE_DOCS)
    wanted = expected_checksum(checksums, name)
    found = ctx.hosts.run(node.host, ["sha256sum", staged], sudo=True, timeout_s=300).stdout.split(" ")[0]
    if found != wanted:
        ctx.hosts.run(node.host, ["rm", "-f", staged], sudo=True)
        raise Refused(
            "K3s' images do not have the release's checksum",
            where=f"{node.wish.name}:{staged}",
            why=f"found {found[:12]}…, wanted {wanted[:12]}…",
            next_move="check bootstrap.k3s_source; nothing was installed",
        )
    ctx.hosts.run(node.host, ["mkdir", "-p", IMAGES_FOLDER], sudo=True)
    ctx.hosts.run(node.host, ["mv", "-f", staged, f"{IMAGES_FOLDER}/{name}"], sudo=True)
    return name


def run_installer(ctx: Context, node: NodeHost, *, force_restart: bool = False) -> None:
    """Run K3s' own install.sh: it writes the unit and starts it. Its exit status proves nothing: see verify."""
    env = ["INSTALL_K3S_SKIP_DOWNLOAD=true", f"INSTALL_K3S_EXEC={node.wish.role}"]
    env += ["INSTALL_K3S_FORCE_RESTART=true"] if force_restart else []
    ctx.hosts.run(node.host, ["env", *env, "sh", INSTALLER], sudo=True, timeout_s=INSTALL_DEADLINE_S)


def put_config(ctx: Context, node: NodeHost, server: NodeHost) -> bool:
    """Write a node's config.yaml (0600), token included; returns whether it changed."""
    config = wanted_config(ctx.params, node.wish, node.private_ip, node.public_ip, server.private_ip)
    if node.wish.role == "server":
        token = ctx.secrets.get_or_make("k3s_token").reveal()
    else:
        token = node_token(ctx, server)
    return ctx.hosts.put(node.host, dump_config(config, token), CONFIG, mode=0o600, sudo=True)


def node_token(ctx: Context, server: NodeHost) -> str:
    """The full token (K10<hash of the CA>::…), with which an agent can tell the server from an impostor."""
    token = ctx.hosts.get(server.host, NODE_TOKEN_FILE, sudo=True).decode().strip()
    if not token.startswith("K10"):
        raise Refused("the server's node token is not a full one", where=f"{server.wish.name}:{NODE_TOKEN_FILE}")
    ctx.secrets.put("k3s_node_token", token)
    return token


def wait_for_server(ctx: Context, server: NodeHost) -> None:
    """Until the server has written its token and kubeconfig."""
    argv = ["test", "-s", KUBECONFIG]
    wait_until(
        lambda: ctx.hosts.run(server.host, argv, sudo=True, check=False).exit_status == 0,
        bool,
        what=f"K3s on {server.wish.name} to write its kubeconfig",
        deadline_s=SERVER_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda there: "there" if there else "not there yet: " + last_words(ctx, server),
        next_move=f"look at: journalctl -u k3s on {server.wish.name}",
    )


def last_words(ctx: Context, node: NodeHost) -> str:
    """The last line that K3s wrote to the journal of a host."""
    argv = ["journalctl", "-u", unit_of(node.wish.role), "-n", "1", "--no-pager", "-o", "cat"]
    return ctx.hosts.run(node.host, argv, sudo=True, check=False).stdout.strip()[-300:]


def save_kubeconfig(ctx: Context, server: NodeHost, dialled: tuple[str, int]) -> Path:
    """Fetch the kubeconfig, point it at the server and name everything after the cluster; 0600."""
    yaml = YAML(typ="safe")
    data = yaml.load(ctx.hosts.get(server.host, KUBECONFIG, sudo=True).decode())
    name = ctx.params.cluster
    cluster, user = data["clusters"][0]["cluster"], data["users"][0]["user"]
    cluster["server"] = f"https://{dialled[0]}:{dialled[1]}"
    out = io.StringIO()
    plain = YAML()
    plain.dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        },
        out,
    )
    if "client-key-data" in user:
        ctx.secrets.put("kube_client_key", user["client-key-data"])
    path = ctx.state / "kubeconfig"
    write_atomic(path, out.getvalue().encode(), mode=0o600)
    ctx.refresh()
    return path
