"""What a cluster uses against what is free: asked for, there now, left, and what the same costs elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from hybridlab.cluster import Cluster
from hybridlab.errors import HybridlabError, ParamsError
from hybridlab.models import CloudInstance, CloudResource, Json, NodeWish
from hybridlab.params import Params
from hybridlab.ports import FRESH_S, TAG
from hybridlab.stages.layout import Allowance, allowance_named, compare, monthly_elsewhere_usd

log = logging.getLogger(__name__)


def take_bill(root: Path, params: Params, params_file: Path, *, ask: bool = True) -> Mapping[str, Json]:
    """The bill for a report; empty on site byo, where nothing is ordered.

    Unless ``ask`` is False the account is asked which VMs there are; ``problem`` says why it could not be.
    """
    if params.site == "byo":
        return {}
    try:
        allowance = allowance_named(params.layout.allowance)
    except ParamsError:
        return {}  # 010 refuses such params; a run of other stages has no use for it
    machines: list[Json] = []
    lines: list[Json] | None = None
    problem = "" if ask else "the account was not asked"
    if ask:
        try:
            with Cluster(params, root=root, params_file=params_file) as cluster:
                # 020 may have looked moments ago; otherwise the account is asked
                survey = cluster.oracle.last_survey(FRESH_S) or cluster.oracle.survey({TAG: params.cluster})
            found = survey.instances
            lines = usage(found, survey.resources, allowance)
            machines = [machine(vm, params.cluster) for vm in found]
        except HybridlabError as error:
            log.info("no bill from the account: %s", error)
            problem = str(error).split("\n  next: ")[0]
    used = {line["resource"]: line for line in lines or ()}
    rows = []
    for line in compare(params.wishes, allowance):
        now = used.get(line.resource, {}).get("used") if lines is not None else None
        most = max(line.wanted, now or 0)
        rows.append(
            {"resource": line.resource, "asked": line.wanted, "used": now, "free": line.allowed,
             "left": line.allowed - most, "costs": most > line.allowed}
        )  # fmt: skip
    return {
        "allowance": asdict(allowance),
        "lines": rows,
        "extra": [line for line in lines or () if line["resource"] not in {row["resource"] for row in rows}],
        "machines": machines,
        "problem": problem,
        "elsewhere_usd": monthly_elsewhere_usd(params),
        "elsewhere_usd_per_node": params.layout.compare_usd_per_node,
    }


def usage(found: Sequence[CloudInstance], resources: Sequence[CloudResource], allowance: Allowance) -> list[Json]:
    """Each resource that VMs use against the allowance. It is the tenancy's: VMs that aren't ours count as well."""
    wishes = tuple(NodeWish(i.name, "agent", i.arch, i.ocpus, i.memory_gb, i.boot_volume_gb or 50) for i in found)
    rows: list[Json] = [
        {"resource": line.resource, "used": line.wanted, "free": line.allowed, "costs": not line.ok}
        for line in compare(wishes, allowance)
    ]
    loose = [r for r in resources if r.kind == "boot-volume" and not r.detail.get("attached", True)]
    if loose:
        size = sum(float(d.detail.get("size_gb", 0)) for d in loose)
        attached = next(row["used"] for row in rows if row["resource"] == "volumes GB")
        over = attached + size > allowance.storage_gb
        rows.append({"resource": "unattached boot volumes, GB", "used": size, "free": 0, "costs": over})
    return rows


def machine(vm: CloudInstance, cluster: str) -> dict[str, Json]:
    return {
        "name": vm.name,
        "state": vm.state,
        "shape": vm.shape,
        "ocpus": vm.ocpus,
        "memory_gb": vm.memory_gb,
        "boot_volume_gb": vm.boot_volume_gb,
        "public_ip": vm.public_ip,
        "private_ip": vm.private_ip,
        "ours": vm.tags.get(TAG) == cluster,
    }
