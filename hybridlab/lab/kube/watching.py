"""Watches: a stream of changes as JSON lines, from a resourceVersion or from the present state."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.selectors import field_test, label_test
from hybridlab.lab.kube.store import Change, Obj, Store
from hybridlab.lab.kube.wire import Target, flag, number

Render = Callable[[Obj], Obj]
BOOKMARK_EVERY_S = 60.0


def _selects(target: Target, query: Any, selectable: tuple[str, ...]) -> Callable[[Obj], bool]:
    labels = label_test(query.get("labelSelector"))
    fields = field_test(query.get("fieldSelector"), target.resource, selectable)

    def test(obj: Obj) -> bool:
        meta = obj["metadata"]
        if target.namespace is not None and meta.get("namespace") != target.namespace:
            return False
        if target.name is not None and meta["name"] != target.name:
            return False
        return labels(meta.get("labels") or {}) and fields(obj)

    return test


def _event(change: Change, test: Callable[[Obj], bool]) -> tuple[str, Obj] | None:
    """What a watcher with this selector sees of a change: entering it is ADDED, leaving it is DELETED."""
    now_in = test(change.obj)
    if change.type != "MODIFIED" or change.old is None:
        return (change.type, change.obj) if now_in else None
    was_in = test(change.old)
    if now_in:
        return ("MODIFIED" if was_in else "ADDED", change.obj)
    if was_in:
        gone = {**change.old, "metadata": {**change.old["metadata"], "resourceVersion": str(change.rv)}}
        return ("DELETED", gone)
    return None


class Watch:
    """One watch request; ``render`` turns an object into the form that was asked for."""

    def __init__(self, store: Store, target: Target, request: web.Request, selectable: tuple[str, ...]) -> None:
        self._store = store
        self._key = (target.resource.group, target.resource.plural)
        self._query = request.query
        self._target = target
        self._test = _selects(target, request.query, selectable)
        self._changes: asyncio.Queue[Change | None] = asyncio.Queue()

    def stop(self) -> None:
        """End the stream (the API server goes away)."""
        self._changes.put_nowait(None)

    def _listen(self, change: Change) -> None:
        if (change.resource.group, change.resource.plural) == self._key:
            self._changes.put_nowait(change)

    def _bookmark(self, *, initial: bool = False) -> tuple[str, Obj]:
        meta: Obj = {"resourceVersion": str(self._store.rv), "creationTimestamp": None}
        if initial:
            meta["annotations"] = {"k8s.io/initial-events-end": "true"}
        resource = self._target.resource
        return "BOOKMARK", {"kind": resource.kind, "apiVersion": self._target.api_version, "metadata": meta}

    def begin(self) -> list[tuple[str, Obj]]:
        """Start listening, and the events to send at once; raises ApiError 400 for a version that is none.

        A version that is too old is an ERROR event with status 410, as the real server's watch cache answers.
        """
        self._store.listeners.add(self._listen)
        asked = self._query.get("resourceVersion", "")
        initial = flag(self._query, "sendInitialEvents")
        if initial or asked in ("", "0"):
            resource = self._target.resource
            namespace = self._target.namespace
            rows = self._store.peek(resource.plural, namespace, resource.group)
            events = [("ADDED", obj) for obj in rows if self._test(obj)]
            if initial and flag(self._query, "allowWatchBookmarks"):
                events.append(self._bookmark(initial=True))
            return events if self._query.get("sendInitialEvents") != "false" else []
        if not asked.isdigit():
            raise ApiError(400, "BadRequest", f'Invalid value: "{asked}": strconv.ParseUint: invalid syntax')
        since = int(asked)
        if since < self._store.oldest_rv:
            error = ApiError(410, "Expired", f"too old resource version: {since} ({self._store.oldest_rv})")
            self.stop()
            return [("ERROR", error.body())]
        found = []
        for change in self._store.history:
            if change.rv > since and (change.resource.group, change.resource.plural) == self._key:
                event = _event(change, self._test)
                if event:
                    found.append(event)
        return found

    def end(self) -> None:
        self._store.listeners.discard(self._listen)

    async def events(self) -> AsyncIterator[tuple[str, Obj]]:
        """(type, object) after the first ones, until the timeout."""
        seconds = number(self._query, "timeoutSeconds") or random.randint(1800, 3600)
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        bookmarks = flag(self._query, "allowWatchBookmarks")
        while (left := ends - loop.time()) > 0:
            try:
                change = await asyncio.wait_for(self._changes.get(), min(left, BOOKMARK_EVERY_S))
            except TimeoutError:
                if bookmarks:
                    yield self._bookmark()
                continue
            if change is None:
                return
            seen = _event(change, self._test)
            if seen:
                yield seen


async def stream(request: web.Request, watch: Watch, render: Render) -> web.StreamResponse:
    """Send a watch as chunked JSON lines until it ends or the client goes away."""

    def line(kind: str, obj: Obj) -> bytes:
        body = obj if kind == "ERROR" else render(obj)
        return json.dumps({"type": kind, "object": body}).encode() + b"\n"

    try:
        first = watch.begin()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the client went away, which is how most watches end
            if first:
                await response.write(b"".join(line(*event) for event in first))
            async for event in watch.events():
                await response.write(line(*event))
            await response.write_eof()
        return response
    finally:
        watch.end()
