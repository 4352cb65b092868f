"""A real S3 and a real web server of this machine, whose answers can be made to break off."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import fsspec
import pytest

from tests.served import BASIC, PASSWORD, FolderServer


@functools.cache
def _endpoint() -> str:
    """Return the URL of this process's one object store, which ends with the process.

    fsspec, and who reads by it, keep their clients of a bucket, and so the port of a server that has ended.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket that this process, and those that it starts, can read and write."""
    variables = {
        "AWS_ENDPOINT_URL": _endpoint(),
        "AWS_ACCESS_KEY_ID": "of-nobody",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with patch.dict(os.environ, variables):
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        fsspec.filesystem("s3").rm("bucket", recursive=True)


class _Ranged(http.server.SimpleHTTPRequestHandler):
    """Answers with the range that is asked for, as far as its server lets it."""

    def do_GET(self) -> None:
        assert isinstance(self.server, WebServer)
        if self.server.locked and self.headers.get("Authorization") != BASIC:
            self.send_error(403)
            return
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not path.is_file() or not asked or not self.server.ranges or self.command == "HEAD":
            (super().do_HEAD if self.command == "HEAD" else super().do_GET)()
            return
        content = path.read_bytes()
        first = int(asked[1])
        last = min(int(asked[2] or len(content)), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        answer = content[first : last + 1]
        if self.server.cuts:
            self.server.cuts -= 1
            answer = answer[: len(answer) // 2]
            self.close_connection = True
        self.wfile.write(answer)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


class WebServer(FolderServer):
    """The server.

    Attributes:
        cuts: How many further answers break off in the middle.
        ranges: Whether it knows ranges.
        locked: Whether it wants the password.
    """

    def __init__(self, folder: Path) -> None:
        self.cuts, self.ranges, self.locked = 0, True, False
        super().__init__(_Ranged, folder)


def web_server(folder: Path) -> contextlib.AbstractContextManager[WebServer]:
    """Serve a folder as long as the block lasts."""
    return WebServer(folder).running()
