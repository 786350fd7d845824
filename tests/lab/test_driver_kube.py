"""The Kubernetes driver against the lab, or the real cluster that HYBRIDLAB_TEST_KUBECONFIG names."""

from __future__ import annotations

import copy
import io
import os
import re
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube_fixture import KubeLab
from soon import soon

from hybridlab import errors, ports
from hybridlab.drivers.kube import KubeDriver


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    real = os.environ.get("HYBRIDLAB_TEST_KUBECONFIG")
    if real:
        yield Path(real)
        return
    lab = KubeLab(tmp_path_factory.mktemp("kube"))
    yield lab.kubeconfig(lab.three_nodes())
    lab.stop()


@pytest.fixture(scope="module")
def kube(kubeconfig: Path) -> ports.Kube:
    driver = KubeDriver(kubeconfig)
    soon(driver.nodes, lambda nodes: nodes and all(n.ready for n in nodes), "nodes to be ready")
    return driver


@pytest.fixture
def namespace(kube: ports.Kube) -> Iterator[str]:
    name = f"drivers-{uuid.uuid4().hex[:8]}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    # pods are refused until the controller has made it
    soon(lambda: kube.get("v1", "ServiceAccount", "default", name), bool, "the default service account")
    yield name
    kube.delete("v1", "Namespace", name)


def deployment(namespace: str) -> dict[str, Any]:
    container = {
        "name": "box",
        "image": "busybox",
        "command": ["sleep", "3600"],
        "env": [{"name": "EMPTY", "value": ""}, {"name": "ONE", "value": "1"}],
        "ports": [{"containerPort": 8080}],
        "resources": {"requests": {"cpu": "0.01", "memory": "0.015625Gi"}},
        "readinessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 0},
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch", "readOnly": False}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "box", "namespace": namespace, "labels": {"app.kubernetes.io/name": "box"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "box"}},
            "template": {
                "metadata": {"labels": {"app": "box"}},
                "spec": {
                    "containers": [container],
                    "enableServiceLinks": False,
                    "hostNetwork": False,
                    "terminationGracePeriodSeconds": 0,
                    "volumes": [{"name": "scratch", "emptyDir": {}}],
                },
            },
        },
    }


def service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "box", "namespace": namespace},
        "spec": {
            "selector": {"app": "box"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        },
    }


def claim(namespace: str) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "box", "namespace": namespace},
        "spec": spec,
    }


def secret(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "box", "namespace": namespace},
        "stringData": {"word": "pässword", "empty": ""},
    }


def job(namespace: str) -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "image": "busybox", "command": ["true"]}], "restartPolicy": "Never"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "box", "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def policy(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "box", "namespace": namespace},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]},
    }


@pytest.mark.parametrize("make", [deployment, service, claim, secret, job, policy], ids=lambda make: make.__name__)
def test_what_was_applied_does_not_differ(kube: ports.Kube, namespace: str, make: Any) -> None:
    wanted = make(namespace)
    assert kube.differs(wanted) == ("",)
    kube.apply(wanted, dry_run=True)
    assert kube.differs(wanted) == ("",)
    kube.apply(wanted)
    assert kube.differs(wanted) == ()
    kube.apply(wanted)
    assert kube.differs(wanted) == ()


def test_every_drift_is_seen_and_repaired(kube: ports.Kube, namespace: str) -> None:
    wanted = deployment(namespace)
    kube.apply(wanted)
    kube.patch("apps/v1", "Deployment", "box", namespace, {"spec": {"replicas": 3}})
    kube.patch("apps/v1", "Deployment", "box", namespace, {"metadata": {"labels": {"app.kubernetes.io/name": None}}})
    assert set(kube.differs(wanted)) == {"spec.replicas", "metadata.labels[app.kubernetes.io/name]"}
    kube.apply(wanted)
    assert kube.differs(wanted) == ()
    changed = copy.deepcopy(wanted)
    changed["spec"]["template"]["spec"]["containers"][0]["env"].pop()
    assert kube.differs(changed) == ("spec.template.spec.containers[box].env[ONE]",)
    kube.apply(changed)
    assert kube.differs(changed) == ()
    live = kube.get("apps/v1", "Deployment", "box", namespace)
    assert live
    assert [e["name"] for e in live["spec"]["template"]["spec"]["containers"][0]["env"]] == ["EMPTY"]


def test_a_port_taken_away_goes(kube: ports.Kube, namespace: str) -> None:
    wanted = service(namespace)
    kube.apply(wanted)
    wanted["spec"]["ports"].pop()
    assert kube.differs(wanted) == ("spec.ports[53/UDP]",)
    kube.apply(wanted)
    assert kube.differs(wanted) == ()
    live = kube.get("v1", "Service", "box", namespace)
    assert live
    assert [p["port"] for p in live["spec"]["ports"]] == [80]


def test_what_the_server_does_not_know(kube: ports.Kube, namespace: str) -> None:
    assert kube.get("nothing.example.com/v1", "Thing", "x", namespace) is None
    assert kube.list("nothing.example.com/v1", "Thing") == ()
    assert kube.get("v1", "Pod", "x", namespace) is None
    assert not kube.delete("v1", "Pod", "x", namespace)
    with pytest.raises(errors.NotFound, match="no kind Thing"):
        kube.apply({"apiVersion": "nothing.example.com/v1", "kind": "Thing", "metadata": {"name": "x"}})
    with pytest.raises(errors.NotFound):
        kube.patch("v1", "ConfigMap", "x", namespace, {"data": {}})


def test_a_new_kind_is_discovered(kube: ports.Kube) -> None:
    group = f"g{uuid.uuid4().hex[:8]}.example.com"
    assert kube.list(f"{group}/v1", "Thing") == ()
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "things", "singular": "thing", "kind": "Thing"}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {"group": group, "scope": "Cluster", "names": names, "versions": [version]},
    }
    kube.apply(definition)
    assert kube.differs(definition) == ()
    thing = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "one"}, "spec": {"off": False, "n": 1}}

    def made() -> bool:
        try:
            kube.apply(thing)
        except errors.NotFound:  # takes a moment to be served
            return False
        return True

    soon(made, bool, "the new kind")
    assert kube.differs(thing) == ()
    assert [t["metadata"]["name"] for t in kube.list(f"{group}/v1", "Thing")] == ["one"]
    kube.delete("apiextensions.k8s.io/v1", "CustomResourceDefinition", f"things.{group}")
    soon(lambda: kube.list(f"{group}/v1", "Thing"), lambda found: not found, "the kind to go")


def test_refusals_name_the_object(kube: ports.Kube, namespace: str) -> None:
    broken = deployment(namespace)
    broken["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    with pytest.raises(errors.Refused, match=f"Deployment {namespace}/box") as caught:
        kube.apply(broken)
    assert caught.value.status == 422
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}}
    first = kube.apply({**wanted, "data": {"a": "1"}})
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"a": "2"}}
    assert first["metadata"]["resourceVersion"] != "1"
    with pytest.raises(errors.Conflict):
        kube.patch("v1", "ConfigMap", "c", namespace, stale)


def test_lists_are_whole_and_say_what_they_are(kube: ports.Kube, namespace: str) -> None:
    for number in range(3):
        meta = {"name": f"c{number}", "namespace": namespace, "labels": {"odd": str(number % 2)}}
        kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    found = kube.list("v1", "ConfigMap", namespace, labels="odd=0")
    assert [c["metadata"]["name"] for c in found] == ["c0", "c2"]
    assert {(c["apiVersion"], c["kind"]) for c in found} == {("v1", "ConfigMap")}
    named = kube.list("v1", "ConfigMap", namespace, fields="metadata.name=c1")
    assert [c["metadata"]["name"] for c in named] == ["c1"]
    assert len(kube.list("v1", "ConfigMap")) >= 3


@pytest.fixture
def pod(kube: ports.Kube, namespace: str) -> str:
    kube.apply(deployment(namespace))

    def ready(pods: Any) -> bool:
        return any(
            c["type"] == "Ready" and c["status"] == "True" for p in pods for c in p["status"].get("conditions", ())
        )

    pods = soon(lambda: kube.list("v1", "Pod", namespace, labels="app=box"), ready, "the pod", 60)
    return str(pods[0]["metadata"]["name"])


def test_nodes_have_less_to_give_after_a_pod(kube: ports.Kube, namespace: str, pod: str) -> None:
    found = kube.get("v1", "Pod", pod, namespace)
    assert found
    node = next(n for n in kube.nodes() if n.name == found["spec"]["nodeName"])
    assert node.ready
    assert node.arch in ("arm64", "amd64")
    assert 0 < node.cpu_free_m <= node.cpu_m - 10
    assert 0 < node.memory_free <= node.memory - 16 * 2**20
    assert kube.version().startswith("v1.")


def test_exec_streams_both_ways(kube: ports.Kube, namespace: str, pod: str) -> None:
    """16 MB through ``cat``, far more than the buffers between hold, and every byte value in it."""
    piece = bytes(range(256)) * 4096
    had = bytearray()
    result = kube.exec(namespace, pod, ["cat"], stdin=iter([piece] * 16), stdout=had.extend)
    assert (result.exit_status, result.stdout) == (0, b"")
    assert had == piece * 16


def test_exec_carries_tar_into_a_pod_and_back(kube: ports.Kube, namespace: str, pod: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("dir/file.bin")
        entry.size = 3_000_000
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    data = archive.getvalue()
    pieces = (data[i : i + 100_000] for i in range(0, len(data), 100_000))
    assert kube.exec(namespace, pod, ["tar", "-xf", "-", "-C", "/scratch"], stdin=pieces).exit_status == 0
    back = kube.exec(namespace, pod, ["tar", "-cf", "-", "-C", "/scratch", "dir"])
    with tarfile.open(fileobj=io.BytesIO(back.stdout)) as tar:
        assert tar.getmember("dir/file.bin").size == 3_000_000


def test_exec_tells_how_it_ended(kube: ports.Kube, namespace: str, pod: str) -> None:
    assert kube.exec(namespace, pod, ["false"]).exit_status == 1
    assert kube.exec(namespace, pod, ["echo", "a b", "$c"]).stdout == b"a b $c\n"
    with pytest.raises(errors.NotFound):
        kube.exec(namespace, "nobody", ["true"])


def test_logs_and_eviction(kube: ports.Kube, namespace: str, pod: str) -> None:
    assert isinstance(kube.logs(namespace, pod, tail=5), str)
    with pytest.raises(errors.NotFound):
        kube.logs(namespace, "nobody")
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "box", "namespace": namespace},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "box"}}},
    }
    kube.apply(budget)
    assert kube.differs(budget) == ()
    soon(lambda: kube.evict(namespace, pod), lambda done: not done, "the budget to hold")
    kube.delete("policy/v1", "PodDisruptionBudget", "box", namespace)
    assert soon(lambda: kube.evict(namespace, pod), bool, "the eviction")
    assert kube.evict(namespace, "nobody")


def test_a_kubeconfig_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    with pytest.raises(errors.BadInput, match="kubeconfig"):
        KubeDriver(path)
    for text in ("a: [b", "", "apiVersion: v1\nkind: Config\n"):
        path.write_text(text)
        with pytest.raises(errors.BadInput, match="030-bootstrap-k3s"):
            KubeDriver(path)


def test_a_kubeconfig_of_another_cluster(kubeconfig: Path, tmp_path: Path) -> None:
    """The right address, but the wrong CA: as after a cluster was made anew."""
    other = KubeLab(tmp_path / "other")
    try:
        text = other.kubeconfig(other.three_nodes()).read_text(encoding="utf-8")
    finally:
        other.stop()
    address = re.compile(r"server: (\S+)")
    found = address.search(kubeconfig.read_text(encoding="utf-8"))
    assert found
    path = tmp_path / "kubeconfig"
    path.write_text(address.sub(found[0], text))
    with pytest.raises(errors.BadInput, match="does not fit the cluster"):
        KubeDriver(path).version()
    path.write_text(address.sub("server: https://127.0.0.1:9", text))
    with pytest.raises(errors.Unreachable):
        KubeDriver(path).version()
