"""What a sweep asks for: arms, each levels x recipes x seeds x tasks x heads, and the sets they train on.

A command line gives one arm. A study file gives any number: ``--config studies/NAME.yaml``, whose other keys
are the options of the command.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nml.cli import flag_of
from nml.errors import UserError, unknown_name
from nml.levels import CLEAN_LEVEL, is_level_name, level_of
from nml.run_options import RunOptions, absolute
from nml.set_file import SET_FILE, local_folder, read_set_record
from nml.untrusted import Untrusted, printable, shown, typed
from slurm.request import PretrainRequest

# Options of a run that a sweep gives each of its runs itself.
OF_A_RUN = ("noise", "seed", "recipe_name", "run_dir")
# Options of probes.run that a sweep gives itself, and what its user says instead: what they named would not
# be what the sweep looks for afterwards.
_OWN_OPTIONS = {
    "--plugin": "say sweep --plugins",
    "--task": "say sweep --tasks",
    "--results": "say sweep --results",
    "--checkpoint": "leave it out, or measure other runs with: python -m probes.run",
    "--receipt": "leave it out",
}
# What an arm may say in place of the study.
_LISTS = ("noise", "recipes", "plugins", "tasks", "seeds", "encoders")
_OF_RUNS = tuple(
    field.name for field in dataclasses.fields(RunOptions) if field.name not in {*OF_A_RUN} - {"recipe_name"}
)
# What an arm may not say that trains nothing.
_OF_TRAINING = {"noise", "recipes", "seeds", "recipe", *_OF_RUNS}
_ARM = re.compile(r"\w[\w.-]*")
ARM_KEYS = (*_LISTS, "recipe", "probes", "tasks_together", *_OF_RUNS)


class Subject(NamedTuple):
    """What is probed: a run of the study, or an encoder that is given.

    Attributes:
        name: What parts of the plan call it.
        told: The run's folder, or the encoder as ``probes.run --encoder`` takes it.
        run: The run; None of an encoder.
    """

    name: str
    told: str
    run: PretrainRequest | None = None

    @property
    def words(self) -> tuple[str, str]:
        """What tells ``probes.run`` of it."""
        return ("--checkpoint" if self.run else "--encoder"), self.told


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """One arm: levels x recipes x seeds x tasks x heads.

    Attributes:
        noise: Noise ratios, or names of levels.
        recipes: Recipes, each an objective and its settings.
        plugins: Heads.
        tasks: Tasks to probe on.
        seeds: Seeds of pre-training.
        options: What all runs have in common; :data:`OF_A_RUN` is what tells them apart.
        workers: Loader workers of the recipes whose own do not fit the cores.
        name: The sweep's name, its folder under sweeps/.
        results: The results folder.
        overrides: Dotted overrides of the recipes.
        probe_options: Further words for every ``probes.run``.
        base: The folder that relative paths start from.
        arm: Its name in the study; empty for the only arm of a command line.
        tasks_together: Whether one probe measures a run on all tasks, in place of one a task.
        encoders: Encoders that are given, and probed in place of runs: such an arm trains nothing.
    """

    noise: tuple[str, ...]
    recipes: tuple[str, ...] = ("quickstart",)
    plugins: tuple[str, ...] = ("lp", "mlp", "nmtune")
    tasks: tuple[str, ...] = ("digits",)
    seeds: tuple[int, ...] = (0,)
    options: RunOptions = dataclasses.field(default_factory=RunOptions)
    workers: dict[str, int] = dataclasses.field(default_factory=dict)
    name: str = "sweep"
    results: str = "results"
    overrides: tuple[str, ...] = ()
    probe_options: tuple[str, ...] = ()
    base: Path = dataclasses.field(default_factory=Path.cwd)
    arm: str = ""
    tasks_together: bool = False
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in _LISTS:
            values = getattr(self, field)
            if not values and field != "encoders":
                raise UserError(f"{self._flag(field)}: nothing given", possible="one or more")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise UserError(f"{self._flag(field)} {twice[0]}: given twice")
        if "/" in self.name or self.name in ("", ".", "..") or not self.name.isprintable():
            raise UserError(f"--name {printable(self.name)}: not a folder name")
        for word in self.probe_options:
            flag = word.partition("=")[0]
            if flag in _OWN_OPTIONS:
                raise UserError(f"-- {flag}: the sweep sets it for every probe", mend=_OWN_OPTIONS[flag])
        names = [run.path for run in self.runs()]
        if len(set(names)) < len(names):
            flags = ", ".join(map(self._flag, ("noise", "recipes", "seeds")))
            raise UserError(f"{flags}: two runs would have the same name", mend="name each once")

    def _flag(self, field: str) -> str:
        return f"arms.{self.arm}.{field}" if self.arm else flag_of(field)

    @property
    def folder(self) -> Path:
        """The sweep's folder, absolute."""
        return self.base / "sweeps" / self.name

    @property
    def task_groups(self) -> list[tuple[str, ...]]:
        """The tasks that one probe measures, for each probe of a run."""
        return [self.tasks] if self.tasks_together else [(task,) for task in self.tasks]

    @property
    def probe_words(self) -> tuple[str, ...]:
        """What all of its probes are given but for the task; whichever run it is stands as ``RUN``.

        Left out, ``probes.run`` would refuse options that only a run can have.
        """
        given = ("--encoder", *self.encoders) if self.encoders else ("--checkpoint", "RUN")
        return (*given, "--plugin", ",".join(self.plugins), *self.probe_options)

    def runs(self) -> list[PretrainRequest]:
        """Return the pre-training runs, levels within seeds within recipes."""
        if self.encoders:
            return []
        common = self.options
        if common.probe and common.probe_results is None:
            common = dataclasses.replace(common, probe_results=self.results)
        return [
            PretrainRequest(
                options=dataclasses.replace(common, noise=noise, seed=seed),
                recipe=recipe,
                overrides=self.overrides,
                workers=self.workers.get(recipe),
                base=self.base,
            )
            for recipe in self.recipes
            for seed in self.seeds
            for noise in self.noise
        ]

    def subjects(self) -> list[Subject]:
        """Return what is probed."""
        runs = [Subject(run.path.name, str(run.path), run) for run in self.runs()]
        return [*runs, *(Subject(encoder, encoder) for encoder in self.encoders)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedSet:
    """A shard set that the study writes if it is missing.

    Attributes:
        out: Its folder, absolute.
        words: Options of ``shards.write``, ``--out`` left out.
        levels: Names of the levels that ``words`` make.
        draws: Options of ``shards.relabel`` for each further draw, by the level's name.
    """

    out: str
    words: tuple[str, ...]
    levels: tuple[str, ...]
    draws: dict[str, tuple[str, ...]]

    def argv(self) -> list[str]:
        """Return the command that writes it."""
        return [sys.executable, "-m", "shards.write", *self.words, "--out", self.out]

    def draw_argv(self, level: str) -> list[str]:
        """Return the command that adds a draw."""
        return [sys.executable, "-m", "shards.relabel", self.out, *self.draws[level]]

    def present(self) -> frozenset[str]:
        """Return the names of the levels that are there; none before the set is written."""
        folder = local_folder(self.out)
        if folder is not None and not (folder / SET_FILE).exists():
            return frozenset()
        return frozenset({CLEAN_LEVEL, *read_set_record(self.out)["levels"]})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """All that one sweep does.

    Attributes:
        arms: Its arms, one or more, with one name, results folder and base.
        sets: The sets that it writes where they are missing.

    Raises:
        UserError: If two arms have a run of one name that is not the same run, or are one and the same.
    """

    arms: tuple[SweepRequest, ...]
    sets: tuple[PlannedSet, ...] = ()

    def __post_init__(self) -> None:
        for one, other in itertools.combinations(self.arms, 2):
            # Two parts of the plan would measure the same at once.
            if dataclasses.replace(one, arm=other.arm) == other:
                raise UserError(f"arms.{one.arm}, arms.{other.arm}: ask for the same", mend="leave one out")
        known: dict[Path, PretrainRequest] = {}
        for run in (run for arm in self.arms for run in arm.runs()):
            if known.setdefault(run.path, run).argv() != run.argv():
                raise UserError(
                    f"arms: two different runs would be called {run.path.name}",
                    mend="give one of the arms another recipe_name",
                )

    @property
    def folder(self) -> Path:
        """The sweep's folder, absolute."""
        return self.arms[0].folder

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self.arms[0].base

    @property
    def results(self) -> Path:
        """The results folder."""
        return self.base / self.arms[0].results

    @property
    def named_data(self) -> bool:
        """Whether every arm that trains names its set, so that the bundled digits stand in for none."""
        return all(arm.options.shards is not None for arm in self.arms if not arm.encoders)

    def runs(self) -> list[PretrainRequest]:
        """Return the pre-training runs of all arms, each once."""
        return list({run.path: run for arm in self.arms for run in arm.runs()}.values())

    def set_of(self, location: str) -> PlannedSet | None:
        """Return the set at an absolute location, if the study writes it."""
        return next((one for one in self.sets if one.out == location), None)


def arms_of(
    common: SweepRequest, arms: Mapping[str, Any], *, recipe: Mapping[str, Any], probes: Mapping[str, Any]
) -> tuple[SweepRequest, ...]:
    """Return the arms that a study file names, each with what it says in place of what all have in common.

    Args:
        common: What all have in common; the overrides and options in it were typed, and win.
        arms: The arms of the file; without any, there is one.
        recipe: Overrides of the recipes that all have in common.
        probes: Options of ``probes.run`` that all have in common.

    Raises:
        UserError: If an arm says what cannot be said, or a value is impossible.
    """
    for name in arms:
        if not _ARM.fullmatch(str(name)):
            raise UserError(f"arms: {shown(name)} names no arm", possible="letters, digits, '_', '-' and '.'")
    shared = {"recipe": recipe, "probes": probes}
    return tuple(_arm(common, str(name), content, shared) for name, content in arms.items()) or (
        _arm(common, "", {}, shared),
    )


def _arm(common: SweepRequest, name: str, content: Any, shared: Mapping[str, Any]) -> SweepRequest:
    where = f"arms.{name}" if name else ""
    fields = _mapping(where, content)
    for key in fields:
        if key not in ARM_KEYS:
            raise unknown_name(where, key, ARM_KEYS)
    said: dict[str, Any] = {key: _texts(f"{where}.{key}", fields[key]) for key in _LISTS if key in fields}
    if "encoders" in said:
        if not said["encoders"]:
            raise UserError(f"{where}.encoders: nothing given", possible="one or more")
        for key in sorted(_OF_TRAINING & fields.keys()):
            raise UserError(f"{where}.{key}: no effect beside encoders", mend="leave one of both out")
    if "seeds" in said:
        said["seeds"] = tuple(_whole(f"{where}.seeds", seed) for seed in said["seeds"])
    if "tasks_together" in fields:
        said["tasks_together"] = fields["tasks_together"]
        if not isinstance(said["tasks_together"], bool):
            raise UserError(
                f"{where}.tasks_together {shown(said['tasks_together'])}: not a possible value",
                possible="true, false",
            )
    options = {key: fields[key] for key in _OF_RUNS if key in fields}
    if isinstance(options.get("probe"), str):
        # As in the file of a command, one of several need not be a list.
        options["probe"] = [options["probe"]]
    try:
        given = typed(RunOptions, {**dataclasses.asdict(common.options), **options})
    except Untrusted as error:
        raise UserError(f"{where}: {error}") from error
    if given.recipe_name is not None and len(said.get("recipes", common.recipes)) > 1:
        raise UserError(f"{where}.recipe_name {given.recipe_name}: the name of several recipes")
    merged = {
        key: {**shared[key], **_mapping(f"{where}.{key}".strip("."), fields.get(key, {}))} for key in shared
    }
    return dataclasses.replace(
        common,
        arm=name,
        options=given,
        overrides=(*_recipe_words(merged["recipe"]), *common.overrides),
        probe_options=(*option_words(merged["probes"], f"{where}.probes".strip(".")), *common.probe_options),
        **said,
    )


def _recipe_words(values: Mapping[str, Any]) -> Iterator[str]:
    """Return overrides of a recipe, given as a mapping, as the words of a command line."""
    for name, value in values.items():
        yield f"--recipe.{name}={value if isinstance(value, str) else json.dumps(value)}"


def option_words(values: Any, where: str) -> Iterator[str]:
    """Return options of a command, given as a mapping, as its words."""
    for name, value in _mapping(where, values).items():
        # A switch that is off, for example of an arm where the study has it on.
        if value is not False:
            yield flag_of(name)
            yield from () if value is True else _texts(f"{where}.{name}", value)


def sets_of(sets: Mapping[str, Any], base: Path) -> tuple[PlannedSet, ...]:
    """Return the sets that a study file names: a folder, and options of ``shards.write`` and of its draws.

    Raises:
        UserError: If one is not described.
    """
    return tuple(_planned(str(out), content, base) for out, content in sets.items())


def _planned(out: str, content: Any, base: Path) -> PlannedSet:
    where = f"sets.{out}"
    fields = dict(_mapping(where, content))
    draws = fields.pop("draws", [])
    if not isinstance(draws, list):
        raise UserError(
            f"{where}.draws {shown(draws)}: no list", possible="- {noise: 0.2, model: ..., name: ...}"
        )
    if "out" in fields:
        raise UserError(f"{where}.out: the folder is the key", mend="leave it out")
    ratios = fields.get("noise", 0)
    ratios = ratios if isinstance(ratios, list) else [ratios]
    names = [str(name) for name in fields.get("name", [])]
    noisy = [ratio for ratio in ratios if level_of(ratio) != CLEAN_LEVEL]
    levels = (CLEAN_LEVEL, *(names or map(level_of, noisy)))
    added: dict[str, tuple[str, ...]] = {}
    for draw in draws:
        named = _mapping(f"{where}.draws", draw)
        if "noise" not in named:
            raise UserError(f"{where}.draws: one has no noise", possible="a ratio, for example 0.2")
        if isinstance(named["noise"], list):
            raise UserError(f"{where}.draws: noise {shown(named['noise'])}: a draw is one level")
        level = level_of(named.get("name", named["noise"]))
        if level in added or level in levels:
            raise UserError(f"{where}.draws: two levels are called {level}", mend="give one another name")
        added[level] = tuple(option_words(named, f"{where}.draws"))
    return PlannedSet(
        out=absolute(out, base),
        words=tuple(option_words(fields, where)),
        levels=tuple(dict.fromkeys(levels)),
        draws=added,
    )


def check_level_is_planned(planned: PlannedSet, noise: str) -> None:
    """Refuse a level that neither a set nor the plan of it has.

    Raises:
        UserError: If there is none.
    """
    level, known = level_of(noise), (*planned.levels, *planned.draws)
    if level not in known and level not in planned.present():
        raise UserError(
            f"noise {noise}: no level of the set {planned.out}",
            possible=", ".join(known),
            mend="add it to the set's noise or draws",
        )
    if is_level_name(noise):
        return
    ratios = {name: words[words.index("--noise") + 1] for name, words in planned.draws.items()}
    alike = [level, *(name for name, ratio in ratios.items() if name != level and level_of(ratio) == level)]
    if len(alike) > 1:
        raise UserError(
            f"noise {noise}: {len(alike)} levels of the set {planned.out} have this ratio",
            possible=", ".join(alike),
            mend=f"say which by its name: noise {alike[0]}",
        )


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} {shown(value)}: no fields", possible="lines such as `noise: [0, 0.2]`")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    values: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    for one in values:
        if isinstance(one, Mapping | list) or one is None:
            raise UserError(f"{where} {shown(one)}: not a possible value", possible="text or a number")
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _whole(where: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{where} {text}: no seed", possible="0 and more")
    return int(text)
