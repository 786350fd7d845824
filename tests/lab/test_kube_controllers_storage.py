"""Claims, StatefulSets and exec on their folders, as someone with kubectl sees them."""

from __future__ import annotations

from pathlib import Path

from kube_controllers_lab import (
    ControllersLab,
    claim,
    configmap,
    mounting,
    names,
    pod,
    run,
    workload,
)

SCRIPT = """
import pathlib, sys
if sys.argv[1] == "write":
    n = 0
    with open(sys.argv[2], "wb") as file:
        while chunk := sys.stdin.buffer.read(65536):
            n += file.write(chunk)
    print(n)
elif sys.argv[1] == "fail":
    print("about to fail", file=sys.stderr)
    sys.exit(3)
else:
    print(pathlib.Path(sys.argv[2]).read_text(), end="")
"""
TOOLS = {"name": "tools", "configMap": {"name": "tools"}}


def test_claim_waits_for_its_pod_and_is_pinned_to_its_node(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(claim("data"))
        await lab.until(lambda: lab.events("WaitForFirstConsumer"), "waits")
        assert lab.store.must_get("persistentvolumeclaims", "data", "default")["status"]["phase"] == "Pending"
        lab.store.create(mounting("user", "data", nodeSelector={"kubernetes.io/hostname": "arm-2"}))
        await lab.until(lambda: lab.phase("user") == "Running", "user runs")
        bound = lab.store.must_get("persistentvolumeclaims", "data", "default")
        assert bound["status"]["phase"] == "Bound"
        assert bound["spec"]["storageClassName"] == "local-path"
        volume = lab.store.must_get("persistentvolumes", bound["spec"]["volumeName"])
        terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert terms[0]["matchExpressions"][0]["values"] == ["arm-2"]
        assert volume["status"]["phase"] == "Bound"
        # a second pod that must be elsewhere can't have it
        lab.store.create(mounting("stuck", "data", nodeSelector={"kubernetes.io/hostname": "arm-1"}))
        found = await lab.until(lambda: lab.condition(lab.pod("stuck"), "PodScheduled")["message"], "message")
        assert "1 node(s) didn't match PersistentVolume's node affinity" in found

    run(body, tmp_path)


def test_bytes_live_as_long_as_their_claim(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(claim("data"))
        lab.store.create(configmap("tools", {"tool.py": SCRIPT}))
        lab.store.create(mounting("first", "data", TOOLS))
        await lab.until(lambda: lab.phase("first") == "Running", "first runs")
        code, out, err = await lab.exec(
            "first", "python3", "/tools/tool.py", "write", "/data/a.txt", stdin=b"hello" * 1000
        )
        assert (code, out, err) == (0, b"5000\n", b"")
        lab.store.delete("pods", "first", "default")
        await lab.until(lambda: not lab.phase("first"), "first is gone")
        lab.store.create(mounting("second", "data"))
        await lab.until(lambda: lab.phase("second") == "Running", "second runs")
        code, out, _ = await lab.exec("second", "cat", "/data/a.txt")
        assert (code, out) == (0, b"hello" * 1000)
        volume = lab.store.must_get("persistentvolumeclaims", "data", "default")["spec"]["volumeName"]
        assert (tmp_path / "volumes" / volume / "a.txt").exists()
        # in use: the deleted claim stays until its pod is gone, then the bytes go as well
        lab.store.delete("persistentvolumeclaims", "data", "default")
        assert lab.store.get("persistentvolumeclaims", "data", "default")
        lab.store.delete("pods", "second", "default")
        await lab.until(lambda: not lab.store.get("persistentvolumes", volume), "volume is gone")
        assert not (tmp_path / "volumes" / volume).exists()

    run(body, tmp_path)


def test_exec_runs_only_what_can_really_run(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(claim("data"))
        lab.store.create(configmap("tools", {"tool.py": SCRIPT}))
        lab.store.create(mounting("user", "data", TOOLS))
        await lab.until(lambda: lab.phase("user") == "Running", "runs")
        for argv, said in (
            (("sh", "-c", "echo hi"), b"lab: cannot run sh"),
            (("cat", "/etc/passwd"), b"not in a mounted volume"),
            (("cat", "/data/../etc/passwd"), b"not in a mounted volume"),
            (("tar", "cf", "-", "-C", "/etc", "."), b"not in a mounted volume"),
            (("tar", "xf", "-", "--to-command=sh", "-C", "/data"), b"cannot run tar with --to-command"),
            (("python3", "/nowhere/tool.py"), b"not a file in a mounted volume"),
        ):
            code, out, err = await lab.exec("user", *argv)
            assert (code, out) == (127, b""), argv
            assert said in err, (argv, err)
        code, _, err = await lab.exec("user", "python3", "/tools/tool.py", "fail")
        assert (code, err) == (3, b"about to fail\n")
        assert (await lab.exec("user", "mkdir", "/data/d"))[0] == 0
        assert (await lab.exec("user", "touch", "/data/d/f"))[0] == 0
        assert (await lab.exec("user", "ls", "/data/d"))[1] == b"f\n"
        code, archive, _ = await lab.exec("user", "tar", "cf", "-", "-C", "/data", "d")
        assert code == 0
        assert b"d/f" in archive
        assert (await lab.exec("user", "rm", "-r", "/data/d"))[0] == 0
        assert (await lab.exec("user", "tar", "xf", "-", "-C", "/data", stdin=archive))[0] == 0
        assert (await lab.exec("user", "ls", "/data"))[1] == b"d\n"

    run(body, tmp_path)


def test_claim_without_a_class_that_exists_stays_pending(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(claim("lost", "no-such-class"))
        await lab.until(lambda: lab.events("ProvisioningFailed"), "event")
        assert lab.events("ProvisioningFailed") == ['storageclass.storage.k8s.io "no-such-class" not found']
        lab.store.create(mounting("user", "lost"))
        found = await lab.until(lambda: lab.condition(lab.pod("user"), "PodScheduled")["message"], "message")
        assert found.startswith("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
        lab.store.create(mounting("nothing", "missing"))
        found = await lab.until(lambda: lab.condition(lab.pod("nothing"), "PodScheduled")["message"], "message")
        assert 'persistentvolumeclaim "missing" not found' in found

    run(body, tmp_path)


def test_provisioner_that_does_not_run_provisions_nothing(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        def none(found: dict[str, object]) -> None:
            found["spec"]["replicas"] = 0  # type: ignore[index]

        lab.store.patch("deployments", "local-path-provisioner", "kube-system", "apps", none)
        await lab.until(lambda: not lab.pods("kube-system", app="local-path-provisioner"), "provisioner is gone")
        lab.store.create(claim("data"))
        lab.store.create(mounting("user", "data"))
        await lab.until(lambda: lab.events("ExternalProvisioning"), "event")
        assert lab.phase("user") == "Pending"

        def one(found: dict[str, object]) -> None:
            found["spec"]["replicas"] = 1  # type: ignore[index]

        lab.store.patch("deployments", "local-path-provisioner", "kube-system", "apps", one)
        await lab.until(lambda: lab.phase("user") == "Running", "runs once the provisioner does")

    run(body, tmp_path)


def test_statefulset_is_made_in_order_with_claims_that_outlive_it(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        template = claim("data")
        template["metadata"].pop("namespace")
        made = workload("StatefulSet", "db", replicas=2, serviceName="db", volumeClaimTemplates=[template])
        made["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        lab.store.create(made)
        seen: list[list[str]] = []

        def ready() -> bool:
            seen.append(names(lab.pods(app="db")))
            found = lab.store.must_get("statefulsets", "db", "default", "apps")
            return bool(found.get("status", {}).get("readyReplicas") == 2)

        await lab.until(ready, "two ready")
        assert ["db-0"] in seen
        assert seen[-1] == ["db-0", "db-1"]
        assert names(lab.store.list("persistentvolumeclaims", "default")) == ["data-db-0", "data-db-1"]
        before = lab.pod("db-0")["metadata"]["uid"]
        lab.store.delete("pods", "db-0", "default")
        await lab.until(lambda: lab.phase("db-0") == "Running" and lab.pod("db-0")["metadata"]["uid"] != before, "back")
        lab.store.delete("statefulsets", "db", "default", "apps")
        await lab.until(lambda: not lab.pods(app="db"), "pods go with it")
        assert names(lab.store.list("persistentvolumeclaims", "default")) == ["data-db-0", "data-db-1"]

    run(body, tmp_path)


def test_job_really_runs_its_script(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        lab.store.create(configmap("tools", {"tool.py": SCRIPT, "text": "what it says\n"}))
        for name, args, policy in (("good", ["read", "/tools/text"], "Never"), ("bad", ["fail"], "Never")):
            mounts = [{"name": "tools", "mountPath": "/tools"}]
            inner = {"command": ["python3", "/tools/tool.py"], "args": args, "restartPolicy": policy}
            spec = {"volumes": [TOOLS], "volumeMounts": mounts, **inner}
            lab.store.create(workload("Job", name, backoffLimit=1, pod=spec))
        good = await lab.until(lambda: _done(lab, "good"), "good ends")
        assert good == "Complete"
        assert lab.controllers.logs("default", names(lab.pods(app="good"))[0]) == "what it says\n"
        assert await lab.until(lambda: _done(lab, "bad"), "bad ends") == "Failed"
        bad = lab.store.must_get("jobs", "bad", "default", "batch")
        assert bad["status"]["failed"] == 2
        assert lab.condition(bad, "Failed")["reason"] == "BackoffLimitExceeded"
        assert lab.state(lab.pods(app="bad")[0])["terminated"]["exitCode"] == 3
        lab.store.create(workload("Job", "other"))
        assert await lab.until(lambda: _done(lab, "other"), "other ends") == "Complete"
        text = lab.controllers.logs("default", names(lab.pods(app="other"))[0])
        assert text == "lab: docker.io/library/app:1 is not really run\n"

    run(body, tmp_path)


def _done(lab: ControllersLab, name: str) -> str:
    found = lab.store.get("jobs", name, "default", "batch")
    for kind in ("Complete", "Failed"):
        if lab.condition(found, kind)["status"] == "True":
            return kind
    return ""


def test_pod_that_lacks_its_configuration_waits_for_it(tmp_path: Path) -> None:
    async def body(lab: ControllersLab) -> None:
        variable = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}
        lab.store.create(pod("env", env=[variable]))
        lab.store.create(pod("volume", volumes=[TOOLS], volumeMounts=[{"name": "tools", "mountPath": "/tools"}]))
        await lab.until(lambda: lab.waiting("env") == "CreateContainerConfigError", "config error")
        assert lab.state(lab.pod("env"))["waiting"]["message"] == 'secret "keys" not found'
        await lab.until(lambda: lab.events("FailedMount"), "FailedMount")
        assert lab.events("FailedMount") == [
            'MountVolume.SetUp failed for volume "tools" : configmap "tools" not found'
        ]
        lab.store.create(configmap("tools", {"a": "b"}))
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": "default"}}
        lab.store.create({**secret, "stringData": {"a": "x"}})
        await lab.until(lambda: lab.phase("env") == "Running" and lab.phase("volume") == "Running", "both run")

    run(body, tmp_path)
