"""Where an adapter lies in S3-compatible storage: `s3://bucket/prefix`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from models.types import ModelOverrides

SCHEME = "s3://"
MAX_KEY_BYTES = 900  # S3 allows 1,024 for a whole key, of which the names of an adapter's files take a part

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_UNSAFE = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Address:
    """A folder of a bucket; `prefix` has no slash at its ends."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ValueError, with a sentence, for whatever is not `s3://bucket/prefix`."""
        bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        prefix = prefix.rstrip("/")
        if not url.startswith(SCHEME) or not prefix:
            raise ValueError(f"{url[:200]!r} is no s3://bucket/prefix")
        if not _BUCKET.fullmatch(bucket) or ".." in bucket:
            raise ValueError(f"{bucket[:80]!r} cannot be a bucket's name: 3 to 63 of a-z, 0-9, dots and hyphens")
        if not prefix.isprintable() or any(part in {"", ".", ".."} for part in prefix.split("/")):
            raise ValueError(f"{prefix[:200]!r} cannot be a prefix: control characters, or an empty, . or .. part")
        if len(prefix.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"the prefix has more than {MAX_KEY_BYTES} bytes")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"

    @property
    def folder_name(self) -> str:
        """A name for its files here: readable, and of no other address."""
        readable = _UNSAFE.sub("-", self.prefix.rpartition("/")[2].lower()).strip(".-")[:40]
        return f"{readable or 'adapter'}-{hashlib.sha256(str(self).encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Configured:
    """An adapter of the configuration: where it lies, and what else is said of it."""

    address: Address
    overrides: ModelOverrides
