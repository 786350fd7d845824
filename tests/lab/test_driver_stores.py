"""The registry and S3 drivers against the lab's registry and object store."""

from __future__ import annotations

import configparser
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_lab import RunningLab

from hybridlab import errors, ports
from hybridlab.drivers.registry import RegistryDriver
from hybridlab.drivers.s3 import S3Driver


# -- registry ----------------------------------------------------------------------------------------------------------
def test_images_of_every_registry(store_lab: RunningLab, tmp_path: Path) -> None:
    endpoint = store_lab.endpoints["registry"]["endpoint"]
    driver: ports.Registry = RegistryDriver(cache=tmp_path, endpoint_for=lambda host: str(endpoint))
    helper = "registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v17.0.0"
    answers = driver.lookup(["nginx", "docker.io/library/nginx:latest", "mariadb:11", helper, "nobody/has-this", "BAD"])
    assert {"arm64", "amd64"} <= answers["nginx"].architectures
    assert answers["nginx"].index
    assert answers["nginx"].digest == answers["docker.io/library/nginx:latest"].digest
    assert "80/tcp" in answers["nginx"].config.exposed_ports
    assert answers["mariadb:11"].config.volumes == ("/var/lib/mysql",)
    assert answers[helper].architectures == {"amd64"}
    assert not answers[helper].index
    assert answers["nobody/has-this"].problem.startswith("not found")
    assert answers["BAD"].problem.startswith("bad reference")


def test_content_is_asked_for_once(store_lab: RunningLab, tmp_path: Path) -> None:
    endpoint = store_lab.endpoints["registry"]["endpoint"]
    references = ["nginx", "redis:7", "postgres:16", "mariadb:11"]

    def manifests(since: int) -> list[str]:
        rows = store_lab.requests(part="registry")[since:]
        return [row["verb"] for row in rows if "/manifests/" in row["target"] and row["status"] == 200]

    start = len(store_lab.requests(part="registry"))
    first = RegistryDriver(cache=tmp_path, endpoint_for=lambda host: str(endpoint)).lookup(references)
    assert sorted(manifests(start)) == ["GET"] * 8 + ["HEAD"] * 4
    start = len(store_lab.requests(part="registry"))
    again = RegistryDriver(cache=tmp_path, endpoint_for=lambda host: str(endpoint)).lookup(references)
    assert manifests(start) == ["HEAD"] * 4
    assert {r: a.platforms for r, a in again.items()} == {r: a.platforms for r, a in first.items()}


def test_a_used_up_pull_limit(store_lab: RunningLab, tmp_path: Path) -> None:
    endpoint = store_lab.endpoints["registry"]["endpoint"]
    store_lab.fault("registry-quota", count=1, match="library/httpd")
    driver = RegistryDriver(cache=tmp_path, endpoint_for=lambda host: str(endpoint))
    answer = driver.lookup(["httpd:2.4"])["httpd:2.4"]
    assert not answer.known
    assert answer.problem.startswith("could not ask")
    assert "429" in answer.problem
    assert driver.remaining
    assert driver.lookup(["httpd:2.4"])["httpd:2.4"].known


# -- object storage ----------------------------------------------------------------------------------------------------
def bucket(store_lab: RunningLab, name: str, **changes: str) -> S3Driver:
    told = store_lab.endpoints["s3"]
    keys = configparser.ConfigParser()
    keys.read(told["credentials_file"])
    settings = {
        "endpoint": str(told["endpoint"]),
        "region": "eu-frankfurt-1",
        "bucket": name,
        "access_key": keys["default"]["aws_access_key_id"],
        "secret_key": keys["default"]["aws_secret_access_key"],
        **changes,
    }
    return S3Driver(**settings)


@pytest.fixture
def s3(store_lab: RunningLab) -> ports.S3:
    made = bucket(store_lab, f"drivers-{uuid.uuid4().hex[:8]}")
    assert made.ensure_bucket()
    return made


def test_a_bucket_is_made_once(s3: ports.S3) -> None:
    assert s3.bucket_exists()
    assert not s3.ensure_bucket()


def test_twelve_megabytes_through_and_back(store_lab: RunningLab, s3: ports.S3) -> None:
    data = os.urandom(12 * 2**20 + 1)
    start = len(store_lab.requests(part="s3"))
    s3.put_multipart("dir/big", (data[i : i + 1_000_000] for i in range(0, len(data), 1_000_000)))
    puts = [r for r in store_lab.requests(part="s3")[start:] if r["verb"] == "PUT"]
    assert len(puts) == 3  # parts of at least 5 MiB, and the rest
    assert b"".join(s3.get("dir/big")) == data
    assert [(o.key, o.size) for o in s3.list("dir/")] == [("dir/big", len(data))]


@pytest.mark.parametrize("parts", [[], [b""], [b"x"]])
def test_small_objects(s3: ports.S3, parts: list[bytes]) -> None:
    s3.put_multipart("small", parts)
    assert b"".join(s3.get("small")) == b"".join(parts)


def test_a_broken_upload_leaves_nothing(s3: ports.S3) -> None:
    def parts() -> Iterator[bytes]:
        yield bytes(6 * 2**20)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        s3.put_multipart("broken", parts())
    assert s3.list() == ()
    with pytest.raises(errors.NotFound):
        s3.get("broken")


def test_lists_have_more_than_a_page_and_deletes_more_than_a_batch(store_lab: RunningLab, s3: ports.S3) -> None:
    folder = Path(store_lab.endpoints["s3"]["root"]) / s3.bucket / "many"
    folder.mkdir()
    for number in range(1005):
        (folder / f"{number:04d}").write_bytes(b"x")
    keys = [o.key for o in s3.list("many/")]
    assert keys == [f"many/{number:04d}" for number in range(1005)]
    s3.delete([*keys, "many/not-there"])
    assert s3.list() == ()


def test_refused_and_unreachable(store_lab: RunningLab, s3: ports.S3) -> None:
    with pytest.raises(errors.NotFound, match="nothing-here"):
        s3.get("nothing-here")
    with pytest.raises(errors.NotFound):
        bucket(store_lab, "no-such-bucket").list()
    assert not bucket(store_lab, "no-such-bucket").bucket_exists()
    with pytest.raises(errors.AuthFailed):
        bucket(store_lab, s3.bucket, secret_key="wrong").list()
    with pytest.raises(errors.Unreachable):
        bucket(store_lab, s3.bucket, endpoint="http://127.0.0.1:9").list()
    with pytest.raises(errors.BadInput):
        bucket(store_lab, s3.bucket, endpoint="nonsense")
