"""What the lab runs of a container's commands, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hybridlab.lab.kube.controllers.commands import CannotRun, Mount, prepare, translate


@pytest.fixture
def mounts(tmp_path: Path) -> list[Mount]:
    for name in ("data", "deep", "tools"):
        (tmp_path / name).mkdir()
    (tmp_path / "tools" / "t.py").touch()
    return [
        Mount("/data", tmp_path / "data"),
        Mount("/data/deep", tmp_path / "deep"),
        Mount("/opt/tools/", tmp_path / "tools", read_only=True),
    ]


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/data", "data"),
        ("/data/a/b", "data/a/b"),
        ("/data/deep/x", "deep/x"),
        ("/data/deeper", "data/deeper"),
        ("/data/../data/x", "data/x"),
        ("/opt/tools/t.py", "tools/t.py"),
        ("/dat", None),
        ("/data/../etc", None),
        ("/", None),
    ],
)
def test_paths_become_folders(mounts: list[Mount], tmp_path: Path, path: str, real: str | None) -> None:
    assert translate(path, mounts) == (tmp_path / real if real else None)


ALLOWED = [
    (
        ["python3", "/opt/tools/t.py", "a", "/data/x", "--out=/data/deep/y", "/etc"],
        ["-I", "{tools}/t.py", "a", "{data}/x", "--out={deep}/y", "/etc"],
    ),
    (["cat", "/data/x"], ["{data}/x"]),
    (["ls", "-la", "/data"], ["-la", "{data}"]),
    (["/bin/sha256sum", "/data/deep/x"], ["{deep}/x"]),
    (["tar", "cf", "-", "-C", "/data", "."], ["cf", "-", "-C", "{data}", "."]),
    (["tar", "-xzf", "/data/a.tgz", "-C", "/data/deep"], ["-xzf", "{data}/a.tgz", "-C", "{deep}"]),
    (["tar", "--create", "--file=-", "--directory=/data", "x"], ["--create", "--file=-", "--directory={data}", "x"]),
    (["echo", "hi"], ["hi"]),
]


@pytest.mark.parametrize(("argv", "rest"), ALLOWED, ids=[" ".join(row[0]) for row in ALLOWED])
def test_allowed(mounts: list[Mount], tmp_path: Path, argv: list[str], rest: list[str]) -> None:
    command = prepare(argv, mounts, {"A": "b"}, tmp_path)
    places = {name: str(tmp_path / name) for name in ("data", "deep", "tools")}
    assert list(command.argv[1:]) == [part.format(**places) for part in rest]
    assert Path(command.argv[0]).is_absolute()
    assert command.environment["A"] == "b"
    assert "PYTHONPATH" not in command.environment
    if argv[0] == "python3":
        assert command.argv[0] == sys.executable


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["sh", "-c", "id"],
        ["python3"],
        ["python3", "-c", "print(1)"],
        ["python3", "/etc/x.py"],
        ["python3", "/opt/tools/none.py"],
        ["cat", "/etc/passwd"],
        ["cat", "/data/../../etc/passwd"],
        ["rm", "-rf", "/"],
        ["ls", "relative"],
        ["tar", "cf", "/tmp/x.tar", "/data"],
        ["tar", "cf", "-", "-C", "/data", "../../etc"],
        ["tar", "cf", "-", "/etc"],
        ["tar", "cf", "-", "--checkpoint-action=exec=sh", "/data"],
        ["tar", "-I", "sh", "-cf", "-", "/data"],
        ["curl", "http://example.org"],
    ],
    ids=" ".join,
)
def test_refused(mounts: list[Mount], tmp_path: Path, argv: list[str]) -> None:
    with pytest.raises(CannotRun, match="lab: cannot run"):
        prepare(argv, mounts, {}, tmp_path)
