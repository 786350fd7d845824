"""070 and 075 on one lab: every kind of source, the cut-over, the way back, and what goes wrong in between."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from life import PARAMS, Life

from hybridlab.errors import CommandFailed, StepFailed
from hybridlab.ledger import Row
from hybridlab.models import HostAddress
from hybridlab.stages.helperpod import remove_namespace
from hybridlab.stages.nodes import node_hosts

COMPOSE = """
name: demo
services:
  db:
    image: postgres:16-alpine
    environment: {POSTGRES_USER: ada, POSTGRES_PASSWORD: for-the-test}
    volumes: ["rows:/var/lib/postgresql/data"]
  cache:
    image: redis:7-alpine
    volumes: ["cache:/data"]
  web:
    image: matomo:5
    depends_on: [db, cache]
    ports: ["8080:80"]
    volumes: ["site:/var/www/html", /var/www/extra, "./acme.json:/acme.json"]
volumes: {rows: {}, cache: {}, site: {}}
"""
MIGRATE = """migrate:
  compose: services/compose.yaml
  data: {db: {method: dump}, cache: {method: dump}, web: {method: stop}}
  docker_host: {address: 192.168.1.10, user: ubuntu}
cut_over:
  switch: ports
  checks:
    - {service: web, port: 80, path: /matomo.php, deadline_s: 2}
    - {service: db, kind: tcp, port: 5432, deadline_s: 2}
    - {service: web, kind: command, command: [ls, /var/www/html/config/config.ini.php], deadline_s: 2}
"""
BACK = ("cut_over.direction=back",)
SICK = "cut_over.checks=[{service: web, port: 80, path: /sick, deadline_s: 1}]"
SERVICES = {"db", "cache", "web"}
DOCKER = HostAddress("docker-1", "192.168.1.10")


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A clone whose Docker host runs the small project above, and a cluster with storage."""
    made = Life(tmp_path_factory.mktemp("move"))
    (made.home / "params" / "services" / "compose.yaml").write_text(COMPOSE, encoding="utf-8")
    path = made.home / PARAMS
    path.write_text(path.read_text(encoding="utf-8").split("migrate:")[0] + MIGRATE, encoding="utf-8")
    made.start()
    made.make("provision", "bootstrap", "storage", sets=("storage.engine=local-path", "storage.test_mb=1"))
    yield made
    made.stop()


@pytest.fixture
def demo(life: Life) -> Life:
    """The services moved by 070 and at rest in the cluster, running on the Docker host."""
    life.make("migrate", sets=STORAGE)
    life.make("cut_over", sets=(*STORAGE, *BACK))
    assert running(life) == SERVICES
    return life


STORAGE = ("storage.engine=local-path",)


def running(life: Life) -> set[str]:
    """The services that run on the Docker host, as Docker tells."""
    out = life.cluster().docker_hosts.run(DOCKER, ["docker", "ps", "--format", "json"]).stdout
    return {json.loads(line)["Names"].split("-")[1] for line in out.splitlines()}


def up(life: Life) -> set[str]:
    kube = life.cluster().kube
    found = [*kube.list("apps/v1", "Deployment", "services"), *kube.list("apps/v1", "StatefulSet", "services")]
    return {o["metadata"]["name"] for o in found if o.get("status", {}).get("readyReplicas")}


def data_of(life: Life) -> str:
    """One hash over all that lies on the Docker host, owners and modes as the lab keeps them included."""
    sha = hashlib.sha256()
    root = life.lab_dir / "hosts" / "docker-1"
    for folder in ("var", "home"):
        for path in sorted((root / folder).rglob("*")):
            sha.update(str(path.relative_to(root)).encode(errors="surrogateescape") + b"\0")
            if path.is_file() and not path.is_symlink():
                sha.update(path.read_bytes())
    sha.update(json.dumps(_owners(life), sort_keys=True).encode(errors="backslashreplace"))
    return sha.hexdigest()


def _owners(life: Life) -> Any:
    state = json.loads((life.lab_dir / "hosts" / "docker-1.json").read_text(encoding="utf-8"))
    return {k: v for k, v in state.get("owners", {}).items() if k.startswith(("/var/lib", "/home"))}


def claim_folder(life: Life, name: str) -> Path:
    claim = life.cluster().kube.get("v1", "PersistentVolumeClaim", name, "services")
    assert claim is not None, f"no claim {name}"
    return life.lab_dir / "volumes" / str(claim["spec"]["volumeName"])


def claims(life: Life) -> dict[str, dict[str, Any]]:
    found = life.cluster().kube.list("v1", "PersistentVolumeClaim", "services")
    return {c["metadata"]["name"]: c["metadata"].get("annotations", {}) for c in found}


def rows(life: Life, event: str) -> list[Row]:
    return [r for r in life.ledger() if r.stage == "cut_over" and r.event == event]


# -- 070 ---------------------------------------------------------------------------------------------------------------
def test_every_kind_of_source_arrives(demo: Life) -> None:
    anonymous = next(name for name in claims(demo) if name.startswith("web"))
    assert (claim_folder(demo, anonymous) / "misc" / "DBIP-City-Lite.mmdb").stat().st_size == 512 * 1024
    file = next(name for name in claims(demo) if "acme" in name)
    assert [p.name for p in claim_folder(demo, file).iterdir()] == ["acme.json"]
    assert (claim_folder(demo, file) / "acme.json").read_text() == "# a file of the user's own\n"
    assert claims(demo)["rows"]["hybridlab.io/copied-sha256"].startswith("dump:")
    dump = (claim_folder(demo, "rows") / "lab-loaded.sql").read_text()
    assert "PostgreSQL database cluster dump complete" in dump
    assert "base/16384/16385" in dump
    assert (claim_folder(demo, "cache") / "dump.rdb").read_bytes().startswith(b"REDIS0012")


def test_moving_and_moving_again_leaves_the_old_volumes_as_they_were(demo: Life) -> None:
    before = data_of(demo)
    demo.cluster().kube.delete("v1", "Namespace", "services")
    remove_namespace(demo.cluster(), "services")
    demo.make("migrate", sets=STORAGE)
    assert demo.cluster(*STORAGE).stage("migrate").plan().steps == ()
    assert data_of(demo) == before
    assert running(demo) == SERVICES, "what was stopped for its copy runs again"


# -- 075 ---------------------------------------------------------------------------------------------------------------
def test_cut_over_and_back(demo: Life) -> None:
    before = data_of(demo)
    stage = demo.make("cut_over", sets=STORAGE)
    order = [s.id for s in stage.plan().steps]
    assert running(demo) == set()
    assert up(demo) == SERVICES
    # a Service of its own publishes what the Docker host published
    port = demo.cluster().kube.get("v1", "Service", "web-published", "services")
    assert port is not None
    assert [(p["port"], p["targetPort"]) for p in port["spec"]["ports"]] == [(8080, 80)]
    assert data_of(demo) == before
    assert order.index("stop:demo-web-1") < order.index("load:rows") < order.index("stop:demo-db-1")
    assert order.index("stop:demo-web-1") < order.index("delta:site") < order.index("start:web")
    again = demo.cluster(*STORAGE).stage("cut_over")
    assert again.plan().steps == ()
    assert demo.cluster(*STORAGE).stage("migrate").plan().steps == ()

    demo.make("cut_over", sets=(*STORAGE, *BACK))
    assert running(demo) == SERVICES
    assert up(demo) == set()
    assert demo.cluster().kube.get("v1", "Service", "web-published", "services") is None
    assert data_of(demo) == before
    assert demo.cluster(*STORAGE, *BACK).stage("cut_over").plan().steps == ()


def test_a_run_without_anybody_after_the_way_back_leaves_one_side_running(demo: Life) -> None:
    stage = demo.make("migrate", sets=STORAGE)  # with everything approved, as a nightly run has it
    assert up(demo) == set()
    assert running(demo) == SERVICES
    told = [f for f in stage.plan().findings if f.subject == "workloads"]
    assert "back to the Docker host" in told[0].text
    assert all(check.ok for check in stage.verify())
    demo.make("cut_over", sets=STORAGE)
    assert (up(demo), running(demo)) == (SERVICES, set())
    demo.make("migrate", sets=STORAGE)
    assert (up(demo), running(demo)) == (SERVICES, set())


def test_only_what_changed_is_sent_after_the_stop(demo: Life) -> None:
    demo.make("cut_over", sets=STORAGE)
    sent = [r.detail["sent"] for r in rows(demo, "done") if r.step == "delta:site"]
    assert sent[-1] < 64 * 1024, "the files of site are half a megabyte"


def test_a_failed_health_check_takes_everything_back(demo: Life) -> None:
    before = data_of(demo)
    demo.fault("unhealthy", count=100, match="services/web:80/sick")
    with pytest.raises(StepFailed, match=r"web is not healthy .*status 503(.|\n)*rolled back"):
        demo.make("cut_over", sets=(*STORAGE, SICK))
    assert running(demo) == SERVICES
    assert up(demo) == set()
    assert data_of(demo) == before
    assert {"start:web", "stop:demo-web-1", "stop:demo-db-1"} <= {r.step for r in rows(demo, "undone")}


def test_without_rolling_back_it_goes_on_where_it_stopped(demo: Life) -> None:
    demo.fault("unhealthy", count=100, match="services/web:80/sick")
    with pytest.raises(StepFailed, match="to go back: hybridlab run 075"):
        demo.make("cut_over", sets=(*STORAGE, SICK, "cut_over.roll_back=false"))
    assert running(demo) == set()
    # what the services wrote in the cluster since is theirs: no data are taken a second time
    steps = {s.action for s in demo.cluster(*STORAGE).stage("cut_over").plan().steps}
    assert steps == {"check", "switch-port", "finish"}
    demo.make("cut_over", sets=STORAGE)
    assert up(demo) == SERVICES


def test_a_source_that_changes_after_the_stop_is_noticed_and_taken_again(demo: Life) -> None:
    cluster = demo.cluster(*STORAGE, "migrate.data.web.method=copy")
    folder = "/var/lib/docker/volumes/demo_site/_data"
    demo.fault("source-changed", count=2, match=folder)  # once for the copy while it runs, once for the delta
    stage = cluster.stage("cut_over")
    stage.gate()
    stage.apply()
    done = [r.detail for r in rows(demo, "done") if r.step == "delta:site"][-1]
    assert done["rounds"] == 2
    assert done["sha256"] == done["source_sha256"]
    here = claim_folder(demo, "site") / "config" / "config.ini.php"
    there = demo.lab_dir / "hosts" / "docker-1" / folder.lstrip("/") / "config" / "config.ini.php"
    assert here.read_bytes() == there.read_bytes()


def test_a_container_that_comes_back_by_itself_is_stopped_and_nothing_is_copied(demo: Life) -> None:
    demo.make("cut_over", sets=STORAGE)
    demo.cluster().docker_hosts.run(DOCKER, ["docker", "start", "demo-web-1"])
    assert [s.id for s in demo.cluster(*STORAGE).stage("cut_over").plan().steps] == ["stop:demo-web-1"]
    demo.make("cut_over", sets=STORAGE)
    assert running(demo) == set()


# -- the tunnel --------------------------------------------------------------------------------------------------------
TUNNEL = (*STORAGE, "cut_over.switch=tunnel")
UNASKED = "cut_over.checks=[]"


def test_without_a_connector_nothing_stops(demo: Life) -> None:
    remove_namespace(demo.cluster(), "cloudflared")
    with pytest.raises(StepFailed, match=r"no cloudflared is Ready(.|\n)*060-expose-services"):
        demo.make("cut_over", sets=TUNNEL)
    assert running(demo) == SERVICES


def test_cut_over_to_the_tunnel_and_back(demo: Life) -> None:
    demo.make("expose")
    demo.make("cut_over", sets=TUNNEL)
    assert (up(demo), running(demo)) == (SERVICES, set())
    told = [r.detail for r in rows(demo, "done") if r.step == "switch:tunnel"][-1]
    assert told["routes"] == ["http://web.services:80", "http://web.services:8080"], "no route leads to a database"
    assert told["cloudflared"].startswith("cloudflared/")
    assert demo.cluster(*TUNNEL).stage("cut_over").plan().steps == ()

    back = (*TUNNEL, *BACK)
    steps = [s.id for s in demo.cluster(*back).stage("cut_over").plan().steps]
    assert steps[0] == "unswitch:tunnel"
    demo.make("cut_over", sets=back)
    assert (up(demo), running(demo)) == (set(), SERVICES)
    assert demo.cluster(*back).stage("cut_over").plan().steps == ()


def test_a_tunnel_that_reaches_nothing_takes_everything_back(demo: Life) -> None:
    demo.make("expose")
    before = data_of(demo)
    demo.fault("unhealthy", count=2, match="services/web")
    with pytest.raises(StepFailed, match=r"cloudflared reaches none of the services(.|\n)*rolled back"):
        demo.make("cut_over", sets=(*TUNNEL, UNASKED))
    assert (up(demo), running(demo)) == (set(), SERVICES)
    assert data_of(demo) == before


# -- what does not fit, and what goes away -----------------------------------------------------------------------------
NODES = ("arm-1", "arm-2", "amd-1")


def test_a_full_node_is_seen_before_anything_stops(demo: Life) -> None:
    big = demo.lab_dir / "hosts" / "docker-1" / "var/lib/docker/volumes/demo_site/_data/film.mkv"
    big.write_bytes(b"x" * (8 << 20))
    cluster = demo.cluster()
    hosts = [h.host for h in node_hosts(cluster).values()]
    for name in NODES:
        demo.fault("disk-full", match=f"{name} 1000000")
    try:
        with pytest.raises(StepFailed, match=r"node \S+ has no room .* bytes are to come into site.*(.|\n)*crictl"):
            demo.make("cut_over", sets=STORAGE)
        assert running(demo) == SERVICES
    finally:
        for host in hosts:
            cluster.hosts.run(host, ["rm", "/var/log/filler"], sudo=True)
    demo.make("cut_over", sets=STORAGE)
    assert running(demo) == set()
    big.unlink()


def test_a_docker_host_that_goes_away_half_way_costs_nothing(demo: Life) -> None:
    before = data_of(demo)
    demo.fault("ssh-drop", match="docker-1 sudo -n python3 /opt/hybridlab/node_helper.py archive")
    with pytest.raises(StepFailed, match=r"docker-host.*Connection lost"):
        demo.make("cut_over", sets=STORAGE)
    assert running(demo) == SERVICES, "it went before anything was stopped"
    demo.fault("ssh-drop", match="docker-1 docker stop")
    with pytest.raises(StepFailed, match="rolled back"):
        demo.make("cut_over", sets=STORAGE)
    assert (up(demo), running(demo)) == (set(), SERVICES)
    assert data_of(demo) == before
    demo.make("cut_over", sets=STORAGE)
    assert (up(demo), running(demo)) == (SERVICES, set())


# -- the lab's Docker host ---------------------------------------------------------------------------------------------
NOT_RUN = [
    (["demo-web-1", "pg_dumpall"], 127, "executable file not found"),
    (["demo-db-1", "mariadb-dump"], 127, "executable file not found"),
    (["demo-db-1", "psql"], 127, "only dumps"),
    (["demo-db-1", "pg_dumpall", "--frobnicate"], 127, "unrecognized option"),
    (["demo-db-1", "sh", "-c", "pg_dumpall | gzip"], 127, "no shell"),
    (["nobody-1", "pg_dumpall"], 1, "No such container"),
    (["-t", "demo-db-1", "pg_dumpall"], 2, "docker exec"),
]


def test_docker_exec_is_strict(demo: Life) -> None:
    hosts = demo.cluster().docker_hosts
    for argv, status, said in NOT_RUN:
        with pytest.raises(CommandFailed, match=said) as caught:
            hosts.run(DOCKER, ["docker", "exec", *argv])
        assert caught.value.exit_status == status, argv


def test_a_dump_depends_on_the_data_alone_and_says_what_it_is(demo: Life) -> None:
    argv = ["docker", "exec", "demo-db-1", "pg_dumpall", "--clean"]
    first, second = (demo.cluster().docker_hosts.run(DOCKER, argv).stdout for _ in range(2))
    assert first == second
    assert "lab: made from the files of the volume, by no database" in first
