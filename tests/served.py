"""A folder behind a real web server of this machine that wants a password or a signature."""

from __future__ import annotations

import base64
import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

USER, PASSWORD, SIGNATURE = "me", "hunter2secret", "X-Amz-Expires=60&X-Amz-Signature=5ec2e7"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Serves files to who brings the password or the signature, and keeps the heads of all requests."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.heads.append((self.path, dict(self.headers)))
        if self.server.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere + self.path)
            self.end_headers()
            return
        if self.headers.get("Authorization") != BASIC and urlsplit(self.path).query != SIGNATURE:
            self.send_error(401)
            return
        super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


class FolderServer(http.server.ThreadingHTTPServer):
    """A server of this machine, on a port of its own.

    Args:
        handler: What answers, of a folder.
        folder: Which.
    """

    def __init__(self, handler: type[http.server.SimpleHTTPRequestHandler], folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(handler, directory=str(folder)))

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away in the middle of an answer."""

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Serve as long as the block lasts."""
        with self:
            thread = threading.Thread(target=self.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield self
            finally:
                self.shutdown()
                thread.join()


class Server(FolderServer):
    """The server; ``elsewhere``, where it is set, is the server that it sends everybody to."""

    elsewhere = ""

    def __init__(self, folder: Path) -> None:
        self.heads: list[tuple[str, dict[str, str]]] = []
        super().__init__(Guarded, folder)


def served(folder: Path) -> contextlib.AbstractContextManager[Server]:
    """Serve a folder as long as the block lasts."""
    return Server(folder).running()
