"""What a study takes, before it begins: runs, hours, bytes and result rows of all that is left to do.

Rates are what the study file's ``cost`` gives, else what finished runs and probes of the study took. What is
neither given nor measured is said to be unknown, with what would tell it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from nml import layout
from nml.errors import UserError, unknown_name
from nml.set_file import SET_FILE, local_folder, read_set_record
from nml.untrusted import parse_json, parse_yaml, read_object, shown
from slurm.attempt import CLOSE, OPEN
from slurm.cluster import Resources
from slurm.plan import Part
from slurm.request import PretrainRequest
from slurm.rooms import answer_of, probed
from slurm.study import PlannedSet, Study, Subject
from slurm.verdict import DONE

KEYS = {
    "seconds_per_sample": "of a recipe: {RECIPE: seconds a sample and process}",
    "probe_seconds": "of a probe: {ARM: seconds}, or of a study without arms {NAME: seconds}",
    "samples": "of a set that is not there yet: {FOLDER: samples}",
    "set_bytes": "the same: {FOLDER: bytes}",
    "dims": "of an encoder that is given: {ENCODER: features a sample}",
}
_SECONDS = 300
_FLOAT_BYTES = 4


class Rate(NamedTuple):
    """How long something takes.

    Attributes:
        seconds: A sample, or a probe.
        source: Where that is from, in words.
    """

    seconds: float
    source: str


def check_cost(cost: Mapping[str, Any]) -> None:
    """Refuse what a study file's ``cost`` cannot say.

    Raises:
        UserError: Naming the key.
    """
    for key, values in cost.items():
        if key not in KEYS:
            raise unknown_name("cost", key, KEYS)
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            if not name or isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise UserError(f"cost.{key} {shown(values)}: not a possible value", possible=KEYS[key])


def describe(
    study: Study,
    parts: Sequence[Part],
    commands: Mapping[tuple[str, str], str],
    resources: Mapping[str, Resources],
    cost: Mapping[str, Any],
    *,
    gpus: bool,
) -> Iterator[str]:
    """Yield the lines that say what is left to do and what it takes.

    Args:
        study: The study.
        parts: Its plan.
        commands: The resolved command of each recipe of each arm, as YAML.
        resources: What each stage asks for.
        cost: The study file's ``cost``.
        gpus: Whether this machine gives each part GPUs, asked for or not.
    """
    units = {
        stage: "GPU-hours" if gpus or asked.gpus_per_node else "CPU-hours"
        for stage, asked in resources.items()
    }
    left = {part.member.name for part in parts if not part.complete}
    yield "what is left to do:"
    yield from _sets(study, parts, cost)
    yield from _runs(study, left, commands, resources["pretrain"], cost, units["pretrain"])
    yield from _probes(study, parts, left, commands, cost, units["probes"])


def _sets(study: Study, parts: Sequence[Part], cost: Mapping[str, Any]) -> Iterator[str]:
    writing = [part for part in parts if part.stage == "shards" and not part.complete]
    missing = [one for one in study.sets if not one.present()]
    sizes = [_set_bytes(one, cost, study.base) for one in missing]
    known = sum(size for size in sizes if size)
    unknown = "" if all(sizes) else f", and {sizes.count(None)} of unknown size (cost.set_bytes)"
    yield f"  sets         {len(writing)} to write or to add to; {_bytes(known)}{unknown}"


def _runs(
    study: Study,
    left: set[str],
    commands: Mapping[tuple[str, str], str],
    resources: Resources,
    cost: Mapping[str, Any],
    unit: str,
) -> Iterator[str]:
    total, todo = len(study.runs()), 0
    seconds, samples, disk = 0.0, 0, 0
    unsized, untimed = set[str](), set[str]()
    sources: dict[str, None] = {}
    on_cpu: dict[str, None] = {}
    for run, recipe in _recipes(study, commands):
        if f"pretrain {run.path.name}" not in left:
            continue
        todo += 1
        if unit == "CPU-hours" and recipe["engine"]["dtype"] != "fp32":
            on_cpu["no GPU is asked for: --gpus-per-node N"] = None
        size = _set_samples(study, run, cost)
        if size is None:
            unsized.add(f"samples of {run.shard_set} (cost.samples)")
            continue
        samples += size * recipe["epochs"]
        kept = _kept(recipe, size)
        disk += kept * _size(run.argv())["checkpoint_bytes"] + _size(run.argv())["export_bytes"]
        rate = _run_rate(study, run, cost)
        if rate is None:
            untimed.add(f"seconds a sample of {run.recipe} (cost.seconds_per_sample)")
            continue
        seconds += rate.seconds * size * recipe["epochs"]
        sources[f"{rate.seconds * 1e3:.3g} ms a sample of {Path(run.recipe).stem}, {rate.source}"] = None
    world = resources.nodes * resources.tasks
    hours = _known(seconds, f"{seconds * world / 3600:,.1f}", whole=not (unsized or untimed))
    seen = _known(samples, f"{samples / 1e6:,.1f} million", whole=not unsized)
    yield f"  runs         {todo} of {total}; {seen} samples"
    yield f"               {hours} {unit}" + _why([*sources, *on_cpu], unsized | untimed)
    yield f"  checkpoints  {_known(disk, _bytes(disk), whole=not unsized)}, exports included"


def _probes(
    study: Study,
    parts: Sequence[Part],
    left: set[str],
    commands: Mapping[tuple[str, str], str],
    cost: Mapping[str, Any],
    unit: str,
) -> Iterator[str]:
    probes = [part for part in parts if part.stage == "probes"]
    counts = _counts(study)
    recipes = {run.path: recipe for run, recipe in _recipes(study, commands)}
    rows, feature_bytes, seconds, todo = 0, 0, 0.0, 0
    unsized, uncounted = set[str](), set[str]()
    sources: dict[str, None] = {}
    untold: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    told = {words: _probe_options(words) for words in {arm.probe_words for arm in study.arms}}
    for arm in study.arms:
        options = told[arm.probe_words]
        own = {f"probes {name}" for name in _names(arm.arm, probes)}
        rate = _probe_rate(arm.arm or arm.name, [part for part in probes if part.member.name in own], cost)
        fits = _fits(options)
        for subject in arm.subjects():
            steps, dims = 1, cost.get("dims", {}).get(subject.told)
            if subject.run:
                size = _set_samples(study, subject.run, cost)
                steps = _kept(recipes[subject.run.path], size) if options["steps"] == ["all"] and size else 1
                steps = len(options["steps"]) if options["steps"] not in ([], ["all"]) else steps
                dims = _size(subject.run.argv())["dim"] or 0
            if dims is None:
                unsized.add(f"features of {subject.told} (cost.dims)")
            for tasks in arm.task_groups:
                part = next(one for one in probes if _is_of(one, arm.arm, subject, tasks))
                heads = part.member.probe.heads if part.member.probe else ()
                if part.complete:
                    continue
                todo += 1
                if rate is None:
                    untold[arm.arm or arm.name] = None
                else:
                    seconds += rate.seconds
                    sources[f"{rate.seconds:,.0f} s a probe of {arm.arm or arm.name}, {rate.source}"] = None
                for task in tasks:
                    tests = counts[task]["tests"]
                    rows += len(tests) * steps * len(heads) * fits
                    if (subject.told, task) not in seen:
                        seen.add((subject.told, task))
                        images = sum(count or 0 for count in [counts[task]["train"], *tests])
                        if None in (counts[task]["train"], *tests):
                            uncounted.add(task.partition(":")[0])
                        feature_bytes += images * steps * (dims or 0) * _FLOAT_BYTES
    untimed = {f"seconds of a probe of {', '.join(untold)} (cost.probe_seconds)"} if untold else set[str]()
    yield f"  probes       {todo} of {len(probes)}"
    hours = _known(seconds, f"{seconds / 3600:,.1f}", whole=not untimed)
    yield f"               {hours} {unit}" + _why(sources, untimed)
    if uncounted:
        unsized.add(f"some samples of {', '.join(sorted(uncounted))}")
    features = _known(feature_bytes, _bytes(feature_bytes), whole=not unsized)
    yield f"  features     {features}" + _why((), unsized)
    along = _rows_along(study, left, recipes, counts)
    yield f"  result rows  {rows + along:,}" + (f", {along:,} of them while runs train" if along else "")


def _rows_along(
    study: Study, left: set[str], recipes: Mapping[Path, Mapping[str, Any]], counts: Mapping[str, Any]
) -> int:
    """Return the rows that the runs that are left write while they train."""
    rows = 0
    for run in study.runs():
        if f"pretrain {run.path.name}" in left:
            measured = -(-recipes[run.path]["epochs"] // run.options.probe_every)
            for task, heads in map(probed, run.options.probe):
                rows += measured * len(heads) * len(counts[task]["tests"])
    # The options of probes.run are at their defaults.
    return rows * _fits(_probe_options(())) if rows else 0


def _fits(options: Mapping[str, Any]) -> int:
    """Return how often a head is fitted on one task and encoder."""
    models = len(options["downstream_model"])
    noises = sum(models if ratio else 1 for ratio in options["downstream_noise"])
    return int(len(options["fractions"]) * options["seeds"] * noises)


def _names(arm: str, probes: Iterable[Part]) -> Iterator[str]:
    for part in probes:
        name = part.member.name.removeprefix("probes ")
        if not arm or name.endswith(f" {arm}"):
            yield name


def _is_of(part: Part, arm: str, subject: Subject, tasks: tuple[str, ...]) -> bool:
    probe = part.member.probe
    mine = probe is not None and probe.run == subject.told and probe.task == " ".join(tasks)
    return mine and (not arm or part.member.name.endswith(f" {arm}"))


def _recipes(
    study: Study, commands: Mapping[tuple[str, str], str]
) -> Iterator[tuple[PretrainRequest, dict[str, Any]]]:
    """Yield each run once, with its resolved recipe."""
    resolved = {key: parse_yaml(command)["recipe"] for key, command in commands.items()}
    seen: set[Path] = set()
    for arm in study.arms:
        for run in arm.runs():
            if run.path not in seen:
                seen.add(run.path)
                recipe = resolved[run.recipe, arm.arm]
                yield run, {**recipe, "epochs": run.options.epochs or recipe["epochs"]}


def _kept(recipe: Mapping[str, Any], samples: int) -> int:
    """Return how many checkpoints a run keeps."""
    told = recipe["checkpoints"]
    epoch = max(1, samples // recipe["global_batch"])
    last = epoch * recipe["epochs"]
    every = told["every_epochs"] * epoch
    saved = {last, *(range(every, last, every) if every else ())}
    saved |= {*(range(told["every_steps"], last, told["every_steps"]) if told["every_steps"] else ())}
    newest = sorted(saved)[-told["keep_last"] :]
    return len({*newest, *(step for step in saved if told["keep_every"] and step % told["keep_every"] == 0)})


def _run_rate(study: Study, run: PretrainRequest, cost: Mapping[str, Any]) -> Rate | None:
    given = cost.get("seconds_per_sample", {})
    for name in (run.recipe, Path(run.recipe).stem):
        if name in given:
            return Rate(float(given[name]), "as given")
    found = []
    for other in study.runs():
        done = other.path / layout.DONE
        if other.recipe == run.recipe and done.exists():
            end = read_object(done)
            down = float(end.get("lost_s", {}).get("down", 0.0))
            samples = int(end["step"]) * int(
                parse_yaml((other.path / layout.CONFIG).read_text())["recipe"]["global_batch"]
            )
            found.append((float(end["seconds"]) - down) / samples)
    return Rate(sum(found) / len(found), f"measured on {len(found)}") if found else None


def _probe_rate(arm: str, parts: Iterable[Part], cost: Mapping[str, Any]) -> Rate | None:
    given = cost.get("probe_seconds", {})
    if arm in given:
        return Rate(float(given[arm]), "as given")
    found = []
    for part in parts:
        for close in Path(part.member.record).glob(f"*/{CLOSE}"):
            end = read_object(close)
            if end.get("outcome") == DONE and "time" in end:
                found.append(float(end["time"]) - float(read_object(close.with_name(OPEN))["time"]))
    return Rate(sum(found) / len(found), f"measured on {len(found)}") if found else None


def _set_samples(study: Study, run: PretrainRequest, cost: Mapping[str, Any]) -> int | None:
    folder = local_folder(run.shard_set)
    if folder is None or (folder / SET_FILE).exists():
        samples = read_set_record(run.shard_set).get("num_samples")
        return samples if isinstance(samples, int) else None
    for name, samples in cost.get("samples", {}).items():
        if str(study.base / name) == run.shard_set:
            return int(samples)
    planned = study.set_of(run.shard_set)
    source = _source_file(planned, study.base) if planned else None
    return pq.ParquetFile(source).metadata.num_rows if source and source.suffix == ".parquet" else None


def _set_bytes(planned: PlannedSet, cost: Mapping[str, Any], base: Path) -> int | None:
    for name, size in cost.get("set_bytes", {}).items():
        if str(base / name) == planned.out:
            return int(size)
    source = _source_file(planned, base)
    # A member of a tar takes whole blocks; of small images the set is twice the file.
    return 2 * source.stat().st_size if source else None


def _source_file(planned: PlannedSet, base: Path) -> Path | None:
    at = planned.words.index("--source") + 1 if "--source" in planned.words else len(planned.words)
    named = planned.words[at].partition(":")[2] if at < len(planned.words) else ""
    file = base / named
    return file if named and file.is_file() else None


_sizes: dict[tuple[str, ...], dict[str, Any]] = {}


def _size(argv: Sequence[str]) -> dict[str, Any]:
    """Return the size of a run's network; runs of one recipe are asked for once."""
    words = list(argv[3:])
    # What says which data it is, and whose: a network has its size whatever it sees.
    for option in ("--noise", "--seed", "--run-dir", "--shards", "--validation", "--require-signature"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    key = tuple(words)
    if key not in _sizes:
        _sizes[key] = _ask("pretrain.size", *words)
    return _sizes[key]


def _counts(study: Study) -> dict[str, Any]:
    tasks = dict.fromkeys(task for arm in study.arms for task in arm.tasks)
    along = dict.fromkeys(probed(text)[0] for run in study.runs() for text in run.options.probe)
    return _ask("probes.tasks", "count", *(tasks | along))


def _probe_options(words: Sequence[str]) -> dict[str, Any]:
    told = answer_of([sys.executable, "-m", "probes.run", *words, "--print_config"], _SECONDS)
    options: dict[str, Any] = parse_yaml(told)
    return options


def _ask(module: str, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = parse_json(answer_of([sys.executable, "-m", module, *words], _SECONDS))
    return answer


def _known(amount: float, told: str, *, whole: bool) -> str:
    """Return what is known of an amount: nothing known is not nothing to do."""
    if whole:
        return told
    return f"at least {told}" if amount else "unknown"


def _why(sources: Iterable[str], unknown: Iterable[str]) -> str:
    lacking = f"lacks {', '.join(sorted(unknown))}" if unknown else ""
    told = "; ".join(filter(None, [*sources, lacking]))
    return f" ({told})" if told else ""


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
