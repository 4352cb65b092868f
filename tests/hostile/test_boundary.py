"""What passes the boundary is what was there; what must not pass is told in a clause and costs nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nml.delimited import comma_separated
from nml.errors import UserError
from nml.locking import byte_lock, is_free, open_lock
from nml.untrusted import (
    MOST_BYTES,
    Untrusted,
    file_name,
    parse_json,
    parse_yaml,
    printable,
    read_file,
    typed,
)
from slurm.cluster import load_resources

LEAVES = st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=80)


@given(VALUES)
def test_json_reads_as_it_was_written(value: object) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


@given(VALUES)
def test_yaml_reads_as_it_was_written(value: object) -> None:
    text = yaml.safe_dump(value)
    assert parse_yaml(text) == yaml.safe_load(text)


def test_an_alias_that_is_named_twice_is_no_bomb() -> None:
    base = "base: &base\n  lr: 0.1\n  " + "x" * 200 + ": 1\nruns:\n- *base\n- *base\n"
    assert parse_yaml(base)["runs"] == [parse_yaml(base)["base"]] * 2


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("parse", "text", "why"),
    [
        (parse_json, "[" * 100_000 + "]" * 100_000, "nested more than 64 deep"),
        (parse_json, "[" * 65 + "]" * 65, "nested more than 64 deep"),
        (parse_json, '{"a": 1' + "0" * 5_000 + "}", "a number of 5,001 digits"),
        (parse_json, b'"' + b"x" * MOST_BYTES + b'"', "more than 33,554,432 bytes"),
        (parse_json, "[" + "[]," * 1_000_000 + "[]]", "more than 1,000,000 lists and objects"),
        (parse_json, b"\xff\xfe", "utf-8"),
        (parse_yaml, BOMB, "more than 100,000 values, its aliases counted"),
        (parse_yaml, "- " * 1_000 + "x", "nested more than 64 deep"),
        (parse_yaml, "a: &a [" + "x, " * 100 + "*a]", "names nothing before it"),
        (parse_yaml, "x" * (1 << 21), "more than 1,048,576 characters"),
        (parse_yaml, "!!python/object/apply:os.system [id]", "could not determine a constructor"),
        (parse_yaml, "day: 2001-99-99", "month must be in"),
        (parse_yaml, "[a", "expected ',' or ']'"),
    ],
)
def test_what_would_be_too_much_is_told(parse: object, text: str | bytes, why: str) -> None:
    with pytest.raises(Untrusted, match=why):
        parse(text)  # type: ignore[operator]


@pytest.mark.parametrize("text", [BOMB, "- " * 1_000 + "x", "nodes: !!python/object/apply:os.system [id]"])
def test_a_cluster_file_is_read_as_any_other(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_resources(str(tmp_path / "mine.yaml"), {}, "pretrain")


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path) -> None:
    with pytest.raises(Untrusted, match="no regular file"):
        read_file(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(Untrusted, match="more than 4 bytes"):
        read_file(tmp_path / "large", 4)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.tar", "/a.tar", "a\n.tar", "a\x00.tar", "a.pkl", "x" * 300, 3]
)
def test_a_name_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(Untrusted, match=r"no name of a file \*\.tar"):
        file_name(name, ".tar")


@dataclasses.dataclass
class Box:
    size: int
    parts: tuple[str, ...] = ()
    share: float | None = None


def test_values_are_held_to_the_types_of_their_fields() -> None:
    assert typed(Box, {"size": 1, "parts": ["a"], "share": 1}) == Box(1, ("a",), 1.0)
    for wrong in (
        [],
        {},
        {"size": "1"},
        {"size": True},
        {"size": 1, "parts": "ab"},
        {"size": 1, "parts": [1]},
        {"size": 1, "share": float("nan")},
        {"size": 2**70},
        {"size": 1, "no": 1},
    ):
        with pytest.raises(Untrusted):
            typed(Box, wrong)


def test_a_text_cannot_act_on_a_terminal() -> None:
    text = "enc\x1b]52;c;ZWNobyBoaQ==\x07\x9b31m\x00\ud800\u202e"
    assert printable(text) == r"enc\x1b]52;c;ZWNobyBoaQ==\x07\x9b31m\x00\ud800\u202e"
    assert printable("Käse\t日本\n") == "Käse\t日本\n"


def test_a_csv_holds_no_formula_of_somebody_else() -> None:
    names = ["=HYPERLINK(1)", "+1+cmd|x", "-x", "@sum", "-0.5", "+1e3", "a=b", "cat"]
    found = list(csv.reader(io.StringIO(comma_separated([names, [1, None, -2.5]]))))
    assert found[0] == ["'=HYPERLINK(1)", "'+1+cmd|x", "'-x", "'@sum", "-0.5", "+1e3", "a=b", "cat"]
    assert found[1] == ["1", "", "-2.5"]


def test_a_lock_neither_follows_a_link_nor_empties_a_file(tmp_path: Path) -> None:
    victim, lock = tmp_path / "thesis.tex", tmp_path / ".lock"
    victim.write_text("years of work")
    lock.symlink_to(victim)
    for attempt in (
        lambda: open_lock(lock),
        lambda: byte_lock(lock, 0, wait=False).__enter__(),
        lambda: is_free(lock),
    ):
        with pytest.raises(UserError, match="is a link, where a lock belongs"):
            attempt()
    with open_lock(victim):
        pass
    assert victim.read_text() == "years of work"
