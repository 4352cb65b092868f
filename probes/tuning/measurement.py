"""The measurements of one fine-tuned encoder on one task, in the same rows as those of heads."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Sequence

from nml.cli import log
from plugins.registry import HEADS
from probes.answers import HeadFault
from probes.encoders.encoder import Encoder
from probes.fitting import Failed
from probes.heads import HeadChoice
from probes.measured import Measured
from probes.probing import Piece, Plan, Probe
from probes.results.row import Row
from probes.results.rowfiles import write_rows
from probes.splits import carve
from probes.tasks.task import Task
from probes.training_data import Point, TrainingData
from probes.tuning.choosing import same_training
from probes.tuning.network import Network, check_encoder
from probes.tuning.saved import save_tuned
from probes.tuning.training import Trainer, Tuned


def tunings_of(encoders: Sequence[Encoder], task: Task, plan: Plan) -> list[Probe]:
    """Return the measurements of every encoder on one task, whose samples are divided as for heads.

    Raises:
        UserError: If an encoder cannot be tuned.
    """
    for encoder in encoders:
        check_encoder(encoder)
    carving = carve(task.train.keys, task.train.labels, published=task.validation is not None)
    return [TunedProbe(encoder, task, plan, carving) for encoder in encoders]


class TunedProbe(Probe):
    """The measurements of one encoder, fine-tuned on one task; arguments are those of a probe."""

    def pieces(self) -> Iterator[Piece]:
        """Yield one training after another: each takes long, and its rows are written when it is done."""
        for choices, point in itertools.product(same_training(self.plan.heads), self.plan.points()):
            asked = [choices[0].plugin.name, *point]
            work = f"{self.encoder.info.hash} {self.task.name} {' '.join(map(str, asked))}"
            yield work, functools.partial(self._tune, choices, point)

    def _tune(
        self, choices: Sequence[HeadChoice], point: Point, data: TrainingData, measured: Measured
    ) -> None:
        # Only now that the piece is ours: another process may just have finished it.
        done = self.done()
        missing = [
            choice
            for choice in choices
            if (choice.plugin.name, point) not in self.failed
            and (
                not {self.id(choice, point, evaluation) for evaluation in self.evaluations} <= done
                or self.unsaved(choice, point)
            )
        ]
        if not missing:
            return
        begun = time.perf_counter()
        network = Network(check_encoder(self.encoder))
        trainer = Trainer(network, self.task, data, views=self.plan.views, device=self.plan.device)
        shares = [_share(choice) for choice in missing]
        rows: list[Row] = []
        for choice, found in zip(missing, trainer.fit(missing[0], point, shares), strict=True):
            try:
                if isinstance(found, Failed):
                    raise HeadFault(found.reason)
                rows += self._rows(choice, found, network, measured)
            except HeadFault as fault:
                self.failed[choice.plugin.name, point] = str(fault)
                self.tell_failed(choice, [point])
        write_rows(self.plan.results, [row for row in rows if row.row_id not in done])
        log(
            f"{missing[0].plugin.name} of {self.encoder.info.name} on {self.task.name}, "
            f"fraction {float(point.fraction):g}, seed {point.seed}: {time.perf_counter() - begun:.0f} s"
        )

    def _rows(self, choice: HeadChoice, found: Tuned, network: Network, measured: Measured) -> list[Row]:
        method = found.method
        identity = functools.partial(self.identity, choice, found.fit.point)
        with network.tuned(method, found.state):
            rows = list(
                measured.rows(
                    choice,
                    found.fit,
                    identity,
                    tuned=network.encode,
                    libraries=method.libraries,
                    method=method.method,
                    trained_parameters=found.trained_parameters,
                    peak_memory=found.peak_memory,
                )
            )
        # First: a result that is there is not computed again, and its network would be missing for good.
        if folder := self.head_folder(choice, found.fit.point):
            save_tuned(folder, method, found.state, self.encoder.info)
            measured.save(folder, HEADS.find("lp"), found.fit, encoder=f"tuned:{folder}")
        return rows


def _share(choice: HeadChoice) -> float:
    return float(choice.candidates[0].get("wise_ft", 1.0))
