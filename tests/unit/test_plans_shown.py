"""What ``hybridlab plan`` prints: the command that applies a plan, and that a refused one can't be applied."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hybridlab.runner.plans import show_plans

STEP = {"effect": "create", "target": "VM arm-1", "id": "launch:arm-1", "why": "it is missing"}
REFUSAL = {"level": "refusal", "subject": "arm-1", "text": "too large", "next_move": "make it smaller"}


def plan(runbook: str, digest: str, *findings: dict[str, str], steps: int = 1) -> dict[str, Any]:
    return {"runbook": runbook, "cluster": "homelab", "site": "oracle", "params_file": "params/mine.yaml",
            "hash": digest, "steps": [STEP] * steps, "findings": list(findings)}  # fmt: skip


@pytest.mark.parametrize(
    ("plans", "said", "unsaid"),
    [
        (
            [plan("020-provision-vms", "aaaaaaaaaaaa"), plan("030-bootstrap-k3s", "bbbbbbbbbbbb")],
            "run 020 030 --params params/mine.yaml --approve aaaaaaaaaaaa --approve bbbbbbbbbbbb",
            "can't be applied",
        ),
        ([plan("020-provision-vms", "aaaaaaaaaaaa", REFUSAL)], "020 can't be applied", "to apply"),
        (
            [plan("020-provision-vms", "aaaaaaaaaaaa", REFUSAL), plan("030-bootstrap-k3s", "bbbbbbbbbbbb")],
            "run 030 --params params/mine.yaml --approve bbbbbbbbbbbb",
            "--approve aaaaaaaaaaaa",
        ),
        ([plan("020-provision-vms", "aaaaaaaaaaaa", steps=0)], "no change", "to apply"),
    ],
)
def test_the_command_that_applies_a_plan(plans: list[dict[str, Any]], said: str, unsaid: str) -> None:
    out = io.StringIO()
    show_plans(plans, Console(file=out, width=200))
    assert said in out.getvalue()
    assert unsaid not in out.getvalue()
