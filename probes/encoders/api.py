"""``api:text-embedding-3-small``: from a specification and the environment to an endpoint's encoder.

The key is read from the environment and goes into one request header and nowhere else.
"""

from __future__ import annotations

import math
import os
from urllib.parse import urlsplit

from nml.errors import UserError
from probes.encoders.api_keys import DEFAULT_KEY_VARIABLE, check_key, key_variable
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.endpoint import DEFAULT_URL, ApiEncoder, Endpoint
from probes.spec import Spec, check_options

OPTIONS = ("url", "key_env", "batch", "rpm", "price", "retries", "date", "prompt", "dimensions")


def open_api(spec: Spec, settings: Settings) -> Encoder:
    """Return the encoder of ``api:MODEL``.

    Options: ``url`` (base address), ``key_env`` (variable that holds the key; without it another server
    than OpenAI's gets none), ``batch``, ``rpm`` (requests a minute), ``price`` (a million tokens),
    ``retries``, ``date`` (names the version of a model that changes under its name), ``prompt`` (put before
    every text), ``dimensions`` (length to ask for); the last three are part of the feature key.

    Raises:
        UserError: If no key is in the environment or it may not be sent there, or an option is impossible.
    """
    url = _url(spec)
    # From here on the specification holds no secret and may be repeated in messages.
    check_options(spec, OPTIONS, where="--encoder")
    if len(spec.arguments) != 1:
        raise UserError(
            f"--encoder {spec.kind}: {len(spec.arguments)} models named",
            possible="api:text-embedding-3-small",
        )
    with_key = url == DEFAULT_URL or "key_env" in spec.options
    if with_key and settings.keys is not None:
        check_key(spec, url, settings.keys)
    endpoint = Endpoint(
        model=spec.arguments[0],
        url=url,
        key=_key(spec) if with_key else "",
        batch=_number(spec, "batch", 256, 1),
        requests_per_minute=_number(spec, "rpm", 0, 0),
        price=_price(spec),
        retries=_number(spec, "retries", 8, 0),
        prompt=spec.options.get("prompt", ""),
        dimensions=_number(spec, "dimensions", 0, 1) if "dimensions" in spec.options else 0,
    )
    asked = {"prompt": endpoint.prompt, "dimensions": endpoint.dimensions}
    info = EncoderInfo(
        name=f"api:{endpoint.model}",
        kind="api",
        modality="text",
        identity={
            "library": "api",
            "url": url,
            "model": endpoint.model,
            "date": spec.options.get("date", ""),
            # Only where they are set: features that were computed without them keep their keys.
            **{name: value for name, value in asked.items() if value},
        },
    )
    return ApiEncoder(info, endpoint)


def _url(spec: Spec) -> str:
    """Return the base address, refusing every place where a user might have put the key.

    The messages repeat nothing of the specification: they are printed, and the key may be in it.
    """
    for name in spec.options:
        if name not in OPTIONS and ("key" in name.lower() or "token" in name.lower()):
            raise UserError(
                f"--encoder {spec.kind}: option {name}",
                possible=", ".join(OPTIONS),
                mend=f"the key belongs into the environment: export {DEFAULT_KEY_VARIABLE}=...",
            )
    url = spec.options.get("url", DEFAULT_URL).rstrip("/")
    if not _is_plain(url):
        raise UserError(
            f"--encoder {spec.kind}: url",
            possible="https://HOST/v1 or https://HOST:PORT/v1, without user, password or query",
            mend="the key belongs into the environment",
        )
    return url


def _is_plain(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port is what looks at it.
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return (
        named
        and parts.scheme in ("http", "https")
        and not (parts.username or parts.password or parts.query or parts.fragment)
    )


def _key(spec: Spec) -> str:
    variable = key_variable(spec)
    # A key that was read from a file often ends with a line break.
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--encoder {spec.text}: no key in the environment", mend=f"export {variable}=...")
    if not (key.isascii() and key.isprintable() and " " not in key):
        # The library would say so by showing the header, and the key with it.
        raise UserError(
            f"--encoder {spec.text}: the value of {variable} cannot be a key",
            possible="printable ASCII without spaces",
        )
    return key


def _number(spec: Spec, name: str, default: int, least: int) -> int:
    text = spec.options.get(name, str(default))
    if not text.isdigit() or int(text) < least:
        raise UserError(f"--encoder {spec.text}: {name} {text}", possible=f"{least} or more")
    return int(text)


def _price(spec: Spec) -> float:
    text = spec.options.get("price", "0")
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (price >= 0 and math.isfinite(price)):
        raise UserError(f"--encoder {spec.text}: price {text}", possible="money a million tokens, 0 or more")
    return price
