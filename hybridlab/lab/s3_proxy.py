"""The proxy before the lab's S3 server: logs each request and answers 503 when asked to, passing all else untouched.

Signatures cover the Host header and the path as spelt, so both go on as they came; bodies stream both ways, framed and
encoded as they came.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from hybridlab.lab.world import World

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
SILENCE_MAX_S = 120.0
# RFC 9110, 7.6.1; Expect is answered here already
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "expect"}
READING = ("GET", "HEAD", "OPTIONS")


class S3Proxy:
    """Passes requests to the S3 server at ``upstream_port`` of loopback."""

    def __init__(self, world: World, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self._world = world
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_MAX_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._world.faults.fires("s3-down", f"{request.method} {request.path}"):
            return self._refuse(request, 503, "SlowDown", "Please reduce your request rate.")
        if not _signed(request):
            return self._refuse(request, 403, "AccessDenied", "Access Denied")  # rclone would say 400
        return await self._pass_on(request)

    def _log(self, request: web.BaseRequest, status: int) -> None:
        """Called before the answer goes out, so that a client which has it finds the row."""
        operation = "&".join(key for key in request.query if not key.lower().startswith("x-amz-"))
        self._world.log.add(
            "s3",
            request.method,
            request.path + (f"?{operation}" if operation else ""),
            status,
            mutating=request.method not in READING,
            actor=request.headers.get("User-Agent", ""),
        )

    def _refuse(self, request: web.BaseRequest, status: int, code: str, message: str) -> web.Response:
        self._log(request, status)
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>"
            f"<Resource>{escape(request.path)}</Resource><RequestId>{secrets.token_hex(8)}</RequestId></Error>"
        )
        answer = web.Response(status=status, text=text, content_type="application/xml", headers={"Retry-After": "1"})
        if request.body_exists and not request.content.at_eof():
            answer.force_close()  # the body may never come, or be taken for the next request
        return answer

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        url = URL(f"http://127.0.0.1:{self.upstream_port}{request.raw_path}", encoded=True)
        answer: web.StreamResponse | None = None
        if request.headers.get("Expect", "").lower() == "100-continue":
            # without it boto3 waits a second before it sends the body
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            async with self._session.request(
                request.method,
                url,
                headers=_end_to_end(request.headers),
                data=_body(request) if request.body_exists else None,
                allow_redirects=False,
            ) as upstream:
                answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
                answer.headers.extend(_end_to_end(upstream.headers))
                _as_s3_does(request, answer)
                self._log(request, answer.status)
                await answer.prepare(request)
                if request.method != "HEAD":
                    async for chunk in upstream.content.iter_chunked(CHUNK_BYTES):
                        await answer.write(chunk)
                await answer.write_eof()
                return answer
        except (aiohttp.ClientError, TimeoutError, ConnectionResetError) as error:
            log.warning("S3 %s %s: %r", request.method, request.path, error)
            if answer is not None and answer.prepared:
                # half an answer is out: cut the connection, so that the client sees it was not whole
                if request.transport:
                    request.transport.abort()
                return answer
            return self._refuse(request, 503, "ServiceUnavailable", "The S3 server does not answer.")


def _end_to_end(headers: CIMultiDict[str] | aiohttp.typedefs.LooseHeaders) -> CIMultiDict[str]:
    """The headers without those that belong to one connection."""
    every: CIMultiDict[str] = CIMultiDict(headers)
    named = {name.strip().lower() for line in every.getall("Connection", []) for name in line.split(",")}
    return CIMultiDict((key, value) for key, value in every.items() if key.lower() not in HOP_BY_HOP | named)


def _signed(request: web.BaseRequest) -> bool:
    """Whether it carries a signature, right or wrong. Nothing here is open to everybody."""
    return "Authorization" in request.headers or "X-Amz-Signature" in request.query


def _as_s3_does(request: web.BaseRequest, answer: web.StreamResponse) -> None:
    """Mend what rclone answers otherwise than S3.

    A range is 206. The whole object's checksum is left out with a range of it (boto3 would find it wrong) and where
    it wasn't asked for. Headers of the upload's request don't come back.
    """
    partial = answer.status == 200 and "Content-Range" in answer.headers
    if partial:
        answer.set_status(206)
    unwanted = {"x-amz-content-sha256", "x-amz-date", "x-amz-sdk-checksum-algorithm"}
    if request.method in ("GET", "HEAD") and (partial or request.headers.get("x-amz-checksum-mode") != "ENABLED"):
        unwanted |= {name.lower() for name in answer.headers if name.lower().startswith("x-amz-checksum-")}
    for name in unwanted:
        answer.headers.popall(name, None)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_chunked(CHUNK_BYTES):
        yield chunk
