"""Embeddings from an endpoint that speaks OpenAI's /v1/embeddings.

Failures that pass (dropped connections, 429, 5xx, answers that do not fit the question) are tried again
with growing pauses; every finished chunk is on disk, so an ended run goes on where it stopped and pays
for a chunk at most once more.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nml.errors import UserError, import_extra
from nml.untrusted import parse_json, printable
from probes.encoders.encoder import EncoderInfo
from probes.samples import Content

DEFAULT_URL = "https://api.openai.com/v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """How to talk to an endpoint.

    Attributes:
        model: Model name in requests.
        url: Base address, up to and with ``/v1``.
        key: Secret; empty for a server that wants none. Not part of ``repr``.
        batch: Texts a request.
        requests_per_minute: Upper bound; 0 for none.
        price: Money a million tokens, for the cost line; 0 to leave it out.
        retries: Attempts after the first.
        pause: First pause in seconds; doubles with every attempt.
        prompt: Put before every text.
        dimensions: Length of embeddings to ask for; 0 for the model's own.
    """

    model: str
    url: str = DEFAULT_URL
    key: str = dataclasses.field(default="", repr=False)
    batch: int = 256
    requests_per_minute: int = 0
    price: float = 0.0
    retries: int = 8
    pause: float = 0.5
    prompt: str = ""
    dimensions: int = 0


class _Answer(NamedTuple):
    """An answer of an endpoint, read to its end."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class PassingError(Exception):
    """A failure that another attempt may mend.

    Args:
        reason: What happened.
        pause: Seconds the server asked to wait; None if it did not say.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class ApiEncoder:
    """An encoder behind an embeddings endpoint.

    Args:
        info: What it is called.
        endpoint: How to talk to it.
        sleep: Waits some seconds.
    """

    def __init__(
        self, info: EncoderInfo, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        httpx = import_extra("httpx", "api", "--encoder api")
        self.info = info
        self.batch_size = endpoint.batch
        self.tokens = 0
        self.requests = 0
        self._endpoint = endpoint
        self._sleep = sleep
        self._dim: int | None = None
        self._next_slot = 0.0
        self._lock = threading.Lock()
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        # No redirects: they would carry the key to another host.
        self._client = httpx.Client(timeout=60, headers=headers, follow_redirects=False)

    def prepare(self, content: Content) -> Any:
        """Return the text; the two texts of a pair are put on two lines. An empty text becomes a space."""
        if isinstance(content, str | tuple):
            text = content if isinstance(content, str) else "\n".join(content)
            return self._endpoint.prompt + text or " "
        raise UserError(f"encoder {self.info.name} reads texts, the task holds images")

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return embeddings, float32 [B, D].

        Raises:
            UserError: If the endpoint refuses, or still fails after all attempts.
        """
        texts = list(prepared)
        reason = "?"
        for attempt in range(self._endpoint.retries + 1):
            try:
                return self._ask(texts)
            except PassingError as error:
                reason = str(error)
                if attempt < self._endpoint.retries:
                    pause = self._endpoint.pause * 2**attempt
                    # Jitter, so that many processes do not come back in step.
                    pause *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                    self._sleep(max(error.pause or 0.0, min(pause, 60.0)))
        raise UserError(
            f"encoder {self.info.name}: {reason} ({self._endpoint.retries + 1} attempts)",
            mend="run the same command again to go on where it stopped",
        )

    def cost_line(self) -> str:
        """Return what was spent, for the end of a run; empty if nothing was asked."""
        if not self.requests:
            return ""
        line = f"{self.info.name}: {self.requests} requests, {self.tokens} tokens"
        price = self._endpoint.price
        return line + (
            f", cost {self.tokens * price / 1e6:.4f} at {price:g} a million tokens" if price else ""
        )

    def _ask(self, texts: list[str]) -> npt.NDArray[np.float32]:
        import httpx

        self._wait_for_slot()
        self.requests += 1
        try:
            length = {"dimensions": self._endpoint.dimensions} if self._endpoint.dimensions else {}
            answer = self._post(
                {"model": self._endpoint.model, "input": texts, "encoding_format": "float", **length},
                len(texts),
            )
        except httpx.RequestError as error:
            # Dropped, too slow, or an answer whose compression does not read.
            raise PassingError(f"connection failed ({type(error).__name__})") from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise PassingError(f"the endpoint answered {self._refusal(answer)}", _retry_after(answer))
        if answer.status_code != 200:
            raise UserError(
                f"encoder {self.info.name}: the endpoint answered {self._refusal(answer)}",
                possible="200",
                mend=self._mend(answer.status_code),
            )
        features = self._parse(answer, len(texts))
        if length and features.shape[1] != self._endpoint.dimensions:
            raise UserError(
                f"encoder {self.info.name}: asked for {self._endpoint.dimensions} dimensions, "
                f"the endpoint gives {features.shape[1]}",
                mend="leave dimensions= out; this model has one length",
            )
        self._check_dim(features.shape[1])
        return features

    def _post(self, question: dict[str, Any], count: int) -> _Answer:
        """Return the answer, read no further than embeddings of so many texts can be long.

        What a server sends may have no end, and may be a thousand times as long once it is unpacked.
        """
        most = _ROOM + _ROOM_A_TEXT * count
        with self._client.stream("POST", f"{self._endpoint.url}/embeddings", json=question) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > most:
                    raise UserError(
                        f"encoder {self.info.name}: the endpoint's answer has more than {most:,} bytes",
                        mend="check the address, or ask for fewer texts a request: batch=N",
                    )
        return _Answer(answer.status_code, answer.headers, bytes(content))

    def _refusal(self, answer: Any) -> str:
        """Return the status of an answer and the server's own words, on one line and without the key."""
        said = " ".join(_explanation(answer).split())
        if self._endpoint.key:
            said = said.replace(self._endpoint.key, "***")
        said = printable(said)
        return f"{answer.status_code}" + (f" ({said[:_LONGEST_WORDS]})" if said else "")

    def _mend(self, status: int) -> str:
        if status in (401, 403) and not self._endpoint.key:
            return "name the environment variable that holds the key of this server: key_env=NAME"
        return _MENDS.get(status, "check the model's name and the address")

    def _parse(self, answer: Any, count: int) -> npt.NDArray[np.float32]:
        try:
            content = parse_json(answer.content, most=len(answer.content), containers=len(answer.content))
            # Answered is paid for, whether the answer is of use or not.
            self.tokens += _count((content.get("usage") or {}).get("total_tokens", 0))
            # The order of the items is the server's own affair; the index says which text each belongs to.
            items = sorted(content["data"], key=lambda item: item["index"])
            if [item["index"] for item in items] != list(range(count)):
                raise PassingError(f"the endpoint answered {len(items)} embeddings for {count} texts")
            features = np.stack([_vector(item["embedding"]) for item in items])
            if features.ndim != 2 or not features.shape[1]:
                raise ValueError("no matrix")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # Vectors of different lengths in one answer are a ValueError of numpy, too.
            raise PassingError("the endpoint's answer holds no embeddings of one length") from error
        if not np.isfinite(features).all():
            raise PassingError("the endpoint's embeddings are not finite")
        return features

    def _check_dim(self, dim: int) -> None:
        if self._dim is None:
            self._dim = dim
        elif dim != self._dim:
            raise PassingError(f"the endpoint answered {dim} dimensions after {self._dim}")

    def _wait_for_slot(self) -> None:
        if not self._endpoint.requests_per_minute:
            return
        with self._lock:
            now = time.monotonic()
            slot = max(now, self._next_slot)
            self._next_slot = slot + 60 / self._endpoint.requests_per_minute
        if slot > now:
            self._sleep(slot - now)


def _count(tokens: Any) -> int:
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else 0


def _vector(embedding: Any) -> npt.NDArray[np.float32]:
    """Return one embedding [D]; some servers answer in base64 whatever format they are asked for."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.array(embedding, dtype=np.float32)


def _explanation(answer: Any) -> str:
    """Return what the body of a refusal says, in the forms that servers give it."""
    text = answer.content[:_MOST_EXPLANATION].decode(errors="replace")
    try:
        content = parse_json(text)
    except ValueError:
        return str(text)
    for name in ("error", "message", "detail"):
        while isinstance(content, dict) and name in content:
            content = content[name]
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


# Letters of a server's explanation that are shown, and of it that are looked at.
_LONGEST_WORDS = 300
_MOST_EXPLANATION = 100_000
# 10,000 dimensions as decimal text.
_ROOM_A_TEXT = 256 << 10
_ROOM = 1 << 20
_MENDS = {
    400: "do what it says; texts that are too long for the model have to be cut in the data",
    422: "do what it says; fewer texts a request: batch=N",
    401: "the key in the environment is not accepted",
    403: "the key in the environment may not use this model",
    404: "check the model's name and the address",
    413: "ask for less at once: batch=N",
}


def _retry_after(answer: Any) -> float | None:
    try:
        return min(120.0, max(0.0, float(answer.headers["retry-after"])))
    except (KeyError, ValueError):
        return None


def print_costs(encoders: Sequence[Any]) -> None:
    """Print what was spent at every endpoint that was asked."""
    for encoder in encoders:
        if isinstance(encoder, ApiEncoder) and encoder.cost_line():
            print(encoder.cost_line(), file=sys.stderr)
