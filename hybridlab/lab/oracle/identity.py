"""Identity: tenancy, regions, availability domains, compartments, users. Object storage's namespace too."""

from __future__ import annotations

import re

from hybridlab.lab.oracle.errors import ApiError, incorrect_state, invalid, missing, not_found
from hybridlab.lab.oracle.http import Answer, Call, Route, shown
from hybridlab.lab.oracle.store import AVAILABILITY_DOMAINS, REGION, REGION_KEY, Json, Record, Store, ocid
from hybridlab.lab.oracle.tags import check_tags
from hybridlab.lab.world import World

BASE = "/20160918"
_COMPARTMENT = "name! description! compartmentId! freeformTags:dict definedTags:dict"


class Identity:
    """Also makes the tenancy and its user when the lab starts for the first time."""

    def __init__(self, world: World, store: Store) -> None:
        self._world = world
        self._store = store
        if not store.of("tenancy"):
            self._found_tenancy()
        for record in store.of("compartment", lambda r: r.state == "CREATING"):
            store.change(record, lifecycleState="ACTIVE")

    def routes(self) -> list[Route]:
        page = "page limit"
        return [
            Route("GET", f"{BASE}/regions", self._regions),
            Route("GET", f"{BASE}/tenancies/{{id}}", self._tenancy),
            Route("GET", f"{BASE}/tenancies/{{id}}/regionSubscriptions", self._subscriptions),
            Route("GET", f"{BASE}/availabilityDomains", self._domains, "compartmentId!"),
            Route("GET", f"{BASE}/faultDomains", self._fault_domains, "compartmentId! availabilityDomain!"),
            Route(
                "GET",
                f"{BASE}/compartments",
                self._compartments,
                f"compartmentId! {page} accessLevel compartmentIdInSubtree name sortBy sortOrder lifecycleState",
            ),
            Route("GET", f"{BASE}/compartments/{{id}}", self._compartment),
            Route("POST", f"{BASE}/compartments", self._create_compartment, body=_COMPARTMENT, creates=True),
            Route("DELETE", f"{BASE}/compartments/{{id}}", self._delete_compartment, target="id"),
            Route("GET", f"{BASE}/users", self._users, f"compartmentId! {page} name sortBy sortOrder lifecycleState"),
            Route("GET", f"{BASE}/users/{{id}}", self._user),
            Route("GET", "/n", self._namespace, "compartmentId"),
            Route("GET", "/n/", self._namespace, "compartmentId"),
        ]

    def _found_tenancy(self) -> None:
        tenancy = ocid("tenancy")
        fields = {"name": "hybridlab", "description": "The lab's tenancy", "homeRegionKey": REGION_KEY}
        self._store.create("tenancy", tenancy, {**fields, "lifecycleState": "ACTIVE"}, ident=tenancy)
        self._store.create(
            "user",
            tenancy,
            {"name": "lab", "description": "Owner of the lab's API key", "lifecycleState": "ACTIVE"},
        )

    def _own(self, ident: str) -> Record:
        return self._store.get("tenancy", ident)

    def _regions(self, call: Call) -> Answer:
        regions = {"FRA": "eu-frankfurt-1", "IAD": "us-ashburn-1", "PHX": "us-phoenix-1", "LHR": "uk-london-1"}
        return Answer([{"key": key, "name": name} for key, name in regions.items()])

    def _tenancy(self, call: Call) -> Answer:
        own = self._own(call.ids["id"]).body
        fields = ("id", "name", "description", "homeRegionKey", "freeformTags", "definedTags")
        return Answer({name: own[name] for name in fields})

    def _subscriptions(self, call: Call) -> Answer:
        self._own(call.ids["id"])
        return Answer([{"regionKey": REGION_KEY, "regionName": REGION, "status": "READY", "isHomeRegion": True}])

    def _domains(self, call: Call) -> Answer:
        self._store.compartment(call.query["compartmentId"])
        tenancy = self._store.tenancy_id
        return Answer(
            [
                {"name": name, "id": ocid("availabilitydomain", tenancy + name), "compartmentId": tenancy}
                for name in AVAILABILITY_DOMAINS
            ]
        )

    def _fault_domains(self, call: Call) -> Answer:
        compartment = self._store.compartment(call.query["compartmentId"]).id
        domain = check_domain(call.query["availabilityDomain"])
        names = [f"FAULT-DOMAIN-{number}" for number in (1, 2, 3)]
        place = {"compartmentId": compartment, "availabilityDomain": domain}
        return Answer([{"name": n, "id": ocid("faultdomain", domain + n), **place} for n in names])

    # -- compartments ----------------------------------------------------------------------------------------------
    def _compartments(self, call: Call) -> Answer:
        parent = self._store.compartment(call.query["compartmentId"]).id
        if call.query.get("accessLevel", "ANY") not in ("ANY", "ACCESSIBLE"):
            raise invalid("accessLevel must be ANY or ACCESSIBLE")
        subtree = call.query.get("compartmentIdInSubtree", "false") == "true"
        if subtree and parent != self._store.tenancy_id:
            raise invalid("compartmentIdInSubtree can only be true for the tenancy")
        records = self._store.of("compartment", lambda r: subtree or r.body["compartmentId"] == parent)
        query = {k: v for k, v in call.query.items() if k != "compartmentId"}
        items = self._store.select((_compartment_body(r) for r in records), query)
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _compartment(self, call: Call) -> Answer:
        record = self._store.find("compartment", call.ids["id"]) or self._own(call.ids["id"])
        return Answer(_compartment_body(record), headers={"etag": record.etag})

    def _create_compartment(self, call: Call) -> Answer:
        parent = self._store.compartment(call.body["compartmentId"])
        check_tags(call.body)
        name = call.body["name"]
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
            raise invalid("name must be 1 to 100 letters, digits, periods, hyphens or underscores")
        if any(r.alive and r.body["name"] == name for r in self._children(parent.id)):
            raise ApiError(409, "CompartmentAlreadyExists", f"Compartment {name} already exists in the parent")
        fields = {**call.body, "lifecycleState": "CREATING", "isAccessible": True}
        record = self._store.create("compartment", parent.id, fields)

        async def become_active() -> None:
            await self._world.clock.takes(0.5)
            self._store.change(record, lifecycleState="ACTIVE")
            self._store.flush()

        self._world.spawn(become_active(), f"compartment {name}")
        return Answer(_compartment_body(record), headers={"etag": record.etag})

    def _children(self, parent_id: str) -> list[Record]:
        return self._store.of("compartment", lambda r: r.body["compartmentId"] == parent_id)

    def _delete_compartment(self, call: Call) -> Answer:
        record = self._store.get("compartment", call.ids["id"])
        if record.state != "ACTIVE":
            raise incorrect_state(f"Compartment {record.id} is {record.state}")
        inside = [r for r in self._store.records.values() if r.body.get("compartmentId") == record.id and r.alive]
        if inside:
            raise incorrect_state(f"Compartment {record.id} is not empty: it contains {inside[0].id}")
        self._store.change(record, lifecycleState="TERMINATED")
        return Answer(None, 202)

    # -- users and the namespace -----------------------------------------------------------------------------------
    def _users(self, call: Call) -> Answer:
        self._own(call.query["compartmentId"])
        page, headers = self._store.listed("user", call.query)
        return Answer(page, headers=headers)

    def _user(self, call: Call) -> Answer:
        return shown(self._store.get("user", call.ids["id"]))

    def _namespace(self, call: Call) -> Answer:
        if "compartmentId" in call.query:
            self._store.compartment(call.query["compartmentId"])
        return Answer("hybridlab")


def check_domain(name: str) -> str:
    """The availability domain, or 404 as for any name of another region or tenancy."""
    if not name:
        raise missing("availabilityDomain")
    if name not in AVAILABILITY_DOMAINS:
        raise not_found()
    return name


def _compartment_body(record: Record) -> Json:
    state = "DELETED" if record.state == "TERMINATED" else record.state
    return {**record.body, "lifecycleState": state}
