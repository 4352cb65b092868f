"""``launch.py sweep``: noise levels x recipes x heads x tasks, from one command to one report."""

from __future__ import annotations

import dataclasses
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nml import cli, layout
from nml.digits import NOTICE
from nml.errors import UserError
from nml.files import write_json
from nml.locking import held_alone
from nml.run_options import RunOptions
from nml.untrusted import Untrusted, read_object, typed
from slurm.cluster import STAGES, Resources
from slurm.cores import fit_loaders, loader_workers
from slurm.cost import check_cost, describe
from slurm.ending import tell_end
from slurm.invocation import PROG, Invocation
from slurm.local_attempt import attempt_here
from slurm.machine import Detection
from slurm.members import LAUNCH
from slurm.partitions import check_fits
from slurm.plan import Part, make_plan, say_lost, say_too_late
from slurm.pool import Slot, depth_first, run_parts, slots_of
from slurm.pretraining import (
    add_resource_options,
    announce_standin,
    find_cluster,
    resources_of,
    run_member,
)
from slurm.receipts import measured_command, write_receipts
from slurm.registry import BUSY, nothing_left_if_refused
from slurm.request import PretrainRequest
from slurm.rooms import (
    check_command,
    check_encoders,
    check_heads,
    check_models,
    check_probed,
    check_probes,
    check_tasks,
    options_of,
    probed,
)
from slurm.same_run import check_same_run, check_same_words
from slurm.standin import run_command, run_ranks
from slurm.study import (
    OF_A_RUN,
    Study,
    SweepRequest,
    arms_of,
    check_level_is_planned,
    sets_of,
)
from slurm.submitting import show_jobs, submit_sweep

SWEEP = "sweep.json"
# What a study file says beside the options of the command.
STUDY_KEYS = {
    "about": "what it is for, in words",
    "sets": "shard sets to write where they are missing: FOLDER: {options of shards.write, draws: [...]}",
    "arms": "NAME: {what it has in place of the options outside, or encoders that are given}",
    "recipe": "overrides of the recipes: {optimizer.lr: 0.05}",
    "probes": "options of probes.run: {fractions: [0.1, 1]}",
    "cost": "what a dry run reckons with: rates that were measured elsewhere",
}
DESCRIPTION = "Run shards, pre-training, probes and report for several noise levels."
EXAMPLE = (
    f"{PROG} sweep --noise 0 0.05 0.1 0.2 0.3 --plugins lp mlp nmtune\n"
    f"  {PROG} sweep --noise 0 0.2 -- --seeds 3 --fractions 0.1 1.0    # options of probes.run"
)


def add_options(parser: cli.Parser) -> None:
    """Add the options of ``sweep``."""
    parser.add_argument("--noise", nargs="+", type=str, default=["0", "0.2"], help="levels: ratios or names")
    parser.add_argument("--plugins", nargs="+", type=str, default=["lp", "mlp", "nmtune"], help="heads")
    parser.add_argument("--tasks", nargs="+", type=str, default=["digits"], help="tasks to probe on")
    parser.add_argument(
        "--recipes", nargs="+", type=str, default=["quickstart"], help="recipes, one an objective"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of pre-training")
    cli.add_options(parser, RunOptions, leave_out=OF_A_RUN)
    parser.add_argument("--results", type=str, default="results", help="results folder")
    parser.add_argument("--name", type=str, default="sweep", help="the sweep's folder under sweeps/")
    parser.add_argument("--array-parallelism", type=int, default=None, help="members at once, in all")
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="without Slurm, runs at once (default: as many as GPUs, or one)",
    )
    parser.add_argument(
        "--tasks-together", action="store_true", help="one probe a run for all tasks, not one a task"
    )
    for key, what in STUDY_KEYS.items():
        kind: Any = str if key == "about" else dict[str, Any]
        parser.add_argument(f"--{key}", type=kind, default=kind(), help=f"of a --config file: {what}")
    add_resource_options(parser)


def run(call: Invocation) -> int:
    """Check the study, then submit or run what is missing of it."""
    options = call.options
    study = study_of(call)
    check_cost(options.cost)
    resolved = _check(study)
    found = find_cluster(options.cluster)
    resources = {stage: _stage_resources(options, stage) for stage in STAGES}
    slots: list[Slot] = []
    if not found.found:
        asked = resources["pretrain"]
        logs = study.folder / LAUNCH / "logs"
        slots = slots_of(options.jobs, asked.nodes * asked.tasks, logs, wanted=asked.gpus_per_node > 0)
    elif options.jobs is not None:
        raise UserError("--jobs: is for this machine", mend="on a cluster say --array-parallelism")
    resources["pretrain"], workers = fit_loaders(
        {" ".join(filter(None, key)): loader_workers(command) for key, command in resolved.items()},
        [word for arm in study.arms for word in arm.overrides],
        on_slurm=found.found,
        ask=lambda cores: _stage_resources(options, "pretrain", cores=cores),
        jobs=len(slots),
    )
    study = dataclasses.replace(study, arms=tuple(_with_workers(arm, workers) for arm in study.arms))
    if found.found:
        for stage in STAGES:
            check_fits(resources[stage])
        for one in study.runs():
            check_same_words(run_member(one), study.folder / LAUNCH)
    parts = make_plan(study, run_member)
    if not study.named_data:
        print(NOTICE, flush=True)
    say_lost(parts)
    say_too_late(study, parts)
    if options.dry_run:
        status = show_plan(study, parts, resources, found, jobs=len(slots))
        gpus = any(slot.gpus for slot in slots)
        print(*describe(study, parts, resolved, resources, options.cost, gpus=gpus), sep="\n")
        return status
    launch = study.folder / LAUNCH
    with held_alone(launch, busy=BUSY):
        if found.found:
            with nothing_left_if_refused(launch, study.folder / SWEEP):
                record(call, study)
                return submit_sweep(study, resources)
        record(call, study)
        announce_standin(found, resources["pretrain"], jobs=len(slots))
        return run_sweep_locally(study, make_plan(study, run_member), resources["pretrain"], slots)


def study_of(call: Invocation) -> Study:
    """Return what a command line and its ``--config`` file ask for.

    Raises:
        UserError: If a value is impossible.
    """
    options = call.options
    common = SweepRequest(
        noise=tuple(options.noise),
        recipes=tuple(options.recipes),
        plugins=tuple(options.plugins),
        tasks=tuple(options.tasks),
        seeds=tuple(options.seeds),
        options=RunOptions(**cli.given_options(options, RunOptions, leave_out=OF_A_RUN)),
        name=options.name,
        results=options.results,
        overrides=call.overrides,
        probe_options=call.rest,
        tasks_together=options.tasks_together,
    )
    arms = arms_of(common, options.arms, recipe=options.recipe, probes=options.probes)
    return Study(arms=arms, sets=sets_of(options.sets, common.base))


def _check(study: Study) -> dict[tuple[str, str], str]:
    """Check heads, tasks, sets and runs; return the resolved command of each recipe of each arm."""
    written = [one.out for one in study.sets]
    plan = make_plan(study, run_member)
    for name, count in Counter(part.member.name for part in plan).items():
        if count > 1:
            raise UserError(
                f"two parts of the sweep are called {name}",
                mend="give one of the folders another last name, or describe one folder once",
            )
    # Nothing is asked of what these were trained on.
    taken = {part.member.done for part in plan if part.stage == "pretrain" and part.by_rows}
    told: dict[str, list[Path]] = {}
    for probe in (part.member.probe for part in plan if part.member.probe):
        told.setdefault(probe.run, []).append(measured_command(probe.receipts))
    # All that is quick first.
    for arm in study.arms:
        check_heads(arm.plugins)
        check_tasks(arm.tasks)
        check_probed(arm.options.probe)
        check_encoders(arm.encoders)
        for one in arm.runs():
            if str(one.path / layout.DONE) in taken:
                continue
            one.check(written)
            trained_on = study.set_of(one.shard_set)
            if trained_on:
                check_level_is_planned(trained_on, one.options.noise)
    for planned in study.sets:
        if not planned.present():
            check_command(planned.argv())
    forms: set[tuple[str, ...]] = set()
    for planned in study.sets:
        for level in sorted(planned.draws.keys() - planned.present()):
            told_options = options_of(planned.draws[level])
            check_models(told_options.get("--model", ()))
            # A draw that has the options of another is of the same form; its ratio was looked at above.
            if tuple(sorted(told_options)) not in forms:
                forms.add(tuple(sorted(told_options)))
                check_command(planned.draw_argv(level))
    resolved: dict[tuple[str, str], str] = {}
    known: dict[PretrainRequest, str] = {}
    for arm in study.arms:
        for one in arm.runs():
            # Runs of a recipe differ by what their names tell alone, so one command speaks for all of them.
            alike = dataclasses.replace(one, options=arm.options)
            if alike not in known:
                known[alike] = check_command(one.argv())
            resolved[one.recipe, arm.arm] = known[alike]
            mend = "sweep in another folder, or move that run out of runs/"
            check_same_run(one, known[alike], mend=mend, measured=told.get(str(one.path), ()))
    asked = [(arm.tasks, arm.probe_words) for arm in study.arms]
    # And what runs measure while they train.
    asked += [(tuple(probed(text)[0] for text in arm.options.probe), ()) for arm in study.arms]
    for tasks, words in dict.fromkeys(asked):
        if tasks:
            check_probes(tasks, words)
    return resolved


def _with_workers(arm: SweepRequest, workers: Mapping[str, int]) -> SweepRequest:
    labels = {recipe: " ".join(filter(None, [recipe, arm.arm])) for recipe in arm.recipes}
    own = {recipe: workers[label] for recipe, label in labels.items() if label in workers}
    return dataclasses.replace(arm, workers=own)


def _stage_resources(options: Any, stage: str, cores: int | None = None) -> Resources:
    if stage == "pretrain":
        return resources_of(options, stage, cores=cores, array_parallelism=options.array_parallelism)
    # What the user said of the ranks of a run is not meant for one process that writes a file.
    single = {"nodes": 1, "tasks_per_node": 1, "array_parallelism": options.array_parallelism}
    if stage == "probes":
        single["gpus_per_node"] = min(1, resources_of(options, stage).gpus_per_node)
    else:
        single["gpus_per_node"] = 0
    return resources_of(options, stage, **single)


def record(call: Invocation, study: Study) -> None:
    """Keep what was asked for, for ``status`` and ``resume``."""
    call.record(study.folder / LAUNCH)
    arms = [{**dataclasses.asdict(arm), "base": str(arm.base)} for arm in study.arms]
    write_json(study.folder / SWEEP, {"arms": arms, "sets": list(map(dataclasses.asdict, study.sets))})


def show_plan(
    study: Study,
    parts: Sequence[Part],
    resources: dict[str, Resources],
    found: Detection,
    *,
    jobs: int,
) -> int:
    """Print what would be done, on a cluster with the batch script of each job."""
    for part in parts:
        if not part.complete:
            print(f"# {part.member.name}: {shlex.join(part.member.argv)}")
    if found.found:
        show_jobs(study, resources)
    else:
        world = resources["pretrain"].nodes * resources["pretrain"].tasks
        at_once = f"{jobs} at once" if jobs > 1 else "one after the other"
        print(f"# {found.sentence}: {at_once}, pre-training as {world} local processes")
    print(f"sweep: {study.folder}")
    return 0


def run_sweep_locally(
    study: Study, parts: Sequence[Part], resources: Resources, slots: Sequence[Slot]
) -> int:
    """Run what is missing, as many parts at once as there are slots; parts of a failed one are left out."""
    failed = run_parts(depth_first(parts), lambda part, slot: _run_part(part, resources, slot), slots)
    if not all(part.complete for part in parts):
        tell_end(study.folder, resources.notify)
    for name in failed:
        print(f"failed: {name}")
    print(f"sweep: {study.folder}")
    return max(failed.values(), default=0)


def _run_part(part: Part, resources: Resources, slot: Slot) -> int:
    member = part.member
    record = Path(member.record)
    world = resources.nodes * resources.tasks
    if member.distributed:
        logs = record.parents[1] / "logs"
        return attempt_here(
            record,
            lambda: run_ranks(
                member.argv,
                nodes=resources.nodes,
                tasks=resources.tasks,
                logs=logs,
                gpus=slot.gpus,
                extra=resources.env,
            ),
            cores=slot.threads * world,
            gpus=len(slot.gpus),
        )
    status = attempt_here(record, lambda: run_command(member.argv), cores=slot.threads * world)
    if status == 0 and member.probe:
        write_receipts(member.probe)
    return status


def load_study(folder: Path) -> Study:
    """Return what a sweep's folder was asked for.

    Raises:
        UserError: If it holds no sweep.
        Untrusted: If what it holds was not written by a sweep.
    """
    try:
        fields = read_object(folder / SWEEP)
        if "arms" in fields:
            return typed(Study, fields)
        if "options" not in fields:
            # Of a sweep from before all of a run's options could be given.
            names = ("engine", "shards", "epochs")
            fields["options"] = {name: fields.pop(name) for name in names if name in fields}
        # Of a sweep from before there could be several arms.
        return Study(arms=(typed(SweepRequest, fields),))
    except OSError as error:
        raise UserError(f"{folder}: holds no sweep", mend="name a folder under sweeps/") from error
    except Untrusted as error:
        error.path = folder / SWEEP
        raise
