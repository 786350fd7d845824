"""The lab's S3 as boto3 and restic see it. The contract also runs against HYBRIDLAB_TEST_S3 (an endpoint's URL, keys in
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from running_lab import RunningLab

from hybridlab.errors import BadInput
from hybridlab.wait import SystemClock, wait_until

MIB = 2**20


@dataclass(frozen=True)
class Account:
    endpoint: str
    access_key: str
    secret_key: str

    def client(self, *, secret_key: str = "", checksums: bool = True) -> Any:
        when = "when_supported" if checksums else "when_required"
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"},
                request_checksum_calculation=when,
                response_checksum_validation=when,
            ),
        )


def lab_account(lab: RunningLab) -> Account:
    end = lab.endpoints["s3"]
    parser = configparser.ConfigParser()
    parser.read(end["credentials_file"])
    keys = parser["default"]
    return Account(end["endpoint"], keys["aws_access_key_id"], keys["aws_secret_access_key"])


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Account:
    real = os.environ.get("HYBRIDLAB_TEST_S3")
    if real:
        return Account(real, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    return lab_account(request.getfixturevalue("store_lab"))


@pytest.fixture
def bucket(account: Account) -> Iterator[str]:
    yield from _bucket(account)


@pytest.fixture
def lab_bucket(store_lab: RunningLab) -> Iterator[str]:
    yield from _bucket(lab_account(store_lab))


def _bucket(account: Account) -> Iterator[str]:
    name = f"hybridlab-test-{uuid.uuid4().hex[:12]}"
    client = account.client()
    client.create_bucket(Bucket=name)
    yield name
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for row in page.get("Contents", []):
            client.delete_object(Bucket=name, Key=row["Key"])
    client.delete_bucket(Bucket=name)


# -- contract ----------------------------------------------------------------------------------------------------------
def test_wrong_key_is_refused(account: Account, bucket: str) -> None:
    stranger = account.client(secret_key="0" * 40)
    with pytest.raises(ClientError) as refused:
        stranger.put_object(Bucket=bucket, Key="a", Body=b"x")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    with pytest.raises(ClientError) as refused:
        stranger.list_objects_v2(Bucket=bucket)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert "Contents" not in account.client().list_objects_v2(Bucket=bucket)


def test_no_signature_is_refused(account: Account, bucket: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{account.endpoint}/{bucket}", timeout=10)
    assert refused.value.code == 403


@pytest.mark.parametrize("key", ["plain.txt", "a/b/c", "white space+plus", "ümlaut/päth", "100%/q?&=#", "~tilde!*'()"])
def test_object_comes_back_under_its_name(account: Account, bucket: str, key: str) -> None:
    client = account.client()
    client.put_object(Bucket=bucket, Key=key, Body=b"some bytes")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"some bytes"
    assert [row["Key"] for row in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    client.delete_object(Bucket=bucket, Key=key)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)


def test_missing_things_are_404(account: Account, bucket: str) -> None:
    client = account.client()
    with pytest.raises(ClientError) as missing:
        client.get_object(Bucket=bucket, Key="nothing")
    assert missing.value.response["Error"]["Code"] == "NoSuchKey"
    with pytest.raises(ClientError) as missing:
        client.list_objects_v2(Bucket=f"hybridlab-none-{uuid.uuid4().hex}")
    assert missing.value.response["Error"]["Code"] == "NoSuchBucket"


def test_multipart_upload_over_5_mib_comes_back_whole(account: Account, bucket: str) -> None:
    client = account.client()
    pieces = [os.urandom(6 * MIB), os.urandom(6 * MIB), os.urandom(123)]
    upload = client.create_multipart_upload(Bucket=bucket, Key="big/object")["UploadId"]
    where = {"Bucket": bucket, "Key": "big/object", "UploadId": upload}
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(**where, PartNumber=number, Body=piece)["ETag"]}
        for number, piece in enumerate(pieces, 1)
    ]
    assert "Contents" not in client.list_objects_v2(Bucket=bucket), "visible before it is complete"
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket=bucket, Key="big/object")["Body"].read() == b"".join(pieces)


def test_range_is_partial(account: Account, bucket: str) -> None:
    client = account.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"0123456789")
    answer = client.get_object(Bucket=bucket, Key="a", Range="bytes=2-4")
    assert answer["Body"].read() == b"234"
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert answer["ContentRange"] == "bytes 2-4/10"


# -- the lab only ------------------------------------------------------------------------------------------------------
def test_uploads_do_not_wait_for_a_continue_that_never_comes(store_lab: RunningLab, lab_bucket: str) -> None:
    client = lab_account(store_lab).client()
    begun = time.monotonic()
    for number in range(5):
        client.put_object(Bucket=lab_bucket, Key=f"k{number}", Body=b"x")
    assert time.monotonic() - begun < 3.0  # boto3 waits a second for each "100 Continue" it doesn't get


def test_corrupting_flips_one_byte_of_the_newest_match(store_lab: RunningLab, lab_bucket: str) -> None:
    client = lab_account(store_lab).client(checksums=False)
    for key in ("keep/old", "hit/old", "hit/new", "keep/new"):
        client.put_object(Bucket=lab_bucket, Key=key, Body=b"same bytes here")
        _wait_for_newer_mtime(Path(store_lab.endpoints["s3"]["root"]) / lab_bucket / key)
    done = store_lab.fault("s3-corrupt", match=f"{lab_bucket}/hit/")
    assert done == [f"flipped byte 7 of {lab_bucket}/hit/new"]
    found = {
        key: client.get_object(Bucket=lab_bucket, Key=key)["Body"].read()
        for key in ("keep/old", "hit/old", "hit/new", "keep/new")
    }
    assert {key for key, data in found.items() if data != b"same bytes here"} == {"hit/new"}
    assert len(found["hit/new"]) == 15
    assert sum(a != b for a, b in zip(found["hit/new"], b"same bytes here", strict=True)) == 1


def _wait_for_newer_mtime(path: Path) -> None:
    """Return when a file written now would be newer than this one."""
    probe = path.with_name(".probe")
    end = time.monotonic() + 5
    while time.monotonic() < end:
        probe.write_bytes(b"")
        newer = probe.stat().st_mtime_ns > path.stat().st_mtime_ns
        probe.unlink()
        if newer:
            return
    pytest.fail("the clock stands still")


def test_corrupting_nothing_is_an_error(store_lab: RunningLab) -> None:
    with pytest.raises(BadInput, match="no object whose bucket/key contains 'no-such-thing'"):
        store_lab.fault("s3-corrupt", match="no-such-thing")


def test_down_as_often_as_asked(store_lab: RunningLab, lab_bucket: str) -> None:
    client = lab_account(store_lab).client()
    store_lab.fault("s3-down", count=2, match=f"/{lab_bucket}/")
    for _ in range(2):
        with pytest.raises(ClientError) as down:
            client.put_object(Bucket=lab_bucket, Key="a", Body=b"x")
        assert down.value.response["Error"]["Code"] == "SlowDown"
        assert down.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    client.put_object(Bucket=lab_bucket, Key="a", Body=b"x")


def test_requests_are_logged_without_secrets(store_lab: RunningLab, lab_bucket: str) -> None:
    account = lab_account(store_lab)
    since = time.time()
    account.client().put_object(Bucket=lab_bucket, Key="logged/key", Body=b"x")
    account.client().head_object(Bucket=lab_bucket, Key="logged/key")
    rows = store_lab.requests(since=since, part="s3")
    assert [(row["verb"], row["target"], row["status"], row["mutating"]) for row in rows] == [
        ("PUT", f"/{lab_bucket}/logged/key", 200, True),
        ("HEAD", f"/{lab_bucket}/logged/key", 200, False),
    ]
    text = (store_lab.dir / "requests.jsonl").read_text() + (store_lab.dir / "lab.log").read_text()
    assert account.secret_key not in text
    assert account.access_key not in text


def test_keys_are_private(store_lab: RunningLab) -> None:
    account = lab_account(store_lab)
    listing = subprocess.run(["ps", "-eww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert str(store_lab.dir) in listing
    assert account.secret_key not in listing
    assert Path(store_lab.endpoints["s3"]["credentials_file"]).stat().st_mode & 0o077 == 0


def test_files_put_into_the_root_are_objects(store_lab: RunningLab, lab_bucket: str) -> None:
    client = lab_account(store_lab).client()
    client.put_object(Bucket=lab_bucket, Key="dir/by-s3", Body=b"x")
    assert client.list_objects_v2(Bucket=lab_bucket)["KeyCount"] == 1
    (Path(store_lab.endpoints["s3"]["root"]) / lab_bucket / "dir" / "by-hand").write_bytes(b"yes")
    found = wait_until(
        lambda: [row["Key"] for row in client.list_objects_v2(Bucket=lab_bucket)["Contents"]],
        lambda keys: len(keys) == 2,
        what="the file to be listed",
        deadline_s=5,
        clock=SystemClock(),
        interval_s=0.05,
    )
    assert found == ["dir/by-hand", "dir/by-s3"]
    assert client.get_object(Bucket=lab_bucket, Key="dir/by-hand")["Body"].read() == b"yes"


@pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")
def test_restic_backs_up_checks_and_restores(store_lab: RunningLab, lab_bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(7 * MIB))
    (source / "small").write_text("hello")
    end = store_lab.endpoints["s3"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_SHARED_CREDENTIALS_FILE": end["credentials_file"],
        "RESTIC_PASSWORD": "rehearsal",
        "RESTIC_REPOSITORY": f"s3:{end['endpoint']}/{lab_bucket}/restic",
    }

    def restic(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["restic", "--no-cache", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    for arguments in (("init",), ("backup", str(source)), ("check", "--read-data")):
        answer = restic(*arguments)
        assert answer.returncode == 0, answer.stderr
    restored = tmp_path / "restored"
    assert restic("restore", "latest", "--target", str(restored)).returncode == 0
    for name in ("large", "small"):
        assert (restored / source.relative_to("/") / name).read_bytes() == (source / name).read_bytes()
    store_lab.fault("s3-corrupt", match=f"{lab_bucket}/restic/data/")
    assert restic("check", "--read-data").returncode != 0
