"""A sweep as a graph: what is to be run, what each part waits for, and what is there already.

    shards LEVEL  ->  pretrain RUN  ->  probes RUN TASK  ->  report

A part that is complete drops out, and with it the waiting for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nml.errors import UserError
from nml.run_options import RunOptions
from slurm.members import Member, Probe
from slurm.receipts import missing_heads, read_ids, told_ids
from slurm.request import PretrainRequest

LAUNCH = "launch"
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


@dataclasses.dataclass(frozen=True)
class Part:
    """One member of a stage.

    Attributes:
        stage: One of :data:`slurm.cluster.STAGES`.
        member: What to run.
        parents: Names of the members that have to be complete before.
        complete: Whether it is there already.
    """

    stage: str
    member: Member
    parents: tuple[str, ...] = ()
    complete: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """Levels x recipes x seeds x tasks x heads.

    Attributes:
        noise: Noise ratios.
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

    def __post_init__(self) -> None:
        for field, values in (("noise", self.noise), ("plugins", self.plugins), ("tasks", self.tasks)):
            if not values:
                raise UserError(f"--{field}: nothing given", possible="one or more")
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise UserError(f"--{field} {twice[0]}: given twice")
        if "/" in self.name or self.name in ("", ".", ".."):
            raise UserError(f"--name {self.name}: not a folder name")
        for word in self.probe_options:
            flag = word.partition("=")[0]
            if flag in _OWN_OPTIONS:
                raise UserError(f"-- {flag}: the sweep sets it for every probe", mend=_OWN_OPTIONS[flag])
        names = [run.path for run in self.runs()]
        if len(set(names)) < len(names):
            raise UserError(
                "--noise, --recipes, --seeds: two runs would have the same name", mend="name each once"
            )

    @property
    def folder(self) -> Path:
        """The sweep's folder, absolute."""
        return self.base / "sweeps" / self.name

    def runs(self) -> list[PretrainRequest]:
        """Return the pre-training runs, levels within seeds within recipes."""
        return [
            PretrainRequest(
                options=dataclasses.replace(self.options, noise=noise, seed=seed),
                recipe=recipe,
                overrides=self.overrides,
                workers=self.workers.get(recipe),
                base=self.base,
            )
            for recipe in self.recipes
            for seed in self.seeds
            for noise in self.noise
        ]


def make_plan(request: SweepRequest, run_member: Callable[[PretrainRequest], Member]) -> list[Part]:
    """Return every part of a sweep, parents first.

    Args:
        request: What the user wants.
        run_member: Turns a run into a member, as ``launch.py pretrain`` does.
    """
    parts = _shard_parts(request)
    probes: list[Part] = []
    there = read_ids(request.base / request.results)
    for run in request.runs():
        member = run_member(run)
        parents = tuple(part.member.name for part in parts if part.member.done == str(run.set_file))
        complete = Path(str(member.done)).exists()
        parts.append(Part("pretrain", member, parents, complete))
        for task in request.tasks:
            probe = Probe(
                results=str(request.base / request.results),
                run=str(run.path),
                task=task,
                heads=request.plugins,
                receipts=str(request.folder / LAUNCH / "receipts" / _receipts_name(request, run, task)),
            )
            heads = missing_heads(probe, there) if complete else probe.heads
            probes.append(_probe_part(request, run, dataclasses.replace(probe, heads=heads), member.name))
    # One stage after the other, each in the order of the runs: arrays then fit each other.
    probes.sort(key=lambda part: request.tasks.index(part.member.probe.task) if part.member.probe else 0)
    return [*parts, *probes, _report_part(request, probes)]


def _shard_parts(request: SweepRequest) -> list[Part]:
    parts: dict[Path, Part] = {}
    for run in request.runs():
        if run.set_file is None or run.set_file in parts:
            continue
        member = Member(
            name=f"shards {run.level}",
            argv=tuple(run.shards_argv()),
            record=str(request.folder / LAUNCH / "attempts" / f"shards-{run.level}"),
            done=str(run.set_file),
            cwd=str(request.base),
        )
        parts[run.set_file] = Part("shards", member, (), run.set_file.exists())
    return list(parts.values())


def _probe_part(request: SweepRequest, run: PretrainRequest, probe: Probe, parent: str) -> Part:
    argv = [sys.executable, "-m", "probes.run", "--plugin", ",".join(probe.heads)]
    argv += ["--checkpoint", probe.run, "--task", probe.task, *request.probe_options]
    # Last, so that a config file among the user's words does not send the rows elsewhere.
    argv += ["--results", probe.results, "--receipt", str(told_ids(probe.receipts))]
    name = f"{run.path.name} {probe.task}"
    member = Member(
        name=f"probes {name}",
        argv=tuple(argv),
        record=str(request.folder / LAUNCH / "attempts" / f"probes-{_slug(name)}"),
        cwd=str(request.base),
        probe=probe,
    )
    return Part("probes", member, (parent,), complete=not probe.heads)


def _report_part(request: SweepRequest, probes: Sequence[Part]) -> Part:
    out = request.folder / "report"
    member = Member(
        name="report",
        argv=(
            *(sys.executable, "-m", "probes.report"),
            *(str(request.base / request.results), "--out", str(out)),
        ),
        record=str(request.folder / LAUNCH / "attempts" / "report"),
        done=str(out / "report.html"),
        cwd=str(request.base),
    )
    complete = all(part.complete for part in probes) and (out / "report.html").exists()
    return Part("report", member, tuple(part.member.name for part in probes), complete)


def _receipts_name(request: SweepRequest, run: PretrainRequest, task: str) -> str:
    """Name what a probe's rows follow from, so that other options count as other results."""
    options = hashlib.sha256(repr((task, request.probe_options)).encode()).hexdigest()[:8]
    return f"{run.path.name}-{_slug(task)}-{options}"


def _slug(text: str) -> str:
    """Return a text as a file name: tasks may be paths."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in text)[
        -100:
    ]
