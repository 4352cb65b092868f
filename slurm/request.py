"""What one pre-training run is: checked before any work starts, then a command line.

The launcher knows the other rooms by their commands and file formats alone, so this is where a
request turns into ``python -m pretrain.run ...`` with absolute paths.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from nml import layout
from nml.digits import NOTICE
from nml.initial_weights import find_weights
from nml.levels import CLEAN_LEVEL, decimal_text, is_level_name, level_ratio
from nml.recipe_files import DEFAULT, FOLDER, find_recipe
from nml.run_options import RunOptions, check_extras, check_files, check_resume
from nml.set_file import SET_FILE, check_level

# Said of every run, also where they are what they would be anyway: they tell it from other runs.
_TOLD = ("shards", "noise", "engine", "run_dir", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """One pre-training run.

    Attributes:
        options: Its options, as its user gave them.
        recipe: A name under recipes/, or the path of a YAML file.
        overrides: Dotted overrides of the recipe, as the user typed them.
        workers: Loader workers in place of the recipe's; None keeps them.
        base: The folder that relative paths start from, normally the current one.

    Raises:
        UserError: If the recipe is missing.
    """

    options: RunOptions = dataclasses.field(default_factory=RunOptions)
    recipe: str = DEFAULT
    overrides: tuple[str, ...] = ()
    workers: int | None = None
    base: Path = dataclasses.field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        find_recipe(self.recipe, self.base)

    def check(self, written: Collection[str] = ()) -> None:
        """Check what a run that is to begin needs: data, files, extras, and the folder that it is to have.

        Args:
            written: Sets that are written before it begins, and need not be there.

        Raises:
            UserError: If a set or file is missing, a set lacks the level, an extra is not installed, or the
                folder does not hold what ``--resume`` says.
        """
        # A run that has begun goes on with its level, also where another of that ratio was added since, and
        # needs the weights that it began from no more.
        begun = (self.path / layout.CONFIG).exists()
        if self.resolved.init_from is not None and not begun:
            find_weights(self.resolved.init_from)
        if self.options.shards is not None and self.shard_set not in written:
            check_level(self.shard_set, self.options.noise, strict=not begun)
        if self.resolved.validation is not None and str(self.resolved.validation) not in written:
            check_level(self.resolved.validation, CLEAN_LEVEL, "--validation")
        check_files(self.resolved)
        check_extras(self.options)
        check_resume(self.path, self.options.resume)

    @cached_property
    def resolved(self) -> RunOptions:
        """The options with absolute paths, and with what was left to their defaults."""
        file = find_recipe(self.recipe, self.base)
        given = dataclasses.replace(self.options, recipe_name=self.options.recipe_name or file.stem)
        return dataclasses.replace(
            given,
            noise=given.noise if is_level_name(given.noise) else decimal_text(given.noise),
            shards=given.shard_set,
            run_dir=given.run_folder,
        ).resolved(self.base)

    @property
    def level(self) -> str:
        """The level's name, for example ``n20``."""
        return self.options.level

    @property
    def path(self) -> Path:
        """The run's folder, absolute."""
        return Path(str(self.resolved.run_dir))

    @property
    def shard_set(self) -> str:
        """The shard set's folder, absolute, or URL; the bundled digits' where none was named."""
        return str(self.resolved.shards)

    def is_complete(self) -> bool:
        """Return whether the run is done, and has measured what it was to measure while it trained."""
        return layout.is_done(self.path) and not (self.options.probe and layout.marked_steps(self.path))

    def writes_shards(self) -> bool:
        """Return whether the bundled digits are wanted and not written yet."""
        return self.set_file is not None and not self.set_file.exists()

    @property
    def set_file(self) -> Path | None:
        """What tells that the bundled digits are written; None where another set is named."""
        return Path(self.shard_set) / SET_FILE if self.options.shards is None else None

    def shards_argv(self) -> list[str]:
        """Return the command that writes the bundled digits at the run's level."""
        ratio = decimal_text(level_ratio(self.level))
        words = ["--source", "digits", "--noise", ratio, "--out", self.shard_set]
        return [sys.executable, "-m", "shards.write", *words]

    def argv(self) -> list[str]:
        """Return the command of one rank."""
        file = find_recipe(self.recipe, self.base)
        # By its name, the job takes the recipe of the snapshot.
        recipe = self.recipe if file == FOLDER / f"{self.recipe}.yaml" else str(file)
        argv = [sys.executable, "-m", "pretrain.run", "--recipe", recipe]
        options = self.resolved
        if self.options.recipe_name is None:
            options = dataclasses.replace(options, recipe_name=None)
        if options.resume == "never":
            # It has been looked at. A job that is requeued goes on with what it has begun itself.
            options = dataclasses.replace(options, resume="auto")
        argv += options.words(always=_TOLD)
        if self.workers is not None:
            argv += ["--recipe.data.workers", str(self.workers)]
        return [*argv, *self.overrides]

    def notice(self) -> str:
        """Return the line that says what stands in for data nobody named, or nothing."""
        return NOTICE if self.options.shards is None else ""
