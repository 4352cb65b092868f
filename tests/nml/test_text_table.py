"""Tables as text: names to the left, numbers to the right."""

from __future__ import annotations

from nml.text_table import in_columns


def test_cells_stand_below_each_other_and_lines_end_where_their_text_does() -> None:
    lines = [("head", "accuracy"), ("nmtune", "9.5"), ("lp", "98.9")]
    assert in_columns(lines) == ["head    accuracy", "nmtune  9.5", "lp      98.9"]
    assert in_columns(lines, text_columns=1) == ["head    accuracy", "nmtune       9.5", "lp          98.9"]
    assert in_columns([]) == []
