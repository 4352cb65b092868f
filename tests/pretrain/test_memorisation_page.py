"""The page of what a run memorised."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nml.errors import UserError
from pretrain.memorisation import main, measures
from pretrain.memorised import FORMAT, SCHEMA
from shards.shardset import ShardSet
from shards.write import main as write_shards

# As a class of somebody else's set may be called.
HOSTILE = "<b onload=x>&"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on 16 images of two classes, a quarter flipped; these have the lower margins, but for one."""
    for number in range(16):
        folder = tmp_path / "images" / (HOSTILE if number % 2 else "plain")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (16 * number, 0, 0)).save(folder / f"{number:02d}.png")
    words = ["--source", f"imagefolder:{tmp_path / 'images'}", "--noise", "0", "0.25", "--workers", "1"]
    write_shards([*words, "--out", str(tmp_path / "set")])
    manifest = pq.read_table(tmp_path / "set" / "manifest.parquet").to_pylist()
    rows = []
    for number, row in enumerate(manifest):
        flipped = row["label"] != row["label_n25"]
        rows.append(
            {
                **{"key": row["key"], "sample": number, "flipped": flipped, "given": row["label_n25"]},
                **{"true": row["label"], "predicted": row["label"], "learnt": None if flipped else 1},
                **{"forgotten": 0, "margin": number - 100 * flipped, "times": 3},
            }
        )
    exception = next(row for row in rows if row["flipped"])
    exception |= {"margin": 99.0, "learnt": 3, "predicted": exception["given"]}
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"format": FORMAT}))
    pq.write_table(table, run / "memorisation.parquet")
    groups = {"kept": {"accuracy": 0.9}, "flipped": {"given": 0.25, "true": 0.75, "other": 0.0}}
    line = {"event": "noise", "step": 4, "epoch": 1, "source": "training", **groups}
    checked = {"event": "validation", "step": 4, "top1": 0.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(checked) + "\n")
    fingerprint = ShardSet.open(tmp_path / "set").fingerprint
    noise = {"level": "n25", "set_path": str(tmp_path / "set"), "set_fingerprint": fingerprint}
    (run / "export" / "meta.json").write_text(json.dumps({"noise": noise}))
    return run


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_shows_the_samples_and_holds_all_that_it_shows(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "--pictures", "2"])
    said = capsys.readouterr().out
    # Three of four flipped ones lie below all twelve kept ones, the fourth above.
    assert "margin (AUM)" in said
    assert "0.750" in said
    page = Page((run / "memorisation.html").read_text())
    pictures = [named["src"] for tag, named in page.tags if tag == "img"]
    assert len(pictures) == 1 + 3 * 2
    assert all(source and source.startswith("data:image/") for source in pictures)
    # What a class is called is text, never markup.
    assert not [tag for tag, named in page.tags if tag == "b" or "onload" in named]
    assert any(HOSTILE in text for text in page.text)
    assert any("margin 99.00" in text for text in page.text)


def test_without_its_set_a_page_has_no_pictures_and_says_so(run: Path) -> None:
    (run.parent / "set" / "set.json").unlink()
    main([str(run)])
    page = Page((run / "memorisation.html").read_text())
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 1
    assert any("No pictures" in text for text in page.text)


def test_measures_of_captions_leave_out_the_class(run: Path) -> None:
    rows = pq.read_table(run / "memorisation.parquet")
    of_captions = rows.set_column(3, "given", pa.nulls(len(rows), pa.int32()))
    assert [each.name for each in measures(of_captions)] == [each.name for each in measures(rows)][:3]
    assert np.allclose([each.auc for each in measures(of_captions)], [e.auc for e in measures(rows)][:3])


def test_a_run_that_remembers_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; possible: of a run with --memorisation"):
        main([str(tmp_path)])
    (tmp_path / "memorisation.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"memorisation.parquet: does not read"):
        main([str(tmp_path)])
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "memorisation.parquet")
    with pytest.raises(UserError, match="not of the format nml-memorisation/1"):
        main([str(tmp_path)])
