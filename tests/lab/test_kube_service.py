"""K3s starting, stopping, joining and being removed on the lab's machines, and why agents fail to join."""

from __future__ import annotations

import json
import ssl
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import urllib3
from kube_fixture import KubeLab, machine

from hybridlab.lab.world import Machine

sdk: Any = kubernetes  # every field of its models is optional, which no test can be typed against
DEADLINE_S = 10
SERVER = "https://10.0.0.11:6443"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[KubeLab]:
    running = KubeLab(tmp_path / "lab", speed=40)
    yield running
    running.stop()


def until(condition: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE_S} s for {what}")


def core_of(lab: KubeLab, server: Machine) -> Any:
    return sdk.client.CoreV1Api(sdk.config.new_client_from_config(str(lab.kubeconfig(server))))


def nodes(core: Any) -> set[str]:
    return {node.metadata.name for node in core.list_node().items}


def journal(lab: KubeLab, one: Machine) -> str:
    return "\n".join(lab.hosts.journals.get((one.id, "k3s-agent"), ()))


# -- servers -----------------------------------------------------------------------------------------------------------
def test_a_server_writes_its_token_and_kubeconfig_for_root_only(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    assert lab.world.dial("203.0.113.11", 6443)[0] == "refused"
    lab.start_server(server, token="first-secret", **{"tls-san": ["k.example.org"]})
    root = lab.hosts.folder(server.id)
    token, kubeconfig = root / "var/lib/rancher/k3s/server/node-token", root / "etc/rancher/k3s/k3s.yaml"
    assert token.read_text().startswith("K10")
    assert token.read_text().strip().endswith("::server:first-secret")
    assert "server: https://127.0.0.1:6443\n" in kubeconfig.read_text()
    for path in (token, kubeconfig):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert lab.world.dial("203.0.113.11", 6443)[0] == "open"
    assert lab.world.dial("10.0.0.11", 6443)[0] == "open"


def test_the_servers_certificate_names_its_addresses_and_sans(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server, **{"tls-san": ["k.example.org"]})
    port = lab.world.dial("10.0.0.11", 6443)[1]
    authority = lab.hosts.folder(server.id) / "var/lib/rancher/k3s/server/tls/server-ca.crt"
    for name, believed in (("203.0.113.11", True), ("k.example.org", True), ("127.0.0.1", True), ("10.9.9.9", False)):
        pool = urllib3.HTTPSConnectionPool(
            "127.0.0.1", port, ca_certs=str(authority), assert_hostname=name, server_hostname=name, retries=False
        )
        if believed:
            assert pool.request("GET", "/cacerts").data == authority.read_bytes()
        else:
            with pytest.raises(urllib3.exceptions.SSLError):
                pool.request("GET", "/cacerts")
        pool.close()


def test_health_and_version(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server)
    port = lab.world.dial("10.0.0.11", 6443)[1]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib3.PoolManager(ssl_context=context) as http, warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
        for path in ("/healthz", "/readyz", "/livez"):
            assert http.request("GET", f"https://127.0.0.1:{port}{path}").data == b"ok"
        refused = http.request("GET", f"https://127.0.0.1:{port}/version")
    assert refused.status == 401
    version = sdk.client.VersionApi(sdk.config.new_client_from_config(str(lab.kubeconfig(server)))).get_code()
    assert (version.git_version, version.major, version.minor) == ("v1.34.2+k3s1", "1", "34")


def test_stopped_and_started_it_is_the_same_cluster(tmp_path: Path) -> None:
    lab = KubeLab(tmp_path / "lab", speed=40)
    server = lab.three_nodes()
    core = core_of(lab, server)
    made = core.create_namespaced_config_map("default", {"metadata": {"name": "kept"}, "data": {"k": "v"}})
    listed = int(core.list_namespaced_config_map("default").metadata.resource_version)
    port = lab.world.dial("10.0.0.11", 6443)[1]
    lab.stop()

    again = KubeLab(tmp_path / "lab", speed=40)
    try:
        assert again.world.dial("10.0.0.11", 6443)[0] == "refused"
        again.start_server(server)
        assert again.world.dial("10.0.0.11", 6443)[1] == port
        kept = core.read_namespaced_config_map("kept", "default")
        assert kept.metadata.uid == made.metadata.uid
        assert kept.metadata.resource_version == made.metadata.resource_version
        assert int(core.list_namespaced_config_map("default").metadata.resource_version) >= listed
        url = "/api/v1/configmaps?watch=1&timeoutSeconds=1&resourceVersion=1"
        answer = core.api_client.call_api("GET", core.api_client.configuration.host + url)
        answer.read()
        event = json.loads(answer.data)
        assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    finally:
        again.stop()


def test_a_stopped_server_refuses_and_an_uninstalled_one_forgets(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server)
    first = core_of(lab, server).read_namespace("kube-system").metadata.uid
    lab.run(lab.kube.service_stopped(server.id))
    assert lab.world.dial("10.0.0.11", 6443)[0] == "refused"
    lab.start_server(server)
    assert core_of(lab, server).read_namespace("kube-system").metadata.uid == first
    lab.run(lab.kube.uninstalled(server.id, "server"))
    lab.start_server(server)
    assert core_of(lab, server).read_namespace("kube-system").metadata.uid != first


def test_another_token_cannot_open_the_clusters_data(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server, token="one")
    lab.run(lab.kube.service_stopped(server.id))
    lab.start_server(server, token="two")
    assert lab.world.dial("10.0.0.11", 6443)[0] == "refused"
    lines = lab.hosts.journals[(server.id, "k3s")]
    assert "bootstrap data already found and encrypted with different token" in lines[-1]


# -- agents ------------------------------------------------------------------------------------------------------------
def test_agents_join_with_their_own_architecture(lab: KubeLab) -> None:
    server = lab.three_nodes()
    core = core_of(lab, server)
    until(lambda: nodes(core) == {"arm1", "arm2", "amd1"}, "three nodes")
    architectures = {n.metadata.name: n.metadata.labels["kubernetes.io/arch"] for n in core.list_node().items}
    assert architectures == {"arm1": "arm64", "arm2": "arm64", "amd1": "amd64"}


def _firewall(lab: KubeLab, server: Machine) -> Callable[[], None]:
    rule = (server.id, "INPUT", 6443)
    lab.hosts.closed.add(rule)
    return lambda: lab.hosts.closed.discard(rule)


def _security_group(lab: KubeLab, server: Machine) -> Callable[[], None]:
    rule = (server.private_ip, 6443)
    lab.network.blocked.add(rule)
    return lambda: lab.network.blocked.discard(rule)


def _stopped(lab: KubeLab, server: Machine) -> Callable[[], None]:
    lab.run(lab.kube.service_stopped(server.id))
    return lambda: lab.start_server(server)


CERTS = 'failed to get CA certs: Get \\"https://10.0.0.11:6443/cacerts\\": dial tcp 10.0.0.11:6443: '


@pytest.mark.parametrize(
    ("obstacle", "line"),
    [
        (_firewall, CERTS + "connect: no route to host"),
        (_security_group, CERTS + "i/o timeout"),
        (_stopped, CERTS + "connect: connection refused"),
    ],
)
def test_an_agent_tries_until_the_way_is_free(
    lab: KubeLab, obstacle: Callable[[KubeLab, Machine], Callable[[], None]], line: str
) -> None:
    server = machine("arm1", 11)
    lab.start_server(server)
    token = lab.node_token(server)
    remove = obstacle(lab, server)
    agent = machine("arm2", 12)
    lab.start_agent(agent, server=SERVER, token=token)
    until(lambda: journal(lab, agent).count(line) >= 2, "the journal to say why, again and again")
    remove()
    until(lambda: "arm2" in nodes(core_of(lab, server)), "the node to join")


def test_wrong_tokens_never_join(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server, token="right", **{"agent-token": "for-agents"})
    good = lab.node_token(server)
    agent = machine("arm2", 12)
    for token, line in (
        (good.replace("K10", "K10f00"), "token CA hash does not match the Cluster CA certificate hash: f00"),
        (good.replace("right", "wrong"), "failed to validate token: https://10.0.0.11:6443/apis: 401 Unauthorized"),
        ("wrong", "401 Unauthorized"),
    ):
        lab.hosts.journals.clear()
        lab.start_agent(agent, server=SERVER, token=token)
        until(lambda line=line: line in journal(lab, agent), f"the journal to say {line}")  # type: ignore[misc]
    assert nodes(core_of(lab, server)) == {"arm1"}
    lab.start_agent(agent, server=SERVER, token="for-agents")
    until(lambda: "arm2" in nodes(core_of(lab, server)), "the agent token to be enough")


def test_another_machine_cannot_take_a_nodes_name(lab: KubeLab) -> None:
    server = lab.three_nodes()
    core = core_of(lab, server)
    until(lambda: "arm2" in nodes(core), "the node")
    old = machine("arm2", 12)
    lab.run(lab.kube.service_stopped(old.id))
    core.delete_node("arm2")
    new = Machine(**{**vars(machine("arm2", 14)), "id": "ocid1.instance.other"})
    lab.start_agent(new, server=SERVER, token=lab.node_token(server))
    until(lambda: "Node password rejected, duplicate hostname" in journal(lab, new), "the refusal")
    assert "arm2" not in nodes(core)
    core.delete_namespaced_secret("arm2.node-password.k3s", "kube-system")
    until(lambda: "arm2" in nodes(core), "the node to join once its password is forgotten")


def test_agents_come_back_when_their_server_does(lab: KubeLab) -> None:
    server = lab.three_nodes()
    until(lambda: len(nodes(core_of(lab, server))) == 3, "three nodes")
    agent = machine("arm2", 12)
    lab.run(lab.kube.service_stopped(server.id))
    until(lambda: "connection refused" in journal(lab, agent), "the agent to notice")
    lab.start_server(server)
    core = core_of(lab, server)

    def ready() -> bool:
        conditions = [c for n in core.list_node().items for c in n.status.conditions if c.type == "Ready"]
        return len(conditions) == 3 and all(c.status == "True" for c in conditions)

    until(ready, "all nodes to be ready again")


# -- traffic between pods ----------------------------------------------------------------------------------------------
def test_pods_talk_only_where_the_overlay_passes(lab: KubeLab) -> None:
    server = lab.three_nodes()
    one, two = "10.0.0.11", "10.0.0.12"
    assert lab.kube.traffic_ok(one, two)
    lab.hosts.closed.add(("ocid1.instance.arm2", "FORWARD", 80))
    assert lab.kube.traffic_ok(one, two), "the network policy controller's chains accept first"
    lab.hosts.closed.add(("ocid1.instance.arm2", "INPUT", 8472))
    assert not lab.kube.traffic_ok(one, two)
    assert not lab.kube.traffic_ok(two, one)
    lab.hosts.closed.clear()
    lab.network.blocked.add((one, 8472))
    assert not lab.kube.traffic_ok(two, one)
    assert not lab.kube.traffic_ok(one, "10.0.0.99")
    lab.network.blocked.clear()
    lab.run(lab.kube.service_stopped(server.id))
    lab.start_server(server, **{"disable-network-policy": True})
    lab.hosts.closed.add(("ocid1.instance.arm2", "FORWARD", 80))
    assert not lab.kube.traffic_ok(one, two)


# -- the request log ---------------------------------------------------------------------------------------------------
def test_every_request_is_logged_and_controllers_are_not(lab: KubeLab) -> None:
    server = machine("arm1", 11)
    lab.start_server(server)
    core = core_of(lab, server)
    core.create_namespaced_config_map("default", {"metadata": {"name": "a"}})
    core.read_namespaced_config_map("a", "default")
    core.create_namespaced_config_map("default", {"metadata": {"name": "b"}}, dry_run="All")
    rows = [json.loads(line) for line in (lab.folder / "requests.jsonl").read_text().splitlines()]
    mine = [r for r in rows if r["part"] == "kube" and r["target"] != "/api/v1/nodes"]  # the node that joined
    kube = [(r["verb"], r["target"], r["status"], r["mutating"]) for r in mine]
    path = "/api/v1/namespaces/default/configmaps"
    assert kube == [
        ("POST", path, 201, True),
        ("GET", f"{path}/a", 200, False),
        ("POST", f"{path}?dryRun=All", 201, False),
    ]
    assert all(r["actor"].startswith("OpenAPI-Generator/") for r in mine)
