"""One bucket of an S3-compatible object store, through boto3."""

from __future__ import annotations

import logging
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from hybridlab.errors import (
    AuthFailed,
    BadInput,
    Conflict,
    DriverError,
    NotFound,
    Refused,
    TooManyRequests,
    Unreachable,
)
from hybridlab.models import ObjectInfo

log = logging.getLogger(__name__)

PART_MIN = 5 * 1024 * 1024  # S3's own bound for every part but the last
PIECE = 256 * 1024
DELETE_BATCH = 1000
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_AUTH_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "401", "403"}
)
_GONE_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchUpload", "NotFound", "404"})


class S3Driver:
    """``bucket`` at ``endpoint``, addressed by path, with checksums only where S3 demands them.

    (Newer checksum headers by default are what Oracle's and other compatible stores refuse.)
    """

    def __init__(self, *, endpoint: str, region: str, bucket: str, access_key: str, secret_key: str) -> None:
        import boto3
        from botocore.config import Config

        self.endpoint = endpoint
        self.bucket = bucket
        self._region = region
        local = urllib.parse.urlsplit(endpoint).hostname in LOOPBACK
        try:
            self._client: Any = boto3.session.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    connect_timeout=10,
                    read_timeout=60,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    proxies={} if local else None,
                ),
            )
        except ValueError as error:
            raise BadInput("the S3 endpoint is no URL", where=endpoint, why=str(error)) from error

    def close(self) -> None:
        self._client.close()

    def bucket_exists(self) -> bool:
        try:
            self._call(self._client.head_bucket, f"bucket {self.bucket}")
        except NotFound:
            return False
        return True

    def ensure_bucket(self) -> bool:
        if self.bucket_exists():
            return False
        options: dict[str, Any] = {}
        host = urllib.parse.urlsplit(self.endpoint).hostname or ""
        if host.endswith(".amazonaws.com") and self._region != "us-east-1":
            # only Amazon wants to be told the region; others refuse the constraint
            options["CreateBucketConfiguration"] = {"LocationConstraint": self._region}
        try:
            self._call(self._client.create_bucket, f"bucket {self.bucket}", **options)
        except Conflict as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
            return False
        log.info("created bucket %s at %s", self.bucket, self.endpoint)
        return True

    def put_multipart(self, key: str, parts: Iterable[bytes]) -> None:
        """Upload in parts; pieces smaller than 5 MiB are joined, so that only the last part may be smaller.

        Nothing is left behind when the upload fails or ``parts`` raises.
        """
        about = f"{self.bucket}/{key}"
        upload = self._call(self._client.create_multipart_upload, about, Key=key)["UploadId"]
        finished = False
        size, done = 0, []
        try:
            for number, part in enumerate(_joined(parts), 1):
                answer = self._call(
                    self._client.upload_part, about, Key=key, UploadId=upload, PartNumber=number, Body=part
                )
                done.append({"PartNumber": number, "ETag": answer["ETag"]})
                size += len(part)
            made = {"Parts": done}
            self._call(self._client.complete_multipart_upload, about, Key=key, UploadId=upload, MultipartUpload=made)
            finished = True
        finally:
            if not finished:
                self._abort(key, upload)
        log.info("wrote %s (%d bytes in %d parts)", about, size, len(done))

    def _abort(self, key: str, upload: str) -> None:
        """Give an upload up; its failure must not hide the one that led here."""
        try:
            self._call(self._client.abort_multipart_upload, f"{self.bucket}/{key}", Key=key, UploadId=upload)
        except DriverError as error:
            log.warning("an unfinished upload of %s/%s may remain: %s", self.bucket, key, error.why)

    def get(self, key: str) -> Iterator[bytes]:
        """The object's bytes in pieces. Raises NotFound at once, Unreachable also while reading."""
        about = f"{self.bucket}/{key}"
        answer = self._call(self._client.get_object, about, Key=key)
        return self._pieces(answer["Body"], int(answer["ContentLength"]), about)

    def _pieces(self, body: Any, size: int, about: str) -> Iterator[bytes]:
        from botocore.exceptions import BotoCoreError, HTTPClientError
        from urllib3.exceptions import HTTPError

        had = 0
        try:
            for piece in body.iter_chunks(PIECE):
                had += len(piece)
                yield bytes(piece)
        except (BotoCoreError, HTTPClientError, HTTPError, OSError) as error:
            raise Unreachable(
                "the connection broke while reading", where=about, why=f"after {had} of {size} bytes: {error}"
            ) from error
        finally:
            body.close()
        if had != size:
            raise Unreachable("the object came incomplete", where=about, why=f"{had} of {size} bytes")

    def list(self, prefix: str = "") -> tuple[ObjectInfo, ...]:
        found: list[ObjectInfo] = []
        token: dict[str, str] = {}
        while True:
            page = self._call(self._client.list_objects_v2, f"bucket {self.bucket}", Prefix=prefix, **token)
            for o in page.get("Contents", ()):
                found.append(ObjectInfo(o["Key"], int(o["Size"]), o["LastModified"].isoformat()))
            if not page.get("IsTruncated"):
                return tuple(found)
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that aren't there are no error."""
        for start in range(0, len(keys), DELETE_BATCH):
            some = keys[start : start + DELETE_BATCH]
            wanted = {"Objects": [{"Key": key} for key in some], "Quiet": True}
            answer = self._call(self._client.delete_objects, f"bucket {self.bucket}", Delete=wanted)
            failed = [e for e in answer.get("Errors", ()) if e.get("Code") not in _GONE_CODES]
            if failed:
                first = failed[0]
                raise Refused(
                    f"{len(failed)} of {len(some)} objects were not deleted",
                    code=str(first.get("Code", "")),
                    where=f"{self.bucket}/{first.get('Key')}",
                    why=str(first.get("Message", "")),
                )
            log.info("deleted %d objects from %s", len(some), self.bucket)

    def _call(self, call: Callable[..., Any], about: str, **options: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnection

        try:
            return call(Bucket=self.bucket, **options)
        except ClientError as error:
            raise refusal(error.response, str(error.operation_name), f"{about} at {self.endpoint}") from error
        except (HTTPClientError, NoConnection) as error:
            raise Unreachable("no answer from the object store", where=self.endpoint, why=str(error)) from error
        except BotoCoreError as error:
            raise Refused("the request could not be made", where=about, why=str(error)) from error


def refusal(response: Any, operation: str, about: str) -> DriverError:
    """The error for an answer that is not 2xx; HEAD answers have no code but the status."""
    code = str(response.get("Error", {}).get("Code", ""))
    message = str(response.get("Error", {}).get("Message", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind: type[Refused] = Refused
    move = ""
    if status in (502, 504):
        return Unreachable("no answer from the object store", where=about, why=f"{status} {message}")
    if code in _GONE_CODES or status == 404:
        kind, move = NotFound, ""
    elif code in _AUTH_CODES or status in (401, 403):
        kind, move = AuthFailed, "check the access key, its secret, and that it may use this bucket"
    elif code == "SlowDown" or status in (429, 503):
        kind, move = TooManyRequests, "wait some minutes"
    elif status in (409, 412):
        kind = Conflict
    why = f"{status} {code}: {message}".strip()
    return kind(f"the object store refused {operation}", status=status, code=code, where=about, why=why, next_move=move)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Parts of at least 5 MiB (the last may be smaller); one empty part where there is nothing at all."""
    held = bytearray()
    given = 0
    for piece in pieces:
        held += piece
        if len(held) >= PART_MIN:
            given += 1
            yield bytes(held)
            held.clear()
    if held or not given:
        yield bytes(held)
