"""``python -m probes.along``: measure checkpoints of a run while it trains, as ``pretrain.run --probe`` asks.

Pre-training starts it beside the run and speaks with it in lines: it writes the number of a step that is
saved, and gets a JSON record. The first comes unasked and says that all can be measured (``ready``), or why
not (``refused``); one of a step says what was found (``told``), what went wrong (``failed``), and what it
took (``cpu_s``). The end of its input ends it. Rows are those that ``probes.run --checkpoint RUN --steps N``
writes with the same task and head, so that neither measures what the other has.

Another process, because nothing that is measured may then reach what trains: not its random numbers, nor
its statistics, memory or threads.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from nml import cli, layout
from nml.errors import UserError
from nml.run_options import task_and_heads
from plugins.registry import HEADS
from probes.spec import split_spec

if TYPE_CHECKING:
    from probes.encoders.encoder import Encoder
    from probes.heads import HeadChoice
    from probes.samples import SampleSet
    from probes.tasks.task import Task

# Samples of a split, where the task is not told how many. What is forward passes of an epoch, backward ones
# counted as two, is three times its samples: this times train, test and four shifts is 2 % of CIFAR-10's.
LIMIT = 500
# Where that leaves out a class of the training data: so many a class.
_OF_A_CLASS = 10
# Prepared images that are kept from one checkpoint to the next.
_KEPT_BYTES = 1 << 30
# Below that of what trains: whatever it takes of a core is what nobody else wants.
_NICENESS = 10


@dataclass(frozen=True, kw_only=True)
class AlongOptions:
    """What to measure of one run; the metadata of a field is its ``help``."""

    run: str = field(default=".", metadata={"help": "the run folder"})
    probe: list[str] = field(default_factory=list, metadata={"help": "TASK or TASK,HEAD"})
    results: str = field(default="results", metadata={"help": "folder of result rows"})
    tasks_root: str = field(default="data/tasks", metadata={"help": "folder of prepared tasks"})
    device: str = field(default="cpu", metadata={"help": "where to compute"})
    library: str = field(default="timm", metadata={"help": "whose model the run trains"})


class Asked(NamedTuple):
    """One task and its heads.

    Attributes:
        text: The task, as ``probes.run --task`` takes it.
        plugin: Its heads, as ``probes.run --plugin`` takes them.
        task: The same, opened.
        heads: The same, with their candidates.
    """

    text: str
    plugin: str
    task: Task
    heads: Sequence[HeadChoice]

    @property
    def samples(self) -> int:
        """How many samples the features of a checkpoint take."""
        return sum(len(samples.keys) for samples in _splits(self.task))


def main(argv: Sequence[str] | None = None) -> int:
    """Answer what comes on standard input until that ends."""
    parser = cli.Parser("python -m probes.along", __doc__ or "", config=False)
    cli.add_options(parser, AlongOptions)
    options = AlongOptions(**cli.given_options(parser.parse_args(argv), AlongOptions))
    # What anything prints goes another way than the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        along = Along(options)
    except UserError as error:
        _answer(answers, refused=str(error))
        return cli.USER_ERROR_STATUS
    _answer(
        answers, ready=[f"{each.text} with {each.plugin}, {each.samples:,} samples" for each in along.asked]
    )
    # Until here the run waits for it.
    os.nice(_NICENESS)
    log = Path(options.run) / layout.LOGS / "probes.log"
    for line in sys.stdin:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        _answer(answers, **along.measure(int(line)))
    return 0


def _answer(answers: TextIO, **record: Any) -> None:
    print(json.dumps(record), file=answers, flush=True)


class Along:
    """The probes of one run.

    Args:
        options: What to measure.

    Raises:
        UserError: If it cannot be measured on any encoder that the run may train.
    """

    def __init__(self, options: AlongOptions) -> None:
        from probes.encoders.encoder import Settings
        from probes.fitting import check_device
        from probes.results.rowfiles import rows_folder

        self._options = options
        self._run = Path(options.run)
        self._settings = Settings(device=options.device)
        check_device(options.device)
        self.asked = [_open(text, options) for text in options.probe]
        rows_folder(options.results)
        self._keeping = _Keeping()

    def measure(self, step: int) -> dict[str, Any]:
        """Measure the checkpoint of a step; whatever goes wrong is in the record and no exception."""
        begun = time.process_time()
        told: list[str] = []
        failed: list[str] = []
        # No other checkpoint has the same features, so they are not kept.
        features = self._run / layout.PROBING / "features"
        shutil.rmtree(features, ignore_errors=True)
        try:
            for each in self.asked:
                words, wrong = self._measure(step, each, features)
                told += words
                failed += wrong
        except UserError as error:
            failed.append(str(error))
        # The run has to go on whatever a plugin raises.
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            shutil.rmtree(features, ignore_errors=True)
        seconds = round(time.process_time() - begun, 2)
        return {"step": step, "told": told, "failed": failed, "cpu_s": seconds}

    def _measure(self, step: int, asked: Asked, features: Path) -> tuple[list[str], list[str]]:
        from probes.command import plan_of
        from probes.encoders.run_steps import open_steps
        from probes.options import Options
        from probes.probing import probes_of
        from probes.results import read_rows
        from probes.summary import in_words

        [encoder] = open_steps([self._run], [str(step)], self._settings)
        options = Options(
            plugin=asked.plugin, task=[asked.text], results=self._options.results, features=str(features)
        )
        plan = plan_of(options, asked.heads, self._options.device, None)
        task, encoder = self._keeping.of(asked.task, encoder)
        [probe] = probes_of([encoder], task, plan)
        probe.run(wait=True)
        rows = read_rows(plan.results, probe.ids)
        failed = [f"{head} on {task.name}: {reason}" for (head, _), reason in probe.failed.items()]
        return in_words(rows), failed


def _open(text: str, options: AlongOptions) -> Asked:
    """Return what ``TASK`` or ``TASK,HEAD`` asks for, a part of the task's samples where it says no number.

    Raises:
        UserError: If there is no such task or head, or they do not go together.
    """
    from probes.heads import check_classes, choose_heads
    from probes.matching import check_target
    from probes.options import Options
    from probes.tasks.overlap import check_overlap
    from probes.tasks.registry import task_source

    try:
        named, plugin = split_probe(text)
        named, task = _of_some_samples(named, Path(options.tasks_root))
        if task.modality != "image":
            raise UserError(f"task {task.name} holds {task.modality}s", possible="tasks of images")
        heads = choose_heads(plugin, Options().hyper, task.modality)
        check_target(heads, task, [])
        check_classes(heads, task.name, len(task.classes))
        asking = [choice.plugin.name for choice in heads if choice.asks_for_texts]
        if asking and options.library != "open_clip":
            raise UserError(
                f"{asking[0]} asks for text embeddings of the classes, and the run trains no text tower",
                possible="runs of the objective clip",
            )
        shared = check_overlap(
            task, published=task_source(split_spec(named).kind).record.published, allowed=False
        )
    except UserError as error:
        raise UserError(f"--probe {text}: {error.what}", possible=error.possible, mend=error.mend) from error
    if shared:
        print(shared, file=sys.stderr)
    return Asked(named, plugin, task, heads)


def split_probe(text: str) -> tuple[str, str]:
    """Return the task and the heads of ``TASK,HEAD``: what ends it and is registered as a head is one.

    Raises:
        UserError: If what stands behind the name of a task is neither a head nor anything of a task's.
    """
    task, heads = task_and_heads(text, HEADS.names())
    kind, colon, _ = task.partition(":")
    if not colon and "," in kind:
        HEADS.find(kind.partition(",")[2])
    return task, ",".join(heads)


def _of_some_samples(text: str, root: Path) -> tuple[str, Task]:
    """Return a task with the samples that it says, or that are enough to see where a run is going."""
    from probes.tasks import open_task

    if "limit" in split_spec(text).options:
        return text, open_task(text, root)
    some = f"{text}{',' if ':' in text else ':'}limit="
    try:
        return f"{some}{LIMIT}", open_task(f"{some}{LIMIT}", root)
    except UserError:
        # It takes no limit, or has more classes than that; what else may be wrong is told of the whole.
        whole = open_task(text, root)
    wanted = _OF_A_CLASS * len(whole.classes)
    if wanted >= len(whole.train.keys):
        return text, whole
    more = f"{some}{max(wanted, LIMIT)},ood_limit={LIMIT}"
    try:
        return more, open_task(more, root)
    except UserError:
        return text, whole


def _splits(task: Task) -> list[SampleSet]:
    held = [] if task.validation is None else [task.validation]
    return [task.train, *held, *(evaluation.samples for evaluation in task.evaluations)]


class _Keeping:
    """Prepared images, which are the same for all checkpoints of a run, and are prepared once."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[str, int], Any] = {}
        self._room = _KEPT_BYTES
        self._lock = threading.Lock()

    def of(self, task: Task, encoder: Encoder) -> tuple[Task, Encoder]:
        """Return a task whose samples are prepared already, and the encoder that takes them so."""

        def kept(samples: SampleSet) -> SampleSet:
            return _Kept(samples, lambda index: self._take(samples, index, encoder))

        prepared = replace(
            task,
            train=kept(task.train),
            validation=None if task.validation is None else kept(task.validation),
            evaluations=tuple(test._replace(samples=kept(test.samples)) for test in task.evaluations),
        )
        return prepared, _OfPrepared(encoder)

    def _take(self, samples: SampleSet, index: int, encoder: Encoder) -> Any:
        key = samples.fingerprint, index
        found = self._prepared.get(key)
        if found is None:
            found = encoder.prepare(samples.read(index))
            with self._lock:
                if self._room >= found.nbytes:
                    self._room -= found.nbytes
                    self._prepared[key] = found
        return found


class _Kept:
    def __init__(self, samples: SampleSet, take: Callable[[int], Any]) -> None:
        self.keys, self.labels, self.fingerprint = samples.keys, samples.labels, samples.fingerprint
        self.read = take


class _OfPrepared:
    """An encoder that is given what it has prepared before."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def prepare(self, prepared: Any) -> Any:
        """Return it as it is."""
        return prepared


if __name__ == "__main__":
    cli.run(main)
