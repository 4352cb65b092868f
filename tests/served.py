"""A folder behind a real web server of this machine that wants a password or a signature."""

from __future__ import annotations

import base64
import contextlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

USER, PASSWORD, SIGNATURE = "me", "hunter2secret", "X-Amz-Expires=60&X-Amz-Signature=5ec2e7"


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
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != basic and urlsplit(self.path).query != SIGNATURE:
            self.send_error(401)
            return
        super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


class Server(http.server.ThreadingHTTPServer):
    """The server; ``elsewhere``, where it is set, is the server that it sends everybody to."""

    elsewhere = ""

    def __init__(self, folder: Path) -> None:
        self.heads: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), partial(Guarded, directory=str(folder)))

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away in the middle of an answer."""

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serve a folder as long as the block lasts."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
