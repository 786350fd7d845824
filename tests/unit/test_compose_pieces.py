"""Small pure pieces: names, units, environment, probes, bind mounts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compose_kit import image

from hybridlab.compose import env, mentions, names, probes, units
from hybridlab.compose.binds import classify
from hybridlab.compose.fidelity import Record
from hybridlab.compose.network import expand

LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("web", "web"), ("My_DB", "my-db"), ("1up", "n1up"), ("a..b", "a-b"), ("-x-", "x"), ("___", "x"), ("é", "x")],
)
def test_labels(text: str, wanted: str) -> None:
    assert names.label(text) == wanted


def test_long_names_stay_apart_and_within_the_limit() -> None:
    first, second = names.label("a" * 70 + "1"), names.label("a" * 70 + "2")
    assert first != second
    assert all(LABEL.fullmatch(name) for name in (first, second))


def test_the_unchanged_name_wins_over_the_changed_one() -> None:
    given = names.service_names(["my_db", "my-db", "MY-DB"])
    assert given["my-db"] == "my-db"
    assert len(set(given.values())) == 3
    assert all(LABEL.fullmatch(name) for name in given.values())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512m", 536870912),
        ("1g", 1073741824),
        ("64M", 67108864),
        ("10kb", 10240),
        ("128", 128),
        ("x", None),
        ("", None),
    ],
)
def test_docker_sizes(text: str, count: int | None) -> None:
    assert units.size_bytes(text) == count


@pytest.mark.parametrize(
    ("count", "text"), [(536870912, "512Mi"), (10240, "10Ki"), (1000, "1000"), (1 << 30, "1024Mi")]
)
def test_memory_quantities(count: int, text: str) -> None:
    assert units.memory_quantity(count) == text
    assert units.quantity_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1m30s", 90), ("500ms", 1), ("1.5s", 2), ("2h", 7200), (None, 30), ("", 30), (5_000_000_000, 5)],
)
def test_probe_seconds_are_whole_and_at_least_one(text: object, wanted: int) -> None:
    assert units.whole_seconds(text, 30) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(VAR)", "$$(VAR)"),
        ("a $HOME b", "a $HOME b"),
        ("echo $$", "echo $$$$"),
        ("$$(X)", "$$$$(X)"),
        ("${X}", "${X}"),
        ("cost 5$", "cost 5$"),
        ("no dollars", "no dollars"),
    ],
)
def test_escaping_survives_kubelets_expansion(text: str, wanted: str) -> None:
    assert env.escape(text) == wanted
    assert kubelet_expand(env.escape(text)) == text


def kubelet_expand(text: str) -> str:
    """The rule of k8s.io/kubernetes/third_party/forked/golang/expansion for a container without that variable."""
    out, index = "", 0
    while index < len(text):
        if text[index] == "$" and index + 1 < len(text):
            if text[index + 1] == "$":
                out, index = out + "$", index + 2
                continue
            if text[index + 1] == "(" and ")" in text[index:]:
                end = text.index(")", index)
                out, index = out + "<EXPANDED>", end + 1
                continue
        out, index = out + text[index], index + 1
    return out


@pytest.mark.parametrize(
    "name",
    [
        "DB_PASS",
        "POSTGRES_PASSWORD",
        "MYSQL_PWD",
        "SECRET_KEY_BASE",
        "OTP_SECRET",
        "API_TOKEN",
        "APIKEY",
        "DBPASS",
        "DBROOT",
    ],
)
def test_secret_like_names(name: str) -> None:
    assert env.secret_like(name, "x")


@pytest.mark.parametrize(
    "name",
    [
        "DB_HOST",
        "POSTGRES_PASSWORD_FILE",
        "KEYCLOAK_URL",
        "PASSENGER_PORT",
        "TOKEN_TTL",
        "OAUTH_BYPASS",
        "TZ",
        "MONKEY",
        "COMPASS",
    ],
)
def test_names_that_are_no_secrets(name: str) -> None:
    assert not env.secret_like(name, "x")


def test_a_login_inside_a_url_is_a_secret_whatever_its_name() -> None:
    assert env.secret_like("DATABASE_URL", "postgres://me:pw@db/x")
    assert not env.secret_like("DATABASE_URL", "postgres://db:5432/x")


@pytest.mark.parametrize(
    ("test", "command"),
    [
        (["CMD-SHELL", "curl -f x || exit 1"], ["/bin/sh", "-c", "curl -f x || exit 1"]),
        (["CMD", "pg_isready", "-U", "me"], ["pg_isready", "-U", "me"]),
        ("curl x", ["/bin/sh", "-c", "curl x"]),
        (["NONE"], None),
        ([], None),
        (None, None),
    ],
)
def test_probe_commands(test: object, command: list[str] | None) -> None:
    assert probes.probe_command(test) == command


def test_dockers_defaults_and_readiness_without_liveness() -> None:
    made = probes.probes("s", {"healthcheck": {"test": ["CMD", "ok"]}}, None, Record(), liveness=False)
    assert set(made) == {"startupProbe", "readinessProbe"}
    assert made["readinessProbe"] == {
        "exec": {"command": ["ok"]},
        "periodSeconds": 30,
        "timeoutSeconds": 30,
        "failureThreshold": 3,
    }
    startup = made["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_liveness_on_request_and_given_times() -> None:
    check = {"test": ["CMD", "ok"], "interval": "5s", "timeout": "1s", "retries": 7, "start_period": "1h"}
    made = probes.probes("s", {"healthcheck": check}, None, Record(), liveness=True)
    steady = {"periodSeconds": 5, "timeoutSeconds": 1, "failureThreshold": 7}
    assert steady.items() <= made["livenessProbe"].items()
    assert made["startupProbe"]["failureThreshold"] * made["startupProbe"]["periodSeconds"] >= 3600


def test_the_images_own_healthcheck_counts_unless_switched_off() -> None:
    info = image("linux/amd64", healthcheck=("CMD-SHELL", "ok"))
    assert probes.probes("s", {}, info, Record(), liveness=False)["readinessProbe"]["exec"]["command"][-1] == "ok"
    assert probes.probes("s", {"healthcheck": {"disable": True}}, info, Record(), liveness=False) == {}
    assert probes.probes("s", {"healthcheck": {"test": ["NONE"]}}, info, Record(), liveness=False) == {}


@pytest.mark.parametrize(
    ("source", "target", "read_only", "kind"),
    [
        ("/var/run/docker.sock", "/var/run/docker.sock", True, "refuse"),
        ("/var/lib/docker", "/var/lib/docker", True, "refuse"),
        ("/etc/localtime", "/etc/localtime", True, "host"),
        ("/etc/timezone", "/etc/timezone", True, "leave-out"),
        ("/proc", "/host/proc", True, "host"),
        ("/", "/rootfs", True, "host"),
        ("/sys/fs/cgroup", "/sys/fs/cgroup", False, "host"),
        ("./nginx.conf", "/etc/nginx/nginx.conf", False, "config-file"),
        ("./Caddyfile", "/etc/caddy/Caddyfile", False, "config-file"),
        ("./certs", "/certs", True, "config-dir"),
        ("./data", "/data", False, "state"),
        ("/srv/app/config", "/config", False, "state"),
        ("./conf.d", "/etc/nginx/conf.d", False, "state"),
        ("./acme.json", "/acme.json", False, "state-file"),
        ("./db.sqlite3", "/app/db.sqlite3", False, "state-file"),
        ("~/media", "/media", False, "state"),
        ("./init.sql", "/docker-entrypoint-initdb.d/init.sql", False, "config-file"),
        ("/data/v1.2", "/data/v1.2", False, "state"),
    ],
)
def test_bind_mounts_are_classified_with_a_reason(source: str, target: str, read_only: bool, kind: str) -> None:
    bind = classify(source, target, read_only=read_only, here=None)
    assert bind.kind == kind
    assert source in bind.reason or "build context" in bind.reason


def test_what_is_on_disk_beats_the_guess(tmp_path: Path) -> None:
    folder = tmp_path / "x.conf"
    folder.mkdir()
    assert classify("./x.conf", "/data", read_only=False, here=folder).kind == "state"


def test_a_mount_of_the_build_context_is_left_out() -> None:
    assert classify("./app", "/usr/src/app", read_only=False, here=None, build_context="app").kind == "leave-out"


@pytest.mark.parametrize(
    ("text", "ports"),
    [("80", [(80, "TCP")]), ("53/udp", [(53, "UDP")]), ("10-12", [(10, "TCP"), (11, "TCP"), (12, "TCP")]), ("x", [])],
)
def test_port_texts(text: str, ports: list[tuple[int, str]]) -> None:
    assert expand(text) == ports


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgres://u:p@my_db/x", "postgres://u:p@my-db/x"),
        ("my_db:5432", "my-db:5432"),
        ("http://my_db/", "http://my-db/"),
        ("my_db", "my_db"),
        ("not_my_db:5432", "not_my_db:5432"),
        ("http://my_db.example.org", "http://my_db.example.org"),
    ],
)
def test_names_that_dns_cannot_carry_are_rewritten_where_they_are_hosts(text: str, wanted: str) -> None:
    assert mentions.rewrite(text, {"my_db": "my-db"}) == wanted


def test_a_bare_name_is_a_host_only_in_a_variable_that_says_so() -> None:
    assert mentions.rewrite_value("DB_HOST", "my_db", {"my_db": "my-db"}) == "my-db"
    assert mentions.rewrite_value("DB_NAME", "my_db", {"my_db": "my-db"}) == "my_db"
