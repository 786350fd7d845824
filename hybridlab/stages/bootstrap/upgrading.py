"""K3s to another version: the server first, then agent by agent, each drained before and in use again after.

K3s allows a server to be newer than its agents, never the other way round, and no step over a minor version:
https://docs.k3s.io/upgrades and https://kubernetes.io/releases/version-skew-policy/.
"""

from __future__ import annotations

import re

from hybridlab.models import Finding, NodeWish
from hybridlab.params import Params
from hybridlab.plan import Step
from hybridlab.stages.bootstrap.seen import Seen
from hybridlab.stages.drains import UPGRADING


def version_of(text: str) -> tuple[int, ...]:
    """``v1.34.2+k3s1`` as (1, 34, 2, 1); empty for a word that is no version."""
    found = re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)(?:[-.+].*?(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def upgrades(seen: Seen, wish: NodeWish) -> bool:
    """Whether K3s is on the host in another version than the wanted one."""
    host = seen.hosts.get(wish.name)
    return host is not None and bool(host.k3s_version) and host.k3s_version != seen.k3s_version


def version_findings(params: Params, seen: Seen) -> list[Finding]:
    """What speaks against going from the versions that are there to the wanted one."""
    found, wanted = [], version_of(seen.k3s_version)
    for wish in params.wishes:
        if not upgrades(seen, wish):
            continue
        has = version_of(seen.hosts[wish.name].k3s_version)
        if not has or not wanted:
            continue
        is_now = f"K3s is {seen.hosts[wish.name].k3s_version}"
        if wanted < has:
            found.append(
                Finding(
                    "refusal",
                    wish.name,
                    f"{is_now}: going back to {seen.k3s_version} may not read its data",
                    "correct bootstrap.k3s_version; to go back, restore a snapshot of the datastore with 910",
                )
            )
        elif wanted[0] == has[0] and wanted[1] > has[1] + 1:
            found.append(
                Finding(
                    "refusal",
                    wish.name,
                    f"{is_now}: {seen.k3s_version} skips a minor version",
                    f"go to the newest 1.{has[1] + 1} first",
                )
            )
    return found


def upgrade_steps(seen: Seen, wish: NodeWish) -> list[Step]:
    """The steps that take one node to the wanted version; for an agent with a drain before and use again after."""
    name, host = wish.name, seen.hosts[wish.name]
    args = {"node": name, "version": seen.k3s_version}
    why = f"K3s is {host.k3s_version}, wanted {seen.k3s_version}"
    upgrade = Step(f"upgrade:{name}", "upgrade", name, why, "change", args)
    if wish.role == "server":
        snapshot = Step(
            f"snapshot:{name}", "snapshot", name, "the datastore as it is before the upgrade", "create", {"node": name}
        )
        return [snapshot, upgrade]
    if name not in {n.name for n in seen.nodes}:
        return [upgrade]
    target = f"node {name}"
    drain = Step(f"drain:{name}", "drain", target, "its pods move before it is upgraded", "change", {"node": name})
    return [drain, upgrade, uncordon_step(wish, "pods may come again")]


def uncordon_step(wish: NodeWish, why: str) -> Step:
    return Step(f"uncordon:{wish.name}", "uncordon", f"node {wish.name}", why, "change", {"node": wish.name})


def left_cordoned(seen: Seen, wish: NodeWish) -> bool:
    """Whether an upgrade that broke off left the node out of use."""
    return any(n.name == wish.name and UPGRADING in n.labels for n in seen.nodes)
