"""The Hugging Face hub: asked once whether it can be reached at all."""

from __future__ import annotations

import functools
import sys

TIMEOUT_SECONDS = 5.0


@functools.cache
def unreachable() -> str:
    """Return why the hub cannot be reached, in a few words; empty if it can.

    The libraries that load from it try every file five times with growing pauses, so that a machine without
    network waits for a minute and prints a page before it learns what one question tells. When the hub does
    not answer, they are switched to what their caches hold.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        # Any answer will do, also a refusal.
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    # Which library sends the request, and what it raises, differs between versions of the hub's client.
    except Exception as error:
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            import datasets

            datasets.config.HF_HUB_OFFLINE = True
        return f"{constants.ENDPOINT} does not answer ({type(error).__name__})"
    return ""
