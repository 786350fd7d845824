"""Patches, server-side apply, selectors, schemas and tables of the lab's API server, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from typing import Any

import pytest

from hybridlab.lab.kube import apply, crd_schema, patches, schema_build
from hybridlab.lab.kube.api import only_reads
from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.resources import BUILT_IN
from hybridlab.lab.kube.schema import ANY, built_in_shape, custom_shape
from hybridlab.lab.kube.selectors import field_test, label_test, matches
from hybridlab.lab.kube.tables import age, duration, json_path, pod_status
from hybridlab.lab.kube.validation.pods import amount

Obj = dict[str, Any]
POD_SPEC = built_in_shape("V1PodSpec")
DEPLOYMENT = built_in_shape("V1Deployment")


def test_the_schema_file_is_what_the_client_says() -> None:
    kept = files("hybridlab.data").joinpath("kube-schema.json").read_text(encoding="utf-8")
    assert kept == schema_build.text(), "run python -m hybridlab.lab.kube.schema_build"


# -- patches -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(  # the table of RFC 7386, appendix A
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert patches.merge(target, patch) == result


@pytest.mark.parametrize(
    ("document", "operation", "result"),
    [
        ({"a": [1, 3]}, {"op": "add", "path": "/a/1", "value": 2}, {"a": [1, 2, 3]}),
        ({"a": [1]}, {"op": "add", "path": "/a/-", "value": 2}, {"a": [1, 2]}),
        ({"a/b": {"~": 1}}, {"op": "replace", "path": "/a~1b/~0", "value": 2}, {"a/b": {"~": 2}}),
        ({"a": {"b": 1}}, {"op": "move", "from": "/a/b", "path": "/c"}, {"a": {}, "c": 1}),
        ({"a": [1]}, {"op": "copy", "from": "/a", "path": "/b"}, {"a": [1], "b": [1]}),
        ({"a": 1, "b": 2}, {"op": "remove", "path": "/a"}, {"b": 2}),
    ],
)
def test_json_patch(document: Obj, operation: Obj, result: Obj) -> None:
    assert patches.json_patch(document, [operation]) == result


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/none"},
        {"op": "replace", "path": "/none", "value": 1},
        {"op": "test", "path": "/a", "value": 2},
        {"op": "add", "path": "/a/b/c", "value": 1},
        {"op": "add", "path": "/list/5", "value": 1},
    ],
)
def test_json_patches_that_fail_change_nothing(operation: Obj) -> None:
    document = {"a": 1, "list": []}
    with pytest.raises(ApiError) as caught:
        patches.json_patch(document, [{"op": "add", "path": "/b", "value": 1}, operation])
    assert caught.value.status == 422
    assert document == {"a": 1, "list": []}


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        (
            {"containers": [{"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}]}]},
            {"containers": [{"name": "a", "env": [{"name": "L", "value": "2"}]}, {"name": "b", "image": "y"}]},
            {
                "containers": [
                    {"name": "a", "image": "x", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]},
                    {"name": "b", "image": "y"},
                ]
            },
        ),
        (
            {"containers": [{"name": "a"}, {"name": "b"}]},
            {"containers": [{"$patch": "delete", "name": "a"}]},
            {"containers": [{"name": "b"}]},
        ),
        (
            {"containers": [{"name": "a"}]},
            {"containers": [{"$patch": "replace"}, {"name": "z"}]},
            {"containers": [{"name": "z"}]},
        ),
        (
            {"containers": [{"name": "a"}, {"name": "b"}]},
            {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "tty": True}]},
            {"containers": [{"name": "b", "tty": True}, {"name": "a"}]},
        ),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}, {"tolerations": [{"key": "b"}]}),
        (
            {"volumes": [{"name": "v", "emptyDir": {}}]},
            {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]},
            {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]},
        ),
        ({"nodeSelector": {"a": "1", "b": "2"}}, {"nodeSelector": {"a": None}}, {"nodeSelector": {"b": "2"}}),
    ],
)
def test_strategic_merge_patch(target: Obj, patch: Obj, result: Obj) -> None:
    assert patches.strategic(target, patch, POD_SPEC) == result


def test_finalizers_merge_as_a_set() -> None:
    shape = built_in_shape("V1ObjectMeta")
    both = patches.strategic({"finalizers": ["a"]}, {"finalizers": ["a", "b"]}, shape)
    assert both == {"finalizers": ["a", "b"]}
    left = patches.strategic(both, {"$deleteFromPrimitiveList/finalizers": ["a"]}, shape)
    assert left == {"finalizers": ["b"]}


# -- server-side apply -------------------------------------------------------------------------------------------------
def web(*containers: Obj, **spec: Any) -> Obj:
    template = {"spec": {"containers": list(containers)}}
    body = {"template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": body}


def put(live: Obj | None, config: Obj, manager: str, *, force: bool = False) -> Obj:
    return apply.server_side(live, config, manager, DEPLOYMENT, force=force, subresource="", has_status=True)


def test_two_appliers_share_a_list_of_containers() -> None:
    first = put(None, web({"name": "a", "image": "x"}), "one")
    both = put(first, web({"name": "b", "image": "y"}), "two")
    assert [c["name"] for c in both["spec"]["template"]["spec"]["containers"]] == ["b", "a"]
    left = put(both, web(), "two")
    assert [c["name"] for c in left["spec"]["template"]["spec"]["containers"]] == ["a"]


def test_a_conflict_names_the_item_of_the_list() -> None:
    first = put(None, web({"name": "a", "image": "x"}), "one")
    with pytest.raises(ApiError) as caught:
        put(first, web({"name": "a", "image": "y"}), "two")
    where = '.spec.template.spec.containers[name="a"].image'
    assert caught.value.message == f'Apply failed with 1 conflict: conflict with "one": {where}'
    forced = put(first, web({"name": "a", "image": "y"}), "two", force=True)
    assert forced["spec"]["template"]["spec"]["containers"] == [{"name": "a", "image": "y"}]
    with pytest.raises(ApiError):
        put(forced, web({"name": "a", "image": "x"}), "one")


def test_agreeing_is_no_conflict_and_owning_together() -> None:
    first = put(None, web(replicas=2), "one")
    both = put(first, web(replicas=2), "two")
    assert put(both, web(), "one")["spec"]["replicas"] == 2
    assert "replicas" not in put(put(both, web(), "one"), web(), "two")["spec"]


def test_a_selector_is_owned_as_a_whole() -> None:
    first = put(None, web(selector={"matchLabels": {"a": "1"}}), "one")
    fields = first["metadata"]["managedFields"][0]["fieldsV1"]
    assert fields["f:spec"]["f:selector"] == {}


def test_an_ordinary_write_takes_what_it_changes() -> None:
    live = put(None, web({"name": "a", "image": "x"}, replicas=2), "one")
    changed = web({"name": "a", "image": "y"}, replicas=2)
    apply.track(live, changed, "editor", DEPLOYMENT, "", has_status=True)
    changed["metadata"].setdefault("managedFields", [])
    owners = {row["manager"]: row["fieldsV1"] for row in changed["metadata"]["managedFields"]}
    assert "editor" in owners
    item = owners["editor"]["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"a"}']
    assert item["f:image"] == {}


# -- selectors ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ("", True),
        ("app=web", True),
        ("app==web,tier!=db", True),
        ("app!=web", False),
        ("app in (api, web)", True),
        ("app notin (web)", False),
        ("missing notin (x)", True),
        ("app,!missing", True),
        ("missing", False),
        ("n>3", True),
        ("n<3", False),
    ],
)
def test_label_selectors(selector: str, fits: bool) -> None:
    assert label_test(selector)({"app": "web", "tier": "front", "n": "4"}) is fits


def test_label_selectors_that_are_none() -> None:
    with pytest.raises(ApiError) as caught:
        label_test("a b c")
    assert caught.value.status == 400


def test_field_selectors_know_each_kinds_fields() -> None:
    pods = next(r for r in BUILT_IN if r.plural == "pods")
    pod: Obj = {"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}}
    assert field_test("spec.nodeName=n1,status.phase!=Failed", pods)(pod)
    assert not field_test("spec.nodeName=", pods)(pod)
    with pytest.raises(ApiError, match=r"field label not supported: spec\.image"):
        field_test("spec.image=x", pods)


def test_selector_objects() -> None:
    assert not matches(None, {"a": "1"})
    assert matches({}, {"a": "1"})
    expression = {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["2"]}]}
    assert matches(expression, {"a": "1"})
    assert matches(expression, {})
    assert not matches(expression, {"a": "2"})


# -- custom resources --------------------------------------------------------------------------------------------------
SCHEMA: Obj = {
    "type": "object",
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "count": {"x-kubernetes-int-or-string": True},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "rows": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "on": {"type": "boolean", "default": True}},
                    },
                },
            },
        }
    },
}


def test_pruning_keeps_what_is_known_or_wanted() -> None:
    unknown: list[str] = []
    obj = {
        "kind": "K",
        "metadata": {"name": "a"},
        "spec": {"free": {"x": 1}, "map": {"k": "v"}, "rows": [{"name": "r", "odd": 1}], "odd": 1},
    }
    assert crd_schema.prune(obj, SCHEMA, "", unknown) == {
        "kind": "K",
        "metadata": {"name": "a"},
        "spec": {"free": {"x": 1}, "map": {"k": "v"}, "rows": [{"name": "r"}]},
    }
    assert sorted(unknown) == ["spec.odd", "spec.rows[0].odd"]


def test_defaults_reach_into_lists() -> None:
    obj: Obj = {"spec": {"rows": [{"name": "a"}, {"name": "b", "on": False}]}}
    crd_schema.fill(obj, SCHEMA)
    assert [row["on"] for row in obj["spec"]["rows"]] == [True, False]


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        ({"count": "50%", "map": {"a": "b"}}, []),
        ({"count": 5}, []),
        ({"count": True}, ['spec.count: Invalid value: "boolean": must be an integer or a string']),
        ({"map": {"a": 1}}, ['spec.map.a in body must be of type string: "integer"']),
        ({"rows": {}}, ['spec.rows in body must be of type array: "object"']),
        ({"rows": [{"name": 1}, {"on": "x"}]}, ["spec.rows[0].name in body", "spec.rows[1].on in body"]),
    ],
)
def test_checking(spec: Obj, texts: list[str]) -> None:
    causes = [str(cause) for cause in crd_schema.check({"spec": spec}, SCHEMA)]
    assert len(causes) == len(texts)
    for cause, text in zip(causes, texts, strict=True):
        assert text in cause


def test_immutable_fields_of_custom_resources() -> None:
    rule = {"rule": "self == oldSelf", "message": "fixed"}
    schema = {"properties": {"spec": {"properties": {"driver": {"x-kubernetes-validations": [rule]}}}}}
    old = {"spec": {"driver": "helm"}}
    causes = crd_schema.check_change({"spec": {"driver": "other"}}, old, schema)
    assert [str(cause) for cause in causes] == ['spec.driver: Invalid value: "other": fixed']
    assert crd_schema.check_change({"spec": {"driver": "helm"}}, old, schema) == []
    assert crd_schema.check_change({"spec": {"driver": "any"}}, {"spec": {}}, schema) == []
    assert crd_schema.unknown_rules(schema) == []
    assert crd_schema.unknown_rules({"x-kubernetes-validations": [{"rule": "self > 1"}]}) == ["self > 1"]


def test_shapes_of_custom_resources() -> None:
    rows = custom_shape(SCHEMA).child("spec").child("rows")
    assert rows.keys == ("name",)
    assert custom_shape(SCHEMA).child("metadata").child("finalizers").is_set
    assert custom_shape(SCHEMA).child("other") is ANY


# -- printing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (3599, "59m"),
        (10799, "179m"),
        (10800, "3h"),
        (11520, "3h12m"),
        (100000, "27h"),
        (172800, "2d"),
        (180000, "2d2h"),
        (864000, "10d"),
    ],
)
def test_ages_read_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_age_of_a_timestamp() -> None:
    then = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert age(then).startswith("5m")
    assert age(None) == "<unknown>"


def container(state: Obj, *, ready: bool = False, restarts: int = 0) -> Obj:
    return {"name": "c", "state": state, "ready": ready, "restartCount": restarts}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({"phase": "Pending"}, ("0/1", "Pending", "0")),
        (
            {"phase": "Running", "containerStatuses": [container({"running": {}}, ready=True)]},
            ("1/1", "Running", "0"),
        ),
        (
            {
                "phase": "Running",
                "containerStatuses": [container({"waiting": {"reason": "CrashLoopBackOff"}}, restarts=3)],
            },
            ("0/1", "CrashLoopBackOff", "3"),
        ),
        (
            {
                "phase": "Succeeded",
                "containerStatuses": [container({"terminated": {"reason": "Completed", "exitCode": 0}})],
            },
            ("0/1", "Completed", "0"),
        ),
        (
            {"phase": "Pending", "initContainerStatuses": [container({"running": {}})]},
            ("0/1", "Init:0/1", "0"),
        ),
    ],
)
def test_what_kubectl_says_of_a_pod(status: Obj, shown: tuple[str, str, str]) -> None:
    spec = {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]}
    assert pod_status({"metadata": {}, "spec": spec, "status": status}) == shown


def test_printer_columns_find_their_values() -> None:
    obj = {"spec": {"a.b": 1, "rows": [{"type": "X", "v": 1}, {"type": "Ready", "v": 2}]}}
    assert json_path(obj, '.spec.rows[?(@.type=="Ready")].v') == 2
    assert json_path(obj, ".spec.rows[1].type") == "Ready"
    assert json_path(obj, ".spec.none.v") is None
    assert json_path(obj, ".spec.a\\.b") == 1


@pytest.mark.parametrize(
    ("text", "value"), [("500m", "0.5"), ("1Gi", "1073741824"), ("1.5k", "1500"), ("1e3", "1000"), ("2", "2")]
)
def test_quantities(text: str, value: str) -> None:
    assert amount(text) == Decimal(value)


@pytest.mark.parametrize(
    ("argv", "reads"),
    [
        ("sha256sum /data/a", True),
        ("tar -cf - -C /data .", True),
        ("tar -xf - -C /data", False),
        ("/bin/cat /data/a", True),
        ("find /data -type f", True),
        ("find /data -delete", False),
        ("rm -r /data", False),
        ("sh -c ls", False),
        ("", False),
    ],
)
def test_commands_that_only_read_are_no_changes(argv: str, reads: bool) -> None:
    assert only_reads(argv.split()) is reads
