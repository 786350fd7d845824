"""Oracle's answers as errors, the config file's mistakes, and how reads wait out 429s."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oci
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hybridlab import errors
from hybridlab.drivers._oracle_calls import Caller, make_client, read_config
from hybridlab.drivers._oracle_errors import classify, limit_names
from hybridlab.drivers._oracle_models import arch_of_shape, dns_label, hostname_label, rule_details, security_rule
from hybridlab.models import SecurityRule

LIMIT = (
    "The following service limits were exceeded: standard-a1-memory-count, standard-a1-core-count. Request a service "
    "limit increase from the service limits page in the console. "
)


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (500, "InternalError", "Out of host capacity.", errors.OutOfCapacity),
        (500, "InternalError", "Out of capacity for shape VM.Standard.A1.Flex", errors.OutOfCapacity),
        (500, "OutOfHostCapacity", "", errors.OutOfCapacity),
        (500, "InternalError", "Internal error", errors.Refused),
        (429, "TooManyRequests", "Too many requests for the user.", errors.TooManyRequests),
        (400, "LimitExceeded", LIMIT, errors.LimitReached),
        (400, "QuotaExceeded", "The following compartment quotas were exceeded: x.", errors.LimitReached),
        (404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.", errors.NotFound),
        (400, "InvalidParameter", "Shape X is not valid for image Y", errors.Refused),
        (401, "NotAuthenticated", "", errors.AuthFailed),
        (412, "NoEtagMatch", "", errors.Conflict),
        (409, "IncorrectState", "", errors.Conflict),
        (409, "InvalidatedRetryToken", "", errors.Conflict),
        (502, "", "Bad Gateway", errors.Unreachable),
        (503, "ServiceUnavailable", "", errors.Unreachable),
        (504, "", "", errors.Unreachable),
    ],
)
def test_classified(status: int, code: str, message: str, kind: type[errors.DriverError]) -> None:
    error = classify(status, code, message, what="launch a VM", about="ocid1.subnet.x")
    assert type(error) is kind
    assert "ocid1.subnet.x" in str(error)
    assert str(status) in error.why
    if isinstance(error, errors.Refused):
        assert (error.status, error.code) == (status, code)


def test_a_quota_is_told_from_a_limit() -> None:
    quota = classify(400, "QuotaExceeded", "x", what="w", about="a")
    limit = classify(400, "LimitExceeded", LIMIT, what="w", about="a")
    assert "quota" in quota.next_move
    assert "quota" not in limit.next_move


def test_names_of_exceeded_limits() -> None:
    assert limit_names(LIMIT) == ("standard-a1-memory-count", "standard-a1-core-count")
    assert limit_names("Out of host capacity.") == ()


# -- calls -------------------------------------------------------------------------------------------------------------
class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def service_error(status: int, code: str = "", headers: dict[str, str] | None = None) -> oci.exceptions.ServiceError:
    return oci.exceptions.ServiceError(status, code, headers or {}, "message")


def answers(*given: Any) -> Any:
    """A call that gives these one after the other; exceptions are raised."""
    left: Iterator[Any] = iter(given)

    def call(*args: Any, **options: Any) -> Any:
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    return call


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def caller(clock: Clock) -> Caller:
    return Caller(clock, random.Random(1), lambda now: None)


def test_a_read_waits_out_429_with_growing_pauses(caller: Caller, clock: Clock) -> None:
    call = answers(*[service_error(429, "TooManyRequests")] * 4, "found")
    assert caller.read(call, what="read", about="x") == "found"
    assert caller.calls == 5
    assert len(clock.slept) == 4
    assert clock.slept == sorted(clock.slept)
    assert clock.slept[0] >= 0.5


def test_a_read_gives_up_within_8_tries_and_60_seconds(caller: Caller, clock: Clock) -> None:
    with pytest.raises(errors.TooManyRequests):
        caller.read(answers(*[service_error(429)] * 20), what="read", about="x")
    assert 3 <= caller.calls <= 8
    assert clock.time <= 60


def test_retry_after_is_honoured(caller: Caller, clock: Clock) -> None:
    caller.read(answers(service_error(429, headers={"retry-after": "17"}), 1), what="read", about="x")
    assert clock.slept == [17.0]


@pytest.mark.parametrize("status", [500, 409, 404, 502])
def test_a_read_repeats_nothing_else(caller: Caller, status: int) -> None:
    with pytest.raises(errors.DriverError):
        caller.read(answers(service_error(status), 1), what="read", about="x")
    assert caller.calls == 1


def test_a_change_is_asked_for_once(caller: Caller, clock: Clock) -> None:
    with pytest.raises(errors.TooManyRequests):
        caller.once(answers(service_error(429), 1), what="launch", about="x")
    assert (caller.calls, clock.slept) == (1, [])


@pytest.mark.parametrize(
    "lost",
    [
        oci.exceptions.RequestException(ConnectionResetError("reset by peer")),
        oci.exceptions.ConnectTimeout(TimeoutError("timed out")),
    ],
)
def test_a_lost_answer_is_unreachable(caller: Caller, lost: Exception) -> None:
    with pytest.raises(errors.Unreachable, match=r"reset by peer|timed out"):
        caller.once(answers(lost), what="launch", about="x")


def test_all_pages_are_read(caller: Caller) -> None:
    def page(items: list[int], following: str | None) -> Any:
        return SimpleNamespace(data=items, headers={"opc-next-page": following} if following else {})

    assert caller.pages(answers(page([1, 2], "p2"), page([3], "p3"), page([], None)), what="list", about="x") == [
        1,
        2,
        3,
    ]


# -- the config file ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pem() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"pass")
    )


def config_text(key: Path, *, leave_out: str = "", **changes: str) -> str:
    fields = {
        "user": "ocid1.user.oc1..aaaa",
        "tenancy": "ocid1.tenancy.oc1..aaaa",
        "fingerprint": ":".join(["ab"] * 16),
        "region": "eu-frankfurt-1",
        "key_file": str(key),
        **changes,
    }
    return "[DEFAULT]\n" + "".join(f"{k}={v}\n" for k, v in fields.items() if k != leave_out)


@pytest.mark.parametrize(
    ("text", "profile", "words"),
    [
        (None, "DEFAULT", "no Oracle config file"),
        ("ok", "WORK", r"no profile \[WORK\].*it has: DEFAULT"),
        ("no-key", "DEFAULT", "API key.*not there"),
        ("no-user", "DEFAULT", "not complete.*user is missing"),
        ("bad-fingerprint", "DEFAULT", "fingerprint is malformed"),
        ("garbage", "DEFAULT", "can't be read"),
    ],
)
def test_config_mistakes_are_bad_input(tmp_path: Path, text: str | None, profile: str, words: str) -> None:
    key = tmp_path / "key.pem"
    key.write_text("not read yet")
    texts = {
        "ok": config_text(key),
        "no-key": config_text(tmp_path / "nowhere.pem"),
        "no-user": config_text(key, leave_out="user"),
        "bad-fingerprint": config_text(key, fingerprint="ab:cd"),
        "garbage": "not an ini file",
    }
    path = tmp_path / "config"
    if text:
        path.write_text(texts[text])
    with pytest.raises(errors.BadInput, match=r"(?s)" + words) as caught:
        read_config(str(path), profile)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("content", "words"), [(b"-----BEGIN nonsense", "can't be used"), (None, "passphrase")])
def test_keys_that_cannot_be_used(tmp_path: Path, pem: bytes, content: bytes | None, words: str) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(content or pem)
    (tmp_path / "config").write_text(config_text(key))
    config = read_config(str(tmp_path / "config"), "DEFAULT")
    with pytest.raises(errors.BadInput, match=words) as caught:
        make_client(oci.identity.IdentityClient, config, "http://127.0.0.1:1")
    assert str(key) in str(caught.value)


# -- models ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "rule",
    [
        SecurityRule("ingress", "all", "group", description="inside"),
        SecurityRule("ingress", "tcp", "203.0.113.7/32", 22, 22),
        SecurityRule("ingress", "udp", "10.0.0.0/16", 8000, 8472),
        SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4),
        SecurityRule("ingress", "icmp", "0.0.0.0/0"),
        SecurityRule("egress", "all", "0.0.0.0/0"),
        SecurityRule("egress", "tcp", "group", 443, 443),
    ],
)
def test_a_rule_comes_back_as_it_went(rule: SecurityRule) -> None:
    details = rule_details(rule, "ocid1.nsg.x")
    fields = {name: getattr(details, name) for name in details.attribute_map}
    assert security_rule(SimpleNamespace(**fields, id="R1"), "ocid1.nsg.x") == rule


def test_the_group_is_named_by_its_own_id() -> None:
    details = rule_details(SecurityRule("ingress", "all", "group"), "ocid1.nsg.x")
    assert (details.source, details.source_type, details.protocol) == ("ocid1.nsg.x", "NETWORK_SECURITY_GROUP", "all")
    assert rule_details(SecurityRule("ingress", "tcp", "1.2.3.4/32", 22), "n").protocol == "6"


def test_a_stateless_rule_is_not_taken_for_a_wanted_one() -> None:
    wanted = SecurityRule("ingress", "tcp", "1.2.3.4/32", 22, 22)
    details = rule_details(wanted, "n")
    fields = {name: getattr(details, name) for name in details.attribute_map} | {"is_stateless": True, "id": "R"}
    assert security_rule(SimpleNamespace(**fields), "n") != wanted


@pytest.mark.parametrize(
    ("shape", "arch"),
    [
        ("VM.Standard.A1.Flex", "arm64"),
        ("VM.Standard.A2.Flex", "arm64"),
        ("BM.Standard.A1.160", "arm64"),
        ("VM.Standard.E2.1.Micro", "amd64"),
        ("VM.Standard3.Flex", "amd64"),
        ("BM.GPU.A100-v2.8", "amd64"),
        ("VM.GPU.A10.1", "amd64"),
    ],
)
def test_architecture_of_a_shape(shape: str, arch: str) -> None:
    assert arch_of_shape(shape) == arch


@pytest.mark.parametrize(
    ("name", "label"),
    [("hybrid-vcn", "hybridvcn"), ("9lives", "n9lives"), ("a-very-long-name-indeed", "averylongnamein")],
)
def test_dns_labels(name: str, label: str) -> None:
    assert dns_label(name) == label


def test_hostname_labels() -> None:
    assert hostname_label("Arm_Node.1-") == "arm-node-1"
