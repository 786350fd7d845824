"""iptables as the kernel keeps it: chains of rules, exact matching, and the verdict for a new packet.

Rules are kept in the form ``iptables -S`` prints, so that two ways of writing the same rule are the same rule.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
}
STANDARD_TARGETS = {"ACCEPT", "DROP", "RETURN"}
# extension targets with their options, in the order iptables prints them
TARGETS: dict[str, tuple[str, ...]] = {
    "REJECT": ("--reject-with",),
    "LOG": ("--log-prefix", "--log-level"),
    "MARK": ("--set-xmark",),
    "MASQUERADE": ("--random-fully",),
    "DNAT": ("--to-destination",),
    "SNAT": ("--to-source",),
    "CONNMARK": ("--restore-mark",),
}
MATCHES: dict[str, tuple[str, ...]] = {
    "state": ("--state",),
    "conntrack": ("--ctstate",),
    "tcp": ("--sport", "--dport", "--tcp-flags"),
    "udp": ("--sport", "--dport"),
    "icmp": ("--icmp-type",),
    "multiport": ("--sports", "--dports", "--ports"),
    "owner": ("--uid-owner", "--gid-owner"),
    "comment": ("--comment",),
    "mark": ("--mark",),
    "addrtype": ("--dst-type", "--src-type"),
}
STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED")
REJECTS = (
    "icmp-net-unreachable",
    "icmp-host-unreachable",
    "icmp-port-unreachable",
    "icmp-proto-unreachable",
    "icmp-net-prohibited",
    "icmp-host-prohibited",
    "icmp-admin-prohibited",
    "tcp-reset",
)


class BadRule(Exception):
    """Said as iptables says it."""


@dataclass(frozen=True)
class Packet:
    """A packet of a new connection. ``source`` None is an address no rule names."""

    protocol: str
    port: int
    source: str | None = None
    dest: str | None = None
    in_interface: str = "ens3"
    mark: int = 0


@dataclass(frozen=True)
class Rule:
    """``basic`` holds -s -d -i -o -p as (option, negated, value); ``matches`` a module with such triples."""

    basic: tuple[tuple[str, bool, str], ...] = ()
    matches: tuple[tuple[str, tuple[tuple[str, bool, str], ...]], ...] = ()
    target: str = ""
    target_options: tuple[tuple[str, str], ...] = ()

    def words(self) -> list[str]:
        words: list[str] = []
        for option, negated, value in self.basic:
            words += (["!"] if negated else []) + [option, value]
        for module, options in self.matches:
            words += ["-m", module]
            for option, negated, value in options:
                words += (["!"] if negated else []) + [
                    option,
                    *(value.split(" ") if option == "--tcp-flags" else [value]),
                ]
        if self.target:
            words += ["-j", self.target]
            for option, value in self.target_options:
                words += [option, value] if value else [option]
        return words

    def __str__(self) -> str:
        return " ".join(f'"{word}"' if " " in word or not word else word for word in self.words())

    def hits(self, packet: Packet) -> bool:
        return all(self._basic_hits(*part, packet) for part in self.basic) and all(
            _match_hits(module, option, negated, value, packet)
            for module, options in self.matches
            for option, negated, value in options
        )

    @staticmethod
    def _basic_hits(option: str, negated: bool, value: str, packet: Packet) -> bool:
        if option == "-p":
            hit = value in (packet.protocol, "all")
        elif option == "-i":
            hit = packet.in_interface == value or (value.endswith("+") and packet.in_interface.startswith(value[:-1]))
        elif option == "-o":
            hit = False
        else:
            address = packet.source if option == "-s" else packet.dest
            hit = address is not None and ipaddress.ip_address(address) in ipaddress.ip_network(value)
        return hit != negated


def _match_hits(module: str, option: str, negated: bool, value: str, packet: Packet) -> bool:
    if option in ("--state", "--ctstate"):
        hit = "NEW" in value.split(",")
    elif option == "--dport":
        hit = _in_ports(packet.port, value)
    elif option in ("--dports", "--ports"):
        hit = any(_in_ports(packet.port, part) for part in value.split(","))
    elif option == "--comment":
        hit = True
    elif option == "--mark":
        wanted, _, mask = value.partition("/")
        hit = packet.mark & int(mask or "0xffffffff", 0) == int(wanted, 0)
    else:  # source ports, flags, owners and ICMP types of an unknown packet are not what a rule asks for
        hit = False
    return hit != negated


def _in_ports(port: int, value: str) -> bool:
    low, colon, high = value.partition(":")
    return int(low or 0) <= port <= int((high or 65535) if colon else low)


def parse_rule(words: Sequence[str]) -> Rule:
    """Read a rule's words (after the chain). Raises BadRule."""
    basic: dict[str, tuple[bool, str]] = {}
    modules: list[str] = []
    found: dict[str, dict[str, tuple[bool, str]]] = {}
    target, target_options = "", {}
    rest, negated = list(words), False
    aliases = {"--protocol": "-p", "--source": "-s", "--destination": "-d", "--src": "-s", "--dst": "-d",
               "--in-interface": "-i", "--out-interface": "-o", "--match": "-m", "--jump": "-j",
               "--destination-port": "--dport", "--source-port": "--sport", "--set-mark": "--set-xmark"}  # fmt: skip

    def value_of(option: str) -> str:
        if not rest:
            raise BadRule(f'option "{option}" requires an argument')
        return rest.pop(0)

    while rest:
        word = rest.pop(0)
        if word == "!":
            negated = True
            continue
        word = aliases.get(word, word)
        if word in ("-s", "-d", "-i", "-o", "-p"):
            value = value_of(word)
            basic[word] = (
                negated,
                _network(value) if word in ("-s", "-d") else value.lower() if word == "-p" else value,
            )
        elif word == "-m":
            module = value_of(word)
            if module not in MATCHES:
                raise BadRule(f"Couldn't load match `{module}':No such file or directory")
            if module not in modules:
                modules.append(module)
        elif word == "-j":
            target = value_of(word)
        elif target and word in TARGETS.get(target, ()):
            target_options[word] = "" if word in ("--random-fully", "--restore-mark") else value_of(word)
        else:
            owner = _module_of(word, modules, basic.get("-p", (False, ""))[1])
            value = value_of(word)
            if word == "--tcp-flags":
                value += " " + value_of(word)
            found.setdefault(owner, {})[word] = (negated, _normal(word, value))
        negated = False
    if target == "REJECT":
        kind = target_options.setdefault("--reject-with", "icmp-port-unreachable")
        if kind not in REJECTS:
            raise BadRule(f'unknown reject type "{kind}"')
    matches = tuple(
        (module, tuple((o, *found[module][o]) for o in MATCHES[module] if o in found.get(module, {})))
        for module in modules
    )
    return Rule(
        tuple((option, *basic[option]) for option in ("-s", "-d", "-i", "-o", "-p") if option in basic),
        matches,
        target,
        tuple((o, target_options[o]) for o in TARGETS.get(target, ()) if o in target_options),
    )


def _module_of(option: str, modules: list[str], protocol: str) -> str:
    for module in reversed(modules):
        if option in MATCHES[module]:
            return module
    if protocol in MATCHES and option in MATCHES[protocol]:
        modules.append(protocol)  # -p tcp --dport 22 is -p tcp -m tcp --dport 22
        return protocol
    raise BadRule(f'unknown option "{option}"')


def _normal(option: str, value: str) -> str:
    if option in ("--state", "--ctstate"):
        wanted = value.upper().split(",")
        unknown = [state for state in wanted if state not in STATES]
        if unknown:
            raise BadRule(f'Bad state "{unknown[0]}"')
        return ",".join(state for state in STATES if state in wanted)
    return value


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError as error:
        raise BadRule(f"host/network `{value}' not found") from error


@dataclass
class Table:
    policies: dict[str, str]  # built-in chain → ACCEPT or DROP; own chain → "-"
    rules: dict[str, list[Rule]] = field(default_factory=dict)

    def chain(self, name: str) -> list[Rule]:
        if name not in self.policies:
            raise BadRule("No chain/target/match by that name.")
        return self.rules.setdefault(name, [])

    def check_target(self, target: str) -> None:
        if target and target not in STANDARD_TARGETS and target not in TARGETS and target not in self.policies:
            raise BadRule(f"Couldn't load target `{target}':No such file or directory")

    def find(self, chain: str, rule: Rule) -> int:
        """Index of the first such rule; raises BadRule as ``iptables -C`` and ``-D`` do."""
        try:
            return self.chain(chain).index(rule)
        except ValueError:
            raise BadRule("Bad rule (does a matching rule exist in that chain?).") from None

    def verdict(self, chain: str, packet: Packet) -> str:
        """ACCEPT, DROP, or "REJECT kind" for a new packet, walking the rules in order."""
        return self._walk(chain, packet, 0) or self.policies.get(chain, "ACCEPT")

    def _walk(self, chain: str, packet: Packet, depth: int) -> str | None:
        if depth > 32:
            return "DROP"
        for rule in self.rules.get(chain, []):
            if not rule.hits(packet):
                continue
            if rule.target in ("ACCEPT", "DROP"):
                return rule.target
            if rule.target == "RETURN":
                return None
            if rule.target == "REJECT":
                return "REJECT " + dict(rule.target_options)["--reject-with"]
            if rule.target in self.policies and (verdict := self._walk(rule.target, packet, depth + 1)):
                return verdict
        return None

    def spec(self, only: str | None = None) -> list[str]:
        """As ``iptables -S`` prints it."""
        names = [only] if only else list(self.policies)
        lines = [f"-N {n}" if self.policies[n] == "-" else f"-P {n} {self.policies[n]}" for n in names]
        return lines + [f"-A {name} {rule}".rstrip() for name in names for rule in self.rules.get(name, [])]


def empty_table(name: str) -> Table:
    return Table(dict.fromkeys(BUILT_IN[name], "ACCEPT"))


@dataclass
class Firewall:
    """The live IPv4 rules of one machine."""

    tables: dict[str, Table] = field(default_factory=dict)

    def table(self, name: str) -> Table:
        if name not in BUILT_IN:
            raise BadRule(f"can't initialize iptables table `{name}': Table does not exist (do you need to insmod?)")
        return self.tables.setdefault(name, empty_table(name))

    @property
    def filter(self) -> Table:
        return self.table("filter")

    def save(self) -> str:
        """As ``iptables-save`` prints it."""
        lines: list[str] = []
        for name, table in self.tables.items():
            lines.append(f"*{name}")
            lines += [f":{chain} {policy} [0:0]" for chain, policy in table.policies.items()]
            lines += [line for line in table.spec() if line.startswith("-A")]
            lines.append("COMMIT")
        return "".join(line + "\n" for line in lines)

    def restore(self, text: str, *, flush: bool = True) -> None:
        """Apply a saved set, all or nothing per table. ``flush`` False appends, as --noflush. Raises BadRule."""
        pending: Table | None = None
        name = ""
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            try:
                if line.startswith("*"):
                    name = line[1:]
                    current = self.table(name)
                    copy = Table(dict(current.policies), {k: list(v) for k, v in current.rules.items()})
                    pending = empty_table(name) if flush else copy
                elif line == "COMMIT" and pending is not None:
                    self.tables[name] = pending
                    pending = None
                elif pending is None:
                    raise BadRule("no command specified")
                elif line.startswith(":"):
                    chain, policy = line[1:].split()[:2]
                    pending.policies[chain] = policy
                    if not flush and policy == "-":
                        pending.rules[chain] = []
                else:
                    words = shlex.split(line)
                    if words[0] not in ("-A", "--append"):
                        raise BadRule(f"unknown command {words[0]}")
                    rule = parse_rule(words[2:])
                    pending.check_target(rule.target)
                    pending.chain(words[1]).append(rule)
            except (BadRule, ValueError, IndexError) as error:
                raise BadRule(f"line {number} failed: {error}") from error
        if pending is not None:
            raise BadRule("COMMIT expected at end of input")
