"""What differs between an object as wanted and the live one: nothing that a default explains, everything else."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from typing import Any

import pytest

from hybridlab.drivers._kube_compare import compare

Obj = dict[str, Any]

WANTED: Obj = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "app.kubernetes.io/part-of": "shop"}},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "enableServiceLinks": False,
                "hostNetwork": False,
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
                "containers": [
                    {
                        "name": "web",
                        "image": "nginx@sha256:1",
                        "args": ["-g", "daemon off;"],
                        "env": [{"name": "EMPTY", "value": ""}, {"name": "A", "value": "1"}],
                        "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}],
                        "resources": {"requests": {"cpu": "0.25", "memory": "0.5Gi"}},
                        "securityContext": {"runAsUser": 0, "readOnlyRootFilesystem": True},
                        "startupProbe": {"httpGet": {"path": "/", "port": 80}, "initialDelaySeconds": 0},
                        "volumeMounts": [{"name": "cache", "mountPath": "/cache", "readOnly": False}],
                    },
                    {"name": "log", "image": "busybox"},
                ],
                "volumes": [{"name": "cache", "emptyDir": {}}, {"name": "shm", "emptyDir": {"sizeLimit": "64Mi"}}],
                "tolerations": [{"key": "small", "operator": "Exists"}],
            },
        },
    },
}


def as_served(wanted: Obj) -> Obj:
    """The same object as an API server shows it: defaults filled in, zero values dropped, quantities rewritten."""
    live = copy.deepcopy(wanted)
    live["metadata"] |= {
        "uid": "1",
        "resourceVersion": "7",
        "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    live["spec"] |= {"progressDeadlineSeconds": 600, "revisionHistoryLimit": 10, "strategy": {"type": "RollingUpdate"}}
    live["status"] = {"replicas": 1}
    pod = live["spec"]["template"]["spec"]
    del pod["hostNetwork"]
    pod |= {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {}, "schedulerName": "default"}
    web = pod["containers"][0]
    web["imagePullPolicy"] = "Always"
    web["env"] = [{"name": "A", "value": "1"}, {"name": "EMPTY"}]
    web["ports"][0]["protocol"] = "TCP"
    web["resources"] = {"requests": {"cpu": "250m", "memory": "512Mi"}}
    web["startupProbe"] = {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "periodSeconds": 10}
    web["volumeMounts"] = [{"name": "token", "mountPath": "/var/run"}, {"name": "cache", "mountPath": "/cache"}]
    pod["volumes"].insert(0, {"name": "token", "projected": {"defaultMode": 420}})
    return live


def pod_of(obj: Obj) -> Obj:
    found: Obj = obj["spec"]["template"]["spec"]
    return found


def web_of(obj: Obj) -> Obj:
    found: Obj = pod_of(obj)["containers"][0]
    return found


def test_defaults_are_no_difference() -> None:
    assert compare(WANTED, as_served(WANTED)) == ()


INGRESS = "spec.ingress[0].ports"
WEB = "spec.template.spec.containers[web]"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda o: o["spec"].update(replicas=2), "spec.replicas"),
        (lambda o: o["metadata"]["labels"].pop("app"), "metadata.labels.app"),
        (
            lambda o: o["metadata"]["labels"].update({"app.kubernetes.io/part-of": "x"}),
            "metadata.labels[app.kubernetes.io/part-of]",
        ),
        (lambda o: web_of(o).update(image="nginx"), f"{WEB}.image"),
        (lambda o: web_of(o)["args"].append("-q"), f"{WEB}.args"),
        (lambda o: web_of(o)["args"].insert(0, web_of(o)["args"].pop(0) + "x"), f"{WEB}.args[0]"),
        (lambda o: web_of(o)["env"].pop(0), f"{WEB}.env[A]"),
        (lambda o: web_of(o)["env"][0].update(value="2"), f"{WEB}.env[A].value"),
        (lambda o: web_of(o)["env"][1].update(valueFrom={"fieldRef": {}}), f"{WEB}.env[EMPTY].valueFrom"),
        (lambda o: web_of(o)["ports"][1].update(protocol="TCP"), f"{WEB}.ports[53/UDP]"),
        (lambda o: web_of(o)["resources"]["requests"].update(cpu="251m"), f"{WEB}.resources.requests.cpu"),
        (lambda o: web_of(o)["resources"]["requests"].pop("memory"), f"{WEB}.resources.requests.memory"),
        (lambda o: web_of(o)["securityContext"].pop("runAsUser"), f"{WEB}.securityContext.runAsUser"),
        (
            lambda o: web_of(o)["securityContext"].update(readOnlyRootFilesystem=False),
            f"{WEB}.securityContext.readOnlyRootFilesystem",
        ),
        (lambda o: web_of(o).pop("startupProbe"), f"{WEB}.startupProbe"),
        (lambda o: web_of(o)["startupProbe"].update(initialDelaySeconds=5), f"{WEB}.startupProbe.initialDelaySeconds"),
        (lambda o: web_of(o)["volumeMounts"][1].update(readOnly=True), f"{WEB}.volumeMounts[/cache].readOnly"),
        (lambda o: pod_of(o)["containers"].pop(1), "spec.template.spec.containers[log]"),
        (lambda o: pod_of(o).update(hostNetwork=True), "spec.template.spec.hostNetwork"),
        (lambda o: pod_of(o).pop("enableServiceLinks"), "spec.template.spec.enableServiceLinks"),
        (
            lambda o: pod_of(o)["volumes"][1].update(emptyDir=None, persistentVolumeClaim={"claimName": "c"}),
            "spec.template.spec.volumes[cache].emptyDir",
        ),
        (
            lambda o: pod_of(o)["volumes"][2]["emptyDir"].update(sizeLimit="65Mi"),
            "spec.template.spec.volumes[shm].emptyDir.sizeLimit",
        ),
        (lambda o: pod_of(o)["nodeSelector"].update(disk="ssd"), "spec.template.spec.nodeSelector.disk"),
        (lambda o: pod_of(o)["tolerations"].append({"operator": "Exists"}), "spec.template.spec.tolerations"),
        (lambda o: pod_of(o).update(tolerations=None), "spec.template.spec.tolerations"),
        (lambda o: pod_of(o).update(containers="?"), "spec.template.spec.containers"),
    ],
)
def test_every_contradiction_is_seen(change: Callable[[Obj], object], path: str) -> None:
    live = as_served(WANTED)
    change(live)
    assert compare(WANTED, live) == (path,)


@pytest.mark.parametrize(
    ("wanted", "live"),
    [
        ({"a": {}, "b": [], "c": None}, {}),
        ({"maxSurge": "25%"}, {"maxSurge": "25%"}),
        ({"ports": [{"port": 80, "targetPort": "80"}]}, {"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]}),
        ({"accessModes": ["ReadWriteOnce"]}, {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem"}),
        ({"resources": {"requests": {"storage": "1024Mi"}}}, {"resources": {"requests": {"storage": "1Gi"}}}),
        ({"replicas": 3.0}, {"replicas": 3}),
    ],
)
def test_same_value(wanted: Obj, live: Obj) -> None:
    assert compare({"apiVersion": "v1", "kind": "X", "spec": wanted}, {"spec": live}) == ()


@pytest.mark.parametrize(
    ("wanted", "live", "path"),
    [
        ({"suspend": False}, {}, "spec.suspend"),
        ({"storageClassName": ""}, {}, "spec.storageClassName"),
        ({"suspend": False}, {"suspend": 0}, "spec.suspend"),
        ({"command": ["80"]}, {"command": [80]}, "spec.command[0]"),
        ({"ports": [{"port": 80}]}, {"ports": [{"port": 81}]}, "spec.ports[80/TCP]"),
        ({"selector": {"app": "a"}}, {"selector": {"app": "a", "tier": "x"}}, "spec.selector.tier"),
        ({"podSelector": {}}, {}, "spec.podSelector"),
        ({"nodeSelector": {"a": "b"}}, {}, "spec.nodeSelector.a"),
        ({"ingress": [{"ports": [{"port": 80}]}]}, {"ingress": [{"ports": [{"port": 80}, {"port": 81}]}]}, INGRESS),
    ],
)
def test_another_value(wanted: Obj, live: Obj, path: str) -> None:
    assert compare({"apiVersion": "v1", "kind": "X", "spec": wanted}, {"spec": live}) == (path,)


def test_custom_resources_keep_zero_values_so_their_absence_counts() -> None:
    wanted = {
        "apiVersion": "velero.io/v1",
        "kind": "Backup",
        "spec": {"snapshotVolumes": False, "ttl": "1h", "items": []},
    }
    assert compare(wanted, {"spec": {"ttl": "1h"}}) == ("spec.snapshotVolumes",)
    assert compare(wanted, {"spec": {"ttl": "1h", "snapshotVolumes": False, "phase": "x"}}) == ()


def test_lists_of_custom_resources_are_whole() -> None:
    wanted = {"apiVersion": "x.io/v1", "kind": "X", "spec": {"env": [{"name": "A", "value": "1"}]}}
    assert compare(wanted, {"spec": {"env": [{"name": "A", "value": "1", "added": True}]}}) == ()
    assert compare(wanted, {"spec": {"env": [{"name": "A", "value": "1"}, {"name": "B"}]}}) == ("spec.env",)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("wanted", "live", "paths"),
    [
        ({"stringData": {"p": "häl"}}, {"p": b64("häl"), "other": b64("x")}, ()),
        ({"stringData": {"p": "hal"}}, {"p": b64("häl")}, ("stringData.p",)),
        ({"stringData": {"p": ""}}, {}, ("stringData.p",)),
        ({"stringData": {"p": ""}}, {"p": ""}, ()),
        ({"data": {"p": b64("x")}}, {"p": b64("y")}, ("data.p",)),
        ({"data": {"a.b": b64("x")}, "stringData": {"c": "d"}}, None, ("data[a.b]", "stringData.c")),
    ],
)
def test_secrets_are_compared_decoded(wanted: Obj, live: Obj | None, paths: tuple[str, ...]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, **wanted}
    assert compare(secret, {"metadata": {"name": "s"}, "data": live}) == paths


def test_config_maps_keep_empty_strings() -> None:
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"A": "", "B": "1000m"}}
    assert compare(wanted, {"data": {"A": "", "B": "1000m"}}) == ()
    assert compare(wanted, {"data": {"B": "1"}}) == ("data.A", "data.B")


def test_what_we_applied_before_and_want_no_longer() -> None:
    live = as_served(WANTED)
    live["metadata"]["annotations"] = {"ours": "1", "theirs": "2"}
    web_of(live)["env"].append({"name": "OLD", "value": "x"})
    live["metadata"]["managedFields"] = [
        {
            "manager": "hybridlab",
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "fieldsV1": {
                "f:metadata": {"f:annotations": {"f:ours": {}, "f:gone": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:template": {
                        "f:spec": {
                            "f:containers": {
                                'k:{"name":"web"}': {
                                    ".": {},
                                    "f:env": {'k:{"name":"OLD"}': {".": {}}, 'k:{"name":"A"}': {".": {}}},
                                    "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}}},
                                }
                            }
                        }
                    },
                },
            },
        },
        {
            "manager": "kubectl",
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "fieldsV1": {"f:spec": {"f:strategy": {}}},
        },
        {
            "manager": "hybridlab",
            "operation": "Apply",
            "apiVersion": "apps/v1",
            "subresource": "status",
            "fieldsV1": {"f:status": {}},
        },
    ]
    assert compare(WANTED, live) == ("metadata.annotations.ours", f"{WEB}.env[OLD]")
    wanted = copy.deepcopy(WANTED)
    wanted["metadata"]["annotations"] = {"mine": "3"}
    live["metadata"]["annotations"]["mine"] = "3"
    assert compare(wanted, live) == ("metadata.annotations.ours", f"{WEB}.env[OLD]")
    assert compare(WANTED, live, manager="somebody") == ()


def test_values_never_show_in_paths() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"password": "hunter2"}}
    assert "hunter2" not in "".join(compare(secret, {"data": {"password": b64("other")}}))
