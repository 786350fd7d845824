"""Work requests: the progress of launches and terminations."""

from __future__ import annotations

from hybridlab.lab.oracle.http import Answer, Call, Route
from hybridlab.lab.oracle.network import BASE
from hybridlab.lab.oracle.store import Json, Record, Store, timestamp

KIND = "coreservicesworkrequest"
_SUMMARY = (
    "operationType",
    "status",
    "id",
    "compartmentId",
    "percentComplete",
    "timeAccepted",
    "timeStarted",
    "timeFinished",
)


class WorkRequests:
    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        one = f"{BASE}/workRequests/{{id}}"
        return [
            Route("GET", f"{BASE}/workRequests", self._list, "compartmentId! resourceId page limit"),
            Route("GET", one, lambda call: Answer(_body(self._store.get(KIND, call.ids["id"]), "resources"))),
            Route("GET", f"{one}/errors", self._nothing, "page limit sortOrder"),
            Route("GET", f"{one}/logs", self._nothing, "page limit sortOrder"),
        ]

    def begin(self, operation: str, action: str, resource: Record) -> str:
        """Start one for an instance; returns its OCID, which goes into the ``opc-work-request-id`` header."""
        now = timestamp(self._store.now())
        path = f"{BASE}/instances/{resource.id}"
        fields: Json = {
            "operationType": operation,
            "status": "IN_PROGRESS",
            "percentComplete": 1.0,
            "timeAccepted": now,
            "timeStarted": now,
            "resources": [
                {"actionType": action, "entityType": "instance", "identifier": resource.id, "entityUri": path}
            ],
        }
        return self._store.create(KIND, resource.body["compartmentId"], fields, resource=resource.id).id

    def finish(self, resource_id: str) -> None:
        """Whatever is under way for this resource has succeeded."""
        for record in self._store.of(KIND, lambda r: r.hidden["resource"] == resource_id):
            if record.body["status"] == "IN_PROGRESS":
                now = timestamp(self._store.now())
                self._store.change(record, status="SUCCEEDED", percentComplete=100.0, timeFinished=now)

    def _list(self, call: Call) -> Answer:
        compartment = self._store.compartment(call.query["compartmentId"]).id
        wanted = call.query.get("resourceId")
        items = [
            _body(r)
            for r in reversed(self._store.of(KIND))
            if r.body["compartmentId"] == compartment and wanted in (None, r.hidden["resource"])
        ]
        page, headers = self._store.page_of(items, call.query)
        return Answer(page, headers=headers)

    def _nothing(self, call: Call) -> Answer:
        self._store.get(KIND, call.ids["id"])
        return Answer([])


def _body(record: Record, *more: str) -> Json:
    return {name: record.body[name] for name in (*_SUMMARY, *more) if name in record.body}
