"""Compartment quotas: the guard a tenancy's owner sets against cost.

The statements understood are those of the facts; any other is refused, never ignored:
``zero <family> quotas in …``, ``unset <family> quotas in …``, ``set <family> quota <name> to <n> in …`` with
``tenancy`` or ``compartment <name>``. As in reality a quota on a limit of scope AD holds in each availability domain.
"""

from __future__ import annotations

import re

from hybridlab.lab.oracle.errors import ApiError, invalid
from hybridlab.lab.oracle.http import Answer, Call, Route, shown
from hybridlab.lab.oracle.store import Record, Store
from hybridlab.lab.oracle.tags import check_tags

BASE = "/20181025/quotas"
FAMILIES = {
    "compute-core": (
        "standard-a1-core-count",
        "standard-e2-micro-core-count",
        "standard-e4-core-count",
        "standard-e5-core-count",
    ),
    "compute-memory": ("standard-a1-memory-count", "standard-e4-memory-count", "standard-e5-memory-count"),
    "vcn": ("vcn-count",),
}
_PLACE = r"in\s+(?:(?P<tenancy>tenancy)|compartment\s+(?P<compartment>\S+))"
_ALL = re.compile(rf"(?P<verb>zero|unset)\s+(?P<family>\S+)\s+quotas?\s+{_PLACE}", re.IGNORECASE)
_SET = re.compile(rf"set\s+(?P<family>\S+)\s+quotas?\s+(?P<name>\S+)\s+to\s+(?P<value>\d+)\s+{_PLACE}", re.IGNORECASE)


class Quotas:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        create = "compartmentId! name! description! statements!:list freeformTags:dict definedTags:dict"
        update = "description statements:list freeformTags:dict definedTags:dict"
        query = "compartmentId! page limit name lifecycleState sortOrder sortBy"
        return [
            Route("GET", BASE, self._list, query),
            Route("POST", BASE, self._create, body=create, creates=True),
            Route("GET", f"{BASE}/{{id}}", lambda call: shown(self._store.get("quota", call.ids["id"]))),
            Route("PUT", f"{BASE}/{{id}}", self._update, body=update, target="id"),
            Route("DELETE", f"{BASE}/{{id}}", self._delete, target="id"),
        ]

    def effective(self, limit: str, compartment_id: str) -> tuple[float, frozenset[str]] | None:
        """The tightest quota on a limit for something made in a compartment, and the compartments it counts over."""
        tightest: tuple[float, frozenset[str]] | None = None
        for place in self._lineage(compartment_id):
            value = self._value(limit, place)
            if value is not None and (tightest is None or value < tightest[0]):
                tightest = value, self._subtree(place)
        return tightest

    def _value(self, limit: str, compartment_id: str) -> float | None:
        value: float | None = None
        for record in self._store.of("quota"):
            for text in record.body["statements"]:
                verb, names, number, place = self._parse(text)
                if place == compartment_id and limit in names:
                    value = None if verb == "unset" else number
        return value

    def _lineage(self, compartment_id: str) -> list[str]:
        lineage = [compartment_id]
        while (parent := self._store.records[lineage[-1]].body["compartmentId"]) != lineage[-1]:
            lineage.append(parent)
        return lineage

    def _subtree(self, compartment_id: str) -> frozenset[str]:
        members = {compartment_id}
        members.update(r.id for r in self._store.of("compartment") if compartment_id in self._lineage(r.id))
        return frozenset(members)

    def _parse(self, text: str) -> tuple[str, tuple[str, ...], int, str]:
        match = _SET.fullmatch(text.strip()) or _ALL.fullmatch(text.strip())
        if match is None:
            raise invalid(f"Quota statement is not valid: {text}")
        found = match.groupdict()
        family = found["family"].lower()
        if family not in FAMILIES:
            raise invalid(f"Quota statement names an unknown family {family}: {text}")
        names = FAMILIES[family]
        if found.get("name"):
            if found["name"] not in names:
                raise invalid(f"Quota statement names {found['name']}, which is no quota of {family}: {text}")
            names = (found["name"],)
        place = self._store.tenancy_id
        if found["compartment"]:
            named = [r for r in self._store.of("compartment") if r.alive and r.body["name"] == found["compartment"]]
            if not named:
                raise invalid(f"Quota statement names an unknown compartment {found['compartment']}: {text}")
            place = named[0].id
        return found.get("verb", "set").lower(), names, int(found.get("value") or 0), place

    def _check(self, statements: list[str]) -> None:
        if not statements:
            raise invalid("statements must not be empty")
        for text in statements:
            if not isinstance(text, str):
                raise invalid("statements must be strings")
            self._parse(text)

    def _list(self, call: Call) -> Answer:
        page, headers = self._store.listed("quota", {"sortBy": "NAME", **call.query})
        return Answer([{k: v for k, v in q.items() if k != "statements"} for q in page], headers=headers)

    def _create(self, call: Call) -> Answer:
        if call.body["compartmentId"] != self._store.tenancy_id:
            raise invalid("compartmentId must be the tenancy: quotas live in the root compartment")
        check_tags(call.body)
        self._check(call.body["statements"])
        if any(r.body["name"] == call.body["name"] for r in self._store.of("quota")):
            raise ApiError(
                409,
                "NotAuthorizedOrResourceAlreadyExists",
                f"You do not have authorization to perform this request, or {call.body['name']} already exists.",
            )
        return shown(self._store.create("quota", self._store.tenancy_id, {**call.body, "lifecycleState": "ACTIVE"}))

    def _update(self, call: Call) -> Answer:
        record: Record = self._store.get("quota", call.ids["id"])
        check_tags(call.body)
        if "statements" in call.body:
            self._check(call.body["statements"])
        self._store.change(record, **call.body)
        return shown(record)

    def _delete(self, call: Call) -> Answer:
        self._store.remove(self._store.get("quota", call.ids["id"]).id)
        return Answer(None, 204)
