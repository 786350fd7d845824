"""What the lab's Oracle refuses, and how it misbehaves on request: launches, limits, etags, retry tokens, faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oci
import pytest
from oracle_lab import A1, MICRO, Net, OracleLab, eventually, refused

models = oci.core.models
QUERY = oci.resource_search.models.StructuredSearchDetails


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[OracleLab]:
    lab = OracleLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def net(lab: OracleLab) -> Net:
    return lab.make_network()


# -- launches that are refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "changes", "status", "code", "text"),
    [
        (MICRO, {"availability_domain": "Lab1:EU-FRANKFURT-1-AD-1"}, 404, "NotAuthorizedOrNotFound", ""),
        (A1, {"availability_domain": "Lab1:EU-FRANKFURT-1-AD-9"}, 404, "NotAuthorizedOrNotFound", ""),
        (A1, {"image_id": "ocid1.image.oc1..stale"}, 404, "NotAuthorizedOrNotFound", ""),
        (A1, {"size": (0, 6)}, 400, "InvalidParameter", "ocpus 0"),
        (A1, {"size": (81, 81)}, 400, "InvalidParameter", "ocpus 81"),
        (A1, {"size": (1, 65)}, 400, "InvalidParameter", "memoryInGBs 65"),
        (A1, {"size": (2, 1)}, 400, "InvalidParameter", "memoryInGBs 1"),
        (A1, {"shape_config": None}, 400, "MissingParameter", "ocpus"),
        (A1, {"boot_gb": 47}, 400, "InvalidParameter", "47"),
        (A1, {"vnic": {"private_ip": "10.0.1.1"}}, 400, "InvalidParameter", "10.0.1.1"),
        (A1, {"vnic": {"private_ip": "10.0.2.2"}}, 400, "InvalidParameter", "10.0.2.2"),
        (A1, {"vnic": {"hostname_label": "no_good"}}, 400, "InvalidParameter", "no_good"),
        (A1, {"vnic": {"nsg_ids": ["ocid1.networksecuritygroup.oc1.x.y"]}}, 404, "NotAuthorizedOrNotFound", ""),
        (A1, {"metadata": {"user_data": "x" * 32_000}}, 400, "InvalidParameter", "32000"),
        (A1, {"metadata": {"user_data": "#!/bin/sh"}}, 400, "InvalidParameter", "base64"),
        (A1, {"freeform_tags": {f"k{i}": "v" for i in range(11)}}, 400, "InvalidParameter", "10"),
        (A1, {"defined_tags": {"ns": {"k": "v"}}}, 400, "InvalidParameter", "ns"),
        (A1, {"capacity_reservation_id": "x"}, 400, "InvalidParameter", "capacityReservationId"),
    ],
)
def test_refused_launch(
    lab: OracleLab, net: Net, shape: str, changes: dict[str, Any], status: int, code: str, text: str
) -> None:
    error = refused(lab.launch, net.subnet.id, shape, **changes)
    assert (error.status, error.code) == (status, code)
    assert text in error.message
    assert lab.compute.list_instances(lab.tenancy).data == []


def test_image_must_fit_the_shape(lab: OracleLab, net: Net) -> None:
    image = lab.image(MICRO).id
    error = refused(lab.launch, net.subnet.id, A1, image_id=image)
    assert (error.status, error.code) == (400, "InvalidParameter")
    assert error.message == f"Shape {A1} is not valid for image {image}."


def test_names_may_repeat_but_addresses_and_host_names_not(lab: OracleLab, net: Net) -> None:
    first = lab.launch(net.subnet.id, vnic={"private_ip": "10.0.1.9", "hostname_label": "one"})
    second = lab.launch(net.subnet.id)
    assert first.display_name == second.display_name
    assert refused(lab.launch, net.subnet.id, vnic={"private_ip": "10.0.1.9"}).status == 409
    assert refused(lab.launch, net.subnet.id, vnic={"hostname_label": "ONE"}).status == 409


def test_lists_are_paged_in_threes(lab: OracleLab, net: Net) -> None:
    for number in range(4):
        lab.launch(net.subnet.id, display_name=f"n{number}")
    first = lab.compute.list_instances(lab.tenancy)
    assert len(first.data) == 3
    assert first.has_next_page
    rest = lab.compute.list_instances(lab.tenancy, page=first.next_page)
    assert len(rest.data) == 1
    assert not rest.has_next_page
    assert refused(lab.compute.list_instances, lab.tenancy, page=first.next_page, display_name="n1").status == 400
    assert [i.display_name for i in lab.compute.list_instances(lab.tenancy, display_name="n1").data] == ["n1"]


# -- limits --------------------------------------------------------------------------------------------------------
def test_the_articles_layout_fits_the_old_allowance_only(tmp_path: Path) -> None:
    for allowance, fits in (("until-2026-06", True), ("since-2026-06", False)):
        (tmp_path / allowance).mkdir()
        lab = OracleLab(tmp_path / allowance, allowance)
        try:
            net = lab.make_network()
            lab.launch(net.subnet.id, size=(2, 12))
            if fits:
                lab.launch(net.subnet.id, size=(1, 6))
            else:
                error = refused(lab.launch, net.subnet.id, size=(1, 6), availability_domain=lab.domains()[0])
                assert (error.status, error.code) == (400, "LimitExceeded")
                assert error.message == (
                    "The following service limits were exceeded: standard-a1-memory-regional-count, "
                    "standard-a1-core-regional-count. "
                    "Request a service limit increase from the service limits page in the console. "
                )
            lab.launch(net.subnet.id, MICRO)
        finally:
            lab.close()


def test_limits_of_micros_volumes_networks_and_paid_shapes(lab: OracleLab, net: Net) -> None:
    lab.launch(net.subnet.id, MICRO)
    lab.launch(net.subnet.id, MICRO)
    assert "standard-e2-micro-core-count" in refused(lab.launch, net.subnet.id, MICRO).message
    assert "total-free-storage-gb-regional" in refused(lab.launch, net.subnet.id, boot_gb=101).message
    paid = {"shape_config": models.LaunchInstanceShapeConfigDetails(ocpus=1, memory_in_gbs=8)}
    image = lab.image(MICRO).id
    error = refused(lab.launch, net.subnet.id, "VM.Standard.E4.Flex", image_id=image, **paid)
    assert error.code == "LimitExceeded"
    assert "standard-e4-core-count" in error.message
    lab.make_network(name="second")
    assert "vcn-count" in refused(lab.make_network, name="third").message


def test_availability_of_limits(lab: OracleLab, net: Net) -> None:
    lab.launch(net.subnet.id, size=(2, 12))
    here, elsewhere = lab.domains()[1], lab.domains()[0]

    def left(name: str, **where: str) -> tuple[int, int]:
        data = lab.limits.get_resource_availability("compute", name, lab.tenancy, **where).data
        return data.used, data.available

    assert left("standard-a1-core-count", availability_domain=here) == (2, 2)
    assert left("standard-a1-core-count", availability_domain=elsewhere) == (0, 4)
    assert left("standard-a1-memory-regional-count") == (12, 12)
    assert left("standard-e2-micro-core-count", availability_domain=elsewhere) == (0, 2)  # though it has no micro
    get = lab.limits.get_resource_availability
    assert refused(get, "compute", "standard-a1-core-count", lab.tenancy).status == 400
    assert (
        refused(get, "compute", "standard-a1-core-regional-count", lab.tenancy, availability_domain=here).status == 400
    )
    gone = refused(get, "compute", "vm-standard-e2-1-micro-count", lab.tenancy, availability_domain=here)
    assert (gone.status, gone.code) == (404, "NotAuthorizedOrNotFound")
    values = oci.pagination.list_call_get_all_results(lab.limits.list_limit_values, lab.tenancy, "compute").data
    assert {v.value for v in values if v.name == "standard-a1-core-count"} == {4}


def test_quota_stops_what_the_limit_would_allow(lab: OracleLab, net: Net) -> None:
    statements = [
        "zero compute-core quotas in tenancy",
        "set compute-core quota standard-a1-core-count to 2 in tenancy",
    ]
    details = oci.limits.models.CreateQuotaDetails(
        compartment_id=lab.tenancy, name="guard", description="d", statements=statements
    )
    quota = lab.quotas.create_quota(details).data
    lab.launch(net.subnet.id, size=(2, 12))
    error = refused(lab.launch, net.subnet.id)
    assert (error.status, error.code) == (400, "QuotaExceeded")
    assert "standard-a1-core-count" in error.message
    assert refused(lab.launch, net.subnet.id, MICRO).code == "QuotaExceeded"
    assert lab.quotas.list_quotas(lab.tenancy).data[0].name == "guard"
    bad = oci.limits.models.UpdateQuotaDetails(statements=["please be careful"])
    assert refused(lab.quotas.update_quota, quota.id, bad).status == 400
    lab.quotas.delete_quota(quota.id)
    lab.launch(net.subnet.id)


def test_capacity_report(lab: OracleLab) -> None:
    def report(shape: str, domain: str) -> str:
        wanted = models.CreateCapacityReportShapeAvailabilityDetails(
            instance_shape=shape,
            instance_shape_config=models.CapacityReportInstanceShapeConfig(ocpus=1, memory_in_gbs=6),
        )
        details = models.CreateComputeCapacityReportDetails(
            compartment_id=lab.tenancy, availability_domain=domain, shape_availabilities=[wanted]
        )
        data = lab.compute.create_compute_capacity_report(details).data
        return str(data.shape_availabilities[0].availability_status)

    first, second = lab.domains()[:2]
    lab.world.faults.ask("out-of-capacity", 1, f"{second} {A1}")
    assert report(A1, first) == "AVAILABLE"
    assert report(A1, second) == "OUT_OF_HOST_CAPACITY"
    assert report(MICRO, first) == "HARDWARE_NOT_SUPPORTED"


# -- etags and retry tokens ----------------------------------------------------------------------------------------
def test_etag_guards_changes(lab: OracleLab, net: Net) -> None:
    # becoming AVAILABLE changes it once more
    eventually(lambda: lab.network.get_vcn(net.vcn.id).data.lifecycle_state == "AVAILABLE")
    etag = lab.network.get_vcn(net.vcn.id).headers["etag"]
    rename = models.UpdateVcnDetails(display_name="other")
    changed = lab.network.update_vcn(net.vcn.id, rename, if_match=etag).headers["etag"]
    assert changed != etag
    for call in (
        lambda: lab.network.update_vcn(net.vcn.id, rename, if_match=etag),
        lambda: lab.network.delete_vcn(net.vcn.id, if_match=etag),
    ):
        error = refused(call)
        assert (error.status, error.code) == (412, "NoEtagMatch")


def test_retry_token_makes_one_instance(lab: OracleLab, net: Net) -> None:
    details = lab.details(net.subnet.id)
    launch = lab.compute.launch_instance
    first = launch(details, opc_retry_token="t1").data
    assert launch(details, opc_retry_token="t1").data.id == first.id
    assert launch(details, opc_retry_token="t2").data.id != first.id
    assert len(lab.compute.list_instances(lab.tenancy).data) == 2
    details.display_name = "changed"
    error = refused(launch, details, opc_retry_token="t1")
    assert (error.status, error.code) == (409, "InvalidatedRetryToken")
    assert refused(launch, details, opc_retry_token="x" * 65).status == 400


def test_retry_token_is_invalid_after_the_instance_is_gone(lab: OracleLab, net: Net) -> None:
    details = lab.details(net.subnet.id)
    ident = lab.compute.launch_instance(details, opc_retry_token="t1").data.id
    lab.compute.terminate_instance(ident)
    eventually(lambda: lab.state(ident) == "TERMINATED")
    error = refused(lab.compute.launch_instance, details, opc_retry_token="t1")
    assert (error.status, error.code) == (409, "InvalidatedRetryToken")
    assert "subsequent operation invalidated the token" in error.message


# -- search --------------------------------------------------------------------------------------------------------
def test_search_finds_by_one_tag(lab: OracleLab) -> None:
    def make(name: str, tags: dict[str, str]) -> None:
        lab.network.create_vcn(
            models.CreateVcnDetails(
                compartment_id=lab.tenancy, cidr_blocks=["10.0.0.0/16"], display_name=name, freeform_tags=tags
            )
        )

    make("ours", {"hybridlab": "demo", "other": "x"})
    make("theirs", {"hybridlab": "prod", "other": "demo"})

    def found(query: str) -> list[str]:
        data = lab.search.search_resources(QUERY(type="Structured", query=query)).data
        return [item.display_name for item in data.items]

    tag = "freeformTags.key = 'hybridlab' && freeformTags.value = 'demo'"
    assert found(f"query all resources where ({tag})") == ["ours"]
    assert found(f"query vcn resources where ({tag}) && lifecycleState != 'TERMINATED'") == ["ours"]
    assert found(f"query instance resources where ({tag})") == []
    assert sorted(found("query vcn resources")) == ["ours", "theirs"]


@pytest.mark.parametrize(
    "query",
    [
        "query all resources where memory > 3",
        "select * from vcns",
        "query moon resources",
        "query all resources where (displayName = 'x'",
        "query all resources where displayName = 'x' sorted by timeCreated asc",
        "",
    ],
)
def test_search_refuses_what_it_does_not_understand(lab: OracleLab, query: str) -> None:
    error = refused(lab.search.search_resources, QUERY(type="Structured", query=query))
    assert (error.status, error.code) == (400, "InvalidParameter")


# -- faults --------------------------------------------------------------------------------------------------------
def test_out_of_capacity_by_domain_and_count(lab: OracleLab, net: Net) -> None:
    lab.world.faults.ask("out-of-capacity", 2, f"AD-2 {A1}")
    for _ in range(2):
        error = refused(lab.launch, net.subnet.id)
        assert (error.status, error.code, error.message) == (500, "InternalError", "Out of host capacity.")
    lab.launch(net.subnet.id)


def test_too_many_requests_on_any_request(lab: OracleLab) -> None:
    lab.world.faults.ask("too-many-requests", 1, "GET /20160918/vcns")
    lab.domains()
    error = refused(lab.network.list_vcns, lab.tenancy)
    assert (error.status, error.code) == (429, "TooManyRequests")
    lab.network.list_vcns(lab.tenancy)


@pytest.mark.parametrize("fault", ["lost-answer", "bad-gateway"])
def test_launch_is_done_though_its_answer_is_lost(lab: OracleLab, net: Net, fault: str) -> None:
    lab.world.faults.ask(fault)
    details = lab.details(net.subnet.id)
    lost = oci.exceptions.RequestException if fault == "lost-answer" else oci.exceptions.ServiceError
    with pytest.raises(lost):
        lab.compute.launch_instance(details, opc_retry_token="once")
    (instance,) = lab.compute.list_instances(lab.tenancy).data
    assert lab.compute.launch_instance(details, opc_retry_token="once").data.id == instance.id
    eventually(lambda: instance.id in lab.hosts.machines)
    assert len(lab.compute.list_instances(lab.tenancy).data) == 1


def test_phantom_limit_at_zero_usage(lab: OracleLab, net: Net) -> None:
    lab.world.faults.ask("phantom-limit")
    error = refused(lab.launch, net.subnet.id)
    assert (error.status, error.code) == (400, "LimitExceeded")
    assert "standard-a1-memory-count, standard-a1-memory-regional-count" in error.message
    used = lab.limits.get_resource_availability("compute", "standard-a1-core-regional-count", lab.tenancy).data.used
    assert used == 0
    lab.launch(net.subnet.id)


def test_a1_memory_is_forced(lab: OracleLab, net: Net) -> None:
    lab.world.faults.ask("a1-memory-forced")
    assert lab.launch(net.subnet.id, size=(2, 8)).shape_config.memory_in_gbs == 12
    assert lab.launch(net.subnet.id, size=(1, 8)).shape_config.memory_in_gbs == 8
