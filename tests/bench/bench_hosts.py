"""Host work on three real machines, first and second run, side by side with the same tasks as an Ansible playbook.

    python tests/bench/bench_hosts.py [--runs 3]

Needs root, systemd-nspawn and debootstrap (see tests/live) and ssh. ansible-core and hybridlab's dependencies are
installed into virtual environments of their own beside the cached image, as a user has them: in a developer's the
Kubernetes client also loads kubernetes-validate, a test tool that takes a second. Where ansible-core can't be
installed, only hybridlab is measured. Both do the same:
marker and helper file, two REJECT rules out of the live rules and of the file, a swap file on one machine, the K3s
release's files with the checksum verified, config.yaml, install.sh, the service running. Both are timed as whole
processes, and hybridlab also from inside without Python's start. K3s is the stand-in of tests/live.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "live"), str(HERE.parents[1])]

from byo import Home  # noqa: E402 - found by the line above
from k3s_release import VERSION, write_standin  # noqa: E402
from machines import BOOT_DEADLINE_S, LiveMachines, cache_folder, image, live_machines, why_not  # noqa: E402

from hybridlab.drivers.ssh import SshHosts  # noqa: E402
from hybridlab.stages.firewall import REJECTS, RULES_FILE  # noqa: E402
from hybridlab.stages.hostundo import SWAP_FILE  # noqa: E402
from hybridlab.stages.nodes import HELPER, helper_source  # noqa: E402

NAMES = ("amd-1", "amd-2", "amd-3")
OURS = """
import sys, time
begin = time.perf_counter()
sys.path[:0] = {path!r}
from pathlib import Path
from byo import Home
from machines import LiveMachine
machines = [LiveMachine(name, address, Path(), "") for name, address in {machines!r}]
home = Home(Path({folder!r}), "bench", machines, Path({key!r}), Path({source!r}), {version!r})
run = home.open().stage("bootstrap")
import hybridlab.drivers.kube, hybridlab.drivers.ssh
from kubernetes.client.api_client import ApiClient
from kubernetes.config.kube_config import load_kube_config
imported = time.perf_counter()
run.look()
plan = run.plan()
run.gate()
run.apply()
print(len(plan.steps), imported - begin, time.perf_counter() - imported)
"""


def installed(folder: Path, package: str, program: str) -> Path | None:
    """A program of a package in a virtual environment of its own, or None."""
    done = folder / "installed"
    if not done.exists():
        print(f"installing {package} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", folder], capture_output=True, check=False)
        pip = [str(folder / "bin" / "pip"), "install", "-q", package]
        if made.returncode or subprocess.run(pip, check=False).returncode:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        done.touch()
    return folder / "bin" / program


def ours_as_installed() -> Path:
    """A Python with hybridlab's dependencies and no others; the code measured is this checkout's."""
    root = HERE.parents[1]
    state = hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest()[:8]
    python = installed(cache_folder() / f"hybridlab-{state}", str(root), "python")
    if python is None:
        raise SystemExit("not measured: hybridlab's dependencies could not be installed")
    return python


def playbook(source: Path) -> list[dict[str, Any]]:
    """The tasks of 030's host work in Ansible's own modules. The token is the short one, since a file is all it is."""
    binary = source / "k3s"
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    rule = {"jump": "REJECT", "reject_with": "icmp-host-prohibited", "state": "absent"}
    unit = "{{ 'k3s' if role == 'server' else 'k3s-agent' }}"
    tasks: list[dict[str, Any]] = [
        {"file": {"path": "/etc/hybridlab", "state": "directory"}},
        {"copy": {"content": "bench\n", "dest": "/etc/hybridlab/cluster"}},
        {"file": {"path": "/opt/hybridlab", "state": "directory"}},
        {"copy": {"content": helper_source().decode(), "dest": HELPER, "mode": "0755"}},
        *({"iptables": {"chain": chain, **rule}} for chain in ("INPUT", "FORWARD")),
        *({"lineinfile": {"path": RULES_FILE, "line": line, "state": "absent"}} for line in REJECTS),
        {"command": {"argv": ["fallocate", "-l", "1G", SWAP_FILE], "creates": SWAP_FILE}, "register": "made",
         "when": "small"},
        {"file": {"path": SWAP_FILE, "mode": "0600"}, "when": "small"},
        {"command": {"argv": ["mkswap", SWAP_FILE]}, "when": "small and made is changed"},
        {"command": {"argv": ["swapon", SWAP_FILE]}, "when": "small and made is changed"},
        {"lineinfile": {"path": "/etc/fstab", "line": f"{SWAP_FILE} none swap sw 0 0"}, "when": "small"},
        {"copy": {"src": str(binary), "dest": "/usr/local/bin/k3s", "mode": "0755", "checksum":
                  hashlib.sha1(binary.read_bytes()).hexdigest()}},
        {"command": {"argv": ["sha256sum", "/usr/local/bin/k3s"]}, "register": "sum", "changed_when": False,
         "failed_when": f"not sum.stdout.startswith('{digest}')"},
        {"copy": {"src": str(source / "install.sh"), "dest": "/opt/hybridlab/k3s-install.sh", "mode": "0755"}},
        {"file": {"path": "/etc/rancher/k3s", "state": "directory"}},
        {"copy": {"content": "{{ config }}\n", "dest": "/etc/rancher/k3s/config.yaml", "mode": "0600"}},
        {"command": {"argv": ["sh", "/opt/hybridlab/k3s-install.sh", "{{ role }}"],
                     "creates": f"/etc/systemd/system/{unit}.service"},
         "environment": {"INSTALL_K3S_SKIP_DOWNLOAD": "true"}},
        {"systemd_service": {"name": unit, "state": "started", "enabled": True}},
    ]  # fmt: skip
    return [{"hosts": "all", "gather_facts": False, "become": True, "tasks": tasks}]


def inventory(rig: LiveMachines) -> dict[str, Any]:
    first = rig[NAMES[0]].address
    hosts: dict[str, Any] = {}
    for name in NAMES:
        server = name == NAMES[0]
        config: dict[str, Any] = {"node-name": name, "node-ip": rig[name].address, "token": "not-a-secret-of-a-bench"}
        config.update({"tls-san": [first]} if server else {"server": f"https://{first}:6443"})
        hosts[name] = {
            "ansible_host": rig[name].address,
            "role": "server" if server else "agent",
            "small": name == NAMES[-1],
            "config": json.dumps(config),
        }
    shared = {"ansible_user": "ubuntu", "ansible_ssh_private_key_file": str(rig.key),
              "ansible_python_interpreter": "/usr/bin/python3"}  # fmt: skip
    return {"all": {"hosts": hosts, "vars": shared}}


def time_ansible(program: Path, folder: Path, rig: LiveMachines, source: Path) -> float:
    (folder / "play.json").write_text(json.dumps(playbook(source)))
    (folder / "inventory.json").write_text(json.dumps(inventory(rig)))
    env = {**os.environ, "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_PIPELINING": "True", "ANSIBLE_FORKS": "3",
           "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"), "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
           "ANSIBLE_NOCOLOR": "1"}  # fmt: skip
    begin = time.perf_counter()
    words = [str(program), "-i", str(folder / "inventory.json"), str(folder / "play.json")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"ansible-playbook failed:\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    return took


def time_ours(python: Path, folder: Path, rig: LiveMachines, source: Path) -> tuple[float, float, int]:
    """Seconds of the whole process, of the work in it, and how many steps were applied."""
    code = OURS.format(
        path=sys.path[:2], machines=[(n, rig[n].address) for n in NAMES], folder=str(folder), key=str(rig.key),
        source=str(source), version=VERSION,
    )  # fmt: skip
    begin = time.perf_counter()
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    took = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(f"hybridlab failed:\n{done.stderr[-3000:]}")
    steps, _, work = done.stdout.split()
    return took, float(work), int(steps)


def clean(folder: Path, rig: LiveMachines, source: Path) -> None:
    """All machines as they were; Ansible's marker is the same, so that the same undo serves both."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Home(folder, "bench", [rig[n] for n in NAMES], rig.key, source, VERSION).run("teardown")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def restore_rules(rig: LiveMachines, driver: SshHosts, rules: bytes) -> None:
    """Ansible keeps no original of the rules: put them back by hand."""
    for name in NAMES:
        driver.put(rig[name].host, rules, RULES_FILE, mode=0o640, sudo=True)
        driver.run(rig[name].host, ["iptables-restore", RULES_FILE], sudo=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3, help="how often the second run is repeated")
    runs = options.parse_args().runs
    reason = why_not()
    if reason:
        raise SystemExit(f"not measured: {reason}")
    image()
    program = installed(cache_folder() / "ansible", "ansible-core", "ansible-playbook")
    python = ours_as_installed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_standin(folder / "k3s", VERSION)
        with (
            live_machines(folder / "machines") as rig,
            SshHosts(lambda h, p: (h, p), folder / "known", rig.key) as driver,
        ):
            rig.add(NAMES)
            for machine in rig.machines.values():
                driver.wait_for_ssh(machine.host, BOOT_DEADLINE_S)
            rules = driver.get(rig[NAMES[0]].host, RULES_FILE, sudo=True)
            home = folder / "home"
            home.mkdir()
            theirs: list[float] = []
            if program is not None:
                theirs = [time_ansible(program, folder, rig, source) for _ in range(runs + 1)]
                clean(home, rig, source)
                restore_rules(rig, driver, rules)
            ours = [time_ours(python, home, rig, source) for _ in range(runs + 1)]
    report(theirs, ours)


def report(theirs: list[float], ours: list[tuple[float, float, int]]) -> None:
    first, second = ours[0], ours[1:]
    assert first[2] > 0
    assert all(steps == 0 for _, _, steps in second), "the second run changed something"
    whole, work = statistics.median(t for t, _, _ in second), statistics.median(w for _, w, _ in second)
    print(f"3 machines, {os.cpu_count()} cores here, median of {len(second)} second runs, seconds\n")
    print(f"{'':24}{'first run':>12}{'second run':>12}")
    if theirs:
        again = statistics.median(theirs[1:])
        print(f"{'ansible-core':24}{theirs[0]:12.2f}{again:12.2f}")
    print(f"{'hybridlab':24}{first[0]:12.2f}{whole:12.2f}\n{'  libraries loaded':24}{first[1]:12.2f}{work:12.2f}")
    if theirs:
        print(f"{'ratio':24}{theirs[0] / first[0]:11.1f}×{again / whole:11.1f}×")
        print(f"{'  libraries loaded':24}{theirs[0] / first[1]:11.1f}×{again / work:11.1f}×")
    else:
        print("ansible-core could not be installed: no comparison")


if __name__ == "__main__":
    main()
