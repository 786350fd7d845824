"""Objects as steps: what is missing or differs, and that a Secret's values never reach a plan."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeKube

from hybridlab.errors import DeadlineExceeded, Refused
from hybridlab.plan import Step
from hybridlab.stages.charts import apply_chart, helm_chart
from hybridlab.stages.objects import (
    Differences,
    apply_object,
    apply_steps,
    deployment_ready,
    look_objects,
    masked,
    ref,
    wait_for,
)

NS = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "web"}}
DEPLOY = {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "a", "namespace": "web"}, "spec": {}}


def test_ref() -> None:
    assert (ref(NS), ref(DEPLOY)) == ("Namespace/web", "Deployment/web/a")


def test_all_is_missing_while_there_is_no_cluster() -> None:
    found = look_objects(None, [NS, DEPLOY])
    assert found == Differences({"Namespace/web": ("",), "Deployment/web/a": ("",)}, reachable=False)


def test_only_what_differs_is_listed() -> None:
    kube = FakeKube(NS, DEPLOY)
    assert look_objects(kube, [NS, DEPLOY]) == Differences({})
    kube.different["a"] = ("spec.replicas",)
    assert look_objects(kube, [NS, DEPLOY]) == Differences({"Deployment/web/a": ("spec.replicas",)})


def test_steps_for_missing_and_for_different() -> None:
    state = Differences({"Namespace/web": ("",), "Deployment/web/a": ("spec.replicas", "spec.x")})
    steps = apply_steps([NS, DEPLOY], state, "wanted here", batch="b")
    assert [(s.id, s.action, s.effect, s.why, s.undo, s.batch) for s in steps] == [
        ("apply:Namespace/web", "apply", "create", "wanted here", "delete", "b"),
        ("apply:Deployment/web/a", "apply", "change", "differs: spec.replicas, spec.x", "delete", "b"),
    ]
    assert steps[0].args == {"object": NS}
    assert apply_steps([NS, DEPLOY], Differences({}), "x") == []
    assert [s.why for s in apply_steps([NS], state, {"Namespace/web": "by name"})] == ["by name"]
    assert [s.why for s in apply_steps([NS], state, {})] == ["wanted"]


def test_many_differences_are_cut() -> None:
    five = Differences({"Namespace/web": tuple("abcde")})
    assert apply_steps([NS], five, "")[0].why == "differs: a, b, c, d …"
    four = Differences({"Namespace/web": tuple("abcd")})
    assert apply_steps([NS], four, "")[0].why == "differs: a, b, c, d"


@pytest.mark.parametrize("part", ["data", "stringData"])
def test_a_secrets_values_are_hashed_in_the_plan(part: str) -> None:
    secret: dict[str, Any] = {"kind": "Secret", "metadata": {"name": "s"}, part: {"password": "hunter22"}}
    hidden = masked(secret)
    assert "hunter22" not in str(hidden)
    assert hidden[part]["password"].startswith("sha256:")
    assert secret[part] == {"password": "hunter22"}
    other = masked({**secret, part: {"password": "hunter23"}})
    assert other[part]["password"] != hidden[part]["password"]
    assert masked({**secret, "kind": "ConfigMap"})[part] == {"password": "hunter22"}
    step = apply_steps([secret], Differences({"Secret/s": ("",)}), "w")[0]
    assert "hunter22" not in str(step)


GOOD = {"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2}


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        (GOOD, True),
        ({**GOOD, "availableReplicas": 3}, True),
        ({**GOOD, "availableReplicas": 1}, False),
        ({**GOOD, "updatedReplicas": 1}, False),
        ({**GOOD, "observedGeneration": 1}, False),
        ({**GOOD, "updatedReplicas": None}, False),
        ({}, False),
        ({"observedGeneration": 2, "updatedReplicas": 2, "readyReplicas": 2}, True),
    ],
)
def test_deployment_ready(status: dict[str, Any], ready: bool) -> None:
    obj = {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}
    assert deployment_ready(obj) is ready


def test_no_deployment_is_not_ready_and_one_replica_is_the_default() -> None:
    assert not deployment_ready(None)
    one = {"metadata": {}, "spec": {}, "status": {"updatedReplicas": 1, "availableReplicas": 1}}
    assert deployment_ready(one)
    assert not deployment_ready({**one, "status": {"updatedReplicas": 1}})


def test_apply_object_returns_the_uid(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=FakeKube())
    assert apply_object(ctx, Step("a", "apply", "", "", "create", {"object": NS})) == {"uid": "uid-Namespace-web"}


@pytest.mark.parametrize("condition", ["Complete", "Failed"])
def test_wait_for_a_condition(tmp_path: Path, condition: str) -> None:
    job = {"kind": "Job", "metadata": {"name": "j", "namespace": "n"}, "spec": {}, "status": {"conditions": []}}
    kube = FakeKube(job)
    ctx = FakeContext(tmp_path, kube=kube)

    def finish() -> None:
        live = kube.objects["Job", "n", "j"]
        live["status"]["conditions"] = [{"type": condition, "status": "True"}]

    ctx.clock.at[ctx.clock.now() + 3] = finish
    found = wait_for(ctx, "job j", "batch/v1", "Job", "j", "n", "Complete", 60)
    assert found["status"]["conditions"][0]["type"] == condition
    kube.objects["Job", "n", "j"]["status"]["conditions"] = [{"type": "Complete", "status": "False"}]
    with pytest.raises(DeadlineExceeded, match="Complete=False"):
        wait_for(ctx, "job j", "batch/v1", "Job", "j", "n", "Complete", 60)


# -- charts ------------------------------------------------------------------------------------------------------------
CHART = helm_chart("velero", ("https://repo", "velero", "12.1.0"), "velero", {"a": {"b": True}})


class ChartKube(FakeKube):
    """K3s' Helm controller: each apply of a changed chart makes a Job anew, which ends as ``verdict`` says."""

    def __init__(self, verdict: str, *, after: int = 2) -> None:
        super().__init__()
        self.verdict, self.after, self.looks, self.made = verdict, after, 0, 0

    def apply(self, obj: Any, **options: Any) -> dict[str, Any]:
        changed = bool(self.differs(obj))
        made = super().apply(obj)
        if changed:
            self.made += 1
            self.looks = 0
            self._job([])
        return made

    def _job(self, conditions: list[dict[str, str]]) -> None:
        meta = {"name": "helm-install-velero", "namespace": "kube-system", "uid": f"job-{self.made}"}
        self.put({"kind": "Job", "metadata": meta, "spec": {}, "status": {"conditions": conditions}})

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        if kind == "Job":
            self.looks += 1
            if self.looks > self.after and self.verdict == "Complete":
                self._job([{"type": "Complete", "status": "True"}])
            if self.looks > self.after and self.verdict == "Failed":
                chart = self.objects["HelmChart", "kube-system", "velero"]
                chart["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "backoff"}]}
        return super().get(api_version, kind, name, namespace)


STEP = Step("c", "apply-chart", "", "", "create", {"object": CHART})


def test_a_chart_is_installed_when_its_job_is_complete(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=ChartKube("Complete"))
    assert apply_chart(ctx, STEP) == {"uid": "uid-HelmChart-velero"}
    assert ctx.clock.slept  # it did wait for the Job


def test_a_charts_failure_is_told_in_helms_own_words(tmp_path: Path) -> None:
    kube = ChartKube("Failed")
    labels = {"job-name": "helm-install-velero"}
    terminated = {"terminated": {"message": "Error: chart not found\n"}}
    kube.put(
        {
            "kind": "Pod",
            "metadata": {"name": "helm-install-velero-1", "namespace": "kube-system", "labels": labels},
            "spec": {},
            "status": {"containerStatuses": [{"state": {}, "lastState": terminated}]},
        }
    )
    other = {"state": {"terminated": {"message": "another chart's words"}}}
    kube.put(
        {
            "kind": "Pod",
            "metadata": {"name": "z-other", "namespace": "kube-system", "labels": {"job-name": "helm-install-x"}},
            "spec": {},
            "status": {"containerStatuses": [other]},
        }
    )
    with pytest.raises(Refused) as caught:
        apply_chart(FakeContext(tmp_path, kube=kube), STEP)
    assert caught.value.why == "Error: chart not found"
    assert "velero 12.1.0 could not be installed" in caught.value.what


def test_a_chart_that_never_ends_meets_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match="chart velero to be installed"):
        apply_chart(FakeContext(tmp_path, kube=ChartKube("never")), STEP)


def test_the_old_job_of_a_changed_chart_proves_nothing(tmp_path: Path) -> None:
    class Stale(ChartKube):
        def apply(self, obj: Any, **options: Any) -> dict[str, Any]:
            return FakeKube.apply(self, obj)  # the controller has not noticed yet

    kube = Stale("never")
    kube._job([{"type": "Complete", "status": "True"}])
    with pytest.raises(DeadlineExceeded, match="its Job has not started"):
        apply_chart(FakeContext(tmp_path, kube=kube), STEP)


def test_base64_is_not_a_mask() -> None:
    encoded = base64.b64encode(b"hunter22").decode()
    assert encoded not in str(masked({"kind": "Secret", "metadata": {"name": "s"}, "data": {"p": encoded}}))
