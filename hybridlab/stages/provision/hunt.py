"""The hunt for capacity over availability domains: never doubling a launch, never hammering, going on after a kill."""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hybridlab.errors import (
    DeadlineExceeded,
    HybridlabError,
    LimitReached,
    NotFound,
    OutOfCapacity,
    TooManyRequests,
    Unreachable,
)
from hybridlab.ledger import write_atomic
from hybridlab.models import CloudInstance, Json, LaunchRequest, NodeWish
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.nodes import instances_by_node
from hybridlab.wait import Clock

log = logging.getLogger(__name__)

SCHEMA = 1
PAUSE_MAX_S = 600.0
JITTER = (0.75, 1.25)  # of a pause
DEGRADED = (1.0, 6.0)  # OCPU, GB: what the article's second node has


class Hunt:
    """How far the hunt for one VM is, kept in a file after every answer and before every pause.

    So a process that takes over keeps what the last one had planned: the beginning that the deadline counts from, the
    next try, the growing pause, and which domains were asked in this round. A hunt whose deadline has passed is over:
    a new one begins, but not before the pause that was planned.
    """

    def __init__(self, path: Path, wish: NodeWish, clock: Clock, *, deadline_s: float, pause_s: float) -> None:
        self._path = path
        self._clock = clock
        self._wanted = [wish.shape, wish.ocpus, wish.memory_gb]
        self.deadline_s = deadline_s
        self.began = clock.now()
        self.pause_s = pause_s
        self.next_at = 0.0  # no try before this time
        self.attempts: list[dict[str, Json]] = []
        self.round: list[list[Json]] = []  # OCPUs and domain of the tries since the last pause
        self._take_up(self._read())

    @property
    def left_s(self) -> float:
        return self.began + self.deadline_s - self._clock.now()

    @property
    def last_answer(self) -> str:
        return str(self.attempts[-1]["answer"]) if self.attempts else "none"

    def tried(self, ocpus: float, domain: str) -> bool:
        return [ocpus, domain] in self.round

    def answered(self, ocpus: float, domain: str, answer: str) -> None:
        self.attempts.append({"availability_domain": domain, "ocpus": ocpus, "answer": answer})
        self.round.append([ocpus, domain])
        self.save()

    def plan_next(self, seconds: float) -> None:
        """No try for so long, in whichever process."""
        self.next_at = self._clock.now() + seconds
        self.save()

    def rest(self) -> None:
        """Sleep until the next try is due. A clock that was set back doesn't make that for ever."""
        wait = min(self.next_at - self._clock.now(), PAUSE_MAX_S * JITTER[1])
        if wait > 0:
            self._clock.sleep(wait)

    def over(self) -> list[dict[str, Json]]:
        """Forget the hunt; all its attempts."""
        self._path.unlink(missing_ok=True)
        return self.attempts

    # -- the file --------------------------------------------------------------------------------------------------
    def save(self) -> None:
        content = {
            "schema": SCHEMA,
            "wanted": self._wanted,
            "began": self.began,
            "pause_s": self.pause_s,
            "next_at": self.next_at,
            "attempts": self.attempts,
            "round": self.round,
        }
        write_atomic(self._path, json.dumps(content, indent=1).encode())

    def _read(self) -> Mapping[str, Json]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("the hunt begins anew: %s: %s", self._path, error)
            return {}
        return found if isinstance(found, dict) and found.get("schema") == SCHEMA else {}

    def _take_up(self, found: Mapping[str, Json]) -> None:
        if found.get("wanted") != self._wanted:
            return
        self.next_at = float(found["next_at"])
        if self._clock.now() < float(found["began"]) + self.deadline_s:
            self.began, self.pause_s = float(found["began"]), float(found["pause_s"])
            self.attempts, self.round = list(found["attempts"]), list(found["round"])


def existing(ctx: Context, name: str) -> CloudInstance | None:
    """A node's VM, if there is one."""
    return instances_by_node(ctx.oracle.instances(), ctx.params.cluster).get(name)


def hunt_for(ctx: Context, step: Step, wish: NodeWish, hunt: Hunt, request: LaunchRequest) -> CloudInstance:
    """Ask one availability domain after another, then pause and begin again, until the deadline.

    ``request`` lacks image and domain. Raises DeadlineExceeded (the hunt's file stays: the next run keeps the pause),
    and what no other domain would change.
    """
    params = ctx.params.provision
    image = ctx.oracle.newest_image(wish.shape, wish.stated_arch, os=params.image_os, version=params.image_version)
    domains = [s.availability_domain for s in ctx.oracle.shapes() if s.name == wish.shape]
    if not domains:
        raise NotFound(f"no availability domain offers {wish.shape}", next_move="drop the node from the params")
    if hunt.attempts or hunt.next_at > ctx.clock.now():
        due = max(0.0, hunt.next_at - ctx.clock.now())
        ctx.say(
            f"VM {wish.name}: the hunt goes on: {len(hunt.attempts)} attempts so far, last answer: {hunt.last_answer}; "
            f"next in {due:.0f} s"
        )
        hunt.rest()
    refusing = {a["availability_domain"] for a in hunt.attempts if a["answer"].startswith("not offered")}
    domains = [d for d in domains if d not in refusing]
    request = replace(request, image_id=image.id)
    while True:
        vm = _round(ctx, step, wish, hunt, request, domains)
        if vm is not None:
            return vm
        if not domains:
            hunt.over()
            raise NotFound(f"no availability domain takes {wish.shape}", why=hunt.last_answer)
        nap, left = hunt.pause_s * random.uniform(*JITTER), hunt.left_s
        hunt.round, hunt.pause_s = [], min(hunt.pause_s * 1.5, PAUSE_MAX_S)
        hunt.plan_next(min(nap, left) if left > 0 else nap)
        if left <= 0:
            raise DeadlineExceeded(
                f"no capacity for {wish.name} within {params.capacity_deadline_s:g} s",
                where=f"{wish.shape} in {', '.join(domains)}",
                why=f"{len(hunt.attempts)} attempts, last answer: {hunt.last_answer}",
                next_move="run 020 again later (it goes on), raise provision.capacity_deadline_s, or allow degrade",
            )
        tries, due = len(hunt.attempts), hunt.next_at - ctx.clock.now()
        ctx.say(f"VM {wish.name}: no capacity in any domain; {tries} attempts, next in {due:.0f} s")
        hunt.rest()


def _round(
    ctx: Context, step: Step, wish: NodeWish, hunt: Hunt, request: LaunchRequest, domains: list[str]
) -> CloudInstance | None:
    """Ask every domain not asked in this round; one that doesn't offer the shape leaves ``domains``."""
    for ocpus, memory_gb in _sizes(wish, degrade=ctx.params.provision.degrade):
        for domain in tuple(domains):
            if hunt.tried(ocpus, domain):
                continue
            asked = replace(request, availability_domain=domain, ocpus=ocpus, memory_gb=memory_gb)
            try:
                vm, answer = _attempt(ctx, step, hunt, asked)
            except Unreachable:  # the outcome is unknown, and the hunt goes on where it was
                raise
            except HybridlabError:
                hunt.over()
                raise
            hunt.answered(ocpus, domain, answer)
            if vm is not None:
                return vm
            if answer.startswith("not offered"):
                domains.remove(domain)
    return None


def _sizes(wish: NodeWish, *, degrade: bool) -> Sequence[tuple[float, float]]:
    wanted = (wish.ocpus, wish.memory_gb)
    return (wanted, DEGRADED) if degrade and wish.arch == "arm64" and wanted != DEGRADED else (wanted,)


def _attempt(ctx: Context, step: Step, hunt: Hunt, request: LaunchRequest) -> tuple[CloudInstance | None, str]:
    """One launch in one domain: the VM, or None and the answer. What no other domain will change is raised.

    The same retry token is used again only while the outcome is unknown, so that Oracle itself can't double it.
    """
    token, throttled = uuid.uuid4().hex, 0
    while True:
        try:
            vm = ctx.oracle.launch(request, retry_token=token)
        except OutOfCapacity as error:
            ctx.say(f"VM {request.name}: {request.availability_domain}: {error.why or error.what}")
            return None, "out of capacity"
        except TooManyRequests:
            throttled += 1
            if throttled > 6:
                return None, "too many requests"
            hunt.plan_next(min(2.0**throttled, 60) * random.uniform(0.5, 1.0))
            hunt.rest()
            token = uuid.uuid4().hex
        except NotFound as error:
            ctx.say(f"VM {request.name}: {request.availability_domain}: {error.why or error.what}")
            return None, f"not offered here ({error.code})"
        except LimitReached as error:
            if _used(ctx, request.shape):
                raise
            # with nothing of the kind in use the limit can't be reached: a phantom, which clears by itself
            return None, f"phantom limit ({error.why})"
        except Unreachable as error:
            found = existing(ctx, request.name)
            if found is not None:
                return found, "answer lost, VM found"
            throttled += 1
            if throttled > 3:
                raise
            ctx.say(f"VM {request.name}: answer lost ({error.why}); asking again with the same token")
            ctx.clock.sleep(2.0)
        else:
            ctx.ledger.add("provision", step.id, "started", effect="create", target=step.target, detail={"id": vm.id})
            return vm, "accepted"


def _used(ctx: Context, shape: str) -> bool:
    return any(vm.shape == shape and vm.state != "TERMINATED" for vm in ctx.oracle.instances())
