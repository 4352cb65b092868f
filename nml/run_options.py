"""The options of one pre-training run, declared once.

``python -m pretrain.run`` takes them, and the launcher takes and hands on the same: a field added here is
an option of both. What only one of the two knows (the recipe's own values, what a job asks for) is declared
where it is used.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self, get_args

from nml import layout
from nml.cli import flag_of
from nml.errors import UserError, unknown_name
from nml.levels import is_ratio_name, level_of

EngineName = Literal["ddp", "fsdp", "deepspeed"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
# The numerical reference; models of 25 to 100 million parameters fit a GPU and need no sharding.
DEFAULT_ENGINE: EngineName = "ddp"
_DEFAULT_HEAD = "knn"
Resume = Literal["auto", "must", "never"]
IMAGENET_NAMES = "imagenet"
OPENAI_TEMPLATES = "openai"
# Libraries count milliseconds in 32 bits, which is 24 days.
LONGEST = timedelta(days=20)
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What one run is asked to be, beside its recipe.

    The metadata of a field is its ``help``, which says what it is; ``path`` where it is a file or folder
    unless it is a URL, and then ``words``, which are none either.

    Raises:
        UserError: If a value is impossible.
    """

    recipe_name: str | None = field(default=None, metadata={"help": "default: the recipe file's name"})
    shards: str | None = field(
        default=None,
        metadata={"help": "shard set, a folder or URL; default: the bundled digits", "path": True},
    )
    noise: str = field(
        default="0",
        metadata={"help": "a level of the set: noise ratio, 0 (clean) to below 1, or the level's name"},
    )
    validation: str | None = field(
        default=None,
        metadata={"help": "clean shard set to validate on; the bundled set has its own", "path": True},
    )
    require_signature: str | None = field(
        default=None,
        metadata={
            "help": "public key: refuse sets of --shards and --validation that are not signed by it",
            "path": True,
        },
    )
    class_names: str | None = field(
        default=None,
        metadata={
            "help": "for zero-shot validation: file with a name a line, in the order of the classes, or "
            + IMAGENET_NAMES,
            "path": True,
            "words": (IMAGENET_NAMES,),
        },
    )
    templates: str | None = field(
        default=None,
        metadata={
            "help": "for zero-shot validation: file with a prompt a line, {} for the name, or "
            f"{OPENAI_TEMPLATES} (its 80 of ImageNet); default: a photo of a {{}}.",
            "path": True,
            "words": (OPENAI_TEMPLATES,),
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "begin from these weights: an export or run folder of this project, or a file or folder "
            "of timm's or open_clip's; default: fresh ones",
            "path": True,
        },
    )
    engine: EngineName = field(default=DEFAULT_ENGINE, metadata={"help": "how processes share the work"})
    epochs: int | None = field(default=None, metadata={"help": "in place of the recipe's"})
    seed: int = field(default=0, metadata={"help": "of weights, order and augmentation"})
    run_dir: str | Path | None = field(
        default=None, metadata={"help": "default: runs/RECIPE-LEVEL-seedSEED", "path": True}
    )
    resume: Resume = field(
        default="auto",
        metadata={
            "help": "auto: continue the run in --run-dir from its newest whole checkpoint, or begin it; "
            "must: there has to be a checkpoint; never: there must be no run"
        },
    )
    timeout: str = field(
        default="10m",
        metadata={
            "help": "how long processes wait for one that does not answer before the run fails: 90s, "
            "10m (default), 1h30m"
        },
    )
    tensorboard: bool = field(default=False, metadata={"help": "write RUN/logs/tensorboard too"})
    wandb: bool = field(
        default=False, metadata={"help": "log to Weights & Biases too; WANDB_MODE=offline works"}
    )
    memorisation: bool = field(
        default=False,
        metadata={
            "help": "remember every sample: RUN/memorisation.parquet, see python -m pretrain.memorisation"
        },
    )
    probe: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "measure the encoder while it trains: TASK or TASK,HEAD as probes.run has them, which "
            "writes the same rows"
        },
    )
    probe_every: int = field(
        default=1,
        metadata={"help": "epochs between two such measurements; the last epoch is always measured"},
    )
    probe_results: str | None = field(
        default=None, metadata={"help": "folder of its result rows; default: results", "path": True}
    )
    probe_tasks_root: str | None = field(
        default=None, metadata={"help": "folder of its prepared tasks; default: data/tasks", "path": True}
    )
    probe_device: str = field(
        default="auto", metadata={"help": "where it computes: auto is the device that trains, else cpu, cuda"}
    )
    profile: int = field(default=0, metadata={"help": "trace this many steps into RUN/logs/profile"})

    def __post_init__(self) -> None:
        if not is_ratio_name(self.level) and self.shards is None:
            raise UserError(
                f"--noise {self.noise}: the bundled digits have no levels by name",
                possible="a number from 0 (clean) to below 1",
                mend="name a set: --shards",
            )
        if self.engine not in ENGINES:
            raise unknown_name("--engine", self.engine, ENGINES)
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"--epochs {self.epochs}: not a number of epochs", possible="1 and more")
        duration("--timeout", self.timeout)
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: is negative", possible="0 and more")
        if self.require_signature is not None and self.shards is None:
            raise UserError("--require-signature: the bundled digits have none", mend="name a set: --shards")
        if self.profile < 0:
            raise UserError(f"--profile {self.profile}: is negative", possible="0 (no trace) and more")
        self._check_probe()
        if self.run_dir is not None:
            _check_run_dir(Path(self.run_dir))

    def _check_probe(self) -> None:
        if self.probe_every < 1:
            raise UserError(
                f"--probe-every {self.probe_every}: not a number of epochs", possible="1 and more"
            )
        for option in fields(RunOptions):
            value = getattr(self, option.name)
            if option.name.startswith("probe_") and value != option.default and not self.probe:
                raise UserError(
                    f"{flag_of(option.name)} {value}: nothing is measured while it trains",
                    mend="name a task: --probe TASK",
                )

    @property
    def level(self) -> str:
        """The noise level's name, for example ``n20``."""
        return level_of(self.noise)

    @property
    def run_name(self) -> str:
        """The run's name where it is not told one, for example ``quickstart-n20-seed0``."""
        engine = "" if self.engine == DEFAULT_ENGINE else f"-{self.engine}"
        return f"{self.recipe_name}-{self.level}-seed{self.seed}{engine}"

    @property
    def run_folder(self) -> Path:
        """The run folder: as it was named, or by its name under runs/."""
        return Path(self.run_dir or f"{layout.RUNS}/{self.run_name}")

    @property
    def shard_set(self) -> str:
        """The shard set, a folder or URL: as it was named, or that of the bundled digits at the level."""
        return self.shards or f"{layout.SETS}/{layout.digits_set(self.level)}"

    def resolved(self, base: Path) -> Self:
        """Return the options with every path absolute.

        Args:
            base: The folder that relative paths start from.
        """
        paths: dict[str, Any] = {
            option.name: absolute(str(value), base)
            for option in fields(RunOptions)
            if option.metadata.get("path")
            and (value := getattr(self, option.name)) is not None
            and value not in option.metadata.get("words", ())
        }
        return replace(self, **paths)

    def words(self, always: Collection[str] = ()) -> list[str]:
        """Return the words of a command line that give these options.

        Args:
            always: Names of those to say even where they are what they would be anyway.
        """
        said: list[str] = []
        for option in fields(RunOptions):
            value = getattr(self, option.name)
            if value == option.default and option.name not in always:
                continue
            flag = flag_of(option.name)
            values = value if isinstance(value, tuple) else () if isinstance(value, bool) else (value,)
            said += [flag, *map(str, values)]
        return said


def absolute(location: str, base: Path) -> str:
    """Return a path as an absolute one; a URL as it is."""
    return location if "://" in location else str(base / Path(location).expanduser())


def check_extras(options: RunOptions) -> None:
    """Refuse what needs a package that is not installed, before any work starts.

    Raises:
        UserError: Naming the extra to install.
    """
    for extra, wanted in (("tensorboard", options.tensorboard), ("wandb", options.wandb)):
        if wanted and importlib.util.find_spec(extra) is None:
            raise UserError(
                f"--{extra}: the package {extra} is not installed",
                mend=f"pip install 'noisy-model-learning[{extra}]'",
            )


def check_files(options: RunOptions) -> None:
    """Refuse a file that is named and not there.

    Raises:
        UserError: Naming the option and what else it takes.
    """
    for option in fields(RunOptions):
        words, value = option.metadata.get("words"), getattr(options, option.name)
        if words and value is not None and value not in words and not Path(value).is_file():
            possible = f"a text file, or {', '.join(words)}"
            raise UserError(f"{flag_of(option.name)} {value}: no such file", possible=possible)


def _check_run_dir(folder: Path) -> None:
    try:
        file = folder.exists() and not folder.is_dir()
    except OSError as error:
        # A name that is too long, for example.
        raise UserError(f"--run-dir {folder}: {error.strerror}", mend="name another folder") from error
    if file:
        raise UserError(f"--run-dir {folder}: is a file, not a folder", mend="name another folder")


def check_resume(run: Path, resume: Resume) -> None:
    """Refuse to begin what was to be continued, and to continue what was to be begun.

    Args:
        run: The run folder.
        resume: What ``--resume`` says.

    Raises:
        UserError: If the folder does not fit.
    """
    saved = any(layout.is_complete(folder) for folder in layout.step_folders(run))
    if resume == "must" and not saved:
        raise UserError(
            f"--resume must: {run} has no complete checkpoint",
            mend="name the run's own --run-dir, or use --resume auto to begin one",
        )
    if resume == "never" and (saved or (run / layout.CONFIG).exists()):
        raise UserError(
            f"--resume never: {run} holds a run",
            mend="name another --run-dir, or use --resume auto to continue it",
        )


def task_and_heads(probe: str, known: Collection[str]) -> tuple[str, list[str]]:
    """Return the task and the heads of ``TASK,HEAD,...``: what ends it and is a known head is one.

    Without a head it is one that trains nothing.
    """
    *parts, last = probe.split(",")
    heads: list[str] = []
    while parts and last in known:
        heads.insert(0, last)
        *parts, last = parts
    return ",".join([*parts, last]), heads or [_DEFAULT_HEAD]


def duration(flag: str, text: str) -> timedelta:
    """Return the duration that an option names.

    Args:
        flag: The option, for the error.
        text: Whole days, hours, minutes and seconds, each with its letter: ``2h``, ``1h30m``.

    Raises:
        UserError: If it is none, zero, or longer than :data:`LONGEST`. A bare number is none: it would be
            minutes to Slurm's users and seconds to torch's.
    """
    parts = _PARTS.fullmatch("".join(text.split()))
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise UserError(
            f"{flag} {text}: not a duration", possible="a number with its unit, such as 90s, 10m or 1h30m"
        )
    if total > LONGEST.total_seconds():
        raise UserError(f"{flag} {text}: longer than libraries can wait", possible=f"up to {LONGEST.days}d")
    return timedelta(seconds=total)
