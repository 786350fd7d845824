"""Virtual cloud networks, subnets, internet gateways, route tables, security lists and DHCP options."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from hybridlab.lab.oracle import rules
from hybridlab.lab.oracle.errors import (
    conflict,
    incorrect_state,
    invalid,
    limit_exceeded,
    missing,
    not_found,
    references,
)
from hybridlab.lab.oracle.http import Answer, Call, Route, check_fields, shown
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.limits import Limits
from hybridlab.lab.oracle.store import Json, Record, Store
from hybridlab.lab.oracle.tags import check_dns_label, check_tags
from hybridlab.lab.world import World

BASE = "/20160918"
_TAGS = "displayName freeformTags:dict definedTags:dict"
_LIST = "compartmentId! limit page displayName sortBy sortOrder lifecycleState"
_ROUTE_RULE = "cidrBlock destination destinationType networkEntityId! description routeType"
_NAMES = {
    "vcn": "Vcn",
    "subnet": "Subnet",
    "internetgateway": "InternetGateway",
    "routetable": "RouteTable",
    "securitylist": "SecurityList",
    "networksecuritygroup": "NetworkSecurityGroup",
    "dhcpoptions": "DhcpOptions",
}


class Network:
    def __init__(self, world: World, store: Store, limits: Limits) -> None:
        self._world = world
        self._store = store
        self._limits = limits
        for record in tuple(store.records.values()):
            if record.kind in _NAMES and record.state == "PROVISIONING":
                store.change(record, lifecycleState="AVAILABLE")

    def routes(self) -> list[Route]:
        vcn = "compartmentId! cidrBlock cidrBlocks:list dnsLabel isIpv6Enabled:bool"
        subnet = (
            "compartmentId! vcnId! cidrBlock! availabilityDomain dhcpOptionsId dnsLabel prohibitInternetIngress:bool "
            "prohibitPublicIpOnVnic:bool routeTableId securityListIds:list"
        )
        made_in_vcn = "compartmentId! vcnId!"
        sl_rules = "ingressSecurityRules:list egressSecurityRules:list"
        return [
            *self._crud("vcns", "vcn", "compartmentId", self._create_vcn, vcn, self._update_tags, "", self._delete_vcn),
            *self._crud(
                "subnets",
                "subnet",
                "vcnId",
                self._create_subnet,
                subnet,
                self._update_subnet,
                "routeTableId securityListIds:list dhcpOptionsId",
                self._delete_subnet,
            ),
            *self._crud(
                "internetGateways",
                "internetgateway",
                "vcnId",
                self._create_gateway,
                f"{made_in_vcn} isEnabled!:bool",
                self._update_tags,
                "isEnabled:bool",
                self._delete_gateway,
            ),
            *self._crud(
                "routeTables",
                "routetable",
                "vcnId",
                self._create_route_table,
                f"{made_in_vcn} routeRules:list",
                self._update_route_table,
                "routeRules:list",
                self._delete_route_table,
            ),
            *self._crud(
                "securityLists",
                "securitylist",
                "vcnId",
                self._create_security_list,
                f"{made_in_vcn} {sl_rules}",
                self._update_security_list,
                sl_rules,
                self._delete_security_list,
            ),
            Route("GET", f"{BASE}/dhcps", self._lister("dhcpoptions"), f"{_LIST} vcnId"),
            Route("GET", f"{BASE}/dhcps/{{id}}", self._getter("dhcpoptions")),
        ]

    def _crud(
        self,
        path: str,
        kind: str,
        filters: str,
        create: Callable[[Call], Answer],
        create_body: str,
        update: Callable[[Call], Answer],
        update_body: str,
        delete: Callable[[Call], Answer],
    ) -> list[Route]:
        one = f"{BASE}/{path}/{{id}}"
        return [
            Route("GET", f"{BASE}/{path}", self._lister(kind), f"{_LIST} {filters}"),
            Route("POST", f"{BASE}/{path}", create, body=f"{create_body} {_TAGS}", creates=True),
            Route("GET", one, self._getter(kind)),
            Route("PUT", one, update, body=f"{update_body} {_TAGS}", target="id"),
            Route("DELETE", one, delete, target="id"),
        ]

    def _lister(self, kind: str) -> Callable[[Call], Answer]:
        def listing(call: Call) -> Answer:
            if "vcnId" in call.query:
                self._store.get("vcn", call.query["vcnId"])
            page, headers = self._store.listed(kind, call.query)
            return Answer(page, headers=headers)

        return listing

    def _getter(self, kind: str) -> Callable[[Call], Answer]:
        return lambda call: shown(self._store.get(kind, call.ids["id"]))

    def provision(self, record: Record) -> Answer:
        """Show a new resource as PROVISIONING; it becomes AVAILABLE a moment later."""
        self._store.change(record, lifecycleState="PROVISIONING")

        async def become_available() -> None:
            await self._world.clock.takes(0.3)
            if record.state == "PROVISIONING":
                self._store.change(record, lifecycleState="AVAILABLE")
                self._store.flush()

        self._world.spawn(become_available(), f"provision {record.id}")
        return Answer(dict(record.body), headers={"etag": record.etag})

    def _update_tags(self, call: Call) -> Answer:
        record = self._store.records.get(call.ids["id"])
        if record is None or record.kind not in _NAMES:
            raise not_found()
        check_tags(call.body)
        self._store.change(record, **call.body)
        return shown(record)

    def _vcn_for(self, call: Call) -> Record:
        self._store.compartment(call.body["compartmentId"])
        check_tags(call.body)
        return self._store.get("vcn", call.body["vcnId"])

    def _in_vcn(self, kind: str, vcn_id: str) -> list[Record]:
        return self._store.of(kind, lambda r: r.body["vcnId"] == vcn_id)

    # -- VCN -------------------------------------------------------------------------------------------------------
    def _create_vcn(self, call: Call) -> Answer:
        body = call.body
        compartment = self._store.compartment(body["compartmentId"]).id
        check_tags(body)
        if ("cidrBlock" in body) == ("cidrBlocks" in body):
            raise invalid("exactly one of cidrBlock and cidrBlocks must be given")
        blocks = body.get("cidrBlocks") or [body.get("cidrBlock")]
        networks = [_vcn_cidr(block) for block in blocks]
        for index, network in enumerate(networks):
            if any(network.overlaps(other) for other in networks[:index]):
                raise invalid(f"cidrBlocks overlap: {network}")
        if body.get("isIpv6Enabled"):
            raise invalid("isIpv6Enabled: the lab's region has no IPv6")
        label = body.get("dnsLabel")
        if label is not None:
            check_dns_label(label)
        fields = {
            "displayName": body.get("displayName"),
            "freeformTags": body.get("freeformTags"),
            "cidrBlock": str(networks[0]),
            "cidrBlocks": [str(network) for network in networks],
            "ipv6CidrBlocks": [],
            "dnsLabel": label,
            "vcnDomainName": f"{label}.oraclevcn.com" if label else None,
        }
        wanted = Record("vcn", {"compartmentId": compartment}, "")
        self._limits.check(wanted)
        vcn = self._store.create("vcn", compartment, fields)
        self._add_defaults(vcn)
        return self.provision(vcn)

    def _add_defaults(self, vcn: Record) -> None:
        name, compartment = vcn.body["displayName"], vcn.body["compartmentId"]
        own = {"vcnId": vcn.id}
        table = {**own, "displayName": f"Default Route Table for {name}", "routeRules": []}
        security = {
            **own,
            "displayName": f"Default Security List for {name}",
            **rules.default_security_rules(vcn.body["cidrBlocks"]),
        }
        options = [
            {"type": "DomainNameServer", "serverType": "VcnLocalPlusInternet", "customDnsServers": []},
            {"type": "SearchDomain", "searchDomainNames": [vcn.body.get("vcnDomainName", "oraclevcn.com")]},
        ]
        dhcp = {**own, "displayName": f"Default DHCP Options for {name}", "options": options}
        self._store.change(
            vcn,
            defaultRouteTableId=self._store.create("routetable", compartment, table, default=True).id,
            defaultSecurityListId=self._store.create("securitylist", compartment, security, default=True).id,
            defaultDhcpOptionsId=self._store.create("dhcpoptions", compartment, dhcp, default=True).id,
        )

    def _delete_vcn(self, call: Call) -> Answer:
        vcn = self._store.get("vcn", call.ids["id"])
        if self._in_vcn("internetgateway", vcn.id):
            raise incorrect_state(f"{vcn.id} is associated with Gateway that is in use")
        for kind in ("subnet", "networksecuritygroup", "routetable", "securitylist"):
            for child in self._in_vcn(kind, vcn.id):
                if not child.hidden.get("default"):
                    raise references("Vcn", vcn.id, _NAMES[kind], child.id)
        for kind in ("routetable", "securitylist", "dhcpoptions"):
            for child in self._in_vcn(kind, vcn.id):
                self._store.remove(child.id)
        self._store.remove(vcn.id)
        return Answer(None, 204)

    # -- subnet ----------------------------------------------------------------------------------------------------
    def _create_subnet(self, call: Call) -> Answer:
        vcn, body = self._vcn_for(call), call.body
        network = rules.cidr(body["cidrBlock"], "cidrBlock")
        if not 16 <= network.prefixlen <= 30:
            raise invalid(f"cidrBlock {network} must be between /16 and /30")
        if not any(network.subnet_of(ipaddress.IPv4Network(block)) for block in vcn.body["cidrBlocks"]):
            blocks = ", ".join(vcn.body["cidrBlocks"])
            raise invalid(f"The requested CIDR {network} is invalid: it is not within the VCN's {blocks}.")
        for other in self._in_vcn("subnet", vcn.id):
            if network.overlaps(ipaddress.IPv4Network(other.body["cidrBlock"])):
                raise invalid(
                    f"The requested CIDR {network} is invalid: subnet {other.id} with CIDR {other.body['cidrBlock']} "
                    "overlaps with this CIDR."
                )
        label = body.get("dnsLabel")
        if label is not None:
            check_dns_label(label)
            if "dnsLabel" not in vcn.body:
                raise invalid("dnsLabel: the VCN has no DNS label")
            if any(other.body.get("dnsLabel") == label for other in self._in_vcn("subnet", vcn.id)):
                raise conflict(f"The DNS label {label} is already in use in the VCN {vcn.id}")
        if "availabilityDomain" in body:
            check_domain(body["availabilityDomain"])
        fields = {
            **body,
            "cidrBlock": str(network),
            "ipv4CidrBlocks": [str(network)],
            "dhcpOptionsId": body.get("dhcpOptionsId", vcn.body["defaultDhcpOptionsId"]),
            "routeTableId": body.get("routeTableId", vcn.body["defaultRouteTableId"]),
            "securityListIds": body.get("securityListIds", [vcn.body["defaultSecurityListId"]]),
            "prohibitPublicIpOnVnic": body.get("prohibitPublicIpOnVnic", False),
            "prohibitInternetIngress": body.get("prohibitInternetIngress", False),
            "virtualRouterIp": str(network[1]),
            "virtualRouterMac": "00:00:17:00:00:01",
            "subnetDomainName": f"{label}.{vcn.body['vcnDomainName']}" if label else None,
        }
        self._check_subnet_parts(vcn, fields)
        return self.provision(self._store.create("subnet", body["compartmentId"], fields))

    def _check_subnet_parts(self, vcn: Record, fields: Json) -> None:
        wanted = [("routetable", fields.get("routeTableId")), ("dhcpoptions", fields.get("dhcpOptionsId"))]
        lists = fields.get("securityListIds", [])
        if len(lists) > 5:
            raise invalid("securityListIds: at most 5 security lists")
        for kind, ident in (*wanted, *(("securitylist", ident) for ident in lists)):
            if ident is not None and self._store.get(kind, ident).body["vcnId"] != vcn.id:
                raise invalid(f"{_NAMES[kind]} {ident} does not belong to the VCN {vcn.id}")

    def _update_subnet(self, call: Call) -> Answer:
        subnet = self._store.get("subnet", call.ids["id"])
        self._check_subnet_parts(self._store.get("vcn", subnet.body["vcnId"]), call.body)
        return self._update_tags(call)

    def _delete_subnet(self, call: Call) -> Answer:
        subnet = self._store.get("subnet", call.ids["id"])
        for vnic in self._store.of("vnic", lambda r: r.body["subnetId"] == subnet.id):
            raise references("Subnet", subnet.id, "VNIC", vnic.id)
        self._store.remove(subnet.id)
        return Answer(None, 204)

    # -- internet gateway and routes -------------------------------------------------------------------------------
    def _create_gateway(self, call: Call) -> Answer:
        vcn = self._vcn_for(call)
        if self._in_vcn("internetgateway", vcn.id):
            raise limit_exceeded(["internet-gateway-count"])
        return self.provision(self._store.create("internetgateway", call.body["compartmentId"], call.body))

    def _delete_gateway(self, call: Call) -> Answer:
        gateway = self._store.get("internetgateway", call.ids["id"])
        for table in self._in_vcn("routetable", gateway.body["vcnId"]):
            if any(rule["networkEntityId"] == gateway.id for rule in table.body["routeRules"]):
                raise references("InternetGateway", gateway.id, "RouteTable", table.id)
        self._store.remove(gateway.id)
        return Answer(None, 204)

    def _route_rules(self, vcn_id: str, given: list[Json]) -> list[Json]:
        if len(given) > 200:
            raise invalid("routeRules: at most 200 rules")
        checked: list[Json] = []
        for rule in given:
            if not isinstance(rule, dict):
                raise invalid("routeRules must hold objects")
            rule = {k: v for k, v in rule.items() if v is not None}
            check_fields(rule, _ROUTE_RULE, "routeRules: ")
            destination = rule.get("destination", rule.get("cidrBlock"))
            if destination is None:
                raise missing("routeRules: destination")
            if rule.get("destinationType", "CIDR_BLOCK") != "CIDR_BLOCK" or rule.get("routeType", "STATIC") != "STATIC":
                raise invalid("routeRules: only static rules to a CIDR_BLOCK are supported in this region")
            network = str(rules.cidr(destination, "routeRules: destination"))
            if any(other["destination"] == network for other in checked):
                raise invalid(f"routeRules: {network} is given twice")
            if self._store.get("internetgateway", rule["networkEntityId"]).body["vcnId"] != vcn_id:
                raise invalid(f"routeRules: {rule['networkEntityId']} does not belong to the VCN {vcn_id}")
            checked.append(
                {
                    "cidrBlock": network,
                    "destination": network,
                    "destinationType": "CIDR_BLOCK",
                    "networkEntityId": rule["networkEntityId"],
                    "routeType": "STATIC",
                    **({"description": rule["description"]} if "description" in rule else {}),
                }
            )
        return checked

    def _create_route_table(self, call: Call) -> Answer:
        vcn = self._vcn_for(call)
        fields = {**call.body, "routeRules": self._route_rules(vcn.id, call.body.get("routeRules", []))}
        return self.provision(self._store.create("routetable", call.body["compartmentId"], fields))

    def _update_route_table(self, call: Call) -> Answer:
        table = self._store.get("routetable", call.ids["id"])
        if "routeRules" in call.body:
            call.body["routeRules"] = self._route_rules(table.body["vcnId"], call.body["routeRules"])
        return self._update_tags(call)

    def _delete_route_table(self, call: Call) -> Answer:
        table = self._store.get("routetable", call.ids["id"])
        self._refuse_default(table)
        for subnet in self._store.of("subnet", lambda r: r.body["routeTableId"] == table.id):
            raise incorrect_state(f"Route Table {table.id} is associated with Subnet {subnet.id} that is in use.")
        self._store.remove(table.id)
        return Answer(None, 204)

    def _refuse_default(self, record: Record) -> None:
        if record.hidden.get("default"):
            raise incorrect_state(
                f"{record.id} is the default {_NAMES[record.kind]} of {record.body['vcnId']} and goes only with it"
            )

    # -- security lists --------------------------------------------------------------------------------------------
    def _list_rules(self, body: Json) -> Json:
        fields = dict(body)
        directions: dict[str, rules.Direction] = {"ingressSecurityRules": "INGRESS", "egressSecurityRules": "EGRESS"}
        for name, direction in directions.items():
            if name in body:
                fields[name] = [rules.list_rule(rule, direction) for rule in body[name]]
                if len(fields[name]) > 200:
                    raise invalid(f"{name}: at most 200 rules")
        return fields

    def _create_security_list(self, call: Call) -> Answer:
        self._vcn_for(call)
        for name in ("ingressSecurityRules", "egressSecurityRules"):
            if name not in call.body:
                raise missing(name)
        fields = self._list_rules(call.body)
        return self.provision(self._store.create("securitylist", call.body["compartmentId"], fields))

    def _update_security_list(self, call: Call) -> Answer:
        self._store.get("securitylist", call.ids["id"])
        call.body.update(self._list_rules(call.body))
        return self._update_tags(call)

    def _delete_security_list(self, call: Call) -> Answer:
        record = self._store.get("securitylist", call.ids["id"])
        self._refuse_default(record)
        for subnet in self._store.of("subnet", lambda r: record.id in r.body["securityListIds"]):
            raise incorrect_state(f"Security List {record.id} is associated with Subnet {subnet.id} that is in use.")
        self._store.remove(record.id)
        return Answer(None, 204)


def _vcn_cidr(block: object) -> ipaddress.IPv4Network:
    network = rules.cidr(block, "cidrBlocks")
    if not 16 <= network.prefixlen <= 30:
        raise invalid(f"cidrBlocks: {network} must be between /16 and /30")
    if network.is_loopback or network.is_link_local or network.is_multicast or network.is_reserved:
        raise invalid(f"cidrBlocks: {network} is reserved")
    return network
