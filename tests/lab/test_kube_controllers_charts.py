"""HelmCharts and Jiva volumes, as a storage runbook meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kube_controllers_lab import ControllersLab, Obj, claim, mounting, names, run

from hybridlab.lab.kube.controllers.charts import ChartError, Release, find, merge, render

JIVA_REPO = "https://openebs-archive.github.io/jiva-operator"
VELERO_REPO = "https://vmware-tanzu.github.io/helm-charts"
TOLERATE = [{"key": "small", "operator": "Exists"}]


def chart(name: str, repo: str = JIVA_REPO, version: str = "3.6.0", **more: Any) -> Obj:
    values = more.pop("values", {})
    spec = {"chart": name, "repo": repo, "version": version, "backOffLimit": 2, "failurePolicy": "abort", **more}
    spec.setdefault("targetNamespace", "openebs")
    spec.setdefault("createNamespace", True)
    spec["valuesContent"] = json.dumps(values)
    meta = {"name": name, "namespace": "kube-system"}
    return {"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": meta, "spec": spec}


def job_ended(lab: ControllersLab, name: str) -> str:
    found = lab.store.get("jobs", name, "kube-system", "batch")
    return next((k for k in ("Complete", "Failed") if lab.condition(found, k)["status"] == "True"), "")


def helm_chart(lab: ControllersLab, name: str) -> Obj:
    return lab.store.must_get("helmcharts", name, "kube-system", "helm.cattle.io")


@pytest.mark.parametrize(
    ("name", "repo", "version", "said"),
    [
        ("jiva", JIVA_REPO, "9.9.9", f'chart "jiva" version "9.9.9" not found in {JIVA_REPO} repository'),
        ("jvia", JIVA_REPO, "3.6.0", f'chart "jvia" version "3.6.0" not found in {JIVA_REPO} repository'),
        (
            "jiva",
            "https://nowhere.example",
            "3.6.0",
            'looks like "https://nowhere.example" is not a valid chart repository',
        ),
        ("jiva", "", "3.6.0", 'path "jiva" not found'),
    ],
)
def test_unknown_charts_are_refused_as_helm_does(name: str, repo: str, version: str, said: str) -> None:
    with pytest.raises(ChartError, match=said.replace("(", r"\(")):
        find(name, repo, version)


def test_values_merge_as_in_helm() -> None:
    assert merge({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": None}) == {
        "a": {"b": 1, "c": [2]},
        "d": None,
    }


def test_velero_values_decide_what_is_made() -> None:
    location = {"name": "s3", "provider": "aws", "bucket": "b", "default": True, "config": {"s3ForcePathStyle": True}}
    values = {
        "deployNodeAgent": True,
        "configuration": {"backupStorageLocation": [location], "defaultVolumesToFsBackup": True},
        "credentials": {"existingSecret": "keys"},
        "nodeAgent": {"tolerations": TOLERATE},
    }
    made = {
        (o["kind"], o["metadata"]["name"]): o
        for o in render(find("velero", VELERO_REPO, ""), Release("velero", "v", values))
    }
    assert made[("BackupStorageLocation", "s3")]["spec"]["config"] == {"s3ForcePathStyle": "true"}
    server = made[("Deployment", "velero")]["spec"]["template"]["spec"]
    assert "--default-volumes-to-fs-backup" in server["containers"][0]["args"]
    assert {"name": "cloud-credentials", "secret": {"secretName": "keys"}} in server["volumes"]
    assert made[("DaemonSet", "node-agent")]["spec"]["template"]["spec"]["tolerations"] == TOLERATE
    bare = {
        (o["kind"], o["metadata"]["name"]) for o in render(find("velero", VELERO_REPO, ""), Release("velero", "v", {}))
    }
    assert ("DaemonSet", "node-agent") not in bare
    assert not any(kind == "BackupStorageLocation" for kind, _ in bare)


def test_chart_is_installed_upgraded_and_deleted(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(chart("jiva", values={"defaultPolicy": {"replicas": 1}}))
        await lab.until(lambda: job_ended(lab, "helm-install-jiva") == "Complete", "installed")
        assert lab.condition(helm_chart(lab, "jiva"), "Failed")["status"] == "False"
        policy = lab.store.must_get("jivavolumepolicies", "openebs-jiva-default-policy", "openebs", "openebs.io")
        assert policy["spec"]["target"]["replicationFactor"] == 1
        labels = policy["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        operator = lab.store.must_get("deployments", "jiva-operator", "openebs", "apps")
        uid = operator["metadata"]["uid"]
        assert lab.store.get("storageclasses", "openebs-hostpath", None, "storage.k8s.io")

        def more(found: Obj) -> None:
            values = {"defaultPolicy": {"replicas": 3}, "openebsLocalpv": {"enabled": False}}
            found["spec"]["valuesContent"] = json.dumps(values)

        lab.store.patch("helmcharts", "jiva", "kube-system", "helm.cattle.io", more)

        def upgraded() -> bool:
            found = lab.store.must_get("jivavolumepolicies", "openebs-jiva-default-policy", "openebs", "openebs.io")
            return bool(found["spec"]["target"]["replicationFactor"] == 3)

        await lab.until(upgraded, "upgraded")
        await lab.until(
            lambda: not lab.store.get("storageclasses", "openebs-hostpath", None, "storage.k8s.io"), "dropped"
        )
        assert lab.store.must_get("deployments", "jiva-operator", "openebs", "apps")["metadata"]["uid"] == uid
        lab.store.delete("helmcharts", "jiva", "kube-system", "helm.cattle.io")
        assert helm_chart(lab, "jiva")["metadata"]["deletionTimestamp"]
        await lab.until(lambda: not lab.store.get("helmcharts", "jiva", "kube-system", "helm.cattle.io"), "gone")
        assert not lab.store.get("deployments", "jiva-operator", "openebs", "apps")
        assert lab.store.get("customresourcedefinitions", "jivavolumes.openebs.io", None, "apiextensions.k8s.io")
        await lab.until(lambda: not lab.pods("openebs"), "pods go")

    run(body, tmp_path)


def test_unknown_chart_fails_after_its_retries_and_says_why(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(chart("jvia"))
        seen: set[str] = set()

        def failed() -> bool:
            for pod in lab.pods("kube-system", **{"job-name": "helm-install-jvia"}):
                last = pod["status"].get("containerStatuses", [{}])[0].get("lastState", {}).get("terminated", {})
                seen.add(last.get("message", ""))
            return bool(lab.condition(helm_chart(lab, "jvia"), "Failed")["status"] == "True")

        await lab.until(failed, "failed")
        assert f'Error: chart "jvia" version "3.6.0" not found in {JIVA_REPO} repository' in seen
        assert job_ended(lab, "helm-install-jvia") == "Failed"
        assert lab.condition(helm_chart(lab, "jvia"), "Failed")["reason"] == "Job failed"
        # put right, it is tried again
        lab.store.patch(
            "helmcharts", "jvia", "kube-system", "helm.cattle.io", lambda found: found["spec"].update(chart="jiva")
        )
        await lab.until(lambda: job_ended(lab, "helm-install-jvia") == "Complete", "installed")

    run(body, tmp_path)


@pytest.mark.parametrize("kind", ["no namespace", "someone else's", "not YAML"])
def test_chart_that_cannot_be_installed(tmp_path: Path, kind: str) -> None:
    async def body(lab: ControllersLab) -> None:
        wanted = chart("jiva")
        if kind == "no namespace":
            wanted["spec"]["createNamespace"] = False
        elif kind == "not YAML":
            wanted["spec"]["valuesContent"] = "a: [1"
        else:
            lab.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "openebs"}})
            meta = {"name": "openebs-jiva-operator", "namespace": "openebs"}
            lab.store.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        lab.store.create(wanted)
        said = {
            "no namespace": 'namespaces "openebs" not found',
            "not YAML": "failed to parse",
            "someone else's": "invalid ownership metadata",
        }[kind]

        def told() -> bool:
            pods = lab.pods("kube-system", **{"job-name": "helm-install-jiva"})
            return any(said in str(pod["status"]) for pod in pods)

        await lab.until(told, said)

    run(body, tmp_path)


async def _with_jiva(lab: ControllersLab, replicas: int, **policy: Any) -> None:
    """Jiva installed, with a policy and a StorageClass ``jiva`` of that many replicas."""
    lab.store.create(chart("jiva", values={"csiNode": {"tolerations": TOLERATE}}))
    await lab.until(lambda: job_ended(lab, "helm-install-jiva") == "Complete", "installed")
    target = {"replicationFactor": replicas, "tolerations": TOLERATE}
    body: Obj = {
        "apiVersion": "openebs.io/v1",
        "kind": "JivaVolumePolicy",
        "metadata": {"name": "p", "namespace": "openebs"},
    }
    lab.store.create({**body, "spec": {"replicaSC": "openebs-hostpath", "target": target, **policy}})
    storage_class = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "jiva"}}
    lab.store.create(
        {**storage_class, "provisioner": "jiva.csi.openebs.io", "parameters": {"cas-type": "jiva", "policy": "p"}}
    )

    def ready() -> bool:
        pods = lab.pods("openebs")
        return len(pods) >= 5 and all(lab.is_ready(p) for p in pods)

    await lab.until(ready, "all of jiva is ready")


def jiva_status(lab: ControllersLab) -> tuple[str, str]:
    found = lab.store.list("jivavolumes", "openebs", "openebs.io")
    status = found[0].get("status", {}) if found else {}
    return str(status.get("status")), str(status.get("phase"))


def test_jiva_volume_follows_its_pod_and_survives_a_lost_node(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        await _with_jiva(lab, 3, replica={"tolerations": TOLERATE})
        lab.store.create(claim("data", "jiva"))
        await lab.until(lambda: jiva_status(lab) == ("RW", "Ready"), "three replicas RW")
        replicas = lab.pods("openebs", **{"openebs.io/component": "jiva-replica"})
        assert len({p["spec"]["nodeName"] for p in replicas}) == 3
        lab.store.create(mounting("first", "data", nodeSelector={"kubernetes.io/hostname": "arm-1"}))
        await lab.until(lambda: lab.phase("first") == "Running", "runs on arm-1")
        assert (await lab.exec("first", "touch", "/data/kept"))[0] == 0
        lab.store.create(mounting("second", "data", nodeSelector={"kubernetes.io/hostname": "arm-2"}))
        await lab.until(
            lambda: any("already mounted on node arm-1" in m for m in lab.events("FailedMount")), "only once"
        )
        lab.store.delete("pods", "first", "default")
        await lab.until(lambda: lab.phase("second") == "Running", "moves to arm-2")
        assert (await lab.exec("second", "ls", "/data"))[1] == b"kept\n"
        await lab.controllers.node_lost("id-amd-1")
        await lab.until(lambda: jiva_status(lab) == ("RW", "Syncing"), "two of three still write")
        await lab.controllers.node_lost("id-arm-1")
        await lab.until(lambda: jiva_status(lab)[0] in ("RO", "Unknown"), "one of three does not")

    run(body, tmp_path, speed=20.0)


def test_a_claim_waits_for_the_operator_whichever_part_gets_ready_last(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        def scale(count: int) -> None:
            lab.store.patch(
                "deployments", "jiva-operator", "openebs", "apps", lambda d: d["spec"].update(replicas=count)
            )

        def operators() -> int:
            return sum("jiva-operator" in p["metadata"]["name"] for p in lab.pods("openebs"))

        await _with_jiva(lab, 1, replica={"tolerations": TOLERATE})
        scale(0)
        await lab.until(lambda: operators() == 0, "the operator is down")
        lab.store.create(claim("data", "jiva"))
        await lab.until(lambda: bool(lab.events("ExternalProvisioning")), "the claim waits")
        scale(1)

        def phase() -> str:
            found = lab.store.must_get("persistentvolumeclaims", "data", "default")
            return str(found.get("status", {}).get("phase"))

        await lab.until(lambda: phase() == "Bound", "the claim is bound")

    run(body, tmp_path, speed=20.0)


def test_jiva_needs_as_many_nodes_as_replicas_and_iscsi_where_it_is_used(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.hosts.without_iscsi.add("id-arm-2")
        lab.store.patch(
            "nodes", "amd-1", None, "", lambda n: n["spec"].update(taints=[{"key": "small", "effect": "NoSchedule"}])
        )
        await _with_jiva(lab, 3)  # no toleration for replicas
        lab.store.create(claim("data", "jiva"))
        await lab.until(lambda: jiva_status(lab) == ("RW", "Syncing"), "two of three run")
        pending = [p for p in lab.pods("openebs") if not p["spec"].get("nodeName")]
        message = lab.condition(pending[0], "PodScheduled")["message"]
        assert "1 node(s) had untolerated taint {small: }" in message
        assert "2 node(s) didn't match pod anti-affinity rules" in message
        lab.store.create(mounting("user", "data", nodeSelector={"kubernetes.io/hostname": "arm-2"}))
        await lab.until(lambda: any("iscsiadm" in m for m in lab.events("FailedMount")), "no iscsi")
        assert lab.waiting("user") == "ContainerCreating"
        lab.hosts.without_iscsi.clear()
        await lab.until(lambda: lab.phase("user") == "Running", "runs once iscsi is there")

    run(body, tmp_path)


def test_jiva_claim_that_names_no_policy_is_refused(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        await _with_jiva(lab, 1)
        lab.store.delete("jivavolumepolicies", "p", "openebs", "openebs.io")
        lab.store.create(claim("data", "jiva"))
        await lab.until(lambda: lab.events("ProvisioningFailed"), "refused")
        assert 'jivavolumepolicies.openebs.io "p" not found' in lab.events("ProvisioningFailed")[0]
        assert names(lab.store.list("persistentvolumes")) == []

    run(body, tmp_path)
