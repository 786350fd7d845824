"""The questions the Oracle driver asks: what the account may have, and what is in the compartment."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hybridlab.drivers import _oracle_models as convert
from hybridlab.drivers._oracle_calls import PAGE, Caller, make_client, read_config
from hybridlab.errors import NotFound
from hybridlab.models import (
    Arch,
    CloudImage,
    CloudInstance,
    CloudResource,
    Limit,
    SecurityRule,
    ShapeInfo,
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
    ) -> None:
        from oci.core import BlockstorageClient, ComputeClient, VirtualNetworkClient
        from oci.identity import IdentityClient
        from oci.limits import LimitsClient

        config = read_config(config_file, profile)
        self._tenancy = str(config["tenancy"])
        self._compartment = compartment or self._tenancy
        self._caller = Caller(clock or SystemClock(), rng or random.Random())
        self._identity = make_client(IdentityClient, config, endpoint)
        self._compute = make_client(ComputeClient, config, endpoint)
        self._network = make_client(VirtualNetworkClient, config, endpoint)
        self._storage = make_client(BlockstorageClient, config, endpoint)
        self._limits = make_client(LimitsClient, config, endpoint)
        self._domains: tuple[str, ...] = ()
        self._shapes: tuple[ShapeInfo, ...] = ()
        self._images: dict[tuple[str, str, str, str], CloudImage] = {}
        self._vnics: dict[str, Any] = {}

    @property
    def calls(self) -> int:
        """Requests made so far."""
        return self._caller.calls

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
    def instances(self) -> tuple[CloudInstance, ...]:
        listed = self._list(self._compute.list_instances, "instances")
        found = [machine for machine in listed if machine.lifecycle_state not in convert.GONE]
        if not found:
            return ()
        attached: dict[str, Any] = {}
        for vnic in self._list(self._compute.list_vnic_attachments, "VNIC attachments"):
            if vnic.lifecycle_state == "ATTACHED" and vnic.vnic_id:
                # the primary VNIC comes first in time; secondary ones are not ours
                first = attached.setdefault(vnic.instance_id, vnic)
                attached[vnic.instance_id] = min(first, vnic, key=lambda v: v.time_created)
        attachments = self._boot_attachments(machine.availability_domain for machine in found)
        volumes = {a.instance_id: a.boot_volume_id for a in attachments}
        sizes = {v.id: int(v.size_in_gbs) for v in self._boot_volumes()}
        return tuple(
            convert.instance(
                machine,
                self._vnic(attached[machine.id].vnic_id) if machine.id in attached else None,
                volumes.get(machine.id),
                sizes.get(volumes.get(machine.id)),
            )
            for machine in found
        )

    def _vnic(self, vnic_id: str) -> Any:
        """A VNIC, asked for once it has all its addresses; None when it went away meanwhile."""
        if vnic_id in self._vnics:
            return self._vnics[vnic_id]
        try:
            vnic = self._caller.read(self._network.get_vnic, vnic_id, what="read a VNIC", about=vnic_id).data
        except NotFound:
            return None
        if vnic.public_ip:
            self._vnics[vnic_id] = vnic
        return vnic

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

    def _boot_volumes(self) -> list[Any]:
        return self._list(self._storage.list_boot_volumes, "boot volumes", named=True)

    def resources(self) -> tuple[CloudResource, ...]:
        found: list[CloudResource] = []
        for kind, call in self._network_lists().items():
            listed = self._list(call, f"{kind}s", named=kind == "nsg")
            found += [convert.network_resource(kind, r) for r in listed if r.lifecycle_state not in convert.GONE]
        volumes = [v for v in self._boot_volumes() if v.lifecycle_state not in convert.GONE]
        used = {a.boot_volume_id for a in self._boot_attachments(v.availability_domain for v in volumes)}
        for volume in volumes:
            detail = {"size_gb": int(volume.size_in_gbs), "availability_domain": volume.availability_domain}
            found.append(convert.resource("boot-volume", volume, attached=volume.id in used, **detail))
        return tuple(found)

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


def _image_arch(name: str) -> Arch:
    return "arm64" if "aarch64" in name.lower() else "amd64"
