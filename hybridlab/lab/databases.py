"""Databases that are not there: which programs a database's image has, and the dumps that the lab makes of its files.

A dump says in its first lines that no database made it. It depends on the files alone, so the same volume gives the
same dump, and it has the first and last lines that a real one has, which is what readers check.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_SHELL = re.compile(
    r'(?:(?:export )?\w+="[^;&|<>`]*"; )*(?:\w+ --user=root --execute="SET GLOBAL [^"]*" && )?'
    r"(?:exec )?(?P<words>[^;&|<>`]+?)(?: && \{ \[ ! -f \S+ \] \|\| .*\})?",
    re.DOTALL,
)  # settings are not kept, and what is done with a file of the image's own is not: the lab has none
NOTE = "lab: made from the files of the volume, by no database"


class NotKnown(Exception):
    """The lab does not run this in such a container; the text is what its runtime or program would say."""


@dataclass(frozen=True)
class Kind:
    """A database: its images by name, what makes a dump and what loads one, and a dump's first and last line."""

    name: str
    images: tuple[str, ...]
    folder: str
    dump: str
    load: str
    options: tuple[str, ...]
    head: str
    tail: str


_MYSQL_OPTIONS = (
    "--all-databases --single-transaction --routines --events --triggers --flush-privileges --user --databases "
    "--add-drop-database --hex-blob --quick --max-allowed-packet"
)
KINDS = (
    Kind("PostgreSQL", ("postgres", "postgis", "pgvector", "timescaledb"), "/var/lib/postgresql/data", "pg_dumpall",
         "psql", ("--clean", "--if-exists", "--username", "--quiet", "--dbname", "--no-role-passwords"),
         "--\n-- PostgreSQL database cluster dump\n--\n", "--\n-- PostgreSQL database cluster dump complete\n--\n"),
    Kind("MariaDB", ("mariadb",), "/var/lib/mysql", "mariadb-dump", "mariadb", tuple(_MYSQL_OPTIONS.split()),
         "-- MariaDB dump 10.19  Distrib 11\n", "-- Dump completed\n"),
    Kind("MySQL", ("mysql", "percona", "percona-server"), "/var/lib/mysql", "mysqldump", "mysql",
         tuple(_MYSQL_OPTIONS.split()), "-- MySQL dump 10.13  Distrib 8.4\n", "-- Dump completed\n"),
    Kind("Redis", ("redis",), "/data", "redis-cli", "", ("--rdb",), "", ""),
    Kind("Valkey", ("valkey",), "/data", "valkey-cli", "", ("--rdb",), "", ""),
)  # fmt: skip


def kind_of(image: str) -> Kind | None:
    name = image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    return next((kind for kind in KINDS if name in kind.images), None)


def program(argv: Sequence[str], kind: Kind | None) -> tuple[str, list[str]]:
    """The program of a database that a container's command runs, with its options. Raises NotKnown for anything else.

    ``sh -c`` is taken apart where it only sets variables and starts one program.
    """
    words = list(argv)
    if words[:2] == ["sh", "-c"] and len(words) == 3:
        match = _SHELL.fullmatch(words[2])
        if match is None:
            raise NotKnown("lab: the containers have no shell: only `exec PROGRAM OPTIONS` is understood")
        words = shlex.split(match["words"])
    name = words[0] if words else ""
    if kind is None or name not in (kind.dump, kind.load) or not name:
        raise NotKnown(
            "OCI runtime exec failed: exec failed: unable to start container process: exec: "
            f'"{name}": executable file not found in $PATH: unknown'
        )
    for word in words[1:]:
        option = word.partition("=")[0]
        if option not in kind.options and not (kind.options == ("--rdb",) and word == "-"):
            raise NotKnown(f"{name}: unrecognized option '{option}'")
    return name, words[1:]


def sql_dump(kind: Kind, files: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """A dump of the files of a data folder, (path, content) in order: a row for each."""
    yield f"{kind.head}-- {NOTE}\nCREATE TABLE lab_files (path text, size bigint, sha256 text);\n".encode()
    for path, data in files:
        shown = path.encode("utf-8", "backslashreplace").decode().replace("'", "''")
        digest = hashlib.sha256(data).hexdigest()
        yield f"INSERT INTO lab_files VALUES ('{shown}', {len(data)}, '{digest}');\n".encode()
    yield kind.tail.encode()


def check_dump(kind: Kind, text: bytes) -> str:
    """What a database says to a dump: empty when it takes it."""
    if not text.startswith(kind.head.encode()):
        return f'ERROR:  syntax error at or near "{text[:12].decode(errors="replace").split(chr(10))[0]}"'
    if kind.tail.encode() not in text:
        return "ERROR:  unexpected end of input"
    return ""
