"""The lab's virtual networks: what is accepted, and who may reach whom because of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oci
import pytest
from oracle_lab import Net, OracleLab, eventually, refused

models = oci.core.models
PORTS = models.PortRange


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OracleLab]:
    lab = OracleLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def net(lab: OracleLab) -> Net:
    return lab.make_network()


def rule(source: str, port: int | None = None, **fields: Any) -> Any:
    """An ingress rule: TCP to a port, or everything."""
    if port is not None:
        fields.setdefault("protocol", "6")
        fields["tcp_options"] = models.TcpOptions(destination_port_range=PORTS(min=port, max=port))
    values = {"direction": "INGRESS", "protocol": "all", "source": source, "source_type": "CIDR_BLOCK", **fields}
    return models.AddSecurityRuleDetails(**values)


def add(lab: OracleLab, net: Net, *rules: Any) -> list[Any]:
    details = models.AddNetworkSecurityGroupSecurityRulesDetails(security_rules=list(rules))
    call = lab.network.add_network_security_group_security_rules
    return list(call(net.group.id, details).data.security_rules)


def close_default_list(lab: OracleLab, net: Net) -> None:
    """Leave only what goes out in the VCN's default security list."""
    lab.network.update_security_list(
        net.vcn.default_security_list_id, models.UpdateSecurityListDetails(ingress_security_rules=[])
    )


# -- what is accepted ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"cidr_blocks": ["10.0.0.1/16"]},
        {"cidr_blocks": ["10.0.0.0/8"]},
        {"cidr_blocks": ["10.0.0.0"]},
        {"cidr_blocks": ["10.0.0.0/16", "10.0.128.0/20"]},
        {"cidr_block": "10.0.0.0/16", "cidr_blocks": ["10.0.0.0/16"]},
        {"cidr_blocks": ["10.0.0.0/16"], "dns_label": "not-good"},
        {"cidr_blocks": ["169.254.0.0/16"]},
    ],
)
def test_refused_vcn(lab: OracleLab, changes: dict[str, Any]) -> None:
    details = models.CreateVcnDetails(compartment_id=lab.tenancy, **changes)
    error = refused(lab.network.create_vcn, details)
    assert (error.status, error.code) == (400, "InvalidParameter")
    assert lab.network.list_vcns(lab.tenancy).data == []


def test_vcn_becomes_available_with_its_defaults(lab: OracleLab, net: Net) -> None:
    assert net.vcn.lifecycle_state == "PROVISIONING"
    vcn = eventually(lambda: [v for v in [lab.network.get_vcn(net.vcn.id).data] if v.lifecycle_state == "AVAILABLE"])[0]
    table = lab.network.get_route_table(vcn.default_route_table_id).data
    assert table.route_rules[0].network_entity_id == net.gateway.id
    assert lab.network.get_security_list(vcn.default_security_list_id).data.egress_security_rules
    assert lab.network.get_dhcp_options(vcn.default_dhcp_options_id).data.vcn_id == vcn.id
    for call, ident in (
        (lab.network.delete_route_table, vcn.default_route_table_id),
        (lab.network.delete_security_list, vcn.default_security_list_id),
    ):
        assert refused(call, ident).code == "IncorrectState"


@pytest.mark.parametrize(
    ("cidr", "text"), [("10.1.0.0/24", "not within"), ("10.0.1.128/25", "overlaps with this CIDR"), ("10.0.3.1/24", "")]
)
def test_refused_subnet(lab: OracleLab, net: Net, cidr: str, text: str) -> None:
    details = models.CreateSubnetDetails(compartment_id=lab.tenancy, vcn_id=net.vcn.id, cidr_block=cidr)
    error = refused(lab.network.create_subnet, details)
    assert (error.status, error.code) == (400, "InvalidParameter")
    assert text in error.message


def test_subnet_dns_labels_are_unique_in_the_vcn(lab: OracleLab, net: Net) -> None:
    details = models.CreateSubnetDetails(
        compartment_id=lab.tenancy, vcn_id=net.vcn.id, cidr_block="10.0.2.0/24", dns_label="sub"
    )
    assert refused(lab.network.create_subnet, details).status == 409


def test_private_subnet_gives_no_public_address(lab: OracleLab, net: Net) -> None:
    subnet = lab.network.create_subnet(
        models.CreateSubnetDetails(
            compartment_id=lab.tenancy, vcn_id=net.vcn.id, cidr_block="10.0.2.0/24", prohibit_public_ip_on_vnic=True
        )
    ).data
    assert refused(lab.launch, subnet.id).status == 400
    machine = lab.running(subnet.id, vnic={"assign_public_ip": False})
    assert lab.vnic_of(machine.id).public_ip is None


def test_route_rules_need_a_gateway_of_the_vcn(lab: OracleLab, net: Net) -> None:
    def update(**fields: Any) -> Any:
        values = {"destination": "0.0.0.0/0", "network_entity_id": net.gateway.id, **fields}
        details = models.UpdateRouteTableDetails(route_rules=[models.RouteRule(**values)])
        return refused(lab.network.update_route_table, net.vcn.default_route_table_id, details)

    other = lab.make_network(name="other")
    assert update(network_entity_id=other.gateway.id).status == 400
    assert update(network_entity_id="ocid1.internetgateway.oc1.x.y").status == 404
    assert update(destination="0.0.0.0").status == 400


@pytest.mark.parametrize(
    "bad",
    [
        {"protocol": "tcp"},
        {"source": "198.51.100.7"},
        {"source": None},
        {"source": "ocid1.networksecuritygroup.oc1.x.y", "source_type": "NETWORK_SECURITY_GROUP"},
        {"destination": "0.0.0.0/0"},
        {"direction": "SIDEWAYS"},
        {"protocol": "17", "tcp_options": models.TcpOptions(destination_port_range=PORTS(min=1, max=2))},
        {"protocol": "6", "tcp_options": models.TcpOptions(destination_port_range=PORTS(min=9, max=2))},
    ],
)
def test_refused_rule(lab: OracleLab, net: Net, bad: dict[str, Any]) -> None:
    good = rule("198.51.100.7/32")
    for name, value in bad.items():
        setattr(good, f"_{name}", value)  # past the SDK's own checks
    details = models.AddNetworkSecurityGroupSecurityRulesDetails(security_rules=[rule("10.0.0.0/8"), good])
    error = refused(lab.network.add_network_security_group_security_rules, net.group.id, details)
    assert error.status == 400
    assert lab.network.list_network_security_group_security_rules(net.group.id).data == []


def test_rules_are_added_listed_in_pages_changed_and_removed(lab: OracleLab, net: Net) -> None:
    added = add(lab, net, *[rule("198.51.100.7/32", port) for port in (22, 80, 443, 6443)])
    assert len({r.id for r in added}) == 4
    listing = lab.network.list_network_security_group_security_rules
    assert len(listing(net.group.id).data) == 3
    assert listing(net.group.id).has_next_page
    assert listing(net.group.id, direction="EGRESS").data == []
    changed = models.UpdateSecurityRuleDetails(
        id=added[0].id, direction="INGRESS", protocol="all", source="198.51.100.8/32"
    )
    lab.network.update_network_security_group_security_rules(
        net.group.id, models.UpdateNetworkSecurityGroupSecurityRulesDetails(security_rules=[changed])
    )
    removal = models.RemoveNetworkSecurityGroupSecurityRulesDetails(security_rule_ids=[r.id for r in added[1:]])
    lab.network.remove_network_security_group_security_rules(net.group.id, removal)
    (left,) = listing(net.group.id).data
    assert (left.id, left.source, left.protocol) == (added[0].id, "198.51.100.8/32", "all")
    assert refused(lab.network.remove_network_security_group_security_rules, net.group.id, removal).status == 400


def test_addresses_are_listed(lab: OracleLab, net: Net) -> None:
    instance = lab.running(net.subnet.id)
    vnic = lab.vnic_of(instance.id)
    (private,) = lab.network.list_private_ips(vnic_id=vnic.id).data
    assert private.ip_address == "10.0.1.2"
    by_address = models.GetPublicIpByIpAddressDetails(ip_address=vnic.public_ip)
    assert lab.network.get_public_ip_by_ip_address(by_address).data.private_ip_id == private.id
    assert refused(lab.network.list_private_ips).status == 400
    (listed,) = lab.network.list_private_ips(subnet_id=net.subnet.id).data
    assert (listed.id, listed.is_primary, listed.vnic_id) == (private.id, True, vnic.id)
    lab.network.update_vnic(vnic.id, models.UpdateVnicDetails(nsg_ids=[net.group.id]))
    (member,) = lab.network.list_network_security_group_vnics(net.group.id).data
    assert (member.vnic_id, member.resource_id) == (vnic.id, instance.id)


def test_ephemeral_public_addresses_are_listed_by_domain(lab: OracleLab, net: Net) -> None:
    instance = lab.running(net.subnet.id)
    vnic = lab.vnic_of(instance.id)
    domain = instance.availability_domain
    (private,) = lab.network.list_private_ips(subnet_id=net.subnet.id).data
    listing = lab.network.list_public_ips
    (public,) = listing("AVAILABILITY_DOMAIN", lab.tenancy, availability_domain=domain, lifetime="EPHEMERAL").data
    assert (public.ip_address, public.assigned_entity_id) == (vnic.public_ip, private.id)
    other = next(d for d in lab.domains() if d != domain)
    assert listing("AVAILABILITY_DOMAIN", lab.tenancy, availability_domain=other).data == []
    assert listing("REGION", lab.tenancy, lifetime="RESERVED").data == []
    assert refused(listing, "AVAILABILITY_DOMAIN", lab.tenancy).status == 400  # the SDK's documentation: required
    assert refused(listing, "REGION", lab.tenancy, availability_domain=domain).status == 400
    assert refused(listing, "AVAILABILITY_DOMAIN", lab.tenancy, availability_domain="Lab1:NO-AD-1").status in (400, 404)


# -- who may reach whom --------------------------------------------------------------------------------------------
OPERATOR, STRANGER = "198.51.100.7", "192.0.2.99"


def test_only_the_operator_gets_in_and_the_group_talks_freely(lab: OracleLab, net: Net) -> None:
    close_default_list(lab, net)
    group = net.group.id
    add(
        lab,
        net,
        rule(group, source_type="NETWORK_SECURITY_GROUP"),
        rule(f"{OPERATOR}/32", 22),
        rule(f"{OPERATOR}/32", 6443),
    )
    one = lab.vnic_of(lab.running(net.subnet.id, vnic={"nsg_ids": [group]}).id)
    two = lab.vnic_of(lab.running(net.subnet.id, vnic={"nsg_ids": [group]}).id)
    outside = lab.vnic_of(lab.running(net.subnet.id).id)
    allows = lab.part.allows
    for port, expected in ((22, True), (6443, True), (80, False), (8472, False)):
        assert allows(OPERATOR, one.public_ip, "tcp", port) is expected
        assert allows(STRANGER, one.public_ip, "tcp", port) is False
    assert allows(OPERATOR, one.public_ip, "udp", 22) is False
    assert allows(OPERATOR, one.private_ip, "tcp", 22) is False  # a private address can't be reached from outside
    assert allows(one.private_ip, two.private_ip, "udp", 8472)
    assert allows(two.private_ip, one.private_ip, "tcp", 10250)
    assert not allows(outside.private_ip, one.private_ip, "udp", 8472)
    assert not allows(one.public_ip, two.public_ip, "tcp", 6443)  # not as a member of the group
    assert allows(one.private_ip, "192.0.2.10", "tcp", 22)
    assert allows(OPERATOR, "192.0.2.10", "tcp", 22)


def test_default_security_list_admits_ssh_from_everywhere(lab: OracleLab, net: Net) -> None:
    vnic = lab.vnic_of(lab.running(net.subnet.id).id)
    assert lab.part.allows(STRANGER, vnic.public_ip, "tcp", 22)
    assert not lab.part.allows(STRANGER, vnic.public_ip, "tcp", 6443)
    assert lab.part.allows(STRANGER, vnic.public_ip, "icmp", 3)
    close_default_list(lab, net)
    assert not lab.part.allows(STRANGER, vnic.public_ip, "tcp", 22)


def test_without_a_route_nobody_gets_in(lab: OracleLab, net: Net) -> None:
    vnic = lab.vnic_of(lab.running(net.subnet.id).id)
    table = net.vcn.default_route_table_id
    lab.network.update_route_table(table, models.UpdateRouteTableDetails(route_rules=[]))
    assert not lab.part.allows(OPERATOR, vnic.public_ip, "tcp", 22)
    rules = [models.RouteRule(destination="0.0.0.0/0", network_entity_id=net.gateway.id)]
    lab.network.update_route_table(table, models.UpdateRouteTableDetails(route_rules=rules))
    assert lab.part.allows(OPERATOR, vnic.public_ip, "tcp", 22)
    lab.network.update_internet_gateway(net.gateway.id, models.UpdateInternetGatewayDetails(is_enabled=False))
    assert not lab.part.allows(OPERATOR, vnic.public_ip, "tcp", 22)


def test_what_may_go_out_counts_too(lab: OracleLab, net: Net) -> None:
    add(lab, net, rule("10.0.0.0/16"))
    one = lab.vnic_of(lab.running(net.subnet.id, vnic={"nsg_ids": [net.group.id]}).id)
    two = lab.vnic_of(lab.running(net.subnet.id, vnic={"nsg_ids": [net.group.id]}).id)
    assert lab.part.allows(one.private_ip, two.private_ip, "tcp", 5432)
    no_egress = models.UpdateSecurityListDetails(egress_security_rules=[])
    lab.network.update_security_list(net.vcn.default_security_list_id, no_egress)
    assert not lab.part.allows(one.private_ip, two.private_ip, "tcp", 5432)
    out = models.AddSecurityRuleDetails(direction="EGRESS", protocol="all", destination="10.0.0.0/16")
    add(lab, net, out)
    assert lab.part.allows(one.private_ip, two.private_ip, "tcp", 5432)
