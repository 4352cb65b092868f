"""Fine-tuning on one point: all candidates one after another, then selection.

Nothing in this file sees a test sample or a test label.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from nml.cli import is_interactive
from nml.untrusted import parse_json
from plugins.head import hyper_parameters
from plugins.lp import LinearProbe
from plugins.sample_order import SampleOrder
from plugins.trainable import Batch, HeadModule, feature_scales
from probes.answers import HeadFault, predict
from probes.features.computing import prepared_batches
from probes.fitting import Failed, Fitted, calibrate, fit_points
from probes.heads import TRIES, HeadChoice, choose_heads
from probes.samples import Labels
from probes.scoring import score
from probes.study import as_json
from probes.tasks.task import Task
from probes.training_data import Point, TrainingData, noisy_labels, noisy_validation
from probes.tuning.memory import forget_peak, peak
from probes.tuning.methods import Full, Tuning
from probes.tuning.network import Network


class Tuned(NamedTuple):
    """A tuned network.

    Attributes:
        fit: What was asked for and chosen; its head is a linear probe of the tuned network's features.
        method: The method with the settings that were chosen.
        state: What was trained of the network, by name.
        trained_parameters: Numbers that were trained, those of the head included.
        peak_memory: Most bytes at once while the chosen candidate was trained.
    """

    fit: Fitted
    method: Tuning
    state: dict[str, Tensor]
    trained_parameters: int
    peak_memory: int | None


class _Candidate(NamedTuple):
    number: int
    state: dict[str, Tensor]
    head: dict[str, Tensor]
    seconds: float
    peak_memory: int | None


class Trainer:
    """Fine-tunes one encoder on the samples of one task.

    Args:
        network: The encoder's.
        task: The task.
        data: Features of the encoder as it was, labels, and how the training samples are divided.
        views: Augmented views of the training samples beyond the plain one.
        device: Where to compute.
    """

    def __init__(self, network: Network, task: Task, data: TrainingData, *, views: int, device: str) -> None:
        self.network = network
        self.task = task
        self.data = data
        self.views = views
        self.device = device
        self._frozen = torch.from_numpy(data.features)

    def fit(self, choice: HeadChoice, point: Point, shares: Sequence[float]) -> list[Tuned | Failed]:
        """Train every candidate on a point, choose one on validation data, and interpolate it.

        Args:
            choice: The method and its candidates.
            point: Fraction, seed and downstream noise.
            shares: Shares of the tuned weights, see :attr:`probes.tuning.methods.Full.wise_ft`; of methods
                without it, 1.

        Returns:
            The network of each share, or what went wrong.
        """
        methods = [cast(Tuning, choice.build(number)) for number in range(len(choice.candidates))]
        labels = noisy_labels(self.data, point)
        held = noisy_validation(self.data, labels, point)[1]
        probe, without = None, ""
        try:
            probe = self._probe(methods[0], point, shares)
        except HeadFault as fault:
            without = str(fault)
            # A network that does not begin with it is measured whole all the same.
            if methods[0].begins_with_probe or max(shares) < 1:
                return [Failed(point, without)] * len(shares)
        try:
            best, scores = self._choose(methods, labels, held, point, probe)
        except HeadFault as fault:
            return [Failed(point, str(fault))] * len(shares)
        selection = {
            "chosen": best.number,
            "metric": self.task.metric,
            "validation": scores,
            "tries": choice.tries,
        }
        found: list[Tuned | Failed] = []
        for share in shares:
            method = _with_share(methods[best.number], share)
            if share < 1 and without:
                found.append(Failed(point, without))
                continue
            try:
                found.append(self._tuned(method, best, probe, held, point, selection, share))
            except HeadFault as fault:
                found.append(Failed(point, str(fault)))
        return found

    def _tuned(
        self,
        method: Tuning,
        best: _Candidate,
        probe: Fitted | None,
        held: Labels,
        point: Point,
        selection: Mapping[str, Any],
        share: float,
    ) -> Tuned:
        """Return the network of one share of the tuned weights."""
        state, head = best.state, best.head
        outcome: dict[str, Any] = {}
        if not method.begins_with_probe:
            # Fitted for other shares of the same training.
            probe = None
        if probe is not None:
            chosen = parse_json(probe.hyper_parameters)
            outcome["probe"] = {"hyper_parameters": chosen, "seconds": probe.seconds}
        if share < 1 and probe is not None:
            state, head = self._interpolated(best, probe, share)
        logits = self._validate(method, state, head)
        if share < 1:
            outcome["validation"] = score(logits, held, self.task.metric).metric
        fit = Fitted(
            point=point,
            head=self._head(head),
            hyper_parameters=as_json(hyper_parameters(method)),
            selection=as_json({**selection, **({"outcome": outcome} if outcome else {})}),
            n_train=len(self.data.rows(point.fraction, point.seed)),
            n_validation=len(held),
            seconds=best.seconds + (probe.seconds if probe is not None else 0.0),
            **calibrate(logits, held),
        )
        count = sum(part.numel() for part in [*state.values(), *self._module(head).parameters()])
        return Tuned(fit, method, state, count, best.peak_memory)

    def _choose(
        self,
        methods: Sequence[Tuning],
        labels: Labels,
        held: Labels,
        point: Point,
        probe: Fitted | None,
    ) -> tuple[_Candidate, list[float | None]]:
        """Return the first of the best candidates, and the validation score of each."""
        scores: list[float | None] = []
        faults: list[HeadFault] = []
        best: _Candidate | None = None
        for number, method in enumerate(methods):
            try:
                candidate = self._train(number, method, labels, point, probe)
                logits = self._validate(method, candidate.state, candidate.head)
            except HeadFault as fault:
                faults.append(fault)
                scores.append(None)
                continue
            reached = score(logits, held, self.task.metric).metric
            if best is None or reached > max(known for known in scores if known is not None):
                best = candidate
            scores.append(reached)
        if best is None:
            raise faults[0]
        return best, scores

    def _probe(self, method: Tuning, point: Point, shares: Sequence[float]) -> Fitted | None:
        """Return a linear probe of the frozen features, where one is needed."""
        if not (method.begins_with_probe or min(shares) < 1):
            return None
        epochs = getattr(method, "probe_epochs", None)
        hyper = [] if epochs is None else [f"epochs={epochs}"]
        (choice,) = choose_heads("lp", hyper, self.task.modality, tries=TRIES)
        (found,) = fit_points(choice, self.data, [point], self.task.metric, self.device)
        if isinstance(found, Failed):
            raise HeadFault(f"its linear probe: {found.reason}")
        return found

    def _train(
        self, number: int, method: Tuning, labels: Labels, point: Point, probe: Fitted | None
    ) -> _Candidate:
        rows = self.data.rows(point.fraction, point.seed)
        every = np.concatenate([rows + view * len(self.data.keys) for view in range(self.views + 1)])
        targets = torch.from_numpy(np.concatenate([labels] * (self.views + 1)))
        offset, unit = 0.0, 1.0
        if targets.is_floating_point():
            seen = targets[torch.from_numpy(every)]
            offset, unit = float(seen.mean()), float(seen.std(correction=0)) or 1.0
            targets = ((targets - offset) / unit).float()
        module = self._new_head(torch.from_numpy(every), point.seed)
        if method.starts_at_probe and probe is not None:
            module.load_state_dict(probe.head.state_dict())
            module.predict_in(-offset / unit, 1 / unit)
        module.requires_grad_().to(self.device)
        used = self.network.used(next(self._batches([every[:1]])))
        begun = time.perf_counter()
        forget_peak(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(point.seed)
            with self.network.tuning(method, used) as trained:
                self._descend(method, module, trained, every, targets, point.seed)
                state = {name: part.detach().clone() for name, part in trained.items()}
        highest = peak(self.device)
        seconds = time.perf_counter() - begun
        module.requires_grad_(False).predict_in(offset, unit)
        head = {name: value.cpu().clone() for name, value in module.state_dict().items()}
        return _Candidate(number, state, head, seconds, highest)

    def _descend(
        self,
        method: Tuning,
        module: HeadModule,
        trained: Mapping[str, Tensor],
        rows: npt.NDArray[np.int64],
        labels: Tensor,
        seed: int,
    ) -> None:
        schedule = method.schedule()
        steps, size = schedule.steps(len(rows)), schedule.batch(len(rows))
        order = SampleOrder(seed, len(rows), torch.from_numpy(rows), steps)
        drawn = [order.take(size) for _ in range(steps)]
        optimizer = torch.optim.AdamW(
            [*trained.values(), *module.parameters()], lr=schedule.lr, weight_decay=schedule.weight_decay
        )
        name = f"{method.method} on {self.task.name}"
        progress = tqdm(drawn, desc=name, unit="step", disable=not is_interactive(), leave=False)
        for step, (part, prepared) in enumerate(
            zip(progress, self._batches([one.numpy() for one in drawn]), strict=True)
        ):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step, steps)
            _, transformed, logits = module(self.network.encoder.features(prepared).float())
            batch = Batch(
                features=self._frozen[part].to(self.device) / module.scale,
                transformed=transformed,
                logits=logits,
                labels=labels[part].to(self.device),
                samples=part,
            )
            loss = torch.stack(list(method.terms(batch).values())).sum()
            if not torch.isfinite(loss):
                raise HeadFault(
                    f"diverged: the loss of step {step + 1} of {steps} is {float(loss.detach()):g}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def _batches(self, batches: Sequence[npt.NDArray[np.int64]]) -> Iterator[list[Any]]:
        """Yield prepared training samples; rows count through the views, one after another."""
        count = len(self.data.keys)
        numbered = ([(int(row) % count, int(row) // count) for row in batch] for batch in batches)
        return prepared_batches(self.network.encoder, self.task.train, numbered)

    def _validate(
        self, method: Tuning, state: Mapping[str, Tensor], head: Mapping[str, Tensor]
    ) -> npt.NDArray[np.float32]:
        """Return the logits of a tuned network for the validation data."""
        with self.network.tuned(method, state):
            if self.task.validation is None:
                features = self.network.encode(self.task.train, self.data.carving.validation)
            else:
                features = self.network.encode(self.task.validation)
        return predict(self._head(head), features, self.data.num_classes)

    def _interpolated(
        self, best: _Candidate, probe: Fitted, share: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return (1 - share) of the encoder as it was with its probe, and share of the tuned network."""
        state = {
            name: torch.lerp(self.network.weight(name), value, share) for name, value in best.state.items()
        }
        before = probe.head.state_dict()
        head = {
            name: torch.lerp(before[name], value, share) if name.startswith("classifier.") else value
            for name, value in best.head.items()
        }
        return state, head

    def _new_head(self, rows: Tensor, seed: int) -> HeadModule:
        module = LinearProbe().build(self._frozen.shape[1], self.data.num_classes, seed=seed)
        (scale,) = feature_scales(self._frozen, [rows])
        module.scale.fill_(scale)
        return module

    def _module(self, state: Mapping[str, Tensor]) -> HeadModule:
        module = LinearProbe().build(self._frozen.shape[1], self.data.num_classes)
        module.load_state_dict(dict(state))
        return module

    def _head(self, state: Mapping[str, Tensor]) -> LinearProbe:
        head = LinearProbe()
        head.adopt(self._module(state))
        return head


def _with_share(method: Tuning, share: float) -> Tuning:
    return dataclasses.replace(method, wise_ft=share) if isinstance(method, Full) else method
