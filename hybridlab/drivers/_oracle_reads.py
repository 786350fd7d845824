"""The questions the Oracle driver asks: what the account may have, and what is in the compartment."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hybridlab.drivers import _oracle_models as convert
from hybridlab.drivers._oracle_calls import PAGE, Caller, make_client, read_config
from hybridlab.drivers._oracle_memory import Address, Memory
from hybridlab.errors import NotFound
from hybridlab.models import (
    Arch,
    CloudImage,
    CloudInstance,
    CloudResource,
    Limit,
    SecurityRule,
    ShapeInfo,
    Survey,
)
from hybridlab.wait import Clock, SystemClock

AD_LIMITS = (
    ("compute", "standard-a1-core-count"),
    ("compute", "standard-a1-memory-count"),
    ("compute", "standard-e2-micro-core-count"),
)
REGIONAL_LIMITS = (
    ("compute", "standard-a1-core-regional-count"),
    ("compute", "standard-a1-memory-regional-count"),
    ("block-storage", "total-free-storage-gb-regional"),
    ("vcn", "vcn-count"),
)


class Reads:
    """The reading half of OracleDriver."""

    def __init__(
        self,
        *,
        config_file: str | None,
        profile: str,
        endpoint: str | None,
        compartment: str | None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        memory: Path | None = None,
    ) -> None:
        from oci.core import BlockstorageClient, ComputeClient, VirtualNetworkClient
        from oci.identity import IdentityClient
        from oci.limits import LimitsClient

        config = read_config(config_file, profile)
        self._tenancy = str(config["tenancy"])
        self._compartment = compartment or self._tenancy
        self._clock = clock or SystemClock()
        self._memory = Memory(memory, f"{config['region']} {self._compartment}")
        self._caller = Caller(self._clock, rng or random.Random(), self._memory.change)
        self._identity = make_client(IdentityClient, config, endpoint)
        self._compute = make_client(ComputeClient, config, endpoint)
        self._network = make_client(VirtualNetworkClient, config, endpoint)
        self._storage = make_client(BlockstorageClient, config, endpoint)
        self._limits = make_client(LimitsClient, config, endpoint)
        self._domains: tuple[str, ...] = ()
        self._shapes: tuple[ShapeInfo, ...] = ()
        self._images: dict[tuple[str, str, str, str], CloudImage] = {}

    @property
    def calls(self) -> int:
        """Requests made so far."""
        return self._caller.calls

    def close(self) -> None:
        for client in (self._identity, self._compute, self._network, self._storage, self._limits):
            client.base_client.session.close()

    # -- the account -----------------------------------------------------------------------------------------------
    def availability_domains(self) -> tuple[str, ...]:
        if not self._domains:
            found = self._caller.pages(
                self._identity.list_availability_domains,
                self._compartment,
                what="list availability domains",
                about=f"compartment {self._compartment}",
            )
            self._domains = tuple(sorted(d.name for d in found))
        return self._domains

    def shapes(self) -> tuple[ShapeInfo, ...]:
        if not self._shapes:
            found: list[ShapeInfo] = []
            for domain in self.availability_domains():
                listed = self._list(self._compute.list_shapes, "shapes", availability_domain=domain)
                # the same shape is listed once for each kind of hardware behind it
                found += {s.shape: convert.shape(s, domain) for s in listed}.values()
            self._shapes = tuple(found)
        return self._shapes

    def limits(self) -> tuple[Limit, ...]:
        """The limits that matter to a free-tier cluster; those that can't be looked up are left out."""
        wanted = [(s, n, d) for s, n in AD_LIMITS for d in self.availability_domains()]
        wanted += [(s, n, "") for s, n in REGIONAL_LIMITS]
        with ThreadPoolExecutor(4) as pool:
            return tuple(limit for limit in pool.map(lambda args: self._limit(*args), wanted) if limit)

    def _limit(self, service: str, name: str, domain: str) -> Limit | None:
        scope = {"availability_domain": domain} if domain else {}
        try:
            found = self._caller.read(
                self._limits.get_resource_availability,
                service,
                name,
                self._tenancy,
                what="look a limit up",
                about=f"{service} {name} {domain}".strip(),
                **scope,
            ).data
        except NotFound:  # availability isn't supported for this limit
            return None
        used = found.fractional_usage if found.fractional_usage is not None else found.used
        left = found.fractional_availability if found.fractional_availability is not None else found.available
        return Limit(name, domain or None, float(used or 0), float(left or 0))

    def newest_image(self, shape: str, arch: Arch, *, os: str, version: str) -> CloudImage:
        """The newest platform image of an operating system for a shape. Raises NotFound, also when only images of
        another architecture are listed."""
        key = (shape, arch, os, version)
        if key not in self._images:
            listed = self._list(
                self._compute.list_images,
                "images",
                operating_system=os,
                operating_system_version=version,
                shape=shape,
                sort_by="TIMECREATED",
                sort_order="DESC",
                lifecycle_state="AVAILABLE",
            )
            fitting = [i for i in listed if _image_arch(i.display_name) == arch and "GPU" not in i.display_name]
            if not fitting:
                raise NotFound(
                    f"no {os} {version} image for {arch}",
                    status=404,
                    where=shape,
                    why=f"listed: {', '.join(i.display_name for i in listed[:3]) or 'none'}",
                    next_move="choose another version of the operating system",
                )
            newest = max(fitting, key=lambda i: i.time_created)
            self._images[key] = CloudImage(newest.id, newest.display_name, newest.time_created.isoformat())
        return self._images[key]

    def capacity(self, availability_domain: str, shape: str, ocpus: float, memory_gb: float) -> str:
        from oci.core import models as m

        wanted: dict[str, Any] = {"instance_shape": shape}
        if shape.endswith(".Flex"):
            wanted["instance_shape_config"] = m.CapacityReportInstanceShapeConfig(ocpus=ocpus, memory_in_gbs=memory_gb)
        details = m.CreateComputeCapacityReportDetails(
            compartment_id=self._tenancy,
            availability_domain=availability_domain,
            shape_availabilities=[m.CreateCapacityReportShapeAvailabilityDetails(**wanted)],
        )
        report = self._caller.read(
            self._compute.create_compute_capacity_report,
            details,
            what="report on capacity",
            about=f"{shape} in {availability_domain}",
        ).data
        return str(report.shape_availabilities[0].availability_status)

    # -- what is there ---------------------------------------------------------------------------------------------
    def survey(self, tags: Mapping[str, str], *, max_age_s: float = 0.0) -> Survey:
        """Machines, networks and volumes at once, each listed once, and the rules of security groups with these tags.

        ``max_age_s``: an earlier survey will do that is no older, if nothing in it was on its way and nothing was
        changed by us since.
        """
        kept = self._memory.survey(not_before=self._clock.now() - max_age_s) if max_age_s > 0 else None
        if kept is not None:
            return kept
        begin = self._clock.now()
        machines, volumes = self._machines(), self._boot_volumes()
        volume_of = self._volume_of(machines, volumes)
        resources = (*self._network_resources(), *_volume_resources(volumes, set(volume_of.values())))
        groups = [r.id for r in resources if r.kind == "nsg" and tags.items() <= r.tags.items()]
        rules = {ident: self.rules(ident) for ident in groups}
        survey = Survey(self._instances(machines, volumes, volume_of), resources, rules, begin)
        self._memory.keep(survey)
        return survey

    def last_survey(self, max_age_s: float) -> Survey | None:
        """The last survey of any process of this cluster that is no older and still holds; asks nothing."""
        return self._memory.survey_of_any(not_before=self._clock.now() - max_age_s)

    def instances(self, *, max_age_s: float = 0.0) -> tuple[CloudInstance, ...]:
        kept = self._memory.survey(not_before=self._clock.now() - max_age_s) if max_age_s > 0 else None
        if kept is not None:
            return kept.instances
        machines = self._machines()
        if not machines:
            return ()
        volumes = self._boot_volumes()
        return self._instances(machines, volumes, self._volume_of(machines, volumes))

    def resources(self) -> tuple[CloudResource, ...]:
        networks, volumes = self._network_resources(), self._boot_volumes()
        used = {a.boot_volume_id for a in self._boot_attachments(v.availability_domain for v in volumes)}
        return (*networks, *_volume_resources(volumes, used))

    def _machines(self) -> list[Any]:
        listed = self._list(self._compute.list_instances, "instances")
        return [machine for machine in listed if machine.lifecycle_state not in convert.GONE]

    def _boot_volumes(self) -> list[Any]:
        listed = self._list(self._storage.list_boot_volumes, "boot volumes", named=True)
        return [volume for volume in listed if volume.lifecycle_state not in convert.GONE]

    def _instances(
        self, machines: Sequence[Any], volumes: Sequence[Any], volume_of: Mapping[str, str]
    ) -> tuple[CloudInstance, ...]:
        sizes = {v.id: int(v.size_in_gbs) for v in volumes}
        addresses = self._addresses(machines)
        public = self._public_addresses(machines, addresses)
        return tuple(
            convert.instance(
                machine,
                addresses.get(machine.id),
                public.get(machine.id),
                volume_of.get(machine.id),
                sizes.get(volume_of.get(machine.id, "")),
            )
            for machine in machines
        )

    # -- which volume is whose -------------------------------------------------------------------------------------
    def _volume_of(self, machines: Sequence[Any], volumes: Sequence[Any]) -> dict[str, str]:
        """The boot volume of each machine. Attachments are asked for by domain, and only where tags don't tell."""
        found: dict[str, str] = {}
        for domain in sorted({x.availability_domain for x in (*machines, *volumes)}):
            told = told_by_tags(
                [m for m in machines if m.availability_domain == domain],
                [v for v in volumes if v.availability_domain == domain],
            )
            if told is None:
                told = {a.instance_id: a.boot_volume_id for a in self._boot_attachments([domain])}
            found |= told
        return found

    def _boot_attachments(self, domains: Iterable[str]) -> list[Any]:
        found: list[Any] = []
        for domain in sorted(set(domains)):
            found += self._caller.pages(
                self._compute.list_boot_volume_attachments,
                domain,
                self._compartment,
                what="list boot volume attachments",
                about=f"compartment {self._compartment} in {domain}",
                limit=PAGE,
            )
        return [a for a in found if a.lifecycle_state in ("ATTACHING", "ATTACHED", "DETACHING")]

    # -- which address is whose ------------------------------------------------------------------------------------
    def _addresses(self, machines: Sequence[Any]) -> dict[str, Address]:
        """The primary VNIC of each machine that has one by now; asked for once in a machine's life."""
        known = {m.id: address for m in machines if (address := self._memory.address(m.id))}
        missing = {m.id for m in machines if m.lifecycle_state != "PROVISIONING"} - set(known)
        if not missing:
            return known
        first: dict[str, Any] = {}
        for vnic in self._list(self._compute.list_vnic_attachments, "VNIC attachments"):
            if vnic.lifecycle_state == "ATTACHED" and vnic.vnic_id and vnic.instance_id in missing:
                # the primary VNIC comes first in time; secondary ones are not ours
                first[vnic.instance_id] = min(first.get(vnic.instance_id, vnic), vnic, key=lambda v: v.time_created)
        private: dict[str, Any] = {}
        for subnet in sorted({vnic.subnet_id for vnic in first.values()}):
            for address in self._private_ips(subnet):
                if address.is_primary:
                    private[address.vnic_id] = address
        learnt = {}
        for ident, vnic in first.items():
            if vnic.vnic_id in private:
                address = private[vnic.vnic_id]
                learnt[ident] = Address(vnic.vnic_id, vnic.subnet_id, address.ip_address, address.id)
        self._memory.learn(learnt, alive=[m.id for m in machines])
        return known | learnt

    def _private_ips(self, subnet_id: str) -> list[Any]:
        call, about = self._network.list_private_ips, f"subnet {subnet_id}"
        try:
            return self._caller.pages(call, what="list private IPs", about=about, subnet_id=subnet_id, limit=PAGE)
        except NotFound:  # it went away meanwhile, or belongs to somebody who doesn't show it
            return []

    def _public_addresses(self, machines: Sequence[Any], addresses: Mapping[str, Address]) -> dict[str, str]:
        """Public addresses by machine: ephemeral ones by domain, a reserved one from its VNIC."""
        by_private_ip: dict[str, str] = {}
        for domain in sorted({m.availability_domain for m in machines if m.id in addresses}):
            listed = self._caller.pages(
                self._network.list_public_ips,
                "AVAILABILITY_DOMAIN",
                self._compartment,
                availability_domain=domain,
                lifetime="EPHEMERAL",
                what="list public IPs",
                about=f"compartment {self._compartment} in {domain}",
                limit=PAGE,
            )
            by_private_ip |= {p.assigned_entity_id: p.ip_address for p in listed if p.assigned_entity_id}
        found = {ident: by_private_ip.get(a.private_ip_id) or self._vnic_public(a) for ident, a in addresses.items()}
        return {ident: address for ident, address in found.items() if address}

    def _vnic_public(self, address: Address) -> str | None:
        call, vnic = self._network.get_vnic, address.vnic_id
        try:
            found = self._caller.read(call, vnic, what="read a VNIC", about=vnic).data.public_ip
        except NotFound:  # it went away meanwhile
            return None
        return str(found) if found else None

    # -- the network -----------------------------------------------------------------------------------------------
    def _network_resources(self) -> list[CloudResource]:
        found: list[CloudResource] = []
        for kind, call in self._network_lists().items():
            listed = self._list(call, f"{kind}s", named=kind == "nsg")
            found += [convert.network_resource(kind, r) for r in listed if r.lifecycle_state not in convert.GONE]
        return found

    def _network_lists(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "vcn": self._network.list_vcns,
            "internet-gateway": self._network.list_internet_gateways,
            "route-table": self._network.list_route_tables,
            "security-list": self._network.list_security_lists,
            "nsg": self._network.list_network_security_groups,
            "subnet": self._network.list_subnets,
        }

    def rules(self, nsg_id: str) -> tuple[SecurityRule, ...]:
        listed = self._caller.pages(
            self._network.list_network_security_group_security_rules,
            nsg_id,
            what="list the rules of a security group",
            about=nsg_id,
            limit=PAGE,
        )
        return tuple(convert.security_rule(r, nsg_id) for r in listed)

    def _list(self, call: Callable[..., Any], plural: str, *, named: bool = False, **options: Any) -> list[Any]:
        """Everything of one kind in the compartment; ``named``: the SDK wants the compartment by keyword."""
        args = () if named else (self._compartment,)
        if named:
            options["compartment_id"] = self._compartment
        about = f"compartment {self._compartment}"
        return self._caller.pages(call, *args, what=f"list {plural}", about=about, limit=PAGE, **options)


def told_by_tags(machines: Sequence[Any], volumes: Sequence[Any]) -> dict[str, str] | None:
    """The volume of each machine of one domain, where their tags tell it; None where attachments must be asked for.

    Once attached a volume gets its VM's tags from us, and a VM that runs has its boot volume. So where each machine
    runs and exactly one volume carries its tags, and no volume is left over, that one is it.
    """
    running = all(m.lifecycle_state == "RUNNING" for m in machines)
    if not running or len(machines) != len(volumes) or any(v.lifecycle_state != "AVAILABLE" for v in volumes):
        return None
    found = {}
    for machine in machines:
        tags = machine.freeform_tags or {}
        fitting = [v.id for v in volumes if tags and tags.items() <= (v.freeform_tags or {}).items()]
        if len(fitting) != 1:
            return None
        found[machine.id] = fitting[0]
    return found if len(set(found.values())) == len(volumes) else None


def _volume_resources(volumes: Sequence[Any], used: set[str]) -> list[CloudResource]:
    found = []
    for volume in volumes:
        detail = {"size_gb": int(volume.size_in_gbs), "availability_domain": volume.availability_domain}
        found.append(convert.resource("boot-volume", volume, attached=volume.id in used, **detail))
    return found


def _image_arch(name: str) -> Arch:
    return "arm64" if "aarch64" in name.lower() else "amd64"
