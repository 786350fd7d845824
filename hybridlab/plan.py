"""Steps as data, the plan of a stage, the fold over several stages, and the hash that a gate approves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from hybridlab.errors import BadInput, StrictFindings
from hybridlab.models import Finding, Json

Effect = Literal["create", "change", "delete", "none"]

_CLOUD_ID = re.compile(r"\bocid1\.[a-z0-9.\-]+", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One change, as data. ``action`` names a function in the stage's ACTIONS table; ``args`` is plain JSON.

    ``id`` is stable from plan to plan (``create-vcn``, ``launch:arm-1``). ``undo`` names the action that takes it back,
    or is empty where nothing needs to be. What a reader should know stands in ``target`` (on what) and ``why``.
    Consecutive steps with the same non-empty ``batch`` may run at the same time.
    """

    id: str
    action: str
    target: str
    why: str
    effect: Effect
    args: Mapping[str, Json] = field(default_factory=dict)
    undo: str = ""
    batch: str = ""


@dataclass(frozen=True)
class Plan:
    """What a stage would do, and what will then be so.

    ``expected`` is what later stages may count on (JSON); a value that can't be known yet is ``unknown("…")``.
    A plan with a refusal among its findings can't be applied.
    """

    stage: str
    steps: tuple[Step, ...]
    expected: Mapping[str, Json] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def refusals(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "refusal")

    def expect_applicable(self) -> None:
        """Raises BadInput with the first refusal; StrictFindings where strict alone made all of them refusals."""
        if self.refusals:
            first = min(self.refusals, key=lambda finding: finding.strict)
            kind = StrictFindings if first.strict else BadInput
            raise kind(f"{self.stage} can't be applied: {first.text}", where=first.subject, next_move=first.next_move)

    @property
    def changes(self) -> bool:
        return bool(self.steps)


def unknown(name: str) -> str:
    """A named placeholder for a value that only applying will tell, e.g. an address."""
    return f"⟨{name}⟩"


def is_unknown(value: object) -> bool:
    return isinstance(value, str) and value.startswith("⟨") and value.endswith("⟩")


def canonical(value: Json) -> str:
    """JSON with sorted keys and no spaces, with cloud ids replaced by their kind."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return _CLOUD_ID.sub(lambda m: ".".join(m.group(0).split(".")[:2]), text)


def plan_hash(params: Mapping[str, Json], plan: Plan) -> str:
    """The first 12 hex digits of SHA-256 over the params and the steps: what an approval approves.

    Times and cloud ids don't count, so the same intention has the same hash on another day or in another account.
    """
    steps = [{k: v for k, v in asdict(step).items() if k != "why"} for step in plan.steps]
    body = canonical({"params": dict(params), "stage": plan.stage, "steps": steps})
    return hashlib.sha256(body.encode()).hexdigest()[:12]
