"""No form of a secret gets through."""

from __future__ import annotations

import base64
import json
import urllib.parse
from pathlib import Path

import pytest

from hybridlab.ledger import SecretStore
from hybridlab.masking import MASK
from hybridlab.runner.redact import Redactor

SECRET = 's3cr3t/val+ue=&"q"'
PEM = "-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ8\nzvQ1XxQp0Qm2b3ZkUeXnVfQmlzvQ1XxQp0Qm2b3Zk\n-----END KEY-----\n"


@pytest.fixture
def redactor(tmp_path: Path) -> Redactor:
    store = SecretStore(tmp_path / "secrets")
    store.put("token", SECRET)
    store.put("ssh_key", PEM)
    store.put("pin", "1234")
    store.put("ssh_key.pub", "ssh-ed25519 AAAAC3Nza public")
    found = Redactor([tmp_path / "secrets"])
    found.refresh()
    return found


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        repr(SECRET)[1:-1],
        json.dumps(SECRET)[1:-1],
        urllib.parse.quote(SECRET, safe=""),
        urllib.parse.quote_plus(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        PEM,
        PEM.strip(),
        PEM.splitlines()[2],
        json.dumps(PEM)[1:-1],
    ],
)
def test_every_form_is_masked(redactor: Redactor, form: str) -> None:
    assert redactor.text(f"<{form}>") == f"<{MASK}>"


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
def test_base64_of_a_text_around_it_is_masked(redactor: Redactor, before: str) -> None:
    encoded = base64.b64encode(f"{before}{SECRET}:after".encode()).decode()
    shown = redactor.text(encoded)
    assert MASK in shown
    for start in range(len(encoded) - 12):
        # no run of the secret's own characters long enough to be decoded stays
        middle = encoded[start : start + 12]
        inside = base64.b64decode(encoded[start // 4 * 4 : start // 4 * 4 + 12])
        if inside in SECRET.encode():
            assert middle not in shown


@pytest.mark.parametrize("text", ["1234 nodes", "ssh-ed25519 AAAAC3Nza public", "-----BEGIN KEY-----", "value"])
def test_what_is_no_secret_stays(redactor: Redactor, text: str) -> None:
    assert redactor.text(text) == text


def test_nested_data_is_cleaned_in_place(redactor: Redactor) -> None:
    data = {"a": [SECRET, {"b": f"x{SECRET}y"}], SECRET: 1, "n": None}
    assert redactor.clean(data) is data
    assert data == {"a": [MASK, {"b": f"x{MASK}y"}], MASK: 1, "n": None}


def test_a_new_secret_is_known_after_refresh(redactor: Redactor, tmp_path: Path) -> None:
    assert redactor.refresh() is False
    SecretStore(tmp_path / "secrets").put("late", "born-a-moment-ago")
    assert redactor.refresh() is True
    assert redactor.text("born-a-moment-ago") == MASK


def test_leaks_are_found(redactor: Redactor, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "clean").write_text("nothing here")
    assert redactor.leaks(run) == []
    (run / "report").mkdir()
    (run / "report" / "page.html").write_text(f"<p>{urllib.parse.quote(SECRET, safe='')}</p>")
    assert redactor.leaks(run) == [run / "report" / "page.html"]
