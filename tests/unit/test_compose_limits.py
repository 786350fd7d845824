"""What an API server would refuse is left out and said so, and no part of an entry is dropped in silence.

Each rule was found with a real kube-apiserver 1.36, which refused what was written before.
"""

from __future__ import annotations

import pytest
from compose_kit import container, converted, find, pod, verdict, workload

from hybridlab.compose.write import to_yaml


@pytest.mark.parametrize(
    ("snippet", "key", "word"),
    [
        ("extra_hosts: {under_score: ['1.2.3.4']}", "extra_hosts.under_score", "not a host name"),
        ("extra_hosts: {'*.wild.example': ['1.2.3.4']}", "extra_hosts.*.wild.example", "not a host name"),
        ("dns_search: [a..b]", "dns_search", "a..b: not a domain"),
        (f"dns_search: [{'x' * 300}]", "dns_search", "not a domain"),
        (f"dns_search: [{', '.join(f'd{n}.example' for n in range(33))}]", "dns_search", "d32.example: more than"),
        ("dns_opt: [':2']", "dns_opt", "has no name"),
        ("user: '99999999999'", "user", "outside 0 to 2147483647"),
        ("user: '1:-5'", "user", "-5 is outside"),
        ("group_add: ['99999999999']", "group_add", "outside"),
        ("environment: {'é': x}", "environment.é", "printable ASCII"),
        ("environment: {'a=b': x}", "environment.a=b", "printable ASCII"),
        ("network_mode: host, sysctls: {net/ipv4/ip_forward: '1'}", "sysctls", "host network"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_by_name_and_left_out(snippet: str, key: str, word: str) -> None:
    made = converted(f"services: {{web: {{image: a, {snippet}}}}}")
    kind, note = verdict(made, "web", key)
    assert kind == "refused"
    assert word in note
    assert not set(pod(made, "web")) & {"hostAliases"}
    written = to_yaml(workload(made, "web"))
    assert not [
        text for text in ("under_score", "wild", "a..b", "xxx", "d32.", "99999999999", "é") if f" {text}" in written
    ]


def test_host_aliases_are_lower_case() -> None:
    made = converted("services: {web: {image: a, extra_hosts: {NAS.Home: ['10.0.0.2']}}}")
    assert pod(made, "web")["hostAliases"] == [{"ip": "10.0.0.2", "hostnames": ["nas.home"]}]


def test_a_sysctl_may_be_spelled_with_slashes() -> None:
    made = converted("services: {web: {image: a, sysctls: {net/ipv4/tcp_syncookies: '1'}}}")
    assert pod(made, "web")["securityContext"]["sysctls"] == [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]
    assert verdict(made, "web", "sysctls")[0] == "mapped"


@pytest.mark.parametrize(
    ("asked", "privileged", "source", "given", "line"),
    [
        ("rslave", False, "/proc", "HostToContainer", "mountPropagation HostToContainer"),
        ("rshared", True, "/dev", "Bidirectional", "mountPropagation Bidirectional"),
        ("shared", False, "/dev", "HostToContainer", "takes a privileged container"),
        ("rprivate", False, "/proc", None, "hostPath"),
        ("rslave", False, "/srv/media", None, "nothing is mounted below a volume of the cluster"),
    ],
)
def test_mounts_of_the_node_that_appear_later_reach_the_container(
    asked: str, privileged: bool, source: str, given: str | None, line: str
) -> None:
    entry = f"{{type: bind, source: {source}, target: /seen, bind: {{propagation: {asked}}}}}"
    made = converted(f"services: {{web: {{image: a, privileged: {str(privileged).lower()}, volumes: [{entry}]}}}}")
    assert container(made, "web")["volumeMounts"][0].get("mountPropagation") == given
    assert line in verdict(made, "web", "volumes./seen")[1]


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("{type: bind, source: ./d, target: /x, bind: {selinux: Z}}", "SELinux label Z"),
        ("{type: bind, source: /proc, target: /x, read_only: true, bind: {recursive: disabled}}", "recursive disabled"),
        ("{type: tmpfs, target: /x, tmpfs: {mode: 448}}", "mode"),
        ("{type: volume, source: v, target: /x, volume: {labels: {a: b}}}", "labels"),
    ],
)
def test_what_else_a_volume_says_is_not_dropped_in_silence(entry: str, word: str) -> None:
    made = converted(f"services: {{web: {{image: a, volumes: [{entry}]}}}}\nvolumes: {{v: {{}}}}")
    kind, note = verdict(made, "web", "volumes./x")
    assert kind == "approximated"
    assert word in note


def test_what_is_spoken_on_a_port_reaches_its_service() -> None:
    made = converted(
        "services: {web: {image: a, ports: [{target: 80, published: '80', app_protocol: http}, "
        "{target: 81, app_protocol: 'not a name'}]}}"
    )
    assert [port.get("appProtocol") for port in find(made, "Service", "web")["spec"]["ports"]] == ["http", None]


@pytest.mark.parametrize("once", ["restart: 'no'", "restart: on-failure"])
def test_a_mode_has_its_line_for_what_runs_once_too(once: str) -> None:
    made = converted(f"services: {{web: {{image: a, {once}, deploy: {{mode: replicated, replicas: 1}}}}}}")
    assert verdict(made, "web", "deploy.mode") == ("mapped", "Job: once in the cluster")
