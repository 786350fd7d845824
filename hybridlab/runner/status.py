"""What is there now: nodes, VMs and what they cost, the last run, evidence and its age, and who holds the lock."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridlab.cluster import Cluster
from hybridlab.errors import BadInput, HybridlabError
from hybridlab.ledger import EvidenceStore
from hybridlab.ports import TAG
from hybridlab.runner.bill import machine, usage
from hybridlab.runner.outcome import load_record
from hybridlab.runner.report import is_alive, span
from hybridlab.stages.layout import allowance_named


def look(cluster: Cluster) -> dict[str, Any]:
    """The whole status as plain data. A system that doesn't answer is a ``problems`` entry, not an error."""
    problems: list[str] = []
    machines, money = _machines(cluster, problems)
    return {
        "cluster": cluster.params.cluster,
        "site": cluster.params.site,
        "nodes": _nodes(cluster, problems),
        "machines": machines,
        "money": money,
        "last_run": _last_run(cluster.root, cluster.params.cluster),
        "evidence": _evidence(cluster.evidence),
        "lock": lock_holder(cluster.state / "lock"),
        "problems": problems,
    }


def _nodes(cluster: Cluster, problems: list[str]) -> list[dict[str, Any]]:
    try:
        kube = cluster.kube_or_none
        nodes = kube.nodes() if kube else ()
    except HybridlabError as error:
        problems.append(str(error))
        return []
    return [
        {
            "name": node.name,
            "arch": node.arch,
            "state": ("Ready" if node.ready else "NotReady") + ("" if node.schedulable else ", cordoned"),
            "version": node.version,
            "address": node.internal_ip,
            "cpu_free_m": node.cpu_free_m,
            "memory_free": node.memory_free,
        }
        for node in nodes
    ]


def _machines(cluster: Cluster, problems: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Our VMs, and each resource they use against the free allowance (over it costs money)."""
    if cluster.params.site == "byo":
        return [], []
    try:
        survey = cluster.oracle.survey({TAG: cluster.params.cluster})
        found = survey.instances
        money = usage(found, survey.resources, allowance_named(cluster.params.layout.allowance))
    except HybridlabError as error:
        problems.append(str(error))
        return [], []
    rows = [machine(vm, cluster.params.cluster) for vm in found]
    return [row for row in rows if row["ours"]], money if found else []


def _last_run(root: Path, cluster: str) -> dict[str, Any] | None:
    for path in sorted((root / "runs").glob(f"*-{cluster}*/run.json"), reverse=True):
        try:
            record = load_record(path.parent)
        except BadInput:
            continue
        if record.cluster != cluster:
            continue
        state = "interrupted" if record.state == "running" and not is_alive(record) else record.state
        books = {book.name: book.state for book in record.runbooks}
        age = time.time() - datetime.fromisoformat(record.started).timestamp()
        return {"run": record.run, "state": state, "age_s": age, "exit_code": record.exit_code, "runbooks": books}
    return None


def _evidence(store: EvidenceStore) -> list[dict[str, Any]]:
    found = []
    for path in sorted(store.folder.glob("*.json")):
        try:
            evidence = store.load(path.stem)
        except (HybridlabError, TypeError, ValueError):
            continue
        if evidence:
            found.append({"kind": evidence.kind, "age_s": evidence.age_h(time.time()) * 3600, "run": evidence.run})
    return found


def lock_holder(path: Path) -> str:
    """Who holds the cluster's lock, as they wrote it down; empty when nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        holder = os.pread(fd, 4096, 0).decode(errors="replace").strip()
        if not _may_live(holder):
            return ""
        # it lives, but may have let go: a shared lock is refused while it hasn't, and is given up at once
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    finally:
        os.close(fd)
    return ""


def _may_live(holder: str) -> bool:
    found = re.match(r"process (\d+) on (\S+),", holder)
    if not found or found[2] != socket.gethostname():
        return bool(holder)
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def show(found: dict[str, Any], console: Console) -> None:
    console.print(Text(f"{found['cluster']} ({found['site']})", style="bold"))
    _table(console, "nodes", found["nodes"], ("name", "arch", "state", "version", "address"), "no cluster answers")
    if found["site"] != "byo":
        columns = ("name", "state", "shape", "ocpus", "memory_gb", "public_ip")
        _table(console, "VMs", found["machines"], columns, "none of ours")
        for row in found["money"]:
            text = f"  {row['resource']}: {row['used']:g} used, {row['free']:g} free of charge"
            console.print(
                Text(
                    text + (": the rest costs money" if row["costs"] else ""), style="yellow" if row["costs"] else "dim"
                )
            )
    run = found["last_run"]
    console.print(f"last run  {run['run']}: {run['state']}, {span(run['age_s'])} ago" if run else "last run  none yet")
    for item in found["evidence"]:
        console.print(f"evidence  {item['kind']}, {span(item['age_s'])} old")
    console.print(f"lock      {found['lock'] or 'free'}")
    for problem in found["problems"]:
        console.print(Text(f"problem   {problem}", style="yellow"))


def _table(console: Console, title: str, rows: list[dict[str, Any]], columns: tuple[str, ...], nothing: str) -> None:
    if not rows:
        console.print(f"{title:<9} {nothing}")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(title if column == "name" else column.replace("_", " "))
    for row in rows:
        table.add_row(*(f"{row[c]:g}" if isinstance(row[c], float) else str(row[c] or "") for c in columns))
    console.print(table)
