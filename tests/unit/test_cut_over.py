"""075: the order of the day, what must be so before, what is never done twice, and what going back means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compose_kit import NODES, image, project
from fakes import make_params

from hybridlab.compose import Options, convert
from hybridlab.models import ImageInfo
from hybridlab.plan import Plan
from hybridlab.runner.preflight import find_runbooks
from hybridlab.stages import cut_over
from hybridlab.stages.cut_over import Seen
from hybridlab.stages.cut_over.actions import is_up
from hybridlab.stages.cut_over.order import start_order
from hybridlab.stages.cut_over.ports import published
from hybridlab.stages.migrate.dockerside import Container
from hybridlab.stages.migrate.project import Move
from hybridlab.stages.migrate.side import mark_of

BOTH = ("linux/amd64", "linux/arm64")
TEXT = """
services:
  app:
    image: app:1
    depends_on: {db: {condition: service_started, required: true}}
    ports:
      - {target: 80, published: "8080", protocol: tcp, mode: ingress}
      - {target: 53, published: "53", protocol: udp, mode: ingress}
      - {target: 9000, published: "9000", protocol: tcp, mode: ingress, host_ip: 127.0.0.1}
    volumes: [{type: volume, source: files, target: /srv}]
  db:
    image: postgres:16
    volumes: [{type: volume, source: rows, target: /var/lib/postgresql/data}]
  old:
    image: old:1
volumes: {files: {name: d_files}, rows: {name: d_rows}}
"""
IMAGES: dict[str, ImageInfo] = {
    "app:1": image(*BOTH),
    "postgres:16": image(*BOTH),
    "old:1": image("linux/arm/v7"),
}
READ = project(TEXT)
MOVE = Move(READ, IMAGES, convert(READ, IMAGES, NODES, Options(namespace="services")))
RUNNING = tuple(Container(f"d-{s}-1", s, "", True, "/home/ada/d") for s in ("app", "db", "old"))
STOPPED = tuple(replace(c, running=c.service == "old") for c in RUNNING)
BOTH_UP = frozenset({"app", "db"})
CLAIMS = frozenset({"files", "rows"})
# 070 was applied, and its pods run as a rehearsal
BEFORE = Seen(MOVE, RUNNING, (), BOTH_UP, BOTH_UP)
AFTER = Seen(MOVE, STOPPED, (), BOTH_UP, BOTH_UP, "cluster", "yesterday", frozenset(), CLAIMS, ("d-db-1", "d-app-1"))


def plan(seen: Seen, **changes: Any) -> Plan:
    base: dict[str, Any] = {"migrate.docker_host": {"address": "192.168.1.10"}}
    return cut_over.plan(make_params({**base, **changes}), seen, {})


def ids(made: Plan) -> list[str]:
    return [s.id for s in made.steps]


def test_the_order_of_the_day() -> None:
    check = {"service": "app", "port": 80}
    made = plan(BEFORE, **{"cut_over.checks": [check]})
    assert ids(made) == [
        "preflight",
        "rest:app",
        "rest:db",
        "copy:files",
        "copy:rows",
        "stop:d-app-1",
        "stop:d-db-1",
        "delta:files",
        "delta:rows",
        "start:db",
        "start:app",
        "check:1:app",
        "finish",
    ]
    assert made.refusals == ()
    assert all(s.action in cut_over.ACTIONS for s in made.steps)


def test_what_can_be_taken_back_says_how() -> None:
    undo = {s.id.split(":")[0]: s.undo for s in plan(BEFORE).steps}
    assert {k: v for k, v in undo.items() if v} == {"rest": "start", "stop": "start-old", "start": "rest"}


def test_a_database_is_dumped_after_its_callers_and_before_itself() -> None:
    found = ids(plan(BEFORE, **{"migrate.data": {"db": {"method": "dump"}}}))
    assert "rest:db" not in found, "it must run to be loaded"
    assert found.index("start:db") < found.index("stop:d-app-1") < found.index("load:rows") < found.index("stop:d-db-1")
    assert "delta:rows" not in found


def test_what_no_node_can_run_stays() -> None:
    made = plan(BEFORE)
    assert not any("old" in step for step in ids(made))
    assert [f.level for f in made.findings if f.subject == "old"] == ["warning"]


@pytest.mark.parametrize(
    ("seen", "changes", "subject"),
    [
        (replace(BEFORE, missing=("PersistentVolumeClaim/services/files",)), {}, "070-migrate-services"),
        (replace(BEFORE, there=()), {}, "migrate.project"),
        (BEFORE, {"cut_over.checks": [{"service": "old", "port": 1}]}, "cut_over.checks: old"),
    ],
)
def test_preflight_refuses(seen: Seen, changes: dict[str, Any], subject: str) -> None:
    assert [f.subject for f in plan(seen, **changes).refusals] == [subject]


def test_afterwards_there_is_nothing_to_do() -> None:
    assert ids(plan(AFTER)) == []
    assert plan(AFTER).refusals == ()


def test_a_container_that_came_back_is_stopped_and_nothing_is_ever_copied_over_new_data() -> None:
    assert ids(plan(replace(AFTER, there=RUNNING))) == ["stop:d-app-1", "stop:d-db-1"]


def test_a_run_that_broke_off_after_the_last_delta_takes_no_data_again() -> None:
    seen = replace(AFTER, state="", ready=frozenset({"db"}))
    assert ids(plan(seen)) == ["start:app", "finish"]


def test_a_run_that_broke_off_before_takes_them_all() -> None:
    seen = replace(AFTER, state="", up=frozenset(), ready=frozenset(), final=frozenset({"files"}))
    found = ids(plan(seen))
    assert [s for s in found if s.startswith("stop")] == []
    assert {"delta:files", "delta:rows"} <= set(found)


def test_a_dump_that_was_taken_from_a_database_now_stopped_is_kept() -> None:
    seen = replace(AFTER, state="", final=frozenset({"rows"}))
    assert "load:rows" not in ids(plan(seen, **{"migrate.data": {"db": {"method": "dump"}}}))


def test_going_back() -> None:
    made = plan(AFTER, **{"cut_over.direction": "back"})
    assert ids(made) == ["rest:app", "rest:db", "start-old:d-db-1", "start-old:d-app-1", "finish-back"]
    assert [f.level for f in made.findings] == ["warning"]
    assert "since yesterday" in made.findings[0].text
    # with the ledger lost, everything of the project that is stopped
    assert ids(plan(replace(AFTER, ours=()), **{"cut_over.direction": "back"})) == ids(made)


def test_going_back_starts_only_what_the_cut_over_stopped() -> None:
    made = plan(replace(AFTER, ours=("d-db-1",)), **{"cut_over.direction": "back"})
    assert [s for s in ids(made) if s.startswith("start-old")] == ["start-old:d-db-1"]


def test_being_back_there_is_nothing_to_do() -> None:
    seen = replace(BEFORE, up=frozenset(), ready=frozenset(), state="docker")
    assert ids(plan(seen, **{"cut_over.direction": "back"})) == []


def test_ports_that_others_could_reach_are_published() -> None:
    made = plan(AFTER, **{"cut_over.switch": "ports"})
    assert ids(made) == ["switch:app"]
    service = made.steps[0].args["object"]
    assert service["spec"]["type"] == "LoadBalancer"
    assert [(p["port"], p["targetPort"], p["protocol"]) for p in service["spec"]["ports"]] == [
        (8080, 80, "TCP"),
        (53, 53, "UDP"),
    ]
    assert all(len(p["name"]) <= 15 for p in service["spec"]["ports"])
    assert ids(plan(replace(AFTER, switched=frozenset({"app-published"})), **{"cut_over.switch": "ports"})) == []
    assert set(published(MOVE)) == {"app"}


def test_of_two_services_with_one_port_the_first_gets_it_and_it_is_said() -> None:
    text = """
services:
  a: {image: "app:1", ports: [{target: 80, published: "80", host_ip: 192.168.1.10}]}
  b: {image: "app:1", ports: [{target: 81, published: "80", host_ip: 192.168.1.11}, {target: 90, published: "90"}]}
"""
    read = project(text)
    both = Move(read, IMAGES, convert(read, IMAGES, NODES, Options(namespace="services")))
    made = plan(replace(AFTER, move=both, there=(), up=frozenset({"a", "b"})), **{"cut_over.switch": "ports"})
    ports = {s.id: [p["port"] for p in s.args["object"]["spec"]["ports"]] for s in made.steps}
    assert ports == {"switch:a": [80], "switch:b": [90]}
    told = [(f.level, f.text) for f in made.findings if f.subject == "port 80/tcp"]
    assert told == [("warning", "a and b publish it: a gets it, a node has it once")]


TUNNEL = {"cut_over.switch": "tunnel"}


def test_the_tunnel_is_switched_once_and_given_back() -> None:
    assert ids(plan(BEFORE, **TUNNEL))[-2:] == ["switch:tunnel", "finish"]
    assert ids(plan(AFTER, **TUNNEL)) == ["switch:tunnel"], "the params asked for it later"
    there = replace(AFTER, tunnel=True)
    assert ids(plan(there, **TUNNEL)) == []
    back = plan(there, **TUNNEL, **{"cut_over.direction": "back"})
    assert ids(back)[0] == "unswitch:tunnel"
    assert "Cloudflare" in back.steps[0].why
    assert all(s.action in cut_over.ACTIONS for s in back.steps)


def test_nothing_to_cut_over() -> None:
    assert ids(plan(Seen())) == []
    assert [f.level for f in plan(Seen()).findings] == ["note"]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("{a: {depends_on: {b: {}}}, b: {depends_on: {c: {}}}, c: {}}", "c b a"),
        ("{a: {}, b: {}, c: {}}", "a b c"),
        ("{a: {depends_on: {b: {}}}, b: {depends_on: {a: {}}}, c: {}}", "b a c"),
        ("{a: {network_mode: 'service:c'}, b: {links: ['a:x']}, c: {}}", "c a b"),
        ("{a: {volumes_from: ['b:ro']}, b: {}}", "b a"),
        ("{a: {depends_on: {z: {}}}}", "a"),
    ],
)
def test_start_order(text: str, order: str) -> None:
    read = project(f"services: {text}")
    assert " ".join(start_order(read, read.services)) == order


@pytest.mark.parametrize(
    ("live", "up"),
    [
        (None, False),
        ({"kind": "Deployment", "spec": {}}, True),
        ({"kind": "Deployment", "spec": {"replicas": 0}}, False),
        ({"kind": "StatefulSet", "spec": {"replicas": 2}}, True),
        ({"kind": "DaemonSet", "spec": {}}, True),
        ({"kind": "Job", "spec": {}}, True),
    ],
)
def test_is_up(live: dict[str, Any] | None, up: bool) -> None:
    assert is_up(live) is up


def test_the_mark_on_the_namespace() -> None:
    assert mark_of(None) == ("", "")
    assert mark_of({"metadata": {"annotations": {"hybridlab.io/cut-over": "cluster 2026-11-24T10"}}}) == (
        "cluster",
        "2026-11-24T10",
    )


def test_it_runs_only_when_named(tmp_path: Path) -> None:
    folder = tmp_path / "runbooks"
    folder.mkdir()
    for name in ("070-migrate-services", "075-cut-over", "080-back-up", "900-tear-down"):
        (folder / f"{name}.ipynb").write_text("{}", encoding="utf-8")
    assert [p.stem for p in find_runbooks(tmp_path, ())] == ["070-migrate-services", "080-back-up"]
    for word in ("075", "cut_over", "075-cut-over"):
        assert [p.stem for p in find_runbooks(tmp_path, (word,))] == ["075-cut-over"]
