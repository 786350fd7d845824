"""The lab's registry. The contract also runs against HYBRIDLAB_TEST_REGISTRY (its URL; the image is named by
HYBRIDLAB_TEST_REGISTRY_IMAGE, an index of linux/amd64 and linux/arm64, by default library/mariadb:11)."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_lab import RunningLab

from hybridlab.lab.registry import RegistryPart
from hybridlab.lab.registry_images import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, parse_reference
from hybridlab.lab.world import Clock, Faults, RequestLog, World

EVERY_TYPE = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
BOTH = ["linux/amd64", "linux/arm64/v8"]
IMAGES: dict[str, dict[str, Any]] = {
    "docker.io/library/attested:1": {"platforms": BOTH, "index": True, "docker": False, "attestations": True},
    "docker.io/library/plain:1": {"platforms": BOTH, "index": True, "docker": False, "attestations": False},
    "docker.io/library/list:1": {
        "platforms": BOTH,
        "index": True,
        "docker": True,
        "config": {"Healthcheck": ["CMD", "/check"]},
    },
    "docker.io/library/single:1": {
        "platforms": ["linux/amd64"],
        "index": False,
        "docker": False,
        "config": {"ExposedPorts": ["80/tcp"], "Volumes": [], "User": "1000", "Healthcheck": None},
    },
    "docker.io/library/old:1": {"platforms": ["linux/arm/v7"], "index": False, "docker": True},
    "docker.io/someone/tags:a": {"platforms": BOTH, "index": True},
    "docker.io/someone/tags:b": {"platforms": BOTH, "index": True},
    "docker.io/someone/tags:c": {"platforms": BOTH, "index": True},
    "ghcr.io/owner/app:v1": {"platforms": ["linux/arm64"], "index": True},
}


class Client:
    """A registry client that does only what the specification says: asks, is challenged, gets a token, asks again."""

    def __init__(self, base: str, *, host: str = "") -> None:
        self._http = httpx.Client(base_url=base, headers={"Host": host} if host else {}, timeout=20, trust_env=False)
        self._tokens: dict[str, str] = {}
        self.challenges: list[dict[str, str]] = []

    def token(self, challenge: Mapping[str, str]) -> str:
        query = {key: challenge[key] for key in ("service", "scope") if key in challenge}
        answer = httpx.get(challenge["realm"], params=query, timeout=20, trust_env=False)
        assert answer.status_code == 200, answer.text
        token: str = answer.json().get("token") or answer.json()["access_token"]
        return token

    def ask(self, method: str, path: str, *, accept: str = EVERY_TYPE, token: str | None = None) -> httpx.Response:
        sent = {"Accept": accept, **({"Authorization": f"Bearer {token}"} if token else {})}
        answer = self._http.request(method, path, headers=sent)
        if answer.status_code == 401 and token is None:
            challenge = parse_challenge(answer.headers["WWW-Authenticate"])
            self.challenges.append(challenge)
            sent["Authorization"] = f"Bearer {self.token(challenge)}"
            answer = self._http.request(method, path, headers=sent, follow_redirects=True)
        return answer

    def get(self, path: str, *, accept: str = EVERY_TYPE) -> httpx.Response:
        return self.ask("GET", path, accept=accept)


def parse_challenge(text: str) -> dict[str, str]:
    assert text.startswith("Bearer ")
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# -- contract ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    real = os.environ.get("HYBRIDLAB_TEST_REGISTRY")
    if real:
        return Client(real)
    lab: RunningLab = request.getfixturevalue("store_lab")
    return Client(lab.endpoints["registry"]["endpoint"])


@pytest.fixture
def image() -> tuple[str, str]:
    repository, _, tag = os.environ.get("HYBRIDLAB_TEST_REGISTRY_IMAGE", "library/mariadb:11").rpartition(":")
    return repository, tag


def test_version_check(client: Client) -> None:
    answer = client.get("/v2/")
    assert answer.status_code == 200
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_head_and_get_agree_and_the_digest_is_that_of_the_bytes(client: Client, image: tuple[str, str]) -> None:
    repository, tag = image
    head = client.ask("HEAD", f"/v2/{repository}/manifests/{tag}")
    whole = client.get(f"/v2/{repository}/manifests/{tag}")
    assert head.status_code == whole.status_code == 200
    assert head.content == b""
    assert head.headers["Docker-Content-Digest"] == whole.headers["Docker-Content-Digest"] == digest_of(whole.content)
    assert head.headers["Content-Type"] == whole.headers["Content-Type"] in (OCI_INDEX, DOCKER_LIST)
    assert int(head.headers["Content-Length"]) == len(whole.content)
    again = client.get(f"/v2/{repository}/manifests/{digest_of(whole.content)}")
    assert again.content == whole.content


def test_an_index_leads_to_images_configs_and_layers(client: Client, image: tuple[str, str]) -> None:
    repository, tag = image
    index = client.get(f"/v2/{repository}/manifests/{tag}").json()
    seen = set()
    for descriptor in index["manifests"]:
        child = client.get(f"/v2/{repository}/manifests/{descriptor['digest']}")
        assert digest_of(child.content) == descriptor["digest"]
        assert len(child.content) == descriptor["size"]
        assert child.headers["Content-Type"] == descriptor["mediaType"]
        platform = descriptor["platform"]
        if platform["os"] == "unknown":
            continue
        blob = client.get(f"/v2/{repository}/blobs/{child.json()['config']['digest']}", accept="*/*")
        assert digest_of(blob.content) == child.json()["config"]["digest"]
        config = blob.json()
        assert (config["os"], config["architecture"]) == (platform["os"], platform["architecture"])
        layer = child.json()["layers"][0]
        head = client.ask("HEAD", f"/v2/{repository}/blobs/{layer['digest']}", accept="*/*")
        assert (head.status_code, int(head.headers["Content-Length"])) == (200, layer["size"])
        seen.add(f"{platform['os']}/{platform['architecture']}")
    assert {"linux/amd64", "linux/arm64"} <= seen


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("{repository}/manifests/no-such-tag", "MANIFEST_UNKNOWN"),
        ("{repository}/manifests/sha256:" + "0" * 64, "MANIFEST_UNKNOWN"),
        ("{repository}/blobs/sha256:" + "0" * 64, "BLOB_UNKNOWN"),
        ("nobody/has-this/tags/list", "NAME_UNKNOWN"),
    ],
)
def test_what_is_not_there_is_404_with_its_code(client: Client, image: tuple[str, str], path: str, code: str) -> None:
    answer = client.get("/v2/" + path.format(repository=image[0]))
    assert answer.status_code == 404
    assert [error["code"] for error in answer.json()["errors"]] == [code]


def test_tags_are_listed_in_pages(client: Client, image: tuple[str, str]) -> None:
    repository, tag = image
    every = client.get(f"/v2/{repository}/tags/list").json()
    assert every["name"] == repository
    assert tag in every["tags"]
    paged: list[str] = []
    path = f"/v2/{repository}/tags/list?n=1"
    for _ in every["tags"]:
        page = client.get(path)
        paged += page.json()["tags"]
        if "Link" not in page.headers:
            break
        assert page.headers["Link"].endswith('>; rel="next"')
        path = page.headers["Link"].partition(">")[0].lstrip("<")
    assert paged == sorted(every["tags"])


# -- the lab only ------------------------------------------------------------------------------------------------------


def with_registry(
    tmp_path: Path,
    use: Callable[[str, World, RegistryPart], None],
    *,
    images: dict[str, Any] = IMAGES,
    limit: int = 100,
) -> None:
    """Run ``use`` in a thread beside a registry of these images."""

    async def main() -> None:
        world = World(tmp_path, Clock(20), Faults(), RequestLog(tmp_path / "requests.jsonl"))
        part = RegistryPart(images, pull_limit=limit)
        await part.start(world)
        try:
            await asyncio.to_thread(use, world.endpoints["registry"]["endpoint"], world, part)
        finally:
            await part.stop()
            world.log.close()

    asyncio.run(main())


def test_tokens_are_for_one_repository_and_one_service(tmp_path: Path) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        path = "/v2/library/single/manifests/1"
        first = httpx.get(base + path, trust_env=False)
        assert first.status_code == 401
        assert first.json()["errors"][0]["code"] == "UNAUTHORIZED"
        challenge = parse_challenge(first.headers["WWW-Authenticate"])
        assert challenge["service"] == "registry.docker.io"
        assert challenge["scope"] == "repository:library/single:pull"
        client = Client(base)
        good = client.token(challenge)
        wrong = {
            "another repository's": client.token({**challenge, "scope": "repository:library/plain:pull"}),
            "another service's": client.token({**challenge, "service": "ghcr.io"}),
            "no pull": client.token({**challenge, "scope": "repository:library/single:push"}),
            "no scope": client.token({key: challenge[key] for key in ("realm", "service")}),
            "tampered": good[:4] + ("A" if good[4] != "A" else "B") + good[5:],
            "not ours": "abc",
        }
        for name, token in wrong.items():
            answer = client.ask("GET", path, token=token)
            assert (name, answer.status_code) == (name, 401)
        assert client.ask("GET", path, token=good).status_code == 200
        logged_in = httpx.get(challenge["realm"], params={"service": "x"}, auth=("me", "secret"), trust_env=False)
        assert logged_in.status_code == 401

    with_registry(tmp_path, use)


@pytest.mark.parametrize(
    ("host", "path", "service", "digest_as"),
    [
        ("", "single", "registry.docker.io", "library/single"),
        ("", "ghcr.io/owner/app", "registry.docker.io", None),
        ("registry-1.docker.io", "library/single", "registry.docker.io", "library/single"),
        ("ghcr.io", "owner/app", "ghcr.io", None),
    ],
)
def test_the_host_says_which_registry(
    tmp_path: Path, host: str, path: str, service: str, digest_as: str | None
) -> None:
    def use(base: str, _world: World, part: RegistryPart) -> None:
        client = Client(base, host=host)
        tag = "1" if digest_as else "v1"
        answer = client.get(f"/v2/{path}/manifests/{tag}")
        assert answer.status_code == 200
        assert client.challenges[0]["service"] == service
        assert client.challenges[0]["realm"].startswith(base)
        name = f"docker.io/{digest_as}" if digest_as else "ghcr.io/owner/app"
        assert part.platforms(f"{name}@{answer.headers['Docker-Content-Digest']}") == part.platforms(f"{name}:{tag}")

    with_registry(tmp_path, use)


def test_one_host_does_not_serve_anothers_images(tmp_path: Path) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        for host, path in (("ghcr.io", "library/single"), ("registry-1.docker.io", "single"), ("quay.io", "a/b")):
            answer = Client(base, host=host).get(f"/v2/{path}/manifests/1")
            assert (host, answer.status_code, answer.json()["errors"][0]["code"]) == (host, 404, "NAME_UNKNOWN")

    with_registry(tmp_path, use)


@pytest.mark.parametrize(
    ("repository", "accept", "status", "media_type"),
    [
        ("plain", OCI_INDEX, 200, OCI_INDEX),
        ("plain", EVERY_TYPE, 200, OCI_INDEX),
        ("plain", OCI_MANIFEST, 404, None),
        ("plain", "*/*", 404, None),
        ("list", DOCKER_LIST, 200, DOCKER_LIST),
        ("list", DOCKER_MANIFEST, 200, DOCKER_MANIFEST),  # the linux/amd64 one
        ("single", f"{OCI_MANIFEST};q=0.5", 200, OCI_MANIFEST),
        ("single", DOCKER_MANIFEST, 404, None),
        ("old", OCI_INDEX, 200, DOCKER_MANIFEST),
    ],
)
def test_accept_decides(tmp_path: Path, repository: str, accept: str, status: int, media_type: str | None) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        answer = Client(base).get(f"/v2/library/{repository}/manifests/1", accept=accept)
        assert answer.status_code == status
        if media_type:
            assert answer.headers["Content-Type"] == answer.json()["mediaType"] == media_type
        else:
            assert answer.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"

    with_registry(tmp_path, use)


def test_attestations_are_for_no_platform(tmp_path: Path) -> None:
    def use(base: str, _world: World, part: RegistryPart) -> None:
        entries = Client(base).get("/v2/library/attested/manifests/1").json()["manifests"]
        images = [entry for entry in entries if entry["platform"]["os"] != "unknown"]
        attestations = [entry for entry in entries if entry["platform"]["os"] == "unknown"]
        assert [entry["annotations"]["vnd.docker.reference.digest"] for entry in attestations] == [
            entry["digest"] for entry in images
        ]
        assert len(images) == 2
        assert part.platforms("attested:1") == ("linux/amd64", "linux/arm64/v8")
        plain = Client(base).get("/v2/library/plain/manifests/1").json()["manifests"]
        assert len(plain) == 2

    with_registry(tmp_path, use)


def test_config_is_as_builders_write_it(tmp_path: Path) -> None:
    def use(_base: str, _world: World, part: RegistryPart) -> None:
        config = part.config("single:1", "linux/amd64")
        assert config["config"]["ExposedPorts"] == {"80/tcp": {}}
        assert config["config"]["User"] == "1000"
        assert not {"Volumes", "Healthcheck"} & set(config["config"])
        assert part.config("list:1", "linux/amd64")["config"]["Healthcheck"] == {"Test": ["CMD", "/check"]}
        assert part.config("plain:1", "linux/arm64")["architecture"] == "arm64"
        for image, platform in (("single:1", "linux/arm64"), ("nobody/has:this", "linux/amd64")):
            with pytest.raises(KeyError):
                part.config(image, platform)

    with_registry(tmp_path, use)


def test_the_layer_holds_a_program_for_its_platform(tmp_path: Path) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        client = Client(base)
        found = {}
        for entry in client.get("/v2/library/plain/manifests/1").json()["manifests"]:
            manifest = client.get(f"/v2/library/plain/manifests/{entry['digest']}").json()
            config = client.get(f"/v2/library/plain/blobs/{manifest['config']['digest']}", accept="*/*").json()
            layer = gzip.decompress(
                client.get(f"/v2/library/plain/blobs/{manifest['layers'][0]['digest']}", accept="*/*").content
            )
            assert config["rootfs"]["diff_ids"] == [digest_of(layer)]
            with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
                file = tar.extractfile("bin/sh")
                assert file is not None
                header = file.read()
            assert header[:4] == b"\x7fELF"
            found[entry["platform"]["architecture"]] = int.from_bytes(header[18:20], "little")
        assert found == {"amd64": 62, "arm64": 183}

    with_registry(tmp_path, use)


def test_same_bytes_every_time(tmp_path: Path) -> None:
    digests = []

    def use(base: str, _world: World, _part: RegistryPart) -> None:
        answers = [Client(base).ask("HEAD", f"/v2/{name}/manifests/{tag}") for name, tag in
                   (("attested", "1"), ("list", "1"), ("someone/tags", "a"), ("someone/tags", "b"))]  # fmt: skip
        digests.append([answer.headers["Docker-Content-Digest"] for answer in answers])

    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        with_registry(folder, use)
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_writes_are_refused_and_logged_as_such(tmp_path: Path, method: str) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        answer = httpx.request(method, f"{base}/v2/library/single/manifests/1", trust_env=False)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")
        rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
        assert [(row["verb"], row["status"], row["mutating"]) for row in rows] == [(method, 405, True)]

    with_registry(tmp_path, use)


def test_pull_limit_counts_gets_of_hubs_manifests_only(tmp_path: Path) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        client = Client(base)

        def left(answer: httpx.Response) -> tuple[int, str]:
            return answer.status_code, answer.headers["ratelimit-remaining"]

        path = "/v2/library/single/manifests/1"
        assert left(client.ask("HEAD", path)) == (200, "2;w=21600")
        assert left(client.get(path)) == (200, "1;w=21600")
        config = client.get(path).json()["config"]["digest"]
        for _ in range(2):
            assert client.get(f"/v2/library/single/blobs/{config}", accept="*/*").status_code == 200
        refused = client.get(path)
        assert left(refused) == (429, "0;w=21600")
        assert refused.headers["ratelimit-limit"] == "2;w=21600"
        assert refused.json()["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert client.ask("HEAD", path).status_code == 200
        other = Client(base, host="ghcr.io").get("/v2/owner/app/manifests/v1")
        assert other.status_code == 200
        assert "ratelimit-limit" not in other.headers

    with_registry(tmp_path, use, limit=2)


def test_pulls_are_remembered_over_a_restart(tmp_path: Path) -> None:
    answers: list[int] = []

    def use(base: str, _world: World, _part: RegistryPart) -> None:
        answers.append(Client(base).get("/v2/library/single/manifests/1").status_code)

    for _ in range(2):
        with_registry(tmp_path, use, limit=1)
    assert answers == [200, 429]


def test_quota_fault_strikes_where_and_as_often_as_asked(tmp_path: Path) -> None:
    def use(base: str, world: World, _part: RegistryPart) -> None:
        world.faults.ask("registry-quota", 1, "ghcr.io/owner/app")
        statuses = [
            Client(base).get("/v2/library/single/manifests/1").status_code,
            Client(base, host="ghcr.io").get("/v2/owner/app/manifests/v1").status_code,
            Client(base, host="ghcr.io").get("/v2/owner/app/manifests/v1").status_code,
        ]
        assert statuses == [200, 429, 200]

    with_registry(tmp_path, use)


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest"),
    [
        ("mariadb", "docker.io/library/mariadb", "latest", None),
        ("mariadb:11", "docker.io/library/mariadb", "11", None),
        ("docker.io/mariadb:11", "docker.io/library/mariadb", "11", None),
        ("index.docker.io/library/mariadb:11", "docker.io/library/mariadb", "11", None),
        ("someone/thing", "docker.io/someone/thing", "latest", None),
        ("localhost/thing:1", "localhost/thing", "1", None),
        ("host:5000/thing", "host:5000/thing", "latest", None),
        ("ghcr.io/a/b/c:1@sha256:ab", "ghcr.io/a/b/c", "1", "sha256:ab"),
        ("mariadb@sha256:ab", "docker.io/library/mariadb", None, "sha256:ab"),
    ],
)
def test_references(text: str, name: str, tag: str | None, digest: str | None) -> None:
    found = parse_reference(text)
    assert (found.name, found.tag, found.digest) == (name, tag, digest)


def test_digests_win_over_tags(tmp_path: Path) -> None:
    def use(base: str, _world: World, part: RegistryPart) -> None:
        index = Client(base).get("/v2/library/plain/manifests/1")
        arm = index.json()["manifests"][1]["digest"]
        assert part.platforms(f"plain:1@{arm}") == part.platforms(f"plain@{arm}") == ("linux/arm64/v8",)
        assert part.is_index("plain:1")
        assert part.is_index(f"plain@{index.headers['Docker-Content-Digest']}")
        assert not part.is_index(f"plain@{arm}")
        assert not part.is_index("single:1")
        assert part.platforms("plain:2") is None
        assert part.platforms("plain@sha256:" + "0" * 64) is None

    with_registry(tmp_path, use)


def test_every_image_of_the_catalogue_is_what_it_says(tmp_path: Path) -> None:
    text = resources.files("hybridlab.data").joinpath("registry-catalogue.json").read_text(encoding="utf-8")
    catalogue = json.loads(text)

    def use(_base: str, _world: World, part: RegistryPart) -> None:
        for name, entry in catalogue.items():
            assert part.platforms(name) == tuple(entry["platforms"]), name
            assert part.is_index(name) == entry["index"], name
            for platform in entry["platforms"]:
                assert platform.split("/")[1] == part.config(name, platform)["architecture"], name

    with_registry(tmp_path, use, images=catalogue)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_copies_an_image_with_all_its_platforms(store_lab: RunningLab, tmp_path: Path) -> None:
    address = store_lab.endpoints["registry"]["endpoint"].removeprefix("http://")
    since = time.time()
    copied = subprocess.run(
        ["skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{address}/mariadb:11", f"dir:{tmp_path}/out"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert copied.returncode == 0, copied.stderr
    index = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"amd64", "arm64"} <= {entry["platform"]["architecture"] for entry in index["manifests"]}
    actors = {row["actor"].partition("/")[0] for row in store_lab.requests(since=since, part="registry")}
    assert "skopeo" in actors
