"""The curves of a run, read from its metrics: pre-training draws them, and so does the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nml import layout
from nml.errors import UserError
from nml.files import check_regular
from nml.levels import decimal_text, is_ratio_name, level_of, level_ratio
from nml.untrusted import parse_json, read_object, read_yaml

# What the ledger of a run calls time that no cause claims.
_UNCLAIMED = "other"
# Shares of a run's time: a cause below the first is not named, and nothing below the second is.
_SMALL, _NOTHING = 0.01, 0.0005


class Value(NamedTuple):
    """One value of a curve.

    Attributes:
        epoch: Where in the run, in passes over its set.
        value: In the unit of the curve.
    """

    epoch: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What a run's metrics say over its epochs.

    Attributes:
        run: The run folder.
        about: What the run is, as its config.yaml says: ``recipe_name``, ``noise``, ``engine`` and so on,
            and as ``asked`` the ratio of its level, where data.json tells it; empty where there is none.
        loss: Training loss of each step whose loss is finite.
        lr: Learning rate of each step.
        samples_per_s: Throughput of each step, over all ranks.
        top1, top5: Validation accuracy, 0 to 1.
        left_out: Epochs of the steps whose loss was not finite.
        restarts: Epochs at which the run was started again.
        steps: Steps done.
        useful_s: Seconds of training that counted.
        lost_s: Seconds that trained nothing, by cause.
        complete: Whether the run has done its last step.
    """

    run: Path
    about: dict[str, Any]
    loss: tuple[Value, ...]
    lr: tuple[Value, ...]
    samples_per_s: tuple[Value, ...]
    top1: tuple[Value, ...]
    top5: tuple[Value, ...]
    left_out: tuple[float, ...]
    restarts: tuple[float, ...]
    steps: int
    useful_s: float
    lost_s: dict[str, float]
    complete: bool

    @property
    def name(self) -> str:
        """The run's name, that of its folder."""
        return self.run.resolve().name

    @property
    def wall_s(self) -> float:
        """Seconds since the run began."""
        return self.useful_s + sum(self.lost_s.values())

    @property
    def goodput(self) -> float:
        """Useful time over all time, 0 to 1; 0 where no time is known."""
        return self.useful_s / self.wall_s if self.wall_s else 0.0

    @property
    def noise(self) -> str:
        """The noise ratio as text, ``0.2``; empty where it is not known."""
        try:
            return decimal_text(level_ratio(self.level) if is_ratio_name(self.level) else self.about["asked"])
        except (KeyError, UserError):
            return ""

    @property
    def level(self) -> str:
        """The name of the noise level, ``n20``; empty where it is not known."""
        try:
            return level_of(self.about["noise"])
        except (KeyError, UserError):
            return ""


def metrics_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file; one that was cut short by a crash, and all after it, is left out.

    Raises:
        UserError: At a line that reads and is no record.
    """
    if not path.exists():
        return
    check_regular(path)
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = parse_json(text)
            except ValueError:
                return
            if not isinstance(line, dict):
                raise UserError(
                    f"{path}: line {number} is no record: {str(line)[:60]}", mend="remove that line"
                )
            yield line


def read_curves(run: Path) -> Curves:
    """Return the curves of a run, also of one that is not finished.

    Raises:
        UserError: If the folder has no metrics of any step.
    """
    found: dict[str, list[Value]] = {name: [] for name in ("loss", "lr", "samples_per_s", "top1", "top5")}
    left_out: list[float] = []
    restarts: list[float] = []
    per_epoch, down, last = 0.0, 0.0, {}
    try:
        for line in metrics_lines(run / layout.METRICS):
            if line.get("event") == "step":
                epoch = float(line["epoch"])
                per_epoch = line["step"] / epoch
                if line["loss"] is None:
                    left_out.append(epoch)
            elif per_epoch:
                epoch = line["step"] / per_epoch
            else:
                continue
            for name, values in found.items():
                if isinstance(value := line.get(name), int | float) and math.isfinite(value):
                    values.append(Value(epoch, float(value)))
            last = line
            if last["lost_s"].get("down", 0.0) > down:
                restarts.append(epoch)
                down = last["lost_s"]["down"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{run / layout.METRICS}: does not read: {type(error).__name__}: {error}",
            possible="a file that pretrain.run wrote",
        ) from error
    if not last:
        raise UserError(
            f"{run}: has no step in a {layout.METRICS}", possible="a run folder of pretrain.run, runs/NAME"
        )
    return Curves(
        run=run,
        about=_about(run),
        **{name: tuple(values) for name, values in found.items()},
        left_out=tuple(left_out),
        restarts=tuple(restarts),
        steps=last["step"],
        useful_s=last["useful_s"],
        lost_s=dict(last["lost_s"]),
        complete=layout.is_done(run),
    )


def _about(run: Path) -> dict[str, Any]:
    try:
        stored = read_yaml(run / layout.CONFIG)
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    try:
        # A level's name does not tell its ratio.
        asked = read_object(run / layout.DATA, level=dict)["level"]["asked"]
    except (OSError, ValueError, KeyError):
        return stored
    return {**stored, "asked": asked}


def time_shares(runs: Sequence[Curves]) -> dict[str, list[float]]:
    """Return what share of each run's time went where: training first, then the largest causes of loss.

    Causes that are small in every run, and time that none claims, are the last entry, ``all else``.
    """
    causes = dict.fromkeys(cause for run in runs for cause in run.lost_s if cause != _UNCLAIMED)
    lost = {
        cause.replace("_", " "): [run.lost_s.get(cause, 0.0) / (run.wall_s or 1.0) for run in runs]
        for cause in sorted(causes, key=lambda cause: -sum(run.lost_s.get(cause, 0.0) for run in runs))
    }
    found = {"training": [run.goodput for run in runs]}
    found |= {cause: shares for cause, shares in lost.items() if max(shares) >= _SMALL}
    rest = [max(0.0, 1 - sum(shares)) for shares in zip(*found.values(), strict=True)]
    return found | {"all else": rest} if max(rest) >= _NOTHING else found


def thinned(values: Sequence[Value], most: int) -> list[Value]:
    """Return at most ``most`` values: each the mean of as many neighbours, so that no step is overlooked."""
    if len(values) <= most:
        return list(values)
    edges = [round(number * len(values) / most) for number in range(most + 1)]
    return [
        Value(*(math.fsum(column) / (end - start) for column in zip(*values[start:end], strict=True)))
        for start, end in itertools.pairwise(edges)
    ]
