"""Oracle Cloud through the oci SDK: one compartment's networks, VMs and boot volumes, and what the account may have.

Questions are in _oracle_reads; here is what changes something. Changes are asked for once and never repeated by the
driver: whether to try again is the stage's decision, which looks first.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from hybridlab.drivers import _oracle_models as convert
from hybridlab.drivers._oracle_reads import Reads
from hybridlab.errors import BadInput
from hybridlab.models import CloudInstance, CloudResource, LaunchRequest, SecurityRule

log = logging.getLogger(__name__)
T = TypeVar("T")

RULES_A_CALL = 25  # Oracle's bound for adding and removing rules of a security group
EVERYWHERE = "0.0.0.0/0"
METADATA_MAX = 32_000  # bytes of all metadata of a VM together


class OracleDriver(Reads):
    """One compartment. ``compartment`` None is the tenancy's root; ``endpoint`` replaces every service's address (lab).

    Availability domains, shapes, images and private addresses don't change and are asked for once; ``memory`` is a
    file in which other processes find what this one saw. ``calls`` counts requests. Raises BadInput for a config file,
    profile or key that can't be used.
    """

    # -- network ---------------------------------------------------------------------------------------------------
    def create_vcn(self, name: str, cidr: str, tags: Mapping[str, str]) -> CloudResource:
        from oci.core import models as m

        details = m.CreateVcnDetails(cidr_blocks=[cidr], dns_label=convert.dns_label(name), **self._owned(name, tags))
        return self._create("vcn", self._network.create_vcn, details, name)

    def create_internet_gateway(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource:
        from oci.core import models as m

        details = m.CreateInternetGatewayDetails(vcn_id=vcn_id, is_enabled=True, **self._owned(name, tags))
        return self._create("internet-gateway", self._network.create_internet_gateway, details, name, vcn_id)

    def create_nsg(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource:
        from oci.core import models as m

        details = m.CreateNetworkSecurityGroupDetails(vcn_id=vcn_id, **self._owned(name, tags))
        return self._create("nsg", self._network.create_network_security_group, details, name, vcn_id)

    def create_subnet(self, name: str, vcn_id: str, cidr: str, tags: Mapping[str, str]) -> CloudResource:
        from oci.core import models as m

        details = m.CreateSubnetDetails(
            vcn_id=vcn_id, cidr_block=cidr, dns_label=convert.dns_label(name), **self._owned(name, tags)
        )
        return self._create("subnet", self._network.create_subnet, details, name, vcn_id)

    def _owned(self, name: str, tags: Mapping[str, str]) -> dict[str, Any]:
        return {"compartment_id": self._compartment, "display_name": name, "freeform_tags": dict(tags)}

    def _create(self, kind: str, call: Callable[..., Any], details: Any, name: str, inside: str = "") -> CloudResource:
        about = f"{name} in {inside or self._compartment}"
        made = self._caller.once(call, details, what=f"create a {kind}", about=about).data
        log.info("created %s %s (%s)", kind, name, made.id)
        return convert.network_resource(kind, made)

    def set_default_route(self, route_table_id: str, gateway_id: str) -> None:
        """Route 0.0.0.0/0 to the gateway, keeping rules for other destinations. Conflict if it changed meanwhile."""
        from oci.core import models as m

        def keeping_others(rules: Sequence[Any]) -> list[Any]:
            kept = [r for r in rules if (r.destination or r.cidr_block) != EVERYWHERE]
            ours = m.RouteRule(destination=EVERYWHERE, destination_type="CIDR_BLOCK", network_entity_id=gateway_id)
            return [*kept, ours]

        self._change_routes(route_table_id, keeping_others)

    def _change_routes(self, route_table_id: str, change: Callable[[Sequence[Any]], list[Any]]) -> None:
        from oci.core import models as m

        found = self._caller.read(
            self._network.get_route_table, route_table_id, what="read a route table", about=route_table_id
        )
        self._caller.once(
            self._network.update_route_table,
            route_table_id,
            m.UpdateRouteTableDetails(route_rules=change(found.data.route_rules or [])),
            if_match=found.headers.get("etag"),
            what="change a route table",
            about=route_table_id,
        )
        log.info("changed the routes of %s", route_table_id)

    def set_security_list(self, list_id: str, ingress: Sequence[SecurityRule]) -> None:
        """Replace the ingress rules of a security list; egress stays. Conflict if it changed meanwhile."""
        from oci.core import models as m

        found = self._caller.read(self._network.get_security_list, list_id, what="read a security list", about=list_id)
        details = m.UpdateSecurityListDetails(
            ingress_security_rules=[convert.listed_rule_details(rule) for rule in ingress],
            egress_security_rules=found.data.egress_security_rules or [],
        )
        self._caller.once(
            self._network.update_security_list,
            list_id,
            details,
            if_match=found.headers.get("etag"),
            what="change a security list",
            about=list_id,
        )
        log.info("changed the ingress rules of security list %s", list_id)

    def add_rules(self, nsg_id: str, rules: Sequence[SecurityRule]) -> None:
        from oci.core import models as m

        for some in _batches(rules, RULES_A_CALL):
            details = [convert.rule_details(rule, nsg_id) for rule in some]
            self._caller.once(
                self._network.add_network_security_group_security_rules,
                nsg_id,
                m.AddNetworkSecurityGroupSecurityRulesDetails(security_rules=details),
                what="add rules to a security group",
                about=nsg_id,
            )
            log.info("added %d rules to security group %s", len(some), nsg_id)

    def remove_rules(self, nsg_id: str, rule_ids: Sequence[str]) -> None:
        from oci.core import models as m

        for some in _batches(rule_ids, RULES_A_CALL):
            self._caller.once(
                self._network.remove_network_security_group_security_rules,
                nsg_id,
                m.RemoveNetworkSecurityGroupSecurityRulesDetails(security_rule_ids=list(some)),
                what="remove rules from a security group",
                about=f"{nsg_id}: {', '.join(some)}",
            )
            log.info("removed %d rules from security group %s", len(some), nsg_id)

    # -- machines --------------------------------------------------------------------------------------------------
    def launch(self, request: LaunchRequest, *, retry_token: str) -> CloudInstance:
        """Ask for a VM once. ``retry_token``: the same one only after Unreachable, a new one after any answer."""
        about = f"{request.name}: {request.shape} in {request.availability_domain}, image {request.image_id}"
        made = self._caller.once(
            self._compute.launch_instance,
            self._launch_details(request),
            opc_retry_token=retry_token,
            what="launch a VM",
            about=f"{about}, subnet {request.subnet_id}",
        ).data
        log.info("launched VM %s (%s)", about, made.id)
        return convert.instance(made, None, None, None, None)

    def _launch_details(self, request: LaunchRequest) -> Any:
        from oci.core import models as m

        metadata = {"ssh_authorized_keys": request.authorized_keys}
        if request.user_data:
            metadata["user_data"] = base64.b64encode(request.user_data.encode()).decode()
        size = sum(len(k) + len(v) for k, v in metadata.items())
        if size > METADATA_MAX:
            raise BadInput("keys and user data are too long", where=request.name, why=f"{size} > {METADATA_MAX} bytes")
        flexible = request.shape.endswith(".Flex")  # a fixed shape refuses a shape config
        size_config = m.LaunchInstanceShapeConfigDetails(ocpus=request.ocpus, memory_in_gbs=request.memory_gb)
        return m.LaunchInstanceDetails(
            availability_domain=request.availability_domain,
            shape=request.shape,
            shape_config=size_config if flexible else None,
            source_details=m.InstanceSourceViaImageDetails(
                image_id=request.image_id, boot_volume_size_in_gbs=request.boot_volume_gb
            ),
            create_vnic_details=m.CreateVnicDetails(
                subnet_id=request.subnet_id,
                nsg_ids=[request.nsg_id],
                assign_public_ip=True,
                hostname_label=convert.hostname_label(request.name),
                freeform_tags=dict(request.tags),
            ),
            metadata=metadata,
            **self._owned(request.name, request.tags),
        )

    def start_instance(self, instance_id: str) -> None:
        self._caller.once(self._compute.instance_action, instance_id, "START", what="start a VM", about=instance_id)
        log.info("started VM %s", instance_id)

    def terminate(self, instance_id: str) -> None:
        self._caller.once(
            self._compute.terminate_instance,
            instance_id,
            preserve_boot_volume=False,
            what="terminate a VM",
            about=instance_id,
        )
        log.info("terminating VM %s with its boot volume", instance_id)

    def tag_boot_volume(self, volume_id: str, tags: Mapping[str, str]) -> None:
        """Add freeform tags to a boot volume, keeping those it has. Conflict if it changed meanwhile."""
        from oci.core import models as m

        found = self._caller.read(self._storage.get_boot_volume, volume_id, what="read a boot volume", about=volume_id)
        kept = dict(found.data.freeform_tags or {})
        self._caller.once(
            self._storage.update_boot_volume,
            volume_id,
            m.UpdateBootVolumeDetails(freeform_tags={**kept, **tags}),
            if_match=found.headers.get("etag"),
            what="tag a boot volume",
            about=volume_id,
        )
        log.info("tagged boot volume %s", volume_id)

    # -- taking away -----------------------------------------------------------------------------------------------
    def delete(self, resource: CloudResource) -> None:
        """Delete a network resource or boot volume; an internet gateway is taken out of its VCN's routes first.

        Conflict while something still uses it (VNICs linger after a VM is gone).
        """
        calls: Mapping[str, Callable[..., Any]] = {
            "vcn": self._network.delete_vcn,
            "internet-gateway": self._network.delete_internet_gateway,
            "route-table": self._network.delete_route_table,
            "nsg": self._network.delete_network_security_group,
            "subnet": self._network.delete_subnet,
            "boot-volume": self._storage.delete_boot_volume,
        }
        if resource.kind not in calls:
            raise BadInput(f"nothing is known of deleting a {resource.kind}", where=resource.id)
        if resource.kind == "internet-gateway":
            self._unroute(resource)
        about = f"{resource.name} ({resource.id})"
        self._caller.once(calls[resource.kind], resource.id, what=f"delete a {resource.kind}", about=about)
        log.info("deleted %s %s", resource.kind, about)

    def _unroute(self, gateway: CloudResource) -> None:
        tables = self._list(self._network.list_route_tables, "route tables", vcn_id=gateway.detail["vcn_id"])
        for table in tables:
            if any(r.network_entity_id == gateway.id for r in table.route_rules or ()):
                self._change_routes(table.id, lambda rules: [r for r in rules if r.network_entity_id != gateway.id])


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
