"""The documentation says what is so: params.md is current, commands and options exist, links resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from params_page import PAGE, page

from hybridlab.cli import cli
from hybridlab.cluster import STAGES
from hybridlab.errors import HybridlabError

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NOT_WORDS = re.compile(r"^[A-Z…][A-Z…]*$|^…$")


def test_params_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/unit/params_page.py"


def slug(heading: str) -> str:
    """The anchor of a heading as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def commands(path: Path) -> Iterator[str]:
    """Every ``hybridlab …`` that a page shows, in code blocks and in code spans."""
    text = path.read_text(encoding="utf-8")
    for line in "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).splitlines():
        found = re.match(r"(?:\$ |  next: )?(hybridlab .*)", line)
        if found:
            yield re.split(r"  +#|\s[;|]\s|; then", found[1])[0]
    for span in re.findall(r"`(hybridlab [^`\n]*)`", text):
        yield re.split(r"\s[;|]\s", span)[0]


def check(words: list[str]) -> None:
    """Raises AssertionError where a command or option doesn't exist."""
    command: click.Command = cli
    context = click.Context(cli, info_name="hybridlab")
    rest = [word.strip("[],") for word in words[1:]]
    while rest and isinstance(command, click.Group):
        word = rest.pop(0)
        if word in ("-v", "…") or NOT_WORDS.match(word):
            continue
        found = command.get_command(context, word)
        assert found is not None, f"there is no {word!r}"
        command = found
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in rest:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"{command.name} has no {word}"


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_commands_and_their_options_exist(path: Path) -> None:
    wrong = []
    for line in commands(path):
        try:
            check(shlex.split(line.replace("'", "")))
        except (AssertionError, HybridlabError, ValueError) as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


def test_the_checks_above_can_fail() -> None:
    with pytest.raises(AssertionError, match="no 'rum'"):
        check(["hybridlab", "rum"])
    with pytest.raises(AssertionError, match="no --aprove"):
        check(["hybridlab", "run", "020", "--aprove", "all"])
    assert len(list(commands(ROOT / "README.md"))) > 20


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    said = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert said <= targets


def test_every_runbook_is_described() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    missing = [book for book in STAGES.values() if f"| {book.replace('-', ' ', 1)} |" not in text]
    assert missing == []


def test_parameters_that_pages_name_exist() -> None:
    known = set(re.findall(r"`([a-z_]+\.[a-z_.]+)`", PAGE.read_text(encoding="utf-8")))
    sections = {name.partition(".")[0] for name in known}
    for path in PAGES:
        for name in re.findall(r"`([a-z_]+\.[a-z_]+)(?::[^`]*)?`", path.read_text(encoding="utf-8")):
            section, _, rest = name.partition(".")
            if section in sections and rest not in ("py", "json", "yaml", "md", "txt", "jsonl", "log"):
                assert name in known, f"{path.name}: {name}"


def test_every_environment_variable_is_described() -> None:
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "hybridlab").rglob("*.py"))
    used = set(re.findall(r"\bHYBRIDLAB_[A-Z_]+", source)) - {"HYBRIDLAB_COMPLETE"}
    assert used <= set(re.findall(r"\bHYBRIDLAB_[A-Z_]+", (ROOT / "docs" / "development.md").read_text("utf-8")))
