"""The table of commands a lab machine has: argv → effect on the machine's state. A module a topic."""

from __future__ import annotations

from hybridlab.lab.hosts.call import Call, Command
from hybridlab.lab.hosts.commands import (
    apt,
    copies,
    docker,
    fetch,
    fileops,
    identity,
    k3s,
    kernel,
    network,
    python,
    services,
)

TABLE: dict[str, Command] = {
    **identity.TABLE,
    **fileops.TABLE,
    **copies.TABLE,
    **apt.TABLE,
    **services.TABLE,
    **kernel.TABLE,
    **network.TABLE,
    **fetch.TABLE,
    **k3s.TABLE,
    **python.TABLE,
    **docker.TABLE,
}


def program_file(call: Call, path: str) -> Command | int:
    """What running a file of the machine means: K3s' own programs; anything else cannot run here (126 or 127)."""
    return k3s.program(call, path)
