"""The lab's iptables: normal form and verdicts."""

from __future__ import annotations

import shlex
from importlib import resources

import pytest

from hybridlab.lab.hosts.firewall import BadRule, Firewall, Packet, parse_rule

ORACLE = resources.files("hybridlab.data").joinpath("hosts/oracle-ubuntu-rules.v4").read_text("utf-8")
PROHIBITED = "REJECT icmp-host-prohibited"


def firewall(*rules: str, policy: str = "ACCEPT") -> Firewall:
    made = Firewall()
    lines = ["*filter", f":INPUT {policy} [0:0]", ":OWN - [0:0]", *(f"-A {rule}" for rule in rules), "COMMIT"]
    made.restore("\n".join(lines))
    return made


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("-p tcp --dport 22 -j ACCEPT", "-p tcp -m tcp --dport 22 -j ACCEPT"),
        ("-j ACCEPT -p udp --dport 8472", "-p udp -m udp --dport 8472 -j ACCEPT"),
        ("-s 10.0.0.7 -j DROP", "-s 10.0.0.7/32 -j DROP"),
        ("--source 10.0.0.7/24 -j DROP", "-s 10.0.0.0/24 -j DROP"),
        ("-m state --state ESTABLISHED,RELATED -j ACCEPT", "-m state --state RELATED,ESTABLISHED -j ACCEPT"),
        ("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
        ("! -i lo -j DROP", "! -i lo -j DROP"),
        ("-m comment --comment 'two words' -j ACCEPT", '-m comment --comment "two words" -j ACCEPT'),
    ],
)
def test_rules_have_one_form(written: str, kept: str) -> None:
    assert str(parse_rule(shlex.split(written))) == kept
    assert parse_rule(shlex.split(kept)) == parse_rule(shlex.split(written))


@pytest.mark.parametrize(
    "text",
    ["--dport 22 -j ACCEPT", "-m nosuch -j ACCEPT", "-j REJECT --reject-with no", "-s x -j DROP", "-m state --state X"],
)
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(BadRule):
        parse_rule(shlex.split(text))


@pytest.mark.parametrize(
    ("chain", "packet", "verdict"),
    [
        ("INPUT", Packet("tcp", 22), "ACCEPT"),
        ("INPUT", Packet("tcp", 6443), PROHIBITED),
        ("INPUT", Packet("udp", 8472), PROHIBITED),
        ("INPUT", Packet("udp", 22), PROHIBITED),
        ("INPUT", Packet("icmp", 0), "ACCEPT"),
        ("INPUT", Packet("tcp", 6443, in_interface="lo"), "ACCEPT"),
        ("FORWARD", Packet("tcp", 80), PROHIBITED),
    ],
)
def test_oracles_rules(chain: str, packet: Packet, verdict: str) -> None:
    made = Firewall()
    made.restore(ORACLE)
    assert made.filter.verdict(chain, packet) == verdict


@pytest.mark.parametrize(
    ("rules", "policy", "verdict"),
    [
        ([], "DROP", "DROP"),
        (["INPUT -j DROP", "INPUT -j ACCEPT"], "ACCEPT", "DROP"),
        (["INPUT -j ACCEPT", "INPUT -j DROP"], "ACCEPT", "ACCEPT"),
        (["INPUT -m state --state RELATED,ESTABLISHED -j DROP"], "ACCEPT", "ACCEPT"),
        (["INPUT -m conntrack --ctstate NEW -j DROP"], "ACCEPT", "DROP"),
        (["INPUT -p tcp --dport 80:90 -j DROP"], "ACCEPT", "DROP"),
        (["INPUT -p tcp --dport 81:90 -j DROP"], "ACCEPT", "ACCEPT"),
        (["INPUT -p tcp -m multiport --dports 22,80 -j DROP"], "ACCEPT", "DROP"),
        (["INPUT -p tcp ! --dport 80 -j DROP"], "ACCEPT", "ACCEPT"),
        (["INPUT -s 10.0.0.0/16 -j DROP"], "ACCEPT", "DROP"),
        (["INPUT ! -s 10.0.0.0/16 -j DROP"], "ACCEPT", "ACCEPT"),
        (["INPUT -j OWN", "OWN -j DROP"], "ACCEPT", "DROP"),
        (["INPUT -j OWN", "INPUT -j DROP", "OWN -j RETURN"], "ACCEPT", "DROP"),
        (["INPUT -j LOG", "INPUT -j REJECT --reject-with tcp-reset"], "ACCEPT", "REJECT tcp-reset"),
    ],
)
def test_the_first_rule_that_decides_wins(rules: list[str], policy: str, verdict: str) -> None:
    packet = Packet("tcp", 80, source="10.0.0.12", dest="10.0.0.11")
    assert firewall(*rules, policy=policy).filter.verdict("INPUT", packet) == verdict


def test_saving_and_restoring_is_the_identity() -> None:
    one, two = Firewall(), Firewall()
    one.restore(ORACLE)
    two.restore(one.save())
    assert one == two
    two.restore(ORACLE, flush=False)
    assert len(two.filter.rules["INPUT"]) == 2 * len(one.filter.rules["INPUT"]), "--noflush appends"
