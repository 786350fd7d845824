"""Oracle's image firewall: exactly two REJECT rules go, live and in the file; everything else stays.

See facts of live Ampere instances: with the rules in place agents never join, or join and their pods can't talk. A
flush, or removing netfilter-persistent, would lose the InstanceServices chain that protects the iSCSI boot volume.
"""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import HostAddress, Json
from hybridlab.ports import Context

RULES_FILE = "/etc/iptables/rules.v4"
ORIGINAL = "/etc/hybridlab/original/rules.v4"
REJECTS = (
    "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
    "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
)


def rejects_in(text: str) -> tuple[str, ...]:
    """Which of the two rules stand in ``iptables -S`` output or in a rules file, as often as they do."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(line for line in lines if line in REJECTS)


def without_rejects(text: str) -> str:
    """A rules file without exactly those two rules; all other lines and their order are kept."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip() not in REJECTS)


def with_rejects(text: str, original: str) -> str:
    """A rules file with the rules back that ``original`` had: the original itself where nothing else was changed since,
    else each rule after the last one of its chain."""
    if text == without_rejects(original):
        return original
    lines = text.splitlines(keepends=True)
    for rule in rejects_in(original):
        if rule in rejects_in("".join(lines)):
            continue
        chain = " ".join(rule.split()[:2]) + " "
        places = [n for n, line in enumerate(lines) if line.startswith((chain, "COMMIT"))]
        last = [n for n in places if lines[n].startswith(chain)]
        lines.insert(last[-1] + 1 if last else (places or [len(lines)])[0], rule + "\n")
    return "".join(lines)


def live_rules(ctx: Context, host: HostAddress) -> str:
    return ctx.hosts.run(host, ["iptables", "-S"], sudo=True, check=False).stdout


def saved_rules(ctx: Context, host: HostAddress) -> str | None:
    result = ctx.hosts.run(host, ["cat", RULES_FILE], sudo=True, check=False)
    return result.stdout if result.exit_status == 0 else None


def open_firewall(ctx: Context, host: HostAddress) -> Mapping[str, Json]:
    """Delete the two rules, live and saved, keeping the original file for undo."""
    live = rejects_in(live_rules(ctx, host))
    for rule in live:
        ctx.hosts.run(host, ["iptables", "-D", *rule.split()[1:]], sudo=True)
    saved = saved_rules(ctx, host)
    if saved is not None and rejects_in(saved):
        if ctx.hosts.run(host, ["test", "-e", ORIGINAL], sudo=True, check=False).exit_status != 0:
            ctx.hosts.put(host, saved.encode(), ORIGINAL, mode=0o600, sudo=True)
        ctx.hosts.put(host, without_rejects(saved).encode(), RULES_FILE, mode=0o640, sudo=True)
    return {"live_removed": len(live), "file_removed": len(rejects_in(saved or ""))}


def close_firewall(ctx: Context, host: HostAddress) -> Mapping[str, Json]:
    """Put the rules back that were there: in the file, and at the end of the live chains."""
    result = ctx.hosts.run(host, ["cat", ORIGINAL], sudo=True, check=False)
    if result.exit_status == 0:
        back = with_rejects(saved_rules(ctx, host) or "", result.stdout)
        ctx.hosts.put(host, back.encode(), RULES_FILE, mode=0o640, sudo=True)
    live = rejects_in(live_rules(ctx, host))
    missing = [rule for rule in REJECTS if rule not in live and rule in result.stdout]
    for rule in missing:
        ctx.hosts.run(host, ["iptables", *rule.split()], sudo=True)
    return {"restored": len(missing)}
