"""URLs of sets, without the passwords and signatures in them.

What is left of a URL tells the set, and stands in files, messages and command lines. What was taken out
waits in the environment, where the processes that this one starts find it, and goes back into the URL
only where a server is talked to.
"""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import re
from urllib.parse import quote, unquote, urlsplit

from nml.errors import UserError
from nml.untrusted import parse_json

# Of this process and of those that it starts: {URL without its secret: the same with it}.
VARIABLE = "NML_URL_SECRETS"
NETRC = "NETRC"

_URL = re.compile(
    r"(?P<scheme>(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*)://"
    r"(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\??[^#]*)(?P<fragment>.*)",
    re.IGNORECASE | re.DOTALL,
)
_IN_TEXT = re.compile(r"(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
# What reads a URL may stand before it, and another URL after it: webdataset:https://HOST/A.tar,https://HOST/B.tar
_READER = re.compile(r"[a-z][a-z0-9_-]*:(?=(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_NEXT = re.compile(r",(?=(?:[a-z0-9]+::)*[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
# Elsewhere a question mark may be part of an object's name.
_SIGNED = re.compile(r"\?(?:.*[&-])?\w*(?:sig|token|key|secret|passw|credential)\w*=", re.IGNORECASE)
_DENIED = (401, 403)
# Its URLs have the repository where others have a password.
_WITHOUT_SECRETS = ("github", "file", "local")


def without_secret(location: str) -> str:
    """Return a URL as it may be shown and kept; a path as it is.

    Taken out are the password and, over HTTP, the user as well and all that follows a question mark: a
    signature is as long as its date and its expiry are with it.

    Raises:
        UserError: If it cannot be told where the password ends; the message does not repeat it.
    """
    found = _URL.fullmatch(location)
    if found is None or found["scheme"] in _WITHOUT_SECRETS:
        return location
    user, at, host = found["authority"].rpartition("@")
    if not at and re.search(r":(?!\d*$)", host.rpartition("]")[2]) and "@" in location:
        raise UserError(
            f"{found['scheme']}://...: the user and the password of this URL do not read",
            mend="in a password, write / as %2F, ? as %3F and # as %23",
        )
    http = found["scheme"].rpartition("::")[2].lower() in ("http", "https")
    authority = host if http or not at else user.partition(":")[0] + at + host
    rest = "" if http or _SIGNED.match(found["query"]) else found["query"] + found["fragment"]
    return f"{found['scheme']}://{authority}{found['path']}{rest}"


def take_secret(location: str) -> str:
    """Return a location without its secret, and keep that for :func:`with_secret`."""
    shown = without_secret(location)
    if shown != location:
        os.environ[VARIABLE] = json.dumps({**_kept(), shown.rstrip("/"): location})
        found = _URL.fullmatch(location)
        if found is not None and "*" in found["path"]:
            # The files that a pattern stands for lie below the folder that it begins with.
            start, end = found.span("path")
            take_secret(
                location[:start] + found["path"].partition("*")[0].rpartition("/")[0] + location[end:]
            )
    return shown


def take_secrets(text: str) -> str:
    """Do the same to each URL of what a user names, and keep what reads them: ``webdataset:URL,URL``."""
    reader = _READER.match(text)
    start = reader.end() if reader else 0
    return text[:start] + ",".join(map(take_secret, _NEXT.split(text[start:])))


def take_secret_of_word(word: str) -> str:
    """Do the same to a word of a command line: a URL, or a flag with one behind ``=``."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + take_secrets(value)


def with_secret(url: str) -> str:
    """Return the URL of a set, or of a file in it, as its server wants it.

    What was not given with the URL may stand in the file that ``$NETRC`` names, or else in ``~/.netrc``,
    under the name of the host.
    """
    for shown, given in sorted(_kept().items(), key=lambda item: -len(item[0])):
        whole = _URL.fullmatch(given)
        if whole is not None and (url == shown or url.startswith(f"{shown}/")):
            place = whole["path"].rstrip("/") + url[len(shown) :]
            return f"{whole['scheme']}://{whole['authority']}{place}{whole['query']}"
    scheme, separator, rest = url.partition("://")
    if separator and "@" not in rest.partition("/")[0] and scheme.rpartition("::")[2] in ("http", "https"):
        # No entry of a netrc file for "all other hosts": any of them could ask for it.
        with contextlib.suppress(OSError, ValueError, netrc.NetrcParseError):
            host = urlsplit(f"//{rest}").hostname or ""
            if host in (entries := netrc.netrc(os.environ.get(NETRC) or None)).hosts:
                login, _, password = entries.hosts[host]
                return f"{scheme}://{quote(login, safe='')}:{quote(password, safe='')}@{rest}"
    return url


def redacted(text: str) -> str:
    """Return a message of somebody else's without the secrets of the URLs in it."""
    for given in _kept().values():
        whole = _URL.fullmatch(given)
        password = whole["authority"].rpartition("@")[0].partition(":")[2] if whole else ""
        query = whole["query"].removeprefix("?") if whole else ""
        for secret in filter(None, (password, unquote(password), query)):
            text = text.replace(secret, "***")
    return _IN_TEXT.sub(_shown_in_text, text)


def access_error(what: str, error: Exception, mend: str) -> UserError:
    """Return the error for what a server or a client of one has refused, in its own words without secrets.

    Args:
        what: What could not be done, for example ``s3://bucket/set/set.json: cannot be read``.
        error: What was raised.
        mend: What to do, where it is not for want of a password.
    """
    error = told_reason(error)
    if getattr(error, "status", None) in _DENIED:
        mend = (
            "give the URL with its user and password, or with its signature, on the command line: neither "
            "is kept; or put the user and password into ~/.netrc"
        )
    return UserError(f"{what}: {type(error).__name__}: {redacted(str(error))}", mend=mend)


def told_reason(error: Exception) -> Exception:
    """Return why a file could not be opened: over HTTP, fsspec says of any reason that there is no file."""
    reason = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(reason, Exception):
        return error
    status = getattr(reason, "status", None)
    gone = isinstance(reason, FileNotFoundError) or status == 404
    return reason if not gone and (isinstance(reason, OSError) or isinstance(status, int)) else error


def _shown_in_text(found: re.Match[str]) -> str:
    try:
        return without_secret(found[0])
    except UserError:
        return f"{found[0].partition('://')[0]}://..."


def _kept() -> dict[str, str]:
    kept: dict[str, str] = parse_json(os.environ.get(VARIABLE) or "{}")
    return kept
