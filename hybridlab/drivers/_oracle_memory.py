"""What one process has seen of a compartment and another may use: its last survey, and addresses that can't change.

A survey is used again only by who says how old it may be, never after a change of ours, and never while something in it
was on its way. The file is a convenience: without it Oracle is asked.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hybridlab.ledger import write_atomic
from hybridlab.models import CloudInstance, CloudResource, Json, SecurityRule, Survey

log = logging.getLogger(__name__)

SCHEMA = 1
SETTLED = frozenset({"RUNNING", "STOPPED", "AVAILABLE", "TERMINATED"})


@dataclass(frozen=True)
class Address:
    """A VM's primary VNIC and its primary private IP: made with the VM, gone with it, never replaced or changed."""

    vnic_id: str
    subnet_id: str
    private_ip: str
    private_ip_id: str


class Memory:
    """``path`` None keeps everything in this process. ``where`` names the compartment: another's file is not used."""

    def __init__(self, path: Path | None, where: str) -> None:
        self._path = path
        self._where = where
        self._lock = threading.Lock()
        self._survey: Survey | None = None
        self._changed = 0.0
        self._addresses: dict[str, Address] = {}
        self._load()

    def survey(self, *, not_before: float) -> Survey | None:
        """This process's last survey, if it was begun at that time or later and still holds as far as we know."""
        with self._lock:
            found = self._survey
        return found if found and found.taken >= not_before and _settled(found) else None

    def survey_of_any(self, *, not_before: float) -> Survey | None:
        """As ``survey``, of whichever process wrote the file last."""
        data = self._read()
        try:
            found = _survey(data["survey"]) if data.get("survey") else None
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            log.warning("%s is not used: %r", self._path, error)
            return None
        return found if found and found.taken >= not_before and _settled(found) else None

    def keep(self, survey: Survey) -> None:
        with self._lock:
            if survey.taken > self._changed:
                self._survey = survey
                self._save()

    def change(self, now: float) -> None:
        """Something is being changed, or was just now: what was seen before holds no longer."""
        with self._lock:
            self._changed, self._survey = max(self._changed, now), None
            self._save()

    def address(self, instance_id: str) -> Address | None:
        return self._addresses.get(instance_id)

    def learn(self, addresses: Mapping[str, Address], *, alive: Iterable[str]) -> None:
        """Add addresses by VM, and forget the VMs that are gone."""
        with self._lock:
            kept = {ident: a for ident, a in self._addresses.items() if ident in set(alive)}
            if addresses or kept != self._addresses:
                self._addresses = {**kept, **addresses}
                self._save()

    # -- the file --------------------------------------------------------------------------------------------------
    def _load(self) -> None:
        found = self._read()
        try:
            self._changed = float(found.get("changed", 0))
            self._addresses = {k: Address(**v) for k, v in found.get("addresses", {}).items()}
        except (TypeError, ValueError, AttributeError) as error:
            log.warning("%s is not used: %r", self._path, error)

    def _read(self) -> Mapping[str, Json]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        mine = isinstance(found, dict) and (found.get("schema"), found.get("where")) == (SCHEMA, self._where)
        return found if mine else {}

    def _save(self) -> None:
        if self._path is None or not self._path.parent.is_dir():  # nothing was recorded of this cluster yet
            return
        elsewhere = float(self._read().get("changed", 0))  # another process may have changed something meanwhile
        if elsewhere > self._changed:
            self._changed = elsewhere
            self._survey = self._survey if self._survey and self._survey.taken > elsewhere else None
        content = {
            "schema": SCHEMA,
            "where": self._where,
            "changed": self._changed,
            "survey": asdict(self._survey) if self._survey else None,
            "addresses": {ident: asdict(address) for ident, address in self._addresses.items()},
        }
        try:
            write_atomic(self._path, json.dumps(content, indent=1).encode())
        except OSError as error:
            log.warning("%s can't be written: %s", self._path, error)


def _settled(survey: Survey) -> bool:
    states = {vm.state for vm in survey.instances} | {r.state for r in survey.resources}
    return states <= SETTLED


def _survey(data: Mapping[str, Json]) -> Survey:
    return Survey(
        instances=tuple(CloudInstance(**row) for row in data["instances"]),
        resources=tuple(CloudResource(**{**row, "detail": _detail(row["detail"])}) for row in data["resources"]),
        rules={ident: _rules(rows) for ident, rows in data["rules"].items()},
        taken=float(data["taken"]),
    )


def _detail(found: Mapping[str, Json]) -> Mapping[str, Json]:
    """JSON has no tuples and no rules: make them again."""
    detail = dict(found)
    if "ingress" in detail:
        detail["ingress"] = _rules(detail["ingress"])
    if "rules" in detail:
        detail["rules"] = tuple(tuple(rule) for rule in detail["rules"])
    return detail


def _rules(rows: Iterable[Mapping[str, Json]]) -> tuple[SecurityRule, ...]:
    return tuple(SecurityRule(**row) for row in rows)
