"""070: claims, then data, then workloads; what must not be copied over; what a strict migration refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compose_kit import NODES, image, project
from fakes import GI, FakeContext, FakeHosts, FakeKube, PodKube, digest_lines, make_params, node

from hybridlab.compose import ClaimSource, Options, convert
from hybridlab.errors import BadInput, DeadlineExceeded, NotFound, Refused, StrictFindings
from hybridlab.models import ImageInfo
from hybridlab.plan import Plan
from hybridlab.runner.outcome import exit_code_of
from hybridlab.stages import migrate
from hybridlab.stages.migrate import Seen, copying, dockerside, wanted_objects
from hybridlab.stages.migrate.project import Move, capacities, requests_of
from hybridlab.stages.objects import Differences, ref

SERVICES = """
services:
  web:
    image: web:1
    ports: [{target: 80, published: "8080", protocol: tcp, mode: ingress}]
    environment: {DB_PASSWORD: hunter22}
    volumes: [{type: volume, source: site, target: /srv}]
  my_db:
    image: db:1
    volumes: [{type: volume, source: rows, target: /var/lib/db}]
  old:
    image: old:1
    volumes: [{type: volume, source: lost, target: /x}]
  ghost:
    image: ghost:1
volumes: {site: {name: demo_site}, rows: {name: demo_rows}, lost: {name: demo_lost}}
"""
IMAGES = {
    "web:1": image("linux/amd64", "linux/arm64", reference="web:1"),
    "db:1": image("linux/amd64", "linux/arm64", reference="db:1"),
    "old:1": image("linux/arm/v7", reference="old:1"),
    "ghost:1": ImageInfo("ghost:1", known=False, problem="nobody has it"),
}


def move(text: str = SERVICES) -> Move:
    found = project(text)
    return Move(found, IMAGES, convert(found, IMAGES, NODES, Options(namespace="services")))


MOVE = move()
ALL_MISSING = Differences({ref(o): ("",) for o in wanted_objects(MOVE)})
FRESH = Seen(MOVE, ALL_MISSING, {}, "192.168.1.10")
COPIED = {c.name: "sha" for c in MOVE.manifests.claims}
DONE = Seen(MOVE, Differences(), COPIED, "192.168.1.10")


def plan(seen: Seen, **changes: Any) -> Plan:
    return migrate.plan(make_params({"migrate.docker_host": {"address": "192.168.1.10"}, **changes}), seen, {})


def kinds(made: Plan) -> list[str]:
    return [s.target.split("/")[0] if s.action != "copy" else "copy" for s in made.steps]


def workload_of(service: str) -> str:
    pairs = zip(MOVE.manifests.objects, MOVE.manifests.owners, strict=True)
    return next(ref(o) for o, owner in pairs if owner == service and o["kind"] in ("Deployment", "StatefulSet"))


def test_claims_then_copies_then_workloads() -> None:
    found = kinds(plan(FRESH))
    assert found[0] == "Namespace"
    first_copy, last_copy = found.index("copy"), len(found) - 1 - found[::-1].index("copy")
    assert set(found[first_copy : last_copy + 1]) == {"copy"}
    assert "PersistentVolumeClaim" in found[:first_copy]
    assert "Service" in found[:first_copy]
    assert set(found[last_copy + 1 :]) <= {"Deployment", "StatefulSet"}
    assert not {"Deployment", "StatefulSet"} & set(found[:first_copy])


def test_every_claim_of_a_placed_service_is_copied_once() -> None:
    copies = [s for s in plan(FRESH).steps if s.action == "copy"]
    assert {s.args["source"] for s in copies} == {"demo_site", "demo_rows"}
    assert {(s.effect, s.batch) for s in copies} == {("create", "copies")}
    assert all(s.id == f"copy:{s.args['claim']}" for s in copies)
    assert "192.168.1.10" in copies[0].why


def test_a_second_run_changes_nothing() -> None:
    assert plan(DONE).steps == ()


def test_a_claim_that_was_not_copied_yet_is_copied_before_its_workload_comes() -> None:
    web = workload_of("web")
    claim = next(c for c in MOVE.manifests.claims if c.services == ("web",))
    state = replace(
        DONE, objects=Differences({web: ("",)}), copied={k: v for k, v in COPIED.items() if k != claim.name}
    )
    assert [s.action for s in plan(state).steps] == ["copy", "apply"]


@pytest.mark.parametrize("service", ["web", "my_db"])
def test_data_in_use_are_never_copied_over(service: str) -> None:
    claim = next(c for c in MOVE.manifests.claims if c.services == (service,))
    made = plan(replace(DONE, copied={k: v for k, v in COPIED.items() if k != claim.name}))
    assert made.steps == ()
    told = [f for f in made.findings if f.subject == f"claim {claim.name}"]
    assert [f.level for f in told] == ["warning"]
    assert f"not copied: {service} runs on it already" in told[0].text


def test_a_workload_that_differs_is_running_too() -> None:
    claim = next(c for c in MOVE.manifests.claims if c.services == ("web",))
    state = replace(
        DONE,
        objects=Differences({workload_of("web"): ("spec.replicas",)}),
        copied={k: v for k, v in COPIED.items() if k != claim.name},
    )
    assert [(s.action, s.effect) for s in plan(state).steps] == [("apply", "change")]


@pytest.mark.parametrize("state", [FRESH, replace(DONE, objects=Differences({workload_of("web"): ("spec.replicas",)}))])
def test_what_went_back_to_the_docker_host_is_not_started_here(state: Seen) -> None:
    made = plan(replace(state, back_since="2026-11-24T10:00:00Z"))
    assert not {"Deployment", "StatefulSet"} & set(kinds(made))
    told = [f for f in made.findings if f.subject == "workloads"]
    assert [f.level for f in told] == ["warning"]
    assert "back to the Docker host (2026-11-24T10:00:00Z)" in told[0].text
    assert "run 075" in told[0].next_move


def test_without_a_docker_host_claims_start_empty() -> None:
    made = plan(replace(FRESH, docker_host=""))
    assert "copy" not in kinds(made)
    assert [f.level for f in made.findings if f.subject == "migrate.docker_host"] == ["note"]


def test_services_that_can_run_nowhere_get_no_workload() -> None:
    names = {ref(o) for o in wanted_objects(MOVE)}
    assert workload_of("old") not in names
    assert workload_of("ghost") not in names
    assert {workload_of("web"), workload_of("my_db")} <= names


def test_what_could_not_be_placed_is_a_strict_warning() -> None:
    found = {f.subject: f for f in plan(DONE).findings}
    assert (found["old"].level, found["old"].strict) == ("warning", True)
    assert "docker buildx" in found["old"].next_move
    assert (found["ghost"].level, found["ghost"].strict) == ("warning", True)
    assert "placement unknown" in found["ghost"].text
    assert "web" not in found
    assert plan(DONE).refusals == ()


def test_strict_refuses_them() -> None:
    made = plan(DONE, **{"migrate.strict": True})
    assert {f.subject for f in made.refusals} >= {"old", "ghost"}
    with pytest.raises(StrictFindings) as caught:
        made.expect_applicable()
    assert (caught.value.exit_code, exit_code_of(type(caught.value).__name__)) == (1, 1), "as --strict ends"
    clean = move("services: {web: {image: 'web:1'}}")
    state = Seen(clean, Differences(), {}, "")
    assert plan(state, **{"migrate.strict": True}).refusals == ()


def test_a_placement_gives_the_reason() -> None:
    made = plan(FRESH)
    reasons = {s.target: s.why for s in made.steps}
    assert reasons[workload_of("web")] == MOVE.manifests.placements["web"].reason
    others = [s for s in made.steps if s.action == "apply" and not s.target.startswith(("Deployment", "StatefulSet"))]
    assert others
    assert all(s.why and s.why != MOVE.manifests.placements["web"].reason for s in others)
    assert reasons["Namespace/services"]


def test_secrets_are_not_in_the_plan_and_have_an_action_of_their_own() -> None:
    made = plan(FRESH)
    secrets = [s for s in made.steps if s.target.startswith("Secret/")]
    assert secrets
    assert {s.action for s in secrets} == {"apply-secret"}
    assert "hunter22" not in str([s for s in made.steps if s.target.startswith(("Secret/", "Deployment/"))])
    assert all(s.action in migrate.ACTIONS for s in made.steps)


def test_nothing_to_move() -> None:
    made = plan(Seen())
    assert (made.steps, [f.level for f in made.findings]) == ((), ["note"])
    assert made.expected == {"namespace": "services"}


# -- room --------------------------------------------------------------------------------------------------------------
def pod(name: str, on: str, cpu: str, memory: str, ns: str = "services", phase: str = "Running") -> dict[str, Any]:
    containers = [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}, {"name": "no-requests"}]
    spec = {"nodeName": on, "containers": containers}
    return {"kind": "Pod", "metadata": {"name": name, "namespace": ns}, "spec": spec, "status": {"phase": phase}}


def test_requests() -> None:
    assert requests_of(pod("a", "n", "250m", "128Mi")) == (250, 128 * 2**20)
    assert requests_of({"spec": {}}) == (0, 0)


def test_what_the_project_itself_uses_counts_as_free() -> None:
    kube = FakeKube(
        pod("a", "arm-1", "100m", "1Gi"),
        pod("b", "arm-1", "200m", "1Gi"),
        pod("other", "arm-1", "400m", "1Gi", ns="velero"),
        pod("done", "arm-1", "400m", "1Gi", phase="Succeeded"),
        nodes=[node("arm-1"), node("amd-1", "amd64", ready=False)],
    )
    arm, amd = capacities(kube, make_params())
    assert (arm.cpu_free_m, arm.memory_free, arm.arch) == (1800 + 300, 5 * GI + 2 * GI, "arm64")
    assert (amd.cpu_free_m, amd.arch, amd.ready) == (1800, "amd64", True)
    assert amd.taints == (("hybridlab.io/small", "true", "NoSchedule"),)


def test_a_node_that_is_down_or_cordoned_for_a_moment_changes_no_placement() -> None:
    passing = (
        ("node.kubernetes.io/unreachable", "", "NoExecute"),
        ("node.kubernetes.io/unschedulable", "", "NoSchedule"),
    )
    kube = FakeKube(nodes=[node("amd-1", "amd64", ready=False, taints=(*node("amd-1").taints, *passing))])
    assert capacities(kube, make_params()) == capacities(FakeKube(nodes=[node("amd-1", "amd64")]), make_params())


def test_before_there_is_a_cluster_the_wishes_count() -> None:
    arm, _, amd = capacities(None, make_params({"nodes.amd-1.ocpus": 0.125}))
    assert (arm.cpu_free_m, arm.memory_free, arm.taints) == (2000, 12 * GI, ())
    assert (amd.cpu_free_m, amd.memory_free) == (1000, GI)
    assert amd.taints == (("hybridlab.io/small", "true", "NoSchedule"),)
    assert capacities(None, make_params({"bootstrap.taint_small": False}))[2].taints == ()


# -- where the data are ------------------------------------------------------------------------------------------------
WEB = {
    "Name": "/demo-web-1",
    "Config": {
        "Image": "web:1",
        "Labels": {
            "com.docker.compose.service": "web",
            "com.docker.compose.project.working_dir": "/home/ada/demo",
        },
    },
    "State": {"Running": True},
    "Mounts": [{"Type": "volume", "Source": "/var/lib/docker/volumes/0123abcd/_data", "Destination": "/cache/"}],
}


def docker(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
    match argv:
        case ("docker", "volume", "inspect", "demo_site"):
            return 0, '[{"Mountpoint": "/var/lib/docker/volumes/demo_site/_data"}]'
        case ("docker", "volume", "inspect", _):
            return 1, ""
        case ("docker", "ps", *rest):
            mine = "label=com.docker.compose.project=demo" in rest
            return 0, '{"Names": "demo-web-1"}\n' if mine else ""
        case ("docker", "inspect", "demo-web-1"):
            return 0, json.dumps([WEB])
    raise AssertionError(argv)


@pytest.mark.parametrize(
    ("kind", "source", "path"),
    [
        ("volume", "demo_site", "/var/lib/docker/volumes/demo_site/_data"),
        ("bind", "./public/system", "/home/ada/demo/public/system"),
        ("bind", "../shared", "/home/ada/shared"),
        ("bind", "/srv/data", "/srv/data"),
        ("bind", "~/notes", "/home/ubuntu/notes"),
        ("anonymous", "web:/cache", "/var/lib/docker/volumes/0123abcd/_data"),
    ],
)
def test_source_path(tmp_path: Path, kind: Any, source: str, path: str) -> None:
    ctx = FakeContext(tmp_path)
    ctx.docker_hosts = FakeHosts(docker)
    assert dockerside.source_path(ctx, ClaimSource("c", kind, source, ("web",)), "demo") == path


@pytest.mark.parametrize(
    ("kind", "source", "name", "said"),
    [
        ("volume", "demo_gone", "demo", "no volume demo_gone"),
        ("anonymous", "web:/x", "demo", "service web has a volume at /x"),
        ("bind", "./x", "another", "no container of project another"),
    ],
)
def test_source_path_that_is_not_there(tmp_path: Path, kind: Any, source: str, name: str, said: str) -> None:
    ctx = FakeContext(tmp_path)
    ctx.docker_hosts = FakeHosts(docker)
    with pytest.raises(NotFound, match=said):
        dockerside.source_path(ctx, ClaimSource("c", kind, source, ("web",)), name)


def test_only_chosen_services() -> None:
    from hybridlab.stages.migrate.project import _selected

    assert set(_selected(MOVE.project, ["web"]).services) == {"web"}
    assert _selected(MOVE.project, None) is MOVE.project
    with pytest.raises(BadInput, match="there is no service wbe") as caught:
        _selected(MOVE.project, ["web", "wbe"])
    assert "web" in caught.value.next_move


# -- copying -----------------------------------------------------------------------------------------------------------
class Source:
    """A volume on the Docker host whose content ``states`` gives digest by digest; the last one stays."""

    def __init__(self, *states: dict[str, str]) -> None:
        self.states = list(states)
        self.helper_calls: list[tuple[str, ...]] = []
        self.hosts = FakeHosts(self.answer)

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[:2] == ("python3", "/opt/hybridlab/node_helper.py"):
            assert argv[3] == "/var/lib/docker/volumes/demo_site/_data"
            now = self.states[0]
            self.helper_calls.append(argv[2:])
            if argv[2] == "digest":
                return 0, digest_lines(self.states.pop(0) if len(self.states) > 1 else now)
            assert argv[2] == "archive"
            return 0, json.dumps(now)
        return docker(name, argv)


class Claim(PodKube):
    """A claim that holds what was extracted into it."""

    def __init__(self, *, spoil: bool = False) -> None:
        meta = {"name": "site", "namespace": "services"}
        super().__init__(self.run, {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}})
        self.held: dict[str, str] = {}
        self.rounds, self.spoil = 0, spoil

    def run(self, pod: str, argv: tuple[str, ...], stdin: bytes) -> str:
        if argv[0] == "extract":
            assert argv == ("extract", "/data", "--clean")
            self.rounds += 1
            self.held = json.loads(stdin)
            return ""
        return digest_lines({**self.held, "spoilt": "x"} if self.spoil else self.held)

    @property
    def mark(self) -> str:
        claim = self.objects["PersistentVolumeClaim", "services", "site"]
        return str(claim["metadata"].get("annotations", {}).get("hybridlab.io/copied-sha256", ""))


SITE = ClaimSource("site", "volume", "demo_site", ("web",))
A, B = {".": "", "a": "1"}, {".": "", "a": "2"}


def copied(tmp_path: Path, kube: Claim, *states: dict[str, str]) -> Any:
    ctx = FakeContext(tmp_path, kube=kube)
    ctx.docker_hosts = Source(*states).hosts
    return copying.copy_claim(ctx, SITE, "demo")


def test_a_quiet_source_is_copied_in_one_round_and_marked(tmp_path: Path) -> None:
    kube = Claim()
    result = copied(tmp_path, kube, A)
    assert (kube.held, result["rounds"], result["bytes"]) == (A, 1, 1)
    assert result["sha256"] == result["source_sha256"] == kube.mark
    assert {kind for kind, _, _ in kube.objects} == {"PersistentVolumeClaim", "ConfigMap"}  # its pod is gone


def test_a_source_that_changed_during_the_copy_is_copied_again(tmp_path: Path) -> None:
    kube = Claim()
    result = copied(tmp_path, kube, A, B)
    assert (kube.held, result["rounds"]) == (B, 2)
    assert kube.mark


def test_a_source_that_keeps_changing_is_refused_and_not_marked(tmp_path: Path) -> None:
    kube = Claim()
    with pytest.raises(Refused, match=r"demo_site keeps changing while it is copied .*: a: different"):
        copied(tmp_path, kube, A, B, A, B, A, B)
    assert kube.rounds == 3
    assert kube.mark == ""


def test_a_claim_that_does_not_hold_the_source_is_refused_and_not_marked(tmp_path: Path) -> None:
    kube = Claim(spoil=True)
    with pytest.raises(Refused, match=r"does not hold what the source holds .*: spoilt: extra"):
        copied(tmp_path, kube, A)
    assert kube.mark == ""


# -- which architecture is preferred -----------------------------------------------------------------------------------
def test_preference_from_the_params_or_from_the_benchmark(tmp_path: Path) -> None:
    from hybridlab.stages.migrate.project import _preference

    ctx = FakeContext(tmp_path)
    assert dict(_preference(ctx).weights) == {"arm64": 100, "amd64": 1}
    assert _preference(ctx).reason == "migrate.prefer; no benchmark on record"
    ctx.params = make_params({"migrate.prefer": "amd64"})
    assert dict(_preference(ctx).weights) == {"amd64": 100, "arm64": 1}

    def measured(arm: float) -> dict[str, Any]:
        def rounds(speed: float) -> list[dict[str, Any]]:
            return [{"cpu_single": {"rate": speed, "unit": "x"}}] * 3

        return {"arch": {"p": "arm64", "q": "amd64"}, "rounds": {"p": rounds(arm), "q": rounds(100)}}

    ctx.evidence.save("benchmark", measured(200), inputs={})
    assert dict(_preference(ctx).weights) == {"arm64": 100, "amd64": 50}
    assert "cpu_single measured" in _preference(ctx).reason
    ctx.evidence.save("benchmark", measured(100), inputs={})
    assert dict(_preference(ctx).weights) == {"amd64": 100, "arm64": 1}


# -- looking and proving -----------------------------------------------------------------------------------------------
COMPOSE = """
name: demo
services:
  web: {image: "web:1", volumes: ["site:/srv"]}
  legacy: {image: "amd:1"}
volumes: {site: {}}
"""


class Registry:
    def lookup(self, references: Any, *, progress: Any = None) -> dict[str, ImageInfo]:
        return {r: image(*(["linux/amd64"] if "amd" in r else ["linux/amd64", "linux/arm64"])) for r in references}


def service_pod(name: str, on: str, *, ready: bool = True) -> dict[str, Any]:
    meta = {"name": f"{name}-1", "namespace": "services", "labels": {"app.kubernetes.io/name": name}}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    waiting = {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "exec format error"}}}
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": [{} if ready else waiting]}
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": on}, "status": status}


def moved(tmp_path: Path, *objects: dict[str, Any], compose: str = "compose.yaml") -> FakeContext:
    (tmp_path / "compose.yaml").write_text(COMPOSE, encoding="utf-8")
    changes = {"migrate.compose": compose, "migrate.docker_host": {"address": "192.168.1.10"}}
    nodes = [node("arm-1"), node("arm-2"), node("amd-1", "amd64")]
    ctx = FakeContext(tmp_path, make_params(changes), kube=FakeKube(*objects, nodes=nodes))
    ctx.registry = Registry()
    return ctx


def site_claim(mark: str) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": "site", "namespace": "services", "annotations": {}}
    if mark:
        meta["annotations"]["hybridlab.io/copied-sha256"] = mark
    return {"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}}


def test_verify_pods_where_planned_and_data_on_record(tmp_path: Path) -> None:
    good = (service_pod("web", "arm-1"), service_pod("legacy", "amd-1"))
    ctx = moved(tmp_path, *good, site_claim("abc"))
    assert {c.name: c.ok for c in migrate.verify(ctx)} == {
        "service web": True,
        "service legacy": True,
        "data site": True,
    }
    assert dict(migrate.look(ctx).copied) == {"site": "abc"}
    ctx.kube.put(service_pod("legacy", "arm-1"))
    ctx.kube.put(site_claim(""))
    assert [c.name for c in migrate.verify(ctx) if not c.ok] == ["service legacy", "data site"]
    assert migrate.look(ctx).copied == {}


def test_verify_waits_and_tells_what_a_pod_waits_for(tmp_path: Path) -> None:
    ctx = moved(tmp_path, service_pod("web", "arm-1"), service_pod("legacy", "arm-1", ready=False))
    with pytest.raises(DeadlineExceeded, match="legacy: CrashLoopBackOff exec format error"):
        migrate.verify(ctx)


def test_no_compose_file_nothing_to_look_at(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=FakeKube())
    assert migrate.look(ctx) == Seen()
    assert migrate.verify(ctx) == ()
