"""Claims and their digests: who mounts what, and what differs between two sides."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from fakes import FakeKube

from hybridlab.stages.claims import ClaimUse, Digest, claims_in, differences, parse_digest


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


SUMMARY = {"summary": True, "sha256": "abc", "bytes": 7, "entries": 2}
A = {"path": "a.txt", "type": "file", "mode": 420, "uid": 0, "size": 3, "sha256": "s1"}


def test_parse_digest() -> None:
    found = parse_digest(lines(A, {**A, "path": "b"}, SUMMARY))
    assert (found.sha256, found.bytes, set(found.entries)) == ("abc", 7, {"a.txt", "b"})
    assert found.json() == {"sha256": "abc", "entries": dict(found.entries), "bytes": 7}


def test_times_do_not_count_everything_else_does() -> None:
    def entry(**changes: Any) -> str:
        return parse_digest(lines({**A, **changes}, SUMMARY)).entries["a.txt"]

    assert entry(mtime=1, mtime_ns=2) == entry(mtime=3)
    for change in ({"sha256": "s2"}, {"mode": 384}, {"uid": 1}, {"size": 4}, {"type": "symlink"}):
        assert entry(**change) != entry()


def test_a_path_that_is_not_utf8() -> None:
    raw = base64.b64encode(b"caf\xe9").decode()
    found = parse_digest(lines({"path_b64": raw, "type": "file"}, SUMMARY))
    assert len(found.entries) == 1
    assert next(iter(found.entries)).startswith("caf")
    json.dumps(found.json()).encode()


def test_an_empty_claim() -> None:
    assert parse_digest(lines({"summary": True, "sha256": "e"})) == Digest("e", {}, 0)


def test_a_torn_output_is_not_a_digest() -> None:
    with pytest.raises((KeyError, ValueError)):
        parse_digest(lines(A))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({}, {}, ()),
        ({"a": "1"}, {"a": "1"}, ()),
        ({"a": "1"}, {}, ("a: missing",)),
        ({}, {"a": "1"}, ("a: extra",)),
        ({"a": "1"}, {"a": "2"}, ("a: different",)),
        ({"b": "1", "a": "1"}, {"c": "1", "a": "2"}, ("a: different", "b: missing", "c: extra")),
    ],
)
def test_differences(left: dict[str, str], right: dict[str, str], expected: tuple[str, ...]) -> None:
    assert differences(left, right) == expected


def claim(name: str, namespace: str = "services") -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace}
    spec = {"storageClassName": "hybridlab"}
    return {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec, "status": {"phase": "Bound"}}


def pod(name: str, *claims: str, phase: str = "Running", node: str = "arm-1", ns: str = "services") -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims]
    spec = {"volumes": [*volumes, {"name": "e", "emptyDir": {}}], "nodeName": node}
    return {"kind": "Pod", "metadata": {"name": name, "namespace": ns}, "spec": spec, "status": {"phase": phase}}


def test_claims_and_who_mounts_them() -> None:
    kube = FakeKube(
        claim("used"),
        claim("done"),
        claim("alone"),
        claim("waits"),
        claim("elsewhere", "other"),
        pod("p2", "used", node=""),
        pod("p1", "used", node="arm-2"),
        pod("job", "done", phase="Succeeded"),
        pod("crashed", "done", phase="Failed"),
        pod("pending", "waits", phase="Pending", node=""),
        pod("other", "alone", ns="other"),
    )
    assert claims_in(kube, "services") == (
        ClaimUse("services", "alone", "Bound", "hybridlab"),
        ClaimUse("services", "done", "Bound", "hybridlab"),
        ClaimUse("services", "used", "Bound", "hybridlab", ("p1", "p2"), "arm-2"),
        ClaimUse("services", "waits", "Bound", "hybridlab", ("pending",), ""),
    )
    assert claims_in(kube, "services")[0].key == "services/alone"
