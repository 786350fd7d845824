"""A lab Oracle in a thread, hosts that only remember what was asked of them, and the official SDK pointed at it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import oci

from hybridlab.lab.oracle import OraclePart
from hybridlab.lab.world import Clock, Faults, Machine, RequestLog, World

T = TypeVar("T")
SPEED = 20.0
_KEY: list[bytes] = []  # making an RSA key is slow: the first lab's serves all
A1, MICRO = "VM.Standard.A1.Flex", "VM.Standard.E2.1.Micro"


class RememberingHosts:
    """Stands in for the lab's hosts."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.done: list[tuple[str, str]] = []

    async def power_on(self, machine: Machine) -> None:
        self.machines[machine.id] = machine
        self.done.append(("power_on", machine.id))

    async def power_off(self, machine_id: str) -> None:
        self.done.append(("power_off", machine_id))

    async def reboot(self, machine_id: str) -> None:
        self.done.append(("reboot", machine_id))

    async def destroy(self, machine_id: str) -> None:
        self.machines.pop(machine_id, None)
        self.done.append(("destroy", machine_id))


class GatedClock(Clock):
    """A clock that can be held: with ``budget`` n, only n more waits come to their end."""

    budget: int | None = None

    async def takes(self, seconds: float) -> None:
        await super().takes(seconds)
        while self.budget is not None and self.budget <= 0:
            await asyncio.sleep(0.005)
        if self.budget is not None:
            self.budget -= 1


class OracleLab:
    """Runs a world with the Oracle part only. ``stop`` and ``start`` again keep its state."""

    def __init__(self, directory: Path, allowance: str = "until-2026-06") -> None:
        self.directory = directory
        self.allowance = allowance
        if _KEY:
            (directory / "oci").mkdir()
            (directory / "oci" / "api_key.pem").write_bytes(_KEY[0])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        _KEY[:] = _KEY or [(directory / "oci" / "api_key.pem").read_bytes()]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def start(self) -> None:
        self.clock = GatedClock(SPEED)
        self.world = World(self.directory, self.clock, Faults(), RequestLog(self.directory / "requests.jsonl"))
        self.hosts = RememberingHosts()
        self.world.hosts = self.hosts  # type: ignore[assignment]
        self.part = OraclePart(self.allowance)
        self.run(self.part.start(self.world))
        told = self.world.endpoints["oracle"]
        self.endpoint = str(told["endpoint"])
        self.config = oci.config.from_file(told["config_file"], told["profile"])
        self.tenancy = str(self.config["tenancy"])
        self._clients: dict[Any, Any] = {}

    def stop(self) -> None:
        self.run(self.part.stop())
        self.run(self.world.cancel_tasks())
        self.world.log.close()

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    # -- the SDK ---------------------------------------------------------------------------------------------------
    def _client(self, kind: Any) -> Any:
        if kind not in self._clients:
            self._clients[kind] = kind(
                self.config, service_endpoint=self.endpoint, retry_strategy=oci.retry.NoneRetryStrategy()
            )
        return self._clients[kind]

    @property
    def compute(self) -> Any:
        return self._client(oci.core.ComputeClient)

    @property
    def network(self) -> Any:
        return self._client(oci.core.VirtualNetworkClient)

    @property
    def volumes(self) -> Any:
        return self._client(oci.core.BlockstorageClient)

    @property
    def identity(self) -> Any:
        return self._client(oci.identity.IdentityClient)

    @property
    def limits(self) -> Any:
        return self._client(oci.limits.LimitsClient)

    @property
    def quotas(self) -> Any:
        return self._client(oci.limits.QuotasClient)

    @property
    def search(self) -> Any:
        return self._client(oci.resource_search.ResourceSearchClient)

    # -- shortcuts -------------------------------------------------------------------------------------------------
    def domains(self) -> list[str]:
        return [ad.name for ad in self.identity.list_availability_domains(self.tenancy).data]

    def make_network(self, *, public: bool = True, name: str = "net") -> Net:
        return Net(self, public=public, name=name)

    def image(self, shape: str, os: str = "Canonical Ubuntu", version: str = "24.04") -> Any:
        found = oci.pagination.list_call_get_all_results(
            self.compute.list_images,
            self.tenancy,
            operating_system=os,
            operating_system_version=version,
            shape=shape,
            sort_by="TIMECREATED",
            sort_order="DESC",
            lifecycle_state="AVAILABLE",
        ).data
        return next(image for image in found if "GPU" not in image.display_name)

    def details(self, subnet_id: str, shape: str = A1, **changes: Any) -> Any:
        """Launch details that are accepted; ``changes`` replaces fields."""
        models = oci.core.models
        vnic = {"subnet_id": subnet_id, "assign_public_ip": True, **changes.pop("vnic", {})}
        fields: dict[str, Any] = {
            "availability_domain": self.domains()[1],
            "compartment_id": self.tenancy,
            "display_name": "node",
            "shape": shape,
            "source_details": models.InstanceSourceViaImageDetails(
                image_id=changes.pop("image_id", None) or self.image(shape).id,
                boot_volume_size_in_gbs=changes.pop("boot_gb", 50),
            ),
            "create_vnic_details": models.CreateVnicDetails(**vnic),
            "metadata": {"ssh_authorized_keys": "ssh-ed25519 AAAA someone"},
        }
        size = changes.pop("size", (1, 6))
        if shape == A1:
            fields["shape_config"] = models.LaunchInstanceShapeConfigDetails(ocpus=size[0], memory_in_gbs=size[1])
        return models.LaunchInstanceDetails(**{**fields, **changes})

    def launch(self, subnet_id: str, shape: str = A1, **changes: Any) -> Any:
        return self.compute.launch_instance(self.details(subnet_id, shape, **changes)).data

    def running(self, subnet_id: str, shape: str = A1, **changes: Any) -> Any:
        """Launch and wait until its machine is on."""
        instance = self.launch(subnet_id, shape, **changes)
        eventually(lambda: instance.id in self.hosts.machines)
        return self.compute.get_instance(instance.id).data

    def state(self, instance_id: str) -> str:
        return str(self.compute.get_instance(instance_id).data.lifecycle_state)

    def vnic_of(self, instance_id: str) -> Any:
        attachment = self.compute.list_vnic_attachments(self.tenancy, instance_id=instance_id).data[0]
        return self.network.get_vnic(attachment.vnic_id).data

    def requests(self) -> list[dict[str, Any]]:
        lines = (self.directory / "requests.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


class Net:
    """A VCN with internet gateway, route, group and subnet, made as the facts order it."""

    def __init__(self, lab: OracleLab, *, public: bool, name: str) -> None:
        models, network = oci.core.models, lab.network
        self.vcn = network.create_vcn(
            models.CreateVcnDetails(
                compartment_id=lab.tenancy, cidr_blocks=["10.0.0.0/16"], dns_label="net", display_name=name
            )
        ).data
        self.gateway = network.create_internet_gateway(
            models.CreateInternetGatewayDetails(compartment_id=lab.tenancy, vcn_id=self.vcn.id, is_enabled=True)
        ).data
        rule = models.RouteRule(
            destination="0.0.0.0/0", destination_type="CIDR_BLOCK", network_entity_id=self.gateway.id
        )
        network.update_route_table(
            self.vcn.default_route_table_id, models.UpdateRouteTableDetails(route_rules=[rule] if public else [])
        )
        self.group = network.create_network_security_group(
            models.CreateNetworkSecurityGroupDetails(compartment_id=lab.tenancy, vcn_id=self.vcn.id, display_name=name)
        ).data
        self.subnet = network.create_subnet(
            models.CreateSubnetDetails(
                compartment_id=lab.tenancy, vcn_id=self.vcn.id, cidr_block="10.0.1.0/24", dns_label="sub"
            )
        ).data


def eventually(condition: Callable[[], Any], deadline_s: float = 5.0) -> Any:
    """Poll until the condition holds; its value is returned."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)
    return value


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The ServiceError that a call ends with."""
    try:
        call(*args, **kwargs)
    except oci.exceptions.ServiceError as error:
        return error
    raise AssertionError("the call was accepted")
