"""The record under state/: rows that survive a crash, one writer, evidence that may be relied on, secrets."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hybridlab.errors import BadInput, Locked, SchemaTooNew
from hybridlab.ledger import EvidenceStore, Ledger, Secret, SecretStore, inputs_hash, locked, write_atomic


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state" / "ledger.jsonl", run="run-1")


# -- rows --------------------------------------------------------------------------------------------------------------
def test_rows_come_back_in_order(ledger: Ledger) -> None:
    assert ledger.rows() == ()
    first = ledger.add("provision", "create-vcn", "started", effect="create", target="VCN ü", detail={"id": "x"})
    second = ledger.add("bootstrap", "", "planned")
    assert ledger.rows() == (first, second)
    assert ledger.path.read_bytes().count(b"\n") == 2
    assert ledger.rows(stage="provision") == (first,)
    assert (first.run, first.effect, first.target, dict(first.detail)) == ("run-1", "create", "VCN ü", {"id": "x"})
    assert datetime.fromisoformat(first.time).utcoffset() is not None


def test_a_row_holds_exactly_the_documented_keys(ledger: Ledger) -> None:
    ledger.add("s", "a", "done")
    row = json.loads(ledger.path.read_text(encoding="utf-8"))
    assert set(row) == {"schema", "time", "run", "stage", "step", "event", "effect", "target", "detail"}
    assert row["schema"] == 1
    assert row["effect"] == "none"


def test_a_torn_last_line_is_left_out_and_ended_by_the_next_row(ledger: Ledger) -> None:
    first = ledger.add("s", "a", "started")
    with ledger.path.open("ab") as file:
        file.write(b'{"schema": 1, "time": "20')
    assert ledger.rows() == (first,)
    second = ledger.add("s", "b", "started")
    assert ledger.rows() == (first, second)
    assert ledger.path.read_bytes().count(b"\n") == 3


def test_rows_are_only_ever_appended(ledger: Ledger) -> None:
    ledger.add("s", "a", "started")
    before = ledger.path.read_bytes()
    Ledger(ledger.path, run="run-2").add("s", "a", "done")
    assert ledger.path.read_bytes().startswith(before)
    assert [r.run for r in ledger.rows()] == ["run-1", "run-2"]


def test_a_newer_schema_is_refused_an_older_one_read(ledger: Ledger) -> None:
    ledger.add("s", "a", "done")
    old = json.loads(ledger.path.read_text(encoding="utf-8"))
    ledger.path.write_text(json.dumps({**old, "schema": 0, "unheard_of": 1}) + "\n", encoding="utf-8")
    assert ledger.rows()[0].step == "a"
    ledger.path.write_text(json.dumps({**old, "schema": 2}) + "\n", encoding="utf-8")
    with pytest.raises(SchemaTooNew) as caught:
        ledger.rows()
    assert "schema 2" in caught.value.why
    assert caught.value.where == str(ledger.path)
    assert caught.value.next_move


def test_secrets_do_not_reach_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l", run="r", redact=lambda text: text.replace("hunter22", "***"))
    ledger.add("s", "a", "failed", target="hunter22", detail={"error": "password hunter22 refused"})
    text = ledger.path.read_text(encoding="utf-8")
    assert "hunter22" not in text
    assert "password *** refused" in text


@pytest.mark.parametrize(
    ("events", "open_"),
    [
        (["started"], True),
        (["started", "done"], False),
        (["started", "failed"], False),
        (["started", "unknown"], True),
        (["started", "interrupted"], True),
        (["started", "unknown", "started", "done"], False),
        (["started", "done", "undone"], False),
        (["started", "done", "started"], True),
        (["skipped"], False),
        (["started", "planned"], True),
    ],
)
def test_open_steps(ledger: Ledger, events: list[Any], open_: bool) -> None:
    for event in events:
        ledger.add("s", "a", event)
    ledger.add("s", "", "verified")
    assert ledger.open_steps("s") == (("a",) if open_ else ())
    assert ledger.open_steps("other") == ()


# -- lock --------------------------------------------------------------------------------------------------------------
HOLDER = """
import sys
from pathlib import Path
from hybridlab.ledger import locked
with locked(Path(sys.argv[1]), run="run-of-another"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_lock_held_by_another_process_says_who_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "homelab" / "lock"
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked) as caught, locked(path, run="mine"):
            pytest.fail("two writers at once")
        other.stdin.write("\n")
        other.stdin.close()
        other.wait(timeout=10)
    assert f"process {other.pid} on " in caught.value.why
    assert "run run-of-another" in caught.value.why
    since = caught.value.why.rsplit("since ", 1)[1]
    assert datetime.fromisoformat(since)
    assert caught.value.where == "homelab"
    assert caught.value.exit_code == 2
    with locked(path, run="mine"):  # gone with its holder
        assert "run mine" in path.read_text(encoding="utf-8")
    assert mode(path) == 0o600


def test_a_lock_is_exclusive_and_given_back_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def fail() -> None:
        with locked(path, run="a"):
            with pytest.raises(Locked), locked(path, run="b"):
                pytest.fail("two writers at once")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with locked(path, run="longer-name-than-before"):
        pass
    with locked(path, run="c"):
        assert path.read_text(encoding="utf-8").count("run ") == 1  # nothing of the last holder is left


# -- evidence ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def store(tmp_path: Path) -> EvidenceStore:
    return EvidenceStore(tmp_path / "evidence", cluster="homelab", run="run-1")


def test_evidence_and_why_it_may_not_be_used(store: EvidenceStore) -> None:
    assert store.usable("benchmark", inputs=1, max_age_h=1, now=0.0) == (None, "there is none yet")
    saved = store.save("benchmark", {"rounds": 3}, inputs={"nodes": ["a"]})
    made = datetime.fromisoformat(saved.made).timestamp()

    def usable(inputs: object = None, *, hours: float = 1.0, who: EvidenceStore = store) -> tuple[bool, str]:
        found, why = who.usable("benchmark", inputs=inputs or {"nodes": ["a"]}, max_age_h=24, now=made + hours * 3600)
        return found is not None, why

    assert usable() == (True, "1.0 h old")
    assert usable(hours=24.0) == (True, "24.0 h old")
    assert usable(hours=25) == (False, "it is 25 h old, more than 24 h")
    assert usable({"nodes": ["a", "b"]}) == (False, "what it was made from has changed")
    other = EvidenceStore(store.folder, cluster="other", run="r")
    assert usable(who=other) == (False, "it belongs to another cluster (homelab)")
    assert store.load("benchmark") == saved
    assert store.save("benchmark", {"rounds": 3}, inputs={"nodes": ["b"]}).inputs != saved.inputs
    assert usable({"nodes": ["b"]})[0]
    assert (saved.cluster, saved.run, saved.kind) == ("homelab", "run-1", "benchmark")
    store.drop("benchmark")
    store.drop("benchmark")
    assert store.load("benchmark") is None


def test_evidence_of_a_newer_hybridlab_is_refused(store: EvidenceStore) -> None:
    store.save("x", {}, inputs=1)
    path = store.folder / "x.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "schema": 2}), encoding="utf-8")
    with pytest.raises(SchemaTooNew):
        store.load("x")


def test_inputs_hash_ignores_the_order_of_keys() -> None:
    assert inputs_hash({"a": 1, "b": 2}) == inputs_hash({"b": 2, "a": 1})
    assert inputs_hash({"a": 1}) != inputs_hash({"a": 2})
    assert len(inputs_hash(None)) == 16


# -- secrets and files -------------------------------------------------------------------------------------------------
def test_secrets_are_only_the_owners(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    assert store.values() == ()
    assert store.get("token") is None
    store.put("token", "s3cr3t-value")
    store.put("ssh_key.pub", "public")
    assert mode(store.folder) == 0o700
    assert mode(store.path("token")) == 0o600
    found = store.get("token")
    assert found is not None
    assert found.reveal() == "s3cr3t-value"
    assert store.values() == ("s3cr3t-value",)  # a public half is not secret
    store.put("token", "another-one")
    assert mode(store.path("token")) == 0o600
    assert store.values() == ("another-one",)
    store.drop("token")
    assert store.get("token") is None


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "secrets")
    made = store.get_or_make("password")
    assert len(made.reveal()) >= 24
    assert store.get_or_make("password").reveal() == made.reveal()
    assert store.get_or_make("other").reveal() != made.reveal()
    assert store.get_or_make("given", lambda: "x").reveal() == "x"


def test_a_secret_does_not_show_itself() -> None:
    assert "hunter2" not in f"{Secret('hunter2')!r} {Secret('hunter2')} {[Secret('hunter2')]}"


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "Upper"])
def test_a_secrets_name_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        SecretStore(tmp_path).path(name)


def test_write_atomic(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one", mode=0o600)
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
    write_atomic(path, b"plain")
    assert mode(path) & 0o177 == 0o44
    write_atomic(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()  # can't be replaced by a file
    with pytest.raises(OSError, match="file"):
        write_atomic(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
