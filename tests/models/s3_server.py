"""A real S3 server (moto's) on loopback that checks signatures, with faults between it and the client."""

from __future__ import annotations

import json
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import botocore.loaders
import botocore.session
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "adapters"
REGION = "us-east-1"
_RIGHTS = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class S3:
    """`requests` are the paths of all GETs and HEADs, with queries. A fault is for the objects that are downloaded."""

    def __init__(self, url: str, key: str, secret: str) -> None:
        self.url, self.key, self.secret = url, key, secret
        self.requests: list[str] = []
        self.before_get: Callable[[str], None] | None = None
        self.spoil: Callable[[bytes], bytes] | None = None  # what of an object's bytes is sent
        self.client = _client("s3", url, key, secret)
        self._loader = botocore.loaders.create_loader()

    def put(self, key: str, content: bytes, part_sizes: Iterable[int] = ()) -> None:
        """In parts of these sizes, where any are given."""
        where = {"Bucket": BUCKET, "Key": key}
        if not part_sizes:
            self.client.put_object(**where, Body=content)
            return
        upload = {**where, "UploadId": self.client.create_multipart_upload(**where)["UploadId"]}
        parts, start = [], 0
        for number, size in enumerate(part_sizes, 1):
            body = content[start : start + size]
            etag = self.client.upload_part(**upload, PartNumber=number, Body=body)["ETag"]
            parts.append({"PartNumber": number, "ETag": etag})
            start += size
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def downloads(self, prefix: str) -> list[str]:
        """Names of the objects below `prefix` that were downloaded, in order."""
        start = f"/{BUCKET}/{prefix}/"
        return [path.removeprefix(start) for path in self.requests if path.startswith(start) and "?" not in path]

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Has the code under test find this server, as an operator would."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        given = {"AWS_ENDPOINT_URL_S3": self.url, "AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        nowhere = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
        for name, value in {**given, **nowhere, "NO_PROXY": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(botocore.session, "create_loader", lambda _: self._loader)  # else 0.1 s for each client
        self.before_get = self.spoil = None
        self.requests.clear()


class _Faulty:
    """WSGI between the server and the client."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.s3: S3 | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        s3, path, query = self.s3, environ["PATH_INFO"], environ["QUERY_STRING"]
        if s3 is None or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        s3.requests.append(f"{path}?{query}" if query else path)
        if "HTTP_AUTHORIZATION" not in environ:  # of which moto's server makes a fault of its own
            start_response("403 Forbidden", [("content-type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        if query or environ["REQUEST_METHOD"] == "HEAD":
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        if s3.before_get is not None:
            s3.before_get(path)
        content = b"".join(self._app(environ, start_response))
        return [s3.spoil(content) if s3.spoil is not None else content]  # its length was told before


@contextmanager
def running() -> Iterator[S3]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faulty = _Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        key, secret = _make_user(url)
        faulty.s3 = S3(url, key, secret)
        faulty.s3.client.create_bucket(Bucket=BUCKET)
        yield faulty.s3
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def _make_user(url: str) -> tuple[str, str]:
    """Somebody who may do everything; from then on the server refuses everybody else."""
    iam = _client("iam", url, "nobody", "nothing")
    iam.create_user(UserName="roundhouse")
    iam.put_user_policy(UserName="roundhouse", PolicyName="all", PolicyDocument=json.dumps(_RIGHTS))
    made = iam.create_access_key(UserName="roundhouse")["AccessKey"]
    headers = {"content-type": "text/plain"}
    reset = urllib.request.Request(f"{url}/moto-api/reset-auth", data=b"0", headers=headers)
    with urllib.request.urlopen(reset, timeout=10):
        return made["AccessKeyId"], made["SecretAccessKey"]


def _client(service: str, url: str, key: str, secret: str) -> Any:
    return botocore.session.Session().create_client(
        service, region_name=REGION, endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret
    )
