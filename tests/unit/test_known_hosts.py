"""The cluster's known_hosts: pins are neither lost nor brought back when several machines come and go at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncssh

from hybridlab.drivers.ssh.trust import KnownHosts


def test_many_at_once(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "state" / "known_hosts")
    key = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    gone, stay = [f"10.0.0.{n}" for n in range(20)], [f"10.0.1.{n}" for n in range(20)]
    for address in (*gone, "10.0.2.1"):
        known.add(address, 22, key)
    with ThreadPoolExecutor(16) as pool:
        done = [pool.submit(known.forget, address, 22) for address in gone]
        done += [pool.submit(known.add, address, 22, key) for address in stay]
        for one in done:
            one.result()
    assert not any(known.keys(address, 22) for address in gone)
    assert all(known.keys(address, 22) == [key] for address in (*stay, "10.0.2.1"))
    assert known.path.stat().st_mode & 0o777 == 0o600


def test_ports_are_told_apart(tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "known_hosts")
    key = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    known.add("10.0.0.1", 22, key)
    known.add("10.0.0.1", 2222, key)
    known.forget("10.0.0.1", 2222)
    assert known.keys("10.0.0.1", 22) == [key]
    assert known.keys("10.0.0.1", 2222) == []
