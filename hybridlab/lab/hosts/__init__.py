"""SSH hosts of the lab: an sshd a machine, SFTP on its own folder, and a table of commands."""

from __future__ import annotations

from hybridlab.lab.hosts.part import HostsPart

__all__ = ["HostsPart"]
