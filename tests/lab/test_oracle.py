"""The lab's Oracle through the official SDK: who is believed, what exists, life cycles, idempotency, limits."""

from __future__ import annotations

import base64
import email.utils
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import oci
import pytest
import requests  # what the SDK's signer speaks; only to prepare, nothing is sent
from oracle_lab import A1, MICRO, OracleLab, eventually, refused

from hybridlab.lab.oracle.credentials import prepare

models = oci.core.models


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OracleLab]:
    lab = OracleLab(tmp_path)
    yield lab
    lab.close()


def all_of(call: Any, *args: Any, **kwargs: Any) -> list[Any]:
    return list(oci.pagination.list_call_get_all_results(call, *args, **kwargs).data)


# -- who is believed -----------------------------------------------------------------------------------------------
def signed(
    lab: OracleLab, method: str, path: str, body: str | None = None, *, date: str = "", only: list[str] | None = None
) -> httpx.Request:
    """A request as the SDK signs it, with a date of our choice, or with only some of its headers signed."""
    signer = oci.signer.Signer.from_config(lab.config)
    if only:
        signer.create_signers(signer.api_key, signer.private_key, only, [])
    url = lab.endpoint + path
    given = {"date": date} if date else {}
    prepared = requests.Request(method, url, data=body, auth=signer, headers=given).prepare()
    return httpx.Request(method, url, headers={k: str(v) for k, v in prepared.headers.items()}, content=body)


@pytest.mark.parametrize(
    ("body", "sent", "header"),
    [
        (None, None, {}),
        (None, None, {"authorization": 'Signature algorithm="rsa-sha256"'}),
        (None, None, {"date": "Tue, 24 Nov 2026 01:00:00 GMT"}),
        ('{"a": 1}', '{"a": 2}', {}),
        ('{"a": 1}', '{"a": 1}', {"content-type": "text/plain"}),
    ],
    ids=["other path", "no signature", "other date", "other body", "other content type"],
)
def test_tampered_request_is_not_believed(
    lab: OracleLab, body: str | None, sent: str | None, header: dict[str, str]
) -> None:
    method = "GET" if body is None else "POST"
    path = "/20160918/vcns" + (f"?compartmentId={lab.tenancy}" if body is None else "")
    good = signed(lab, method, path, body)
    assert httpx.Client().send(good).status_code != 401
    url = lab.endpoint + (path if header or body else "/20160918/instances?compartmentId=" + lab.tenancy)
    answer = httpx.request(method, url, headers={**good.headers, **header}, content=sent)
    assert (answer.status_code, answer.json()["code"]) == (401, "NotAuthenticated")


def test_stale_or_partly_signed_request_is_not_believed(lab: OracleLab) -> None:
    def status(**how: Any) -> int:
        return httpx.Client().send(signed(lab, "GET", "/20160918/regions", **how)).status_code

    def minutes_off(minutes: float) -> str:
        return email.utils.formatdate(time.time() + 60 * minutes, usegmt=True)

    assert status(date=minutes_off(-4)) == status(date=minutes_off(4)) == 200
    assert status(date=minutes_off(-6)) == status(date=minutes_off(6)) == status(date="yesterday") == 401
    assert status(only=["date", "(request-target)", "host"]) == 200
    for left_out in ("date", "(request-target)", "host"):
        assert status(only=[name for name in ("date", "(request-target)", "host") if name != left_out]) == 401
    headers_only = signed(lab, "POST", "/20160918/vcns", "{}", only=["date", "(request-target)", "host"])
    assert httpx.Client().send(headers_only).status_code == 401


def test_other_key_and_other_user_are_not_believed(lab: OracleLab, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for change in ({"key_file": None, "key_content": other.decode()}, {"user": lab.config["user"] + "x"}):
        client = oci.identity.IdentityClient({**lab.config, **change}, service_endpoint=lab.endpoint)
        error = refused(client.list_availability_domains, lab.tenancy)
        assert (error.status, error.code) == (401, "NotAuthenticated")


def test_config_and_key_are_private_and_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "oci"
    made = prepare(folder, tenancy_id="ocid1.tenancy.oc1..t", user_id="ocid1.user.oc1..u")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "config", folder / "api_key.pem")] == [0o600, 0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    oci.config.validate_config(oci.config.from_file(str(made.config_file)))
    again = prepare(folder, tenancy_id="ocid1.tenancy.oc1..t", user_id="ocid1.user.oc1..u")
    assert again.fingerprint == made.fingerprint


def test_unknown_operations_and_parameters_are_refused(lab: OracleLab) -> None:
    def code(method: str, path: str, body: str | None = None) -> tuple[int, str]:
        answer = httpx.Client().send(signed(lab, method, path, body))
        assert answer.headers["opc-request-id"]
        return answer.status_code, answer.json()["code"]

    assert code("GET", "/20160918/loadBalancers") == (404, "NotFound")
    assert code("DELETE", "/20160918/shapes") == (405, "MethodNotAllowed")
    assert code("GET", f"/20160918/vcns?compartmentId={lab.tenancy}&color=red") == (400, "InvalidParameter")
    assert code("GET", "/20160918/vcns") == (400, "MissingParameter")
    assert code("POST", "/20160918/vcns", "nonsense") == (400, "CannotParseRequest")
    assert code("POST", "/20160918/vcns", '{"compartmentId": "x", "colour": "red"}') == (400, "InvalidParameter")


# -- what exists ---------------------------------------------------------------------------------------------------
def test_region_and_domains(lab: OracleLab) -> None:
    (region,) = lab.identity.list_region_subscriptions(lab.tenancy).data
    assert region.is_home_region
    assert region.region_name == lab.config["region"]
    assert len(lab.domains()) == 3
    assert lab.identity.get_tenancy(lab.tenancy).data.id == lab.tenancy
    assert refused(lab.identity.list_availability_domains, "ocid1.tenancy.oc1..nobody").status == 404


def test_shapes_differ_per_domain(lab: OracleLab) -> None:
    found = {
        ad: {s.shape: s for s in all_of(lab.compute.list_shapes, lab.tenancy, availability_domain=ad)}
        for ad in lab.domains()
    }
    assert all(A1 in shapes for shapes in found.values())
    assert [MICRO in shapes for shapes in found.values()] == [False, True, False]
    a1, micro = found[lab.domains()[1]][A1], found[lab.domains()[1]][MICRO]
    assert (a1.is_flexible, a1.ocpu_options.max, a1.memory_options.max_per_ocpu_in_gbs) == (True, 80, 64)
    assert (micro.ocpus, micro.memory_in_gbs, micro.billing_type) == (1, 1, "ALWAYS_FREE")


def test_images_fit_their_architecture_and_need_paging(lab: OracleLab) -> None:
    def names(**query: Any) -> list[str]:
        found = all_of(lab.compute.list_images, lab.tenancy, sort_by="TIMECREATED", sort_order="DESC", **query)
        return [image.display_name for image in found]

    arm = names(operating_system="Canonical Ubuntu", operating_system_version="24.04", shape=A1)
    amd = names(operating_system="Canonical Ubuntu", operating_system_version="24.04", shape=MICRO)
    assert len(arm) == 3
    assert all("aarch64" in name for name in arm)
    assert arm == sorted(arm, reverse=True)
    assert not any("aarch64" in name for name in amd)
    assert "GPU" in amd[0]
    first = lab.compute.list_images(lab.tenancy)
    assert len(first.data) == 3
    assert first.has_next_page
    assert len(names()) > 12
    assert refused(lab.compute.list_images, lab.tenancy, page="nonsense").status == 400
    assert refused(lab.compute.list_images, lab.tenancy, limit=0).status == 400
    assert len(lab.compute.list_images(lab.tenancy, limit=1000).data) == len(names())


def test_compartments(lab: OracleLab) -> None:
    details = oci.identity.models.CreateCompartmentDetails(compartment_id=lab.tenancy, name="shop", description="d")
    made = lab.identity.create_compartment(details).data
    eventually(lambda: lab.identity.get_compartment(made.id).data.lifecycle_state == "ACTIVE")
    assert [c.name for c in lab.identity.list_compartments(lab.tenancy).data] == ["shop"]
    assert refused(lab.identity.create_compartment, details).code == "CompartmentAlreadyExists"
    assert lab.compute.list_instances(made.id).data == []
    assert lab.identity.get_compartment(lab.tenancy).data.id == lab.tenancy


# -- life cycles ---------------------------------------------------------------------------------------------------
def test_launch_in_the_order_of_the_facts(lab: OracleLab) -> None:
    net = lab.make_network()
    user_data = base64.b64encode(b"#cloud-config\n").decode()
    lab.clock.budget = 0
    response = lab.compute.launch_instance(
        lab.details(
            net.subnet.id,
            size=(2, 12),
            display_name="Arm One",
            vnic={"nsg_ids": [net.group.id], "hostname_label": "arm-1"},
            metadata={"ssh_authorized_keys": "ssh-ed25519 AAAA a\n# note\nssh-rsa BBBB b\n", "user_data": user_data},
            freeform_tags={"hybridlab": "demo"},
        )
    )
    instance = response.data
    assert instance.lifecycle_state == lab.state(instance.id) == "PROVISIONING"
    assert not lab.hosts.machines
    lab.clock.budget = None
    eventually(lambda: lab.state(instance.id) == "RUNNING")
    work = eventually(lambda: lab.hosts.machines.get(instance.id))
    vnic = lab.vnic_of(instance.id)
    assert (vnic.private_ip, vnic.lifecycle_state, vnic.hostname_label) == ("10.0.1.2", "AVAILABLE", "arm-1")
    assert vnic.public_ip.startswith("203.0.113.")
    assert (work.name, work.arch, work.ocpus, work.memory_gb, work.boot_volume_gb) == ("arm-1", "arm64", 2, 12, 50)
    assert (work.private_ip, work.public_ip, work.user) == (vnic.private_ip, vnic.public_ip, "ubuntu")
    assert work.authorized_keys == ("ssh-ed25519 AAAA a", "ssh-rsa BBBB b")
    assert work.user_data == "#cloud-config\n"
    request = oci.work_requests.WorkRequestClient(lab.config, service_endpoint=lab.endpoint)
    assert request.get_work_request(response.headers["opc-work-request-id"]).data.status == "SUCCEEDED"
    (boot,) = lab.compute.list_boot_volume_attachments(
        instance.availability_domain, lab.tenancy, instance_id=instance.id
    ).data
    assert lab.volumes.get_boot_volume(boot.boot_volume_id).data.size_in_gbs == 50
    assert [row["verb"] for row in lab.requests() if row["mutating"]].count("POST") == 5
    assert all("Oracle-PythonSDK" in row["actor"] for row in lab.requests())


def test_micro_and_oracle_linux(lab: OracleLab) -> None:
    net = lab.make_network()
    image = lab.image(MICRO, "Oracle Linux", "9")
    micro = lab.running(net.subnet.id, MICRO, image_id=image.id, vnic={"assign_public_ip": False})
    machine = lab.hosts.machines[micro.id]
    assert (machine.arch, machine.ocpus, machine.memory_gb, machine.user) == ("amd64", 0.125, 1, "opc")
    assert machine.public_ip is None
    assert lab.vnic_of(micro.id).public_ip is None


def test_actions_reach_the_host(lab: OracleLab) -> None:
    net = lab.make_network()
    ident = lab.running(net.subnet.id).id
    assert refused(lab.compute.instance_action, ident, "START").code == "IncorrectState"
    assert lab.compute.instance_action(ident, "SOFTSTOP").data.lifecycle_state == "STOPPING"
    eventually(lambda: lab.state(ident) == "STOPPED")
    lab.compute.instance_action(ident, "START")
    eventually(lambda: lab.state(ident) == "RUNNING")
    eventually(lambda: len(lab.hosts.done) == 3)
    lab.compute.instance_action(ident, "RESET")
    eventually(lambda: lab.state(ident) == "RUNNING")
    assert [what for what, _ in lab.hosts.done] == ["power_on", "power_off", "power_on", "reboot"]
    assert refused(lab.compute.instance_action, ident, "EXPLODE").status == 400


def test_update_changes_tags_and_resizes(lab: OracleLab) -> None:
    net = lab.make_network()
    ident = lab.running(net.subnet.id).id
    tags = models.UpdateInstanceDetails(freeform_tags={"a": "b"}, display_name="new")
    assert lab.compute.update_instance(ident, tags).data.freeform_tags == {"a": "b"}
    size = models.UpdateInstanceShapeConfigDetails(ocpus=2, memory_in_gbs=12)
    lab.compute.update_instance(ident, models.UpdateInstanceDetails(shape_config=size))
    eventually(lambda: lab.hosts.machines[ident].memory_gb == 12 and lab.state(ident) == "RUNNING")
    size = models.UpdateInstanceShapeConfigDetails(ocpus=5, memory_in_gbs=30)
    assert refused(lab.compute.update_instance, ident, models.UpdateInstanceDetails(shape_config=size)).code == (
        "LimitExceeded"
    )
    other_key = models.UpdateInstanceDetails(metadata={"ssh_authorized_keys": "ssh-rsa CCCC"})
    assert refused(lab.compute.update_instance, ident, other_key).status == 400


def test_terminated_vnic_lingers_and_blocks_its_network(lab: OracleLab) -> None:
    net = lab.make_network()
    ident = lab.running(net.subnet.id, vnic={"nsg_ids": [net.group.id]}).id
    vnic = lab.vnic_of(ident).id
    lab.clock.budget = 0
    lab.compute.terminate_instance(ident, preserve_boot_volume=False)
    assert lab.state(ident) == "TERMINATING"
    lab.clock.budget = 1  # the machine goes, its VNIC stays
    eventually(lambda: lab.state(ident) == "TERMINATED")
    error = refused(lab.network.delete_subnet, net.subnet.id)
    assert (error.status, error.code) == (409, "Conflict")
    assert error.message == (
        f"The Subnet {net.subnet.id} references the VNIC {vnic}. "
        "You must remove the reference to proceed with this operation."
    )
    assert refused(lab.network.delete_network_security_group, net.group.id).status == 409
    assert refused(lab.network.delete_vcn, net.vcn.id).status == 409
    lab.clock.budget = None

    def subnet_goes() -> bool:
        try:
            lab.network.delete_subnet(net.subnet.id)
        except oci.exceptions.ServiceError as error:
            return bool(error.status != 409)
        return True

    eventually(subnet_goes)
    lab.network.delete_network_security_group(net.group.id)
    assert refused(lab.network.delete_internet_gateway, net.gateway.id).status == 409  # a route leads there
    lab.network.update_route_table(net.vcn.default_route_table_id, models.UpdateRouteTableDetails(route_rules=[]))
    assert refused(lab.network.delete_vcn, net.vcn.id).message == (
        f"{net.vcn.id} is associated with Gateway that is in use"
    )
    lab.network.delete_internet_gateway(net.gateway.id)
    lab.network.delete_vcn(net.vcn.id)
    assert refused(lab.network.get_vcn, net.vcn.id).status == 404
    assert lab.state(ident) == "TERMINATED"
    assert ident not in lab.hosts.machines
    assert [i.id for i in lab.compute.list_instances(lab.tenancy).data] == [ident]


def test_preserved_boot_volume_stays_until_deleted(lab: OracleLab) -> None:
    net = lab.make_network()
    instance = lab.running(net.subnet.id)
    where = instance.availability_domain
    (volume,) = lab.volumes.list_boot_volumes(availability_domain=where, compartment_id=lab.tenancy).data
    assert refused(lab.volumes.delete_boot_volume, volume.id).status == 409
    lab.compute.terminate_instance(instance.id, preserve_boot_volume=True)
    eventually(lambda: lab.state(instance.id) == "TERMINATED")
    assert lab.volumes.get_boot_volume(volume.id).data.lifecycle_state == "AVAILABLE"
    left = lab.limits.get_resource_availability("block-storage", "total-free-storage-gb-regional", lab.tenancy).data
    assert (left.used, left.available) == (50, 150)
    lab.volumes.delete_boot_volume(volume.id)
    eventually(lambda: lab.volumes.get_boot_volume(volume.id).data.lifecycle_state == "TERMINATED")


def test_state_survives_a_restart(lab: OracleLab) -> None:
    net = lab.make_network()
    running = lab.running(net.subnet.id).id
    starting = lab.launch(net.subnet.id, display_name="young").id
    lab.stop()
    lab.start()
    assert lab.state(running) == "RUNNING"
    eventually(lambda: {running, starting} <= set(lab.hosts.machines))
    assert lab.vnic_of(running).private_ip == "10.0.1.2"
    assert lab.network.get_vcn(net.vcn.id).data.lifecycle_state == "AVAILABLE"
