from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nml.errors import UserError
from probes.results import read_rows
from probes.run import main

FILES = "features:train=train.npy,test=test.npy,validation=held.npy"


@pytest.mark.parametrize(
    ("encoder", "views", "message"),
    [
        ("features:train=train.npy,test=test.npy", "0", "no file for the validation data of digits"),
        ("features:train=train.npy,test=test.npy,validation=train.npy", "0", "has 1259 rows, the task 179"),
        ("features:train=train.npy,test=test.npy,validation=held.npy", "2", "--views 2"),
        (f"{FILES},digits-inverted=train.npy", "0", "digits-inverted has 1259 rows, the task 359"),
        (
            f"{FILES},digits-invertd=test.npy",
            "0",
            "a file: unknown name 'digits-invertd'; .*mean digits-inverted",
        ),
    ],
)
def test_features_that_do_not_fit_the_task_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, views: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", 1259), ("held", 179), ("test", 359)):
        np.save(f"{name}.npy", np.ones((rows, 4), np.float32))
    with pytest.raises(UserError, match=message):
        main(["--plugin", "lp", "--encoder", encoder, "--views", views])
    assert not (tmp_path / "results").exists()


def test_variants_without_a_file_of_features_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"train": 1259, "held": 179, "test": 359, "inverted": 359, "thick": 359}
    for seed, (name, rows) in enumerate(files.items()):
        np.save(f"{name}.npy", np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32))
    encoder = f"{FILES},digits-inverted=inverted.npy,digits-thick=thick.npy"
    main(["--plugin", "lp", "--hyper", "epochs=1", "--encoder", encoder])
    assert {row.dataset for row in read_rows("results")} == {"digits", "digits-inverted", "digits-thick"}
    said = [line for line in capsys.readouterr().out.splitlines() if "no file for" in line]
    assert said == [
        f"{encoder}: no file for digits-rotated, digits-textured, left out; "
        "to measure one add its file: digits-rotated=FILE"
    ]
