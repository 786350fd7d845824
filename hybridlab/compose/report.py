"""REPORT.md: what became of the project, for the person who has to decide whether to apply it."""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.compose.model import Finding, Manifests

_MARKS = {"mapped": "mapped", "approximated": "approximated", "refused": "**refused**"}


def report(manifests: Manifests) -> str:
    """Markdown: where services land and why, what to run first, claims to fill, and every key's line."""
    count = {verdict: sum(f.verdict == verdict for f in manifests.fidelity) for verdict in _MARKS}
    lines = [
        f"# {manifests.project}: from Compose to Kubernetes",
        "",
        f"{len(manifests.placements)} services, {len(manifests.objects)} objects in namespace `{manifests.namespace}`. "
        f"Of {len(manifests.fidelity)} keys {count['mapped']} are mapped, {count['approximated']} approximated, "
        f"{count['refused']} refused.",
        "",
        "## Where services land",
        "",
        "| Service | Image | Placement | Why |",
        "|---|---|---|---|",
    ]
    for name, placement in manifests.placements.items():
        cells = (
            name,
            f"`{manifests.images[name]}`",
            placement.kind,
            "; ".join((placement.reason, *placement.warnings)),
        )
        lines.append(_row(cells))
    lines += ["", *_picture(manifests), *_commands(manifests), *_claims(manifests)]
    refused, rest = manifests.refused(), [f for f in manifests.fidelity if f.verdict == "approximated"]
    lines += _section("Refused", refused, "Nothing was refused.")
    lines += _section("Approximated", rest, "Nothing is an approximation.")
    lines += ["## Every key", "", "| Service | Key | Verdict | How or why |", "|---|---|---|---|"]
    lines += [_row((f.service or "(project)", f"`{f.key}`", _MARKS[f.verdict], f.note)) for f in manifests.fidelity]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"


def _section(title: str, findings: Iterable[Finding], nothing: str) -> list[str]:
    rows = [f"- {f.service or '(project)'} `{f.key}`: {f.note}" for f in findings]
    return [f"## {title}", "", *(rows or [nothing]), ""]


def _commands(manifests: Manifests) -> list[str]:
    if not manifests.commands:
        return []
    lines = ["## Before applying", ""]
    for name, commands in manifests.commands.items():
        lines += [f"{name}:", "", "```sh", *commands, "```", ""]
    return lines


def _claims(manifests: Manifests) -> list[str]:
    if not manifests.claims:
        return []
    lines = ["## Claims to fill", "", "| Claim | From | Used by | Size | Access |", "|---|---|---|---|---|"]
    lines += [
        _row((c.name, f"{c.kind} `{c.source}`", ", ".join(c.services), c.size, c.access_mode)) for c in manifests.claims
    ]
    return [*lines, ""]


def _picture(manifests: Manifests) -> list[str]:
    """A Mermaid drawing: services by where they land, claims beside them."""
    ids = {name: f"s{index}" for index, name in enumerate(manifests.placements)}
    lines = ["```mermaid", "flowchart LR"]
    lands: dict[str, list[str]] = {}
    for name, placement in manifests.placements.items():
        first = placement.architectures[0] if placement.architectures else placement.kind
        lands.setdefault("nowhere yet" if placement.kind == "none" else first, []).append(name)
    for index, (place, names) in enumerate(lands.items()):
        lines.append(f'  subgraph g{index}["{place}"]')
        lines += [f'    {ids[name]}["{name}"]' for name in names]
        lines.append("  end")
    for index, claim in enumerate(manifests.claims):
        lines.append(f'  c{index}[("{claim.name}")]')
        lines += [f"  {ids[name]} --- c{index}" for name in claim.services if name in ids]
    return [*lines, "```", ""]
