"""Names and exact values of noise ratios."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nml.errors import UserError
from nml.levels import (
    check_level_name,
    decimal_text,
    find_level,
    level_name,
    level_of,
    level_ratio,
    parse_ratio,
)


@pytest.mark.parametrize(
    ("ratio", "name"),
    [(0, "n00"), ("0.0", "n00"), (0.05, "n05"), ("0.20", "n20"), (0.125, "n12p5"), (0.001, "n00p1")],
)
def test_a_level_is_named_by_its_percentage(ratio: float, name: str) -> None:
    assert level_name(ratio) == name


@given(st.decimals(min_value=0, max_value="0.999999", places=6))
def test_name_and_ratio_are_inverse(ratio: object) -> None:
    assert level_ratio(level_name(str(ratio))) == Fraction(str(ratio))


def test_a_float_stands_for_its_decimal_text() -> None:
    assert parse_ratio(0.1) == Fraction(1, 10)
    assert parse_ratio("1e-3") == Fraction(1, 1000)
    assert decimal_text(1e-05) == "0.00001"


@pytest.mark.parametrize("value", [1, 1.2, -0.1, "nan", "inf", "a lot", "", "1/0"])
def test_what_is_no_ratio_is_refused_by_name(value: object) -> None:
    with pytest.raises(UserError, match="--noise"):
        parse_ratio(value)  # type: ignore[arg-type]


def test_a_percentage_is_refused_with_its_ratio() -> None:
    with pytest.raises(UserError, match=r"for 20 percent write 0\.2"):
        parse_ratio("20")


def test_a_ratio_without_decimal_text_is_refused() -> None:
    with pytest.raises(UserError, match="no finite decimal text"):
        level_name(Fraction(1, 3))


@pytest.mark.parametrize("text", ["99.99999999", "2", "20", "0.2e3", "1e999999999", "9" * 100])
def test_a_ratio_that_a_refusal_offers_is_taken(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_ratio(text)
    if refused.value.mend:
        parse_ratio(refused.value.mend.rpartition(" ")[2])


@pytest.mark.parametrize("noise", ["0.15", "0.1234567", "n20-flip", "n5", "n20p0-x", "worst", "n00p1"])
def test_a_level_that_is_not_there_is_offered_as_one_that_can_be_added(noise: str) -> None:
    with pytest.raises(UserError, match=f"has no noise level {level_of(noise)}") as refused:
        find_level(noise, {"n00": "0"}, "set", location="set")
    words = refused.value.mend.replace("RATIO", "0.3").split()
    if "--noise" in words:
        ratio = parse_ratio(words[words.index("--noise") + 1])
        offered = words[words.index("--name") + 1] if "--name" in words else level_name(ratio)
        assert check_level_name(offered, ratio) == level_of(noise)


@pytest.mark.parametrize("name", ["n5", "20", "n20p0", "n20p", "label_n20"])
def test_what_is_no_level_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="not a level name"):
        level_ratio(name)
