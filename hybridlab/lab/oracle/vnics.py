"""VNICs, their private and public addresses, and who may reach whom."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hybridlab.lab.oracle import rules
from hybridlab.lab.oracle.errors import conflict, incorrect_state, invalid, missing, not_found
from hybridlab.lab.oracle.http import Answer, Call, Route, shown
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.network import BASE
from hybridlab.lab.oracle.store import Json, Record, Store
from hybridlab.lab.oracle.tags import check_hostname, check_tags
from hybridlab.lab.world import Protocol_

PUBLIC_NETWORK = ipaddress.IPv4Network("203.0.113.0/24")  # reserved for documentation (RFC 5737)
MAX_GROUPS = 5


@dataclass(frozen=True)
class Placement:
    """Where a new VNIC goes, checked."""

    subnet: Record
    groups: tuple[str, ...]
    public: bool
    private_ip: str
    hostname: str | None
    display_name: str | None
    freeform_tags: Mapping[str, str]
    skip_check: bool


class Vnics:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        update = "displayName freeformTags:dict definedTags:dict hostnameLabel nsgIds:list skipSourceDestCheck:bool"
        attachments = "compartmentId! availabilityDomain instanceId vnicId limit page"
        page = "limit page"
        private = f"{page} ipAddress subnetId vnicId"
        return [
            Route("GET", f"{BASE}/vnicAttachments", self._attachments, attachments),
            Route("GET", f"{BASE}/vnicAttachments/{{id}}", self._getter("vnicattachment")),
            Route("GET", f"{BASE}/vnics/{{id}}", self._getter("vnic")),
            Route("PUT", f"{BASE}/vnics/{{id}}", self._update, body=update, target="id"),
            Route("GET", f"{BASE}/privateIps", self._private_ips, private),
            Route("GET", f"{BASE}/privateIps/{{id}}", self._getter("privateip")),
            Route(
                "GET",
                f"{BASE}/publicIps",
                self._public_ips,
                f"scope! compartmentId! availabilityDomain lifetime {page}",
            ),
            Route("GET", f"{BASE}/publicIps/{{id}}", self._getter("publicip")),
            Route(
                "POST",
                f"{BASE}/publicIps/actions/getByIpAddress",
                lambda c: self._public_ip("ipAddress", c.body["ipAddress"]),
                body="ipAddress!",
                mutating=False,
            ),
            Route(
                "POST",
                f"{BASE}/publicIps/actions/getByPrivateIpId",
                lambda c: self._public_ip("privateIpId", c.body["privateIpId"]),
                body="privateIpId!",
                mutating=False,
            ),
        ]

    # -- making and removing ---------------------------------------------------------------------------------------
    def place(self, details: Json, domain: str) -> Placement:
        """Check ``createVnicDetails`` of a launch into an availability domain."""
        check_tags(details)
        if "subnetId" not in details:
            raise missing("createVnicDetails: subnetId")
        subnet = self._store.get("subnet", details["subnetId"])
        if subnet.body.get("availabilityDomain", domain) != domain:
            raise invalid(f"Subnet {subnet.id} is in {subnet.body['availabilityDomain']}, not in {domain}")
        groups = self._groups(details.get("nsgIds", []), subnet)
        public = details.get("assignPublicIp", not subnet.body["prohibitPublicIpOnVnic"])
        if public and subnet.body["prohibitPublicIpOnVnic"]:
            raise invalid(f"assignPublicIp: subnet {subnet.id} prohibits public IP addresses")
        hostname = details.get("hostnameLabel")
        if hostname is not None:
            self._check_hostname(hostname, subnet)
        return Placement(
            subnet,
            groups,
            public,
            self._free_address(subnet, details.get("privateIp")),
            hostname,
            details.get("displayName"),
            details.get("freeformTags", {}),
            details.get("skipSourceDestCheck", False),
        )

    def attach(self, instance: Record, placement: Placement) -> Record:
        """Make the VNIC of a new instance with its addresses; it is PROVISIONING."""
        store, compartment = self._store, instance.body["compartmentId"]
        domain = instance.body["availabilityDomain"]
        public = self._next_public_address() if placement.public else None
        octets = ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
        vnic = store.create(
            "vnic",
            compartment,
            {
                "availabilityDomain": domain,
                "displayName": placement.display_name or instance.body["displayName"],
                "freeformTags": dict(placement.freeform_tags),
                "hostnameLabel": placement.hostname,
                "isPrimary": True,
                "lifecycleState": "PROVISIONING",
                "macAddress": f"02:00:17:{octets}",
                "nsgIds": list(placement.groups),
                "privateIp": placement.private_ip,
                "publicIp": public,
                "skipSourceDestCheck": placement.skip_check,
                "subnetId": placement.subnet.id,
            },
            instance=instance.id,
        )
        shared = {"compartmentId": compartment, "availabilityDomain": domain, "subnetId": placement.subnet.id}
        attachment = {**shared, "instanceId": instance.id, "vnicId": vnic.id, "nicIndex": 0, "vlanTag": 0}
        store.create("vnicattachment", compartment, {**attachment, "lifecycleState": "ATTACHING"})
        private = store.create(
            "privateip",
            compartment,
            {
                **shared,
                "vnicId": vnic.id,
                "ipAddress": placement.private_ip,
                "isPrimary": True,
                "hostnameLabel": placement.hostname,
                "ipState": "ASSIGNED",
                "lifetime": "EPHEMERAL",
            },
        )
        if public:
            store.create(
                "publicip",
                compartment,
                {
                    "availabilityDomain": domain,
                    "assignedEntityId": private.id,
                    "assignedEntityType": "PRIVATE_IP",
                    "privateIpId": private.id,
                    "ipAddress": public,
                    "lifecycleState": "ASSIGNED",
                    "lifetime": "EPHEMERAL",
                    "scope": "AVAILABILITY_DOMAIN",
                },
            )
        return vnic

    def of_instance(self, instance_id: str) -> Record | None:
        found = self._store.of("vnic", lambda r: r.hidden["instance"] == instance_id)
        return found[0] if found else None

    def set_state(self, instance_id: str, vnic_state: str, attachment_state: str) -> None:
        vnic = self.of_instance(instance_id)
        if vnic is not None:
            self._store.change(vnic, lifecycleState=vnic_state)
        for attachment in self._store.of("vnicattachment", lambda r: r.body["instanceId"] == instance_id):
            self._store.change(attachment, lifecycleState=attachment_state)

    def detach(self, instance_id: str) -> None:
        """Remove the VNIC and free its addresses; the attachment stays listed as DETACHED."""
        vnic = self.of_instance(instance_id)
        self.set_state(instance_id, "TERMINATED", "DETACHED")
        if vnic is None:
            return
        private = {r.id for r in self._store.of("privateip", lambda r: r.body["vnicId"] == vnic.id)}
        public = {r.id for r in self._store.of("publicip", lambda r: r.body["privateIpId"] in private)}
        for ident in private | public:
            self._store.remove(ident)
        self._store.remove(vnic.id)

    def _groups(self, idents: list[str], subnet: Record) -> tuple[str, ...]:
        if len(idents) > MAX_GROUPS:
            raise invalid(f"nsgIds: at most {MAX_GROUPS} network security groups")
        for ident in idents:
            if self._store.get("networksecuritygroup", ident).body["vcnId"] != subnet.body["vcnId"]:
                raise invalid(f"nsgIds: {ident} does not belong to the VCN of subnet {subnet.id}")
        return tuple(dict.fromkeys(idents))

    def _check_hostname(self, label: str, subnet: Record, own: str = "") -> None:
        check_hostname(label)
        if "dnsLabel" not in subnet.body:
            raise invalid(f"hostnameLabel: subnet {subnet.id} has no DNS label")
        for other in self._in_subnet(subnet.id):
            if other.body.get("hostnameLabel", "").lower() == label.lower() and other.id != own:
                raise conflict(f"The hostname label {label} is already in use in subnet {subnet.id}")

    def _in_subnet(self, subnet_id: str) -> list[Record]:
        return self._store.of("vnic", lambda r: r.body["subnetId"] == subnet_id)

    def _free_address(self, subnet: Record, wanted: str | None) -> str:
        network = ipaddress.IPv4Network(subnet.body["cidrBlock"])
        taken = {r.body["privateIp"] for r in self._in_subnet(subnet.id)}
        usable = range(2, network.num_addresses - 1)  # the first, the router's and the last are Oracle's
        if wanted is None:
            free = next((str(network[i]) for i in usable if str(network[i]) not in taken), None)
            if free is None:
                raise conflict(f"Subnet {subnet.id} has no free private IP address")
            return free
        try:
            address = ipaddress.IPv4Address(wanted)
        except ValueError:
            raise invalid(f"privateIp: {wanted} is not an IPv4 address") from None
        if address not in network or int(address) - int(network[0]) not in usable:
            raise invalid(f"privateIp: {wanted} cannot be used in {network}")
        if wanted in taken:
            raise conflict(f"The private IP address {wanted} is already in use in subnet {subnet.id}")
        return wanted

    def _next_public_address(self) -> str:
        taken = {r.body["ipAddress"] for r in self._store.of("publicip")}
        hosts = PUBLIC_NETWORK.num_addresses - 2
        for _ in range(hosts):
            self._store.public_ips_given += 1
            address = str(PUBLIC_NETWORK[1 + (self._store.public_ips_given - 1) % hosts])
            if address not in taken:
                return address
        raise conflict("The region has no free public IP address")

    # -- operations ------------------------------------------------------------------------------------------------
    def _getter(self, kind: str) -> Callable[[Call], Answer]:
        return lambda call: shown(self._store.get(kind, call.ids["id"]))

    def _attachments(self, call: Call) -> Answer:
        page, headers = self._store.listed("vnicattachment", call.query)
        return Answer(page, headers=headers)

    def _update(self, call: Call) -> Answer:
        vnic = self._store.get("vnic", call.ids["id"])
        if not vnic.alive:
            raise incorrect_state(f"VNIC {vnic.id} is {vnic.state}")
        check_tags(call.body)
        subnet = self._store.get("subnet", vnic.body["subnetId"])
        if "hostnameLabel" in call.body:
            self._check_hostname(call.body["hostnameLabel"], subnet, vnic.id)
        if "nsgIds" in call.body:
            call.body["nsgIds"] = list(self._groups(call.body["nsgIds"], subnet))
        self._store.change(vnic, **call.body)
        return shown(vnic)

    def _private_ips(self, call: Call) -> Answer:
        if "subnetId" not in call.query and "vnicId" not in call.query:
            raise missing("subnetId or vnicId")
        for kind, name in (("subnet", "subnetId"), ("vnic", "vnicId")):
            if name in call.query:
                self._store.get(kind, call.query[name])
        items = self._store.select((r.body for r in self._store.of("privateip")), call.query)
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _public_ips(self, call: Call) -> Answer:
        scope, domain = call.query["scope"], call.query.get("availabilityDomain")
        if scope not in ("REGION", "AVAILABILITY_DOMAIN"):
            raise invalid("scope must be REGION or AVAILABILITY_DOMAIN")
        if call.query.get("lifetime", "EPHEMERAL") not in ("EPHEMERAL", "RESERVED"):
            raise invalid("lifetime must be EPHEMERAL or RESERVED")
        if scope == "AVAILABILITY_DOMAIN" and domain is None:
            raise missing("availabilityDomain (required for scope AVAILABILITY_DOMAIN)")
        if scope == "REGION" and domain is not None:
            raise invalid("availabilityDomain must be empty for scope REGION")
        if domain is not None:
            check_domain(domain)
        page, headers = self._store.listed("publicip", call.query)
        return Answer(page, headers=headers)

    def _public_ip(self, name: str, value: str) -> Answer:
        for record in self._store.of("publicip", lambda r: r.body[name] == value):
            return shown(record)
        raise not_found()

    # -- reachability ----------------------------------------------------------------------------------------------
    def allows(self, source_ip: str, dest_ip: str, protocol: Protocol_, port: int) -> bool:
        """Whether the cloud's network lets a packet pass: routes, security lists and groups, on both ends.

        As in reality a rule of the subnet's security lists is enough, and the default list admits SSH from everywhere.
        Between public addresses a packet leaves the VCN, so rules that name a group or private addresses don't match.
        """
        dest = self._at(dest_ip)
        if dest is None:
            return True  # not ours: the internet, the Docker host
        source = self._at(source_ip)
        if source is not None and source.id == dest.id:
            return True
        if dest_ip == dest.body["privateIp"]:
            if source is None or self._vcn(source) != self._vcn(dest):
                return False
            seen_as, groups = source.body["privateIp"], source.body["nsgIds"]
        else:
            seen_as = source_ip if source is None else source.body.get("publicIp")
            groups = []
            if seen_as is None or not self._routed(dest, seen_as):
                return False
            if source is not None and not self._routed(source, dest_ip):
                return False
        dest_groups = dest.body["nsgIds"] if dest_ip == dest.body["privateIp"] else []
        if source is not None and not self._admits(source, "EGRESS", protocol, port, dest_ip, dest_groups):
            return False
        return self._admits(dest, "INGRESS", protocol, port, seen_as, groups)

    def _at(self, ip: str) -> Record | None:
        for vnic in self._store.of("vnic"):
            if ip in (vnic.body["privateIp"], vnic.body.get("publicIp")):
                return vnic
        return None

    def _vcn(self, vnic: Record) -> str:
        return str(self._store.records[vnic.body["subnetId"]].body["vcnId"])

    def _routed(self, vnic: Record, peer_ip: str) -> bool:
        """Whether the subnet's route table sends packets for this address to an internet gateway that is on."""
        table = self._store.records[self._store.records[vnic.body["subnetId"]].body["routeTableId"]]
        address = ipaddress.IPv4Address(peer_ip)
        best = max(
            (r for r in table.body["routeRules"] if address in ipaddress.IPv4Network(r["destination"])),
            key=lambda r: ipaddress.IPv4Network(r["destination"]).prefixlen,
            default=None,
        )
        if best is None or "publicIp" not in vnic.body:
            return False
        gateway = self._store.records.get(best["networkEntityId"])
        return gateway is not None and bool(gateway.body["isEnabled"])

    def _admits(
        self, vnic: Record, direction: rules.Direction, protocol: Protocol_, port: int, peer_ip: str, groups: list[str]
    ) -> bool:
        records = self._store.records
        name = "ingressSecurityRules" if direction == "INGRESS" else "egressSecurityRules"
        found: list[Json] = []
        for ident in records[vnic.body["subnetId"]].body["securityListIds"]:
            found += records[ident].body[name]
        for ident in vnic.body["nsgIds"]:
            found += [rule for rule in records[ident].hidden["rules"] if rule["direction"] == direction]
        return any(rules.lets_through(rule, direction, protocol, port, peer_ip, groups) for rule in found)
