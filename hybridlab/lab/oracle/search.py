"""Resource search: the part of the structured query language that ownership needs; anything else is refused.

``query all resources where (freeformTags.key = 'k' && freeformTags.value = 'v')``, also by resource types, and by the
fields of ``_FIELDS``, with ``=``, ``!=``, ``&&``, ``||`` and parentheses. Conditions on a key and a value hold for one
and the same tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hybridlab.lab.oracle.errors import invalid
from hybridlab.lab.oracle.http import Answer, Call, Route
from hybridlab.lab.oracle.store import Json, Store

TYPES = {
    "instance": "Instance",
    "bootvolume": "BootVolume",
    "vcn": "Vcn",
    "subnet": "Subnet",
    "internetgateway": "InternetGateway",
    "routetable": "RouteTable",
    "securitylist": "SecurityList",
    "dhcpoptions": "DHCPOptions",
    "networksecuritygroup": "NetworkSecurityGroup",
    "vnic": "Vnic",
    "privateip": "PrivateIp",
    "publicip": "PublicIp",
    "compartment": "Compartment",
}
_FIELDS = {
    "freeformtags.key",
    "freeformtags.value",
    "displayname",
    "lifecyclestate",
    "compartmentid",
    "identifier",
    "availabilitydomain",
    "resourcetype",
}
_TOKENS = re.compile(r"\s*(?:(&&|\|\||!=|=|\(|\)|,)|'([^']*)'|([A-Za-z][\w.]*))")
Row = Mapping[str, str]
Test = Callable[[Row], bool]


class Search:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        body = "type! query! matchingContextType"
        return [
            Route("POST", "/20180409/resources", self._search, "limit page tenantId", body, mutating=False),
            Route("GET", "/20180409/resourceTypes", self._types, "limit page"),
        ]

    def _types(self, call: Call) -> Answer:
        items: list[Json] = [{"name": name, "fields": []} for name in sorted(TYPES.values())]
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _search(self, call: Call) -> Answer:
        if call.body["type"] != "Structured":
            raise invalid(f"type {call.body['type']} is not supported; use Structured")
        if call.body.get("matchingContextType", "NONE") != "NONE":
            raise invalid("matchingContextType must be NONE")
        if call.query.get("tenantId", self._store.tenancy_id) != self._store.tenancy_id:
            raise invalid("tenantId must be the tenancy")
        types, test = parse(call.body["query"])
        found = []
        for record in self._store.records.values():
            name = TYPES.get(record.kind)
            if name is None or (types is not None and name.lower() not in types):
                continue
            if self._store.find(record.kind, record.id) is None:
                continue
            body = record.body
            row = {
                "resourcetype": name,
                "identifier": record.id,
                "compartmentid": body["compartmentId"],
                "displayname": body.get("displayName", body.get("name", "")),
                "lifecyclestate": record.state,
                "availabilitydomain": body.get("availabilityDomain", ""),
            }
            tags = body["freeformTags"].items() or [("", "")]
            if any(test({**row, "freeformtags.key": key, "freeformtags.value": value}) for key, value in tags):
                found.append(_summary(row, body))
        found.sort(key=lambda item: str(item["timeCreated"]), reverse=True)
        page, headers = self._store.page_of(found, {**call.query, "query": call.body["query"]})
        return Answer({"items": page}, headers=headers)


def _summary(row: Row, body: Json) -> Json:
    summary: Json = {
        "resourceType": row["resourcetype"],
        "identifier": row["identifier"],
        "compartmentId": row["compartmentid"],
        "displayName": row["displayname"],
        # search writes states in a case of its own: Running, not RUNNING
        "lifecycleState": row["lifecyclestate"].capitalize(),
        "timeCreated": body["timeCreated"],
        "freeformTags": body["freeformTags"],
        "definedTags": {},
        "systemTags": {},
        "identityContext": {},
        "additionalDetails": {},
    }
    if row["availabilitydomain"]:
        summary["availabilityDomain"] = row["availabilitydomain"]
    return summary


def parse(query: str) -> tuple[set[str] | None, Test]:
    """The resource types asked for (None: all) and the condition; 400 for what is not understood."""
    return _Parser(query).query()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKENS.match(text, position)
            if match is None:
                raise self._error()
            symbol, value, word = match.groups()
            if symbol:
                self._tokens.append(("symbol", symbol))
            else:
                self._tokens.append(("value", value) if word is None else ("word", word.lower()))
            position = match.end()

    def _error(self) -> Exception:
        return invalid(f"The query is not valid, or not supported by the lab: {self._text}")

    def _next(self) -> tuple[str, str]:
        return self._tokens.pop(0) if self._tokens else ("end", "")

    def _take(self, kind: str, *values: str) -> str:
        token = self._next()
        if token[0] != kind or (values and token[1] not in values):
            raise self._error()
        return token[1]

    def _at(self, kind: str, value: str) -> bool:
        return bool(self._tokens) and self._tokens[0] == (kind, value)

    def query(self) -> tuple[set[str] | None, Test]:
        self._take("word", "query")
        types = {self._take("word")}
        while self._at("symbol", ","):
            self._next()
            types.add(self._take("word"))
        unknown = types - {"all"} - {name.lower() for name in TYPES.values()}
        if unknown or ("all" in types and len(types) > 1):
            raise self._error()
        self._take("word", "resources")
        test: Test = lambda row: True  # noqa: E731
        if self._tokens:
            self._take("word", "where")
            test = self._either()
        if self._tokens:
            raise self._error()
        return (None if "all" in types else types), test

    def _either(self) -> Test:
        tests = [self._both()]
        while self._at("symbol", "||"):
            self._next()
            tests.append(self._both())
        return lambda row: any(test(row) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._at("symbol", "&&"):
            self._next()
            tests.append(self._one())
        return lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        if self._at("symbol", "("):
            self._next()
            inner = self._either()
            self._take("symbol", ")")
            return inner
        field = self._take("word")
        if field not in _FIELDS:
            raise self._error()
        operator = self._take("symbol", "=", "!=")
        value = self._take("value")
        exact = field.startswith("freeformtags") or field in ("compartmentid", "identifier")
        wanted = value if exact else value.lower()
        return lambda row: ((row[field] if exact else row[field].lower()) == wanted) == (operator == "=")
