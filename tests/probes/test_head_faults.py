"""A head that raises, diverges or answers nonsense is named, gets no result, and stops no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nml.errors import UserError
from plugins.lp import LinearProbe
from plugins.registry import HEADS
from probes import run as command
from probes.encoders import open_checkpoint
from probes.features import FeatureStore
from probes.heads import HeadChoice, choose_heads
from probes.probing import Plan, Probe, probes_of
from probes.results import read_rows
from probes.tasks import open_task
from probes.tasks.samplesets import Selected


class Healthy:
    """Scores that are the first ten features."""

    uses_validation = False

    def __init__(self, *, wrong: str = "") -> None:
        self.wrong = wrong

    def fit(self, features: Tensor, labels: Tensor, **_: Any) -> None:
        if self.wrong == "fit":
            raise ValueError("no such luck\nand a second line")

    def transform(self, features: Tensor) -> Tensor:
        return features[0] if self.wrong == "transform" else features

    def predict_logits(self, features: Tensor) -> Any:
        scores = features[:, :10].clone()
        if self.wrong == "nan":
            scores[3, 0] = torch.nan
        return {"columns": scores[:, :9], "list": scores.tolist()}.get(self.wrong, scores)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": "none"} if self.wrong == "state" else {"weights": torch.zeros(1)}


def probe_of(folder: Path, export: Path, choices: list[HeadChoice]) -> Probe:
    digits = open_task("digits")
    task = dataclasses.replace(
        digits,
        train=Selected(digits.train, np.arange(120)),
        evaluations=tuple(
            part._replace(samples=Selected(part.samples, np.arange(40))) for part in digits.evaluations[:2]
        ),
    )
    plan = Plan(
        heads=choices,
        fractions=[Fraction(1)],
        seeds=range(2),
        noises=[Fraction(0)],
        results=folder / "results",
        store=FeatureStore(folder / "features"),
        heads_folder=folder / "heads",
    )
    [probe] = probes_of([open_checkpoint(export)], task, plan)
    for wait in (False, True):
        probe.run(wait=wait)
    return probe


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("fit", "fit raised ValueError: no such luck; no result of 2 of 2 fit(s), the first with fraction 1"),
        ("nan", "diverged: predict_logits gave NaN or infinity for 1 of "),
        ("columns", "predict_logits returned [179, 9]; expected [179, 10]"),
        ("list", "predict_logits returned list, not a tensor"),
        ("transform", "transform returned ["),
        ("state", "state_dict returned values that are no tensors"),
    ],
)
def test_a_head_that_fails_is_named_once_and_the_others_finish(
    wrong: str,
    told: str,
    tmp_path: Path,
    make_export: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    [lp] = choose_heads("lp", ["epochs=1"], "image")
    bad = HeadChoice(HEADS.find("mlp"), Healthy, None, ({"wrong": wrong},))  # type: ignore[arg-type]
    probe = probe_of(tmp_path, make_export(tmp_path / "run"), [bad, lp])
    assert {row.head for row in read_rows(tmp_path / "results")} == {"lp"}
    assert [folder.name[:3] for folder in (tmp_path / "heads").iterdir()] == ["lp-", "lp-"]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert f"mlp on {probe.encoder.info.name}, {probe.task.name}: {told}" in warnings[0]
    assert len(probe.failed) == 2


def test_a_candidate_that_fails_is_not_chosen(tmp_path: Path, make_export: Callable[..., Path]) -> None:
    candidates = ({"wrong": "nan"}, {"wrong": ""}, {"wrong": "fit"})
    head = HeadChoice(HEADS.find("mlp"), Healthy, None, candidates)  # type: ignore[arg-type]
    probe = probe_of(tmp_path, make_export(tmp_path / "run"), [head])
    assert not probe.failed
    assert {row.hyper_parameters for row in read_rows(tmp_path / "results")} == {'{"wrong": ""}'}


def test_the_exit_status_says_that_a_head_of_a_batched_pass_diverged(
    tmp_path: Path,
    make_export: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    export = make_export(tmp_path / "run")
    words = ["--checkpoint", str(export), "--hyper", "epochs=1", "nmtune.lr=1e30", "--head-spectra", "false"]
    assert command.main(["--plugin", "lp,nmtune", *words]) == 1
    shown = capsys.readouterr()
    assert "error: no result of some fits of nmtune, see above" in shown.err
    assert {row.head for row in read_rows(tmp_path / "results")} == {"lp"}
    assert command.main(["--plugin", "lp", *words[:3], "epochs=1", *words[-2:]]) == 0
    assert command.main(["--plugin", "nmtune", *words]) == 1


class OfAnotherMachine(LinearProbe):
    """Wants a file that this one lacks."""

    def __init__(self, *, file: str = "") -> None:
        Path(file).read_text()


def test_a_setting_is_not_refused_where_its_head_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = HEADS.find("lp")._replace(name="far", value=f"{__name__}:OfAnotherMachine")
    gone = plugin._replace(name="gone", value="no_such_module:Head")
    monkeypatch.setattr(HEADS, "discover", lambda: [plugin, gone])
    for head in ("far", "gone"):
        with pytest.raises(SystemExit) as ended:
            command.main(["--plugin", head, "--hyper", "file=/on/the/nodes", "--print_config"])
        assert ended.value.code == 0
    assert "/on/the/nodes" in capsys.readouterr().out
    with pytest.raises(UserError, match="unknown name 'fil'"):
        command.main(["--plugin", "far", "--hyper", "fil=1", "--print_config"])
