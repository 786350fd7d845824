"""The packages the lab's apt knows, with the units they bring. Anything else does not exist, as for the real apt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    version: str
    units: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


# Versions of Ubuntu 24.04.
PACKAGES: dict[str, Package] = {
    "apparmor": Package("4.0.1really4.0.1-0ubuntu0.24.04.3"),
    "ca-certificates": Package("20240203"),
    "cron": Package("3.0pl1-184ubuntu2"),
    "cryptsetup": Package("2:2.7.0-1ubuntu4.2"),
    "curl": Package("8.5.0-2ubuntu10.6"),
    "docker-ce": Package("5:28.5.1-1~ubuntu.24.04~noble", units=("docker",), commands=("docker",)),
    "fio": Package("3.36-1ubuntu0.1"),
    "iperf3": Package("3.16-1build2"),
    "iptables": Package("1.8.10-3ubuntu2"),
    "iptables-persistent": Package("1.0.20", needs=("netfilter-persistent",)),
    "jq": Package("1.7.1-3ubuntu0.24.04.1"),
    "libopeniscsiusr": Package("2.1.9-3ubuntu5.4"),
    "linux-modules-extra-oracle": Package("6.14.0.1014.14"),
    "netfilter-persistent": Package("1.0.20", units=("netfilter-persistent",), commands=("netfilter-persistent",)),
    "nfs-common": Package("1:2.6.4-3ubuntu5.1", units=("rpcbind",)),
    "open-iscsi": Package(
        "2.1.9-3ubuntu5.4", units=("iscsid", "open-iscsi"), commands=("iscsiadm",), needs=("libopeniscsiusr",)
    ),
    "openssh-server": Package("1:9.6p1-3ubuntu13.14"),
    "python3": Package("3.12.3-0ubuntu2.1", commands=("python3",)),
    "rsync": Package("3.2.7-1ubuntu1.2"),
    "sudo": Package("1.9.15p5-3ubuntu5.24.04.1"),
    "sysbench": Package("1.0.20+ds-6build2"),
    "unattended-upgrades": Package("2.9.1+nmu4ubuntu1"),
    "wireguard-tools": Package("1.0.20210914-1ubuntu4"),
}

BASE = (
    "apparmor",
    "ca-certificates",
    "cron",
    "cryptsetup",
    "curl",
    "iptables",
    "openssh-server",
    "python3",
    "rsync",
    "sudo",
    "unattended-upgrades",
)
ORACLE = ("netfilter-persistent", "iptables-persistent", "open-iscsi", "libopeniscsiusr")


def preinstalled(image: str) -> dict[str, str]:
    """What an image ships, as package → version. Oracle's Minimal images leave open-iscsi out."""
    names: tuple[str, ...] = BASE
    if "Ubuntu" in image:
        names += ORACLE[:2] if "Minimal" in image else ORACLE
    if "docker" in image:
        names += ("docker-ce",)
    return {name: PACKAGES[name].version for name in names}


def units_of(package: str) -> tuple[str, ...]:
    return PACKAGES[package].units


def provider(command: str) -> str | None:
    """The package without which a command does not exist, or None."""
    return next((name for name, package in PACKAGES.items() if command in package.commands), None)


def with_needs(name: str) -> list[str]:
    """The package and what it needs, needed ones first. Raises KeyError for a package nobody has."""
    package = PACKAGES[name]
    return [*(need for needed in package.needs for need in with_needs(needed)), name]
