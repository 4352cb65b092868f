from __future__ import annotations

from datetime import timedelta

import pytest

from nml.errors import UserError
from nml.run_options import duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1d", 86_400), ("2h 5s", 7205)]
)
def test_a_duration_is_read_as_it_is_written(text: str, seconds: int) -> None:
    assert duration("--timeout", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "0s", "-5m", "30m1h", "1.5h", "ten minutes"])
def test_what_is_no_duration_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(UserError, match=r"--timeout .*: not a duration; possible: .* 1h30m"):
        duration("--timeout", text)


@pytest.mark.parametrize("text", ["1000h", "100000000000h"])
def test_a_duration_that_libraries_cannot_wait_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--timeout \d+h: .*possible: up to 20d"):
        duration("--timeout", text)
