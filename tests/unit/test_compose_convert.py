"""From compose to manifests: what a user would notice in the result."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from compose_kit import GI, MULTI, NODES, container, converted, find, image, pod, project, verdict, workload

from hybridlab.compose import Options, convert, references
from hybridlab.errors import BadInput
from hybridlab.models import NodeCapacity

WEB_AND_DB = """
services:
  web:
    image: app:1
    environment: {DB_URL: "postgres://me@db:5432/x", DB_PASS: geheim, MODE: prod}
    ports: [{target: 80, published: "8080", protocol: tcp, mode: ingress}]
    depends_on: {db: {condition: service_healthy, required: true}}
  db:
    image: postgres:16
    volumes: [{type: volume, source: data, target: /var/lib/postgresql/data, volume: {}}]
    healthcheck: {test: [CMD-SHELL, "pg_isready -U $$USER"]}
volumes: {data: {name: demo_data}}
"""


def service_ports(made: Any, name: str) -> list[tuple[int, int, str]]:
    rows = find(made, "Service", name)["spec"].get("ports", [])
    return [(row["port"], row["targetPort"], row["protocol"]) for row in rows]


# -- services -----------------------------------------------------------------------------------------------------
def test_a_service_named_by_another_gets_a_service_with_the_port_that_was_said() -> None:
    made = converted(WEB_AND_DB)
    assert service_ports(made, "db") == [(5432, 5432, "TCP")]
    assert (
        find(made, "Service", "db")["spec"]["selector"]
        == find(made, "StatefulSet", "db")["spec"]["selector"]["matchLabels"]
    )


def test_a_host_and_port_pair_of_variables_gives_the_port_away() -> None:
    made = converted(
        "services: {a: {image: x, environment: {REDIS_HOST: cache, REDIS_PORT: '6380'}}, cache: {image: y}}"
    )
    assert service_ports(made, "cache") == [(6380, 6380, "TCP")]


def test_the_images_exposed_ports_are_used() -> None:
    info = image("linux/amd64", exposed_ports=("9000/tcp", "9001/udp"))
    made = converted(
        "services: {a: {image: x, depends_on: {b: {condition: service_started}}}, b: {image: y}}", {"y": info}
    )
    assert service_ports(made, "b") == [(9000, 9000, "TCP"), (9001, 9001, "UDP")]


def test_a_name_without_any_known_port_gets_a_headless_service() -> None:
    made = converted("services: {a: {image: x, command: [run, --peer, b]}, b: {image: y}}")
    spec = find(made, "Service", "b")["spec"]
    assert spec["clusterIP"] == "None"
    assert "ports" not in spec


def test_published_ports_become_a_load_balancer_and_loopback_ones_do_not() -> None:
    made = converted(
        """
services:
  a:
    image: x
    ports:
      - {target: 80, published: "8080", protocol: tcp}
      - {target: 53, published: "53", protocol: udp}
      - {target: 9090, published: "9090", protocol: tcp, host_ip: 127.0.0.1}
"""
    )
    assert service_ports(made, "a-public") == [(8080, 80, "TCP"), (53, 53, "UDP")]
    assert find(made, "Service", "a-public")["spec"]["type"] == "LoadBalancer"
    assert find(made, "Service", "a")["spec"]["type"] == "ClusterIP"
    assert (9090, 9090, "TCP") in service_ports(made, "a")
    assert (8080, 80, "TCP") in service_ports(made, "a")
    assert "ClusterIP" in verdict(made, "a", "ports.9090:9090/tcp")[1]


def test_publishing_inside_only_is_a_choice() -> None:
    made = converted(WEB_AND_DB, options=Options(publish="cluster-ip"))
    assert all(obj["spec"]["type"] == "ClusterIP" for obj in made.of_kind("Service"))
    assert verdict(made, "web", "ports.8080:80/tcp")[0] == "approximated"


def test_two_services_with_one_outer_port_keep_one_and_say_so() -> None:
    port = '{target: 80, published: "80", protocol: tcp}'
    made = converted(f"services: {{a: {{image: x, ports: [{port}]}}, b: {{image: y, ports: [{port}]}}}}")
    balanced = [o["metadata"]["name"] for o in made.of_kind("Service") if o["spec"]["type"] == "LoadBalancer"]
    assert balanced == ["a-public"]
    state, note = verdict(made, "b", "ports.80:80/tcp")
    assert state == "approximated"
    assert "a publishes the same port" in note


@pytest.mark.parametrize(
    "snippet",
    [
        "container_name: other",
        "hostname: other",
        "networks: {default: {aliases: [other]}}",
    ],
)
def test_every_other_name_of_a_service_is_a_service_too(snippet: str) -> None:
    made = converted(
        f"services: {{a: {{image: x, environment: {{B_HOST: other}}}}, b: {{image: y, expose: ['80'], {snippet}}}}}"
    )
    assert service_ports(made, "other") == [(80, 80, "TCP")]
    assert find(made, "Service", "other")["spec"]["selector"] == find(made, "Service", "b")["spec"]["selector"]


def test_links_give_aliases_and_a_shared_alias_reaches_all() -> None:
    made = converted(
        """
services:
  a: {image: x, links: ["b:database"]}
  b: {image: y, expose: ["1"], networks: {default: {aliases: [pool]}}}
  c: {image: y, expose: ["1"], networks: {default: {aliases: [pool]}}}
"""
    )
    assert find(made, "Service", "database")["spec"]["selector"] == find(made, "Service", "b")["spec"]["selector"]
    wanted = find(made, "Service", "pool")["spec"]["selector"].items()
    labels = {name: workload(made, name)["spec"]["template"]["metadata"]["labels"].items() for name in "abc"}
    assert wanted <= labels["b"]
    assert wanted <= labels["c"]
    assert not wanted <= labels["a"]


def test_a_dotted_name_that_is_called_is_refused_with_the_line_for_coredns() -> None:
    made = converted(
        "services: {a: {image: x, command: [xmpp.meet]}, b: {image: y, networks: {default: {aliases: [xmpp.meet]}}}}",
        options=Options(namespace="talk"),
    )
    state, note = verdict(made, "b", "networks.aliases")
    assert state == "refused"
    assert "rewrite name xmpp.meet b.talk.svc.cluster.local" in note


def test_a_name_that_dns_cannot_carry_is_renamed_everywhere() -> None:
    made = converted(
        "services: {my_db: {image: x, expose: ['1']},"
        " web: {image: y, command: [--db, 'my_db:5432'], environment: {DB_HOST: my_db}}}"
    )
    assert find(made, "Service", "my-db")
    assert container(made, "web")["args"] == ["--db", "my-db:5432"]
    assert find(made, "ConfigMap", "web-env")["data"] == {"DB_HOST": "my-db"}


# -- environment ---------------------------------------------------------------------------------------------------
def test_secrets_and_settings_part_ways() -> None:
    made = converted(WEB_AND_DB)
    assert find(made, "ConfigMap", "web-env")["data"] == {"DB_URL": "postgres://me@db:5432/x", "MODE": "prod"}
    assert base64.b64decode(find(made, "Secret", "web-env")["data"]["DB_PASS"]) == b"geheim"
    assert container(made, "web")["envFrom"] == [
        {"configMapRef": {"name": "web-env"}},
        {"secretRef": {"name": "web-env"}},
    ]


def test_what_kubelet_would_expand_is_escaped_in_commands_only() -> None:
    made = converted("services: {a: {image: x, command: [sh, -c, 'echo $$(date) $$X'], environment: {V: '$$(HOME)'}}}")
    assert container(made, "a")["args"] == ["sh", "-c", "echo $$(date) $X"]
    assert find(made, "ConfigMap", "a-env")["data"]["V"] == "$(HOME)"


def test_unset_variables_are_left_out_and_reported() -> None:
    made = converted("services: {a: {image: x, environment: {A: null, B: b}}}")
    assert find(made, "ConfigMap", "a-env")["data"] == {"B": "b"}
    assert verdict(made, "a", "environment")[0] == "approximated"


def test_service_links_are_off() -> None:
    assert pod(converted(WEB_AND_DB), "web")["enableServiceLinks"] is False


# -- commands --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "command", "args"),
    [
        ("command: [a, b]", None, ["a", "b"]),
        ("entrypoint: [e]", ["e"], None),
        ("{entrypoint: [e], command: [c]}", ["e"], ["c"]),
        ("{entrypoint: null, command: null}", None, None),
        ("{entrypoint: [], command: [c]}", ["c"], None),
        ("{entrypoint: []}", ["image-cmd"], None),
        ("{command: []}", ["image-entry"], None),
    ],
)
def test_command_replaces_cmd_and_entrypoint_replaces_entrypoint(given: str, command: object, args: object) -> None:
    info = image("linux/amd64", entrypoint=("image-entry",), cmd=("image-cmd",))
    fields = given.strip("{}") if given.startswith("{") else given
    made = container(converted(f"services: {{a: {{image: x, {fields}}}}}", {"x": info}), "a")
    assert made.get("command") == command
    assert made.get("args") == args


# -- kinds ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("snippet", "kind", "restart", "retries"),
    [
        ("{image: x}", "Deployment", "Always", None),
        ("{image: x, restart: unless-stopped}", "Deployment", "Always", None),
        ("{image: x, restart: 'no'}", "Job", "Never", 0),
        ("{image: x, restart: 'on-failure:3'}", "Job", "OnFailure", 3),
        ("{image: x, restart: on-failure}", "Job", "OnFailure", 2147483647),
        ("{image: x, restart: 'no', expose: ['80']}", "Deployment", "Always", None),
        ("{image: x, deploy: {mode: global}}", "DaemonSet", "Always", None),
        (
            "{image: x, volumes: [{type: bind, source: /proc, target: /host/proc, read_only: true}]}",
            "DaemonSet",
            "Always",
            None,
        ),
        ("{image: 'postgres:16', volumes: [{type: volume, source: v, target: /d}]}", "StatefulSet", "Always", None),
        ("{image: x, volumes: [{type: volume, source: v, target: /d}]}", "Deployment", "Always", None),
    ],
)
def test_the_kind_of_workload(snippet: str, kind: str, restart: str, retries: int | None) -> None:
    made = workload(converted(f"services: {{a: {snippet}}}\nvolumes: {{v: {{name: demo_v}}}}"), "a")
    assert made["kind"] == kind
    assert made["spec"]["template"]["spec"]["restartPolicy"] == restart
    assert made["spec"].get("backoffLimit") == retries


def test_a_deployment_with_a_claim_never_runs_twice() -> None:
    made = converted("services: {a: {image: x, volumes: [{type: volume, source: v, target: /d}]}}\nvolumes: {v: {}}")
    assert workload(made, "a")["spec"]["strategy"] == {"type": "Recreate"}


def test_what_others_wait_for_to_complete_is_a_job_and_they_wait_for_it() -> None:
    made = converted(
        "services: {web: {image: x, depends_on: {init: {condition: service_completed_successfully}}}, init: {image: y}}"
    )
    assert workload(made, "init")["kind"] == "Job"
    waiting = pod(made, "web")
    assert waiting["initContainers"][0]["command"][:4] == ["kubectl", "wait", "--for=condition=complete", "job/init"]
    assert waiting["serviceAccountName"] == find(made, "ServiceAccount", "hybridlab-job-reader")["metadata"]["name"]
    assert find(made, "Role", "hybridlab-job-reader")["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch"]}
    ]


def test_service_healthy_waits_for_the_port_and_gives_up_in_time() -> None:
    made = converted(WEB_AND_DB)
    script = pod(made, "web")["initContainers"][0]["command"][-1]
    assert "nc -z -w 2 db 5432" in script
    assert "exit 1" in script
    assert "initContainers" not in pod(made, "db")
    assert verdict(made, "web", "depends_on.db")[0] == "mapped"


def test_service_started_does_not_wait() -> None:
    made = converted("services: {a: {image: x, depends_on: {b: {condition: service_started}}}, b: {image: y}}")
    assert "initContainers" not in pod(made, "a")
    assert verdict(made, "a", "depends_on.b")[0] == "approximated"


def test_a_job_that_is_only_started_before_is_not_waited_for() -> None:
    made = converted(
        """
services:
  a: {image: x, depends_on: {once: {condition: service_started, restart: true}}}
  once: {image: y, restart: "no"}
"""
    )
    assert workload(made, "once")["kind"] == "Job"
    assert "initContainers" not in pod(made, "a")
    assert pod(made, "a")["automountServiceAccountToken"] is False
    assert made.of_kind("Role") == ()
    assert "restart with it" in verdict(made, "a", "depends_on.once")[1]


@pytest.mark.parametrize(
    ("order", "rolling"),
    [("stop-first", {"maxSurge": 0, "maxUnavailable": 3}), ("start-first", {"maxSurge": 3, "maxUnavailable": 0})],
)
def test_rolling_updates(order: str, rolling: dict[str, int]) -> None:
    config = f"{{parallelism: 3, order: {order}}}"
    made = converted(f"services: {{a: {{image: x, deploy: {{replicas: 4, update_config: {config}}}}}}}")
    assert workload(made, "a")["spec"]["replicas"] == 4
    assert workload(made, "a")["spec"]["strategy"]["rollingUpdate"] == rolling


def test_replicas_that_share_a_claim_stay_on_one_node() -> None:
    made = converted(
        "services: {a: {image: x, scale: 2, volumes: [{type: volume, source: v, target: /v}]}}\nvolumes: {v: {}}"
    )
    assert "podAffinity" in pod(made, "a")["affinity"]


# -- volumes -------------------------------------------------------------------------------------------------------
SHARED = """
services:
  web: {image: app:1, volumes: [{type: bind, source: ./public/system, target: /public, bind: {}}]}
  worker: {image: app:1, volumes: [{type: bind, source: public/system/, target: /data, bind: {}}]}
  alone: {image: app:1, volumes: [{type: bind, source: ./other, target: /data, bind: {}}]}
"""


def test_a_shared_folder_is_one_claim_and_its_sharers_run_together() -> None:
    made = converted(SHARED, {"app:1": MULTI})
    assert [(claim.name, claim.services) for claim in made.claims] == [
        ("public-system", ("web", "worker")),
        ("other", ("alone",)),
    ]
    terms = [
        pod(made, name)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        for name in ("web", "worker")
    ]
    assert terms[0] == terms[1]
    wanted = terms[0][0]["labelSelector"]["matchLabels"].items()
    for name in ("web", "worker"):
        assert wanted <= workload(made, name)["spec"]["template"]["metadata"]["labels"].items()
    assert "podAffinity" not in pod(made, "alone")["affinity"]


def test_a_class_that_can_do_it_makes_the_claim_read_write_many() -> None:
    made = converted(SHARED, {"app:1": MULTI}, options=Options(shared_storage_class="nfs", storage_class="jiva"))
    spec = find(made, "PersistentVolumeClaim", "public-system")["spec"]
    assert (spec["accessModes"], spec["storageClassName"]) == (["ReadWriteMany"], "nfs")
    assert find(made, "PersistentVolumeClaim", "other")["spec"]["storageClassName"] == "jiva"
    assert "podAffinity" not in pod(made, "web")["affinity"]


def test_sharers_are_placed_where_all_of_them_can_run() -> None:
    made = converted(
        SHARED.replace("worker: {image: app:1", "worker: {image: old:1"),
        {"app:1": MULTI, "old:1": image("linux/amd64")},
    )
    assert pod(made, "web")["nodeSelector"] == pod(made, "worker")["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert made.placements["alone"].kind == "prefer"


def test_a_folder_inside_shared_state_is_a_part_of_its_claim() -> None:
    made = converted(
        """
services:
  a: {image: x, volumes: [{type: bind, source: ./data, target: /all}]}
  b: {image: y, volumes: [{type: bind, source: ./data/media, target: /media, read_only: true}]}
"""
    )
    assert [(claim.source, claim.services) for claim in made.claims] == [("./data", ("a", "b"))]
    assert container(made, "b")["volumeMounts"] == [
        {"name": "data", "mountPath": "/media", "subPath": "media", "readOnly": True}
    ]


def test_claims_name_what_fills_them() -> None:
    made = converted(WEB_AND_DB, options=Options(claim_size="2Gi", claim_sizes={"data": "7Gi"}))
    claim = made.claims[0]
    assert (claim.name, claim.kind, claim.source, claim.services, claim.size) == (
        "data",
        "volume",
        "demo_data",
        ("db",),
        "7Gi",
    )
    assert find(made, "PersistentVolumeClaim", "data")["spec"]["resources"]["requests"]["storage"] == "7Gi"


def test_a_config_file_beside_the_compose_file_is_carried_along(tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text("events {}\n")
    (tmp_path / "key.pem").write_text("secret")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    made = converted(
        """
services:
  a:
    image: x
    volumes:
      - {type: bind, source: ./nginx.conf, target: /etc/nginx/nginx.conf, read_only: true}
      - {type: bind, source: ./run.sh, target: /run.sh}
""",
        directory=tmp_path,
    )
    assert find(made, "ConfigMap", "nginx-conf")["data"] == {"nginx.conf": "events {}\n"}
    mounts = {row["mountPath"]: row for row in container(made, "a")["volumeMounts"]}
    assert mounts["/etc/nginx/nginx.conf"]["subPath"] == "nginx.conf"
    script = next(v for v in pod(made, "a")["volumes"] if v["name"] == "run-sh")
    assert script["configMap"]["defaultMode"] == 0o755
    assert not made.claims


def test_a_config_folder_and_binary_files(tmp_path: Path) -> None:
    (tmp_path / "conf" / "sub").mkdir(parents=True)
    (tmp_path / "conf" / "a.conf").write_text("a")
    (tmp_path / "conf" / "sub" / "b.bin").write_bytes(b"\xff\x00")
    made = converted(
        "services: {s: {image: x, volumes: [{type: bind, source: ./conf, target: /c, read_only: true}]}}",
        directory=tmp_path,
    )
    config = find(made, "ConfigMap", "conf")
    assert config["data"] == {"a.conf": "a"}
    assert base64.b64decode(config["binaryData"]["sub__b.bin"]) == b"\xff\x00"
    assert pod(made, "s")["volumes"][0]["configMap"]["items"][1] == {"key": "sub__b.bin", "path": "sub/b.bin"}


def test_a_config_file_that_is_not_here_is_said_to_be_missing() -> None:
    made = converted("services: {s: {image: x, volumes: [{type: bind, source: ./app.yml, target: /app.yml}]}}")
    assert "hybridlab.io/missing" in find(made, "ConfigMap", "app-yml")["metadata"]["annotations"]
    assert verdict(made, "s", "volumes./app.yml")[0] == "approximated"


def test_a_config_larger_than_a_config_map_becomes_a_claim(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b"x" * 1_100_000)
    made = converted(
        "services: {s: {image: x, volumes: [{type: bind, source: ./big.json, target: /b.json}]}}", directory=tmp_path
    )
    assert [claim.source for claim in made.claims] == ["./big.json"]
    assert container(made, "s")["volumeMounts"][0]["subPath"] == "big.json"


def test_the_docker_socket_is_refused_with_the_reason() -> None:
    made = converted(
        "services: {s: {image: x, volumes: [{type: bind, source: /var/run/docker.sock, target: /var/run/docker.sock}]}}"
    )
    state, note = verdict(made, "s", "volumes./var/run/docker.sock")
    assert state == "refused"
    assert "containerd" in note
    assert "volumes" not in pod(made, "s")


def test_memory_and_other_special_volumes() -> None:
    made = converted(
        """
services:
  s:
    image: x
    shm_size: "268435456"
    tmpfs: ["/run:size=16M,mode=1777"]
    volumes:
      - {type: tmpfs, target: /t, tmpfs: {size: "10485760"}}
      - {type: volume, source: share, target: /n}
      - {type: volume, source: outside, target: /b}
volumes:
  share: {driver_opts: {type: nfs, o: "addr=10.0.0.9,rw", device: ":/export"}}
  outside: {driver_opts: {type: none, o: bind, device: /srv/x}}
"""
    )
    by_path = {row["mountPath"]: row["name"] for row in container(made, "s")["volumeMounts"]}
    volumes = {row["name"]: row for row in pod(made, "s")["volumes"]}
    assert volumes[by_path["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
    assert volumes[by_path["/run"]]["emptyDir"]["sizeLimit"] == "16Mi"
    assert volumes[by_path["/t"]]["emptyDir"]["sizeLimit"] == "10Mi"
    assert volumes[by_path["/n"]]["nfs"] == {"server": "10.0.0.9", "path": "/export"}
    assert [(claim.kind, claim.source) for claim in made.claims] == [("bind", "/srv/x")]


def test_volumes_from_mounts_the_same_claims() -> None:
    made = converted(
        "services: {a: {image: x, volumes: [{type: volume, source: v, target: /v}]},"
        " b: {image: y, volumes_from: ['a:ro']}}\nvolumes: {v: {}}"
    )
    assert container(made, "b")["volumeMounts"] == [{"name": "v", "mountPath": "/v", "readOnly": True}]
    assert made.claims[0].services == ("a", "b")


def test_an_empty_claim_is_seeded_from_the_image_where_it_has_a_shell() -> None:
    text = "services: {a: {image: x, volumes: [{type: volume, source: v, target: /var/www}]}}\nvolumes: {v: {}}"
    seeded = converted(text, {"x": image("linux/amd64", entrypoint=("docker-entrypoint.sh",))})
    script = pod(seeded, "a")["initContainers"][0]["command"][-1]
    assert "cp -a /var/www/. /seed/" in script
    assert "initContainers" not in pod(converted(text, {"x": image("linux/amd64", entrypoint=("/app",))}), "a")


def test_configs_and_secrets_of_the_project() -> None:
    made = converted(
        """
services:
  s:
    image: x
    configs: [{source: c, target: /etc/c.conf, mode: "0440"}]
    secrets: [{source: pw, target: /run/secrets/pw}, {source: out, target: /run/secrets/out}]
configs: {c: {name: demo_c, content: "hi $${you}"}}
secrets: {pw: {name: demo_pw, environment: PW}, out: {name: given, external: true}}
"""
    )
    assert find(made, "ConfigMap", "c")["data"] == {"c.conf": "hi ${you}"}
    mounts = {row["mountPath"]: row for row in container(made, "s")["volumeMounts"]}
    assert mounts["/etc/c.conf"]["subPath"] == "c.conf"
    assert {v["name"]: v for v in pod(made, "s")["volumes"]}["c"]["configMap"]["defaultMode"] == 0o440
    assert [o["metadata"]["name"] for o in made.of_kind("Secret")] == ["pw"]
    assert verdict(made, "", "secrets.out")[0] == "approximated"


def test_two_sources_that_would_share_a_pod_volume_name_do_not() -> None:
    made = converted(
        """
services:
  s:
    image: x
    configs: [{source: data, target: /etc/c}]
    volumes: [{type: volume, source: data, target: /v}, {type: volume, source: data, target: /w}]
configs: {data: {content: hi}}
volumes: {data: {}}
"""
    )
    by_path = {row["mountPath"]: row["name"] for row in container(made, "s")["volumeMounts"]}
    assert by_path["/v"] == by_path["/w"] != by_path["/etc/c"]
    assert sorted(volume["name"] for volume in pod(made, "s")["volumes"]) == ["data", "data-2"]


def test_volumes_from_strangers_and_one_letter_volumes_are_refused_by_name() -> None:
    made = converted(
        "services: {a: {image: x, volumes_from: ['container:y'], volumes: [{type: bind, source: 'x:/d', target: ro}]}}"
    )
    assert verdict(made, "a", "volumes_from")[0] == "refused"
    assert "one-letter" in verdict(made, "a", "volumes.ro")[1]


# -- the rest of the pod -------------------------------------------------------------------------------------------
def test_limits_with_the_units_right() -> None:
    made = converted(
        """
services:
  a: {image: x, mem_limit: "536870912", mem_reservation: "104857600", cpus: 0.5}
  b: {image: x, deploy: {resources: {limits: {cpus: 1.5, memory: "1073741824"}, reservations: {memory: "67108864"}}}}
"""
    )
    assert container(made, "a")["resources"] == {
        "requests": {"memory": "100Mi"},
        "limits": {"cpu": "500m", "memory": "512Mi"},
    }
    assert container(made, "b")["resources"] == {
        "requests": {"memory": "64Mi"},
        "limits": {"cpu": "1500m", "memory": "1024Mi"},
    }


def test_security_settings() -> None:
    made = converted(
        """
services:
  a:
    image: x
    user: "1000:33"
    cap_add: [CAP_NET_ADMIN]
    cap_drop: [all]
    read_only: true
    group_add: ["44", mail]
    sysctls: {net.core.somaxconn: "1024"}
    security_opt: ["no-new-privileges:true", "seccomp=unconfined"]
    init: true
"""
    )
    assert container(made, "a")["securityContext"] == {
        "runAsUser": 1000,
        "runAsGroup": 33,
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "seccompProfile": {"type": "Unconfined"},
    }
    assert pod(made, "a")["securityContext"] == {
        "supplementalGroups": [44],
        "sysctls": [{"name": "net.core.somaxconn", "value": "1024"}],
    }
    assert verdict(made, "a", "group_add")[0] == "refused"
    assert "allowed-unsafe-sysctls=net.core.somaxconn" in verdict(made, "a", "sysctls")[1]


def test_gpus_and_other_devices() -> None:
    made = converted(
        """
services:
  a: {image: x, gpus: [{count: 2}]}
  b: {image: x, deploy: {resources: {reservations: {devices: [{driver: tpu, capabilities: [tpu]}]}}}}
  c: {image: x, devices: [{source: /dev/dri, target: /dev/dri}]}
"""
    )
    assert container(made, "a")["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert "resources" not in container(made, "b")
    assert verdict(made, "b", "deploy.resources.reservations.devices")[0] == "refused"
    assert container(made, "c")["securityContext"]["privileged"] is True
    assert verdict(made, "c", "devices./dev/dri")[0] == "approximated"


def test_a_user_by_name_needs_a_number() -> None:
    made = converted("services: {a: {image: x, user: git}, b: {image: x, user: root}}")
    assert verdict(made, "a", "user")[0] == "refused"
    assert container(made, "b")["securityContext"]["runAsUser"] == 0


def test_host_network_and_host_names() -> None:
    made = converted(
        """
services:
  a: {image: x, network_mode: host, expose: ["9100"]}
  b:
    image: x
    hostname: mail.example.org
    extra_hosts: ["h=1.2.3.4", "i=1.2.3.4", "gw=host-gateway"]
    stop_grace_period: 1m0s
  c: {image: x, network_mode: none}
"""
    )
    assert pod(made, "a")["hostNetwork"] is True
    assert pod(made, "a")["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "ports" not in container(made, "a")
    assert pod(made, "b")["hostname"] == "mail"
    assert pod(made, "b")["hostAliases"] == [{"ip": "1.2.3.4", "hostnames": ["h", "i"]}]
    assert pod(made, "b")["terminationGracePeriodSeconds"] == 60
    assert verdict(made, "b", "extra_hosts.gw")[0] == "refused"
    assert find(made, "NetworkPolicy", "c")["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_labels_become_annotations_and_odd_ones_are_kept_together() -> None:
    made = converted("services: {a: {image: x, labels: {traefik.enable: 'true', 'bad key!': v}}}")
    notes = workload(made, "a")["metadata"]["annotations"]
    assert notes["traefik.enable"] == "true"
    assert notes["hybridlab.io/compose-labels"] == '{"bad key!": "v"}'
    assert "Ingress" in verdict(made, "a", "labels")[1]


def test_an_image_for_one_architecture_named_in_a_variable_is_pointed_out() -> None:
    made = converted("services: {a: {image: x, environment: {HELPER: 'gitlab/gitlab-runner-helper:x86_64-v17.5.0'}}}")
    assert "CI_RUNNER_ARCH" in verdict(made, "a", "environment")[1]


# -- placement in the manifests ---------------------------------------------------------------------------------------
def test_placements_reach_the_pods_with_their_reasons() -> None:
    made = converted(
        "services: {multi: {image: m}, amd: {image: a}, none: {image: n, build: {context: ./n}}, lost: {image: u}}",
        {"m": MULTI, "a": image("linux/amd64"), "n": image("linux/arm/v7")},
    )
    assert {name: placement.kind for name, placement in made.placements.items()} == {
        "multi": "prefer",
        "amd": "only",
        "none": "none",
        "lost": "unknown",
    }
    assert pod(made, "amd")["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert pod(made, "amd")["tolerations"][0]["key"] == "hybridlab.io/small"
    assert "nodeAffinity" in pod(made, "multi")["affinity"]
    notes = workload(made, "amd")["metadata"]["annotations"]
    assert notes["hybridlab.io/placement"] == "only"
    assert "amd64 only" in notes["hybridlab.io/placement-why"]
    assert made.commands["none"] == ("docker buildx build --platform linux/arm64,linux/amd64 --tag n --push ./n",)
    assert made.unknown() == ("lost",)


def test_what_is_only_built_has_a_name_and_a_command() -> None:
    made = converted(
        "services: {web: {build: {context: ., dockerfile: Dockerfile}}}", options=Options(registry="ghcr.io/me")
    )
    assert container(made, "web")["image"] == "ghcr.io/me/demo-web:latest"
    assert made.placements["web"].kind == "unknown"
    assert made.commands["web"][0].endswith("--tag ghcr.io/me/demo-web:latest --push .")


def test_an_index_digest_is_pinned_on_request() -> None:
    made = converted("services: {a: {image: 'x:1'}}", {"x:1": MULTI}, options=Options(pin_digests=True))
    assert container(made, "a")["image"] == f"x:1@{MULTI.digest}"


def test_images_may_be_given_by_their_full_name() -> None:
    made = converted("services: {a: {image: redis}}", {"docker.io/library/redis:latest": MULTI})
    assert made.placements["a"].kind == "prefer"


def test_what_one_service_takes_is_gone_for_the_next() -> None:
    nodes = (NodeCapacity("arm-1", "arm64", 1000, 3 * GI),)
    text = 'services: {a: {image: x, mem_limit: "2147483648"}, b: {image: x, mem_limit: "2147483648"}}'
    made = converted(text, {"x": MULTI}, nodes)
    assert [made.placements[name].kind for name in "ab"] == ["only", "none"]


def test_swarm_constraints() -> None:
    nodes = (*NODES[:2], NodeCapacity("arm-3", "arm64", 1000, GI, labels={"disk": "ssd"}))
    wanted = "['node.labels.disk==ssd', 'node.labels.x==y', 'node.role!=manager']"
    text = f"services: {{a: {{image: x, deploy: {{placement: {{constraints: {wanted}}}}}}}}}"
    made = converted(text, {"x": MULTI}, nodes)
    assert pod(made, "a")["nodeSelector"]["disk"] == "ssd"
    assert verdict(made, "a", "deploy.placement.constraints")[0] == "refused"
    required = pod(made, "a")["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"][0]["matchExpressions"][-1] == {
        "key": "node-role.kubernetes.io/control-plane",
        "operator": "DoesNotExist",
    }


def test_what_hides_behind_a_tunnel_is_not_started_in_the_open() -> None:
    made = converted(
        """
services:
  vpn: {image: "qmcgaw/gluetun:v3", cap_add: [NET_ADMIN]}
  torrent: {image: x, network_mode: "service:vpn"}
  other: {image: x, network_mode: "service:plain"}
  plain: {image: y}
"""
    )
    assert workload(made, "torrent")["spec"]["replicas"] == 0
    assert verdict(made, "torrent", "network_mode")[0] == "refused"
    assert workload(made, "other")["spec"]["replicas"] == 1


def test_the_references_to_ask_registries_about() -> None:
    asked = references(project("services: {a: {image: 'x:1'}, b: {build: {context: .}}, c: {provider: {type: p}}}"))
    assert asked == {"a": "x:1", "b": "demo-b:latest"}


# -- the whole -----------------------------------------------------------------------------------------------------
def test_the_same_input_gives_the_same_objects() -> None:
    assert converted(WEB_AND_DB).objects == converted(WEB_AND_DB).objects


def test_everything_is_labelled_and_in_one_namespace() -> None:
    made = converted(WEB_AND_DB, options=Options(namespace="services"))
    for obj in made.objects:
        labels = obj["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "demo"
        assert labels["app.kubernetes.io/managed-by"] == "hybridlab"
        if obj["kind"] != "Namespace":
            assert obj["metadata"]["namespace"] == "services"
    assert made.objects[0]["kind"] == "Namespace"


def test_a_project_without_services_is_bad_input() -> None:
    with pytest.raises(BadInput):
        convert(project("services: {}"), {})
