"""What one pre-training run is: checked before any work starts, then a command line.

The launcher knows the other rooms by their commands and file formats alone, so this is where a
request turns into ``python -m pretrain.run ...`` with absolute paths.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal, get_args

from nml.digits import NOTICE
from nml.errors import UserError, unknown_name
from nml.levels import CLEAN_LEVEL, decimal_text, level_name, level_ratio
from slurm.rooms import CODE

Engine = Literal["ddp", "fsdp", "deepspeed"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
DEFAULT_ENGINE: Engine = "ddp"
RECIPES = CODE / "recipes"
_SET_FORMAT = "nml-shards/1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """One pre-training run.

    Attributes:
        noise: The noise ratio, as text or number, 0 <= r < 1.
        engine: How the ranks share the work.
        recipe: A name under recipes/, or the path of a YAML file.
        shards: The shard set; None stands for the bundled digits.
        epochs: Overrides the recipe's epochs; None keeps them.
        seed: Seed of the run.
        run_dir: Where the run goes; None names it by recipe, level, seed and engine under runs/.
        overrides: Dotted overrides of the recipe, as the user typed them.
        base: The folder that relative paths start from, normally the current one.

    Raises:
        UserError: If a value is impossible, the recipe or set is missing, or the set lacks the level.
    """

    noise: str = "0"
    engine: Engine = DEFAULT_ENGINE
    recipe: str = "quickstart"
    shards: str | None = None
    epochs: int | None = None
    seed: int = 0
    run_dir: str | None = None
    overrides: tuple[str, ...] = ()
    base: Path = dataclasses.field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        level_name(self.noise)
        if self.engine not in ENGINES:
            raise unknown_name("--engine", self.engine, ENGINES)
        if self.epochs is not None and self.epochs < 1:
            raise UserError(f"--epochs {self.epochs}: not a number of epochs", possible="1 and more")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: not a seed", possible="0 and more")
        _check_recipe(self.recipe, self.base)
        if self.shards is not None:
            check_shards(self.base / self.shards, self.level)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir {self.path}: is a file, not a folder", mend="name another folder")

    @property
    def level(self) -> str:
        """The level's name, for example ``n20``."""
        return level_name(self.noise)

    @property
    def name(self) -> str:
        """The run's default name, for example ``quickstart-n20-seed0``."""
        engine = "" if self.engine == DEFAULT_ENGINE else f"-{self.engine}"
        return f"{Path(self.recipe).stem}-{self.level}-seed{self.seed}{engine}"

    @property
    def path(self) -> Path:
        """The run's folder, absolute."""
        return self.base / (self.run_dir if self.run_dir is not None else f"runs/{self.name}")

    @property
    def shard_set(self) -> Path:
        """The shard set's folder, absolute; the bundled digits' where none was named."""
        return self.base / (self.shards if self.shards is not None else f"data/shards/digits-{self.level}")

    def shards_argv(self) -> list[str]:
        """Return the command that writes the bundled set, or nothing where a set is named or written."""
        if self.shards is not None or (self.shard_set / "set.json").exists():
            return []
        noise = ["--noise", decimal_text(self.noise)]
        return [
            sys.executable,
            "-m",
            "shards.write",
            "--source",
            "digits",
            *noise,
            "--out",
            str(self.shard_set),
        ]

    def argv(self) -> list[str]:
        """Return the command of one rank."""
        recipe = self.base / self.recipe
        argv = [sys.executable, "-m", "pretrain.run"]
        argv += ["--recipe", str(recipe) if recipe.is_file() else self.recipe]
        argv += ["--shards", str(self.shard_set), "--noise", decimal_text(self.noise)]
        argv += ["--engine", self.engine, "--run-dir", str(self.path), "--seed", str(self.seed)]
        if self.epochs is not None:
            argv += ["--epochs", str(self.epochs)]
        return [*argv, *self.overrides]

    def notice(self) -> str:
        """Return the line that says what stands in for data nobody named, or nothing."""
        return NOTICE if self.shards is None else ""


def _check_recipe(recipe: str, base: Path) -> None:
    names = [file.stem for file in RECIPES.glob("*.yaml")]
    if recipe in names or (base / recipe).is_file():
        return
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        raise UserError(
            f"--recipe {recipe}: no such file", possible=f"a YAML file, or one of {', '.join(names)}"
        )
    raise unknown_name("--recipe", recipe, names, mend=f"recipes live in {RECIPES}")


def check_shards(folder: Path, level: str) -> None:
    """Check that ``folder`` is a complete shard set that has ``level``.

    Raises:
        UserError: If it is not.
    """
    try:
        record = json.loads((folder / "set.json").read_text())
        levels = {CLEAN_LEVEL, *record["levels"]}
        known = record["format"]
    except FileNotFoundError:
        raise UserError(
            f"--shards {folder}: not a complete shard set (no set.json)",
            mend=f"write one: python -m shards.write --source SOURCE --out {folder}",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--shards {folder}: set.json does not read: {error}", mend="write the set again"
        ) from error
    if known != _SET_FORMAT:
        raise UserError(
            f"--shards {folder}: format {known!r}", possible=_SET_FORMAT, mend="write the set again"
        )
    if level not in levels:
        raise UserError(
            f"--shards {folder}: has no noise level {level}",
            possible=", ".join(sorted(levels)),
            mend=f"add it: python -m shards.relabel {folder} --noise {float(level_ratio(level)):g}",
        )
