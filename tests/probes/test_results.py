from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nml.errors import UserError
from nml.files import sha256_file
from probes.results import Row, read_rows, write_rows
from probes.results.__main__ import main
from probes.results.export import as_csv, as_latex, select
from probes.results.row import IDENTITY, identify
from probes.summary import summary_table


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "encoder": "tiny", "encoder_kind": "timm", "encoder_hash": "e", "task": "digits",
        "task_revision": "1",
        "split_hash": "s", "domain": "id", "dataset": "digits", "head": "lp", "head_distribution": "d",
        "head_version": "1", "n_train": 3, "n_validation": 2, "n_test": 1, "dim": 2, "num_classes": 2,
        "accuracy": 0.5, "macro_f1": 0.25, "metric": 0.5, "sve": 1.0, "lsvr": 0.5,
        "singular_values": (2.0, 1.0), "created": "2024-01-01",
    }  # fmt: skip
    return Row(**(values | changes))  # type: ignore[arg-type]


def write_batch(folder: str, writer: int) -> None:
    for number in range(25):
        write_rows(folder, [row(seed=1000 * writer + number), row(seed=1000 * writer + number + 500)])


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(), row(seed=1, noise_ratio=0.2, run_path="runs/a", step=3)]
    write_rows(tmp_path, rows)
    assert sorted(read_rows(tmp_path), key=lambda r: r.seed) == rows


def test_rows_of_eight_concurrent_writers_are_all_there(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_batch, args=(str(tmp_path), number)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(read_rows(tmp_path)) == 8 * 50
    assert not [path for path in (tmp_path / "rows").iterdir() if path.suffix != ".parquet"]


@pytest.mark.parametrize("field", IDENTITY)
def test_every_cause_changes_the_row_id(field: str) -> None:
    fields = {name: getattr(row(), name) for name in IDENTITY}
    changed = 0.5 if isinstance(fields[field], float) else 7 if isinstance(fields[field], int) else "other"
    assert identify(**(fields | {field: changed})) != identify(**fields)


def test_rows_from_before_the_code_was_recorded_are_read_and_keep_their_ids(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [row()])
    assert path is not None
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["head_code"]), path)
    (found,) = read_rows(tmp_path)
    assert found == row()
    assert (found.head_code, found.row_id) == (None, "5bdb88008e5cdf46")


def test_measurements_and_places_leave_the_row_id_alone() -> None:
    assert row(accuracy=0.9, run_path="elsewhere", created="2030").row_id == row().row_id


def test_the_first_of_two_computations_of_one_result_counts(tmp_path: Path) -> None:
    write_rows(tmp_path, [row(accuracy=0.1, created="2024-01-02")])
    write_rows(tmp_path, [row(accuracy=0.2, created="2024-01-01")])
    assert [found.accuracy for found in read_rows(tmp_path)] == [0.2]


def test_of_equal_results_the_first_with_its_heads_spectrum_counts(tmp_path: Path) -> None:
    for day, spectrum in ((1, None), (2, 0.5), (3, 0.6), (4, None)):
        write_rows(tmp_path, [row(head_sve=spectrum, head_lsvr=spectrum, created=f"2024-01-0{day}")])
    assert [found.created for found in read_rows(tmp_path)] == ["2024-01-02"]


def test_a_torn_file_and_another_version_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [row()])
    assert path is not None
    other = pa.table({"row_id": ["a"]}).replace_schema_metadata({"format": "nml-results/0"})
    pq.write_table(other, tmp_path / "rows" / "other.parquet")
    with pytest.raises(UserError, match="nml-results/0"):
        read_rows(tmp_path)
    (tmp_path / "rows" / "other.parquet").unlink()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_rows(tmp_path)


def test_conditions_choose_rows() -> None:
    rows = [row(), row(head="nmtune", accuracy=0.75), row(seed=3)]
    assert select(rows, ["head=nmtune", "accuracy>0.6"]) == [rows[1]]
    assert select(rows, ["seed!=3", "noise_ratio=none"]) == rows[:2]
    with pytest.raises(UserError, match="did you mean accuracy"):
        select(rows, ["acuracy>1"])


def test_what_is_not_known_is_neither_more_nor_less_than_a_number() -> None:
    known, other, unknown = row(noise_ratio=0.2), row(noise_ratio=0.05, step=3), row(seed=1)
    rows = [known, other, unknown]
    for sign, number, found in (
        (">", "0.1", [known]), ("<=", "0.1", [other]), ("<", "9", [known, other]), ("=", "0.2", [known]),
        ("!=", "0.2", [other, unknown]), ("=", "none", [unknown]), ("!=", "none", [known, other]),
    ):  # fmt: skip
        assert select(rows, [f"noise_ratio{sign}{number}"]) == found, sign + number
    assert select(rows, ["noise_level>a"]) == []
    assert select(rows, ["step>2"]) == [other]
    for value in ("some", "none"):
        with pytest.raises(UserError, match=f"--where noise_ratio>{value}: '{value}' is no number"):
            select([unknown], [f"noise_ratio>{value}"])


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path / "results", [row()])
    arguments = ["export", str(tmp_path / "results"), "--out", str(tmp_path / "a.csv")]
    main(arguments)
    first = (tmp_path / "a.csv").read_text()
    with pytest.raises(UserError, match=r"--out .*a\.csv: exists already; name another file, or remove it"):
        main([*arguments, "--columns", "seed"])
    assert (tmp_path / "a.csv").read_text() == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trace", "a", "--where", "x=1"], "--where x=1: has no effect on trace; possible: with show"),
        (["show", "--features", "f"], "--features f: has no effect on show; possible: with trace"),
        (["show", "a", "--results", "b"], "a and --results b: two folders"),
    ],
)
def test_what_has_no_effect_on_a_command_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        main(words)


def test_exports_keep_every_digit_and_escape_latex() -> None:
    rows = [row(accuracy=1 / 3, encoder="a_b&c")]
    assert as_csv(rows, ["encoder", "accuracy"]).splitlines()[1] == f"a_b&c,{1 / 3!r}"
    assert r"a\_b\&c & 0.3333 \\" in as_latex(rows, ["encoder", "accuracy"])


def test_a_row_is_traced_to_the_samples_that_were_flipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, run = tmp_path / "set", tmp_path / "runs" / "a"
    shards.mkdir()
    (run / "export").mkdir(parents=True)
    manifest = shards / "manifest.parquet"
    pq.write_table(pa.table({"key": ["k0", "k1"], "label": [0, 1], "label_n50": [0, 2]}), manifest)
    facts = {"classes": ["cat", "dog", "owl"], "kind": "class", "fingerprint": "f"}
    (shards / "set.json").write_text(json.dumps(facts))
    meta = {"step": 7, "recipe": {"name": "quickstart"}, "engine": "ddp", "world_size": 8}
    (run / "export" / "meta.json").write_text(json.dumps(meta))
    traced = dataclasses.replace(
        row(), run_path=str(run), step=7, noise_level="n50", noise_model="symmetric", noise_ratio=0.5,
        manifest_sha256=sha256_file(manifest), set_fingerprint="f", set_path=str(shards),
    )  # fmt: skip
    write_rows(tmp_path / "results", [traced])
    monkeypatch.chdir(tmp_path)
    main(["trace", traced.row_id[:6]])
    printed = capsys.readouterr().out
    assert "k1: dog -> owl" in printed
    assert "the very file" in printed
    assert "recipe quickstart, engine ddp, world size 8" in printed


def test_packed_rows_keep_their_ids_and_name_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def of(name: str, seed: int) -> Row:
        places = {"run_path": f"{tmp_path}/runs/{name}", "set_path": "/elsewhere/sets/a"}
        return row(encoder=f"{name}@{seed}", encoder_hash=name, seed=seed, **places)

    rows = [of(name, seed) for seed in range(3) for name in ("a", "b")]
    for one in rows:
        write_rows("results", [one])
    main(["pack", "results", "--out", "packed"])
    found = read_rows("packed")
    assert {one.row_id for one in found} == {one.row_id for one in rows}
    assert {(one.run_path, one.set_path) for one in found} == {("runs/a", "a"), ("runs/b", "a")}
    before = {file.name for file in Path("packed/rows").iterdir()}
    assert len(before) == 2

    # Only the files of runs that have new rows change.
    write_rows("results", [of("b", 7)])
    main(["pack", "results", "--out", "packed"])
    after = {file.name for file in Path("packed/rows").iterdir()}
    assert len(after) == 2
    assert len(after & before) == 1
    assert len(read_rows("packed")) == 7


def test_results_that_are_not_among_those_to_be_packed_are_not_lost(tmp_path: Path) -> None:
    write_rows(tmp_path / "packed", [row(seed=8)])
    write_rows(tmp_path / "results", [row(seed=9)])
    with pytest.raises(UserError, match="has 1 rows that are not among those"):
        main(["pack", str(tmp_path / "results"), "--out", str(tmp_path / "packed")])
    assert 8 in {one.seed for one in read_rows(tmp_path / "packed")}


def test_networks_of_different_shares_of_the_tuned_weights_have_a_line_each() -> None:
    shares = [row(head="tune-lp-ft", hyper_parameters=f'{{"wise_ft": {share}}}') for share in (0.5, 1.0)]
    lines = summary_table([row(head="lp"), *shares]).splitlines()[1:]
    assert [re.split(r"\s{2,}", line)[3] for line in lines] == ["lp", "tune-lp-ft WiSE-FT 0.5", "tune-lp-ft"]
