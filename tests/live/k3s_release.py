"""A K3s release as stages take it: a real one where HYBRIDLAB_TEST_K3S_SOURCE names its folder, else the stand-in."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

VERSION = "v1.34.2+k3s1"
NEWER = "v1.34.3+k3s1"

# What K3s' own install.sh leaves behind, as far as stages and systemd can tell.
INSTALLER = """\
#!/bin/sh
# A stand-in for K3s' install.sh: reads INSTALL_K3S_SKIP_DOWNLOAD, INSTALL_K3S_EXEC, INSTALL_K3S_SKIP_START and
# INSTALL_K3S_FORCE_RESTART, and writes the unit, its environment file and the uninstall script.
set -eu
fail() { echo "[ERROR]  $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "run as root"
[ "${INSTALL_K3S_SKIP_DOWNLOAD:-}" = true ] || fail "Download failed: the stand-in has nothing to download"
[ -x /usr/local/bin/k3s ] || fail "Executable k3s binary not found at /usr/local/bin/k3s"
[ $# -gt 0 ] || set -- ${INSTALL_K3S_EXEC:-}
case "${1:-}" in
    server|agent) role=$1; shift ;;
    *) if [ -n "${K3S_URL:-}" ]; then role=agent; else role=server; fi ;;
esac
if [ "$role" = agent ]; then name=k3s-agent; type=exec; else name=k3s; type=notify; fi
unit=/etc/systemd/system/$name.service
hash() { cat "$unit" "$unit.env" /usr/local/bin/k3s 2>/dev/null | sha256sum; }
before=$(hash)
(umask 077; env | grep -E '^K3S_' > "$unit.env" || :)
cat > "$unit" <<UNIT
[Unit]
Description=Lightweight Kubernetes (stand-in)
Wants=network-online.target
After=network-online.target
[Install]
WantedBy=multi-user.target
[Service]
Type=$type
EnvironmentFile=-$unit.env
KillMode=process
Restart=always
RestartSec=5s
TimeoutStartSec=60
ExecStart=/usr/local/bin/k3s $role $*
UNIT
cat > "/usr/local/bin/$name-uninstall.sh" <<UNINSTALL
#!/bin/sh
set -x
systemctl stop $name
systemctl disable $name
systemctl reset-failed $name
for chain in INPUT FORWARD; do
    iptables -D \\$chain -j KUBE-ROUTER-\\$chain
    iptables -F KUBE-ROUTER-\\$chain
    iptables -X KUBE-ROUTER-\\$chain
done
rm -f $unit $unit.env /usr/local/bin/k3s /usr/local/bin/$name-uninstall.sh
rm -rf /etc/rancher/k3s /run/k3s /var/lib/rancher/k3s /var/lib/kubelet
systemctl daemon-reload
UNINSTALL
chmod 0755 "/usr/local/bin/$name-uninstall.sh"
systemctl daemon-reload
systemctl enable "$name"
if [ "$before" = "$(hash)" ] && [ "${INSTALL_K3S_FORCE_RESTART:-}" != true ]; then
    echo "[INFO]  No change detected so skipping service start"
    exit 0
fi
[ "${INSTALL_K3S_SKIP_START:-}" = true ] || systemctl restart "$name"
"""


def real_source() -> Path | None:
    named = os.environ.get("HYBRIDLAB_TEST_K3S_SOURCE")
    return Path(named) if named else None


def release(folder: Path, version: str = VERSION) -> tuple[Path, str]:
    """The folder of a release and its version."""
    real = real_source()
    if real is not None:
        answer = subprocess.run([real / "k3s", "--version"], capture_output=True, text=True, check=True)
        return real, answer.stdout.split()[2]
    return write_standin(folder, version), version


def write_standin(folder: Path, version: str) -> Path:
    """Write the stand-in's release: binaries, checksums and install.sh, named as K3s names them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = Path(__file__).with_name("k3s_standin.py").read_text(encoding="utf-8")
    program = text.replace('VERSION = "v0.0.0+k3s0"', f'VERSION = "{version}"').encode()
    for arch, name in (("amd64", "k3s"), ("arm64", "k3s-arm64")):
        (folder / name).write_bytes(program)
        (folder / name).chmod(0o755)
        line = f"{hashlib.sha256(program).hexdigest()}  {name}\n"
        (folder / f"sha256sum-{arch}.txt").write_text(line, encoding="utf-8")
    (folder / "install.sh").write_text(INSTALLER, encoding="utf-8")
    return folder
