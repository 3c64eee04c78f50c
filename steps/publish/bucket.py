"""S3: a publication is a folder of objects with a manifest, written last. Without a manifest there is nothing to be seen.

Objects are written whole or not at all, each with its SHA-256; what is there already with the same bytes is left as it is. So a
publication that was killed goes on where it was, one that lost a file is made whole, and two at once do no harm: the model's
files have equal bytes, of README, lineage and manifest the first one stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from steps.errors import StorageError
from steps.publish.contents import Contents, File
from steps.s3 import aws_errors, split_address, store_client

MANIFEST = "manifest.json"
SCHEMA = "hyperpod-lora/publication/1"
ABSENT = frozenset({"NoSuchKey", "404", "AccessDenied", "403"})
"""Codes of what is not there: without the right to list it is forbidden."""

Progress = Callable[[str, int, int], None]
"""(what, done, of); here bytes."""


def publish(
    address: str, contents: Contents, told: Mapping[str, Any], *, client: Any = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Bring the contents to `address`; the manifest that stands there in the end. `told`: what it says besides the files.

    Raises:
        StorageError: the store refused or cannot be reached, or something else has been published there.
    """
    store = Store(address, client or store_client())
    found, done = store.manifest(contents), 0
    for file in contents.files:
        store.upload(file)
        done += file.bytes
        if progress:
            progress("publishing, bytes", done, contents.bytes)
    if found:
        return found
    files = {file.name: {"bytes": file.bytes, "sha256": file.sha256} for file in contents.files}
    about = {file.name: store.put_once(file.name, file.path.read_bytes()) for file in contents.about}
    manifest = {"schema": SCHEMA, "digest": contents.digest, "files": files, "about": about, **told}
    store.put_once(MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return store.manifest(contents) or manifest


class Store:
    """The objects of one publication."""

    def __init__(self, address: str, client: Any) -> None:
        self.address, self.client = address, client
        self.bucket, self.prefix = split_address(address)

    def manifest(self, contents: Contents) -> dict[str, Any]:
        """The manifest of these contents, if it is there.

        Raises:
            StorageError: it is there and tells of other files.
        """
        raw = self._read(MANIFEST)
        if raw is None:
            return {}
        try:
            found = json.loads(raw)
            listed = {name: entry["sha256"] for name, entry in found["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            listed = None
        if listed != {file.name: file.sha256 for file in contents.files}:
            raise StorageError(
                f"{self.address}/{MANIFEST} tells of other files than those of this model: nothing was changed there; "
                "move it away, or publish under another publish.name"
            )
        return dict(found)

    def upload(self, file: File) -> None:
        """Bring a file, unless it is there whole."""
        if self._has(file):
            return
        asked = {"ChecksumAlgorithm": "SHA256", "Metadata": {"sha256": file.sha256}}
        with aws_errors(f"{self.address}/{file.name}"):
            self.client.upload_file(str(file.path), self.bucket, self._key(file.name), ExtraArgs=asked)

    def put_once(self, name: str, data: bytes) -> dict[str, Any]:
        """Write a small object, unless there is one: size and SHA-256 of the one that is there then."""
        try:
            with aws_errors(f"{self.address}/{name}"):
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self._key(name),
                    Body=data,
                    IfNoneMatch="*",
                    ChecksumAlgorithm="SHA256",
                )
        except StorageError as error:
            there = self._read(name) if code_of(error) in ("PreconditionFailed", "ConditionalRequestConflict") else None
            if there is None:
                raise
            data = there
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def _has(self, file: File) -> bool:
        try:
            with aws_errors(f"{self.address}/{file.name}"):
                found = self.client.head_object(Bucket=self.bucket, Key=self._key(file.name))
        except StorageError as error:
            if code_of(error) in ABSENT:
                return False
            raise
        return bool(found["ContentLength"] == file.bytes and found.get("Metadata", {}).get("sha256") == file.sha256)

    def _read(self, name: str) -> bytes | None:
        try:
            with aws_errors(f"{self.address}/{name}"):
                return bytes(self.client.get_object(Bucket=self.bucket, Key=self._key(name))["Body"].read())
        except StorageError as error:
            if code_of(error) in ABSENT:
                return None
            raise

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"


def code_of(error: StorageError) -> str:
    """The store's own code for what it refused."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
