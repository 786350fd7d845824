"""The Oracle driver against the lab's Oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle_lab import OracleLab
from soon import soon

from hybridlab import errors, ports
from hybridlab.drivers.oracle import OracleDriver
from hybridlab.models import CloudInstance, CloudResource, LaunchRequest, SecurityRule

A1, MICRO = "VM.Standard.A1.Flex", "VM.Standard.E2.1.Micro"
UBUNTU = "Canonical Ubuntu"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5R0m6XqJ5bU1xYy8m0l1gq0Z6f7qgT3F2Q3c9k7d9X test"
TAGS = {ports.TAG: "drivers"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[OracleLab]:
    lab = OracleLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def oracle(cloud: OracleLab) -> OracleDriver:
    told = cloud.world.endpoints["oracle"]
    driver = OracleDriver(
        config_file=told["config_file"], profile=told["profile"], endpoint=told["endpoint"], compartment=None
    )
    as_stages_see_it: ports.Oracle = driver
    assert as_stages_see_it.availability_domains()
    return driver


def request(network: dict[str, CloudResource], oracle: ports.Oracle, **changes: Any) -> LaunchRequest:
    image = oracle.newest_image(changes.get("shape", A1), changes.pop("arch", "arm64"), os=UBUNTU, version="24.04")
    fields: dict[str, Any] = {
        "name": "arm1",
        "shape": A1,
        "ocpus": 2,
        "memory_gb": 12,
        "boot_volume_gb": 50,
        "image_id": image.id,
        "availability_domain": oracle.availability_domains()[0],
        "subnet_id": network["subnet"].id,
        "nsg_id": network["nsg"].id,
        "authorized_keys": KEY,
        "tags": TAGS,
        "user_data": "#cloud-config\n",
        **changes,
    }
    return LaunchRequest(**fields)


@pytest.fixture
def network(oracle: OracleDriver) -> dict[str, CloudResource]:
    vcn = oracle.create_vcn("net", "10.0.0.0/16", TAGS)
    gateway = oracle.create_internet_gateway("gateway", vcn.id, TAGS)
    oracle.set_default_route(vcn.detail["default_route_table_id"], gateway.id)
    nsg = oracle.create_nsg("group", vcn.id, TAGS)
    subnet = oracle.create_subnet("subnet", vcn.id, "10.0.0.0/24", TAGS)
    return {"vcn": vcn, "internet-gateway": gateway, "nsg": nsg, "subnet": subnet}


def by_kind(oracle: ports.Oracle) -> dict[str, CloudResource]:
    return {r.kind: r for r in oracle.resources()}


def test_network_is_seen_as_it_was_made(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    seen = by_kind(oracle)
    assert set(seen) == {"vcn", "internet-gateway", "route-table", "security-list", "nsg", "subnet"}
    assert all(seen[kind].tags == TAGS for kind in network)
    assert {seen[kind].detail["vcn_id"] for kind in seen} == {network["vcn"].id}
    assert (seen["vcn"].detail["cidr"], seen["subnet"].detail["cidr"]) == ("10.0.0.0/16", "10.0.0.0/24")
    assert seen["route-table"].id == seen["vcn"].detail["default_route_table_id"]
    assert seen["route-table"].detail["rules"] == (("0.0.0.0/0", network["internet-gateway"].id),)


def test_rules_come_back_and_go(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    nsg = network["nsg"].id
    wanted = {
        SecurityRule("ingress", "all", "group", description="inside"),
        SecurityRule("ingress", "tcp", "198.51.100.7/32", 22, 22, "SSH"),
        SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4, "path MTU"),
        SecurityRule("egress", "all", "0.0.0.0/0"),
        # more than one call takes
        *(SecurityRule("ingress", "udp", "10.0.0.0/16", port, port) for port in range(8000, 8030)),
    }
    oracle.add_rules(nsg, sorted(wanted, key=str))
    found = oracle.rules(nsg)
    assert set(found) == wanted
    oracle.remove_rules(nsg, [r.id for r in found if r.protocol == "udp"])
    assert {r.protocol for r in oracle.rules(nsg)} == {"all", "tcp", "icmp"}


def test_the_default_security_list_can_be_closed(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    listed = network["vcn"].detail["default_security_list_id"]
    kept = (SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4),)
    oracle.set_security_list(listed, kept)
    assert by_kind(oracle)["security-list"].detail["ingress"] == kept


def running(oracle: ports.Oracle) -> CloudInstance:
    def up(seen: tuple[CloudInstance, ...]) -> bool:
        return any(i.state == "RUNNING" and i.public_ip and i.boot_volume_id for i in seen)

    found: tuple[CloudInstance, ...] = soon(oracle.instances, up, "the VM")
    return found[0]


def test_a_machine_from_launch_to_nothing_left(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    asked = oracle.launch(request(network, oracle), retry_token="t1")
    assert asked.state == "PROVISIONING"
    assert oracle.launch(request(network, oracle), retry_token="t1").id == asked.id
    machine = running(oracle)
    assert len(oracle.instances()) == 1
    assert (machine.id, machine.name, machine.shape, machine.arch) == (asked.id, "arm1", A1, "arm64")
    assert (machine.ocpus, machine.memory_gb, machine.boot_volume_gb) == (2, 12, 50)
    assert machine.private_ip
    assert machine.private_ip.startswith("10.0.0.")
    assert machine.subnet_id == network["subnet"].id
    volume = by_kind(oracle)["boot-volume"]
    assert (volume.id, volume.detail["size_gb"], volume.detail["attached"]) == (machine.boot_volume_id, 50, True)
    with pytest.raises(errors.Conflict, match=network["subnet"].id):
        oracle.delete(network["subnet"])
    oracle.terminate(machine.id)
    soon(oracle.instances, lambda seen: not seen, "the end of the VM")
    for kind in ("subnet", "nsg", "internet-gateway", "vcn"):  # the gateway is in the default route, and still goes

        def gone(kind: str = kind) -> bool:
            try:
                oracle.delete(network[kind])
            except errors.Conflict:  # VNICs linger
                return False
            return True

        soon(gone, bool, f"deletion of the {kind}")
    assert oracle.resources() == ()


def test_a_micro_has_no_shape_config(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    domain = next(s.availability_domain for s in oracle.shapes() if s.name == MICRO)
    oracle.launch(
        request(
            network,
            oracle,
            name="amd1",
            shape=MICRO,
            arch="amd64",
            ocpus=0.125,
            memory_gb=1,
            availability_domain=domain,
        ),
        retry_token="t2",
    )
    assert running(oracle).arch == "amd64"


def test_a_look_takes_few_calls(oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    oracle.launch(request(network, oracle), retry_token="t1")
    running(oracle)
    before = oracle.calls
    oracle.instances()
    assert oracle.calls - before == 4  # instances, boot volumes, their attachments, public addresses
    before = oracle.calls
    oracle.resources()
    assert oracle.calls - before == 8


class SteppedClock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def driver(cloud: OracleLab, clock: SteppedClock, memory: Path) -> OracleDriver:
    told = cloud.world.endpoints["oracle"]
    where = {"config_file": told["config_file"], "profile": told["profile"], "endpoint": told["endpoint"]}
    return OracleDriver(**where, compartment=None, clock=clock, memory=memory)


def calls_of(oracle: OracleDriver, max_age_s: float) -> int:
    before = oracle.calls
    oracle.survey(TAGS, max_age_s=max_age_s)
    return oracle.calls - before


def test_a_survey_serves_again_until_something_changes_or_it_is_old(
    cloud: OracleLab, oracle: OracleDriver, network: dict[str, CloudResource], tmp_path: Path
) -> None:
    clock = SteppedClock()
    here = driver(cloud, clock, tmp_path / "oracle.json")
    seen = here.survey(TAGS)
    assert {r.kind for r in seen.resources} == {
        "vcn",
        "internet-gateway",
        "route-table",
        "security-list",
        "nsg",
        "subnet",
    }
    assert set(seen.rules) == {network["nsg"].id}
    clock.time += 59
    assert calls_of(here, 60.0) == 0
    assert calls_of(here, 0.0) == 9, "a look of one's own always asks"
    clock.time += 61
    assert calls_of(here, 60.0) == 9
    clock.time += 1
    here.add_rules(network["nsg"].id, [SecurityRule("egress", "all", "0.0.0.0/0")])
    clock.time += 1
    assert here.last_survey(60.0) is None
    (rule,) = here.survey(TAGS, max_age_s=60.0).rules[network["nsg"].id]
    clock.time += 1
    with pytest.raises(errors.NotFound):  # refused, but asked: who knows what came of it
        here.tag_boot_volume("ocid1.bootvolume.oc1..no", TAGS)
    assert calls_of(here, 60.0) == 0, "reading what isn't there is no change"
    with pytest.raises(errors.Refused):
        here.remove_rules(network["nsg"].id, ["no-such-rule"])
    clock.time += 1
    assert calls_of(here, 60.0) == 9
    assert rule.direction == "egress"


def test_another_process_finds_the_survey_and_the_addresses(
    cloud: OracleLab, oracle: OracleDriver, network: dict[str, CloudResource], tmp_path: Path
) -> None:
    clock, memory = SteppedClock(), tmp_path / "oracle.json"
    here = driver(cloud, clock, memory)
    starting = here.launch(request(network, oracle), retry_token="t1")
    clock.time += 1
    assert here.survey(TAGS).instances[0].state == "PROVISIONING"
    assert here.last_survey(60.0) is None, "what is on its way does not serve again"
    machine = running(here)
    clock.time += 1
    here.tag_boot_volume(str(machine.boot_volume_id), TAGS)
    clock.time += 1
    seen = here.survey(TAGS)
    there = driver(cloud, clock, memory)
    assert there.last_survey(60.0) == seen
    assert there.survey(TAGS, max_age_s=60.0) == there.survey(TAGS), "but a process's plan starts from its own look"
    (again,) = there.instances()
    assert (again, again.id) == (seen.instances[0], starting.id)
    verbs = [row["target"].rpartition("/")[2] for row in cloud.requests() if row["part"] == "oracle"][-3:]
    assert verbs == ["instances", "bootVolumes", "publicIps"], "its tags tell the volume, and addresses are known"
    memory.write_text("{half a file", encoding="utf-8")
    broken = driver(cloud, clock, memory)
    assert broken.last_survey(60.0) is None
    assert broken.instances() == (again,)


def test_a_left_over_volume_makes_attachments_asked_for(
    cloud: OracleLab, oracle: OracleDriver, network: dict[str, CloudResource]
) -> None:
    """A volume with the tags of a VM that is another's now must not pass for its volume."""
    oracle.launch(request(network, oracle), retry_token="t1")
    old = running(oracle)
    oracle.tag_boot_volume(str(old.boot_volume_id), TAGS)
    cloud.compute.terminate_instance(old.id, preserve_boot_volume=True)
    soon(oracle.instances, lambda seen: not seen, "the end of the VM")
    oracle.launch(request(network, oracle, name="arm2"), retry_token="t2")
    new = running(oracle)
    assert new.boot_volume_id != old.boot_volume_id
    seen = {r.id: r.detail["attached"] for r in oracle.survey(TAGS).resources if r.kind == "boot-volume"}
    assert seen == {old.boot_volume_id: False, new.boot_volume_id: True}
    assert oracle.survey(TAGS).instances[0].boot_volume_id == new.boot_volume_id


def test_refusals_are_told_apart(cloud: OracleLab, oracle: OracleDriver, network: dict[str, CloudResource]) -> None:
    with pytest.raises(errors.LimitReached, match="standard-a1-memory-count"):
        oracle.launch(request(network, oracle, memory_gb=80), retry_token="t1")
    cloud.world.faults.ask("out-of-capacity", 1)
    with pytest.raises(errors.OutOfCapacity):
        oracle.launch(request(network, oracle), retry_token="t2")
    cloud.world.faults.ask("too-many-requests", 1, "POST")
    before = oracle.calls
    with pytest.raises(errors.TooManyRequests):
        oracle.launch(request(network, oracle), retry_token="t3")
    assert oracle.calls == before + 1
    with pytest.raises(errors.NotFound, match=r"ocid1\.networksecuritygroup\.oc1\.\.no"):
        oracle.rules("ocid1.networksecuritygroup.oc1..no")


def test_reads_outlast_429(cloud: OracleLab, oracle: OracleDriver) -> None:
    cloud.world.faults.ask("too-many-requests", 2)
    assert oracle.instances() == ()


def test_another_key_is_not_believed(cloud: OracleLab, oracle: OracleDriver, tmp_path: Path) -> None:
    told = cloud.world.endpoints["oracle"]
    text = Path(told["config_file"]).read_text(encoding="utf-8")
    config = tmp_path / "other"
    other = ":".join(["00"] * 16)
    config.write_text("\n".join(f"fingerprint={other}" if "fingerprint" in x else x for x in text.splitlines()))
    stranger = OracleDriver(config_file=str(config), profile="DEFAULT", endpoint=told["endpoint"], compartment=None)
    with pytest.raises(errors.AuthFailed, match="clock"):
        stranger.availability_domains()


def test_nobody_answers(cloud: OracleLab) -> None:
    told = cloud.world.endpoints["oracle"]
    lost = OracleDriver(
        config_file=told["config_file"], profile="DEFAULT", endpoint="http://127.0.0.1:9", compartment=None
    )
    with pytest.raises(errors.Unreachable):
        lost.availability_domains()


def test_the_account(oracle: OracleDriver) -> None:
    limits = {(x.name, x.availability_domain): x for x in oracle.limits()}
    assert limits["standard-a1-core-regional-count", None].available == 4
    assert limits["standard-a1-memory-count", oracle.availability_domains()[0]].available == 24
    assert {s.billing for s in oracle.shapes() if s.name in (A1, MICRO)} == {"LIMITED_FREE", "ALWAYS_FREE"}
    assert "aarch64" in oracle.newest_image(A1, "arm64", os=UBUNTU, version="24.04").name
    plain = oracle.newest_image(MICRO, "amd64", os=UBUNTU, version="24.04").name
    assert "aarch64" not in plain
    assert "GPU" not in plain
    with pytest.raises(errors.NotFound, match="no Canonical Ubuntu"):
        oracle.newest_image(A1, "amd64", os=UBUNTU, version="24.04")
    assert oracle.capacity(oracle.availability_domains()[0], A1, 1, 6) == "AVAILABLE"
