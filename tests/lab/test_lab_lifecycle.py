"""The lab's process: started, found, troubled, stopped, killed, started again."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from running_lab import RunningLab

from hybridlab.errors import BadInput, LabNotRunning, Locked, SchemaTooNew
from hybridlab.lab import cli
from hybridlab.lab.directory import LabDirectory, lab_directory
from hybridlab.lab.leftover import command_line
from hybridlab.lab.process import Lab, ask, lab_status, running_lab, start_lab, stop_lab
from hybridlab.wait import SystemClock, wait_until

START_GOAL_S = 3.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A lab's folder; a lab that a test leaves running in it is stopped."""
    yield tmp_path / "lab"
    stop_lab(tmp_path / "lab")


def start(folder: Path, *parts: str) -> Lab:
    return start_lab(folder, speed=20, parts=parts or ("s3",))


def soon(holds: Callable[[], bool], what: str) -> None:
    wait_until(holds, bool, what=what, deadline_s=10, clock=SystemClock(), interval_s=0.02, interval_max_s=0.2)


def ended(pid: int) -> bool:
    return not command_line(pid)  # a zombie that nobody has collected yet has an empty one


def helper_pid(folder: Path) -> int:
    return int((folder / "s3.pid").read_text())


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli.lab, list(arguments))


# -- starting ----------------------------------------------------------------------------------------------------------
def test_it_says_where_it_is_and_starts_quickly(folder: Path) -> None:
    begun = time.monotonic()
    lab = start(folder, "registry", "s3")
    assert time.monotonic() - begun < START_GOAL_S
    assert lab.fresh
    written = json.loads((folder / "lab.json").read_text())
    assert written["schema"] == 1
    assert written["pid"] == lab.pid
    assert written["control"].startswith("http://127.0.0.1:")
    assert set(written["endpoints"]) == {"cloudflare", "registry", "s3"}
    for private in ("lab.json", "lab.log", "cloudflare-token", "s3-credentials"):
        assert (folder / private).stat().st_mode & 0o077 == 0, private
    status = lab_status(folder)
    assert status["parts"] == ["registry", "s3"]
    assert status["speed"] == 20
    assert 0 < status["memory_mb"] < 1000
    token = json.loads(base64.b64decode(Path(lab.endpoints["cloudflare"]["token_file"]).read_text()))
    assert set(token) == {"a", "t", "s"}


def test_starting_twice_keeps_the_first(folder: Path) -> None:
    first = start(folder)
    second = start(folder)
    assert (second.pid, second.fresh) == (first.pid, False)


def test_a_second_lab_on_the_folder_is_refused(folder: Path) -> None:
    lab = start(folder)
    second = subprocess.run(
        [sys.executable, "-m", "hybridlab.lab", "--dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == Locked.exit_code
    assert f"process {lab.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert running_lab(folder).pid == lab.pid


def test_several_who_start_it_at_once_get_the_same_lab(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hybridlab.lab.process import start_lab; "
        "print(start_lab(Path(sys.argv[1]), parts=['s3']).pid)"
    )
    starters = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert pids == {str(running_lab(folder).pid)}


def test_a_new_folder_can_be_marked_by_several_at_once(tmp_path: Path) -> None:
    """Each of them finds it empty, or marked by another: never "not a lab's"."""
    together = threading.Barrier(4)

    def prepare(number: int) -> None:
        together.wait()
        LabDirectory(tmp_path / str(number)).prepare()

    with ThreadPoolExecutor(4) as pool:
        for number in range(200):
            for done in [pool.submit(prepare, number) for _ in range(4)]:
                done.result()


def test_two_labs_live_side_by_side(folder: Path, tmp_path: Path) -> None:
    one, two = start(folder), start(tmp_path / "other")
    try:
        assert one.endpoints["s3"]["endpoint"] != two.endpoints["s3"]["endpoint"]
        assert stop_lab(tmp_path / "other")
        assert running_lab(folder).pid == one.pid
    finally:
        stop_lab(tmp_path / "other")


def test_it_outlives_the_process_and_session_that_started_it(folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hybridlab.lab.process import start_lab; "
        "start_lab(Path(sys.argv[1]), parts=['s3']); os.killpg(0, 9)"
    )
    starter = subprocess.run([sys.executable, "-c", code, str(folder)], start_new_session=True, timeout=60, check=False)
    assert starter.returncode == -signal.SIGKILL
    assert lab_status(folder)["parts"] == ["s3"]


def test_failing_to_start_shows_the_log(folder: Path) -> None:
    folder.mkdir()
    LabDirectory(folder).prepare()
    (folder / "s3").write_text("in the way")
    with pytest.raises(LabNotRunning) as failed:
        start(folder)
    assert "FileExistsError" in str(failed.value)
    assert str(folder / "lab.log") in str(failed.value)
    with pytest.raises(LabNotRunning):
        running_lab(folder)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"allowance": "until-2026-6"}, "did you mean until-2026-06?"),
        ({"parts": ["registri"]}, "did you mean registry?"),
        ({"speed": 0}, "not between"),
    ],
)
def test_bad_settings_start_nothing(folder: Path, given: dict[str, Any], hint: str) -> None:
    with pytest.raises(BadInput) as refused:
        start_lab(folder, **given)
    assert hint in str(refused.value)
    assert not folder.exists()


def test_a_folder_with_other_things_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="isn't a lab's"):
        start(folder)
    with pytest.raises(BadInput, match="nothing was deleted"):
        LabDirectory(folder).empty()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_a_newer_labs_status_is_refused(folder: Path) -> None:
    LabDirectory(folder).prepare()
    (folder / "lab.json").write_text(json.dumps({"schema": 2, "control": "x"}))
    with pytest.raises(SchemaTooNew):
        running_lab(folder)
    (folder / "lab.json").unlink()


# -- stopping ----------------------------------------------------------------------------------------------------------
def test_stop_and_start_keep_what_is_in_it(folder: Path) -> None:
    before = start(folder, "registry", "s3")
    ask(before, "/operator", body={"ip": "203.0.113.9"})
    keys = Path(before.endpoints["s3"]["credentials_file"]).read_text()
    helper = helper_pid(folder)
    assert stop_lab(folder)
    assert ended(before.pid)
    assert ended(helper)
    assert not (folder / "lab.json").exists()
    with pytest.raises(LabNotRunning):
        lab_status(folder)
    assert not stop_lab(folder)
    after = start(folder, "registry", "s3")
    assert after.operator_ip == "203.0.113.9"
    assert after.endpoints == before.endpoints  # the ports too: others have them written down
    assert Path(after.endpoints["s3"]["credentials_file"]).read_text() == keys


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it_in_order(folder: Path, number: signal.Signals) -> None:
    lab = start(folder)
    helper = helper_pid(folder)
    os.kill(lab.pid, number)
    soon(lambda: LabDirectory(folder).holder() is None, "the lab's end")
    assert ended(helper)
    assert not (folder / "lab.json").exists()


def test_a_killed_lab_is_noticed_and_cleaned_up(folder: Path) -> None:
    killed = start(folder)
    helper = helper_pid(folder)
    os.kill(killed.pid, signal.SIGKILL)
    soon(lambda: ended(killed.pid), "the lab's end")
    assert (folder / "lab.json").exists()
    with pytest.raises(LabNotRunning):
        running_lab(folder)
    again = start(folder)
    assert again.fresh
    assert ended(helper), "the old S3 server still writes into the folder"
    assert again.endpoints == killed.endpoints


def test_stopping_a_killed_lab_ends_its_helper(folder: Path) -> None:
    killed = start(folder)
    helper = helper_pid(folder)
    os.kill(killed.pid, signal.SIGKILL)
    soon(lambda: ended(killed.pid), "the lab's end")
    stop_lab(folder)
    soon(lambda: ended(helper), f"the end of its S3 server {helper}: {command_line(helper)}")
    assert not (folder / "lab.json").exists()


def test_s3_comes_back_when_its_server_ends(folder: Path) -> None:
    lab = start(folder)
    first = helper_pid(folder)
    os.kill(first, signal.SIGKILL)
    soon(lambda: helper_pid(folder) != first, "another S3 server")

    def answers() -> bool:
        request = urllib.request.Request(
            lab.endpoints["s3"]["endpoint"], headers={"Authorization": "AWS4-HMAC-SHA256 x"}
        )
        try:
            urllib.request.urlopen(request, timeout=5)
        except urllib.error.HTTPError as error:
            return error.code in (400, 403)  # rclone refuses us, so it is there
        return False

    soon(answers, "S3 to answer")


def test_a_pid_file_that_names_somebody_else_harms_nobody(folder: Path) -> None:
    LabDirectory(folder).prepare()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (folder / "s3.pid").write_text(f"{stranger.pid}\n")
        start(folder)
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n", timeout=10)


def test_reset_deletes_everything_and_can_be_repeated(folder: Path) -> None:
    start(folder)
    odd = os.fsencode(folder / "s3") + b"/not-utf-8-\xff"
    with open(odd, "wb"):  # noqa: PTH123 - bytes
        pass
    for said in ("Deleted", "There was no lab"):
        answer = command("reset", "--dir", str(folder))
        assert answer.exit_code == 0, answer.output
        assert said in answer.output
        assert not folder.exists()


# -- the control port --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}],
    ids=["origin", "rebinding", "fetch"],
)
def test_browsers_are_refused(store_lab: RunningLab, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/status"), ("POST", "/stop")):
        request = urllib.request.Request(store_lab.lab.control + path, headers=headers, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code == 403
    assert store_lab.status()["pid"] == store_lab.lab.pid


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/faults", {"name": "s3-dwn"}, "did you mean s3-down? known: registry-quota, s3-corrupt, s3-down"),
        ("/faults", {"name": "s3-down", "count": 0}, "count=0 is not between 1 and 1000"),
        ("/faults", {"name": "s3-down", "count": "many"}, "count='many' is not a number"),
        ("/operator", {"ip": "home"}, "'home' is not an IP address"),
        ("/log?since=yesterday", None, "since='yesterday' is not a Unix time"),
        ("/dial?host=10.0.0.1&port=x", None, "port='x' is not a number"),
        ("/dial?port=22", None, "host is missing"),
        ("/nothing", None, "Not Found"),
    ],
)
def test_control_says_what_is_wrong(store_lab: RunningLab, path: str, body: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(BadInput) as refused:
        ask(store_lab.lab, path, body=body)
    assert said in str(refused.value)


def test_faults_to_come_are_listed_until_they_struck(folder: Path) -> None:
    lab = start(folder)
    ask(lab, "/faults", body={"name": "s3-down", "count": 2, "match": "GET"})
    assert ask(lab, "/faults")["active"] == [{"name": "s3-down", "remaining": 2, "match": "GET"}]
    for left in (1, 0):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(lab.endpoints["s3"]["endpoint"], timeout=5)
        assert sum(fault["remaining"] for fault in lab_status(folder)["faults"]) == left


def test_moving_the_operator_is_seen_by_who_reads_lab_json(folder: Path) -> None:
    lab = start(folder)
    assert ask(lab, "/operator", body={"ip": "203.0.113.77"}) == {
        "operator_ip": "203.0.113.77",
        "before": lab.operator_ip,
    }
    assert running_lab(folder).operator_ip == lab_status(folder)["operator_ip"] == "203.0.113.77"


# -- the command line --------------------------------------------------------------------------------------------------
def test_commands_tell_the_whole_story(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLAB_LAB_DIR", str(folder))
    start(folder, "registry", "s3")
    again = command("start")
    assert (again.exit_code, "already running" in again.output) == (0, True)
    status = command("status", "--json")
    assert json.loads(status.stdout)["parts"] == ["registry", "s3"]
    assert "parts     registry, s3" in command("status").output
    moved = command("operator", "203.0.113.5")
    assert "203.0.113.5 now (before: 198.51.100.7)" in moved.output
    listing = command("fault", "--list").output
    assert "s3-corrupt" in listing
    assert (
        command("fault", "s3-down", "--count", "3", "--match", "/b/").output
        == "to come: s3-down, 3 times where '/b/' fits\n"
    )
    assert "to come: s3-down, 3 times" in command("fault", "--list").output
    unknown = command("fault", "s3-dwn")
    assert (unknown.exit_code, "did you mean s3-down?" in unknown.stderr) == (2, True)
    endpoints = command("endpoints").output
    assert "skopeo inspect --raw --tls-verify=false docker://127.0.0.1:" in endpoints
    assert "restic -r s3:http://127.0.0.1:" in endpoints
    assert command("stop").output == "The lab has stopped.\n"
    assert "No lab was running" in command("stop").output


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "--json"),
        ("fault", "--list"),
        ("endpoints",),
        ("operator", "10.0.0.1"),
        ("dial", "a", "1"),
    ],
    ids=" ".join,
)
def test_commands_without_a_lab_are_one_message_and_status_2(folder: Path, arguments: tuple[str, ...]) -> None:
    answer = command(*arguments, "--dir", str(folder))
    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert "the lab is not running" in answer.stderr
    assert "next: hybridlab lab start" in answer.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("status",), 2), (("fault", "--list"), 2), (("stop",), 0), (("log", "--count"), 0), (("log", "--since", "x"), 2)],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_the_installed_command_ends_with_the_same_status(folder: Path, arguments: tuple[str, ...], status: int) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "hybridlab.cli", "lab", *arguments, "--dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.returncode == status
    assert "Traceback" not in answer.stderr
    assert bool(answer.stderr) == bool(status)


def test_log_is_filtered_and_counted(folder: Path) -> None:
    lab = start(folder, "registry", "s3")
    registry, s3 = lab.endpoints["registry"]["endpoint"], lab.endpoints["s3"]["endpoint"]
    for method, url in (("GET", f"{registry}/v2/"), ("GET", s3), ("PUT", f"{s3}/bucket")):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=5)

    def counted(*arguments: str) -> int:
        number = command("log", "--dir", str(folder), "--count", *arguments).output
        rows = json.loads(command("log", "--dir", str(folder), "--json", *arguments).output)
        assert len(rows) == int(number)
        return len(rows)

    assert counted() == 3
    assert counted("--part", "s3") == 2
    assert counted("--mutating") == 1
    assert counted("--since", "1h") == 3
    rows = ask(lab, "/log")["rows"]
    assert counted("--since", str(rows[1]["time"])) == 2
    assert counted("--since", "2100-01-01T00:00:00Z") == 0
    assert "* s3       403 PUT       /bucket" in command("log", "--dir", str(folder)).output
    wrong = command("log", "--dir", str(folder), "--since", "yesterday")
    assert (wrong.exit_code, "'yesterday' is not a time" in wrong.stderr) == (2, True)
    stop_lab(folder)
    assert counted() == 3  # also when it doesn't run


def test_the_folder_is_found_from_below_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HYBRIDLAB_LAB_DIR", "HYBRIDLAB_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "clone" / "params").mkdir(parents=True)
    (tmp_path / "clone" / "runbooks").mkdir()
    monkeypatch.chdir(tmp_path / "clone" / "runbooks")
    assert lab_directory() == tmp_path / "clone" / ".lab"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="no params/ folder"):
        lab_directory()
    monkeypatch.setenv("HYBRIDLAB_HOME", str(tmp_path / "clone"))
    assert lab_directory() == tmp_path / "clone" / ".lab"
    monkeypatch.setenv("HYBRIDLAB_LAB_DIR", str(tmp_path / "elsewhere"))
    assert lab_directory() == tmp_path / "elsewhere"


# -- the whole lab -----------------------------------------------------------------------------------------------------
def test_the_whole_lab_is_there(lab: RunningLab) -> None:
    status = lab.status()
    assert set(status["parts"]) == {"registry", "s3", "hosts", "kube", "oracle"}
    assert status["counts"]["machines"] >= 1  # the Docker host
    assert {"cloudflare", "docker_host", "k3s", "oracle", "registry", "s3"} <= set(lab.endpoints)
    assert {"out-of-capacity", "too-many-requests", "ssh-drop", "s3-corrupt"} <= set(ask(lab.lab, "/faults")["known"])


def test_logical_addresses_and_names_can_be_dialled(lab: RunningLab) -> None:
    address = lab.endpoints["docker_host"]["address"]
    state, port = lab.dial(address, 22)
    assert state == "open"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(5)
        assert connection.recv(8).startswith(b"SSH-2.0-")
    assert lab.dial("docker-1", 22) == (state, port)
    assert lab.dial(address, 23) == ("refused", 0)
    assert lab.dial("no-such-machine", 22) == ("refused", 0)
    answer = command("dial", "docker-1", "22", "--dir", str(lab.dir))
    assert (answer.exit_code, answer.stdout) == (0, f"127.0.0.1:{port}\n")
    refused = command("dial", address, "23", "--dir", str(lab.dir))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "connection refused" in refused.stderr


def test_dialling_needs_a_network(store_lab: RunningLab) -> None:
    with pytest.raises(BadInput, match="without the part hosts"):
        store_lab.dial("10.0.0.1", 22)


def test_a_port_that_is_taken_meanwhile_is_given_up(folder: Path) -> None:
    before = start(folder)
    stop_lab(folder)
    taken = int(before.endpoints["s3"]["endpoint"].rpartition(":")[2])
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", taken))
        other.listen()
        after = start(folder)
        assert after.endpoints["s3"]["endpoint"] != before.endpoints["s3"]["endpoint"]
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(after.endpoints["s3"]["endpoint"], timeout=5)
