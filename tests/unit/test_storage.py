"""050: which engine fits which nodes and why not, iSCSI host by host, the objects of each engine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeKube, FakeOracle, PodKube, digest_lines, make_params, vm
from ruamel.yaml import YAML

from hybridlab.models import NodeWish
from hybridlab.plan import Plan, Step
from hybridlab.stages import storage
from hybridlab.stages.objects import Differences, ref
from hybridlab.stages.storage import HostSeen, Seen
from hybridlab.stages.storage.engines import jiva_problem, verdicts, wanted_objects
from hybridlab.stages.storage.moving import claim, moving_inputs

READY = HostSeen("2.1.9-3ubuntu5", "active", True, True)
NODES = ("arm-1", "arm-2", "amd-1")
BIG = tuple(NodeWish(f"n-{i}", "agent", "amd64", 4, 4) for i in range(3))


def seen(params: Any, **changes: Any) -> Seen:
    made = Seen(
        verdicts(params.wishes, params.storage.replicas),
        dict.fromkeys(NODES, READY) if params.storage.engine == "jiva" else {},
        Differences(),
        "1.0 h old",
    )
    return replace(made, **changes)


def plan(changes: dict[str, Any] | None = None, **state: Any) -> Plan:
    params = make_params(changes or {})
    return storage.plan(params, seen(params, **state), {})


@pytest.mark.parametrize(
    ("nodes", "replicas", "said"),
    [
        (3, 3, None),
        (3, 1, None),
        (1, 1, None),
        (5, 3, None),
        (3, 2, "2 copies survive no failure"),
        (2, 3, "3 copies need 3 nodes, there are 2"),
        (2, 2, "2 copies survive no failure"),
        (3, 4, "4 copies need 4 nodes, there are 3"),
    ],
)
def test_jiva(nodes: int, replicas: int, said: str | None) -> None:
    problem = jiva_problem(nodes, replicas)
    assert (problem is None) is (said is None)
    assert (said or "") in (problem or "")


def test_the_verdict_table_for_the_articles_nodes() -> None:
    table = {v.engine: (v.fits, v.moves) for v in verdicts(make_params().wishes, 3)}
    assert table == {
        "jiva": (True, True),
        "longhorn": (False, True),
        "cstor": (False, True),
        "localpv": (True, False),
        "local-path": (True, False),
    }
    rows = {v.engine: v for v in verdicts(make_params().wishes, 3)}
    assert "arm-1, arm-2, amd-1 below that" in rows["longhorn"].why
    assert rows["jiva"].replicas == "3 of 3 nodes"
    assert "block device" in rows["cstor"].why
    assert "lost node is lost data" in rows["localpv"].why


@pytest.mark.parametrize(
    ("nodes", "fits"),
    [
        (BIG, True),
        (BIG[:2], False),
        ((*BIG[:2], replace(BIG[2], ocpus=3)), False),
        ((*BIG[:2], replace(BIG[2], memory_gb=3)), False),
        ((*BIG, replace(BIG[0], name="small", ocpus=1)), True),
    ],
)
def test_longhorn_wants_three_strong_nodes(nodes: tuple[NodeWish, ...], fits: bool) -> None:
    assert {v.engine: v.fits for v in verdicts(nodes, 3)}["longhorn"] is fits


def test_two_replicas_are_refused_with_the_reason() -> None:
    made = plan({"storage.replicas": 2})
    assert [f.level for f in made.findings] == ["refusal"]
    assert "2 copies survive no failure" in made.findings[0].text
    assert made.findings[0].next_move == "these fit: localpv, local-path; or storage.replicas 3 (or 1)"


def test_one_replica_warns() -> None:
    made = plan({"storage.replicas": 1})
    assert [(f.level, f.subject) for f in made.findings] == [("warning", "storage.replicas 1")]
    assert made.expected["replicas"] == 1


def test_three_replicas_say_nothing() -> None:
    made = plan()
    assert made.findings == ()
    assert made.steps == ()
    assert made.expected == {"storage_class": "hybridlab", "moves": True, "replicas": 3}


@pytest.mark.parametrize(
    ("engine", "level"),
    [("longhorn", "refusal"), ("cstor", "refusal"), ("localpv", "warning"), ("local-path", "warning")],
)
def test_other_engines(engine: str, level: str) -> None:
    made = plan({"storage.engine": engine})
    assert [f.level for f in made.findings] == [level]
    assert not [s for s in made.steps if s.action == "iscsi"]
    if level == "refusal":
        assert "jiva" in made.findings[0].next_move


@pytest.mark.parametrize(
    ("host", "missing"),
    [
        ({"package": ""}, "open-iscsi is not installed"),
        ({"service": "inactive"}, "iscsid is not active"),
        ({"module_loaded": False}, "iscsi_tcp is not loaded"),
        ({"module_at_boot": False}, "iscsi_tcp is not loaded at boot"),
        ({"package": "", "module_loaded": False}, "open-iscsi is not installed, iscsi_tcp is not loaded"),
    ],
)
def test_one_iscsi_drift_one_step(host: dict[str, Any], missing: str) -> None:
    made = plan(hosts={"arm-1": READY, "arm-2": replace(READY, **host), "amd-1": READY})
    assert [(s.id, s.effect, s.batch) for s in made.steps] == [("iscsi:arm-2", "change", "iscsi")]
    assert made.steps[0].why == f"Jiva's volumes are iSCSI: {missing}"


def test_hosts_that_are_not_there_yet() -> None:
    made = plan(hosts={})
    assert [s.id for s in made.steps] == [f"iscsi:{n}" for n in NODES]
    assert "no host" in made.steps[0].why


@pytest.mark.parametrize(
    ("version", "noted"),
    [
        ("2.1.9-3ubuntu5", False),
        ("2.1.10-1", True),
        ("2.1.11-3ubuntu2", True),
        ("2.2.0", True),
        ("2.0.874-7", False),
        ("2.1.9+deb-1", False),
    ],
)
def test_newer_iscsi_is_noted(version: str, noted: bool) -> None:
    made = plan(hosts={**dict.fromkeys(NODES, READY), "arm-2": replace(READY, package=version)})
    assert [(f.level, f.subject) for f in made.findings] == ([("note", "arm-2")] if noted else [])


def test_from_nothing_everything_in_order() -> None:
    params = make_params()
    missing = Differences({ref(o): ("",) for o in wanted_objects(params)})
    made = plan(objects=missing, hosts={}, evidence="", evidence_missing="there is none yet")
    assert [(s.id, s.action) for s in made.steps] == [
        *((f"iscsi:{n}", "iscsi") for n in NODES),
        ("apply:HelmChart/kube-system/jiva", "apply-chart"),
        ("apply:JivaVolumePolicy/openebs/hybridlab", "apply"),
        ("apply:StorageClass/hybridlab", "apply"),
        ("test-volume", "test-volume"),
    ]
    assert made.steps[-1].args == {"megabytes": 8, "moves": True}
    assert "same bytes on another node (there is none yet)" in made.steps[-1].why
    assert all(s.action in storage.ACTIONS for s in made.steps)


def test_a_changed_policy_is_a_change() -> None:
    drift = Differences({"JivaVolumePolicy/openebs/hybridlab": ("spec.target.replicationFactor",)})
    made = plan(objects=drift)
    assert [(s.effect, s.why) for s in made.steps] == [("change", "differs: spec.target.replicationFactor")]


def test_jivas_objects() -> None:
    chart, policy, storage_class = wanted_objects(make_params())
    small = [{"key": "hybridlab.io/small", "operator": "Exists", "effect": "NoSchedule"}]
    assert policy["spec"]["target"]["replicationFactor"] == 3
    assert policy["spec"]["target"]["tolerations"] == policy["spec"]["replica"]["tolerations"] == small
    assert policy["spec"]["replicaSC"] == "openebs-hostpath"
    assert (storage_class["provisioner"], storage_class["parameters"]) == (
        "jiva.csi.openebs.io",
        {"cas-type": "jiva", "policy": "hybridlab"},
    )
    assert (storage_class["volumeBindingMode"], storage_class["allowVolumeExpansion"]) == ("Immediate", True)
    spec = chart["spec"]
    assert (spec["chart"], spec["version"], spec["targetNamespace"]) == ("jiva", "3.6.0", "openebs")
    assert (spec["failurePolicy"], spec["backOffLimit"], spec["createNamespace"]) == ("abort", 4, True)
    values = YAML(typ="safe").load(spec["valuesContent"])
    assert values["csiNode"] == {"kubeletDir": "/var/lib/kubelet", "tolerations": small}
    assert values["analytics"] == {"enabled": False}
    assert wanted_objects(make_params({"storage.replicas": 1}))[1]["spec"]["target"]["replicationFactor"] == 1


@pytest.mark.parametrize(
    ("engine", "provisioner", "binding"),
    [
        ("localpv", "openebs.io/local", "WaitForFirstConsumer"),
        ("local-path", "rancher.io/local-path", "WaitForFirstConsumer"),
        ("longhorn", "driver.longhorn.io", "Immediate"),
    ],
)
def test_classes_of_other_engines(engine: str, provisioner: str, binding: str) -> None:
    made = wanted_objects(make_params({"storage.engine": engine, "storage.storage_class": "mine"}))[-1]
    assert (made["kind"], made["metadata"]["name"]) == ("StorageClass", "mine")
    assert (made["provisioner"], made["volumeBindingMode"]) == (provisioner, binding)


@pytest.mark.parametrize(
    "changes",
    [{"storage.engine": "localpv"}, {"storage.storage_class": "x"}, {"storage.replicas": 1}, {"nodes.arm-2.name": "z"}],
)
def test_what_makes_the_moving_test_stale(changes: dict[str, Any]) -> None:
    assert moving_inputs(make_params(changes)) != moving_inputs(make_params())
    assert moving_inputs(make_params({"storage.test_mb": 9})) == moving_inputs(make_params())


# -- hosts -------------------------------------------------------------------------------------------------------------
class Machine:
    """iSCSI on one host: a package, a service, a module."""

    def __init__(self) -> None:
        self.package, self.active, self.modules = "", False, "Module Size Used by\niscsi_tcp_not 1 0\n"
        self.hosts = FakeHosts(self.answer)

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        match argv:
            case ("dpkg-query", *_):
                return (0, self.package) if self.package else (1, "")
            case ("systemctl", "is-active", "iscsid"):
                return (0, "active\n") if self.active else (3, "inactive\n")
            case ("lsmod",):
                return 0, self.modules
            case ("cat", path):
                held = self.hosts.files.get((name, path))
                return (0, held.decode()) if held else (1, "")
            case (*_, "install", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", "open-iscsi"):
                self.package = "2.1.9-3"
            case ("systemctl", "enable", "--now", "iscsid"):
                assert self.package, "no such unit"
                self.active = True
            case ("modprobe", "iscsi_tcp"):
                self.modules += "iscsi_tcp 24576 0\n"
        return 0, ""


def test_iscsi_is_made_ready_and_then_seen_so(tmp_path: Path) -> None:
    machine, oracle = Machine(), FakeOracle()
    oracle.vms = [vm("arm-2")]
    ctx = FakeContext(tmp_path, oracle=oracle, hosts=machine.hosts, kube=FakeKube())
    assert storage.look(ctx).hosts == {"arm-2": HostSeen("", "inactive", False, False)}
    step = Step("iscsi:arm-2", "iscsi", "", "", "change", {"node": "arm-2"})
    assert storage.ACTIONS["iscsi"](ctx, step) == {"package": "2.1.9-3"}
    assert storage.look(ctx).hosts == {"arm-2": HostSeen("2.1.9-3", "active", True, True)}
    assert storage.look(ctx).hosts["arm-2"].ready
    ctx.hosts.ran.clear()
    storage.ACTIONS["iscsi"](ctx, step)
    assert not [argv for _, argv in ctx.hosts.ran if "apt-get" in argv]


@pytest.mark.parametrize("field", ["package", "service", "module_loaded", "module_at_boot"])
def test_a_host_is_ready_only_with_everything(field: str) -> None:
    assert READY.ready
    nothing: dict[str, Any] = {field: ""}
    assert not replace(READY, **nothing).ready


# -- verify ------------------------------------------------------------------------------------------------------------
def workload(kind: str, **status: Any) -> dict[str, Any]:
    meta = {"name": f"{kind.lower()}-x", "namespace": "openebs", "generation": 2}
    return {"kind": kind, "metadata": meta, "spec": {"replicas": 1}, "status": status}


GOOD = {"observedGeneration": 2, "updatedReplicas": 1, "availableReplicas": 1}


def verified(tmp_path: Path, *workloads: dict[str, Any], same: bool | None = True, missing: bool = False) -> list[str]:
    params = make_params({"storage.engine": "localpv"})
    kube = FakeKube(*workloads, *(() if missing else wanted_objects(params)))
    ctx = FakeContext(tmp_path, params, kube=kube)
    if same is not None:
        ctx.evidence.save(storage.EVIDENCE, {"same": same, "summary": "s"}, inputs=moving_inputs(params))
    return [c.name for c in storage.verify(ctx) if not c.ok]


def test_verify(tmp_path: Path) -> None:
    daemons = workload("DaemonSet", numberReady=3, desiredNumberScheduled=3)
    assert verified(tmp_path, workload("Deployment", **GOOD), workload("StatefulSet", **GOOD), daemons) == []
    assert verified(tmp_path / "a", same=None) == ["test volume"]
    assert verified(tmp_path / "b", same=False) == ["test volume"]
    assert verified(tmp_path / "c", missing=True) == ["objects"]


@pytest.mark.parametrize(
    "bad",
    [
        workload("Deployment", **{**GOOD, "availableReplicas": 0}),
        workload("Deployment", **{**GOOD, "updatedReplicas": 0}),
        workload("StatefulSet", **{**GOOD, "observedGeneration": 1}),
        workload("DaemonSet", numberReady=2, desiredNumberScheduled=3),
    ],
    ids=["not available", "not updated", "not observed", "daemon"],
)
def test_verify_waits_for_the_engines_workloads(tmp_path: Path, bad: dict[str, Any]) -> None:
    from hybridlab.errors import DeadlineExceeded

    with pytest.raises(DeadlineExceeded, match=bad["metadata"]["name"]):
        verified(tmp_path, bad)


# -- a volume that moves -----------------------------------------------------------------------------------------------
class Volumes(PodKube):
    """One claim's content; a pod lands on the first node that is not cordoned."""

    def __init__(self, *, flip: bool = False, stuck: bool = False) -> None:
        super().__init__(self.run)
        self.flip, self.stuck, self.content, self.cordons = flip, stuck, "", 0
        for name in NODES:
            self.put({"kind": "Node", "metadata": {"name": name, "annotations": {}}, "spec": {}})
        self.where = self.place

    def place(self, pod: dict[str, Any]) -> str:
        free = [n for n in NODES if not self.objects["Node", "", n]["spec"].get("unschedulable")]
        self.cordons = max(self.cordons, len(NODES) - len(free))
        return NODES[0] if self.stuck else free[0]

    def run(self, pod: str, argv: tuple[str, ...], stdin: bytes) -> str:
        if argv[0] == "write":
            self.content = " ".join(argv)
            return ""
        return digest_lines({"proof.bin": self.content + ("x" if self.flip and pod == "reader" else "")})


def test_the_claim_is_of_the_chosen_class() -> None:
    spec = claim("ns", "c", "mine", 3)["spec"]
    assert spec == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "mine",
        "resources": {"requests": {"storage": "3Gi"}},
    }


def moved(tmp_path: Path, kube: Volumes, *, moves: bool = True) -> tuple[dict[str, Any], FakeContext]:
    ctx = FakeContext(tmp_path, kube=kube)
    step = Step("test-volume", "test-volume", "", "", "create", {"megabytes": 8, "moves": moves})
    data = dict(storage.ACTIONS["test-volume"](ctx, step))
    assert {kind for kind, _, _ in kube.objects} == {"Node"}  # claim, pods and namespace are gone
    for name in NODES:
        left = kube.objects["Node", "", name]
        assert (left["spec"], left["metadata"]["annotations"]) == ({}, {})
    evidence = ctx.evidence.load(storage.EVIDENCE)
    assert evidence is not None
    assert dict(evidence.data) == data
    return data, ctx


def test_the_same_bytes_on_another_node(tmp_path: Path) -> None:
    kube = Volumes()
    data, ctx = moved(tmp_path, kube)
    assert (data["same"], data["first"], data["second"], data["bytes"]) == (True, "arm-1", "arm-2", 8 * 2**20)
    assert data["summary"] == "8 MiB written on arm-1, read on arm-2: the same bytes"
    assert kube.content == f"write /data/proof.bin --size {8 * 2**20} --seed 1"
    ctx.clock.time = time.time()
    assert storage.look(ctx).evidence


def test_other_bytes_or_the_same_node_are_no_proof(tmp_path: Path) -> None:
    assert moved(tmp_path / "a", Volumes(flip=True))[0]["same"] is False
    assert moved(tmp_path / "b", Volumes(stuck=True))[0]["same"] is False


def test_an_engine_whose_volumes_stay_cordons_nothing(tmp_path: Path) -> None:
    kube = Volumes()
    assert moved(tmp_path, kube, moves=False)[0]["same"] is True
    assert kube.cordons == 0


def test_a_cordon_of_a_test_that_was_killed_is_undone_a_persons_is_not(tmp_path: Path) -> None:
    kube = Volumes()
    ours, persons = kube.objects["Node", "", "amd-1"], kube.objects["Node", "", "arm-1"]
    ours["spec"]["unschedulable"] = persons["spec"]["unschedulable"] = True
    ours["metadata"]["annotations"]["hybridlab.io/cordoned-by-test"] = "true"
    ctx = FakeContext(tmp_path, kube=kube)
    step = Step("test-volume", "test-volume", "", "", "create", {"megabytes": 1, "moves": True})
    assert storage.ACTIONS["test-volume"](ctx, step)["first"] == "arm-2"
    assert ours["spec"] == {}
    assert persons["spec"] == {"unschedulable": True}
