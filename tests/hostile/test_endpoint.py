"""An endpoint of a stranger's is told in one line, whatever it answers."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from nml.errors import UserError
from probes.encoders.encoder import EncoderInfo
from probes.encoders.endpoint import ApiEncoder, Endpoint

pytest.importorskip("httpx")
GOOD = {"data": [{"index": 0, "embedding": [0.5, 0.25]}]}
ANSWERS = {
    "deep": (200, b"[" * 100_000 + b"]" * 100_000, {}),
    "packed": (200, gzip.compress(b" " * (64 << 20), 1), {"Content-Encoding": "gzip"}),
    "long": (200, b" " * (4 << 20), {}),
    "broken": (200, b"\x1f\x8b nothing", {"Content-Encoding": "gzip"}),
    "elsewhere": (307, b"", {"Location": "http://192.0.2.1/v1/embeddings"}),
    "escapes": (400, json.dumps({"error": {"message": "no \x1b[2J\x1b]0;owned\x07"}}).encode(), {}),
    "tokens": (200, json.dumps(GOOD | {"usage": {"total_tokens": "9" * 5000}}).encode(), {}),
    "none": (200, b'{"data": 3}', {}),
}


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        code, body, headers = ANSWERS[self.path.split("/")[1]]
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        # Who has read enough hangs up.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("name", ANSWERS)
def test_whatever_it_answers_is_told(name: str, address: str) -> None:
    info = EncoderInfo(name="api:m", kind="api", modality="text", identity={})
    encoder = ApiEncoder(info, Endpoint(model="m", url=f"{address}/{name}", retries=0))
    if name == "tokens":
        assert encoder.encode(["a"]).tolist() == [[0.5, 0.25]]
        assert encoder.tokens == 0
        return
    with pytest.raises(UserError) as told:
        encoder.encode(["a"])
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 500
