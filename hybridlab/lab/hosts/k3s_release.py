"""The lab's own K3s "release": files with the names and checksums of a real one, and nothing of K3s inside.

The files work as stand-ins on a real Linux machine too: install.sh writes a real unit, and the binary's place-holder
runs until it is stopped.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hybridlab.lab.world import Arch, World

DEFAULT_VERSION = "v1.34.2+k3s1"
FILE_NAMES: dict[Arch, str] = {"amd64": "k3s", "arm64": "k3s-arm64"}
MARK = re.compile(r"^# hybridlab-lab-k3s version=(\S+) arch=(\S+)$", re.MULTILINE)
INSTALLER_MARK = "INSTALL_K3S_"

_BINARY = """\
#!/bin/sh
# A place-holder of hybridlab's lab, not K3s: it has a version and an architecture and does nothing.
# hybridlab-lab-k3s version={version} arch={arch}
case "$(uname -m)" in x86_64) machine=amd64 ;; aarch64) machine=arm64 ;; *) machine=other ;; esac
if [ "$machine" != "{arch}" ]; then
    echo "$0: cannot execute binary file: Exec format error" >&2
    exit 126
fi
case "$1" in
    --version|-v) echo "k3s version {version} (hybridlab lab)" ;;
    server|agent) exec sleep infinity ;;
    *) echo "this is the lab's place-holder for k3s: $*" >&2; exit 1 ;;
esac
"""

_INSTALLER = """\
#!/bin/sh
# install.sh of hybridlab's lab, not K3s' own: it installs the lab's place-holder as a service and reads
# INSTALL_K3S_SKIP_DOWNLOAD (must be true: there is nothing to download), INSTALL_K3S_EXEC, INSTALL_K3S_SKIP_START,
# INSTALL_K3S_SKIP_ENABLE, K3S_URL and K3S_TOKEN. Settings belong in /etc/rancher/k3s/config.yaml.
set -eu
fail() { echo "[ERROR]  $1" >&2; exit 1; }
[ "${INSTALL_K3S_SKIP_DOWNLOAD:-}" = true ] || fail "Download failed: the lab has nothing to download"
[ -x /usr/local/bin/k3s ] || fail "Executable k3s binary not found at /usr/local/bin/k3s"
if [ $# -eq 0 ]; then set -- ${INSTALL_K3S_EXEC:-}; fi
case "${1:-}" in
    server|agent) role=$1; shift ;;
    *) if [ -n "${K3S_URL:-}" ]; then role=agent; else role=server; fi ;;
esac
if [ "$role" = agent ]; then name=k3s-agent; else name=k3s; fi
unit=/etc/systemd/system/$name.service
umask 077
env | grep -E '^K3S_' > "$unit.env" || :
cat > "$unit" <<UNIT
[Unit]
Description=Place-holder for K3s (hybridlab lab)
After=network-online.target
[Service]
Type=exec
EnvironmentFile=-$unit.env
ExecStart=/usr/local/bin/k3s $role $*
Restart=always
RestartSec=5s
[Install]
WantedBy=multi-user.target
UNIT
chmod 0644 "$unit"
script=/usr/local/bin/$name-uninstall.sh
cat > "$script" <<UNINSTALL
#!/bin/sh
# hybridlab-lab-k3s uninstall role=$role
systemctl disable --now $name || :
rm -rf $unit $unit.env /etc/rancher /var/lib/rancher/k3s /var/lib/kubelet /usr/local/bin/k3s $script
systemctl daemon-reload
UNINSTALL
chmod 0755 "$script"
systemctl daemon-reload
[ "${INSTALL_K3S_SKIP_ENABLE:-}" = true ] && exit 0
systemctl enable "$name"
[ "${INSTALL_K3S_SKIP_START:-}" = true ] && exit 0
systemctl restart "$name"
"""


def images_archive(arch: Arch) -> str:
    return f"k3s-airgap-images-{arch}.tar.zst"


def archive_bytes(version: str, arch: Arch) -> bytes:
    """What stands for the archive of K3s' images: bytes of no meaning, the same each time."""
    return hashlib.shake_128(f"{version} {arch}".encode()).digest(64 * 1024)


def write_release(folder: Path, version: str = DEFAULT_VERSION) -> None:
    """Write k3s, k3s-arm64, sha256sum-amd64.txt, sha256sum-arm64.txt and install.sh into a folder.

    The sums list the archive of images too, which only the release server has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for arch, name in FILE_NAMES.items():
        data = _BINARY.format(version=version, arch=arch).encode()
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o755)
        listed = {name: data, images_archive(arch): archive_bytes(version, arch)}
        lines = (f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in listed.items())
        (folder / f"sha256sum-{arch}.txt").write_text("".join(lines), "utf-8")
    (folder / "install.sh").write_text(_INSTALLER, "utf-8")


def offer_release(world: World, version: str = DEFAULT_VERSION) -> None:
    """Make the lab's release and tell where it is."""
    folder = world.directory / "k3s-release" / version
    write_release(folder, version)
    world.endpoints["k3s"] = {"source": str(folder), "version": version}
