"""What bootstrap would do: firewall and swap first, then the server, then the agents; labels and taints last."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import MACHINE_ARCH, Finding, NodeWish
from hybridlab.params import Params
from hybridlab.plan import Plan, Step, is_unknown, unknown
from hybridlab.stages.base import Upstream
from hybridlab.stages.bootstrap import k3s
from hybridlab.stages.bootstrap.reboots import CHANGES, reboot_steps
from hybridlab.stages.bootstrap.seen import HostSeen, Seen
from hybridlab.stages.bootstrap.upgrading import (
    left_cordoned,
    uncordon_step,
    upgrade_steps,
    upgrades,
    version_findings,
)
from hybridlab.stages.hostundo import SWAP_FILE
from hybridlab.stages.nodes import (
    SMALL_TAINT,
    is_small,
)

NAME = "bootstrap"
HOST_ORDER = ("mark", "probe", "open-firewall", "swap")


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Firewall and swap first, then the server, then the agents; labels and taints last."""
    addresses = {n["name"]: n["private_ip"] for n in upstream["provision"]["nodes"]}
    if params.site == "byo":  # a host's name became an address by looking
        addresses |= {name: host.private_ip for name, host in seen.hosts.items()}
    findings = [f for w in params.wishes for f in _host_findings(params, w, seen.hosts.get(w.name))]
    steps: list[Step] = []
    for wish in params.wishes:
        steps += _host_steps(params, wish, seen.hosts.get(wish.name))
    steps += _probe_step(params, seen, steps)
    steps.sort(key=lambda step: HOST_ORDER.index(step.action))  # like with like, so that all hosts go at once
    findings += version_findings(params, seen)
    server_steps: list[Step] = []
    agent_steps: list[Step] = []
    upgrade: list[Step] = []
    cordoned: list[Step] = []
    for wish in params.wishes:
        if upgrades(seen, wish):
            (server_steps if wish.role == "server" else upgrade).extend(upgrade_steps(seen, wish))
            continue
        found = _k3s_step(params, wish, seen, addresses)
        if found:
            (server_steps if wish.role == "server" else agent_steps).append(found)
        elif left_cordoned(seen, wish):
            cordoned.append(uncordon_step(wish, "a run that broke off left it out of use"))
    steps += server_steps
    fresh = any(s.action == "install" for s in server_steps)
    if fresh or seen.kubeconfig != "ok":
        steps.append(
            Step(
                "save-kubeconfig",
                "save-kubeconfig",
                "kubeconfig",
                "there is none yet" if fresh or seen.kubeconfig == "missing" else f"the API answers: {seen.kubeconfig}",
                "create",
                {"server": params.server.name},
            )
        )
    steps += agent_steps + upgrade
    reboots = reboot_steps(params, seen.reboots, {s.args["node"] for s in steps if s.action in CHANGES})
    rebooted = {s.args["node"] for s in reboots}  # in use again after that, and not before
    steps += [s for s in cordoned if s.args["node"] not in rebooted]
    steps += _node_steps(params, seen, joining={s.args["node"] for s in (*server_steps, *agent_steps, *upgrade)})
    steps += reboots
    nodes = [
        {"name": w.name, "arch": _arch(seen, w), "small": is_small(w) and params.bootstrap.taint_small}
        for w in params.wishes
    ]
    return Plan(NAME, tuple(steps), {"nodes": nodes, "cluster": "up"}, tuple(findings))


def _host_findings(params: Params, wish: NodeWish, host: HostSeen | None) -> list[Finding]:
    if host is None:
        return []
    found = []
    if host.chosen:
        found.append(Finding("note", wish.name, host.chosen, "another one: nodes[].node_ip"))
    arch = MACHINE_ARCH.get(host.machine, host.machine)
    if wish.arch is None and arch == host.machine:
        found.append(
            Finding("refusal", wish.name, f"the host is {arch}: only arm64 and amd64 are handled", "use another host")
        )
    elif wish.arch is None:
        found.append(Finding("note", wish.name, f"the host is {arch}, found by looking (uname says {host.machine})"))
    elif arch != wish.arch:
        found.append(
            Finding(
                "refusal",
                wish.name,
                f"the host is {arch}, the params say {wish.arch}",
                "correct nodes[].arch" + (", or leave it out" if params.site == "byo" else ""),
            )
        )
    if host.marker and host.marker != params.cluster:
        found.append(
            Finding("refusal", wish.name, f"the host belongs to cluster {host.marker}", "take it out of that one first")
        )
    if host.k3s_version and not host.marker:
        found.append(
            Finding(
                "refusal",
                wish.name,
                "K3s is there already, put there by someone else",
                "uninstall it (k3s-uninstall.sh), or use another host",
            )
        )
    for name in host.other_firewalls:
        found.append(
            Finding(
                "warning",
                wish.name,
                f"{name} is active and is left alone",
                "allow 6443/tcp, 10250/tcp and 8472/udp between the nodes in it",
            )
        )
    return found


def _host_steps(params: Params, wish: NodeWish, host: HostSeen | None) -> list[Step]:
    steps, name = [], wish.name
    if host is None or host.marker != params.cluster:
        steps.append(
            Step(
                f"mark:{name}",
                "mark",
                name,
                "a marker says whose the host is; the helper for tests goes with it",
                "create",
                {"node": name},
                undo="unmark",
                batch="mark",
            )
        )
    elif not host.helper:
        steps.append(
            Step(
                f"mark:{name}",
                "mark",
                name,
                "the helper on it is another version's",
                "change",
                {"node": name},
                batch="mark",
            )
        )
    if host is None and params.site != "byo":
        rules = "Oracle's image rejects what the overlay network needs"
    else:
        where = [
            w for w, r in (("live", host and host.rejects_live), ("in the file", host and host.rejects_saved)) if r
        ]
        rules = f"REJECT rules {' and '.join(where)}" if where else ""
    if rules:
        steps.append(
            Step(
                f"open-firewall:{name}",
                "open-firewall",
                name,
                rules,
                "change",
                {"node": name},
                undo="close-firewall",
                batch="firewall",
            )
        )
    if is_small(wish) and params.bootstrap.swap_gb and (host is None or SWAP_FILE not in host.swap):
        gb = params.bootstrap.swap_gb
        steps.append(
            Step(
                f"swap:{name}",
                "swap",
                name,
                f"{wish.memory_gb:g} GB of memory: a swap file of {gb} GB",
                "create",
                {"node": name, "gb": gb},
                undo="unswap",
            )
        )
    return steps


def _probe_step(params: Params, seen: Seen, steps: list[Step]) -> list[Step]:
    """Before the first rule goes: which paths are closed, as a picture to compare the later one with."""
    opens = any(step.action == "open-firewall" for step in steps)
    if not opens or len(params.wishes) < 2 or any(host.k3s_version for host in seen.hosts.values()):
        return []
    return [Step("probe", "probe", "paths between nodes", "what the rules let through before any of them goes", "none")]


def _k3s_step(params: Params, wish: NodeWish, seen: Seen, addresses: Mapping[str, str]) -> Step | None:
    host, name, version = seen.hosts.get(wish.name), wish.name, seen.k3s_version
    batch = "agents" if wish.role == "agent" else ""
    args = {"node": name, "version": version}
    if host is None or not host.k3s_version:
        return Step(
            f"install:{name}",
            "install",
            name,
            f"K3s {version} as {wish.role}" + (", with its images" if _brings_images(params, seen, wish) else ""),
            "create",
            args,
            undo="uninstall",
            batch=batch,
        )
    server_ip = addresses[params.server.name]
    if not is_unknown(server_ip):
        wanted = k3s.wanted_config(params, wish, host.private_ip, host.public_ip, server_ip)
        changed = k3s.config_changes(wanted, host.config)
        if changed:
            return Step(
                f"configure:{name}",
                "configure",
                name,
                f"settings differ: {', '.join(changed)}",
                "change",
                args,
                batch=batch,
            )
    if host.unit != "active":
        return Step(
            f"start:{name}",
            "start",
            name,
            f"{k3s.unit_of(wish.role)} is {host.unit or 'unknown'}",
            "change",
            args,
            batch=batch,
        )
    if seen.kubeconfig == "ok" and name not in {n.name for n in seen.nodes}:
        return Step(
            f"configure:{name}",
            "configure",
            name,
            "K3s runs and the node is not in the cluster",
            "change",
            args,
            batch=batch,
        )
    return None


def _arch(seen: Seen, wish: NodeWish) -> str:
    """As stated, else as found."""
    if wish.arch is not None:
        return wish.arch
    host = seen.hosts.get(wish.name)
    return unknown(f"{wish.name}.arch") if host is None else MACHINE_ARCH.get(host.machine, host.machine)


def _brings_images(params: Params, seen: Seen, wish: NodeWish) -> bool:
    return params.bootstrap.airgap_images or _arch(seen, wish) in seen.k3s_images


def _node_steps(params: Params, seen: Seen, joining: set[str]) -> list[Step]:
    steps, nodes = [], {n.name: n for n in seen.nodes}
    for wish in params.wishes:
        node = nodes.get(wish.name)
        if node is None:
            continue  # it registers with its labels and taints
        wanted = k3s.wanted_labels(params, wish)
        wrong = {k: v for k, v in wanted.items() if node.labels.get(k) != v}
        if wrong:
            why = ", ".join(f"{k} is {node.labels.get(k, 'missing')}, wanted {v}" for k, v in wrong.items())
            steps.append(
                Step(
                    f"label:{wish.name}",
                    "label",
                    f"node {wish.name}",
                    why,
                    "change",
                    {"node": wish.name, "labels": wrong},
                    batch="labels",
                )
            )
        want_taint = is_small(wish) and params.bootstrap.taint_small
        if want_taint != (SMALL_TAINT in node.taints):
            why = "a small node runs only what must run there" if want_taint else "the taint is no longer wanted"
            steps.append(
                Step(
                    f"taint:{wish.name}",
                    "taint",
                    f"node {wish.name}",
                    why,
                    "change",
                    {"node": wish.name, "tainted": want_taint},
                    batch="labels",
                )
            )
        if not node.ready and wish.name not in joining:
            steps.append(
                Step(
                    f"await:{wish.name}",
                    "await",
                    f"node {wish.name}",
                    "K3s runs and the node is not Ready",
                    "none",
                    {"node": wish.name},
                    batch="labels",
                )
            )
    return steps
