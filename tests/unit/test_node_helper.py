"""The node helper, run as it runs on a node: as a program, on real files."""

from __future__ import annotations

import ast
import base64
import hashlib
import http.server
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

HELPER = Path(str(resources.files("hybridlab.data").joinpath("node_helper.py")))
NS = 1_700_000_000_123_456_789
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' file systems")


def helper(*args: str | Path, stdin: bytes = b"", status: int = 0) -> tuple[bytes, list[dict[str, Any]]]:
    """Standard output and the events of a run."""
    done = subprocess.run(
        [sys.executable, "-I", HELPER, *args], input=stdin, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == status, done.stderr.decode()
    return done.stdout, [json.loads(line) for line in done.stderr.splitlines()]


def digest(folder: Path, *options: str) -> list[dict[str, Any]]:
    out, _ = helper("digest", folder, *options)
    return [json.loads(line) for line in out.splitlines()]


def comparable(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row.get("summary")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Everything that is hard about copying files."""
    root = tmp_path / "source"
    (root / "a" / "b").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a" / "big").write_bytes(hashlib.shake_128(b"big").digest(3_000_000))
    (root / "a" / "zero").write_bytes(b"")
    (root / "a" / "hard").hardlink_to(root / "a" / "big")
    (root / "z-hard").hardlink_to(root / "a" / "big")
    (root / "a" / "b" / "link").symlink_to("../../nowhere")
    (root / ("n" * 220)).write_bytes(b"a long name")
    (root / "Zoë").write_bytes(b"x")
    (root / "private").write_bytes(b"p")
    (root / "private").chmod(0o4600)
    with (root / "sparse").open("wb") as file:
        file.seek(20_000_000)
        file.write(b"in the middle")
        file.truncate(50_000_000)
    with (root / "hole").open("wb") as file:
        file.truncate(9_999_999)
    os.mkfifo(root / "fifo")
    if sys.platform == "linux":
        for name in (b"caf\xe9", b"sp\xffarse"):
            Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(b"not utf-8")  # noqa: PTH118
        os.truncate(os.fsencode(root) + b"/sp\xffarse", 5_000_000)
    (root / "read-only").mkdir()
    (root / "read-only" / "file").write_bytes(b"x")
    (root / "read-only").chmod(0o2555)
    os.utime(root / "empty", ns=(NS, NS))
    os.utime(root / "a" / "zero", ns=(NS, NS + 1))
    return root


@pytest.fixture
def archive(tree: Path) -> bytes:
    out, events = helper("archive", tree)
    assert events[-1]["event"] == "done"
    return out


def test_a_copy_is_the_same_in_everything(tree: Path, archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    helper("extract", target, stdin=archive)
    assert digest(target) == digest(tree)
    assert (target / "empty").stat().st_mtime_ns == NS
    assert (target / "a" / "zero").stat().st_mtime_ns == NS + 1
    assert (target / "a" / "hard").stat().st_ino == (target / "z-hard").stat().st_ino
    assert (target / "private").stat().st_mode & 0o7777 == 0o4600
    assert (target / "read-only").stat().st_mode & 0o7777 == 0o2555


@linux_only
def test_holes_stay_holes_and_are_not_sent(archive: bytes, tmp_path: Path) -> None:
    assert len(archive) < 4_000_000
    target = tmp_path / "target"
    helper("extract", target, stdin=archive)
    assert (target / "sparse").stat().st_blocks * 512 < 200_000
    assert (target / "hole").stat().st_size == 9_999_999


def test_extended_attributes_travel(tree: Path, tmp_path: Path) -> None:
    value = bytes(range(256))
    try:
        os.setxattr(tree / "private", "user.hybridlab", value)
    except (AttributeError, OSError):
        pytest.skip("this file system keeps no extended attributes")
    out, _ = helper("archive", tree)
    target = tmp_path / "target"
    helper("extract", target, stdin=out)
    assert os.getxattr(target / "private", "user.hybridlab") == value
    os.removexattr(target / "private", "user.hybridlab")
    assert digest(target)[-1]["sha256"] != digest(tree)[-1]["sha256"]
    helper("extract", target, stdin=out)
    assert digest(target)[-1]["sha256"] == digest(tree)[-1]["sha256"]


def test_other_programs_can_read_the_archive(tree: Path, archive: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = tar.getnames()
        big = tar.extractfile("a/big")
        assert big is not None
        assert big.read() == (tree / "a" / "big").read_bytes()
        sparse = tar.getmember("sparse")
        assert (sparse.issparse(), sparse.size) == (True, 50_000_000)
    assert names[:3] == [".", "Zoë", "a"]
    assert names.index("a") < names.index("a/b") < names.index("a/big") < names.index("z-hard")


def test_the_second_time_nothing_is_written(archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    helper("extract", target, stdin=archive)
    inode = (target / "a" / "zero").stat().st_ino
    single = (target / "n" / "x").parent  # not a member: only to show that nothing is added
    _, events = helper("extract", target, "--clean", stdin=archive)
    assert (target / "a" / "zero").stat().st_ino == inode
    assert not single.exists()
    assert events[-1]["same"] >= 6
    assert events[-1]["removed"] == 0


def test_an_interrupted_copy_goes_on(tree: Path, archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    _, events = helper("extract", target, stdin=archive[: len(archive) // 2], status=4)
    assert events[-1]["event"] == "failed"
    (target / "a").mkdir(parents=True, exist_ok=True)
    (target / "a" / ".hybridlab-part").write_bytes(b"left by a killed run")
    helper("extract", target, stdin=archive)
    assert comparable(digest(target)) == comparable(digest(tree))


def test_a_stream_that_ends_between_two_files_is_not_taken_for_whole(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "one").write_bytes(b"1")
    out, _ = helper("archive", source)
    cut = out.index(b".hybridlab-end")
    _, events = helper("extract", tmp_path / "t", stdin=out[: cut - cut % 512], status=4)
    assert "ended early" in events[-1]["why"]


def test_clean_removes_what_the_source_lacks_and_plain_extract_does_not(
    archive: bytes, tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    helper("extract", target, stdin=archive)
    (target / "extra" / "deep").mkdir(parents=True)
    (target / "extra" / "deep" / "file").write_bytes(b"x")
    (target / "empty" / "more").write_bytes(b"x")
    helper("extract", target, stdin=archive)
    assert (target / "extra" / "deep" / "file").exists()
    helper("extract", target, "--clean", stdin=archive)
    assert digest(target) == digest(tree)


def test_kinds_that_changed_are_replaced(tree: Path, archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "private").mkdir(parents=True)
    (target / "private" / "in the way").write_bytes(b"x")
    (target / "a").write_bytes(b"a file where a folder belongs")
    (target / "empty").symlink_to(tmp_path)
    helper("extract", target, stdin=archive)
    assert comparable(digest(target)) == comparable(digest(tree))


def test_a_delta_sends_only_what_changed(tree: Path, archive: bytes, tmp_path: Path) -> None:
    target = tmp_path / "target"
    helper("extract", target, stdin=archive)
    have = tmp_path / "have"
    have.write_bytes(helper("digest", target, "--quick")[0])
    (tree / "a" / "b" / "new").write_bytes(b"new")
    (tree / "Zoë").write_bytes(b"changed")
    (tree / "private").unlink()
    delta, events = helper("archive", tree, "--have", have)
    assert len(delta) < 100_000
    assert events[-1]["bytes"] == len(b"new" + b"changed")
    helper("extract", target, "--clean", stdin=delta)
    assert digest(target) == digest(tree)


def test_a_delta_for_another_target_is_refused(tree: Path, tmp_path: Path) -> None:
    have = tmp_path / "have"
    have.write_bytes(helper("digest", tree, "--quick")[0])
    delta, _ = helper("archive", tree, "--have", have)
    _, events = helper("extract", tmp_path / "empty", stdin=delta, status=4)
    assert "is not" in events[-1]["why"]


# -- one large file ----------------------------------------------------------------------------------------------------
BIG = 40_000_000


def large(folder: Path) -> Path:
    """A folder with a file of 40 MB among small ones."""
    folder.mkdir()
    (folder / "a").write_bytes(b"small")
    (folder / "film").write_bytes(hashlib.shake_128(b"film").digest(BIG))
    (folder / "z").write_bytes(b"small too")
    return folder


def broken_off(source: Path, target: Path, tmp_path: Path) -> Path:
    """A copy whose connection went in the middle of the large file; what the target then says that it has."""
    out, _ = helper("archive", source)
    helper("extract", target, "--clean", stdin=out[: len(out) * 3 // 4], status=4)
    have = tmp_path / "have.jsonl"
    have.write_bytes(helper("digest", target, "--quick")[0])
    return have


def test_a_large_file_goes_on_in_its_middle(tmp_path: Path) -> None:
    source, target = large(tmp_path / "source"), tmp_path / "target"
    have = broken_off(source, target, tmp_path)
    assert not (target / "film").exists(), "half a file has not its name"
    rest, events = helper("archive", source, "--have", have)
    assert BIG // 4 < len(rest) < BIG // 4 + 2_000_000
    at = next(e for e in events if e["event"] == "resumed")
    assert (at["path"], at["of"]) == ("film", BIG)
    assert at["at"] + next(e for e in events if e["event"] == "done")["bytes"] == BIG + len(b"small too")
    # the connection goes a second time, a little later
    helper("extract", target, "--clean", stdin=rest[: len(rest) // 2], status=4)
    have.write_bytes(helper("digest", target, "--quick")[0])
    again, _ = helper("archive", source, "--have", have)
    assert len(again) < len(rest) * 3 // 4
    helper("extract", target, "--clean", stdin=again)
    assert comparable(digest(target)) == comparable(digest(source))
    assert sorted(p.name for p in target.iterdir()) == ["a", "film", "z"]


@pytest.mark.parametrize(
    "change", ["the source's bytes", "the source's time", "the part's bytes", "the note", "shorter"]
)
def test_what_is_there_of_a_large_file_is_not_trusted(change: str, tmp_path: Path) -> None:
    source, target = large(tmp_path / "source"), tmp_path / "target"
    have = broken_off(source, target, tmp_path)
    film, part, note = source / "film", target / ".hybridlab-resume", target / ".hybridlab-resume.json"
    info = film.stat()
    if change == "the source's time":
        os.utime(film, ns=(NS, NS))
    elif change == "the note":
        note.write_text("{")
    elif change == "shorter":
        os.truncate(film, BIG // 2)
    else:
        at = film if change == "the source's bytes" else part
        with at.open("r+b") as file:
            file.seek(1000)
            file.write(b"other")
        os.utime(film, ns=(info.st_mtime_ns, info.st_mtime_ns))
    have.write_bytes(helper("digest", target, "--quick")[0])
    out, events = helper("archive", source, "--have", have)
    assert not [e for e in events if e["event"] == "resumed"]
    assert len(out) > film.stat().st_size
    helper("extract", target, "--clean", stdin=out)
    assert comparable(digest(target)) == comparable(digest(source))
    assert sorted(p.name for p in target.iterdir()) == ["a", "film", "z"]


def test_going_on_where_nothing_is_is_refused(tmp_path: Path) -> None:
    source, target = large(tmp_path / "source"), tmp_path / "target"
    have = broken_off(source, target, tmp_path)
    rest, _ = helper("archive", source, "--have", have)
    _, events = helper("extract", tmp_path / "elsewhere", stdin=rest, status=4)
    assert "was said" in events[-1]["why"]


@linux_only
def test_room_tells_what_is_free_and_what_is_held(tmp_path: Path) -> None:
    source = large(tmp_path / "source")
    with (source / "sparse").open("wb") as file:
        file.truncate(1 << 33)
    out, _ = helper("room", source)
    row = json.loads(out)
    assert BIG <= row["held"] < BIG + 1_000_000
    assert 0 < row["free"] <= row["total"]
    assert row["device"] == source.stat().st_dev


# -- dishonest archives ------------------------------------------------------------------------------------------------
def tar_of(*members: tuple[str, bytes, str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link, text in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, link, len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


DIR, FILE, SYM, HARD = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    "members",
    [
        [(".", DIR, "", ""), ("../escaped", FILE, "", "x")],
        [(".", DIR, "", ""), ("/tmp/hybridlab-escaped", FILE, "", "x")],
        [(".", DIR, "", ""), ("a", DIR, "", ""), ("a/../../escaped", FILE, "", "x")],
        [(".", DIR, "", ""), ("way", SYM, "OUTSIDE", ""), ("way/escaped", FILE, "", "x")],
        [(".", DIR, "", ""), ("hard", HARD, "../secret", "")],
        [(".", DIR, "", ""), ("way", SYM, "OUTSIDE", ""), ("hard", HARD, "way/secret", "")],
        [(".", DIR, "", ""), ("way", SYM, "OUTSIDE/secret", ""), ("hard", HARD, "way", "")],
    ],
    ids=["dot-dot", "absolute", "inner-dot-dot", "through-link", "hard-dot-dot", "hard-through-link", "hard-to-link"],
)
def test_paths_that_lead_out_are_refused(members: list[tuple[str, bytes, str, str]], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    target = tmp_path / "inner" / "target"
    target.mkdir(parents=True)
    data = tar_of(*((n, k, link.replace("OUTSIDE", str(outside)), t) for n, k, link, t in members))
    _, events = helper("extract", target, stdin=data, status=4)
    assert "refused" in events[-1]["why"]
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert not (tmp_path / "inner" / "escaped").exists()
    assert not (tmp_path / "escaped").exists()


def test_a_stream_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    _, events = helper("extract", tmp_path / "t", stdin=b"no tar at all" * 1000, status=4)
    assert "damaged" in events[-1]["why"]


# -- what changes while it is read -------------------------------------------------------------------------------------
def begun_archive(source: Path) -> tuple[subprocess.Popen[bytes], bytes]:
    """An archive of a big file, begun: it is in the middle of the file, held up by the full pipe."""
    process = subprocess.Popen(
        [sys.executable, "-I", HELPER, "archive", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = b""
    while len(first) < 2_000_000:
        first += os.read(process.stdout.fileno(), 100_000)  # not the buffered reader, which communicate() passes by
    return process, first


def test_a_file_that_grows_while_it_is_read_is_reported(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log").write_bytes(b"x" * 30_000_000)
    process, first = begun_archive(source)
    with (source / "log").open("ab") as file:
        file.write(b"more")
    (source / "new").write_bytes(b"new")
    rest, stderr = process.communicate(timeout=30)
    events = [json.loads(line) for line in stderr.splitlines()]
    assert process.returncode == 3
    assert {(e["event"], e["path"]) for e in events if e["event"] == "changed"} == {
        ("changed", "log"),
        ("changed", "."),
    }
    helper("extract", tmp_path / "target", stdin=first + rest)
    assert (tmp_path / "target" / "log").stat().st_size == 30_000_000


def test_a_file_that_shrinks_leaves_a_readable_archive(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"x" * 30_000_000)
    (source / "b").write_bytes(b"whole")
    process, first = begun_archive(source)
    os.truncate(source / "a", 5_000_000)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 3
    helper("extract", tmp_path / "target", stdin=first + rest)
    assert (tmp_path / "target" / "b").read_bytes() == b"whole"
    assert (tmp_path / "target" / "a").stat().st_size == 30_000_000


# -- owners ------------------------------------------------------------------------------------------------------------
def test_owners_are_kept_beside_the_files_for_those_who_may_not_give_them_away(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"x")
    (source / "d" / "h").hardlink_to(source / "d" / "f")
    owners = tmp_path / "owners.json"
    owners.write_text(json.dumps({".": [999, 999, 0o700], "d": [33, 34, 0o2750], "d/f": [0, 5, 0o400]}))
    out, _ = helper("archive", source, "--owners", owners)
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert [(m.uid, m.gid, m.mode) for m in tar if m.name in ("d", "d/f")] == [(33, 34, 0o2750), (0, 5, 0o400)]
    kept = tmp_path / "kept.json"
    helper("extract", target, "--owners", kept, stdin=out)
    table = json.loads(kept.read_text())
    assert table["d/f"] == table["d/h"] == [0, 5, 0o400]
    assert table["."] == [999, 999, 0o700]
    assert (target / "d" / "f").read_bytes() == b"x", "the files stay readable for their real owner"
    rows = {row.get("path"): row for row in digest(target, "--owners", str(kept))}
    assert (rows["d"]["uid"], rows["d"]["mode"], rows["d/f"]["gid"]) == (33, 0o2750, 5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_keeps_numeric_owners(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    os.chown(source / "f", 12345, 54321)
    (source / "f").chmod(0o6711)
    helper("extract", target, stdin=helper("archive", source)[0])
    info = (target / "f").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (12345, 54321, 0o6711)


# -- digest ------------------------------------------------------------------------------------------------------------
def test_the_digest_names_everything(tree: Path) -> None:
    rows = {row.get("path"): row for row in digest(tree)}
    assert rows["a/big"]["sha256"] == hashlib.sha256((tree / "a" / "big").read_bytes()).hexdigest()
    assert rows["a/hard"]["hardlink_of"] == rows["z-hard"]["hardlink_of"] == "a/big"
    assert rows["a/b/link"]["target"] == "../../nowhere"
    assert rows["fifo"]["type"] == "fifo"
    if sys.platform == "linux":
        names = {base64.b64decode(row["path_b64"]) for row in rows.values() if "path_b64" in row}
        assert names == {b"caf\xe9", b"sp\xffarse"}


@pytest.mark.parametrize("change", ["content", "mode", "name", "link", "kind"])
def test_any_change_changes_the_overall_digest(tree: Path, change: str) -> None:
    before = digest(tree)[-1]["sha256"]
    if change == "content":
        data = bytearray((tree / "a" / "big").read_bytes())
        data[1_000_000] ^= 1
        (tree / "a" / "big").write_bytes(data)
    elif change == "mode":
        (tree / "private").chmod(0o640)
    elif change == "name":
        (tree / "empty").rename(tree / "empty2")
    elif change == "link":
        (tree / "a" / "b" / "link").unlink()
        (tree / "a" / "b" / "link").symlink_to("elsewhere")
    else:
        (tree / "z-hard").unlink()
        shutil.copy2(tree / "a" / "big", tree / "z-hard")
    assert digest(tree)[-1]["sha256"] != before


def test_times_alone_do_not_change_the_overall_digest(tree: Path) -> None:
    before = digest(tree)[-1]["sha256"]
    os.utime(tree / "private")
    assert digest(tree)[-1]["sha256"] == before


# -- the rest ----------------------------------------------------------------------------------------------------------
def test_written_bytes_depend_on_the_seed(tmp_path: Path) -> None:
    one = json.loads(helper("write", tmp_path / "1", "--size", "3000000", "--seed", "7")[0])
    two = json.loads(helper("write", tmp_path / "2", "--size", "3000000", "--seed", "7")[0])
    other = json.loads(helper("write", tmp_path / "3", "--size", "3000000", "--seed", "8")[0])
    assert one["sha256"] == two["sha256"] != other["sha256"]
    assert hashlib.sha256((tmp_path / "1").read_bytes()).hexdigest() == one["sha256"]
    assert (tmp_path / "1").stat().st_size == 3_000_000


def test_the_benchmark_measures_each_class_and_leaves_nothing(tmp_path: Path) -> None:
    found = json.loads(helper("bench", "--rounds", "2", "--seconds", "0.1", "--dir", tmp_path)[0])
    assert len(found["rounds"]) == 2
    for classes in found["rounds"]:
        assert set(classes) == {"cpu_single", "cpu_all", "compress", "memory", "fsync"}
        for row in classes.values():
            assert row["rate"] > 0
            assert row["wall_s"] >= 0.1
        assert 0 < classes["cpu_single"]["cpu_share"] <= 1
        one = classes["cpu_single"]
        assert one["rate"] == pytest.approx(sum(one["intervals"]) / len(one["intervals"]), rel=0.5)
    assert list(tmp_path.iterdir()) == []


def test_listen_and_probe_find_each_other() -> None:
    listener = subprocess.Popen(
        [sys.executable, "-I", HELPER, "listen", "--tcp", "0", "--udp", "0", "--seconds", "20", "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert listener.stdout is not None
    ports = json.loads(listener.stdout.readline())["listening"]
    targets = [f"127.0.0.1:{port}" for port in ports]
    rows = json.loads(helper("probe", *targets, "--size", "8000")[0])
    assert [row["state"] for row in rows] == ["echo", "echo"]
    listener.communicate(timeout=10)  # closes its input: it ends
    assert listener.returncode == 0
    rows = json.loads(helper("probe", *targets, "--timeout", "0.3")[0])
    assert [row["state"] for row in rows] == ["refused", "refused"]


def test_facts_are_json() -> None:
    facts = json.loads(helper("facts")[0])
    assert facts["cpus"] >= 1
    assert facts["machine"]


def test_lost_and_found_is_nobodys_data(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "f").write_bytes(b"x")
    (target / "lost+found").mkdir(parents=True)
    helper("extract", target, "--clean", stdin=helper("archive", source)[0])
    assert (target / "lost+found").is_dir()
    assert digest(target)[-1]["sha256"] == digest(source)[-1]["sha256"]


def test_waiting_ends_when_told() -> None:
    process = subprocess.Popen([sys.executable, "-I", HELPER, "wait"])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.terminate()
    assert process.wait(10) in (0, -15)


def test_bad_folders_fail_with_a_reason(tmp_path: Path) -> None:
    _, events = helper("archive", tmp_path / "missing", status=4)
    assert events[-1] == {"event": "failed", "why": f"{tmp_path / 'missing'}: No such file or directory"}


def test_it_is_one_file_of_old_python_without_other_imports() -> None:
    module = ast.parse(HELPER.read_text("utf-8"), feature_version=(3, 8))
    names = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names <= set(sys.stdlib_module_names)


@linux_only
def test_big_streams_pass_in_constant_memory(tmp_path: Path) -> None:
    """300 MB with room for 160 in all, programs included: the stream is never held whole."""
    source = tmp_path / "source"
    source.mkdir()
    block = os.urandom(1 << 20)
    with (source / "big").open("wb") as file:
        for _ in range(300):
            file.write(block)
    for number in range(300):
        (source / f"{number:05}").write_bytes(b"x")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (160 << 20, 160 << 20))

    command = [sys.executable, "-I", str(HELPER)]
    reader = subprocess.Popen([*command, "archive", source], stdout=subprocess.PIPE, preexec_fn=limited)
    writer = subprocess.Popen([*command, "extract", tmp_path / "target"], stdin=reader.stdout, preexec_fn=limited)
    assert (writer.wait(60), reader.wait(60)) == (0, 0)
    assert (tmp_path / "target" / "big").stat().st_size == 300 << 20


# -- single files, streams and URLs ------------------------------------------------------------------------------------
def test_a_single_file_lands_under_its_own_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "acme.json").write_bytes(b"{}")
    (source / "acme.json").chmod(0o600)
    (source / "other").write_bytes(b"not asked for")
    out, _ = helper("archive", source / "acme.json")
    helper("extract", target, "--clean", stdin=out)
    assert [p.name for p in target.iterdir()] == ["acme.json"]
    assert (target / "acme.json").stat().st_mode & 0o777 == 0o600
    assert comparable(digest(source / "acme.json")) == comparable(digest(target / "acme.json"))


def framed(*pieces: bytes, end: bool = True) -> bytes:
    return b"".join(b"%d\n" % len(piece) + piece for piece in pieces) + (b"0\n" if end else b"")


def test_a_stream_is_received_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than one read
    out, _ = helper("receive", tmp_path / "dump", "--mode=640", stdin=framed(b"REDIS", data, b"\n0\n"))
    whole = b"REDIS" + data + b"\n0\n"
    assert (tmp_path / "dump").read_bytes() == whole
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o640
    assert json.loads(out) == {
        "path": str(tmp_path / "dump"),
        "size": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
    }


@pytest.mark.parametrize("stream", [framed(b"abc", end=False), b"5\nab", b"", b"REDIS", b"-1\n"])
def test_a_stream_that_broke_off_leaves_what_was_there(tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "dump").write_bytes(b"the last one")
    helper("receive", tmp_path / "dump", stdin=stream, status=4)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("dump", b"the last one")]


def test_fetching_a_url() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(301 if self.path == "/moved?x=1" else 200)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert json.loads(helper("fetch", f"http://127.0.0.1:{port}/moved?x=1")[0])["status"] == 301
        assert json.loads(helper("fetch", f"http://127.0.0.1:{port}")[0])["status"] == 200
        server.shutdown()
    row = json.loads(helper("fetch", f"http://127.0.0.1:{port}/")[0])
    assert (row["status"], row["error"]) == (0, "Connection refused")
