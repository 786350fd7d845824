"""Which paths between nodes are open: every node to every other, over TCP and UDP, small and as large as an MTU takes.

Before K3s runs, the helper listens on K3s' ports, so that an echo proves a path. Once it runs, VXLAN holds 8472/udp and
never answers: there silence is good, since a rule that rejects answers at once. What silence can't prove, traffic
between pods does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from hybridlab.errors import DeadlineExceeded, HybridlabError, Refused
from hybridlab.models import Json
from hybridlab.ports import Context
from hybridlab.stages.nodes import HELPER, NodeHost, install_helper, on_all

TCP: Mapping[str, tuple[int, ...]] = {"server": (6443, 10250), "agent": (10250,)}
UDP = 8472
LARGE = 1472
"""UDP payload of a packet of 1500 bytes, which Ethernet carries whole."""
BEFORE = "connectivity-before"
"""Kind of the evidence that keeps how the paths were before the firewall was opened."""
REACHED = ("echo", "open", "silent")
NO_ANSWER: Mapping[str, Json] = {"state": "not asked"}
"""For a target that is missing among the answers: nothing is proved of it."""
PROBE_TIMEOUT_S = 1.0
LISTEN_S = 60.0

Paths = dict[tuple[str, str], str]
"""From and to by node name → ``ok``, or what is in the way, e.g. ``8472/udp rejected``."""


def connectivity(ctx: Context, hosts: Mapping[str, NodeHost]) -> Paths:
    """The paths while K3s runs: kubelet, API (server) and VXLAN."""
    found: Paths = {}
    for row in on_all(hosts, lambda node: _probe_from(ctx, hosts, node, REACHED, sizes=(64,))).values():
        found.update(row)
    return found


def connectivity_before(ctx: Context, hosts: Mapping[str, NodeHost]) -> Paths:
    """The paths while K3s doesn't run, proved by echoes, also of packets as large as the MTU takes."""
    found: Paths = {}
    with ExitStack() as stack:
        for node in hosts.values():
            install_helper(ctx, node)
            stack.enter_context(_listening(ctx, node))
        for row in on_all(hosts, lambda node: _probe_from(ctx, hosts, node, ("echo",), sizes=(64, LARGE))).values():
            found.update(row)
    return found


def evidence_of(paths: Paths) -> dict[str, Json]:
    """Paths as JSON, for the ledger and the picture."""
    return {f"{source} → {target}": state for (source, target), state in paths.items()}


def _probe_from(
    ctx: Context, hosts: Mapping[str, NodeHost], node: NodeHost, good: tuple[str, ...], *, sizes: tuple[int, ...]
) -> Paths:
    targets: dict[str, str] = {}
    for name, other in hosts.items():
        if name != node.wish.name:
            ports = [f"{port}/tcp" for port in TCP[other.wish.role]] + [f"{UDP}/udp"]
            targets.update({f"{other.private_ip}:{port}": name for port in ports})
    row: Paths = {(node.wish.name, name): "ok" for name in targets.values()}
    for size in sizes if targets else ():
        argv = ["python3", HELPER, "probe", "--size", str(size), "--timeout", str(PROBE_TIMEOUT_S), *targets]
        result = ctx.hosts.run(node.host, argv, sudo=True, timeout_s=60)
        answers = read_answers(result.stdout.encode(), where=node.wish.name, stderr=result.stderr)
        for target, name in targets.items():
            state, path = answers.get(target, NO_ANSWER)["state"], (node.wish.name, name)
            if state not in good and row[path] == "ok":
                words = f" with {size} bytes" if size != sizes[0] else ""
                row[path] = f"{target.rsplit(':', 1)[1]} {state}{words}"
    return row


def read_answers(stdout: bytes, *, where: str, stderr: str = "") -> dict[str, Mapping[str, Json]]:
    """What the helper's ``probe`` printed, by target. Raises Refused for what it can't have printed."""
    try:
        return {str(answer["target"]): {"state": str(answer["state"]), **answer} for answer in json.loads(stdout)}
    except (ValueError, TypeError, KeyError) as error:
        said = stderr.strip() or stdout.decode("utf-8", "replace").strip()
        raise Refused(
            "the probe's answer can't be read",
            where=where,
            why=said[-300:] or "it said nothing",
            next_move="run 030 again; if it stays so, the helper was stopped there: look for a lack of memory",
        ) from error


@contextmanager
def _listening(ctx: Context, node: NodeHost) -> Iterator[None]:
    """The helper listens on K3s' ports of a node for as long as the block lasts."""
    enough, up = threading.Event(), threading.Event()

    def until_enough() -> Iterator[bytes]:
        enough.wait(LISTEN_S)
        yield from ()

    ports = ["--tcp", *map(str, TCP[node.wish.role]), "--udp", str(UDP)]
    argv = ["python3", HELPER, "listen", *ports, "--seconds", str(LISTEN_S), "--until-eof"]

    def listen() -> None:
        try:
            ctx.hosts.stream(node.host, argv, stdin=until_enough(), stdout=lambda _: up.set(), sudo=True, timeout_s=90)
        finally:
            up.set()  # also when it could not be started: the error comes from the future

    with ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(listen)
        try:
            if not up.wait(LISTEN_S / 2):
                raise DeadlineExceeded("the helper did not listen in time", where=node.wish.name)
            yield
        finally:
            enough.set()
        error = future.exception(timeout=LISTEN_S)
        if isinstance(error, HybridlabError):
            raise error
