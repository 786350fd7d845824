"""The tenancy's resources: records by OCID, lists with filters and pages, saved between lab starts."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hybridlab.lab.oracle.errors import invalid, missing, not_found
from hybridlab.lab.world import World

REGION = "eu-frankfurt-1"
REGION_KEY = "FRA"
AVAILABILITY_DOMAINS = tuple(f"Lab1:EU-FRANKFURT-1-AD-{number}" for number in (1, 2, 3))
PAGE_SIZE = 3  # far smaller than the real default, so that a client that forgets to page is found out
KEEP_TERMINATED_S = 3600  # terminated things stay listed about this long
_GLOBAL_KINDS = {"tenancy", "user", "compartment", "quota", "image"}
_STATE = re.compile(
    "MOVING|PROVISIONING|STARTING|RUNNING|STOPPING|STOPPED|CREATING_IMAGE|TERMINATING|TERMINATED|AVAILABLE|UPDATING|"
    "RESTORING|FAULTY|IMPORTING|EXPORTING|DISABLED|DELETED|CREATING|ACTIVE|INACTIVE|DELETING"
)

Json = dict[str, Any]


def ocid(kind: str, seed: str | None = None) -> str:
    """A new OCID; with a seed always the same one."""
    digest = hashlib.sha256(seed.encode()).digest() if seed is not None else secrets.token_bytes(32)
    unique = base64.b32encode(digest).decode().rstrip("=").lower() + base64.b32encode(digest[:6]).decode()[:8].lower()
    region = "" if kind in _GLOBAL_KINDS else REGION
    return f"ocid1.{kind}.oc1.{region}.{unique}"


def timestamp(seconds: float) -> str:
    """RFC 3339 with milliseconds, as the API writes times."""
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass
class Record:
    """One resource. ``body`` is what the API shows, ``hidden`` what only the lab knows."""

    kind: str
    body: Json
    etag: str
    hidden: Json = field(default_factory=dict)
    gone_at: float | None = None  # when it became TERMINATED

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def state(self) -> str:
        return str(self.body.get("lifecycleState", "ACTIVE"))

    @property
    def alive(self) -> bool:
        return self.state not in ("TERMINATING", "TERMINATED", "DETACHING", "DETACHED")


@dataclass
class RetryToken:
    """What a retry token was first used for."""

    used_at: float
    request: str  # hash of method, path and body
    resource: str


class Store:
    """All records, with the two counters that must not repeat. Saved with ``flush``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.records: dict[str, Record] = {}
        self.tokens: dict[str, RetryToken] = {}
        self.public_ips_given = 0
        self.dirty = False
        self._load()

    @property
    def tenancy_id(self) -> str:
        return next(r.id for r in self.of("tenancy"))

    @property
    def user_id(self) -> str:
        return next(r.id for r in self.of("user"))

    def now(self) -> float:
        return self._world.clock.now()

    # -- records ---------------------------------------------------------------------------------------------------
    def create(
        self, kind: str, compartment_id: str, fields: Mapping[str, Any], *, ident: str = "", **hidden: Any
    ) -> Record:
        """Add a resource; ``fields`` overrides what every resource has (name, state AVAILABLE, tags, time)."""
        now = self.now()
        body: Json = {
            "id": ident or ocid(kind),
            "compartmentId": compartment_id,
            "displayName": kind + dt.datetime.fromtimestamp(now, dt.UTC).strftime("%Y%m%d%H%M%S"),
            "lifecycleState": "AVAILABLE",
            "freeformTags": {},
            "definedTags": {},
            "timeCreated": timestamp(now),
        }
        body.update({key: value for key, value in fields.items() if value is not None})
        if "name" in fields:  # identity calls it name
            del body["displayName"]
        record = Record(kind, body, secrets.token_hex(16), dict(hidden))
        self.records[record.id] = record
        self.dirty = True
        return record

    def change(self, record: Record, **changes: Any) -> None:
        """Set fields of the body; the etag changes with them."""
        record.body.update(changes)
        record.etag = secrets.token_hex(16)
        if record.state in ("TERMINATED", "DETACHED") and record.gone_at is None:
            record.gone_at = self.now()
        self.dirty = True

    def remove(self, ident: str) -> None:
        self.records.pop(ident, None)
        self.dirty = True

    def get(self, kind: str, ident: str) -> Record:
        """The record, or 404 as for anything one may not see."""
        record = self.find(kind, ident)
        if record is None:
            raise not_found()
        return record

    def find(self, kind: str, ident: str) -> Record | None:
        record = self.records.get(ident)
        if record is None or record.kind != kind:
            return None
        if record.gone_at is not None and self.now() - record.gone_at > KEEP_TERMINATED_S:
            self.remove(ident)
            return None
        return record

    def of(self, kind: str, where: Callable[[Record], bool] | None = None) -> list[Record]:
        """Records of a kind in the order they were made."""
        found = [self.find(kind, r.id) for r in tuple(self.records.values()) if r.kind == kind]
        return [r for r in found if r is not None and (where is None or where(r))]

    def compartment(self, ident: str) -> Record:
        """A compartment, or the tenancy (its root), or 404."""
        record = self.find("tenancy", ident) or self.find("compartment", ident)
        if record is None or not record.alive:
            raise not_found()
        return record

    def drop_tokens_older_than(self, seconds: float) -> None:
        oldest = self.now() - seconds
        self.tokens = {name: token for name, token in self.tokens.items() if token.used_at >= oldest}

    # -- lists -----------------------------------------------------------------------------------------------------
    def page_of(self, items: list[Json], query: Mapping[str, str]) -> tuple[list[Json], dict[str, str]]:
        """One page of a list, and the header that leads to the next one."""
        size = _page_size(query.get("limit"))
        same = {k: v for k, v in query.items() if k not in ("page", "limit")}
        salt = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]
        start = _page_start(query.get("page"), salt)
        headers = {}
        if start + size < len(items):
            headers["opc-next-page"] = base64.urlsafe_b64encode(f"{salt}:{start + size}".encode()).decode()
        return items[start : start + size], headers

    def select(self, items: Iterable[Json], query: Mapping[str, str]) -> list[Json]:
        """Filter by the query's fields that are no paging or sorting, and sort as asked."""
        ignored = {"page", "limit", "sortBy", "sortOrder", "compartmentIdInSubtree", "accessLevel"}
        wanted = {k: v for k, v in query.items() if k not in ignored}
        if "lifecycleState" in wanted and not _STATE.fullmatch(wanted["lifecycleState"]):
            raise invalid(f"lifecycleState {wanted['lifecycleState']} is not valid")
        found = [item for item in items if all(item.get(k) == v for k, v in wanted.items())]
        sort_by = query.get("sortBy", "TIMECREATED").upper()
        keys = {"TIMECREATED": "timeCreated", "DISPLAYNAME": "displayName", "NAME": "name"}
        if sort_by not in keys:
            raise invalid(f"sortBy {query.get('sortBy')} is not valid")
        order = query.get("sortOrder", "DESC" if sort_by == "TIMECREATED" else "ASC").upper()
        if order not in ("ASC", "DESC"):
            raise invalid(f"sortOrder {query.get('sortOrder')} is not valid")
        return sorted(found, key=lambda item: str(item.get(keys[sort_by], "")), reverse=order == "DESC")

    def listed(self, kind: str, query: Mapping[str, str]) -> tuple[list[Json], dict[str, str]]:
        """The usual list operation: a compartment's records of a kind, filtered, sorted, one page."""
        if "compartmentId" not in query:
            raise missing("compartmentId")
        self.compartment(query["compartmentId"])
        return self.page_of(self.select((r.body for r in self.of(kind)), query), query)

    # -- saved between starts --------------------------------------------------------------------------------------
    def flush(self) -> None:
        if not self.dirty:
            return
        self._world.save(
            "oracle",
            {
                "schema": 1,
                "records": [asdict(r) for r in self.records.values()],
                "tokens": {k: asdict(v) for k, v in self.tokens.items()},
                "public_ips_given": self.public_ips_given,
            },
        )
        self.dirty = False

    def _load(self) -> None:
        saved = self._world.load("oracle")
        if saved is None:
            return
        self.records = {r["body"]["id"]: Record(**r) for r in saved["records"]}
        self.tokens = {k: RetryToken(**v) for k, v in saved["tokens"].items()}
        self.public_ips_given = saved["public_ips_given"]


def _page_size(limit: str | None) -> int:
    if limit is None:
        return PAGE_SIZE
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= 1000:
        raise invalid(f"limit {limit} is not valid: must be between 1 and 1000")
    return int(limit)


def _page_start(page: str | None, salt: str) -> int:
    if page is None:
        return 0
    try:
        given, start = base64.urlsafe_b64decode(page.encode()).decode().split(":")
        if given == salt:
            return int(start)
    except (binascii.Error, ValueError):
        pass
    raise invalid("page is not valid: use the opc-next-page of the previous answer with the same parameters")
