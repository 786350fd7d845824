"""The Kubernetes API as clients meet it. With HYBRIDLAB_TEST_KUBECONFIG set, the same tests ask a real cluster."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes
import pytest
from kube_fixture import KubeLab
from kubernetes.client.exceptions import ApiException

Obj = dict[str, Any]
sdk: Any = kubernetes  # every field of its models is optional, which no test can be typed against
client, config, dynamic, watch, stream = sdk.client, sdk.config, sdk.dynamic, sdk.watch, sdk.stream.stream
REAL = os.environ.get("HYBRIDLAB_TEST_KUBECONFIG")
DEADLINE_S = 60 if REAL else 15


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if REAL:
        yield Path(REAL)
        return
    lab = KubeLab(tmp_path_factory.mktemp("kube"))
    yield lab.kubeconfig(lab.three_nodes())
    lab.stop()


@pytest.fixture(scope="module")
def api(kubeconfig: Path) -> Iterator[Any]:
    connection = config.new_client_from_config(str(kubeconfig))
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def core(api: Any) -> Any:
    return client.CoreV1Api(api)


@pytest.fixture(scope="module")
def apps(api: Any) -> Any:
    return client.AppsV1Api(api)


@pytest.fixture
def namespace(core: Any) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    until(lambda: code(core.read_namespaced_service_account, "default", name) == 200, "the default service account")
    yield name
    core.delete_namespace(name)


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition; fails after the deadline."""
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {DEADLINE_S} s for {what}")


def code(call: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    try:
        call(*args, **kwargs)
    except ApiException as error:
        return int(error.status)
    return 200


def status_of(call: Callable[[], Any]) -> Obj:
    """The Status a refused request answers with."""
    with pytest.raises(ApiException) as caught:
        call()
    body: Obj = json.loads(caught.value.body or "")
    assert body["kind"] == "Status"
    assert body["code"] == caught.value.status
    return body


def raw(api: Any, method: str, path: str, body: Any = None, **headers: str) -> Obj:
    """A request below the typed client's own checks."""
    sent = {"Content-Type": "application/json", "Accept": "application/json", **headers}
    response = api.call_api(method, api.configuration.host + path, header_params=sent, body=body)
    response.read()
    text = response.data.decode()
    if response.status >= 300:
        error = ApiException(status=response.status, reason=response.reason)
        error.body = text
        raise error
    answer: Obj = json.loads(text)
    return answer


def deployment(name: str, **spec: Any) -> Obj:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "busybox:1.36"}]}}
    body = {"selector": {"matchLabels": {"app": name}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": body}


# -- who may ask -------------------------------------------------------------------------------------------------------
def test_without_a_certificate_nobody_is_believed(kubeconfig: Path, api: Any) -> None:
    anonymous = client.Configuration()
    anonymous.host = api.configuration.host
    anonymous.ssl_ca_cert = api.configuration.ssl_ca_cert
    with client.ApiClient(anonymous) as connection:
        body = status_of(lambda: raw(connection, "GET", "/api/v1/namespaces"))
    assert (body["code"], body["reason"]) == (401, "Unauthorized")


def test_a_service_account_may_do_what_its_role_says(api: Any, core: Any, namespace: str) -> None:
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "reader"}})
    token = core.create_namespaced_service_account_token("reader", namespace, {"spec": {"audiences": []}}).status.token
    rbac = client.RbacAuthorizationV1Api(api)
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "reader"}, "rules": rules})
    rbac.create_namespaced_role_binding(
        namespace,
        {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
        },
    )
    limited = client.Configuration()
    limited.host, limited.ssl_ca_cert = api.configuration.host, api.configuration.ssl_ca_cert
    limited.api_key = {"authorization": f"Bearer {token}"}
    with client.ApiClient(limited) as connection:
        reader = client.CoreV1Api(connection)
        until(lambda: code(reader.list_namespaced_config_map, namespace) == 200, "the role to count")
        assert code(reader.list_namespaced_secret, namespace) == 403
        assert code(reader.create_namespaced_config_map, namespace, {"metadata": {"name": "a"}}) == 403


# -- objects -----------------------------------------------------------------------------------------------------------
def test_an_object_gets_its_identity_from_the_server(core: Any, namespace: str) -> None:
    made = core.create_namespaced_config_map(namespace, {"metadata": {"generateName": "a-"}, "data": {"k": "v"}})
    assert made.metadata.name.startswith("a-")
    assert len(made.metadata.name) > 2
    again = core.read_namespaced_config_map(made.metadata.name, namespace)
    assert again.metadata.uid == made.metadata.uid
    assert int(again.metadata.resource_version) > 0
    assert again.metadata.creation_timestamp is not None


def test_refusals_say_what_and_why(core: Any, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}})
    body = status_of(lambda: core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}}))
    assert (body["code"], body["reason"], body["message"]) == (409, "AlreadyExists", 'configmaps "a" already exists')
    body = status_of(lambda: core.create_namespaced_config_map("no-such", {"metadata": {"name": "a"}}))
    assert (body["code"], body["message"]) == (404, 'namespaces "no-such" not found')
    body = status_of(lambda: core.read_namespaced_config_map("b", namespace))
    assert (body["code"], body["reason"], body["message"]) == (404, "NotFound", 'configmaps "b" not found')
    assert body["details"] == {"name": "b", "kind": "configmaps"}


def test_a_stale_update_is_a_conflict_and_an_empty_one_changes_nothing(core: Any, namespace: str) -> None:
    stale = core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}, "data": {"k": "1"}})
    fresh = core.patch_namespaced_config_map("a", namespace, {"data": {"k": "2"}})
    assert code(core.replace_namespaced_config_map, "a", namespace, stale) == 409
    same = core.patch_namespaced_config_map("a", namespace, {"data": {"k": "2"}})
    assert same.metadata.resource_version == fresh.metadata.resource_version


def test_lists_are_selected_and_paged(core: Any, namespace: str) -> None:
    for index in range(5):
        labels = {"parity": "even" if index % 2 == 0 else "odd", "n": str(index)}
        core.create_namespaced_config_map(namespace, {"metadata": {"name": f"c{index}", "labels": labels}})

    def names(**selectors: Any) -> list[str]:
        items = core.list_namespaced_config_map(namespace, **selectors).items
        return [i.metadata.name for i in items if i.metadata.name != "kube-root-ca.crt"]

    assert names(label_selector="parity=even") == ["c0", "c2", "c4"]
    assert names(label_selector="n in (1,3),parity!=even") == ["c1", "c3"]
    assert names(label_selector="parity,n notin (0,1,2,3)") == ["c4"]
    assert names(label_selector="!absent,n=1") == ["c1"]
    assert names(field_selector="metadata.name=c3") == ["c3"]
    assert code(core.list_namespaced_config_map, namespace, field_selector="data.k=1") == 400
    seen, token = [], None
    for _ in range(10):
        page = core.list_namespaced_config_map(namespace, limit=2, **({"_continue": token} if token else {}))
        assert len(page.items) <= 2
        seen += [i.metadata.name for i in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert not token, "the pages end"
    assert [n for n in seen if n.startswith("c")] == ["c0", "c1", "c2", "c3", "c4"]
    assert len(seen) == len(set(seen))


def test_dry_run_stores_nothing(core: Any, namespace: str) -> None:
    made = core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}}, dry_run="All")
    assert made.metadata.uid
    assert code(core.read_namespaced_config_map, "a", namespace) == 404
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}, "data": {"k": "1"}})
    assert core.patch_namespaced_config_map("a", namespace, {"data": {"k": "2"}}, dry_run="All").data == {"k": "2"}
    assert core.read_namespaced_config_map("a", namespace).data == {"k": "1"}
    core.delete_namespaced_config_map("a", namespace, dry_run="All")
    assert code(core.read_namespaced_config_map, "a", namespace) == 200


def test_secrets_keep_what_stringdata_says(core: Any, namespace: str) -> None:
    made = core.create_namespaced_secret(namespace, {"metadata": {"name": "s"}, "stringData": {"k": "größer"}})
    assert made.type == "Opaque"
    assert base64.b64decode(made.data["k"]).decode() == "größer"
    assert made.string_data is None


def test_a_finalizer_holds_an_object_until_it_is_taken_out(core: Any, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a", "finalizers": ["example.org/hold"]}})
    core.delete_namespaced_config_map("a", namespace)
    held = core.read_namespaced_config_map("a", namespace)
    assert held.metadata.deletion_timestamp is not None
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"finalizers": None}})
    assert code(core.read_namespaced_config_map, "a", namespace) == 404


def test_deleting_with_the_wrong_uid_is_refused(core: Any, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}})
    options = {"preconditions": {"uid": str(uuid.uuid4())}}
    assert code(core.delete_namespaced_config_map, "a", namespace, body=options) == 409
    assert code(core.read_namespaced_config_map, "a", namespace) == 200


def test_a_deleted_namespace_takes_its_content_along(core: Any) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    core.create_namespaced_config_map(name, {"metadata": {"name": "a", "finalizers": ["example.org/hold"]}})
    core.delete_namespace(name)
    assert core.read_namespace(name).status.phase == "Terminating"
    body = status_of(lambda: core.create_namespaced_config_map(name, {"metadata": {"name": "late"}}))
    assert (body["code"], body["reason"]) == (403, "Forbidden")
    assert f"unable to create new content in namespace {name} because it is being terminated" in body["message"]
    core.patch_namespaced_config_map("a", name, {"metadata": {"finalizers": None}})
    until(lambda: code(core.read_namespace, name) == 404, "the namespace to go")
    left = core.list_config_map_for_all_namespaces(field_selector=f"metadata.namespace={name}").items
    assert left == []


# -- patches -----------------------------------------------------------------------------------------------------------
def test_merge_json_and_strategic_patches(apps: Any, core: Any, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}, "data": {"k": "1", "gone": "x"}})
    patched = core.patch_namespaced_config_map("a", namespace, {"data": {"gone": None, "new": "2"}})
    assert patched.data == {"k": "1", "new": "2"}
    operations = [{"op": "test", "path": "/data/k", "value": "1"}, {"op": "remove", "path": "/data/k"}]
    assert core.patch_namespaced_config_map("a", namespace, operations).data == {"new": "2"}
    assert code(core.patch_namespaced_config_map, "a", namespace, operations) == 422
    apps.create_namespaced_deployment(namespace, deployment("web", replicas=0))
    second = {"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "nginx:1"}]}}}}
    both = apps.patch_namespaced_deployment("web", namespace, second)
    assert sorted(c.name for c in both.spec.template.spec.containers) == ["c", "d"]
    gone = {"spec": {"template": {"spec": {"containers": [{"name": "c", "$patch": "delete"}]}}}}
    one = apps.patch_namespaced_deployment("web", namespace, gone)
    assert [c.name for c in one.spec.template.spec.containers] == ["d"]


def applied(api: Any, namespace: str, manager: str, data: dict[str, str], **options: Any) -> Obj:
    resource = dynamic.DynamicClient(api).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ssa"}, "data": data}
    answer = resource.server_side_apply(body, "ssa", namespace, field_manager=manager, **options)
    result: Obj = answer.to_dict()
    return result


def test_server_side_apply_owns_fields(api: Any, namespace: str) -> None:
    first = applied(api, namespace, "one", {"a": "1", "b": "1"})
    assert [entry["manager"] for entry in first["metadata"]["managedFields"]] == ["one"]
    both = applied(api, namespace, "two", {"b": "1", "c": "1"})
    assert both["data"] == {"a": "1", "b": "1", "c": "1"}
    shared = applied(api, namespace, "one", {"a": "1"})
    assert shared["data"] == {"a": "1", "b": "1", "c": "1"}, "b still belongs to two"
    dropped = applied(api, namespace, "two", {"c": "1"})
    assert dropped["data"] == {"a": "1", "c": "1"}
    body = status_of(lambda: applied(api, namespace, "one", {"a": "1", "c": "2"}))
    assert body["reason"] == "Conflict"
    assert body["message"] == 'Apply failed with 1 conflict: conflict with "two": .data.c'
    assert body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "two"', "field": ".data.c"}
    ]
    forced = applied(api, namespace, "one", {"a": "1", "c": "2"}, force_conflicts=True)
    assert forced["data"] == {"a": "1", "c": "2"}
    repeated = applied(api, namespace, "one", {"a": "1", "c": "2"})
    assert repeated["metadata"]["resourceVersion"] == forced["metadata"]["resourceVersion"]


def test_an_applied_service_keeps_the_address_it_was_given(api: Any, namespace: str) -> None:
    resource = dynamic.DynamicClient(api).resources.get(api_version="v1", kind="Service")
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
    }
    first = resource.server_side_apply(body, "web", namespace, field_manager="one").to_dict()
    second = resource.server_side_apply(body, "web", namespace, field_manager="one").to_dict()
    assert first["spec"]["clusterIP"].count(".") == 3
    assert second["spec"]["clusterIP"] == first["spec"]["clusterIP"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    replaced = client.CoreV1Api(api).replace_namespaced_service("web", namespace, body)
    assert replaced.spec.cluster_ip == first["spec"]["clusterIP"]


# -- subresources ------------------------------------------------------------------------------------------------------
def test_status_and_spec_are_written_apart(apps: Any, namespace: str) -> None:
    made = apps.create_namespaced_deployment(namespace, deployment("web", replicas=0, paused=True))
    assert made.metadata.generation == 1
    status = {"status": {"conditions": [{"type": "Example", "status": "True"}]}, "spec": {"replicas": 5}}
    apps.patch_namespaced_deployment_status("web", namespace, status)
    read = apps.read_namespaced_deployment("web", namespace)
    assert read.spec.replicas == 0
    assert "Example" in [c.type for c in read.status.conditions or []]
    apps.patch_namespaced_deployment("web", namespace, {"status": {"readyReplicas": 9}})
    assert apps.read_namespaced_deployment("web", namespace).status.ready_replicas != 9
    changed = apps.patch_namespaced_deployment("web", namespace, {"spec": {"revisionHistoryLimit": 3}})
    assert changed.metadata.generation == 2


def test_scale(apps: Any, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web", replicas=0, paused=True))
    scale = apps.read_namespaced_deployment_scale("web", namespace)
    assert (scale.spec.replicas, scale.status.selector) == (0, "app=web")
    apps.patch_namespaced_deployment_scale("web", namespace, {"spec": {"replicas": 1}})
    assert apps.read_namespaced_deployment("web", namespace).spec.replicas == 1


def test_eviction_respects_a_disruption_budget(api: Any, core: Any, namespace: str) -> None:
    pod = {"metadata": {"name": "p", "labels": {"app": "p"}}, "spec": deployment("p")["spec"]["template"]["spec"]}
    pod["spec"]["containers"][0]["command"] = ["sleep", "600"]
    pod["spec"]["terminationGracePeriodSeconds"] = 0
    budget = {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}}
    client.PolicyV1Api(api).create_namespaced_pod_disruption_budget(namespace, budget)
    core.create_namespaced_pod(namespace, pod)
    until(lambda: core.read_namespaced_pod("p", namespace).status.phase == "Running", "the pod to run")
    eviction = {"metadata": {"name": "p"}}
    body = status_of(lambda: core.create_namespaced_pod_eviction("p", namespace, eviction))
    assert (body["code"], body["reason"]) == (429, "TooManyRequests")
    client.PolicyV1Api(api).delete_namespaced_pod_disruption_budget("b", namespace)
    core.create_namespaced_pod_eviction("p", namespace, eviction)
    until(lambda: code(core.read_namespaced_pod, "p", namespace) == 404, "the pod to go")


# -- what is refused ---------------------------------------------------------------------------------------------------
BAD_DEPLOYMENTS = [
    ({"spec": {}}, 422, "spec.selector: Required value"),
    ({"spec": {"selector": {"matchLabels": {"app": "other"}}}}, 422, "`selector` does not match template `labels`"),
    ({"spec": {"replicas": -1}}, 422, "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
    ({"spec": {"replicas": "two"}}, 400, "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas"),
    ({"metadata": {"name": "Web"}}, 422, 'metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain'),
    ({"metadata": {"name": "web", "labels": {"a": "b c"}}}, 422, "a valid label must be an empty string or consist of"),
]


@pytest.mark.parametrize(("change", "status", "text"), BAD_DEPLOYMENTS)
def test_bad_deployments(api: Any, namespace: str, change: Obj, status: int, text: str) -> None:
    body = deployment("web")
    for key, value in change.items():
        body[key] = {**body[key], **value} if value else {}
    answer = status_of(lambda: raw(api, "POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", body))
    assert (answer["code"], text in answer["message"]) == (status, True), answer["message"]
    if status == 422:
        assert answer["message"].startswith('Deployment.apps "')
        assert answer["details"]["causes"]


BAD_CONTAINERS = [
    ({"image": ""}, 422, "spec.template.spec.containers[0].image: Required value"),
    ({"name": "C_1"}, 422, "a lowercase RFC 1123 label must consist of"),
    ({"ports": [{"containerPort": 70000}]}, 422, "must be between 1 and 65535, inclusive"),
    ({"ports": [{"name": "x", "containerPort": 1}, {"name": "x", "containerPort": 2}]}, 422, 'Duplicate value: "x"'),
    ({"env": [{"name": "A", "value": 1}]}, 400, "cannot unmarshal number into Go struct field EnvVar"),
    ({"resources": {"requests": {"memory": "12Gb"}}}, 400, "quantities must match the regular expression"),
    (
        {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}},
        422,
        'Invalid value: "2": must be less than or equal to cpu limit of 1',
    ),
    ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, 422, 'volumeMounts[0].name: Not found: "v"'),
    ({"imagePullPolicy": "Sometimes"}, 422, 'Unsupported value: "Sometimes": supported values: "Always"'),
    ({"livenessProbe": {}}, 422, "must specify a handler type"),
]


@pytest.mark.parametrize(("change", "status", "text"), BAD_CONTAINERS)
def test_bad_containers(api: Any, namespace: str, change: Obj, status: int, text: str) -> None:
    body = deployment("web")
    body["spec"]["template"]["spec"]["containers"][0].update(change)
    answer = status_of(lambda: raw(api, "POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", body))
    assert (answer["code"], text in answer["message"]) == (status, True), answer["message"]


def test_unknown_fields_are_dropped_with_a_warning_or_refused(api: Any, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    body = deployment("web", replicas=0)
    body["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Never"
    answer = status_of(lambda: raw(api, "POST", f"{path}?fieldValidation=Strict", body))
    where = "spec.template.spec.containers[0].imagePulPolicy"
    assert answer["message"].endswith(f'strict decoding error: unknown field "{where}"')
    response = api.call_api(
        "POST", api.configuration.host + path, header_params={"Content-Type": "application/json"}, body=body
    )
    response.read()
    assert f'unknown field \\"{where}\\"' in response.headers["Warning"]
    assert "imagePulPolicy" not in response.data.decode()


def test_what_cannot_change_later(apps: Any, core: Any, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web", replicas=0))
    other: Obj = {"spec": {"selector": {"matchLabels": {"app": "web", "more": "1"}}}}
    other["spec"]["template"] = {"metadata": {"labels": {"app": "web", "more": "1"}}}
    body = status_of(lambda: apps.patch_namespaced_deployment("web", namespace, other))
    assert "spec.selector: Invalid value" in body["message"]
    assert "field is immutable" in body["message"]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespaced_persistent_volume_claim(namespace, {"metadata": {"name": "c"}, "spec": claim})
    mode = {"spec": {"accessModes": ["ReadWriteMany"]}}
    body = status_of(lambda: core.patch_namespaced_persistent_volume_claim("c", namespace, mode))
    assert (body["code"], "spec is immutable after creation" in body["message"]) == (422, True)


def test_a_service_of_two_nameless_ports_is_refused(core: Any, namespace: str) -> None:
    service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}, {"port": 443}]}}
    body = status_of(lambda: core.create_namespaced_service(namespace, service))
    assert "spec.ports[0].name: Required value" in body["message"]
    assert "spec.ports[1].name: Required value" in body["message"]


# -- custom resources --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def widgets(api: Any) -> Iterator[str]:
    """The group of a CustomResourceDefinition of widgets."""
    group = f"t{uuid.uuid4().hex[:8]}.example.org"
    spec = {
        "type": "object",
        "required": ["size"],
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "colour": {"type": "string", "default": "red", "enum": ["red", "blue"]},
            "note": {"type": "string"},
        },
    }
    status = {"type": "object", "properties": {"phase": {"type": "string"}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
        ],
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}},
    }
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wd"]}
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(body)

    def established() -> bool:
        read = extensions.read_custom_resource_definition(f"widgets.{group}")
        conditions = (read.status.conditions if read.status else None) or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    until(established, "the definition to be established")
    yield group
    extensions.delete_custom_resource_definition(f"widgets.{group}")
    until(lambda: code(extensions.read_custom_resource_definition, f"widgets.{group}") == 404, "the definition to go")


def widget(group: str, name: str, **spec: Any) -> Obj:
    return {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def test_custom_resources_are_defaulted_pruned_and_checked(api: Any, widgets: str, namespace: str) -> None:
    custom = client.CustomObjectsApi(api)
    where = (widgets, "v1", namespace, "widgets")
    sent = {**widget(widgets, "a", size=3, odd=1), "status": {"phase": "x"}}
    made = custom.create_namespaced_custom_object(*where, sent)
    assert made["spec"] == {"size": 3, "colour": "red"}
    assert "status" not in made
    assert made["metadata"]["generation"] == 1
    custom.patch_namespaced_custom_object_status(*where, "a", {"status": {"phase": "Good"}})
    read = custom.get_namespaced_custom_object(*where, "a")
    assert (read["status"], read["metadata"]["generation"]) == ({"phase": "Good"}, 1)
    changed = custom.patch_namespaced_custom_object(*where, "a", {"spec": {"size": 4}})
    assert changed["metadata"]["generation"] == 2
    for spec, text in (
        ({}, "spec.size: Required value"),
        ({"size": "big"}, 'spec.size in body must be of type integer: "string"'),
        ({"size": 10}, "should be less than or equal to 9"),
        ({"size": 1, "colour": "green"}, 'spec.colour: Unsupported value: "green"'),
    ):
        bad = widget(widgets, "bad", **spec)
        body = status_of(lambda bad=bad: custom.create_namespaced_custom_object(*where, bad))  # type: ignore[misc]
        assert (body["code"], text in body["message"]) == (422, True), body["message"]
    without_version = widget(widgets, "a", size=5)
    assert code(custom.replace_namespaced_custom_object, *where, "a", without_version) == 422


# -- watches -----------------------------------------------------------------------------------------------------------
def collect(seconds: int, call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[threading.Thread, list[Any]]:
    """Collect (type, name) from a watch in a thread."""
    got: list[Any] = []

    def run() -> None:
        for event in watch.Watch().stream(call, *args, timeout_seconds=seconds, **kwargs):
            got.append((event["type"], event["object"].metadata.name))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, got


def test_a_watch_tells_what_happens_and_ends(core: Any, namespace: str) -> None:
    rv = core.list_namespaced_config_map(namespace).metadata.resource_version
    thread, got = collect(2, core.list_namespaced_config_map, namespace, resource_version=rv, label_selector="in=yes")
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a", "labels": {"in": "yes"}}})
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "b"}})
    core.patch_namespaced_config_map("a", namespace, {"data": {"k": "1"}})
    core.patch_namespaced_config_map("b", namespace, {"metadata": {"labels": {"in": "yes"}}})
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"labels": {"in": None}}})
    core.delete_namespaced_config_map("b", namespace)
    thread.join(10)
    assert not thread.is_alive()
    assert got == [("ADDED", "a"), ("MODIFIED", "a"), ("ADDED", "b"), ("DELETED", "a"), ("DELETED", "b")]


def test_a_watch_can_begin_with_what_there_is(api: Any, core: Any, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "a"}})
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    url = f"{api.configuration.host}/api/v1/namespaces/{namespace}/configmaps?{query}"
    response = api.call_api("GET", url, header_params={"Accept": "application/json"})
    response.read()
    events = [json.loads(line) for line in response.data.decode().splitlines()]
    kinds = [event["type"] for event in events]
    end = next(e for e in events if e["type"] == "BOOKMARK")
    assert end["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert set(kinds[: kinds.index("BOOKMARK")]) == {"ADDED"}
    assert "a" in [event["object"]["metadata"].get("name") for event in events]


# -- pods --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def pod(core: Any, namespace: str) -> str:
    spec: Obj = deployment("p")["spec"]["template"]["spec"]
    spec["containers"][0]["command"] = ["sleep", "600"]
    spec["terminationGracePeriodSeconds"] = 0
    core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": spec})
    until(lambda: core.read_namespaced_pod("p", namespace).status.phase == "Running", "the pod to run")
    return "p"


def test_exec_carries_output_and_exit_status(core: Any, namespace: str, pod: str) -> None:
    run = stream(
        core.connect_get_namespaced_pod_exec,
        pod,
        namespace,
        command=["echo", "hello there"],
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    run.run_forever(timeout=DEADLINE_S)
    assert run.read_stdout() == "hello there\n"
    assert run.returncode == 0
    failed = stream(
        core.connect_get_namespaced_pod_exec,
        pod,
        namespace,
        command=["false"],
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    failed.run_forever(timeout=DEADLINE_S)
    assert failed.returncode != 0


def test_logs_of_a_missing_pod_and_a_missing_container(core: Any, namespace: str, pod: str) -> None:
    assert code(core.read_namespaced_pod_log, "none", namespace) == 404
    assert code(core.read_namespaced_pod_log, pod, namespace, container="none") == 400
    assert core.read_namespaced_pod_log(pod, namespace) == ""


# -- kubectl -----------------------------------------------------------------------------------------------------------
def kubectl_program() -> str | None:
    beside = Path(sys.executable).with_name("kubectl")
    return str(beside) if beside.exists() else shutil.which("kubectl")


@pytest.fixture
def kubectl(kubeconfig: Path, tmp_path: Path) -> Callable[..., str]:
    program = kubectl_program()
    if program is None:
        pytest.skip("no kubectl")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def run(*args: str, stdin: str = "", status: int = 0) -> str:
        command = [program, "--kubeconfig", str(kubeconfig), *args]
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, timeout=DEADLINE_S, env=environment, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stdout

    return run


MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: "busybox:1.36", command: [sleep, "600"]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""


def test_kubectl_applies_shows_and_deletes(kubectl: Callable[..., str], namespace: str) -> None:
    where = ("-n", namespace)
    created = kubectl("apply", *where, "-f", "-", stdin=MANIFEST)
    assert created == "deployment.apps/web created\nservice/web created\n"
    assert kubectl("apply", *where, "-f", "-", stdin=MANIFEST).count("unchanged") == 2
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/web", *where, "--timeout=30s")
    header, row = kubectl("get", "deploy", *where).splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row.split()[:4] == ["web", "1/1", "1", "1"]
    assert "NODE" in kubectl("get", "pods", *where, "-o", "wide").splitlines()[0]
    changed = MANIFEST.replace("replicas: 1", "replicas: 2")
    assert "+  replicas: 2" in kubectl("diff", *where, "-f", "-", stdin=changed, status=1)
    assert kubectl("apply", *where, "-f", "-", stdin=changed).splitlines()[0] == "deployment.apps/web configured"
    kubectl("wait", "--for=condition=Available", "deploy/web", *where, "--timeout=30s")
    assert "Replicas:" in kubectl("describe", "deploy", "web", *where)
    kubectl("apply", "--server-side", *where, "-f", "-", stdin=changed)
    assert kubectl("delete", "deploy,svc", "web", *where, "--timeout=30s").count("deleted") == 2


GENERATED = {
    "deployment": "deployment one --image=busybox:1.36 --replicas=0 --port=80",
    "configmap": "configmap one --from-literal=text=ü --from-file=bytes=/bin/sh",
    "secret": "secret generic one --from-literal=key=value",
    "job": "job one --image=busybox:1.36 -- true",
    "cronjob": "cronjob one --image=busybox:1.36 --schedule=@hourly -- date",
    "poddisruptionbudget": "pdb one --selector=app=web --min-available=50%",
    "resourcequota": "quota one --hard=pods=10,requests.memory=1Gi",
    "role": "role one --verb=get,list --resource=pods,deployments.apps",
    "rolebinding": "rolebinding one --clusterrole=view --serviceaccount=default:default",
    "ingress": "ingress one --rule=a.example/p*=web:80,tls=t",
    "service": "service nodeport one --tcp=80:8080 --node-port=0",
    "serviceaccount": "serviceaccount one",
}


@pytest.mark.parametrize("kind", GENERATED)
def test_kubectl_creates_by_protobuf_what_it_creates_by_json(
    kubectl: Callable[..., str], namespace: str, kind: str
) -> None:
    """Since 1.37 ``kubectl create KIND`` speaks protobuf, and ``create -f`` JSON: the same object must come out."""
    words = GENERATED[kind].split()
    where = ("-n", namespace)
    as_json = json.loads(kubectl("create", *where, "--dry-run=client", "-o", "json", *words))
    kubectl("create", *where, *words)
    as_json["metadata"]["name"] = "two"
    kubectl("create", *where, "-f", "-", stdin=json.dumps(as_json))
    by_protobuf, by_json = (
        comparable(json.loads(kubectl("get", *where, kind, n, "-o", "json"))) for n in ("one", "two")
    )
    assert by_protobuf == by_json


def comparable(made: Obj) -> Obj:
    """An object without what every object gets of its own."""
    spec = made.get("spec", {})
    for own in ("clusterIP", "clusterIPs", "selector" if made["kind"] == "Job" else ""):
        spec.pop(own, None)
    for port in spec.get("ports", []):
        port.pop("nodePort")
    if made["kind"] == "Job":
        spec["template"].pop("metadata")
    return {key: value for key, value in made.items() if key not in ("metadata", "status")}


def test_kubectl_explains_and_validates(kubectl: Callable[..., str], namespace: str) -> None:
    assert "FIELD: replicas <integer>" in kubectl("explain", "deployment.spec.replicas")
    kubectl("apply", "-n", namespace, "-f", "-", stdin=MANIFEST.replace("replicas", "replica"), status=1)
    assert kubectl("get", "deploy", "-n", namespace, "-o", "name") == ""


def test_kubectl_prints_custom_columns(kubectl: Callable[..., str], widgets: str, namespace: str) -> None:
    kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(widget(widgets, "a", size=3)))
    header, row = kubectl("get", f"widgets.{widgets}", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "SIZE", "PHASE"]
    assert row.split()[:2] == ["a", "3"]
