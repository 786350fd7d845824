"""Velero's object store over S3, and the repository of volume data in it. Everything here blocks: call it in a thread.

A volume is a tar, cut into frames that are encrypted with AES-256-GCM under a key of the repository's password (real
kopia has another layout, the same properties): a wrong password and a single flipped byte are noticed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hybridlab.lab.kube.controllers.commands import owners_file

PART = 8 * 2**20  # S3 wants parts of at least 5 MiB
FRAME = 2**20
_MAGIC = b"HLVOL1\n\0"
_KNOWN_FOLDERS = {"backups", "restores", "kopia", "restic", "metadata", "plugins"}


class StoreError(Exception):
    """The object store refused or can't be reached, or what it holds is broken; the text is for status fields."""


@dataclass(frozen=True)
class ObjectStore:
    """A bucket and prefix of an S3 service."""

    bucket: str
    prefix: str
    endpoint: str
    region: str
    path_style: bool
    access_key: str
    secret_key: str = field(repr=False)

    @cached_property
    def _client(self) -> Any:
        import boto3  # slow to import, and only Velero needs it
        from botocore.config import Config

        config = Config(
            s3={"addressing_style": "path" if self.path_style else "auto"},
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint or None,
            region_name=self.region or "us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def _call(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            answer = error.response
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code, text = answer.get("Error", {}).get("Code", ""), answer.get("Error", {}).get("Message", "")
            name = "".join(word.capitalize() for word in operation.split("_"))
            raise StoreError(
                f"rpc error: code = Unknown desc = operation error S3: {name}, https response error StatusCode: "
                f"{status}, api error {code}: {text}"
            ) from error
        except (BotoCoreError, OSError, ValueError) as error:
            raise StoreError(f"rpc error: code = Unknown desc = operation error S3: {operation}, {error}") from error

    def validate(self) -> None:
        """What Velero asks of a location: it can be listed, and holds nothing but Velero's. Raises StoreError."""
        answer = self._call("list_objects_v2", Prefix=self.prefix, Delimiter="/")
        folders = {p["Prefix"][len(self.prefix) :].strip("/") for p in answer.get("CommonPrefixes") or []}
        foreign = sorted(folders - _KNOWN_FOLDERS)
        if foreign:
            raise StoreError(f"Backup store contains invalid top-level directories: [{' '.join(foreign)}]")

    def folders(self, under: str) -> list[str]:
        """Names of the folders below ``under`` (which ends with a slash)."""
        head = self.prefix + under
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", Prefix=head, Delimiter="/", **token)
            found += [p["Prefix"][len(head) :].strip("/") for p in answer.get("CommonPrefixes") or []]
            if not answer.get("IsTruncated"):
                return found
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def keys(self, under: str) -> list[str]:
        head = self.prefix + under
        found: list[str] = []
        token: dict[str, str] = {}
        while True:
            answer = self._call("list_objects_v2", Prefix=head, **token)
            found += [o["Key"][len(self.prefix) :] for o in answer.get("Contents") or []]
            if not answer.get("IsTruncated"):
                return found
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def identifier(self, namespace: str) -> str:
        """What repoIdentifier fields say of a namespace's repository."""
        return f"s3:{self.endpoint}/{self.bucket}/{self.prefix}kopia/{namespace}"

    def put(self, key: str, data: bytes) -> None:
        self._call("put_object", Key=self.prefix + key, Body=data)

    def put_file(self, key: str, file: IO[bytes]) -> None:
        """Upload what is left in a file, in parts."""
        upload = Upload(self, key)
        try:
            while chunk := file.read(FRAME):
                upload.write(chunk)
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def get(self, key: str) -> bytes:
        """A small object, whole."""
        data: bytes = self.open(key).read()
        return data

    def open(self, key: str) -> Any:
        """A stream of an object's bytes."""
        return self._call("get_object", Key=self.prefix + key)["Body"]

    def exists(self, key: str) -> bool:
        return key in self.keys(key)

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self.prefix + key)

    def delete_folder(self, under: str) -> int:
        keys = self.keys(under)
        for key in keys:
            self.delete(key)
        return len(keys)

    def put_json(self, key: str, value: Any, *, compressed: bool = False) -> None:
        data = json.dumps(value).encode()
        self.put(key, gzip.compress(data) if compressed else data)


class Upload:
    """An object written in pieces: parts of 8 MiB, a plain PUT where there is less; nothing stays after ``abort``."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, store.prefix + key
        self._buffer = bytearray()
        self._id = ""
        self._parts: list[dict[str, Any]] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._buffer += data
        self.size += len(data)
        while len(self._buffer) >= PART:
            self._send(bytes(self._buffer[:PART]))
            del self._buffer[:PART]
        return len(data)

    def _send(self, part: bytes) -> None:
        if not self._id:
            self._id = self._store._call("create_multipart_upload", Key=self._key)["UploadId"]
        number = len(self._parts) + 1
        answer = self._store._call("upload_part", Key=self._key, UploadId=self._id, PartNumber=number, Body=part)
        self._parts.append({"ETag": answer["ETag"], "PartNumber": number})

    def finish(self) -> None:
        if not self._id:
            self._store._call("put_object", Key=self._key, Body=bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
        parts = {"Parts": self._parts}
        self._store._call("complete_multipart_upload", Key=self._key, UploadId=self._id, MultipartUpload=parts)

    def abort(self) -> None:
        if self._id:
            try:
                self._store._call("abort_multipart_upload", Key=self._key, UploadId=self._id)
            except StoreError:
                return  # the first error is the one to tell


# -- the repository of one namespace's volumes ---------------------------------------------------------------------
@dataclass(frozen=True)
class Repository:
    """Volume data of one namespace, under ``kopia/<namespace>/``."""

    store: ObjectStore
    namespace: str
    key: bytes = field(repr=False)

    def path(self, snapshot: str) -> str:
        return f"kopia/{self.namespace}/{snapshot}"

    def save(self, snapshot: str, folder: Path, progress: Callable[[int], None]) -> int:
        """Store a folder's files; returns their bytes. Raises StoreError, OSError."""
        kept = owners_file(folder)
        owners = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        upload = Upload(self.store, self.path(snapshot))
        sealed = _Sealer(upload, self.key, snapshot.encode())
        done = 0
        try:
            with tarfile.open(fileobj=sealed, mode="w|", format=tarfile.PAX_FORMAT, bufsize=FRAME) as archive:
                for path in (folder, *_walk(folder)):
                    name = os.path.relpath(path, folder)
                    info = archive.gettarinfo(str(path), arcname=name)
                    if info is None:  # a socket: nothing to keep
                        continue
                    info.uid, info.gid, info.mode = owners.get(name, (info.uid, info.gid, info.mode))
                    if info.isreg() and info.size:
                        with path.open("rb") as file:
                            archive.addfile(info, file)
                        done += info.size
                    else:
                        archive.addfile(info)
                    progress(done)
            sealed.finish()
            upload.finish()
        except BaseException:
            upload.abort()
            raise
        return done

    def load(self, snapshot: str, folder: Path, progress: Callable[[int], None]) -> int:
        """Put a snapshot's files into a folder; returns their bytes. Raises StoreError, OSError."""
        done, owners = 0, {}
        opened = _Opener(self.store.open(self.path(snapshot)), self.key, snapshot.encode())
        try:
            with tarfile.open(fileobj=opened, mode="r|", bufsize=FRAME) as archive:
                # Python 3.11.2 (Debian 12) has no extraction filters, 3.14 refuses links out of the tree by default
                archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
                for info in archive:
                    _check_inside(info, str(folder))
                    archive.extract(info, str(folder), set_attrs=False)
                    if info.isreg():
                        os.utime(os.path.join(folder, info.name), (info.mtime, info.mtime))  # noqa: PTH118
                    owners[os.path.normpath(info.name)] = [info.uid, info.gid, info.mode]
                    done += info.size if info.isreg() else 0
                    progress(done)
            opened.expect_end()
            owners_file(folder).write_text(json.dumps(owners), encoding="utf-8")
        except tarfile.TarError as error:
            raise StoreError(f"unable to restore snapshot {snapshot}: {error}") from error
        return done


def _check_inside(info: tarfile.TarInfo, folder: str) -> None:
    """Nothing may leave the folder. Owners and modes are kept beside it, so they are not set."""
    target = os.path.normpath(os.path.join(folder, info.name))  # noqa: PTH118  names may not be UTF-8
    if target != folder.rstrip("/") and not target.startswith(folder.rstrip("/") + "/"):
        raise StoreError(f"snapshot has a path outside its volume: {info.name!r}")


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def repository(store: ObjectStore, namespace: str, password: str) -> Repository:
    """Open a namespace's repository, or make it. Raises StoreError for another password."""
    where = f"kopia/{namespace}/kopia.repository"
    if store.exists(where):
        try:
            head = json.loads(store.get(where))
            salt, check = base64.b64decode(head["salt"]), head["check"]
        except (ValueError, KeyError) as error:
            raise StoreError("error to connect to repository: invalid format blob") from error
    else:
        salt, check = os.urandom(16), ""
    key = hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32, maxmem=2**26)
    proof = hashlib.sha256(key + b"check").hexdigest()
    if not check:
        store.put_json(where, {"salt": base64.b64encode(salt).decode(), "check": proof})
    elif check != proof:
        raise StoreError("error to connect to repository: invalid repository password")
    return Repository(store, namespace, key)


class _Sealer(io.RawIOBase):
    """Cuts what is written into encrypted frames; the last one says that it is."""

    def __init__(self, sink: Upload, key: bytes, name: bytes) -> None:
        super().__init__()
        self._sink, self._cipher, self._name = sink, AESGCM(key), name
        self._buffer = bytearray()
        self._count = 0
        sink.write(_MAGIC)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._buffer += data
        while len(self._buffer) >= FRAME:
            self._frame(bytes(self._buffer[:FRAME]), last=False)
            del self._buffer[:FRAME]
        return len(data)

    def finish(self) -> None:
        self._frame(bytes(self._buffer), last=True)

    def _frame(self, plain: bytes, *, last: bool) -> None:
        nonce = os.urandom(12)
        about = self._name + struct.pack(">Q?", self._count, last)
        sealed = self._cipher.encrypt(nonce, plain, about)
        self._sink.write(struct.pack(">I?", len(sealed), last) + nonce + sealed)
        self._count += 1


class _Opener(io.RawIOBase):
    """Reads what a _Sealer wrote. Raises StoreError at the first byte that isn't what was written."""

    def __init__(self, source: Any, key: bytes, name: bytes) -> None:
        super().__init__()
        self._source, self._cipher, self._name = source, AESGCM(key), name
        self._buffer = b""
        self._count = 0
        self._ended = False
        if self._exactly(len(_MAGIC)) != _MAGIC:
            raise StoreError("data corruption: not a volume snapshot")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._ended and (size < 0 or len(self._buffer) < size):
            self._buffer += self._frame()
        cut = len(self._buffer) if size < 0 else size
        data, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return data

    def expect_end(self) -> None:
        """Read to the end: a snapshot that was cut short is noticed."""
        while not self._ended:
            self._frame()

    def _frame(self) -> bytes:
        length, last = struct.unpack(">I?", self._exactly(5))
        if length > 2 * FRAME:
            raise StoreError(f"data corruption: frame {self._count} is damaged")
        nonce, sealed = self._exactly(12), self._exactly(length)
        try:
            plain = self._cipher.decrypt(nonce, sealed, self._name + struct.pack(">Q?", self._count, last))
        except InvalidTag as error:
            raise StoreError(f"data corruption: frame {self._count} is damaged") from error
        self._count += 1
        self._ended = last
        return plain

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._source.read(size - len(data))
            if not more:
                raise StoreError("data corruption: snapshot ends too early")
            data += more
        return data
