"""From embeddings and labels to a calibrated ONNX file, by the lines of docs/probes.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.utils import shuffle

from nml.errors import UserError
from plugins.saved import load_head
from probes.export import main as export
from probes.results import read_rows
from probes.run import main as measure

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "probes.md"
MAIN = {"probes.run": measure, "probes.export": export}


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The working folder with scikit-learn's digits as embeddings and labels; the test labels."""
    monkeypatch.chdir(tmp_path)
    images, labels = shuffle(*load_digits(return_X_y=True), random_state=0)
    for name, rows in (("train", slice(0, 1000)), ("test", slice(1000, None))):
        np.save(f"{name}.npy", images[rows])
        Path(f"{name}.csv").write_text("\n".join(["label", *map(str, labels[rows])]))
    return labels[1000:]


def test_the_two_commands_of_the_page_give_a_calibrated_file(digits: np.ndarray) -> None:
    section = PAGE.read_text().split("## Heads for use")[1]
    commands = re.findall(
        r"^\$ python -m (\S+) (.*?)(?: +#.*)?$", section.split("```python")[0], re.MULTILINE
    )
    assert [name for name, _ in commands] == ["probes.run", "probes.export"]
    for name, words in commands:
        MAIN[name](shlex.split(words))
    said: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], said)
    probabilities = np.asarray(said["probabilities"])
    right = np.array(said["names"]) == digits.astype(str)
    (row,) = read_rows("results")
    assert right.mean() == row.accuracy > 0.94
    confidence = probabilities.max(axis=1)
    bins = np.ceil(confidence * 15)
    error = sum(abs((confidence - right)[bins == bin_].sum()) for bin_ in np.unique(bins)) / len(right)
    assert error == pytest.approx(row.ece, abs=1e-4)
    assert error <= 0.03
    expected = load_head("heads").head.predict_logits(_features()).numpy()
    assert np.abs(said["logits"] - expected).max() < 1e-5 * np.abs(expected).max()
    with pytest.raises(UserError, match=r"--onnx head.onnx: exists already"):
        export(["heads", "--onnx", "head.onnx"])
    with pytest.raises(UserError, match=r"--onnx a.txt; possible: a file with .onnx"):
        export(["heads", "--onnx", "a.txt"])


def _features() -> object:
    import torch

    return torch.from_numpy(np.load("test.npy")).float()
