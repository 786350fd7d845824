"""What registries say of images: platforms, digests and configuration, asked sparingly and kept by digest.

Docker Hub counts manifest GETs, not HEADs, against its pull limit: so a tag's digest is asked for with HEAD, and a
digest's content only once ever.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hybridlab.drivers import _registry_documents as documents
from hybridlab.drivers._registry_cache import Cache
from hybridlab.drivers._registry_http import Answer, CouldNotAsk, RegistryClient
from hybridlab.drivers._registry_login import Login, find_login
from hybridlab.errors import Unreachable
from hybridlab.models import ImageConfig, ImageInfo, Platform
from hybridlab.references import Reference, is_digest, parse_reference
from hybridlab.wait import Clock, SystemClock

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

THREADS = 8
NOT_FOUND = "not found"
DENIED = "denied"
COULD_NOT_ASK = "could not ask"
BAD_REFERENCE = "bad reference"


class RegistryDriver:
    """All registries at once. ``endpoint_for`` gives another base URL for a registry's host (lab), or None.

    ``remaining`` says what hosts told of their pull limits. A problem in an answer starts with ``not found``,
    ``denied`` (absent or private), ``bad reference``, or ``could not ask`` (nobody knows whether the image exists).
    """

    def __init__(
        self,
        *,
        cache: Path,
        endpoint_for: Callable[[str], str | None],
        login_for: Callable[[str, str], Login | None] = find_login,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._cache = Cache(cache)
        self._clock = clock or SystemClock()
        self._client = RegistryClient(
            endpoint_for=endpoint_for,
            login_for=login_for,
            transport=transport,
            clock=self._clock,
            rng=rng or random.Random(),
        )

    def close(self) -> None:
        self._client.close()

    @property
    def remaining(self) -> Mapping[str, int]:
        """Host → pulls left, as the host said last."""
        return dict(self._client.remaining)

    def lookup(
        self, references: Sequence[str], *, progress: Callable[[str], None] | None = None
    ) -> dict[str, ImageInfo]:
        """Ask for all references, at most 8 at a time. Raises Unreachable only if none could be connected to."""
        wanted = list(dict.fromkeys(references))
        answers: dict[str, ImageInfo] = {}
        unconnected: dict[str, CouldNotAsk] = {}
        self._client.new_round()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="registry") as pool:
            futures = {pool.submit(self._safely, reference): reference for reference in wanted}
            for done, future in enumerate(as_completed(futures), 1):
                reference = futures[future]
                answers[reference], failure = future.result()
                if failure and not failure.connected:
                    unconnected[reference] = failure
                if progress:
                    progress(f"images: {done} of {len(wanted)}: {reference}")
        if wanted and len(unconnected) == len(wanted) and not any(a.known for a in answers.values()):
            raise Unreachable(
                "no registry could be reached",
                where=", ".join(wanted[:3]) + (" …" if len(wanted) > 3 else ""),
                why=str(next(iter(unconnected.values()))),
                next_move="check the network, then run this again",
            )
        return {reference: answers[reference] for reference in wanted}

    def _safely(self, text: str) -> tuple[ImageInfo, CouldNotAsk | None]:
        """The answer for one reference; failures become answers, with the failure beside them."""
        try:
            reference = parse_reference(text)
        except ValueError as error:
            return ImageInfo(text, known=False, problem=f"{BAD_REFERENCE}: {error}"), None
        try:
            return replace(self._look_up(reference), reference=text), None
        except CouldNotAsk as error:
            problem = f"{COULD_NOT_ASK}: {error}"
            older = self._cache.by_tag(reference.canonical)
            if older:
                return replace(older, reference=text, problem=f"{problem}; this is from {older.looked_up}"), error
            return ImageInfo(text, known=False, problem=problem, looked_up=self._now()), error

    def _look_up(self, reference: Reference) -> ImageInfo:
        if reference.digest:
            known = self._cache.by_digest(reference.digest)
            return known or self._fetch(reference, reference.digest)
        answer = self._manifest("HEAD", reference, reference.tag)
        if answer.status in (401, 403, 404):
            absent, older = self._absent(reference, answer), self._cache.by_tag(reference.canonical)
            return replace(absent, problem=f"{absent.problem}; it was there on {older.looked_up}") if older else absent
        digest = answer.headers.get("docker-content-digest", "") if answer.status == 200 else ""
        if not is_digest(digest):  # absent, or nothing that may become a file's name
            digest = ""
        known = self._cache.by_digest(digest) if digest else None
        info = replace(known, looked_up=self._now()) if known else self._fetch(reference, digest)
        if info.known:
            before = self._cache.keep_tag(reference.canonical, info.digest, info.looked_up)
            info = replace(info, before=before)
        return info

    def _fetch(self, reference: Reference, digest: str) -> ImageInfo:
        """Read a manifest or index, and the configuration that speaks for it; ``digest`` may be "" (not known yet)."""
        answer = self._manifest("GET", reference, digest or reference.tag)
        if answer.status in (401, 403, 404):
            return self._absent(reference, answer)
        self._expect_ok(answer, reference)
        if digest:
            self._expect_digest(answer.body, digest, reference)
        actual = digest or documents.digest_of(answer.body)
        blank = ImageInfo(reference.canonical, known=True, digest=actual, looked_up=self._now())
        try:
            document = documents.read_document(answer.body)
        except documents.BadDocument as error:
            return self._kept(replace(blank, problem=f"not an image: {error}"))
        if document.kind == "index":
            return self._of_index(reference, document, replace(blank, index=True))
        platform, config = self._config(reference, document)
        found = replace(blank, platforms=(platform,) if platform else (), config=config)
        if document.config_type not in documents.CONFIG_TYPES:
            found = replace(found, problem=f"not an image: its configuration is {document.config_type}")
        elif platform is None:
            found = replace(found, problem="no runnable linux platform")
        return self._kept(found)

    def _of_index(self, reference: Reference, document: documents.Document, blank: ImageInfo) -> ImageInfo:
        found = replace(blank, platforms=tuple(child.platform for child in document.children))
        child = documents.preferred(document.children)
        if child is None:
            return self._kept(replace(found, problem="no runnable linux platform"))
        try:
            answer = self._manifest("GET", reference, child.digest)
            self._expect_ok(answer, reference)
            self._expect_digest(answer.body, child.digest, reference)
            manifest = documents.read_document(answer.body)
            return self._kept(replace(found, config=self._config(reference, manifest)[1]))
        except (CouldNotAsk, documents.BadDocument) as error:
            # the platforms are known all the same; not kept, so that the next lookup completes it
            return replace(found, problem=f"its configuration could not be read: {error}")

    def _config(self, reference: Reference, document: documents.Document) -> tuple[Platform | None, ImageConfig]:
        if document.config_type not in documents.CONFIG_TYPES or not document.config_digest:
            return None, ImageConfig()
        path = f"/v2/{reference.repository}/blobs/{document.config_digest}"
        answer = self._client.ask("GET", reference.host, reference.repository, path)
        self._expect_ok(answer, reference)
        self._expect_digest(answer.body, document.config_digest, reference)
        try:
            return documents.read_config(answer.body)
        except documents.BadDocument as error:
            raise CouldNotAsk(f"the configuration at {reference.host} can't be read: {error}") from error

    def _manifest(self, method: str, reference: Reference, what: str) -> Answer:
        path = f"/v2/{reference.repository}/manifests/{what}"
        return self._client.ask(method, reference.host, reference.repository, path, accept=documents.ACCEPT)

    def _kept(self, info: ImageInfo) -> ImageInfo:
        self._cache.keep(info.reference, info)
        return info

    def _absent(self, reference: Reference, answer: Answer) -> ImageInfo:
        kind = NOT_FOUND if answer.status == 404 else DENIED
        hint = "" if answer.status == 404 else " (absent, or private: docker login)"
        return ImageInfo(
            "", known=False, problem=f"{kind}: {reference.host} answers {answer.message}{hint}", looked_up=self._now()
        )

    def _expect_ok(self, answer: Answer, reference: Reference) -> None:
        if answer.status != 200:
            raise CouldNotAsk(f"{reference.host} answers {answer.message}")

    def _expect_digest(self, content: bytes, digest: str, reference: Reference) -> None:
        try:
            actual = documents.digest_of(content, digest)
        except ValueError as error:
            raise CouldNotAsk(f"{reference.host} names content by {digest!r}, which is no digest") from error
        if actual != digest:
            raise CouldNotAsk(f"{reference.host} sent content that does not match {digest}")

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self._clock.now(), dt.UTC).isoformat(timespec="seconds")
