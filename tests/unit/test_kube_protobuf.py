"""Protobuf request bodies: the wire by hand, and what is refused; tests/lab compares whole objects with kubectl."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from hybridlab.lab.kube import protobuf
from hybridlab.lab.kube.decode import parse_body
from hybridlab.lab.kube.errors import ApiError

# the body of `kubectl create namespace x`, captured from kubectl 1.37.1
NAMESPACE = bytes.fromhex(
    "6b3873000a0f0a02763112094e616d65737061636512190a110a017812001a0022002a0032003800420012001a020a001a002200"
)


def varint(number: int) -> bytes:
    rest = []
    while number > 0x7F:
        rest.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*rest, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def body(api_version: str, kind: str, raw: bytes) -> bytes:
    meta = field(1, api_version.encode()) + field(2, kind.encode())
    return b"k8s\x00" + field(1, meta) + field(2, raw) + field(3, b"") + field(4, b"")


def test_a_captured_body() -> None:
    decoded = protobuf.decode(NAMESPACE)
    assert (decoded["apiVersion"], decoded["kind"]) == ("v1", "Namespace")
    assert decoded["metadata"] == {"name": "x"}


def test_pointers_keep_their_zero_and_others_lose_it() -> None:
    raw = field(2, field(1, 0) + field(5, 0) + field(7, 0))  # spec: replicas *int32, minReadySeconds int32, paused bool
    assert protobuf.decode(body("apps/v1", "Deployment", raw))["spec"] == {"replicas": 0}


@pytest.mark.parametrize(
    ("message", "raw", "expected"),
    [
        ("Service", field(2, field(1, field(3, 80) + field(4, field(1, 1) + field(3, b"http")))), "http"),
        ("Service", field(2, field(1, field(3, 80) + field(4, field(1, 0) + field(2, 8080)))), 8080),
    ],
)
def test_target_ports_are_numbers_or_names(message: str, raw: bytes, expected: int | str) -> None:
    assert protobuf.decode(body("v1", message, raw))["spec"]["ports"][0]["targetPort"] == expected


def test_inlined_sources_quantities_maps_and_negative_numbers() -> None:
    volume = field(1, b"scratch") + field(2, field(2, field(2, field(1, b"1Gi"))))  # volumeSource.emptyDir.sizeLimit
    toleration = field(1, b"key") + field(5, -1)
    selector = field(1, b"arch") + field(2, b"arm64")
    raw = field(2, field(1, volume) + field(7, selector) + field(22, toleration))
    spec = protobuf.decode(body("v1", "Pod", raw))["spec"]
    assert spec["volumes"] == [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}]
    assert spec["nodeSelector"] == {"arch": "arm64"}
    assert spec["tolerations"] == [{"key": "key", "tolerationSeconds": -1}]


def test_options_come_with_the_group_of_what_is_deleted() -> None:
    decoded = protobuf.decode(body("apps/v1", "DeleteOptions", field(1, 0) + field(4, b"Orphan")))
    assert decoded["gracePeriodSeconds"] == 0
    assert decoded["propagationPolicy"] == "Orphan"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{}", 400),
        (NAMESPACE[:-30], 400),
        (body("v1", "Pod", b"\x0b"), 400),  # a group, which proto2 had and Kubernetes never used
        (body("v1", "Pod", field(1, 5)), 400),  # metadata as a number
        (body("v1", "Pod", field(1, field(1, b"\xff"))), 400),  # a name that is not UTF-8
        (body("velero.io/v1", "Backup", b""), 415),  # custom resources come as JSON
        (body("v1", "Nothing", b""), 415),
    ],
)
def test_what_is_refused(raw: bytes, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        parse_body(raw, protobuf.MEDIA_TYPE)
    assert refused.value.status == status


def test_every_type_in_the_table_can_be_read() -> None:
    table = json.loads(files("hybridlab.data").joinpath("kube-protobuf.json").read_text(encoding="utf-8"))
    used = {kind for fields in table["messages"].values() for _, kind in fields.values()}
    plain = {kind.removeprefix("[]").removeprefix("{}").removeprefix("items[]") for kind in used}
    assert plain <= set(table["messages"]) | set(protobuf._SCALARS)
