"""The schema of a params file: what is refused and how it is said, overrides, writing back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from fakes import LAB, make_params

from hybridlab.errors import ParamsError, SchemaTooNew
from hybridlab.params import (
    Params,
    check_params,
    fields_of,
    parse_override,
    read_params,
    save_params,
    set_path,
)
from hybridlab.sections import Provision

SHIPPED = Path(__file__).parents[2] / "params"
TEXT = """\
# a cluster
schema: 1
cluster: homelab   # its name
site: lab

nodes:
  - {name: arm-1, role: server, arch: arm64, ocpus: 2, memory_gb: 12}
  # for x86 only
  - {name: amd-1, arch: amd64, memory_gb: 1}

storage:
  replicas: 3   # one on each node
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def nodes(count: int = 1, **fields: Any) -> list[dict[str, Any]]:
    rows = [{"name": f"n-{i}", "arch": "arm64", **fields} for i in range(count)]
    return [{**rows[0], "role": "server"}, *rows[1:]]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("cluster missing", {"cluster": ...}, "cluster is missing"),
    ("site missing", {"site": ...}, "site is missing"),
    ("nodes missing", {"nodes": ...}, "nodes is missing"),
    ("no nodes", {"nodes": []}, "nodes: "),
    ("21 nodes", {"nodes": nodes(21)}, "nodes: "),
    ("unknown site", {"site": "aws"}, "site: input should be 'lab', 'oracle' or 'byo', not 'aws'"),
    ("upper case name", {"cluster": "HomeLab"}, "cluster: "),
    ("name ends in a dash", {"cluster": "home-"}, "cluster: "),
    ("name of 41", {"cluster": "a" * 41}, "cluster: "),
    ("node name", {"nodes.arm-1.name": "arm_1"}, "nodes.0.name: "),
    ("the same name twice", {"nodes.arm-2.name": "arm-1"}, "nodes: the name arm-1 is used twice"),
    ("no server", {"nodes.arm-1.role": "agent"}, "nodes: exactly one node must have role: server, found 0"),
    ("two servers", {"nodes.arm-2.role": "server"}, "nodes: exactly one node must have role: server, found 2"),
    ("architecture", {"nodes.arm-1.arch": "riscv64"}, "nodes.0.arch: "),
    ("no cores", {"nodes.arm-1.ocpus": 0}, "nodes.0.ocpus: "),
    ("81 cores", {"nodes.arm-1.ocpus": 81}, "nodes.0.ocpus: "),
    ("no memory", {"nodes.arm-1.memory_gb": 0}, "nodes.0.memory_gb: "),
    ("boot volume of 49", {"nodes.arm-1.boot_volume_gb": 49}, "nodes.0.boot_volume_gb: "),
    ("number as text", {"nodes.arm-1.memory_gb": "12"}, "nodes.0.memory_gb: "),
    ("truth as text", {"bootstrap": {"traefik": "yes"}}, "bootstrap.traefik: "),
    ("whole number wanted", {"storage": {"replicas": 2.5}}, "storage.replicas: "),
    ("byo without address", {"site": "byo"}, "nodes: site byo needs an address for arm-1, arm-2, amd-1"),
    ("not a network", {"provision": {"vcn_cidr": "10.0.0.1/16"}}, "provision.vcn_cidr: "),
    ("operator", {"provision": {"operator_cidr": "me"}}, "provision.operator_cidr: "),
    (
        "subnet outside",
        {"provision": {"subnet_cidr": "10.1.0.0/24"}},
        "provision.subnet_cidr: 10.1.0.0/24 is not inside vcn_cidr 10.0.0.0/16",
    ),
    (
        "subnet of another family",
        {"provision": {"subnet_cidr": "fd00::/64"}},
        "provision.subnet_cidr: fd00::/64 is not inside vcn_cidr 10.0.0.0/16",
    ),
    (
        "over the pods",
        {"provision": {"vcn_cidr": "10.42.0.0/16", "subnet_cidr": "10.42.1.0/24"}},
        "provision.vcn_cidr: 10.42.0.0/16 overlaps 10.42.0.0/16",
    ),
    (
        "over the services",
        {"provision": {"vcn_cidr": "10.43.128.0/17", "subnet_cidr": "10.43.128.0/24"}},
        "provision.vcn_cidr: 10.43.128.0/17 overlaps 10.43.0.0/16",
    ),
    ("no rounds", {"benchmark": {"rounds": 0}}, "benchmark.rounds: "),
    ("no replicas", {"storage": {"replicas": 0}}, "storage.replicas: "),
    ("storage class", {"storage": {"storage_class": "Fast_"}}, "storage.storage_class: "),
    ("bucket", {"backup": {"bucket": "My_Bucket"}}, "backup.bucket: "),
    ("uploader", {"backup": {"uploader": "tar"}}, "backup.uploader: "),
    ("namespace", {"migrate": {"namespace": "Kube.System"}}, "migrate.namespace: "),
    ("docker host without address", {"migrate": {"docker_host": {}}}, "migrate.docker_host.address is missing"),
    ("negative pause", {"provision": {"capacity_pause_s": 0}}, "provision.capacity_pause_s: "),
    ("no age", {"backup": {"max_age_h": 0}}, "backup.max_age_h: "),
    ("action", {"maintain": {"action": "reboot"}}, "maintain.action: "),
    ("no keeping", {"backup": {"ttl_h": 0}}, "backup.ttl_h: "),
    ("9 GB of swap", {"bootstrap": {"swap_gb": 9}}, "bootstrap.swap_gb: "),
    ("replicas of the tunnel", {"expose": {"replicas": 0}}, "expose.replicas: "),
    ("test file", {"storage": {"test_mb": 0}}, "storage.test_mb: "),
    ("claim size", {"migrate": {"claim_gb": 0}}, "migrate.claim_gb: "),
    ("schema 0", {"schema": 0}, "schema: "),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_with_its_key(name: str, changes: dict[str, Any], said: str) -> None:
    data = copy.deepcopy(LAB)
    for key, value in changes.items():
        if value is ...:
            del data[key]
        else:
            set_path(data, key, value)
    with pytest.raises(ParamsError) as caught:
        check_params(data, where="x.yaml")
    assert said in caught.value.what
    assert caught.value.where == "x.yaml"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("storage.replica", "did you mean storage.replicas?"),
        ("storge.replicas", "did you mean storage?"),
        ("replicas", "did you mean"),
        ("clustr", "did you mean cluster?"),
        ("backup.shedule", "did you mean backup.schedule?"),
        ("migrate.docker_host.adress", "did you mean migrate.docker_host.address?"),
        ("layout.allow-cost", "did you mean layout.allow_cost?"),
        ("qqqqqq", "see docs/params.md for all parameters"),
    ],
)
def test_unknown_parameter_names_the_nearest(key: str, hint: str) -> None:
    data = copy.deepcopy(LAB)
    set_path(data, key, 1)
    with pytest.raises(ParamsError) as caught:
        check_params(data)
    assert "unknown parameter" in caught.value.what
    assert caught.value.next_move.startswith(hint)


def test_every_problem_is_listed() -> None:
    with pytest.raises(ParamsError) as caught:
        make_params({"storage.replicas": 0, "benchmark.rounds": 0, "nodes.arm-1.extra": 1})
    for said in ("storage.replicas:", "benchmark.rounds:", "unknown parameter nodes.0.extra"):
        assert said in caught.value.what


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": "a"},
        {"cluster": "a" * 40},
        {"nodes.amd-1.ocpus": 0.125},
        {"provision": {"operator_cidr": "auto"}},
        {"provision": {"operator_cidr": "0.0.0.0/0"}},
        {"provision": {"vcn_cidr": "10.0.0.0/24", "subnet_cidr": "10.0.0.0/24"}},
        {"provision": {"vcn_cidr": "10.41.0.0/16", "subnet_cidr": "10.41.255.0/24"}},
        {"provision": {"vcn_cidr": "10.44.0.0/16", "subnet_cidr": "10.44.0.0/24"}},
        {"nodes.arm-1.boot_volume_gb": 50},
    ],
)
def test_accepted_at_the_edges(changes: dict[str, Any]) -> None:
    make_params(changes)


def test_byo_with_addresses() -> None:
    changes = {f"nodes.{n}.address": f"192.168.1.{i}" for i, n in enumerate(("arm-1", "arm-2", "amd-1"), 1)}
    params = make_params({"site": "byo", **changes})
    assert [w.address for w in params.wishes] == ["192.168.1.1", "192.168.1.2", "192.168.1.3"]


@pytest.mark.parametrize(
    ("text", "error", "said", "next_move"),
    [
        ("", ParamsError, "is empty", "params/lab.yaml"),
        ("# nothing\n", ParamsError, "is empty", "params/lab.yaml"),
        ("- a\n- b\n", ParamsError, "is not a mapping", "params/lab.yaml"),
        ("just words\n", ParamsError, "is not a mapping", ""),
        ("a: [1,\n", ParamsError, "is not YAML", ""),
        ("schema: 2\nnew_thing: 1\n", SchemaTooNew, "newer hybridlab", "upgrade"),
        (TEXT + "storage:\n  engine: jiva\n", ParamsError, "storage is given twice", "keep one"),
    ],
    ids=["empty", "comment", "list", "words", "torn", "newer", "twice"],
)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], said: str, next_move: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(error) as caught:
        read_params(path)
    assert said in str(caught.value)
    assert next_move in caught.value.next_move  # type: ignore[attr-defined]
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]


def test_duplicate_key_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("schema: 1\ncluster: a\nsite: lab\ncluster: b\n", encoding="utf-8")
    with pytest.raises(ParamsError, match="cluster is given twice") as caught:
        read_params(path)
    assert caught.value.where.endswith("line 4")


def test_missing_file_names_the_nearest(file: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        read_params(file.with_name("mi.yaml"))
    assert caught.value.next_move == f"did you mean {file}?"
    with pytest.raises(ParamsError) as caught:
        read_params(file.with_name("completely-other.json"))
    assert caught.value.next_move == "see params/ for examples"


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="can't be read"):
        read_params(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"cluster: \xff\xfe\n")
    with pytest.raises(ParamsError, match="can't be read"):
        read_params(path)


def test_overrides_by_dotted_path_and_node_name(file: Path) -> None:
    changes = {"storage.replicas": 1, "nodes.amd-1.memory_gb": 2, "expose.method": "none", "cluster": None}
    params = read_params(file, changes)
    assert params.storage.replicas == 1
    assert [n.memory_gb for n in params.nodes] == [12, 2]
    assert params.expose.method == "none"  # a section that the file does not have
    assert params.cluster == "homelab"  # None leaves the file's value
    assert file.read_text(encoding="utf-8") == TEXT


@pytest.mark.parametrize("key", ["nodes.arm-9.memory_gb", "cluster.name", "nodes.arm-1"])
def test_override_that_leads_nowhere(file: Path, key: str) -> None:
    with pytest.raises(ParamsError, match=f"unknown parameter {key}"):
        read_params(file, {key: 1})


def test_override_of_the_wrong_type(file: Path) -> None:
    with pytest.raises(ParamsError, match=r"storage\.replicas: input should be a valid integer, not 'many'"):
        read_params(file, {"storage.replicas": "many"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("storage.replicas=3", ("storage.replicas", 3)),
        ("a.b=true", ("a.b", True)),
        ("a.b=0.5", ("a.b", 0.5)),
        ("a.b=x=y", ("a.b", "x=y")),
        ("a.b=[p, q]", ("a.b", ["p", "q"])),
        (" a.b =text", ("a.b", "text")),
        ("a.b=", ("a.b", None)),
    ],
)
def test_parse_override(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["storage.replicas", "=3", "", "a=[1,"])
def test_parse_override_refuses(text: str) -> None:
    with pytest.raises(ParamsError):
        parse_override(text)


def test_save_keeps_comments_and_shows_the_difference(file: Path) -> None:
    diff = save_params(file, {"storage.replicas": 1, "nodes.amd-1.memory_gb": 2})
    expected = TEXT.replace("replicas: 3   # one", "replicas: 1   # one").replace("memory_gb: 1}", "memory_gb: 2}")
    assert file.read_text(encoding="utf-8") == expected
    changed = [line for line in diff.splitlines() if line[0] in "+-" and line[:3] not in ("---", "+++")]
    assert changed == [
        "-  - {name: amd-1, arch: amd64, memory_gb: 1}",
        "+  - {name: amd-1, arch: amd64, memory_gb: 2}",
        "-  replicas: 3   # one on each node",
        "+  replicas: 1   # one on each node",
    ]
    assert f"--- {file}" in diff
    assert read_params(file).storage.replicas == 1


@pytest.mark.parametrize("changes", [{"storage.replicas": 9}, {"storage.replica": 1}, {"nodes.arm-1.role": "agent"}])
def test_save_refuses_and_writes_nothing(file: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ParamsError):
        save_params(file, changes)
    assert file.read_text(encoding="utf-8") == TEXT


def test_save_without_changes_writes_the_same(file: Path) -> None:
    assert save_params(file, {}) == ""
    assert file.read_text(encoding="utf-8") == TEXT


def test_fields_of_the_whole_schema() -> None:
    fields = {f.path: f for f in fields_of(Params)}
    assert {"schema", "cluster", "site", "nodes", "storage.replicas", "migrate.docker_host.address"} <= set(fields)
    assert "storage" not in fields
    engine = fields["storage.engine"]
    assert (engine.type, engine.default) == ("choice", "jiva")
    assert engine.choices == ("jiva", "longhorn", "cstor", "localpv", "local-path")
    assert fields["cluster"].required
    assert not engine.required
    assert fields["storage.replicas"].type == "int"
    assert fields["bootstrap.k3s_version"].type == "str or empty"
    assert fields["bootstrap.labels"].default == {}
    assert [f.path for f in fields.values() if not f.description and f.path != "schema"] == []


def test_fields_of_a_section() -> None:
    assert next(fields_of(Provision)).path == "vcn_cidr"
    assert next(fields_of(Provision, "provision.")).path == "provision.vcn_cidr"


@pytest.mark.parametrize("name", ["lab", "free-now", "oracle", "byo"])
def test_shipped_files_are_valid(name: str) -> None:
    params = read_params(SHIPPED / f"{name}.yaml")
    assert params.site == {"lab": "lab", "free-now": "lab"}.get(name, name)
    found = {None} if name == "byo" else {"arm64", "amd64"}  # one's own hosts: by looking
    assert {w.arch for w in params.wishes} == found
    assert params.server.role == "server"


@pytest.mark.parametrize("name", ["lab", "free-now", "oracle", "byo"])
def test_shipped_files_survive_saving(tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes((SHIPPED / f"{name}.yaml").read_bytes())
    assert save_params(path, {}) == ""


def test_lab_is_the_articles_layout() -> None:
    sizes = [(w.name, w.role, w.arch, w.ocpus, w.memory_gb) for w in read_params(SHIPPED / "lab.yaml").wishes]
    assert sizes == [
        ("arm-1", "server", "arm64", 2, 12),
        ("arm-2", "agent", "arm64", 1, 6),
        ("amd-1", "agent", "amd64", 1, 1),
    ]


def test_plain_sections() -> None:
    params = make_params()
    assert set(params.plain("storage")) == {"cluster", "site", "nodes", "storage"}
    whole = params.plain()
    assert whole["schema"] == 1
    assert check_params(whole) == params
    assert {w.name: w.shape for w in params.wishes} == {
        "arm-1": "VM.Standard.A1.Flex",
        "arm-2": "VM.Standard.A1.Flex",
        "amd-1": "VM.Standard.E2.1.Micro",
    }
