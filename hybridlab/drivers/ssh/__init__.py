"""Hosts over SSH: commands as argv, files written whole, streams in constant memory."""

from __future__ import annotations

from hybridlab.drivers.ssh.hosts import SshHosts

__all__ = ["SshHosts"]
