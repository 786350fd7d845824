"""Nodes, scheduling, pods and workloads, as someone with kubectl sees them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from kube_controllers_lab import (
    ControllersLab,
    Obj,
    controllers_lab,
    machine,
    names,
    pod,
    run,
    workload,
)

from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.store import Store

HOSTNAME = "kubernetes.io/hostname"


def on(node: str) -> Obj:
    return {"nodeSelector": {HOSTNAME: node}}


# -- nodes -------------------------------------------------------------------------------------------------------------
def test_node_is_what_its_machine_and_settings_say(tmp_path: Path) -> None:
    async def body() -> None:
        async with controllers_lab(tmp_path) as lab:
            reserved = ["system-reserved=cpu=200m,memory=256Mi", "kube-reserved=memory=100Mi"]
            await lab.server(machine("ctl", 5), **{"node-label": ["tier=a"], "kubelet-arg": reserved})
            await lab.agent(
                machine("Micro", 6, "amd64", ocpus=0.125, memory_gb=1), **{"node-taint": ["small=true:NoSchedule"]}
            )
            await lab.until(lambda: all(lab.is_ready(n) for n in lab.store.peek("nodes")), "ready")
            ctl, micro = lab.store.must_get("nodes", "ctl"), lab.store.must_get("nodes", "micro")
            labels = ctl["metadata"]["labels"]
            assert labels["node-role.kubernetes.io/control-plane"] == "true"
            assert labels["tier"] == "a"
            assert labels["kubernetes.io/arch"] == "arm64"
            assert labels["node.kubernetes.io/instance-type"] == "k3s"
            assert ctl["status"]["capacity"]["cpu"] == "2"
            assert ctl["status"]["allocatable"]["cpu"] == "1800m"
            assert ctl["status"]["allocatable"]["memory"] == f"{12 * 2**20 - 356 * 2**10}Ki"
            assert "node-role.kubernetes.io/control-plane" not in micro["metadata"]["labels"]
            assert micro["status"]["capacity"]["cpu"] == "2"  # as Oracle's micros show it
            assert micro["spec"]["taints"] == [{"key": "small", "value": "true", "effect": "NoSchedule"}]
            assert micro["status"]["nodeInfo"]["architecture"] == "amd64"
            assert {"type": "InternalIP", "address": "10.0.0.6"} in micro["status"]["addresses"]
            assert lab.store.get("secrets", "micro.node-password.k3s", "kube-system")
            before = lab.store.must_get("leases", "micro", "kube-node-lease", "coordination.k8s.io")

            def renewed() -> bool:
                lease = lab.store.must_get("leases", "micro", "kube-node-lease", "coordination.k8s.io")
                return bool(lease["spec"]["renewTime"] != before["spec"]["renewTime"])

            await lab.until(renewed, "lease is renewed")
            # labels of settings count at registration only
            await lab.agent(machine("Micro", 6, "amd64", ocpus=0.125, memory_gb=1), **{"node-label": ["late=x"]})
            assert "late" not in lab.store.must_get("nodes", "micro")["metadata"]["labels"]

    asyncio.run(body())


def test_silent_node_is_left_by_its_pods_and_comes_back(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        prefer = {
            "weight": 100,
            "preference": {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": ["arm-2"]}]},
        }
        affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [prefer]}}
        lab.store.create(workload("Deployment", "web", pod={"affinity": affinity}))
        await lab.until(lambda: [lab.is_ready(p) for p in lab.pods(app="web")] == [True], "web is ready")
        first = lab.pods(app="web")[0]
        assert first["spec"]["nodeName"] == "arm-2"
        await lab.controllers.node_lost("id-arm-2")
        await lab.until(
            lambda: lab.condition(lab.store.get("nodes", "arm-2"), "Ready")["status"] == "Unknown", "NotReady"
        )
        taints = {(t["key"], t["effect"]) for t in lab.store.must_get("nodes", "arm-2")["spec"]["taints"]}
        assert ("node.kubernetes.io/unreachable", "NoExecute") in taints
        assert not lab.is_ready(lab.pod(names([first])[0]))
        with pytest.raises(ApiError, match="connection refused"):
            lab.controllers.logs("default", names([first])[0])

        def moved() -> bool:
            others = [p for p in lab.pods(app="web") if p["metadata"]["uid"] != first["metadata"]["uid"]]
            return any(lab.is_ready(p) and p["spec"]["nodeName"] != "arm-2" for p in others)

        await lab.until(moved, "another one elsewhere")
        assert lab.pod(names([first])[0])["metadata"]["deletionTimestamp"]  # nobody there to end it
        await lab.agent(machine("arm-2", 12, ocpus=1, memory_gb=6))
        await lab.until(lambda: lab.is_ready(lab.store.must_get("nodes", "arm-2")), "ready again")
        assert not lab.store.must_get("nodes", "arm-2")["spec"].get("taints")
        await lab.until(lambda: len(lab.pods(app="web")) == 1, "the old one ends")

    run(body, tmp_path)


def test_node_with_another_password_is_refused_until_the_secret_goes(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        await lab.controllers.node_lost("id-arm-2")
        lab.store.delete("nodes", "arm-2")
        fresh = machine("arm-2", 12)
        (lab.hosts.folder(fresh.id) / "etc/rancher/node/password").unlink()
        await lab.agent(fresh)
        assert lab.store.get("nodes", "arm-2") is None
        assert any(unit == "k3s-agent" and "Node password rejected" in line for _, unit, line in lab.hosts.journals)
        lab.store.delete("secrets", "arm-2.node-password.k3s", "kube-system")
        await lab.until(lambda: lab.store.get("nodes", "arm-2"), "joins")

    run(body, tmp_path)


def test_pods_of_a_deleted_node_are_collected(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(pod("alone", **on("arm-2")))
        await lab.until(lambda: lab.phase("alone") == "Running", "runs")
        await lab.controllers.node_lost("id-arm-2")
        lab.store.delete("nodes", "arm-2")
        await lab.until(lambda: not lab.phase("alone"), "collected")

    run(body, tmp_path)


# -- images ------------------------------------------------------------------------------------------------------------
def test_wrong_architecture_crashes_or_is_not_pulled(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.registry.known.update({"single:1": ("linux/amd64",), "index:1": ("linux/amd64",)})
        lab.registry.single.add("single:1")
        lab.store.create(pod("single", "single:1", **on("arm-1")))
        lab.store.create(pod("index", "index:1", **on("arm-1")))
        lab.store.create(pod("none", "nobody/has:this"))
        lab.store.create(pod("fits", "single:1", **on("amd-1")))
        await lab.until(lambda: lab.waiting("single") == "CrashLoopBackOff", "crash loop")
        crashed = lab.pod("single")["status"]["containerStatuses"][0]
        assert crashed["lastState"]["terminated"]["exitCode"] == 255
        assert crashed["restartCount"] >= 1
        assert not lab.is_ready(lab.pod("single"))
        assert lab.controllers.logs("default", "single") == "exec /entrypoint.sh: exec format error\n"
        await lab.until(
            lambda: lab.pod("single")["status"]["containerStatuses"][0]["restartCount"] > crashed["restartCount"],
            "again",
        )
        await lab.until(lambda: lab.waiting("index") == "ImagePullBackOff", "not pulled")
        assert "no match for platform in manifest: not found" in lab.state(lab.pod("index"))["waiting"]["message"]
        await lab.until(lambda: lab.waiting("none") == "ImagePullBackOff", "nobody has it")
        assert any("nobody/has:this: not found" in m for m in lab.events("Failed"))
        with pytest.raises(ApiError, match="trying and failing to pull image"):
            lab.controllers.logs("default", "none")
        await lab.until(lambda: lab.is_ready(lab.pod("fits")), "runs where it fits")

    run(body, tmp_path)


def test_image_is_pulled_once_a_node(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        for name in ("a", "b"):
            lab.store.create(pod(name, "app:1", **on("arm-1")))
        await lab.until(lambda: lab.phase("a") == lab.phase("b") == "Running", "both run")
        images = [i["names"] for i in lab.store.must_get("nodes", "arm-1")["status"]["images"]]
        assert images.count(["docker.io/library/app:1"]) == 1

    run(body, tmp_path)


# -- pods --------------------------------------------------------------------------------------------------------------
def test_pod_that_fits_nowhere_says_why_and_goes_when_it_can(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.patch("nodes", "arm-1", None, "", lambda n: n["spec"].update(unschedulable=True))
        wants: dict[str, Any] = {
            "resources": {"requests": {"memory": "8Gi"}},
            "nodeSelector": {"kubernetes.io/arch": "arm64"},
        }
        lab.store.create(pod("big", **wants))
        await lab.until(lambda: lab.events("FailedScheduling"), "event")
        scheduled = lab.condition(lab.pod("big"), "PodScheduled")
        assert scheduled["status"] == "False"
        assert scheduled["reason"] == "Unschedulable"
        assert scheduled["message"] == (
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector, "
            "1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 Preemption is not helpful for "
            "scheduling."
        )
        lab.store.patch("nodes", "arm-1", None, "", lambda n: n["spec"].update(unschedulable=False))
        await lab.until(lambda: lab.phase("big") == "Running", "runs once arm-1 is open")

    run(body, tmp_path)


def test_preset_node_is_checked_by_the_kubelet(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(pod("wrong", nodeName="arm-1", nodeSelector={"kubernetes.io/arch": "amd64"}))
        lab.store.create(pod("large", nodeName="amd-1", resources={"requests": {"memory": "2Gi"}}))
        lab.store.create(pod("fine", nodeName="arm-1"))
        await lab.until(lambda: lab.phase("wrong") == lab.phase("large") == "Failed", "refused")
        assert lab.pod("wrong")["status"]["reason"] == "NodeAffinity"
        assert lab.pod("large")["status"]["reason"] == "OutOfmemory"
        await lab.until(lambda: lab.phase("fine") == "Running", "runs")

    run(body, tmp_path)


def test_init_containers_come_first_and_pods_get_addresses_of_their_node(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        init = [{"name": f"i{n}", "image": f"init:{n}"} for n in (1, 2)]
        lab.store.create(
            pod("p", initContainers=init, readinessProbe={"tcpSocket": {"port": 1}, "initialDelaySeconds": 10})
        )
        await lab.until(lambda: lab.phase("p") == "Running", "runs")
        assert not lab.is_ready(lab.pod("p"))  # 10 s of the lab are half a second here
        await lab.until(lambda: lab.is_ready(lab.pod("p")), "ready after the delay")
        status = lab.pod("p")["status"]
        assert [c["state"]["terminated"]["exitCode"] for c in status["initContainerStatuses"]] == [0, 0]
        node = lab.store.must_get("nodes", lab.pod("p")["spec"]["nodeName"])
        assert status["podIP"].rpartition(".")[0] == node["spec"]["podCIDR"].rpartition(".")[0]

    run(body, tmp_path)


def test_logs_of_several_containers_need_a_name(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        made = pod("two")
        made["spec"]["containers"].append({"name": "side", "image": "side:1"})
        lab.store.create(made)
        await lab.until(lambda: lab.phase("two") == "Running", "runs")
        with pytest.raises(
            ApiError, match=r"a container name must be specified for pod two, choose one of: \[main side\]"
        ):
            lab.controllers.logs("default", "two")
        assert lab.controllers.logs("default", "two", "side") == "lab: docker.io/library/side:1 is not really run\n"
        with pytest.raises(ApiError, match="container x is not valid for pod two"):
            lab.controllers.logs("default", "two", "x")

    run(body, tmp_path)


def test_real_commands_decide_how_a_pod_ends(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(pod("good", command=["echo", "hello"], restartPolicy="Never"))
        lab.store.create(pod("bad", command=["false"], restartPolicy="Never"))
        lab.store.create(pod("again", command=["false"], restartPolicy="OnFailure"))
        await lab.until(lambda: (lab.phase("good"), lab.phase("bad")) == ("Succeeded", "Failed"), "both end")
        assert lab.controllers.logs("default", "good") == "hello\n"
        assert lab.state(lab.pod("bad"))["terminated"]["exitCode"] == 1
        await lab.until(lambda: lab.waiting("again") == "CrashLoopBackOff", "is restarted")

    run(body, tmp_path)


# -- workloads ---------------------------------------------------------------------------------------------------------
def deployment(lab: ControllersLab, name: str) -> Obj:
    return lab.store.must_get("deployments", name, "default", "apps")


def available(lab: ControllersLab, name: str, count: int) -> bool:
    found = deployment(lab, name)
    status = found.get("status", {})
    current = status.get("observedGeneration") == found["metadata"]["generation"]
    return bool(
        current and status.get("updatedReplicas") == status.get("availableReplicas") == status.get("replicas") == count
    )


def test_rolling_update_keeps_enough_pods_and_can_be_taken_back(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(workload("Deployment", "web", "app:1", replicas=4))
        await lab.until(lambda: available(lab, "web", 4), "four")
        low = 4
        most = 4

        def image(name: str) -> Any:
            return lambda found: found["spec"]["template"]["spec"]["containers"][0].update(image=name)

        def rolled() -> bool:
            nonlocal low, most
            low = min(
                low,
                sum(1 for p in lab.pods(app="web") if lab.is_ready(p) and not p["metadata"].get("deletionTimestamp")),
            )
            most = max(most, sum(1 for p in lab.pods(app="web") if not p["metadata"].get("deletionTimestamp")))
            images = {p["spec"]["containers"][0]["image"] for p in lab.pods(app="web")}
            return available(lab, "web", 4) and images == {"app:2"}

        lab.store.patch("deployments", "web", "default", "apps", image("app:2"))
        await lab.until(rolled, "rolled")
        assert low >= 3
        assert most <= 5
        sets = lab.store.list("replicasets", "default", "apps")
        assert sorted(s["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for s in sets) == ["1", "2"]
        first = next(s for s in sets if s["spec"]["template"]["spec"]["containers"][0]["image"] == "app:1")
        lab.store.patch("deployments", "web", "default", "apps", image("app:1"))
        await lab.until(lambda: available(lab, "web", 4) and len(lab.pods(app="web")) == 4, "taken back")
        again = lab.store.must_get("replicasets", names([first])[0], "default", "apps")
        assert again["spec"]["replicas"] == 4
        assert again["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"

    run(body, tmp_path)


def test_bad_update_leaves_the_old_pods_running(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(workload("Deployment", "web", "app:1", replicas=2, progressDeadlineSeconds=60))
        await lab.until(lambda: available(lab, "web", 2), "two")
        lab.store.patch(
            "deployments",
            "web",
            "default",
            "apps",
            lambda d: d["spec"]["template"]["spec"]["containers"][0].update(image="nobody/has:this"),
        )
        progressing = await lab.until(
            lambda: lab.condition(deployment(lab, "web"), "Progressing")["reason"] == "ProgressDeadlineExceeded",
            "deadline",
        )
        assert progressing
        assert lab.condition(deployment(lab, "web"), "Available")["status"] == "True"
        assert sum(1 for p in lab.pods(app="web") if lab.is_ready(p)) == 2

    run(body, tmp_path)


def test_recreate_ends_the_old_before_the_new(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(workload("Deployment", "web", "app:1", replicas=2, strategy={"type": "Recreate"}))
        await lab.until(lambda: available(lab, "web", 2), "two")
        seen: set[frozenset[str]] = set()

        def done() -> bool:
            seen.add(frozenset(p["spec"]["containers"][0]["image"] for p in lab.pods(app="web")))
            return available(lab, "web", 2) and seen >= {frozenset({"app:2"})}

        lab.store.patch(
            "deployments",
            "web",
            "default",
            "apps",
            lambda d: d["spec"]["template"]["spec"]["containers"][0].update(image="app:2"),
        )
        await lab.until(done, "recreated")
        assert frozenset({"app:1", "app:2"}) not in seen

    run(body, tmp_path)


def test_daemonset_is_on_every_node_it_tolerates_and_follows_taints(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.patch(
            "nodes", "amd-1", None, "", lambda n: n["spec"].update(taints=[{"key": "small", "effect": "NoSchedule"}])
        )
        lab.store.patch("nodes", "arm-2", None, "", lambda n: n["spec"].update(unschedulable=True))
        lab.store.create(workload("DaemonSet", "agent"))

        def homes() -> list[str]:
            return sorted(p["spec"].get("nodeName", "") for p in lab.pods(app="agent") if lab.is_ready(p))

        await lab.until(lambda: homes() == ["arm-1", "arm-2"], "cordoned nodes too, tainted ones not")
        lab.store.patch("nodes", "amd-1", None, "", lambda n: n["spec"].pop("taints"))
        await lab.until(lambda: homes() == ["amd-1", "arm-1", "arm-2"], "everywhere")

        def counted() -> bool:
            status = lab.store.must_get("daemonsets", "agent", "default", "apps")["status"]
            return bool(status["desiredNumberScheduled"] == status["numberReady"] == 3)

        await lab.until(counted, "three of three in its status")

    run(body, tmp_path)


def test_disruption_budget_counts_what_may_go(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        selector = {"matchLabels": {"app": "web"}}
        budget: Obj = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "b", "namespace": "default"},
        }
        lab.store.create({**budget, "spec": {"maxUnavailable": 1, "selector": selector}})
        lab.store.create(workload("Deployment", "web", replicas=3))
        await lab.until(lambda: available(lab, "web", 3), "three")

        def allowed() -> Any:
            return (
                lab.store.must_get("poddisruptionbudgets", "b", "default", "policy")
                .get("status", {})
                .get("disruptionsAllowed")
            )

        await lab.until(lambda: allowed() == 1, "one may go")
        for node in lab.store.list("nodes"):  # so that what goes down can't come back elsewhere
            lab.store.patch("nodes", node["metadata"]["name"], None, "", lambda n: n["spec"].update(unschedulable=True))
        await lab.controllers.node_lost("id-arm-1")
        await lab.until(lambda: allowed() == 0, "none may go once one is down")

    run(body, tmp_path)


def test_service_lists_ready_pods_only(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        port = {"name": "http", "port": 80, "targetPort": 8080}
        meta = {"name": "web", "namespace": "default"}
        spec = {"selector": {"app": "web"}, "ports": [port]}
        lab.store.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        lab.store.create(pod("up", labels={"app": "web"}))
        lab.store.create(pod("down", "nobody/has:this", labels={"app": "web"}))
        await lab.until(lambda: lab.phase("up") == "Running" and lab.waiting("down") == "ImagePullBackOff", "states")

        def subsets() -> list[Obj]:
            return (lab.store.get("endpoints", "web", "default") or {}).get("subsets") or []

        address = lab.pod("up")["status"]["podIP"]
        await lab.until(
            lambda: subsets() and [a["ip"] for a in subsets()[0].get("addresses", [])] == [address], "endpoints"
        )
        assert [a["targetRef"]["name"] for a in subsets()[0]["notReadyAddresses"]] == ["down"]
        assert subsets()[0]["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
        lab.store.delete("pods", "up", "default")
        await lab.until(lambda: not any("addresses" in s for s in subsets()), "gone from the list")

    run(body, tmp_path)


# -- garbage -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("propagation", ["Background", "Foreground", "Orphan"])
def test_deletion_reaches_what_is_owned(tmp_path: Path, propagation: str) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(workload("Deployment", "web"))
        await lab.until(lambda: available(lab, "web", 1), "one")
        lab.store.delete("deployments", "web", "default", "apps", propagation=propagation)
        if propagation == "Foreground":
            assert deployment(lab, "web")["metadata"]["finalizers"] == ["foregroundDeletion"]
        await lab.until(lambda: not lab.store.get("deployments", "web", "default", "apps"), "gone")
        if propagation == "Foreground":
            assert not lab.pods(app="web")
        if propagation == "Orphan":
            kept = lab.store.list("replicasets", "default", "apps")
            assert len(kept) == 1
            assert not kept[0]["metadata"].get("ownerReferences")
            assert len(lab.pods(app="web")) == 1
            lab.store.create(workload("Deployment", "web"))  # takes the orphans over again
            await lab.until(lambda: available(lab, "web", 1), "adopted")
            assert names(lab.store.list("replicasets", "default", "apps")) == names(kept)
        else:
            await lab.until(lambda: not lab.pods(app="web"), "pods too")
            assert not lab.store.list("replicasets", "default", "apps")

    run(body, tmp_path)


def test_namespace_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tmp"}})
        await lab.until(lambda: lab.store.get("serviceaccounts", "default", "tmp"), "has its account")
        assert lab.store.must_get("configmaps", "kube-root-ca.crt", "tmp")["data"] == {"ca.crt": "root ca"}
        lab.store.create(workload("Deployment", "web", namespace="tmp"))
        await lab.until(lambda: any(lab.is_ready(p) for p in lab.pods("tmp")), "runs")
        lab.store.delete("namespaces", "tmp")
        assert lab.store.must_get("namespaces", "tmp")["status"]["phase"] == "Terminating"
        with pytest.raises(ApiError, match="being terminated"):
            lab.store.create(pod("late", namespace="tmp"))
        await lab.until(lambda: not lab.store.get("namespaces", "tmp"), "gone")
        assert not lab.pods("tmp")

    run(body, tmp_path)


# -- the lab itself ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("late_s", [0.0, 0.3])
def test_lab_goes_on_where_it_was_stopped(tmp_path: Path, late_s: float) -> None:
    """The nodes come back at once, or after every pod was looked at and found without one."""
    path = tmp_path / "kube.sqlite"
    kept: dict[str, str] = {}

    async def first() -> None:
        async with controllers_lab(tmp_path / "lab", store=Store(path)) as lab:
            await lab.three_nodes()
            lab.store.create(workload("Deployment", "web", replicas=2))
            await lab.until(lambda: available(lab, "web", 2), "two")
            kept.update({p["metadata"]["name"]: p["metadata"]["uid"] for p in lab.pods(app="web")})
            lab.store.create(workload("Deployment", "late"))  # hardly begun when the lab stops
            lab.store.close()

    async def second() -> None:
        async with controllers_lab(tmp_path / "lab", store=Store(path)) as lab:
            await asyncio.sleep(late_s)
            await lab.three_nodes()
            await lab.until(lambda: available(lab, "late", 1), "goes on")
            assert {p["metadata"]["name"]: p["metadata"]["uid"] for p in lab.pods(app="web")} == kept
            assert all(p["status"]["containerStatuses"][0]["restartCount"] == 0 for p in lab.pods(app="web"))

    asyncio.run(first())
    asyncio.run(second())


def test_idle_cluster_costs_next_to_nothing(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(workload("Deployment", "web", replicas=6))
        lab.store.create(pod("none", "nobody/has:this"))
        await lab.until(lambda: available(lab, "web", 6), "six")
        version, before = lab.store.rv, time.process_time()
        await asyncio.sleep(1.0)
        assert time.process_time() - before < 0.2
        assert lab.store.rv - version < 40  # leases, and the pull that is tried again

    run(body, tmp_path, speed=1.0)
