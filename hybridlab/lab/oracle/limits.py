"""Service limits, derived from a dated allowance, and what is used of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from hybridlab.lab.oracle.catalogue import SHAPES
from hybridlab.lab.oracle.errors import invalid, limit_exceeded, not_found, quota_exceeded
from hybridlab.lab.oracle.http import Answer, Call, Route
from hybridlab.lab.oracle.identity import check_domain
from hybridlab.lab.oracle.quotas import Quotas
from hybridlab.lab.oracle.store import AVAILABILITY_DOMAINS, Json, Record, Store

BASE = "/20190729"


def allowance(name: str) -> Mapping[str, Any]:
    """An entry of data/allowances.json; KeyError names the known ones."""
    text = resources.files("hybridlab.data").joinpath("allowances.json").read_text(encoding="utf-8")
    entries = {entry["name"]: entry for entry in json.loads(text)["allowances"]}
    if name not in entries:
        raise KeyError(f"no allowance {name!r}; known: {', '.join(entries)}")
    return dict(entries[name])


@dataclass(frozen=True)
class Limit:
    """``scope`` AD or REGION. ``measure`` gives what one record uses. Unsupported ones have no availability (404)."""

    service: str
    name: str
    scope: str
    value: int
    kind: str
    measure: Callable[[Record], float]
    description: str
    availability: bool = True
    quotas: bool = False


def _of_shape(family: str, field: str) -> Callable[[Record], float]:
    def measure(record: Record) -> float:
        if SHAPES[record.body["shape"]].family != family:
            return 0
        return float(record.body["shapeConfig"][field])

    return measure


def limits_of(allowed: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The limits that a tenancy with this allowance has. Order is that of Oracle's LimitExceeded messages."""
    found = []
    sizes = {
        "standard-a1": (allowed["live_a1_ocpus"], allowed["live_a1_memory_gb"]),
        "standard-e4": (0, 0),
        "standard-e5": (0, 0),
    }
    for family, (cores, memory) in sizes.items():
        of_memory, of_cores = _of_shape(family, "memoryInGBs"), _of_shape(family, "ocpus")
        what = family.replace("standard-", "").upper()
        for measure, value, unit, label in (
            (of_memory, memory, "memory", f"GB of memory of Standard.{what} VMs"),
            (of_cores, cores, "core", f"cores of Standard.{what} VMs"),
        ):
            name = f"{family}-{unit}"
            found.append(Limit("compute", f"{name}-count", "AD", value, "instance", measure, label, quotas=True))
            if family == "standard-a1":
                found.append(Limit("compute", f"{name}-regional-count", "REGION", value, "instance", measure, label))
    micro = _of_shape("standard-e2-micro", "ocpus")
    micros = allowed["micros"]
    label = "cores of Standard.E2.Micro VMs"
    found += [
        Limit("compute", "standard-e2-micro-core-count", "AD", micros, "instance", micro, label, quotas=True),
        Limit("compute", "vm-standard-e2-1-micro-count", "AD", micros, "instance", micro, label, availability=False),
        Limit(
            "block-storage",
            "total-free-storage-gb-regional",
            "REGION",
            allowed["storage_gb"],
            "bootvolume",
            lambda r: float(r.body["sizeInGBs"]),
            "GB of free boot and block volumes",
        ),
        Limit("vcn", "vcn-count", "REGION", allowed["vcns"], "vcn", lambda r: 1, "virtual cloud networks", quotas=True),
    ]
    return tuple(found)


class Limits:
    """Answers what the limits are and how much is left, and refuses what goes over."""

    def __init__(self, store: Store, quotas: Quotas, allowed: Mapping[str, Any]) -> None:
        self._store = store
        self._quotas = quotas
        self._limits = limits_of(allowed)
        self.boot_volume_min_gb = int(allowed["boot_volume_min_gb"])

    def routes(self) -> list[Route]:
        page = "sortBy sortOrder limit page"
        return [
            Route("GET", f"{BASE}/services", self._services, f"compartmentId! {page}"),
            Route("GET", f"{BASE}/limitDefinitions", self._definitions, f"compartmentId! serviceName name {page}"),
            Route(
                "GET",
                f"{BASE}/limitValues",
                self._values,
                f"compartmentId! serviceName! scopeType availabilityDomain name {page}",
            ),
            Route(
                "GET",
                f"{BASE}/services/{{service}}/limits/{{limit}}/resourceAvailability",
                self._availability,
                "compartmentId! availabilityDomain",
            ),
        ]

    # -- refusing --------------------------------------------------------------------------------------------------
    def check(self, wanted: Record, *, domain: str = "", instead_of: Record | None = None) -> None:
        """Raise LimitExceeded or QuotaExceeded if this record may not be added (or may not replace another)."""
        over_limit, over_quota = [], []
        for limit in self._limits:
            more = limit.measure(wanted) if wanted.kind == limit.kind else 0
            if not more:
                continue
            if instead_of is not None:
                more -= limit.measure(instead_of)
            place = domain if limit.scope == "AD" else ""
            if more > 0 and self.used(limit, place) + more > limit.value:
                over_limit.append(limit.name)
            quota = self._quotas.effective(limit.name, wanted.body["compartmentId"]) if limit.quotas else None
            if more > 0 and quota is not None:
                value, compartments = quota
                if self.used(limit, place, compartments) + more > value:
                    over_quota.append(limit.name)
        if over_limit:
            raise limit_exceeded(over_limit)
        if over_quota:
            raise quota_exceeded(over_quota)

    def names(self, wanted: Record) -> list[str]:
        """The limits a record counts against: what a phantom refusal names."""
        return [x.name for x in self._limits if x.kind == wanted.kind and x.availability and x.measure(wanted)]

    def used(self, limit: Limit, domain: str = "", compartments: frozenset[str] | None = None) -> float:
        """Usage in one availability domain, or the region; stopped machines count, terminated ones don't."""
        return sum(
            limit.measure(record)
            for record in self._store.of(limit.kind)
            if record.state != "TERMINATED"
            and (not domain or record.body.get("availabilityDomain") == domain)
            and (compartments is None or record.body["compartmentId"] in compartments)
        )

    # -- answering -------------------------------------------------------------------------------------------------
    def _root(self, call: Call) -> None:
        if self._store.compartment(call.query["compartmentId"]).kind != "tenancy":
            raise invalid("compartmentId must be the tenancy")

    def _services(self, call: Call) -> Answer:
        self._root(call)
        names = {"compute": "Compute", "block-storage": "Block Volume", "vcn": "Virtual Cloud Network"}
        items = [{"name": name, "description": text, "supportedSubscriptions": []} for name, text in names.items()]
        return self._page(items, call)

    def _definitions(self, call: Call) -> Answer:
        self._root(call)
        return self._page(
            [
                {
                    "name": limit.name,
                    "serviceName": limit.service,
                    "description": limit.description,
                    "scopeType": limit.scope,
                    "areQuotasSupported": limit.quotas,
                    "isResourceAvailabilitySupported": limit.availability,
                    "isDeprecated": not limit.availability,
                    "isEligibleForLimitIncrease": False,
                    "isDynamic": False,
                }
                for limit in self._limits
            ],
            call,
        )

    def _values(self, call: Call) -> Answer:
        self._root(call)
        service = call.query["serviceName"]
        if service not in {limit.service for limit in self._limits}:
            raise not_found()
        items: list[Json] = []
        for limit in self._limits:
            if limit.service == service:
                base = {"name": limit.name, "scopeType": limit.scope, "value": limit.value}
                places = AVAILABILITY_DOMAINS if limit.scope == "AD" else ("",)
                items += [{**base, "availabilityDomain": place} if place else base for place in places]
        return self._page(items, call, {"serviceName"})

    def _page(self, items: list[Json], call: Call, applied: set[str] = frozenset()) -> Answer:  # type: ignore[assignment]
        query = {k: v for k, v in call.query.items() if k not in applied | {"compartmentId"}}
        query = {"sortBy": "NAME", **query}
        page, headers = self._store.page_of(self._store.select(items, query), call.query)
        return Answer(page, headers=headers)

    def _availability(self, call: Call) -> Answer:
        compartment = self._store.compartment(call.query["compartmentId"])
        key = (call.ids["service"], call.ids["limit"])
        limit = next((x for x in self._limits if (x.service, x.name) == key and x.availability), None)
        if limit is None:
            raise not_found()
        domain = call.query.get("availabilityDomain", "")
        if limit.scope == "AD" and not domain:
            raise invalid(f"availabilityDomain is required: {limit.name} has the scope AD")
        if limit.scope != "AD" and domain:
            raise invalid(f"availabilityDomain must not be given: {limit.name} has the scope {limit.scope}")
        if domain:
            check_domain(domain)
        used = self.used(limit, domain)
        value: float = limit.value
        body: Json = {}
        quota = self._quotas.effective(limit.name, compartment.id) if limit.quotas else None
        if quota is not None:
            body["effectiveQuotaValue"] = float(quota[0])
            value = min(value, quota[0])
        left = max(value - used, 0)
        return Answer(
            {
                "used": int(used),
                "available": int(left),
                "fractionalUsage": float(used),
                "fractionalAvailability": float(left),
                **body,
            }
        )
