"""iptables, ip, ss: what the machine's network looks like."""

from __future__ import annotations

import ipaddress
import json

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.firewall import BUILT_IN, BadRule, Table, parse_rule
from hybridlab.lab.hosts.host import INTERFACE

VERSION = "v1.8.10 (nf_tables)"
NOT_ROOT = "Could not fetch rule set generation id: Permission denied (you must be root)"
LONG = {
    "--append": "-A",
    "--check": "-C",
    "--delete": "-D",
    "--insert": "-I",
    "--list-rules": "-S",
    "--new-chain": "-N",
    "--delete-chain": "-X",
    "--flush": "-F",
    "--policy": "-P",
    "--table": "-t",
    "--wait": "-w",
}
VERBS = {"-A", "-C", "-D", "-I", "-S", "-N", "-X", "-F", "-P"}
RULES_FILE = "/etc/iptables/rules.v4"


async def iptables(call: Call) -> int:
    words = [LONG.get(word, word) for word in call.args]
    if words in (["-V"], ["--version"]):
        return await call.out(f"iptables {VERSION}")
    if not call.user.is_root:
        return await call.fail(f"iptables {VERSION}: {NOT_ROOT}", 4)
    table_name = "filter"
    if "-t" in words:
        at = words.index("-t")
        if at + 1 >= len(words):
            raise Usage('option "-t" requires an argument')
        table_name = words[at + 1]
        del words[at : at + 2]
    if "-w" in words:
        at = words.index("-w")
        del words[at : at + (2 if at + 1 < len(words) and words[at + 1].isdigit() else 1)]
    if not words or words[0] not in VERBS:
        return await call.fail(f'iptables {VERSION}: unknown option "{words[0] if words else ""}"', 2)
    try:
        table = call.host.firewall.table(table_name)
        lines = _apply(table, table_name, words[0], words[1:])
    except BadRule as error:
        text = str(error)
        plain = text.startswith(("Bad rule", "No chain"))
        return await call.fail(f"iptables: {text}" if plain else f"iptables {VERSION}: {text}", 1 if plain else 2)
    return await call.out("\n".join(lines)) if lines else 0


def _apply(table: Table, table_name: str, verb: str, words: list[str]) -> list[str]:
    """One iptables command on a table; the lines it prints. Raises BadRule."""
    if verb == "-S":
        if words:
            table.chain(words[0])
        return table.spec(words[0] if words else None)
    if verb == "-F":
        for name in words or list(table.policies):
            table.chain(name).clear()
        return []
    if not words:
        raise BadRule(f'option "{verb}" requires an argument')
    chain, rest = words[0], words[1:]
    if verb == "-P":
        if chain not in BUILT_IN[table_name] or rest not in (["ACCEPT"], ["DROP"]):
            raise BadRule("Bad policy name. Run `dmesg' for more information.")
        table.policies[chain] = rest[0]
    elif verb == "-N":
        if chain in table.policies:
            raise BadRule("Chain already exists.")
        table.policies[chain] = "-"
    elif verb == "-X":
        used = any(rule.target == chain for rules in table.rules.values() for rule in rules)
        if table.chain(chain) or used or table.policies[chain] != "-":
            raise BadRule("CHAIN_DEL failed (Device or resource busy)")
        del table.policies[chain]
    else:
        _rule_command(table, verb, chain, rest)
    return []


def _rule_command(table: Table, verb: str, chain: str, words: list[str]) -> None:
    rules = table.chain(chain)
    if verb in ("-I", "-D") and words and words[0].isdigit():
        number = int(words[0])
        if verb == "-D":
            if len(words) > 1 or not 1 <= number <= len(rules):
                raise BadRule("Index of deletion too big.")
            del rules[number - 1]
            return
        words = words[1:]
        if not 1 <= number <= len(rules) + 1:
            raise BadRule("Index of insertion too big.")
    else:
        number = 1
    rule = parse_rule(words)
    table.check_target(rule.target)
    if verb == "-C":
        table.find(chain, rule)
    elif verb == "-D":
        del rules[table.find(chain, rule)]
    elif verb == "-A":
        rules.append(rule)
    else:
        rules.insert(number - 1, rule)


async def iptables_save(call: Call) -> int:
    options, words = split_options(call.args, "-c", "-t")
    if words or "-c" in options:
        raise Usage("the lab knows: iptables-save [-t TABLE]")
    if not call.user.is_root:
        return await call.fail(f"iptables-save {VERSION}: {NOT_ROOT}", 4)
    text = call.host.firewall.save()
    if "-t" in options:
        parts = text.split("COMMIT\n")
        text = "".join(part + "COMMIT\n" for part in parts if part.startswith(f"*{options['-t']}\n"))
    await call.stdout.write(text.encode())
    return 0


async def iptables_restore(call: Call) -> int:
    options, words = split_options(call.args, "-n --noflush -w --wait -t --test")
    if not call.user.is_root:
        return await call.fail(f"iptables-restore {VERSION}: {NOT_ROOT}", 4)
    if words:
        text = call.host.files.read(words[0], cwd=call.cwd, asker=call.user).decode()
    else:
        text = (await call.read_stdin()).decode()
    flush = not options.keys() & {"-n", "--noflush"}
    firewall = call.host.firewall
    before = firewall.save()
    try:
        firewall.restore(text, flush=flush)
    except BadRule as error:
        firewall.tables.clear()
        firewall.restore(before)
        return await call.fail(f"iptables-restore: {error}")
    if options.keys() & {"-t", "--test"}:
        firewall.tables.clear()
        firewall.restore(before)
    return 0


async def netfilter_persistent(call: Call) -> int:
    if call.args not in (["save"], ["reload"], ["start"]):
        raise Usage("the lab knows: netfilter-persistent save|reload|start")
    if not call.user.is_root:
        return await call.fail("netfilter-persistent: must be root")
    host = call.host
    if call.args == ["save"]:
        host.files.put(RULES_FILE, host.firewall.save(), 0o640)
        return 0
    try:
        # its plug-in calls iptables-restore --noflush: a reload appends
        host.firewall.restore(host.files.text(RULES_FILE, ""), flush=call.args == ["start"])
    except BadRule as error:
        return await call.fail(f"iptables-restore: {error}")
    return 0


async def ip(call: Call) -> int:
    options, words = split_options(call.args, "-j -json -4 -o")
    if "-j" not in options or not words or words[0] not in ("addr", "address", "a", "route", "r"):
        raise Usage("the lab knows: ip -j addr and ip -j route")
    own = call.host.machine.private_ip
    network = ipaddress.ip_network(f"{own}/24", strict=False)
    if words[0].startswith("r"):
        gateway = str(next(network.hosts()))
        rows: list[dict[str, object]] = [
            {"dst": "default", "gateway": gateway, "dev": INTERFACE, "prefsrc": own, "flags": []},
            {"dst": str(network), "dev": INTERFACE, "scope": "link", "prefsrc": own, "flags": []},
        ]
    else:
        rows = [
            _link(1, "lo", 65536, "127.0.0.1", 8),
            _link(2, INTERFACE, 9000, own, 24),
        ]
    return await call.out(json.dumps(rows))


def _link(index: int, name: str, mtu: int, address: str, prefix: int) -> dict[str, object]:
    return {
        "ifindex": index, "ifname": name, "mtu": mtu, "operstate": "UNKNOWN" if name == "lo" else "UP",
        "addr_info": [{"family": "inet", "local": address, "prefixlen": prefix, "scope": "global"}],
    }  # fmt: skip


async def ss(call: Call) -> int:
    letters = set("".join(word.lstrip("-") for word in call.args))
    if not letters or letters - set("ltunH") or "l" not in letters:
        raise Usage("the lab knows: ss -ltnH and ss -lunH")
    host = call.host
    ports = {("tcp", 22), *(key for key, count in host.listening.items() if count)}
    ports |= {key for key in (("tcp", 6443), ("tcp", 10250), ("udp", 8472), ("udp", 51820)) if host.is_listening(*key)}
    wanted = {"tcp"} if "t" in letters and "u" not in letters else {"udp"} if "t" not in letters else {"tcp", "udp"}
    for protocol, port in sorted(ports):
        if protocol in wanted:
            state = "LISTEN" if protocol == "tcp" else "UNCONN"
            await call.out(f"{state} 0 128 0.0.0.0:{port} 0.0.0.0:*")
    return 0


TABLE = {
    "iptables": Command(iptables, lambda args: any(LONG.get(word, word) in VERBS - {"-S", "-C"} for word in args)),
    "iptables-save": Command(iptables_save),
    "iptables-restore": Command(iptables_restore, True),
    "netfilter-persistent": Command(netfilter_persistent, True),
    "ip": Command(ip),
    "ss": Command(ss),
}
