"""Plans on the command line: what each stage would change now, as data and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridlab.cluster import ON_REQUEST, STAGES, Cluster
from hybridlab.errors import BadInput

STYLE = {"create": "green", "change": "yellow", "delete": "red", "warning": "yellow", "refusal": "bold red"}
LIFECYCLE = tuple(stage for stage in STAGES if stage not in ON_REQUEST)


def stage_word(name: str) -> str:
    """A stage by its word, its runbook's number or its runbook's name. Raises BadInput with the nearest one."""
    words = {**{book: stage for stage, book in STAGES.items()}, **{book[:3]: stage for stage, book in STAGES.items()}}
    if name in STAGES:
        return name
    if name in words:
        return words[name]
    near = get_close_matches(name, [*STAGES, *words], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(STAGES)}, or all"
    raise BadInput(f"no stage is called {name!r}", next_move=hint)


def plan_stages(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Look and plan, one stage or ``all`` of 010 to 090; nothing is changed or recorded."""
    found = []
    for word in LIFECYCLE if name == "all" else (stage_word(name),):
        stage = cluster.stage(word)
        plan = stage.plan()
        found.append(
            {
                "stage": word,
                "runbook": STAGES[word],
                "cluster": cluster.params.cluster,
                "site": cluster.params.site,
                "params_file": str(cluster.params_file),
                "hash": stage.hash,
                "steps": [asdict(step) for step in plan.steps],
                "findings": [asdict(finding) for finding in plan.findings],
            }
        )
    return found


def show_plans(plans: Sequence[dict[str, Any]], console: Console) -> None:
    for plan in plans:
        steps = plan["steps"]
        head = Text(f"{plan['runbook']} ", style="bold")
        head.append(f"on {plan['cluster']} ({plan['site']}): ", style="")
        head.append(f"{len(steps)} changes, plan {plan['hash']}" if steps else "no change", style="bold")
        console.print(head)
        if steps:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
            for title in ("effect", "target", "step", "why"):
                table.add_column(title, overflow="fold")
            for step in steps:
                effect = Text(step["effect"], style=STYLE.get(step["effect"], ""))
                table.add_row(effect, Text(step["target"]), Text(step["id"]), Text(step["why"], style="dim"))
            console.print(table)
        for finding in plan["findings"]:
            line = Text(f"{finding['level']}: ", style=STYLE.get(finding["level"], "dim"))
            line.append(f"{finding['subject']}: {finding['text']}", style="")
            if finding["next_move"]:
                line.append(f" Next: {finding['next_move']}", style="dim")
            console.print(line)
    refused = [plan for plan in plans if any(f["level"] == "refusal" for f in plan["findings"])]
    if refused:
        numbers = ", ".join(plan["runbook"][:3] for plan in refused)
        console.print(f"{numbers} can't be applied until what is refused is changed", highlight=False, soft_wrap=True)
    waiting = [plan for plan in plans if plan["steps"] and plan not in refused]
    if waiting:
        hashes = " ".join(f"--approve {plan['hash']}" for plan in waiting)
        numbers = " ".join(plan["runbook"][:3] for plan in waiting)
        words = f"to apply: hybridlab run {numbers} --params {waiting[0]['params_file']} {hashes}"
        console.print(words, style="dim", markup=False, highlight=False, soft_wrap=True)
