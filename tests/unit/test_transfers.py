"""How each claim's data are taken: which dump for which image, what a choice means, what is no whole dump."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compose_kit import NODES, image, project
from fakes import FakeContext, FakeHosts, FakeKube, PodKube, digest_lines, make_params

from hybridlab.compose import ClaimSource, Options, convert
from hybridlab.errors import BadInput, NotFound, Refused
from hybridlab.lab import databases
from hybridlab.models import ExecResult
from hybridlab.params import check_params
from hybridlab.stages.helperpod import helper_pod, running_helper
from hybridlab.stages.migrate import Seen, copying, dumps, plan, wanted_objects
from hybridlab.stages.migrate.dumps import tool_for
from hybridlab.stages.migrate.project import Move
from hybridlab.stages.migrate.transfers import callers, choice_findings, seat, transfers
from hybridlab.stages.objects import Differences, ref

BOTH = ("linux/amd64", "linux/arm64")
TEXT = """
services:
  app:
    image: app:1
    depends_on: {db: {condition: service_started, required: true}}
    volumes: [{type: volume, source: files, target: /srv}]
  worker:
    image: app:1
    depends_on: {app: {condition: service_started, required: true}}
    volumes: [{type: volume, source: files, target: /srv}]
  db:
    image: postgres:16
    volumes:
      - {type: volume, source: rows, target: /var/lib/postgresql/data}
      - {type: volume, source: extra, target: /backup}
  cache:
    image: redis:7
    command: [redis-server, --appendonly, "yes"]
    volumes: [{type: volume, source: keys, target: /data}]
volumes: {files: {name: d_files}, rows: {name: d_rows}, extra: {name: d_extra}, keys: {name: d_keys}}
"""
IMAGES = {name: image(*BOTH, reference=name) for name in ("app:1", "postgres:16", "redis:7")}


def move() -> Move:
    read = project(TEXT)
    return Move(read, IMAGES, convert(read, IMAGES, NODES, Options(namespace="services")))


MOVE = move()


def params(**data: str) -> Any:
    changes: dict[str, Any] = {"migrate.docker_host": {"address": "192.168.1.10"}}
    return make_params({**changes, "migrate.data": {name: {"method": method} for name, method in data.items()}})


@pytest.mark.parametrize(
    ("reference", "database"),
    [
        ("postgres:16-alpine", "PostgreSQL"),
        ("docker.io/library/postgres@sha256:00", "PostgreSQL"),
        ("registry.example:5000/x/pgvector:pg16", "PostgreSQL"),
        ("mariadb", "MariaDB"),
        ("mysql:8.4", "MySQL"),
        ("percona/percona-server:8", "MySQL"),
        ("redis:7", "Redis"),
        ("valkey/valkey:8", "Valkey"),
        ("postgrest/postgrest", ""),
        ("rediscommander/redis-commander", ""),
        ("", ""),
    ],
)
def test_the_dump_by_the_image(reference: str, database: str) -> None:
    tool = tool_for(reference)
    assert (tool.database if tool else "") == database


@pytest.mark.parametrize(
    ("data", "methods"),
    [
        ({}, {"files": "copy", "rows": "copy", "extra": "copy", "keys": "copy"}),
        ({"worker": "stop"}, {"files": "stop", "rows": "copy", "extra": "copy", "keys": "copy"}),
        ({"db": "dump"}, {"files": "copy", "rows": "dump", "extra": "stop", "keys": "copy"}),
        ({"cache": "dump"}, {"files": "copy", "rows": "copy", "extra": "copy", "keys": "dump"}),
    ],
)
def test_methods(data: dict[str, str], methods: dict[str, str]) -> None:
    assert {t.claim.name: t.method for t in transfers(params(**data), MOVE)} == methods


def test_a_dump_that_is_loaded_comes_between_the_database_and_those_who_call_it() -> None:
    missing = Differences({ref(o): ("",) for o in wanted_objects(MOVE)})
    made = plan(params(db="dump"), Seen(MOVE, missing, {}, "192.168.1.10"), {})
    order = [s.id for s in made.steps]
    load = order.index("load:rows")
    assert order.index("apply:StatefulSet/services/db") < load
    assert load < order.index("apply:Deployment/services/app")
    assert "copy:rows" not in order
    assert order.index("copy:files") < order.index("apply:StatefulSet/services/db")


def test_a_load_that_failed_is_planned_again_unless_somebody_calls_the_database() -> None:
    rest = {ref(o): ("",) for o in wanted_objects(MOVE) if o["metadata"]["name"] in ("app", "worker")}
    copied = {"files": "x", "extra": "x", "keys": "x"}
    made = plan(params(db="dump"), Seen(MOVE, Differences(rest), copied, "h"), {})
    assert "load:rows" in [s.id for s in made.steps]
    made = plan(params(db="dump"), Seen(MOVE, Differences(), copied, "h"), {})
    assert made.steps == ()
    assert ["app, worker run on it" in f.text for f in made.findings if f.subject == "claim rows"] == [True]


def test_without_start_no_workload_comes_and_the_data_do() -> None:
    missing = Differences({ref(o): ("",) for o in wanted_objects(MOVE)})
    wanted = make_params({"migrate.docker_host": {"address": "h"}, "migrate.start": False})
    made = plan(wanted, Seen(MOVE, missing, {}, "h"), {})
    kinds = {s.target.split("/")[0] for s in made.steps}
    assert not kinds & {"Deployment", "StatefulSet"}
    assert {s.id for s in made.steps if s.action == "copy"} == {"copy:files", "copy:rows", "copy:extra", "copy:keys"}
    assert any("migrate.start is false" in f.text for f in made.findings)


@pytest.mark.parametrize(
    ("data", "level", "said"),
    [
        ({"bd": "copy"}, "refusal", "there is no such service"),
        ({"app": "dump"}, "refusal", "no dump is known for app:1"),
        ({"cache": "dump"}, "warning", "append-only"),
        ({"db": "dump", "app": "stop"}, "", ""),
    ],
)
def test_choices_that_mean_nothing(data: dict[str, str], level: str, said: str) -> None:
    found = choice_findings(params(**data), MOVE)
    assert [f.level for f in found] == ([level] if level else [])
    assert said in "".join(f.text for f in found)
    if "bd" in data:
        assert found[0].next_move == "did you mean db?"


def test_callers_are_found_through_others() -> None:
    assert callers("db", MOVE) == {"app", "worker"}
    assert callers("worker", MOVE) == set()


@pytest.mark.parametrize(
    ("check", "said"),
    [({"kind": "http"}, "no port"), ({"kind": "command"}, "no command"), ({"path": "x", "port": 1}, "path")],
)
def test_a_health_check_is_whole(check: dict[str, Any], said: str) -> None:
    plain = make_params().plain()
    with pytest.raises(BadInput, match=said):
        check_params({**plain, "cut_over": {"checks": [{"service": "web", **check}]}})


# -- dumping -----------------------------------------------------------------------------------------------------------
ROWS = ClaimSource("rows", "volume", "d_rows", ("db",))
WHOLE = "-- PostgreSQL database cluster dump\nSELECT 1;\n-- PostgreSQL database cluster dump complete\n"


class Loading(FakeKube):
    """A new database that answers a load with this; what it was sent is kept."""

    def __init__(self, status: int, stderr: str) -> None:
        pod = {"kind": "Pod", "metadata": {"name": "db-0", "namespace": "services", "labels": LABELS}, "spec": {},
               "status": {"conditions": [{"type": "Ready", "status": "True"}]}}  # fmt: skip
        super().__init__(pod, {"kind": "PersistentVolumeClaim", "metadata": {"name": "rows", "namespace": "services"}})
        self.status, self.stderr, self.sent = status, stderr, b""

    def exec(self, namespace: str, pod: str, argv: Any, *, stdin: Any = None, **_: Any) -> ExecResult:
        assert "psql" in argv[2]
        self.sent = b"".join(stdin)
        return ExecResult(self.status, b"", self.stderr)

    @property
    def mark(self) -> str:
        claim = self.objects["PersistentVolumeClaim", "services", "rows"]
        return str(claim["metadata"].get("annotations", {}).get(copying.COPIED, ""))


LABELS = {"app.kubernetes.io/name": "db"}


def docker(dump: str, *, running: bool = True) -> FakeHosts:
    row = {"Name": "/d-db-1", "Config": {"Labels": {"com.docker.compose.service": "db"}}, "State": {"Running": running}}

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[:2] == ("docker", "ps"):
            return 0, '{"Names": "d-db-1"}\n'
        if argv[:2] == ("docker", "inspect"):
            return 0, json.dumps([row])
        assert argv[:3] == ("docker", "exec", "d-db-1")
        return 0, dump

    return FakeHosts(answer)


def loaded(tmp_path: Path, kube: Loading, hosts: FakeHosts) -> Any:
    ctx = FakeContext(tmp_path, kube=kube)
    ctx.docker_hosts = hosts
    tool = tool_for("postgres:16")
    assert tool is not None
    return dumps.load_dump(ctx, ROWS, "db", "d", tool, "db")


def test_a_dump_is_loaded_whole_and_marked(tmp_path: Path) -> None:
    kube = Loading(0, 'psql:<stdin>:5: ERROR:  role "ada" already exists\n')
    found = loaded(tmp_path, kube, docker(WHOLE))
    assert kube.sent == WHOLE.encode() + b"\n\\q\n"
    assert found["bytes"] == len(WHOLE)
    assert kube.mark == f"dump:{found['sha256']}"


@pytest.mark.parametrize(
    ("dump", "status", "stderr", "said"),
    [
        (WHOLE[:60], 0, "", "is not whole.*without the end"),
        ("", 0, "", "is not whole"),
        (WHOLE, 2, "psql: connection lost", "could not be loaded.*connection lost"),
        (WHOLE, 0, 'ERROR:  relation "x" does not exist', "could not be loaded.*relation"),
    ],
)
def test_a_dump_that_is_not_loaded_whole_is_not_marked(
    tmp_path: Path, dump: str, status: int, stderr: str, said: str
) -> None:
    kube = Loading(status, stderr)
    with pytest.raises(Refused, match=said):
        loaded(tmp_path, kube, docker(dump))
    assert kube.mark == ""


def test_a_database_at_rest_cannot_be_dumped(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="only a running PostgreSQL can be dumped") as caught:
        loaded(tmp_path, Loading(0, ""), docker(WHOLE, running=False))
    assert "method to copy" in caught.value.next_move


def test_no_password_is_in_an_argument() -> None:
    for tool in dumps.TOOLS:
        assert "$MARIADB_ROOT_PASSWORD" not in tool.dump.split("exec ", 1)[1]
        assert "PASSWORD" not in tool.dump.split("exec ", 1)[1]


def test_the_lab_understands_every_command_of_ours() -> None:
    for tool in dumps.TOOLS:
        kind = databases.kind_of(tool.images[0])
        assert kind is not None
        assert databases.program(["sh", "-c", tool.dump], kind)[0] == kind.dump
        if tool.load:
            assert databases.program(["sh", "-c", tool.load], kind)[0] == kind.load


# -- copying again -----------------------------------------------------------------------------------------------------
class Half(PodKube):
    """A claim that holds one file already, which ``lies`` (same size and time, other content) or not."""

    def __init__(self, *, lies: bool = False, full: bool = False) -> None:
        meta = {"name": "files", "namespace": "services"}
        super().__init__(self.run, {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}})
        self.held = {".": "", "a": "old" if lies else "1"}
        self.full = full

    def run(self, pod: str, argv: tuple[str, ...], stdin: bytes) -> str:
        if argv[0] == "extract":
            for name, content in json.loads(stdin).items():
                self.held[name] = self.held[name] if content == "same" else content
            return ""
        return digest_lines(self.held)

    def exec(self, namespace: str, pod: str, argv: Any, **more: Any) -> ExecResult:
        if self.full and "extract" in argv:
            return ExecResult(4, b"", '{"event": "failed", "why": "/data/x: No space left on device"}')
        return super().exec(namespace, pod, argv, **more)


FILES = ClaimSource("files", "volume", "d_files", ("app",))


def helper(source: dict[str, str], calls: list[tuple[str, ...]]) -> FakeHosts:
    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "docker":
            return 0, '[{"Mountpoint": "/v"}]'
        calls.append(argv[2:])
        if argv[2] == "digest":
            return 0, digest_lines(source)
        have = any(word.startswith("--have=") for word in argv)
        return 0, json.dumps({k: "same" if have and k == "a" else v for k, v in source.items()})

    return FakeHosts(answer)


def copied(tmp_path: Path, kube: Half, source: dict[str, str], claim: ClaimSource = FILES, **more: Any) -> Any:
    ctx = FakeContext(tmp_path, kube=kube)
    calls: list[tuple[str, ...]] = []
    ctx.docker_hosts = helper(source, calls)
    return copying.copy_claim(ctx, claim, "d", **more), [c for c in calls if c[0] == "archive"]


def test_what_the_claim_holds_is_not_sent_again(tmp_path: Path) -> None:
    kube = Half()
    done, archives = copied(tmp_path, kube, {".": "", "a": "1", "b": "2"})
    assert archives == [("archive", "/v", "--have=/opt/hybridlab/have-files.jsonl")]
    assert kube.held == {".": "", "a": "1", "b": "2"}
    assert done["rounds"] == 1


def test_a_file_that_only_looks_the_same_is_sent_after_all(tmp_path: Path) -> None:
    kube = Half(lies=True)
    done, archives = copied(tmp_path, kube, {".": "", "a": "1"})
    assert [len(a) for a in archives] == [3, 2], "the second time everything is sent"
    assert (kube.held["a"], done["rounds"]) == ("1", 2)


def test_a_copy_that_is_not_the_last_leaves_no_mark(tmp_path: Path) -> None:
    kube = Half()
    copied(tmp_path, kube, {".": "", "a": "1"}, final=False)
    claim = kube.objects["PersistentVolumeClaim", "services", "files"]
    assert "annotations" not in claim["metadata"]


def test_a_full_claim_says_so(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="claim files is full") as caught:
        copied(tmp_path, Half(full=True), {".": "", "a": "1"})
    assert "migrate.claim_gb" in caught.value.next_move


class Long(PodKube):
    """A pod whose helper prints more than an exec keeps by itself, in pieces for whoever takes them."""

    def exec(self, namespace: str, pod: str, argv: Any, *, stdout: Any = None, **more: Any) -> ExecResult:
        if stdout is None:
            raise Refused("the command wrote more than 16 MiB")
        for number in range(3):
            stdout(b"%d" % number)
        return ExecResult(0, b"", "")


def test_a_digest_of_any_length_is_taken(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=Long(lambda *_: ""))
    with running_helper(ctx, "services", "h", {"files": "/data"}) as call:
        assert call("digest", "/data") == "012"


def test_helpers_of_claims_with_long_names_are_not_one_pod(tmp_path: Path) -> None:
    pods = []
    for end in "ab":
        name = f"a-volume-that-somebody-named-with-more-words-than-kubernetes-{end}"
        kube = Half()
        copied(tmp_path, kube, {".": "", "a": "1"}, ClaimSource(name, "volume", "d_files", ("app",)))
        pods += [call[2] for call in kube.calls if call[:2] == ("apply", "Pod")]
    assert len(set(pods)) == 2, "one would be deleted under the other, which copies at the same time"
    assert max(map(len, pods)) <= 63


@pytest.mark.parametrize(("file", "there"), [("acme.json", {".": ""}), ("", {"acme.json": "x"})])
def test_a_file_where_a_folder_is_mounted_is_refused(tmp_path: Path, file: str, there: dict[str, str]) -> None:
    claim = ClaimSource("files", "volume", "d_files", ("app",), file=file)
    with pytest.raises(Refused, match="on the Docker host, and the manifests mount it as a"):
        copied(tmp_path, Half(), there, claim)


def test_a_helper_lands_where_the_service_will_with_all_its_claims() -> None:
    found = {c.name: seat(MOVE, c) for c in MOVE.manifests.claims}
    assert (found["rows"].claims, found["extra"].claims) == (("extra",), ("rows",))
    assert found["files"].claims == ()
    pod = helper_pod("services", "h", {"rows": "/data"}, seat=found["rows"])
    mounts = {m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert {"/data", "/beside/extra"} <= mounts
    assert pod["spec"]["affinity"]["nodeAffinity"] == dict(found["rows"].node_affinity) != {}
    assert pod["spec"]["tolerations"] == [], "nothing of it may run on the small node"


def test_a_helper_for_what_runs_on_one_architecture_goes_there() -> None:
    read = project(
        "services: {ts: {image: 'ts:1', volumes: [{type: volume, source: v, target: /v}]}}\nvolumes: {v: {}}"
    )
    images = {"ts:1": image("linux/amd64")}
    moved = Move(read, images, convert(read, images, NODES, Options(namespace="services")))
    place = seat(moved, moved.manifests.claims[0])
    assert place.node_selector == {"kubernetes.io/arch": "amd64"}
    assert [t["key"] for t in place.tolerations] == ["hybridlab.io/small"]
