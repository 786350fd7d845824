"""A clone of one's own with its lab, driven as a user does: by the command line, by papermill, or by the library."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import oci

from hybridlab.cluster import Cluster, StageRun
from hybridlab.lab.process import Lab, ask, running_lab, stop_lab
from hybridlab.ledger import Ledger, Row
from hybridlab.params import parse_override, read_params
from hybridlab.wait import SystemClock, wait_until

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
PARAMS = "params/lab.yaml"
NODES = ("arm-1", "arm-2", "amd-1")
SPEED = 20
TIMEOUT_S = 300.0
PATIENT_S = 120.0
CLOCK = SystemClock()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Life:
    """One clone (``home``) with params/ and runbooks/, and the lab in its ``.lab``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._opened: Cluster | None = None
        shutil.copytree(ROOT / "params", home / "params")
        shutil.copytree(ROOT / "runbooks", home / "runbooks")
        # one short round: these tests are about what is done with a measurement, not about the measurement
        self.edit(PARAMS, ("rounds: 3", "rounds: 1"), ("seconds: 0.2", "seconds: 0.02"))

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        path = self.home / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    # -- as a user ---------------------------------------------------------------------------------------------------
    def _env(self, extra: Mapping[str, str]) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDLAB_", "JPY_"))}
        scripts = str(Path(sys.executable).parent)
        own["PATH"] = os.pathsep.join([scripts, own.get("PATH", "")])
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH", "")]))
        return own | {"HYBRIDLAB_LAB_SPEED": str(SPEED), **extra}

    def command(self, *words: str, **env: str) -> Done:
        """Any program, in the clone."""
        done = subprocess.run(
            words, cwd=self.home, env=self._env(env), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def hybridlab(self, *words: str, **env: str) -> Done:
        return self.command(sys.executable, "-m", "hybridlab.cli", *words, **env)

    def run(self, *words: str, approve: str = "all", **env: str) -> Done:
        """``hybridlab run …``, approved."""
        return self.hybridlab("run", *words, "--params", PARAMS, "--approve", approve, **env)

    def kubectl(self, *words: str) -> Done:
        kubectl = shutil.which("kubectl", path=self._env({})["PATH"])
        assert kubectl, "kubectl is part of the dev environment"
        return self.command(kubectl, *words, KUBECONFIG=str(self.kubeconfig))

    @contextmanager
    def running(self, *words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """``hybridlab run …`` in the background, approved; killed at the end if it still runs."""
        command = [sys.executable, "-m", "hybridlab.cli", "run", *words, "--params", PARAMS, "--approve", "all"]
        process = subprocess.Popen(
            command, cwd=self.home, env=self._env(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)

    def steps(self, *words: str) -> dict[str, list[dict[str, Any]]]:
        """What ``hybridlab plan all --json`` would change, by stage; stages without a change are left out."""
        done = self.hybridlab("plan", "all", "--json", "--params", PARAMS, *words)
        assert done.status == 0, done.said
        return {plan["stage"]: plan["steps"] for plan in json.loads(done.out) if plan["steps"]}

    # -- as a program --------------------------------------------------------------------------------------------------
    def cluster(self, *sets: str) -> Cluster:
        """The cluster, its connections those of nobody else; those opened here before are closed."""
        self._hang_up()
        overrides = dict(parse_override(item) for item in sets)
        path = self.home / PARAMS
        self._opened = Cluster(
            read_params(path, overrides), root=self.home, params_file=path, approvals=["all"], say=lambda line: None
        )
        return self._opened

    def _hang_up(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def make(self, *stages: str, sets: tuple[str, ...] = ()) -> StageRun:
        """Look, plan, apply, verify stage after stage, without notebooks; returns the last. Raises what they raise."""
        cluster = self.cluster(*sets)
        assert stages
        for name in stages:
            stage = cluster.stage(name)
            stage.gate()
            stage.apply()
            stage.verify()
            stage.hand_over()
        return stage

    # -- what there is -------------------------------------------------------------------------------------------------
    @property
    def state(self) -> Path:
        return self.home / "state" / "homelab"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def lab_dir(self) -> Path:
        return self.home / ".lab"

    @property
    def lab(self) -> Lab:
        return running_lab(self.lab_dir)

    def start(self, speed: float = SPEED) -> None:
        done = self.hybridlab("lab", "start", "--speed", str(speed), "--allowance", "until-2026-06")
        assert done.status == 0, done.said

    def stop(self) -> None:
        self._hang_up()
        stop_lab(self.lab_dir)

    def fault(self, name: str, *, count: int = 1, match: str = "") -> list[str]:
        done: list[str] = ask(self.lab, "/faults", body={"name": name, "count": count, "match": match})["done"]
        return done

    def faults_left(self) -> list[dict[str, Any]]:
        left: list[dict[str, Any]] = ask(self.lab, "/faults")["active"]
        return left

    def mutating(self, since: float) -> list[dict[str, Any]]:
        """The requests since then that were meant to change something, as ``hybridlab lab log`` tells them."""
        done = self.hybridlab("lab", "log", "--mutating", "--json", "--since", f"{since:f}")
        assert done.status == 0, done.said
        rows: list[dict[str, Any]] = json.loads(done.out)
        return rows

    def ledger(self) -> tuple[Row, ...]:
        return Ledger(self.state / "ledger.jsonl", run="").rows()

    def runs(self) -> list[Path]:
        """The folders of the runs, oldest first."""
        return sorted((self.home / "runs").glob("*-homelab*"), key=lambda path: path.stat().st_mtime)

    def last_run(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.runs()[-1] / "run.json").read_text(encoding="utf-8"))
        return record

    def await_row(self, event: str, step: str, *, after: int = 0) -> Row:
        """Wait until the ledger tells of this event of a step (or of one that begins so)."""

        def look() -> list[Row]:
            return [r for r in self.ledger()[after:] if r.event == event and r.step.startswith(step)]

        return promptly(look, bool, f"{step} {event}")[0]

    # -- Oracle, as another program sees it ----------------------------------------------------------------------------
    def oci(self, client: Any) -> tuple[Any, str]:
        """A client of the oci SDK and the compartment."""
        where = self.lab.endpoints["oracle"]
        config = oci.config.from_file(where["config_file"], where["profile"])
        return client(config, service_endpoint=where["endpoint"]), str(where["compartment_id"])

    def instances(self, *, gone: bool = False) -> list[Any]:
        compute, compartment = self.oci(oci.core.ComputeClient)
        found: list[Any] = oci.pagination.list_call_get_all_results(compute.list_instances, compartment).data
        return [vm for vm in found if gone or vm.lifecycle_state not in ("TERMINATED", "TERMINATING")]

    def launched(self) -> list[str]:
        """The names of all VMs that were ever made, sorted."""
        return sorted(vm.display_name for vm in self.instances(gone=True))

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The cluster's nodes as the API has them, by name."""
        rows = self.cluster().kube.list("v1", "Node")
        return {row["metadata"]["name"]: row for row in rows}


def ready(node: Mapping[str, Any]) -> bool:
    conditions = node["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def told_in_one_message(done: Done, *words: str) -> None:
    """Bad input as the user should see it: exit status 2, one message that names the thing and a next move."""
    assert done.status == 2, done.said
    assert "Traceback" not in done.said
    lines = done.err.strip().splitlines()
    assert lines[0].startswith(("hybridlab: ", "Error: ", "Usage: ")), done.err
    assert sum("next:" in line for line in lines) == 1, done.err
    assert len(lines) <= 3, done.err
    for word in words:
        assert word in done.err, done.err


def promptly(look: Callable[[], T], done: Callable[[T], bool], what: str, deadline_s: float = PATIENT_S) -> T:
    """Wait, and notice within a twentieth of a second: for what has to be caught in the act."""
    return wait_until(look, done, what=what, deadline_s=deadline_s, clock=CLOCK, interval_s=0.05, interval_max_s=0.05)
