"""Every key has its line, and what is written can be read by Kubernetes' own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from compose_kit import MULTI, converted, project, verdict
from ruamel.yaml import YAML

from hybridlab.compose import Manifests, convert, write
from hybridlab.compose.fidelity import missing_lines
from hybridlab.compose.write import to_yaml
from hybridlab.errors import BadInput

# One service with nearly every key that Compose has, in its normalised form.
EVERYTHING = """
services:
  a:
    annotations: {x: y}
    attach: false
    blkio_config: {weight: 5}
    build: {context: ., dockerfile: Dockerfile, args: {A: b}}
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    cgroup: host
    cgroup_parent: x
    command: [sh, -c, "echo $${X}"]
    configs: [{source: c1, target: /etc/c1, uid: "33"}]
    container_name: the_container
    cpu_count: 1
    cpu_percent: 5
    cpu_period: "100000"
    cpu_quota: "50000"
    cpu_rt_period: "1"
    cpu_rt_runtime: "1"
    cpu_shares: 512
    cpuset: "0"
    credential_spec: {file: x}
    depends_on: {b: {condition: service_completed_successfully, restart: true, required: false}}
    deploy:
      mode: replicated
      replicas: 2
      labels: {l: v}
      endpoint_mode: dnsrr
      update_config: {parallelism: 1, order: start-first, delay: 5s}
      rollback_config: {parallelism: 1}
      restart_policy: {condition: any}
      placement: {constraints: ["node.labels.x==y"], preferences: [{spread: node.labels.z}], max_replicas_per_node: 1}
      resources:
        limits: {cpus: 1.5, memory: "536870912", pids: 5}
        reservations: {memory: "104857600", devices: [{capabilities: [gpu], driver: nvidia, count: 1}]}
    develop: {watch: [{path: ., action: sync, target: /x}]}
    device_cgroup_rules: ["c 1:1 r"]
    devices: [{source: /dev/kmsg, target: /dev/kmsg, permissions: rwm}]
    dns: ["9.9.9.9", "127.0.0.1"]
    dns_opt: ["ndots:1"]
    dns_search: [example.org]
    domainname: example.org
    entrypoint: [/e, -x]
    environment: {A: null, B: x, C_TOKEN: s, "odd name": v}
    expose: ["80", "100-102/udp"]
    external_links: ["elsewhere:alias"]
    extra_hosts: ["h=1.2.3.4"]
    gpus: [{count: -1}]
    group_add: [mail, "44"]
    healthcheck: {test: [CMD-SHELL, "curl -f http://x"], interval: 1m30s, start_interval: 5s}
    hostname: web.example.org
    image: nginx
    init: true
    ipc: host
    isolation: default
    label_file: [x]
    labels: {"a b": c}
    links: ["b:bb"]
    logging: {driver: none}
    mac_address: "00:11:22:33:44:55"
    mem_swappiness: "5"
    memswap_limit: "1073741824"
    models: {m: {endpoint_var: X}}
    networks: {default: {aliases: [www, web.local], ipv4_address: 10.0.0.2, priority: 1}}
    oom_kill_disable: true
    oom_score_adj: 5
    pid: host
    pids_limit: 5
    platform: linux/arm64
    ports: [{mode: host, target: 9000, published: "8000-8002", protocol: tcp}, {target: 90, protocol: tcp}]
    post_start: [{command: [echo, hi], user: root}]
    pre_stop: [{command: [a]}, {command: [b]}]
    pre_start: [{command: [prepare], image: busybox}]
    privileged: true
    profiles: [x]
    pull_policy: always
    read_only: true
    restart: always
    runtime: nvidia
    scale: 2
    secrets: [{source: s1, target: /run/secrets/s1, mode: "0400"}, {source: nowhere}]
    security_opt: ["label=type:x", "apparmor=p", "no-new-privileges:true", "odd=1"]
    shm_size: "67108864"
    stdin_open: true
    stop_grace_period: 10s
    stop_signal: SIGQUIT
    storage_opt: {size: 1g}
    sysctls: {net.ipv4.tcp_syncookies: "1"}
    tmpfs: [/x]
    tty: true
    ulimits: {nofile: 5}
    use_api_socket: true
    user: "1000"
    userns_mode: host
    uts: host
    volumes:
      - {type: bind, source: ./data, target: /d}
      - {type: volume, source: v, target: /v, volume: {subpath: s}}
      - {type: volume, target: /anonymous}
      - {type: image, source: busybox, target: /img}
      - {type: npipe, source: p, target: /p}
    volumes_from: ["b:ro", "container:x"]
    working_dir: /w
    x-mine: {a: 1}
    some_future_key: 1
  b: {image: busybox, entrypoint: [], command: []}
volumes: {v: {name: demo_v, driver: rexray, labels: {a: b}}, unused: {name: demo_unused}}
configs: {c1: {name: demo_c1, file: ./not-here}}
secrets: {s1: {name: demo_s1, environment: FOO}}
networks: {default: {name: demo_default, ipam: {config: [{subnet: 10.0.0.0/24}]}, internal: true}}
models: {m: {model: ai/x}}
x-top: 1
some_future_section: {}
"""


def strictly_valid(manifests: Manifests) -> None:
    for obj in manifests.objects:
        kubernetes_validate.validate(obj, "1.37", strict=True)


def test_every_key_has_a_line_and_none_is_lost() -> None:
    given = project(EVERYTHING)
    made = convert(given, {"nginx": MULTI})
    assert missing_lines(given, made.fidelity) == []
    strictly_valid(made)


def test_refusals_and_approximations_say_why() -> None:
    made = converted(EVERYTHING)
    assert all(finding.note for finding in made.fidelity if finding.verdict != "mapped")
    assert verdict(made, "a", "some_future_key")[0] == "refused"
    assert verdict(made, "", "some_future_section")[0] == "refused"
    unknown = [f.key for f in made.fidelity if "does not know" in f.note]
    assert unknown == ["some_future_section", "some_future_key"]
    assert verdict(made, "a", "x-mine")[0] == "mapped"
    assert verdict(made, "a", "ulimits")[0] == "refused"
    assert verdict(made, "a", "secrets.nowhere")[0] == "refused"


def test_a_line_that_is_missing_would_be_noticed() -> None:
    given = project(EVERYTHING)
    made = convert(given, {})
    fewer = [finding for finding in made.fidelity if (finding.service, finding.key) != ("a", "ulimits")]
    assert missing_lines(given, fewer) == ["a.ulimits"]


def test_the_folder_holds_a_file_per_service_and_the_reports(tmp_path: Path) -> None:
    made = converted(EVERYTHING, {"nginx": MULTI})
    files = write(made, tmp_path / "out")
    names = [path.name for path in files]
    assert names[0] == "00-namespace.yaml"
    assert {"a.yaml", "b.yaml", "REPORT.md", "fidelity.jsonl"} <= set(names)
    # kubectl apply -f takes every .yaml and .json of a folder for objects
    read = [obj for path in files if path.suffix in (".yaml", ".json") for obj in YAML().load_all(path.read_text())]
    assert sorted(json.dumps(obj) for obj in read) == sorted(json.dumps(obj) for obj in made.objects)
    rows = [json.loads(line) for line in (tmp_path / "out" / "fidelity.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows if row["row"] == "key"] == [finding.key for finding in made.fidelity]
    assert rows[0]["project"] == made.project
    report = (tmp_path / "out" / "REPORT.md").read_text()
    assert "**refused**" in report
    assert "the image is known, no build is needed" in report


def test_files_with_secrets_are_private(tmp_path: Path) -> None:
    write(converted("services: {a: {image: x, environment: {A_TOKEN: s}}, b: {image: x}}"), tmp_path / "out")
    assert (tmp_path / "out" / "a.yaml").stat().st_mode & 0o077 == 0
    assert (tmp_path / "out" / "b.yaml").stat().st_mode & 0o044


def test_writing_again_replaces_and_writing_elsewhere_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(converted("services: {a: {image: x}, b: {image: x}}"), out)
    write(converted("services: {a: {image: x}}"), out)
    assert not (out / "b.yaml").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BadInput) as caught:
        write(converted("services: {a: {image: x}}"), tmp_path / "mine")
    assert caught.value.exit_code == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "text", ["a\n b\n", " lead\nx", "tab\there\nx", "trail \nx", "no end\nx", "x\n\n\n", "\x07\nbell", "ü\nö"]
)
def test_texts_survive_the_yaml(tmp_path: Path, text: str) -> None:
    made = converted(
        "services: {a: {image: x, configs: [{source: c, target: /c}]}}\nconfigs: {c: {content: PLACEHOLDER}}"
    )
    swapped: list[dict[str, Any]] = [dict(obj) for obj in made.objects]
    for obj in swapped:
        if obj["kind"] == "ConfigMap":
            obj["data"] = {"c": text}
    files = write(Manifests(**{**vars(made), "objects": tuple(swapped)}), tmp_path / "out")
    read = [obj for path in files if path.suffix == ".yaml" for obj in YAML(typ="safe").load_all(path.read_text())]
    assert [obj["data"]["c"] for obj in read if obj["kind"] == "ConfigMap"] == [text]


NOT_TEXT = "yes No on OFF y n true ~ null 0755 0o17 0x1F 1e3 1_000 12:30:45 .5 .inf 2001-12-14 << = -1 +1.5"


@pytest.mark.parametrize("text", NOT_TEXT.split(" "))
def test_texts_stay_texts_for_readers_of_yaml_1_1(text: str) -> None:
    written = to_yaml({"kind": "ConfigMap", "data": {"A": text, "yes": "x"}})
    old = YAML(typ="safe", pure=True)
    old.version = "1.1"
    assert old.load(written.removeprefix("---\n")) == {"kind": "ConfigMap", "data": {"A": text, "yes": "x"}}


@pytest.mark.parametrize("text", ["1Gi", "100m", "mariadb:11", "16-alpine", "noon", "yesterday"])
def test_plain_texts_stay_plain(text: str) -> None:
    assert f"A: {text}\n" in to_yaml({"A": text})
