"""What every controller is built on: a keyed work queue fed by the store's changes, and short ways to read and write.

Reconciliation is level-triggered: a change only says *which* object to look at. One key is worked on by one task at a
time; changes meanwhile make it run once more. Nothing polls; what has to happen later asks for a timer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    EVENT,
    Kind,
    Obj,
    hash_of,
    key_of,
    name_of,
    namespace_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.store import Store
from hybridlab.lab.world import World

Key = tuple[str, str]  # namespace ("" where cluster-scoped) and name

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 30.0


class Context:
    """The store as controllers use it, the world, and timers in the lab's time."""

    def __init__(self, world: World, store: Store) -> None:
        self.world = world
        self.store = store

    # -- time and place --------------------------------------------------------------------------------------------
    def now(self) -> float:
        return self.world.clock.now()

    def scaled(self, seconds: float) -> float:
        """Real seconds for ``seconds`` of the lab."""
        return seconds / self.world.clock.speed

    async def takes(self, seconds: float) -> None:
        await self.world.clock.takes(seconds)

    def folder(self, *parts: str) -> Path:
        """A folder of the lab's directory, made if missing, closed to others."""
        path = self.world.directory.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    # -- reading ---------------------------------------------------------------------------------------------------
    def get(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        """A copy of the object, or None (also where its kind isn't defined)."""
        return self.store.get(kind.plural, name, namespace, kind.group)

    def peek(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """All objects of a kind, not copied: never change them."""
        return self.store.peek(kind.plural, namespace or None, kind.group)

    def defined(self, kind: Kind) -> bool:
        return (kind.group, kind.plural) in self.store.resources

    def current(self, kind: Kind, obj: Obj) -> Obj | None:
        """The object as it is now, unless it was removed or made anew under the same name."""
        found = self.get(kind, name_of(obj), namespace_of(obj))
        return found if found is not None and uid_of(found) == uid_of(obj) else None

    # -- writing ---------------------------------------------------------------------------------------------------
    def create(self, obj: Obj) -> Obj | None:
        """Create; None where an object of that name exists. Other refusals raise ApiError."""
        try:
            return self.store.create(obj)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    def change(self, kind: Kind, obj: Obj, change: Callable[[Obj], None]) -> Obj | None:
        """Change spec or metadata of the newest version of an object; None where it is gone."""
        if self.current(kind, obj) is None:
            return None
        return self.store.patch(kind.plural, name_of(obj), namespace_of(obj), kind.group, change)

    def set_status(self, kind: Kind, obj: Obj, status: Obj) -> Obj | None:
        """Replace the status (a no-op when equal); None where the object is gone."""
        if self.current(kind, obj) is None:
            return None

        def put(found: Obj) -> None:
            found["status"] = status

        subresource = "status" if self._has_status(kind) else None
        return self.store.patch(kind.plural, name_of(obj), namespace_of(obj), kind.group, put, subresource=subresource)

    def _has_status(self, kind: Kind) -> bool:
        return "status" in self.store.resources[(kind.group, kind.plural)].subresources

    def delete(self, kind: Kind, obj: Obj, *, propagation: str = "Background", force: bool = False) -> None:
        """Delete; quietly does nothing where it is gone."""
        try:
            self.store.delete(
                kind.plural,
                name_of(obj),
                namespace_of(obj),
                kind.group,
                propagation=propagation,
                uid=uid_of(obj) or None,
                force=force,
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def event(self, about: Obj, kind: str, reason: str, message: str, source: str) -> None:
        """Record an Event; the same one again raises its count. ``kind`` is Normal or Warning."""
        namespace = namespace_of(about) or "default"
        suffix = hash_of([uid_of(about), kind, reason, message, source], 16)
        name = f"{name_of(about)[:230]}.{suffix}"
        now = timestamp(self.now())

        def again(event: Obj) -> None:
            event["count"] = event.get("count", 1) + 1
            event["lastTimestamp"] = now

        try:
            if self.get(EVENT, name, namespace) is not None:
                self.store.patch(EVENT.plural, name, namespace, EVENT.group, again)
                return
            self.create(
                {
                    "apiVersion": "v1",
                    "kind": "Event",
                    "metadata": {"name": name, "namespace": namespace},
                    "involvedObject": {
                        "apiVersion": about["apiVersion"],
                        "kind": about["kind"],
                        "name": name_of(about),
                        "namespace": namespace_of(about),
                        "uid": uid_of(about),
                        "resourceVersion": about["metadata"].get("resourceVersion", ""),
                    },
                    "type": kind,
                    "reason": reason,
                    "message": message[:1024],
                    "count": 1,
                    "firstTimestamp": now,
                    "lastTimestamp": now,
                    "source": {"component": source},
                    "reportingComponent": source,
                    "reportingInstance": "",
                }
            )
        except ApiError as error:
            if error.status not in (403, 404):  # the namespace goes away: its events are of no use to anyone
                raise


class Controller(ABC):
    """Looks after one kind of object. Subclasses name themselves, pick keys for changes, and reconcile a key."""

    name = "controller"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.again: Callable[[Key, float], None] = lambda key, seconds: None  # set by the Runner

    @abstractmethod
    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        """Which keys a change concerns. ``kind`` is (group, plural), ``event`` ADDED, MODIFIED or DELETED."""

    @abstractmethod
    async def reconcile(self, key: Key) -> float | None:
        """Make the world fit the object; return in how many lab seconds to look again, None for when it changes."""

    async def stop(self) -> None:  # noqa: B027  most controllers have nothing to give up
        """Give up what runs beside reconciling."""


class Runner:
    """Feeds the store's changes to controllers and runs their work, each key alone, until stopped."""

    def __init__(self, context: Context, controllers: Iterable[Controller]) -> None:
        self.context = context
        self.controllers = tuple(controllers)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: set[tuple[Controller, Key]] = set()
        self._dirty: set[tuple[Controller, Key]] = set()
        self._timers: dict[tuple[Controller, Key], asyncio.TimerHandle] = {}
        self._failures: dict[tuple[Controller, Key], int] = {}
        self._stopped = False
        for controller in self.controllers:
            controller.again = self._later_for(controller)

    def start(self) -> None:
        """Look at everything there is, then follow changes."""
        queue = self.context.store.subscribe()
        self._spawn(self._follow(queue), "kube-controllers")
        for group, plural in list(self.context.store.resources):
            for obj in self.context.store.peek(plural, None, group):
                self._dispatch("ADDED", (group, plural), obj)

    async def stop(self) -> None:
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        for controller in self.controllers:
            await controller.stop()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def enqueue(self, controller: Controller, key: Key) -> None:
        slot = (controller, key)
        if self._stopped:
            return
        if slot in self._running:
            self._dirty.add(slot)
            return
        timer = self._timers.pop(slot, None)
        if timer is not None:
            timer.cancel()
        self._running.add(slot)
        self._spawn(self._work(slot), f"{controller.name} {key[0]}/{key[1]}")

    def _later_for(self, controller: Controller) -> Callable[[Key, float], None]:
        def later(key: Key, seconds: float) -> None:
            self._after((controller, key), self.context.scaled(seconds))

        return later

    def _after(self, slot: tuple[Controller, Key], seconds: float) -> None:
        if self._stopped:
            return
        old = self._timers.pop(slot, None)
        if old is not None:
            old.cancel()
        if seconds <= 0:
            self.enqueue(*slot)
        else:
            self._timers[slot] = asyncio.get_running_loop().call_later(seconds, self._due, slot)

    def _due(self, slot: tuple[Controller, Key]) -> None:
        self._timers.pop(slot, None)
        self.enqueue(*slot)

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, queue: asyncio.Queue[Any]) -> None:
        try:
            while True:
                event, resource, obj = await queue.get()
                self._dispatch(event, (resource.group, resource.plural), obj)
        finally:
            self.context.store.unsubscribe(queue)

    def _dispatch(self, event: str, kind: tuple[str, str], obj: Obj) -> None:
        for controller in self.controllers:
            for key in controller.keys(event, kind, obj):
                self.enqueue(controller, key)

    async def _work(self, slot: tuple[Controller, Key]) -> None:
        controller, key = slot
        delay: float | None = None
        while True:
            self._dirty.discard(slot)
            try:
                wanted = await controller.reconcile(key)
                delay = None if wanted is None else self.context.scaled(wanted)
                self._failures.pop(slot, None)
            except ApiError as error:
                delay = self._retry(slot, error, loud=error.status not in (403, 404, 409))
            except Exception as error:  # noqa: BLE001 - the edge of a controller: report, keep the others alive, try again
                delay = self._retry(slot, error, loud=True)
            if slot not in self._dirty or slot in self._failures:
                break
        self._running.discard(slot)
        again = slot in self._dirty
        self._dirty.discard(slot)
        if delay is not None:
            self._after(slot, delay)
        elif again:
            self.enqueue(controller, key)

    def _retry(self, slot: tuple[Controller, Key], error: Exception, *, loud: bool) -> float:
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        if loud:
            target = f"kube/{slot[0].name} {slot[1][0]}/{slot[1][1]}"
            self.context.world.log.add("lab", "task-failed", target, 500, mutating=False, detail=repr(error))
        return min(_FIRST_RETRY_S * 2.0 ** (failures - 1), _LAST_RETRY_S)


def on(kind: Kind, event_kind: tuple[str, str]) -> bool:
    return event_kind == (kind.group, kind.plural)


def by_key(obj: Obj) -> list[Key]:
    return [key_of(obj)]
