"""The conformance kit for authors of heads, under pytest.

::

    from plugins.testing import parametrize_head_checks
    from my_package import MyHead

    @parametrize_head_checks(MyHead)
    def test_head_keeps_its_promises(check):
        check()

Every check is a test of its own, named after the head and the check. ``python -m plugins check NAME``
runs the same checks on a registered head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from plugins.conformance import CHECKS, Subject, reason_to_skip, run_checks

__all__ = ["parametrize_head_checks", "run_checks"]


def parametrize_head_checks(
    *heads: type[Any],
    device: str = "cpu",
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that runs a test, with the argument ``check``, once a head and check.

    Checks that do not apply (another device on the CPU, the other half of ``uses_validation``) are left out.

    Args:
        heads: The head classes.
        device: Where they compute.
        expected_failures: Names of checks that are known to fail, each with the reason.

    Raises:
        ValueError: If ``expected_failures`` names a check that does not exist.
    """
    expected = dict(expected_failures or {})
    unknown = expected.keys() - CHECKS.keys()
    if unknown:
        raise ValueError(f"no such check: {', '.join(sorted(unknown))}; possible: {', '.join(CHECKS)}")
    parameters = []
    for head in heads:
        # One subject a head: the checks that only look share one fit.
        subject = Subject(head, device)
        for name, function in CHECKS.items():
            if reason_to_skip(name, subject):
                continue
            marks = [pytest.mark.xfail(reason=expected[name], strict=True)] if name in expected else []
            check = functools.partial(function, subject)
            parameters.append(pytest.param(check, id=f"{head.__name__}-{name}", marks=marks))
    return pytest.mark.parametrize("check", parameters)
