"""The command line: exit statuses, hints, and one message instead of a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_runbooks import runbook, toy_root

from hybridlab.ledger import locked
from hybridlab.runner import doctor
from hybridlab.runner.plans import stage_word
from hybridlab.runner.status import lock_holder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = toy_root(tmp_path)
    runbook(root, "010-plan-cluster", "print('hello')")
    return root


def hybridlab(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDLAB_")}
    words = [sys.executable, "-m", "hybridlab.cli", *arguments]
    return subprocess.run(words, cwd=root, env=own | env, capture_output=True, text=True, timeout=60, check=False)


def test_help_is_quick_and_imports_no_sdk(root: Path) -> None:
    code = (
        "import sys\nfrom hybridlab.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'kubernetes', 'oci', 'papermill', 'pydantic', 'rich', 'hybridlab.lab'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    took = []
    for _ in range(3):  # the quickest of three: the machine may be busy
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        took.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
    assert min(took) < 0.3
    assert "lab" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["runn"], 2, "Did you mean 'run'?"),
        (["run", "--aprove", "all"], 2, "'--approve'"),
        (["run", "011", "-p", "params/toy.yaml"], 2, "did you mean 010-plan-cluster?"),
        (["run", "-p", "params/toi.yaml"], 2, "params/toy.yaml"),
        (["run", "-p", "params/toy.yaml", "--set", "storage.replica=1"], 2, "did you mean storage.replicas?"),
        (["run", "-p", "params/toy.yaml", "--set", "storage.replicas"], 2, "--set section.name=value"),
        (["run", "-p", "params/toy.yaml", "--approve", "al"], 2, "neither all nor a plan's hash"),
        (["run", "-p", "params/toy.yaml", "--deadline", "-1"], 2, "--deadline"),
        (["plan", "storag", "-p", "params/toy.yaml"], 2, "did you mean storage?"),
        (["report", "last"], 2, "there are no runs yet"),
        (["convert", "nowhere.yaml", "-o", "out"], 2, "nowhere.yaml"),
        (["completion", "tcsh"], 2, "'bash'"),
    ],
)
def test_bad_input_is_one_message_and_status_2(root: Path, words: list[str], status: int, said: str) -> None:
    done = hybridlab(root, *words)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (root / "runs").exists()


def test_verbose_shows_the_traceback(root: Path) -> None:
    done = hybridlab(root, "-v", "report", "last")
    assert "Traceback" in done.stderr


def test_a_folder_without_params_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = hybridlab(empty, "run")
    assert done.returncode == 2
    assert "no params/ folder" in done.stderr


def test_run_report_and_status(root: Path) -> None:
    done = hybridlab(root, "run", "-p", "params/toy.yaml", "--set", "migrate.namespace=other")
    assert done.returncode == 0, done.stderr
    report = next(root.glob("runs/*/report/index.html"))
    assert str(report.relative_to(root)) in done.stdout
    assert "010-plan-cluster done" in done.stderr
    report.unlink()
    again = hybridlab(root, "report")
    assert again.returncode == 0
    assert Path(again.stdout.strip()) == report
    assert report.exists()
    status = json.loads(hybridlab(root, "status", "-p", "params/toy.yaml", "--json").stdout)
    assert status["last_run"]["state"] == "done"
    assert status["nodes"] == []
    assert status["lock"] == ""


def test_a_second_run_says_who_has_the_first(root: Path) -> None:
    lock = root / "state/toybox/lock"
    with locked(lock, run="the-first"):
        assert "run the-first" in lock_holder(lock)
        done = hybridlab(root, "run", "-p", "params/toy.yaml")
    assert done.returncode == 2
    assert f"process {os.getpid()}" in done.stderr
    assert "run the-first" in done.stderr
    assert lock_holder(lock) == ""


def test_the_schema_is_json_schema(root: Path) -> None:
    schema = json.loads(hybridlab(root, "params-schema").stdout)
    assert schema["properties"]["site"]["enum"] == ["lab", "oracle", "byo"]
    assert schema["additionalProperties"] is False


def test_every_parameter_is_listed(root: Path) -> None:
    rows = json.loads(hybridlab(root, "params", "--json").stdout)
    found = {row["path"]: row for row in rows}
    assert found["storage.engine"]["choices"][0] == "jiva"
    assert found["nodes.NAME.name"]["required"]
    listed = hybridlab(root, "params", "storage")
    assert "storage.replicas" in listed.stdout
    assert "backup.bucket" not in listed.stdout
    assert "one of: backup" in hybridlab(root, "params", "nothing").stderr


def test_an_editor_finds_the_schema(root: Path) -> None:
    done = hybridlab(root, "params-schema", "-o", "params/params.schema.json")
    assert "yaml-language-server: $schema=params.schema.json" in done.stdout
    schema = json.loads((root / "params/params.schema.json").read_text())
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["$defs"]["Storage"]["properties"]["replicas"]["maximum"] == 5


def test_what_is_wrong_is_found_before_a_lab_is_started(root: Path) -> None:
    path = root / "params/toy.yaml"
    path.write_text(path.read_text().replace("site: byo", "site: lab"))
    runbook(root, "070-migrate-services")
    for words in (["--set", "migrate.compose=no.yaml"], ["--set", "layout.allowance=never"]):
        done = hybridlab(root, "run", "-p", "params/toy.yaml", *words)
        assert done.returncode == 2, done.stderr
        assert "the lab is up" not in done.stderr
    with locked(root / "state/toybox/lock", run="the-first"):
        done = hybridlab(root, "run", "-p", "params/toy.yaml")
    assert "run the-first" in done.stderr
    assert not (root / ".lab").exists()


def test_doctor_names_what_is_missing(root: Path) -> None:
    done = hybridlab(root, "doctor", "-p", "params/toy.yaml", CLOUDFLARE_TUNNEL_TOKEN="")
    assert done.returncode == 1
    assert "backup.endpoint" in done.stdout
    assert "tunnel token" in done.stdout


@pytest.mark.parametrize("content", ["", "[DEFAULT]\nuser=x\n"])
def test_doctor_reads_the_oracle_config(root: Path, content: str) -> None:
    text = (root / "params/toy.yaml").read_text().replace("site: byo", "site: oracle")
    (root / "params/toy.yaml").write_text(text + "oracle: {config_file: oci}\n")
    if content:
        (root / "params/oci").write_text(content)
    items = {item.name: item for item in doctor.examine(root, str(root / "params/toy.yaml"))}
    assert not items["oracle config"].ok
    assert ("tenancy" if content else "oci") in items["oracle config"].found
    assert items["params"].ok


def test_stage_words() -> None:
    assert [stage_word(w) for w in ("storage", "050", "050-deploy-storage")] == ["storage"] * 3


def test_convert_and_its_strictness(root: Path) -> None:
    compose = root / "compose.yaml"
    compose.write_text("services:\n  web:\n    image: example/web:1\n    ports: ['80:80']\n")
    done = hybridlab(root, "convert", str(compose), "-o", "out", "--offline")
    assert done.returncode == 0, done.stderr
    assert list((root / "out").glob("*web*.yaml"))
    strict = hybridlab(root, "convert", str(compose), "-o", "out", "--offline", "--strict")
    assert strict.returncode == 1
