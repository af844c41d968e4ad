"""S3-compatible storage, read with botocore: what an adapter's folder holds, and its files, whole and verified.

Endpoint and credentials are where the AWS tools look for them (`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`, a profile),
but for the instance's own role: a server that fetches on a client's word must have been given its keys. Everything here
blocks, and runs in threads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.discovery.safety import CONFIG_LIMIT_BYTES, printable
from models.fetching.address import Address
from models.fetching.checksums import matches

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEEDED = (CONFIG, WEIGHTS)  # all that vLLM reads of an adapter
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
ATTEMPTS = 3  # of each request, by botocore
DEFAULT_REGION = "us-east-1"  # MinIO's, and what most others take

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_KEYS = (
    "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)  # fmt: skip
_CHUNK_BYTES = 1 << 20
_USER_INFO = re.compile(r"//[^/@\s]*@")
_NAMES_SHOWN = 5
_BUSY_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "XMinioServerNotInitialized"})


class FetchFailed(Exception):
    """The message says why, for people. `passing`: the same request may succeed later, with nothing changed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.passing = passing


class Changed(Exception):
    """The object is another than was listed."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file as the storage lists it; `etag` without quotes."""

    name: str
    etag: str
    size_bytes: int


def is_set_up() -> bool:
    """Whether the environment names an endpoint or credentials."""
    return any(os.environ.get(name) for name in _ENDPOINTS + _KEYS)


class Storage:
    """One client, made when it is first needed."""

    def __init__(self) -> None:
        self._made: Any = None

    def list_adapter(self, address: Address, max_bytes: int) -> tuple[Remote, ...]:
        """The files of the adapter at `address`, each there and together within `max_bytes`. Raises FetchFailed."""
        with _translated(address):
            client = self._client()
            found = _files(client.list_objects_v2(**_below(address, "adapter_")), address)
            if CONFIG not in found:
                raise FetchFailed(_nothing_there(client.list_objects_v2(**_below(address, ""), MaxKeys=100), address))
        if WEIGHTS not in found:
            pickles = [name for name in found if name.endswith((".bin", ".pt"))]
            raise FetchFailed(
                f"only pickle weights ({printable(pickles[0])}), which can run code when loaded; convert the adapter "
                "to safetensors"
                if pickles
                else f"it has no {WEIGHTS} yet"
            )
        files = tuple(found[name] for name in NEEDED)
        total_bytes = sum(file.size_bytes for file in files)
        if found[CONFIG].size_bytes > CONFIG_LIMIT_BYTES:
            raise FetchFailed(f"{CONFIG} has {found[CONFIG].size_bytes:,} bytes, too many for a configuration")
        if total_bytes > max_bytes:
            raise FetchFailed(f"it has {total_bytes:,} bytes; max_adapter_bytes is {max_bytes:,}")
        return files

    def download(self, address: Address, file: Remote, path: Path, on_bytes: Callable[[int], None]) -> None:
        """Writes one file and compares it with its checksums; `on_bytes`, told of each piece, may raise to end it.

        Raises Changed where it is another than was listed, FetchFailed.
        """
        key = {"Bucket": address.bucket, "Key": f"{address.prefix}/{file.name}"}
        with _translated(address):
            answer = self._client().get_object(**key)
            if str(answer["ETag"]).strip('"') != file.etag:  # by us, because not every server knows If-Match
                answer["Body"].close()
                raise Changed(file.name)
            with closing(answer["Body"]) as body, path.open("wb") as target:
                written = 0
                for chunk in body.iter_chunks(_CHUNK_BYTES):  # compares with S3's own checksum at the end, if any
                    target.write(chunk)
                    written += len(chunk)
                    on_bytes(len(chunk))
                    if written > file.size_bytes:
                        break
                target.flush()
                os.fsync(target.fileno())  # the name that says that it is whole must not outlive what it holds
            if written != file.size_bytes:
                text = f"{file.name} has {written:,} bytes, and was listed with {file.size_bytes:,}"
                raise FetchFailed(text, passing=True)
            if _etag_is_md5(answer) and not matches(path, file.etag, lambda number: self._part_bytes(key, number)):
                raise FetchFailed(f"{file.name} does not match its checksum (ETag {file.etag})", passing=True)

    def _part_bytes(self, key: dict[str, str], number: int) -> int:
        """0 where the server does not know of parts."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        try:
            return int(self._client().head_object(**key, PartNumber=number)["ContentLength"])
        except ClientError:
            return 0

    def _client(self) -> Any:
        if self._made is None:
            self._made = _make_client()
        return self._made


def _make_client() -> Any:
    import botocore.session  # type: ignore[import-untyped]  # a tenth of a second that only few need
    from botocore import UNSIGNED
    from botocore.config import Config  # type: ignore[import-untyped]

    session = botocore.session.Session()
    session.get_component("credential_provider").remove("iam-role")
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        signature_version=None if session.get_credentials() else UNSIGNED,
        # Buckets as host names need a DNS entry for each, which few servers but Amazon's have.
        s3={"addressing_style": "path" if any(os.environ.get(name) for name in _ENDPOINTS) else "auto"},
    )
    region = session.get_config_variable("region") or DEFAULT_REGION
    return session.create_client("s3", region_name=region, config=config)


def _below(address: Address, start: str) -> dict[str, str]:
    return {"Bucket": address.bucket, "Prefix": f"{address.prefix}/{start}", "Delimiter": "/"}


def _files(listing: dict[str, Any], address: Address) -> dict[str, Remote]:
    """By name."""
    start = len(address.prefix) + 1
    found = [
        Remote(str(entry["Key"])[start:], str(entry["ETag"]).strip('"'), int(entry["Size"]))
        for entry in listing.get("Contents", ())
    ]
    return {file.name: file for file in found}


def _nothing_there(listing: dict[str, Any], address: Address) -> str:
    start = len(address.prefix) + 1
    names = [str(entry["Prefix"])[start:] for entry in listing.get("CommonPrefixes", ())]
    names += [name for name in _files(listing, address) if name]
    shown = ", ".join(printable(name) for name in names[:_NAMES_SHOWN])
    return f"there is no {CONFIG}" + (f", but {shown}" if names else ", nor anything else")


def _etag_is_md5(answer: dict[str, Any]) -> bool:
    """Not so for objects that are encrypted with keys of a key service's or the client's."""
    return answer.get("ServerSideEncryption") in (None, "AES256") and not answer.get("SSECustomerAlgorithm")


@contextmanager
def _translated(address: Address) -> Iterator[None]:
    """Turns what botocore raises into FetchFailed and Changed."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        raise _of_answer(error.response, address) from error
    except exceptions.FlexibleChecksumError as error:
        raise FetchFailed(f"a file does not match its checksum: {_told(error)}", passing=True) from error
    except exceptions.ConnectionError as error:
        raise FetchFailed(f"the storage cannot be reached: {_told(error)}", passing=True) from error
    except (exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
        raise FetchFailed(f"the transfer broke off: {_told(error)}", passing=True) from error
    except (exceptions.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise FetchFailed(f"the storage cannot be used: {_told(error)}") from error
    except KeyError as error:
        raise FetchFailed(f"the storage does not answer as S3 does: it says no {_told(error)}") from error


def _told(error: Exception) -> str:
    """Without the name and password that the endpoint's URL may have."""
    return printable(_USER_INFO.sub("//", str(error)))


def _of_answer(answer: dict[str, Any], address: Address) -> Exception:
    """What an answer with an error means."""
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = printable(f"{code}: {answer.get('Error', {}).get('Message', '')}")
    if code == "NoSuchKey":  # it was listed
        return Changed(said)
    if code == "NoSuchBucket":
        return FetchFailed(f"the bucket '{address.bucket}' does not exist")
    if status in (401, 403):
        hint = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list the bucket and read from it"
        return FetchFailed(f"the storage refuses access ({said}); {hint}")
    return FetchFailed(f"the storage answers {status} ({said})", passing=status >= 500 or code in _BUSY_CODES)
