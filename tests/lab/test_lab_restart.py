"""A lab whose K3s runs, stopped and started: the cluster runs on, at once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import kubernetes as sdk
from asyncssh import generate_private_key

from hybridlab.lab.directory import LabDirectory
from hybridlab.lab.hosts.k3s_service import BINARY, install, start_k3s
from hybridlab.lab.server import LabServer
from hybridlab.lab.world import Machine, World

PARTS = ("registry", "s3", "kube", "hosts")
START_GOAL_S = 3.0


def machine() -> Machine:
    key = generate_private_key("ssh-ed25519").export_public_key().decode()
    return Machine(
        id="ocid1.instance.arm-1", name="arm-1", arch="arm64", ocpus=2, memory_gb=12, boot_volume_gb=50,
        private_ip="10.0.0.11", public_ip="203.0.113.11", user="ubuntu", authorized_keys=(key,),
        image="Canonical-Ubuntu-24.04-aarch64",
    )  # fmt: skip


async def boot_a_server(lab: LabServer) -> None:
    hosts: Any = lab.parts["hosts"]
    await hosts.power_on(machine())
    async with asyncio.timeout(10):
        while lab.world.resolve("arm-1") is None:
            await asyncio.sleep(0.02)
    host = hosts.host(machine().id)
    source = Path(lab.world.endpoints["k3s"]["source"])
    host.files.put(BINARY, (source / "k3s-arm64").read_text(), 0o755)
    host.files.put("/etc/rancher/k3s/config.yaml", "node-ip: 10.0.0.11\n", 0o600)
    install(host, "server", [], {})
    assert await start_k3s(host, "server")


def core(world: World) -> Any:
    """A client of the API as it listens now."""
    kubeconfig = world.directory / "hosts" / machine().id / "etc/rancher/k3s/k3s.yaml"
    text = kubeconfig.read_text().replace("127.0.0.1:6443", f"127.0.0.1:{world.endpoints['kube']['port']}")
    copy = world.directory / "kubeconfig"
    copy.write_text(text)
    connect: Any = sdk.config.new_client_from_config
    return sdk.client.CoreV1Api(connect(str(copy)))


def test_k3s_runs_on_after_stop_and_start(tmp_path: Path) -> None:
    folder = LabDirectory(tmp_path / "lab")
    folder.prepare()

    async def first() -> tuple[str, str, int]:
        lab = LabServer(folder, speed=50)
        try:
            await lab.start(PARTS, None)
            await boot_a_server(lab)
            made = await asyncio.to_thread(
                core(lab.world).create_namespaced_config_map, "default", {"metadata": {"name": "kept"}}
            )
            return made.metadata.uid, made.metadata.resource_version, lab.world.endpoints["kube"]["port"]
        finally:
            await lab.stop()

    async def second() -> tuple[str, str, int, float]:
        lab = LabServer(folder, speed=1)  # where K3s itself takes seconds to start
        begun = time.monotonic()
        try:
            await lab.start(PARTS, None)
            took = time.monotonic() - begun
            assert lab.world.clock.speed == 1
            found = await asyncio.to_thread(core(lab.world).read_namespaced_config_map, "kept", "default")
            return found.metadata.uid, found.metadata.resource_version, lab.world.endpoints["kube"]["port"], took
        finally:
            await lab.stop()

    before, after = asyncio.run(first()), asyncio.run(second())
    assert after[:3] == before
    assert after[3] < START_GOAL_S
