"""Which environment variable's key may be sent to which host.

A study file may come from a colleague, and names variables and addresses. A key goes where its owner said
on the command line, or where it comes from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from nml.errors import UserError
from probes.encoders.endpoint import DEFAULT_URL
from probes.spec import Spec, split_spec

DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
# Of providers with an endpoint as OpenAI's; over https only.
KNOWN_HOSTS = {
    "OPENAI_API_KEY": "api.openai.com",
    "MISTRAL_API_KEY": "api.mistral.ai",
    "VOYAGE_API_KEY": "api.voyageai.com",
    "JINA_API_KEY": "api.jina.ai",
    "TOGETHER_API_KEY": "api.together.xyz",
}
_OPTION = "--allow-key"


def key_variable(spec: Spec) -> str:
    """Return the variable that holds the key of an endpoint."""
    return spec.options.get("key_env", DEFAULT_KEY_VARIABLE)


def named_keys(encoders: Sequence[str], allowed: Sequence[str], words: Sequence[str]) -> frozenset[str]:
    """Return what the user allows to be sent where, as ``VARIABLE@HOST``.

    Args:
        encoders: All specifications, those of a config file among them.
        allowed: What ``--allow-key`` says.
        words: The command line.

    Raises:
        UserError: If ``--allow-key`` stands in a config file, or names no variable and host.
    """
    typed = {*words, *(word.partition("=")[2] for word in words if word.startswith("--"))}
    for one in allowed:
        variable, _, host = one.partition("@")
        if not variable.isidentifier() or not host or "/" in host:
            raise UserError(f"{_OPTION} {one}: no variable and host", possible="NAME@HOST, NAME@HOST:PORT")
        if one not in typed:
            raise UserError(
                f"{_OPTION} {one}: stands in a config file, which may be somebody else's",
                mend="say it on the command line",
            )
    specs = [split_spec(text) for text in encoders if text in typed]
    own = {f"{key_variable(spec)}@{_host(spec.options.get('url', DEFAULT_URL))}" for spec in specs}
    return frozenset(one.lower() for one in {*allowed, *own})


def check_key(spec: Spec, url: str, named: Collection[str]) -> None:
    """Refuse to send a key that its owner did not name for this host.

    Args:
        spec: The encoder.
        url: Its base address.
        named: What :func:`named_keys` returned.

    Raises:
        UserError: Naming the variable, the host and the option that allows it.
    """
    variable, host = key_variable(spec), _host(url)
    known = urlsplit(url).scheme == "https" and KNOWN_HOSTS.get(variable) == host
    if not known and f"{variable}@{host}".lower() not in named:
        raise UserError(
            f"--encoder {spec.text}: the key in {variable} is not sent to {host}: only a config file says so",
            mend=f"if you want it, say it on the command line: {_OPTION} {variable}@{host}",
        )


def _host(url: str) -> str:
    """Return host and port of an address; what is none is refused where it is used."""
    return url.partition("://")[2].partition("/")[0].lower()
