"""How a K3s agent finds, checks and convinces its server, and what its journal says when it doesn't."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hybridlab.lab.world import Machine, World

RETRY_S = 2.0


@dataclass(frozen=True)
class Credentials:
    """What a server believes: its CA hash and the tokens with which agents may join."""

    ca_hash: str
    server_token: str
    agent_token: str = ""

    def accepts(self, secret: str) -> bool:
        return bool(secret) and secret in (self.server_token, self.agent_token)


@dataclass(frozen=True)
class Server:
    """A server that listens: on which machine and port, and what it believes."""

    machine: Machine
    port: int
    credentials: Credentials


def split_token(token: str) -> tuple[str, str]:
    """(CA hash or "", secret) of a token: ``K10<hash>::<user>:<secret>`` or the secret alone."""
    if token.startswith("K10") and "::" in token:
        ca_hash, _, rest = token[3:].partition("::")
        user, colon, secret = rest.partition(":")
        return ca_hash, secret if colon else user
    return "", token


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url if "//" in url else f"https://{url}")
    return parts.hostname or "", parts.port or 443


def refusal(world: World, machine: Machine, settings: Mapping[str, Any], server: Server | None) -> str:
    """Why this agent can't join now, as its journal words it; "" when it can.

    Checked in the order in which the real agent meets them: route and security groups, the server machine's firewall,
    somebody listening, the CA hash of the token, the token.
    """
    url, token = str(settings.get("server") or ""), str(settings.get("token") or "")
    if not url:
        return "Error: --server is required"
    if not token:
        return "Error: --token is required"
    host, port = _address(url)
    lost = f'failed to get CA certs: Get "https://{host}:{port}/cacerts": dial tcp {host}:{port}: '
    there = world.hosts.machine_at(host)
    if there is None:
        return lost + "connect: no route to host"
    if there.id != machine.id:
        source = machine.public_ip if host == there.public_ip and machine.public_ip else machine.private_ip
        if not world.network.allows(source, host, "tcp", port):
            return lost + "i/o timeout"
        if not world.hosts.firewall_allows(there.id, "INPUT", "tcp", port):
            return lost + "connect: no route to host"  # what icmp-host-prohibited becomes
    if server is None or server.machine.id != there.id or server.port != port:
        return lost + "connect: connection refused"
    ca_hash, secret = split_token(token)
    if ca_hash and ca_hash != server.credentials.ca_hash:
        ours = server.credentials.ca_hash
        return f"token CA hash does not match the Cluster CA certificate hash: {ca_hash} != {ours}"
    if not server.credentials.accepts(secret):
        return f"failed to validate token: https://{host}:{port}/apis: 401 Unauthorized"
    return ""


def pods_can_talk(world: World, source: Machine, dest: Machine, settings: Mapping[str, Any]) -> bool:
    """Whether a packet of a pod on one node reaches a pod on the other, one way.

    The overlay's UDP port must be open; FORWARD's REJECT only matters where the network-policy controller, whose
    chains accept first, is disabled (seen on real hosts).
    """
    if source.id == dest.id:
        return True
    port = 51820 if settings.get("flannel-backend") == "wireguard-native" else 8472
    if not world.network.allows(source.private_ip, dest.private_ip, "udp", port):
        return False
    if not world.hosts.firewall_allows(dest.id, "INPUT", "udp", port):
        return False
    if not settings.get("disable-network-policy"):
        return True
    return all(world.hosts.firewall_allows(machine.id, "FORWARD", "tcp", 80) for machine in (source, dest))
