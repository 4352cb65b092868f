"""Which settings of a head a study tries: as many of each, unless a user names them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from nml.errors import UserError
from plugins.lp import LinearProbe
from plugins.registry import HEADS
from probes.heads import TRIES, choose_heads
from probes.reporting.sections.tries import statement, table
from probes.reporting.selection import select
from probes.reporting.study import Study
from tests.probes.reporting.made_up import digits_rows

BUILT_IN = [plugin.name for plugin in HEADS.discover() if plugin.distribution == "noisy-model-learning"]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_every_head_has_the_same_number_of_tries_its_own_settings_first(modality: str) -> None:
    for choice in choose_heads(",".join(BUILT_IN), [], modality):
        assert choice.tries == TRIES, choice.plugin.name
        [own] = choose_heads(choice.plugin.name, [], modality, tries=1)
        assert own.candidates[0] == choice.candidates[0]
        assert len({str(candidate) for candidate in choice.candidates}) == len(choice.candidates)


def test_learning_rate_and_weight_decay_of_lp_are_swept() -> None:
    [choice] = choose_heads("lp", [], "image")
    found = [(candidate["lr"], candidate["weight_decay"]) for candidate in choice.candidates]
    assert found == [(None, None), (None, 1.0), (0.01, None), (0.01, 1.0)]


@pytest.mark.parametrize(
    ("hyper", "expected"),
    [
        (["epochs=3"], [(None, None), (None, 1.0), (0.01, None), (0.01, 1.0)]),
        (["lr=0.5"], [(0.5, None), (0.5, 1.0)]),
        (["lr=0.5,0.2"], [(0.5, None), (0.5, 1.0), (0.2, None), (0.2, 1.0)]),
        (["lr=1,2,3"], [(1, None), (2, None), (3, None)]),
        (["lr=1,2", "weight_decay=0,1"], [(1, 0), (1, 1), (2, 0), (2, 1)]),
    ],
)
def test_what_a_user_names_is_not_swept_and_counts_as_tries(
    hyper: list[str], expected: list[tuple[float | None, float | None]]
) -> None:
    [choice] = choose_heads("lp", hyper, "image")
    assert [(candidate["lr"], candidate["weight_decay"]) for candidate in choice.candidates] == expected


def test_a_swept_setting_that_a_head_refuses_is_told_as_the_users() -> None:
    with pytest.raises(UserError, match="--hyper: lp: batch_size 0"):
        choose_heads("lp", ["batch_size=0"], "image")


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            {"sweep": lambda self: {}["none"]},
            r"--plugin lp: sweep\(\) raised KeyError: 'none'; see: .*check lp",
        ),
        ({"sweep": lambda self: None}, r"--plugin lp: sweep\(\) is None; possible: a list of changes"),
        ({"sweep": lambda self: [{"rate": 1}]}, r"its sweep\(\): lp cannot take .*rate=1: TypeError"),
        ({"tries": 0}, "--plugin lp: tries is 0; possible: a whole number from 1"),
        ({"tries": property(lambda self: sys.exit(0))}, "--plugin lp: tries raised SystemExit: 0"),
    ],
)
def test_what_a_head_says_of_itself_that_cannot_be_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, says: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(HEADS, "load", lambda name: type("Odd", (LinearProbe,), says))
    with pytest.raises(UserError, match=told):
        choose_heads("lp", [], "image")


def test_a_setting_that_is_given_twice_is_refused_but_one_of_a_head_goes_before_one_of_all() -> None:
    with pytest.raises(UserError, match=r"lr=1 and lr=2: lr is set twice; .*NAME=VALUE,VALUE"):
        choose_heads("lp", ["lr=1", "lr=2"], "image")
    [choice] = choose_heads("lp", ["lp.lr=2", "lr=1"], "image", tries=1)
    assert [candidate["lr"] for candidate in choice.candidates] == [2]


def study_of(selections: dict[str, str]) -> Study:
    rows = [
        row
        for head, selection in selections.items()
        for row in digits_rows(heads=(head,), seeds=(0,), selection=selection)
    ]
    return Study(select(rows))


def test_a_report_states_the_tries_of_its_heads() -> None:
    even = study_of({"lp": '{"tries": 4}', "nmtune": '{"tries": 4}'})
    assert "the same budget: 4 settings" in statement(even)
    odd = study_of({"lp": '{"validation": [0.5]}', "nmtune": '{"validation": [0.5, 0.6]}'})
    assert "lp 1 and nmtune 2" in statement(odd)
    assert [row[-1].numbers for row in table(odd).rows] == [(("", 1.0),), (("", 2.0),)]
