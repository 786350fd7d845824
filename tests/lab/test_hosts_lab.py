"""The lab's hosts beyond the contract: power, boot, K3s' stand-in, probes, the Docker host, the log."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from hosts_lab import LabHosts, eventually, lab_hosts

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import Unreachable
from hybridlab.lab.hosts.docker_host import Mount, default_project, read_project
from hybridlab.lab.world import K3sService, Machine
from hybridlab.models import HostAddress

HELPER = resources.files("hybridlab.data").joinpath("node_helper.py").read_bytes()
CONFIG = "/etc/rancher/k3s/config.yaml"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabHosts]:
    with lab_hosts(tmp_path / "lab") as made:
        yield made


def up(lab: LabHosts, driver: SshHosts, name: str = "arm-1", last: int = 11, **changes: object) -> HostAddress:
    host = lab.power_on(lab.machine(name, private_ip=f"10.0.0.{last}", public_ip=f"203.0.113.{last}", **changes))
    driver.wait_for_ssh(host, 20)
    return host


# -- power and boot ----------------------------------------------------------------------------------------------------
def test_sshd_comes_up_some_time_after_power_on_and_goes_with_power_off(tmp_path: Path) -> None:
    with lab_hosts(tmp_path / "lab", speed=4) as lab, lab.driver() as driver:
        host = lab.power_on(lab.machine())
        assert lab.world.dial(host.address, 22)[0] == "refused"
        driver.wait_for_ssh(host, 20)
        lab.call(lab.part.power_off(lab.machine().id))
        assert lab.world.dial(host.address, 22)[0] == "refused"
        with pytest.raises(Unreachable):
            driver.run(host, ["true"])
        assert lab.part.machine_at(host.address) is None


def test_files_keys_and_ports_survive_a_restart_of_the_lab(tmp_path: Path) -> None:
    with lab_hosts(tmp_path / "lab") as lab, lab.driver() as driver:
        host = up(lab, driver)
        driver.put(host, b"kept", "/etc/kept", mode=0o600, sudo=True)
        driver.run(host, ["apt-get", "install", "-y", "nfs-common"], sudo=True)
        port = lab.world.dial(host.address, 22)[1]
    with lab_hosts(tmp_path / "lab") as lab, lab.driver() as driver:
        assert lab.world.dial(host.address, 22) == ("open", port)
        assert driver.get(host, "/etc/kept", sudo=True) == b"kept"
        assert driver.run(host, ["stat", "-c", "%a %U", "/etc/kept"]).stdout == "600 root\n"
        driver.run(host, ["dpkg-query", "-W", "nfs-common"])


def test_destroy_leaves_nothing(lab: LabHosts) -> None:
    with lab.driver() as driver:
        up(lab, driver)
    machine = lab.machine()
    assert lab.part.folder(machine.id).is_dir()
    lab.call(lab.part.destroy(machine.id))
    assert not [path for path in (lab.directory / "hosts").iterdir() if machine.id in path.name]


def test_a_reboot_brings_back_what_is_in_the_files_and_nothing_else(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)

        def sudo(*argv: str, stdin: bytes | None = None) -> str:
            return driver.run(host, list(argv), sudo=True, stdin=stdin).stdout

        sudo("iptables", "-D", "INPUT", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
        sudo("modprobe", "iscsi_tcp")
        sudo("tee", "/etc/modules-load.d/k.conf", stdin=b"br_netfilter\n")
        sudo("fallocate", "-l", "64M", "/swapfile")
        sudo("chmod", "600", "/swapfile")
        sudo("mkswap", "/swapfile")
        sudo("swapon", "/swapfile")
        sudo("tee", "-a", "/etc/fstab", stdin=b"/swapfile none swap sw 0 0\n")
        sudo("systemctl", "enable", "iscsid")
        sudo("touch", "/tmp/gone")
        lab.call(lab.part.reboot(lab.machine().id))
        driver.wait_for_ssh(host, 20)
        rules = sudo("iptables", "-S", "INPUT")
        assert "-j REJECT" in rules, "deleted live but not in the file: back after a reboot"
        modules = driver.run(host, ["lsmod"]).stdout
        assert "br_netfilter" in modules
        assert "iscsi_tcp" not in modules
        assert "/swapfile" in driver.run(host, ["swapon", "--show=NAME", "--noheadings", "--raw"]).stdout
        assert driver.run(host, ["systemctl", "is-active", "iscsid"]).stdout == "active\n"
        assert driver.run(host, ["test", "-e", "/tmp/gone"], check=False).exit_status == 1


def test_iscsi_is_ready_only_with_package_daemon_and_module(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host, machine = up(lab, driver, image="Canonical-Ubuntu-24.04-Minimal"), lab.machine()
        for argv in (
            ["apt-get", "install", "-y", "open-iscsi"],
            ["systemctl", "enable", "--now", "iscsid"],
            ["modprobe", "iscsi_tcp"],
        ):
            assert not lab.part.iscsi_ready(machine.id)
            driver.run(host, argv, sudo=True)
        assert lab.part.iscsi_ready(machine.id)


# -- no shell, no secrets ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["true; id", "cat < /etc/passwd", "echo $HOME", "true && false", "ls *", "A=1 true"])
def test_shell_text_is_refused(lab: LabHosts, text: str) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
    address, port = lab.dial(host.address, 22)

    async def ask() -> tuple[int | None, str]:
        async with asyncssh.connect(
            address, port, username="ubuntu", client_keys=[str(lab.key)], known_hosts=None, config=None
        ) as conn:
            result = await conn.run(text)
            return result.exit_status, str(result.stderr)

    status, stderr = lab.call(ask())
    assert status == 2
    assert "no shell" in stderr


def test_the_log_says_what_ran_and_never_a_secret(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
        driver.run(host, ["env", "K3S_TOKEN=K10secret", "true"], sudo=True)
        driver.run(host, ["tee", "/tmp/x"], stdin=b"hidden-input")
    rows = [row for row in lab.rows() if row["part"] == "hosts" and row["verb"] == "exec"]
    by_target = {row["target"]: row for row in rows}
    env = by_target["arm-1: sudo -n env 'K3S_TOKEN=***' true"]
    assert env["detail"] == "secret in argv"
    assert not env["mutating"]
    assert by_target["arm-1: tee /tmp/x"]["mutating"]
    text = (lab.directory / "requests.jsonl").read_text()
    assert "K10secret" not in text
    assert "hidden-input" not in text


# -- K3s' stand-in -----------------------------------------------------------------------------------------------------
def install(lab: LabHosts, driver: SshHosts, host: HostAddress, role: str, config: str, name: str = "k3s-arm64") -> int:
    source = Path(lab.world.endpoints["k3s"]["source"])
    driver.put(host, source / name, "/usr/local/bin/k3s", mode=0o755, sudo=True)
    driver.put(host, source / "install.sh", "/tmp/install.sh")
    driver.put(host, config.encode(), CONFIG, mode=0o600, sudo=True)
    argv = ["env", "INSTALL_K3S_SKIP_DOWNLOAD=true", "sh", "/tmp/install.sh", role]
    return driver.run(host, argv, sudo=True, check=False).exit_status


def started(lab: LabHosts) -> list[K3sService]:
    return [what for event, _, what in lab.kube.events if event == "started"]


def test_the_release_has_right_checksums(lab: LabHosts) -> None:
    source = Path(lab.world.endpoints["k3s"]["source"])
    for arch, name in (("amd64", "k3s"), ("arm64", "k3s-arm64")):
        wanted = (source / f"sha256sum-{arch}.txt").read_text().splitlines()
        assert wanted[0] == f"{hashlib.sha256((source / name).read_bytes()).hexdigest()}  {name}"
        assert wanted[1].endswith(f"  k3s-airgap-images-{arch}.tar.zst")
    assert "INSTALL_K3S_" in (source / "install.sh").read_text()


def test_k3s_starts_with_its_settings_stops_and_uninstalls(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
        assert install(lab, driver, host, "server", "node-ip: 10.0.0.11\ndisable: [traefik]\nno-such-key: 1\n") == 0
        version = lab.world.endpoints["k3s"]["version"]
        assert started(lab) == [K3sService("server", version, {"node-ip": ["10.0.0.11"], "disable": ["traefik"]})]
        assert version in driver.run(host, ["k3s", "--version"]).stdout
        assert driver.run(host, ["systemctl", "is-active", "k3s"]).stdout == "active\n"
        assert driver.run(host, ["systemctl", "is-enabled", "k3s"]).stdout == "enabled\n"
        journal = driver.run(host, ["journalctl", "-u", "k3s", "-n", "50", "--no-pager", "-o", "cat"], sudo=True).stdout
        assert "Unknown flag --no-such-key found in config.yaml, skipping" in journal
        driver.run(host, ["systemctl", "stop", "k3s"], sudo=True)
        assert lab.kube.events[-1] == ("stopped", lab.machine().id, None)
        driver.run(host, ["systemctl", "start", "k3s"], sudo=True)
        lab.call(lab.part.reboot(lab.machine().id))
        driver.wait_for_ssh(host, 20)
        eventually(lambda: len(started(lab)) == 3)
        driver.run(host, ["/usr/local/bin/k3s-uninstall.sh"], sudo=True)
        assert lab.kube.events[-2:] == [
            ("stopped", lab.machine().id, None),
            ("uninstalled", lab.machine().id, "server"),
        ]
        assert driver.run(host, ["test", "-e", CONFIG], check=False).exit_status == 1
        assert "KUBE-" not in driver.run(host, ["iptables", "-S"], sudo=True).stdout


def test_k3s_runs_on_when_the_lab_is_restarted(tmp_path: Path) -> None:
    with lab_hosts(tmp_path / "lab") as lab, lab.driver() as driver:
        host = up(lab, driver)
        assert install(lab, driver, host, "server", "node-ip: 10.0.0.11\n") == 0
        before = started(lab)
    with lab_hosts(tmp_path / "lab") as lab, lab.driver() as driver:
        eventually(lambda: started(lab) == before)
        assert driver.run(host, ["systemctl", "is-active", "k3s"]).stdout == "active\n"
        assert lab.part.host(lab.machine().id).state.boots == 1


def test_a_server_that_dies_while_starting_is_a_failed_unit(lab: LabHosts) -> None:
    async def dies(machine: Machine, service: K3sService) -> None:
        lab.part.journal(machine.id, "k3s", 'level=fatal msg="starting kubernetes: no"')

    lab.kube.service_started = dies  # type: ignore[method-assign]
    with lab.driver() as driver:
        host = up(lab, driver)
        assert install(lab, driver, host, "server", "") == 1
        assert driver.run(host, ["systemctl", "is-active", "k3s"], check=False).stdout == "failed\n"


@pytest.mark.parametrize(
    ("role", "config", "binary", "journal"),
    [
        ("server", "node-ip: x\n", "k3s", "Exec format error"),
        ("server", "a: [\n", "k3s-arm64", "yaml"),
        ("agent", "server: https://10.0.0.11:6443\n", "k3s-arm64", "--token is required"),
        ("agent", "token: x\n", "k3s-arm64", "--server is required"),
    ],
)
def test_k3s_that_can_not_start_says_why(lab: LabHosts, role: str, config: str, binary: str, journal: str) -> None:
    unit = "k3s" if role == "server" else "k3s-agent"
    with lab.driver() as driver:
        host = up(lab, driver)
        assert install(lab, driver, host, role, config, binary) == 1
        assert journal in driver.run(host, ["journalctl", "-u", unit, "-o", "cat"], sudo=True).stdout
        assert driver.run(host, ["systemctl", "is-active", unit], check=False).stdout == "failed\n"
        assert started(lab) == []
        if binary == "k3s":
            result = driver.run(host, ["k3s", "--version"], check=False)
            assert result.exit_status == 126
            assert "Exec format error" in result.stderr


def test_an_unknown_flag_on_the_command_line_stops_k3s(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
        source = Path(lab.world.endpoints["k3s"]["source"])
        driver.put(host, source / "k3s-arm64", "/usr/local/bin/k3s", mode=0o755, sudo=True)
        driver.put(host, source / "install.sh", "/tmp/install.sh")
        argv = ["env", "INSTALL_K3S_SKIP_DOWNLOAD=true", "INSTALL_K3S_EXEC=server --no-such", "sh", "/tmp/install.sh"]
        assert driver.run(host, argv, sudo=True, check=False).exit_status == 1
        journal = driver.run(host, ["journalctl", "-u", "k3s", "-o", "cat"], sudo=True).stdout
        assert "flag provided but not defined: -no-such" in journal


def test_k3s_policy_chains_open_forward_as_on_real_hosts(lab: LabHosts) -> None:
    """See the table "Seen on real systemd hosts": FORWARD's REJECT alone does no harm unless policies are disabled."""
    machine = lab.machine()
    with lab.driver() as driver:
        host = up(lab, driver)
        assert not lab.part.firewall_allows(machine.id, "FORWARD", "tcp", 80)
        assert install(lab, driver, host, "server", "disable-network-policy: true\n") == 0
        assert not lab.part.firewall_allows(machine.id, "FORWARD", "tcp", 80)
        driver.run(host, ["/usr/local/bin/k3s-uninstall.sh"], sudo=True)
        assert install(lab, driver, host, "server", "node-ip: 10.0.0.11\n") == 0
        assert lab.part.firewall_allows(machine.id, "FORWARD", "tcp", 80)
        assert not lab.part.firewall_allows(machine.id, "INPUT", "udp", 8472)


# -- the helper --------------------------------------------------------------------------------------------------------
def test_probes_follow_the_rules_of_the_other_machine(lab: LabHosts) -> None:
    with lab.driver() as driver:
        one, two = up(lab, driver), up(lab, driver, "amd-1", 12, arch="amd64")
        for host in (one, two):
            driver.put(host, HELPER, "/tmp/node_helper.py")

        def probe(*targets: str) -> dict[str, str]:
            argv = ["python3", "/tmp/node_helper.py", "probe", *targets, "--size", "8000", "--timeout", "1"]
            return {row["target"]: row["state"] for row in json.loads(driver.run(one, argv).stdout)}

        wanted = ("10.0.0.12:22/tcp", "10.0.0.12:6443/tcp", "10.0.0.12:8472/udp", "10.0.0.99:22/tcp")
        assert tuple(probe(*wanted).values()) == ("open", "rejected", "rejected", "filtered")
        driver.run(two, ["iptables", "-I", "INPUT", "1", "-p", "udp", "--dport", "8472", "-j", "ACCEPT"], sudo=True)
        assert probe("10.0.0.12:8472/udp") == {"10.0.0.12:8472/udp": "refused"}

        heard: list[bytes] = []

        def until_probed() -> Iterator[bytes]:
            eventually(lambda: bool(heard))
            assert probe("10.0.0.12:8472/udp") == {"10.0.0.12:8472/udp": "echo"}
            yield b""

        argv = [
            "python3",
            "/tmp/node_helper.py",
            "listen",
            "--udp",
            "8472",
            "--tcp",
            "22",
            "--seconds",
            "20",
            "--until-eof",
        ]
        driver.stream(two, argv, stdin=until_probed(), stdout=heard.append)
        assert json.loads(b"".join(heard)) == {"listening": ["8472/udp"], "in_use": ["22/tcp"]}
        assert probe("10.0.0.12:8472/udp") == {"10.0.0.12:8472/udp": "refused"}


def test_facts_are_the_machines_and_say_where_they_were_measured(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
        driver.put(host, HELPER, "/tmp/node_helper.py")
        facts = json.loads(driver.run(host, ["python3", "/tmp/node_helper.py", "facts"]).stdout)
    assert (facts["machine"], facts["hostname"], facts["cpus"]) == ("aarch64", "arm-1", 2)
    assert facts["note"].startswith("lab: measured on the machine the lab runs on")


def test_a_micro_measures_as_an_eighth_of_a_cpu(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver, "amd-1", 12, arch="amd64", ocpus=0.125, memory_gb=1)
        driver.put(host, HELPER, "/tmp/node_helper.py")
        argv = ["python3", "/tmp/node_helper.py", "bench", "--seconds", "0.5", "--dir", "/tmp"]
        found = json.loads(driver.run(host, argv).stdout)
    share = found["rounds"][0]["cpu_single"]["cpu_share"]
    assert 0.005 < share < 0.3  # a busy machine gives it less than the eighth
    assert driver.run(host, ["ls", "-A", "/tmp"]).stdout.split() == ["node_helper.py"]


def test_only_the_helper_may_run(lab: LabHosts) -> None:
    with lab.driver() as driver:
        host = up(lab, driver)
        driver.put(host, b"print('hello')\n", "/tmp/other.py")
        assert driver.run(host, ["python3", "/tmp/other.py"], check=False).exit_status == 126
        assert driver.run(host, ["python3", "/tmp/missing.py"], check=False).exit_status == 2
        driver.put(host, b"echo hi\n", "/tmp/script.sh")
        assert driver.run(host, ["sh", "/tmp/script.sh"], check=False).exit_status == 126
        assert driver.run(host, ["sh", "-c", "id"], check=False).exit_status == 2


# -- the Docker host ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def docker_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    with lab_hosts(tmp_path_factory.mktemp("lab"), docker_host=True) as made:
        yield made


@pytest.fixture(scope="module")
def docker(docker_lab: LabHosts) -> Iterator[SshHosts]:
    key = Path(docker_lab.world.endpoints["docker_host"]["key_file"])
    assert key.stat().st_mode & 0o777 == 0o600
    with docker_lab.driver(key=key) as driver:
        yield driver


DOCKER = HostAddress("docker-1", "192.168.1.10", "ubuntu")


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_docker_lists_services_and_volumes(docker: SshHosts) -> None:
    running = rows(docker.run(DOCKER, ["docker", "ps", "-a", "--format", "json"]).stdout)
    assert {row["State"] for row in running} == {"running"}
    assert "homelab-mastodon-web-1" in {row["Names"] for row in running}
    argv = ["docker", "ps", "-a", "--filter", "label=com.docker.compose.service=forgejo", "--format", "json"]
    assert [row["Names"] for row in rows(docker.run(DOCKER, argv).stdout)] == ["homelab-forgejo-1"]
    volumes = [row["Name"] for row in rows(docker.run(DOCKER, ["docker", "volume", "ls", "--format", "json"]).stdout)]
    assert "homelab_mastodon-db" in volumes
    found = json.loads(docker.run(DOCKER, ["docker", "volume", "inspect", "homelab_matomo-db"]).stdout)
    assert found[0]["Mountpoint"] == "/var/lib/docker/volumes/homelab_matomo-db/_data"
    mounts = json.loads(docker.run(DOCKER, ["docker", "inspect", "homelab-mastodon-web-1"]).stdout)[0]["Mounts"]
    assert [(m["Type"], m["Destination"]) for m in mounts] == [("bind", "/mastodon/public/system")]
    assert docker.run(DOCKER, ["docker", "volume", "inspect", "nope"], check=False).exit_status == 1
    assert docker.run(DOCKER, ["docker", "run", "x", "mysqldump"], check=False).exit_status == 127


def test_docker_stops_and_starts_services(docker: SshHosts) -> None:
    docker.run(DOCKER, ["docker", "compose", "-p", "homelab", "stop", "matomo", "matomo-db"])
    states = {
        row["Service"]: row["State"]
        for row in rows(
            docker.run(DOCKER, ["docker", "compose", "-p", "homelab", "ps", "-a", "--format", "json"]).stdout
        )
    }
    assert (states["matomo"], states["matomo-db"], states["forgejo"]) == ("exited", "exited", "running")
    docker.run(DOCKER, ["docker", "compose", "-p", "homelab", "start"])
    running = rows(docker.run(DOCKER, ["docker", "ps", "--format", "json"]).stdout)
    assert "homelab-matomo-1" in {row["Names"] for row in running}
    assert docker.run(DOCKER, ["docker", "stop", "nope"], check=False).exit_status == 1


def test_volume_data_travels_with_owners_links_holes_and_names(
    docker_lab: LabHosts, docker: SshHosts, tmp_path: Path
) -> None:
    folder = "/home/ubuntu/homelab/public/system"
    helper = ["python3", "/tmp/node_helper.py"]
    docker.put(DOCKER, HELPER, "/tmp/node_helper.py")
    assert (
        docker.run(DOCKER, ["ls", "/var/lib/docker/volumes/homelab_matomo-db/_data"], check=False).exit_status == 2
    ), "root's business"
    before = docker.run(DOCKER, [*helper, "digest", folder], sudo=True).stdout
    lines = rows(before)
    by_path = {row.get("path", ""): row for row in lines}
    assert {(row["uid"], row["gid"]) for row in lines if "uid" in row} == {(991, 991)}
    assert max(row.get("size", 0) for row in lines[:-1]) > 5 * 1024**2
    assert [row for row in lines if "hardlink_of" in row]
    assert by_path["latest"]["target"] == "media_attachments/files/113"
    if sys.platform == "linux":
        assert [row for row in lines if "path_b64" in row]
    archive = tmp_path / "archive.tar"
    with archive.open("wb") as file:
        docker.stream(DOCKER, [*helper, "archive", folder], stdout=file, sudo=True)
    docker.run(DOCKER, ["mkdir", "-p", "/srv/copy"], sudo=True)
    with archive.open("rb") as file:
        docker.stream(DOCKER, [*helper, "extract", "/srv/copy", "--clean"], stdin=file, sudo=True)
    after = docker.run(DOCKER, [*helper, "digest", "/srv/copy"], sudo=True).stdout
    assert rows(after)[-1]["sha256"] == rows(before)[-1]["sha256"]
    assert docker.run(DOCKER, ["stat", "-c", "%u:%g", "/srv/copy/cache/index.db"], sudo=True).stdout == "991:991\n"
    real = docker_lab.part.folder("docker-1") / "srv/copy/cache/index.db"
    assert real.stat().st_blocks * 512 < real.stat().st_size, "holes stay holes"
    shutil.rmtree(os.fsencode(docker_lab.part.folder("docker-1") / "srv/copy"))


def test_a_source_changed_during_the_copy_shows(docker_lab: LabHosts, docker: SshHosts) -> None:
    folder = "/var/lib/docker/volumes/homelab_teamspeak/_data"
    helper = ["python3", "/tmp/node_helper.py"]
    docker.put(DOCKER, HELPER, "/tmp/node_helper.py")
    before = docker.run(DOCKER, [*helper, "digest", folder], sudo=True).stdout
    docker_lab.world.faults.ask("source-changed", 1, "teamspeak")
    docker.stream(DOCKER, [*helper, "archive", folder], sudo=True)
    assert docker.run(DOCKER, [*helper, "digest", folder], sudo=True).stdout != before


def test_the_default_services_are_those_of_the_compose_file() -> None:
    compose = Path(__file__).parents[2] / "params" / "services" / "compose.yaml"
    assert read_project(compose) == default_project()


def test_a_compose_file_says_what_runs(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(
        "name: demo\nservices:\n"
        "  db: {image: mariadb, volumes: ['data:/var/lib/mysql:ro', './conf:/etc/mysql']}\n"
        "  app: {build: ., volumes: [{type: volume, source: data, target: /d}, {type: tmpfs, target: /t}]}\n"
        "volumes: {data: {}}\n"
    )
    project = read_project(path)
    assert project.services["db"].mounts == (
        Mount("volume", "data", "/var/lib/mysql", True),
        Mount("bind", "/home/ubuntu/demo/conf", "/etc/mysql"),
    )
    assert project.services["app"].image == "demo-app"
    assert project.services["app"].mounts == (Mount("volume", "data", "/d"),)
