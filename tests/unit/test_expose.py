"""060: cloudflared with its token, in order and never in the plan; or Traefik; or nothing."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeKube, make_params

from hybridlab.errors import BadInput, DeadlineExceeded
from hybridlab.plan import Plan, Step
from hybridlab.stages import expose
from hybridlab.stages.expose import Seen, wanted_objects
from hybridlab.stages.objects import Differences

MISSING = Differences({"Namespace/cloudflared": ("",), "Deployment/cloudflared/cloudflared": ("",)})
GOOD = Seen(Differences(), "hash", "hash")


def plan(seen: Seen, **changes: Any) -> Plan:
    return expose.plan(make_params(changes), seen, {})


def test_from_nothing_the_token_comes_between_namespace_and_deployment() -> None:
    made = plan(Seen(MISSING, "hash"))
    assert [(s.id, s.effect) for s in made.steps] == [
        ("apply:Namespace/cloudflared", "create"),
        ("put-token", "create"),
        ("apply:Deployment/cloudflared/cloudflared", "create"),
    ]
    assert made.steps[1].args == {"sha256": "hash"}
    assert all(s.action in expose.ACTIONS for s in made.steps)
    assert made.steps[1].why == "the cluster has none yet"
    assert made.findings == ()


def test_what_is_there_needs_nothing() -> None:
    assert plan(GOOD).steps == ()


def test_a_changed_token_is_a_change() -> None:
    made = plan(replace(GOOD, live_hash="older"))
    assert [(s.id, s.effect, s.why) for s in made.steps] == [("put-token", "change", "the token changed")]


def test_a_changed_replica_count_is_a_change() -> None:
    made = plan(replace(GOOD, objects=Differences({"Deployment/cloudflared/cloudflared": ("spec.replicas",)})))
    assert [(s.id, s.effect) for s in made.steps] == [("apply:Deployment/cloudflared/cloudflared", "change")]


def test_no_token_is_refused_with_where_to_get_one() -> None:
    made = plan(Seen(MISSING), **{"expose.token_env": "MY_TOKEN"})
    assert [(f.level, f.subject) for f in made.findings] == [("refusal", "tunnel token")]
    assert "set MY_TOKEN, or expose.token_file" in made.findings[0].next_move


def test_traefik() -> None:
    made = plan(Seen(), **{"expose.method": "traefik"})
    assert [s.id for s in made.steps] == ["await-traefik"]
    assert [f.level for f in made.findings] == ["note"]
    assert plan(Seen(traefik=True), **{"expose.method": "traefik"}).steps == ()


def test_none() -> None:
    made = plan(Seen(), **{"expose.method": "none"})
    assert (made.steps, [f.level for f in made.findings]) == ((), ["note"])
    assert made.expected == {"method": "none"}


def test_objects() -> None:
    namespace, deployment = wanted_objects(make_params({"expose.replicas": 3, "expose.image": "mirror/cf:1"}))
    assert namespace["metadata"]["name"] == "cloudflared"
    spec = deployment["spec"]
    assert spec["replicas"] == 3
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "mirror/cf:1"
    assert container["env"] == [
        {"name": "TUNNEL_TOKEN", "valueFrom": {"secretKeyRef": {"name": "tunnel-token", "key": "token"}}}
    ]
    assert "run" in container["args"]
    assert not any("token" in a.lower() for a in container["args"])
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    spread = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]
    assert spread["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert wanted_objects(make_params({"expose.method": "traefik"})) == ()


def test_put_token_and_look_again(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=FakeKube())
    before = expose.look(ctx)
    assert before.live_hash == ""
    assert before.token_hash
    assert "tunnel-token-value" not in str(expose.plan(ctx.params, before, {}))
    expose.ACTIONS["put-token"](ctx, Step("put-token", "put-token", "", "", "create"))
    secret = ctx.kube.get("v1", "Secret", "tunnel-token", "cloudflared")
    assert base64.b64decode(secret["data"]["token"]) == b"tunnel-token-value"
    assert "tunnel-token-value" in ctx.secrets.values()  # so that it is redacted from now on
    after = expose.look(ctx)
    assert after.live_hash == after.token_hash
    ctx.site.token = "another"
    assert expose.look(ctx).token_hash != after.token_hash


def test_put_token_without_one(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=FakeKube())
    ctx.site.token = None
    with pytest.raises(BadInput):
        expose.ACTIONS["put-token"](ctx, Step("put-token", "put-token", "", "", "create"))
    assert ctx.kube.objects == {}


def test_look_before_there_is_a_cluster(tmp_path: Path) -> None:
    seen = expose.look(FakeContext(tmp_path))
    assert (seen.live_hash, seen.traefik) == ("", False)
    assert set(seen.objects.paths) == {"Namespace/cloudflared", "Deployment/cloudflared/cloudflared"}


@pytest.mark.parametrize(
    ("method", "name", "ns"), [("cloudflare", "cloudflared", "cloudflared"), ("traefik", "traefik", "kube-system")]
)
def test_verify_waits_for_the_pods(tmp_path: Path, method: str, name: str, ns: str) -> None:
    status = {"updatedReplicas": 2, "availableReplicas": 1}
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"replicas": 2},
        "status": status,
    }
    kube = FakeKube(deployment)
    ctx = FakeContext(tmp_path, make_params({"expose.method": method}), kube=kube)
    with pytest.raises(DeadlineExceeded, match="1 of 2 pods available"):
        expose.verify(ctx)
    kube.objects["Deployment", ns, name]["status"]["availableReplicas"] = 2
    assert [(c.name, c.ok) for c in expose.verify(ctx)] == [(name, True)]


def test_verify_with_no_way_in(tmp_path: Path) -> None:
    assert expose.verify(FakeContext(tmp_path, make_params({"expose.method": "none"}))) == ()
