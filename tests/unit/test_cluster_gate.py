"""open_cluster and the five moves of a stage: who may open the gate, what is recorded, how a stage is handed over."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import LAB, FakeClock

from hybridlab.cluster import Cluster, StageRun, in_jupyterlab, load_stage, open_cluster
from hybridlab.errors import (
    BadInput,
    GateClosed,
    LabNotRunning,
    Locked,
    NotFound,
    ParamsError,
    StepFailed,
    VerifyFailed,
)
from hybridlab.home import find_root, lab_directory
from hybridlab.ledger import locked
from hybridlab.models import Check, Finding
from hybridlab.params import read_params
from hybridlab.plan import Effect, Plan, Step

BYO = """\
schema: 1
cluster: homelab
site: byo
nodes:
  - {name: a, role: server, arch: arm64, address: 192.168.1.2}
  - {name: b, arch: amd64, address: 192.168.1.3}
"""


class Quiet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("APPROVE", "HEADLESS", "HOME", "LAB_DIR", "LOCKED", "RUN", "SET")
    for name in ("JPY_SESSION_NAME", *(f"HYBRIDLAB_{n}" for n in names)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "byo.yaml").write_text(BYO, encoding="utf-8")
    (tmp_path / "params" / "lab.yaml").write_text(json.dumps(LAB), encoding="utf-8")
    return tmp_path


@pytest.fixture
def lab(root: Path) -> Iterator[Path]:
    """A lab that answers: what open_cluster asks of one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    (root / ".lab").mkdir()
    status = {"control": f"http://127.0.0.1:{server.server_port}", "operator_ip": "203.0.113.7", "endpoints": {}}
    (root / ".lab" / "lab.json").write_text(json.dumps(status), encoding="utf-8")
    yield root
    server.shutdown()
    server.server_close()


@dataclass
class Toy:
    """A stage whose plan is what the test says; ``NAME`` is a real one, because params and order go by it."""

    steps: tuple[Step, ...] = (Step("a", "do", "thing", "because", "create"),)
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = (Check("thing", True, "there"),)
    NAME: str = "storage"
    NEEDS: tuple[str, ...] = ()
    looks: int = 0
    ran: list[str] = field(default_factory=list)
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.ACTIONS: Mapping[str, Any] = {"do": self._do}

    def _do(self, ctx: Any, step: Step) -> Mapping[str, Any]:
        if self.error:
            raise self.error
        self.ran.append(step.id)
        return {}

    def look(self, ctx: Any) -> str:
        self.looks += 1
        return "seen"

    def plan(self, params: Any, seen: Any, upstream: Any) -> Plan:
        assert seen == "seen"
        return Plan(self.NAME, self.steps, {}, self.findings)

    def verify(self, ctx: Any) -> tuple[Check, ...]:
        return self.checks


def opened(root: Path, *, site: str = "byo", stage: Toy | None = None, **options: Any) -> tuple[StageRun, Toy]:
    file = root / "params" / f"{site}.yaml"
    cluster = Cluster(
        read_params(file), root=root, params_file=file, clock=FakeClock(), say=lambda line: None, **options
    )
    toy = stage or Toy()
    return StageRun(cluster, toy), toy


def rows(run: StageRun) -> list[tuple[str, str]]:
    return [(r.event, str(r.detail.get("by", ""))) for r in run.cluster.ledger.rows()]


# -- the gate ----------------------------------------------------------------------------------------------------------
def test_closed_without_an_approval(root: Path) -> None:
    run, toy = opened(root)
    with pytest.raises(GateClosed) as caught:
        run.gate()
    assert run.hash in caught.value.what
    assert caught.value.why == "nobody approved it"
    assert f"--approve {run.hash}" in caught.value.next_move
    assert caught.value.exit_code == 3
    with pytest.raises(GateClosed):
        run.apply()
    assert toy.ran == []
    assert ("approved", "") not in rows(run)


def test_approve_all(root: Path) -> None:
    run, toy = opened(root, approvals=["all"])
    gate = run.gate()
    assert (gate.open, gate.by, gate.steps, gate.stage) == (True, "--approve all", 1, "storage")
    assert rows(run) == [("planned", ""), ("approved", "--approve all")]
    run.apply()
    assert toy.ran == ["a"]
    assert rows(run)[2:] == [("started", ""), ("done", "")]


def test_approve_by_hash_and_not_by_another(root: Path) -> None:
    run, _ = opened(root)
    right = run.hash
    run, toy = opened(root, approvals=["0" * 12, right])
    assert run.gate().by == f"--approve {right}"
    run.apply()
    assert toy.ran == ["a"]
    run, _ = opened(root, approvals=["0" * 12])
    with pytest.raises(GateClosed) as caught:
        run.gate()
    assert "000000000000: the plan is another one" in caught.value.why


def test_an_approval_is_for_the_plan_as_it_was(root: Path) -> None:
    run, toy = opened(root)
    run.approve("a person")
    toy.steps = (*toy.steps, Step("b", "do", "another", "because", "delete"))
    assert run.gate().open  # nothing was looked at again
    run.look()
    run.plan()
    with pytest.raises(GateClosed):
        run.gate()
    with pytest.raises(GateClosed):
        run.apply()
    assert toy.ran == []


def test_an_approval_does_not_outlive_changed_params(root: Path) -> None:
    run, _ = opened(root)
    run.approve("a person")
    run.cluster.override(**{"storage.replicas": 1})
    with pytest.raises(GateClosed):
        run.apply()


def test_changed_params_are_looked_at_and_planned_anew(root: Path) -> None:
    run, toy = opened(root)
    before = run.plan()
    run.cluster.notes["storage"] = "what the first look found"
    run.cluster.override(**{"storage.test_mb": 9})
    assert run.cluster.notes == {}
    toy.steps = ()
    run.gate()  # the plan of the old params, with a step in it, would need an approval
    assert before.steps
    assert run.apply() == ()
    assert (toy.looks, toy.ran) == (2, [])


def test_params_of_other_stages_do_not_touch_an_approval(root: Path) -> None:
    run, _ = opened(root)
    before = run.hash
    run.cluster.override(**{"expose.method": "none"})
    assert run.hash == before
    run.cluster.override(**{"storage.test_mb": 9})
    assert run.hash != before


def test_approvals_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = opened(root)[0].hash
    monkeypatch.setenv("HYBRIDLAB_APPROVE", f"111111111111,{right}")
    assert opened(root)[0].gate().by == f"--approve {right}"


def test_a_person_in_jupyterlab_presses_a_button(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "runbooks/050.ipynb")
    run, toy = opened(root)
    gate = run.gate()  # does not raise: the button follows
    assert (gate.open, gate.by) == (False, "")
    assert rows(run) == [("planned", "")]
    with pytest.raises(GateClosed):
        run.apply()
    assert run.approve("ada in JupyterLab").open
    assert run.gate().by == "ada in JupyterLab"
    run.apply()
    assert toy.ran == ["a"]
    assert ("approved", "ada in JupyterLab") in rows(run)


def test_jupyterlab_in_the_lab_needs_the_button_too(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    run, _ = opened(lab, site="lab")
    assert not run.gate().open
    with pytest.raises(GateClosed):
        run.apply()


def test_headless_in_a_jupyter_server_is_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    monkeypatch.setenv("HYBRIDLAB_HEADLESS", "1")
    assert not in_jupyterlab()
    with pytest.raises(GateClosed):
        opened(root)[0].gate()


def test_plain_papermill_in_the_lab_is_a_rehearsal(lab: Path) -> None:
    run, toy = opened(lab, site="lab")
    assert run.gate().by == "rehearsal in the lab"
    run.apply()
    assert toy.ran == ["a"]


def test_a_driven_run_in_the_lab_needs_its_approval(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateClosed):
        opened(lab, site="lab", approvals=["0" * 12])[0].gate()
    monkeypatch.setenv("HYBRIDLAB_APPROVE", "")
    with pytest.raises(GateClosed):
        opened(lab, site="lab")[0].gate()


def test_plain_papermill_elsewhere_is_closed(root: Path) -> None:
    with pytest.raises(GateClosed):
        opened(root)[0].gate()


def test_an_empty_plan_needs_no_approval(root: Path) -> None:
    run, _ = opened(root, stage=Toy(steps=()))
    gate = run.gate()
    assert (gate.open, gate.by, gate.steps) == (True, "nothing to approve", 0)
    assert run.apply() == ()
    assert rows(run) == [("planned", "")]


def test_a_refusal_is_bad_input_even_when_approved(root: Path) -> None:
    run, toy = opened(root, stage=Toy(findings=(Finding("refusal", "replicas 2", "no", "take 3"),)), approvals=["all"])
    with pytest.raises(BadInput, match="storage can't be applied: no") as caught:
        run.gate()
    assert (caught.value.where, caught.value.next_move) == ("replicas 2", "take 3")
    with pytest.raises(BadInput):
        run.apply()
    assert toy.ran == []


def test_planned_row_counts_and_findings(root: Path) -> None:
    effects: tuple[Effect, ...] = ("create", "create", "change", "delete", "none")
    steps = tuple(Step(str(i), "do", "t", "w", e) for i, e in enumerate(effects))
    run, _ = opened(root, stage=Toy(steps, (Finding("warning", "s", "t", strict=True),)), approvals=["all"])
    run.gate()
    detail = run.cluster.ledger.rows()[0].detail
    assert (detail["create"], detail["change"], detail["delete"], detail["hash"]) == (2, 1, 1, run.hash)
    assert detail["findings"] == [{"level": "warning", "subject": "s", "text": "t", "strict": True}]


def test_the_same_approval_is_recorded_once_in_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLAB_RUN", "run-1")
    run, _ = opened(root, approvals=["all"])
    run.gate()
    run.gate()
    assert [e for e, _ in rows(run)].count("approved") == 1
    monkeypatch.setenv("HYBRIDLAB_RUN", "run-2")
    run, _ = opened(root, approvals=["all"])
    run.gate()
    assert [e for e, _ in rows(run)].count("approved") == 2


# -- the moves ---------------------------------------------------------------------------------------------------------
def test_moves_remember_and_looking_again_forgets_the_plan(root: Path) -> None:
    run, toy = opened(root, approvals=["all"])
    assert run.plan().steps == toy.steps
    run.plan()
    assert toy.looks == 1
    run.look()
    toy.steps = ()
    assert run.plan().steps == ()
    assert toy.looks == 2


def test_hand_over_records_and_names_the_next_runbook(root: Path) -> None:
    run, _ = opened(root, approvals=["all"])
    run.apply()
    run.verify()
    over = run.hand_over()
    assert (over.stage, over.steps_done, over.next_runbook) == ("storage", 1, "060-expose-services")
    last = run.cluster.ledger.rows()[-1]
    assert (last.event, last.step) == ("verified", "")
    assert last.detail["checks"] == [{"name": "thing", "ok": True, "evidence": "there"}]


@pytest.mark.parametrize(
    ("stage", "following"),
    [("layout", "020-provision-vms"), ("backup", "090-rehearse-restore"), ("drill", ""), ("teardown", "")],
)
def test_the_following_runbook(root: Path, stage: str, following: str) -> None:
    run, _ = opened(root, stage=Toy(NAME=stage, steps=()))
    assert run.hand_over().next_runbook == following


def test_hand_over_raises_for_a_failed_check(root: Path) -> None:
    checks = (Check("a", True, "fine"), Check("b", False, "broken", "mend it"), Check("c", False, "too"))
    run, _ = opened(root, stage=Toy(checks=checks), approvals=["all"])
    run.apply()
    assert run.verify() == checks
    with pytest.raises(VerifyFailed) as caught:
        run.hand_over()
    assert caught.value.what == "storage: 2 of 3 checks failed"
    assert (caught.value.where, caught.value.why, caught.value.next_move) == ("b", "broken", "mend it")
    assert run.cluster.ledger.rows()[-1].event == "failed"


def test_apply_holds_the_lock(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, toy = opened(root, approvals=["all"])
    lock = run.cluster.state / "lock"
    with locked(lock, run="another"), pytest.raises(Locked, match="run another"):
        run.apply()
    assert toy.ran == []
    with locked(lock, run="mine"):  # the run this process belongs to has it already
        monkeypatch.setenv("HYBRIDLAB_LOCKED", run.cluster.run)
        run.apply()
    assert toy.ran == ["a"]


def test_a_failed_step_is_raised(root: Path) -> None:
    run, _ = opened(root, stage=Toy(error=NotFound("gone")), approvals=["all"])
    with pytest.raises(StepFailed):
        run.apply()
    with locked(run.cluster.state / "lock", run="next"):
        pass


# -- opening -----------------------------------------------------------------------------------------------------------
def test_root_is_home_or_the_nearest_parent_with_params(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = root / "runbooks" / "deeper"
    deep.mkdir(parents=True)
    assert find_root(deep) == root
    monkeypatch.chdir(root / "runbooks")
    assert find_root() == root
    monkeypatch.setenv("HYBRIDLAB_HOME", str(root / "elsewhere"))
    assert find_root(deep) == root / "elsewhere"
    assert lab_directory(root) == root / ".lab"
    monkeypatch.setenv("HYBRIDLAB_LAB_DIR", str(root / "other-lab"))
    assert lab_directory(root) == root / "other-lab"


def test_no_root_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no params/ folder") as caught:
        find_root(tmp_path)
    assert "HYBRIDLAB_HOME" in caught.value.next_move


@pytest.mark.parametrize("folder", [".", "runbooks"])
def test_open_cluster_finds_the_params_file_from_anywhere(
    root: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (root / "runbooks").mkdir()
    monkeypatch.chdir(root / folder)
    cluster = open_cluster("params/byo.yaml")
    assert cluster.params.cluster == "homelab"
    assert cluster.params_base.resolve() == root / "params"
    assert cluster.state == root / "state" / "homelab"
    assert not cluster.state.exists()


def test_overrides_flat_dotted_and_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    cluster = open_cluster("params/byo.yaml", stage="storage", replicas=1, engine=None, approve="all")
    assert (cluster.params.storage.replicas, cluster.params.storage.engine) == (1, "jiva")
    assert cluster.approvals == ["all"]
    assert open_cluster("params/byo.yaml", cluster="other").params.cluster == "other"
    monkeypatch.setenv("HYBRIDLAB_SET", "storage.replicas=5\nnodes.b.memory_gb=3")
    dotted: dict[str, Any] = {"storage.replicas": 1, "expose.method": "none"}
    cluster = open_cluster("params/byo.yaml", **dotted)
    assert cluster.params.storage.replicas == 5  # the command line wins over the notebook
    assert cluster.params.wishes[1].memory_gb == 3
    assert cluster.params.expose.method == "none"
    assert cluster.approvals == []
    with pytest.raises(ParamsError, match="replica"):
        open_cluster("params/byo.yaml", stage="storage", replica=1)


def test_the_lab_must_be_running(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(LabNotRunning) as caught:
        open_cluster("params/lab.yaml")
    assert "hybridlab lab start" in caught.value.next_move
    assert caught.value.where == str(root / ".lab")
    (root / ".lab").mkdir()
    dead = {"control": "http://127.0.0.1:9", "endpoints": {}}
    (root / ".lab" / "lab.json").write_text(json.dumps(dead), encoding="utf-8")
    with pytest.raises(LabNotRunning) as caught:
        open_cluster("params/lab.yaml")
    assert caught.value.exit_code == 2


def test_a_running_lab_is_enough(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    cluster = open_cluster("params/lab.yaml")
    assert cluster.site.operator_ip() == "203.0.113.7"


def test_no_kubeconfig_yet(root: Path) -> None:
    cluster = opened(root)[0].cluster
    assert cluster.kube_or_none is None
    with pytest.raises(NotFound, match="no kubeconfig yet") as caught:
        _ = cluster.kube
    assert "030" in caught.value.next_move


def test_secrets_of_the_cluster_are_redacted_in_its_ledger(root: Path) -> None:
    cluster = opened(root)[0].cluster
    cluster.secrets.put("token", "very-secret-value")
    cluster.secrets.put("short", "12")
    cluster.ledger.add("storage", "a", "failed", detail={"error": "very-secret-value and 12"})
    text = cluster.ledger.path.read_text(encoding="utf-8")
    assert "very-secret-value" not in text
    assert "*** and 12" in text


def test_unknown_stage() -> None:
    with pytest.raises(BadInput, match="no stage is called 'storag'") as caught:
        load_stage("storag")
    assert "storage" in caught.value.next_move


def test_override_refuses_and_keeps_what_was(root: Path) -> None:
    cluster = opened(root)[0].cluster
    with pytest.raises(ParamsError):
        cluster.override(**{"storage.replicas": 0})
    assert cluster.params.storage.replicas == 3


def test_upstream_folds_the_needed_stages(root: Path) -> None:
    run, _ = opened(root)
    known = run.cluster.upstream(load_stage("provision"))
    assert [n["name"] for n in known["layout"]["nodes"]] == ["a", "b"]
    known = run.cluster.upstream(load_stage("bootstrap"))
    assert [n["private_ip"] for n in known["provision"]["nodes"]] == ["192.168.1.2", "192.168.1.3"]


def test_a_closed_cluster_has_hung_up_and_connects_anew(root: Path) -> None:
    run, _ = opened(root)
    with run.cluster as cluster:
        first = cluster.registry
        cluster.close()
        assert cluster.registry is not first
    assert "registry" not in cluster.__dict__
