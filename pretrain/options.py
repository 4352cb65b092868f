"""The command line of ``python -m pretrain.run`` as one checked record."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nml import cli
from nml.errors import UserError
from nml.levels import level_name
from pretrain.engine_names import DEFAULT_ENGINE, EngineName
from pretrain.recipe import Recipe
from pretrain.recipe_files import DEFAULT, find_recipe

EPILOG = """examples:
  python -m pretrain.run --noise 0.2
  python -m pretrain.run --recipe rsb_a3 --shards /data/shards/in1k --noise 0.2 --recipe.engine.dtype bf16
  torchrun --nproc-per-node 8 -m pretrain.run --recipe clip_rn50_cc12m --shards /data/shards/cc12m
The same command again continues where the run stopped, or says that it is done."""


Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one run is asked to be.

    Attributes:
        recipe: The resolved recipe.
        recipe_name: Its name.
        shards: The shard set; None stands for the bundled digits.
        noise: The noise ratio as text.
        validation: A shard set to validate on; None: the bundled set's own, or none.
        class_names, templates: See :func:`pretrain.zero_shot.read_prompts`.
        engine: How ranks share the work.
        run_dir: The run folder.
        seed: Seed of weights, order and augmentation.
        resume: What to do with a run folder that holds a run, and with one that does not.
        tensorboard, wandb: Write metrics there too.
        profile: Steps to trace, 0 for none.
    """

    recipe: Recipe
    recipe_name: str
    shards: str | None
    noise: str
    validation: str | None
    class_names: str | None
    templates: str | None
    engine: EngineName
    run_dir: Path
    seed: int
    resume: Resume
    tensorboard: bool
    wandb: bool
    profile: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: is negative", possible="0 and more")
        if self.profile < 0:
            raise UserError(f"--profile {self.profile}: is negative", possible="0 (no trace) and more")
        if self.run_dir.exists() and not self.run_dir.is_dir():
            raise UserError(f"--run-dir {self.run_dir}: is a file, not a folder", mend="name another folder")

    @property
    def level(self) -> str:
        """The noise level's name."""
        return level_name(self.noise)


def parse_options(argv: list[str] | None) -> tuple[Options, str]:
    """Return the options of a command line, and the same as a YAML text for ``--config``.

    Raises:
        UserError: If a value is impossible.
    """
    parser = _parser()
    namespace = parser.parse_args(_with_recipe_file(sys.argv[1:] if argv is None else argv))
    if namespace.epochs is not None:
        namespace.recipe.epochs, namespace.epochs = namespace.epochs, None
    recipe: Recipe = parser.instantiate(namespace).recipe
    level = level_name(namespace.noise)
    suffix = "" if namespace.engine == DEFAULT_ENGINE else f"-{namespace.engine}"
    run_dir = namespace.run_dir or f"runs/{namespace.recipe_name}-{level}-seed{namespace.seed}{suffix}"
    options = Options(
        recipe=recipe,
        recipe_name=namespace.recipe_name,
        shards=namespace.shards,
        noise=namespace.noise,
        validation=namespace.validation,
        class_names=namespace.class_names,
        templates=namespace.templates,
        engine=namespace.engine,
        run_dir=Path(run_dir),
        seed=namespace.seed,
        resume=namespace.resume,
        tensorboard=namespace.tensorboard,
        wandb=namespace.wandb,
        profile=namespace.profile,
    )
    namespace.config = None
    # A run that was not to be there yet is there the next time that its config is used.
    namespace.resume = "auto"
    return options, parser.dump(namespace, skip_unset=True)


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "python -m pretrain.run",
        "Pre-train an encoder on one noise level of a shard set.\n"
        "One process alone, or one of many where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--recipe",
        type=Recipe,
        default=Recipe(),
        sub_configs=True,
        help="name under recipes/, or a YAML file; any value by its dotted name",
    )
    parser.add_argument("--recipe-name", type=str, default=DEFAULT, help="default: the recipe file's name")
    parser.add_argument("--shards", type=str, default=None, help="shard set; default: the bundled digits")
    parser.add_argument(
        "--noise", type=str, default="0", help="noise ratio, 0 (clean) to below 1; a level of the set"
    )
    parser.add_argument(
        "--validation",
        type=str,
        default=None,
        help="clean shard set to validate on; the bundled set has its own",
    )
    parser.add_argument(
        "--class-names",
        type=str,
        default=None,
        help="for zero-shot validation: file with a name a line, in the order of the classes, or imagenet",
    )
    parser.add_argument(
        "--templates",
        type=str,
        default=None,
        help="for zero-shot validation: file with a prompt a line, {} for the name, or openai (its 80 of "
        "ImageNet); default: a photo of a {}.",
    )
    parser.add_argument(
        "--engine", type=EngineName, default=DEFAULT_ENGINE, help="how processes share the work"
    )
    parser.add_argument("--epochs", type=int, default=None, help="in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    parser.add_argument("--run-dir", type=str, default=None, help="default: runs/RECIPE-LEVEL-seedSEED")
    parser.add_argument(
        "--resume",
        type=Resume,
        default="auto",
        help="auto: continue the run in --run-dir from its newest whole checkpoint, or begin it; "
        "must: there has to be a checkpoint; never: there must be no run",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write RUN/logs/tensorboard too")
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases too; WANDB_MODE=offline works"
    )
    parser.add_argument("--profile", type=int, default=0, help="trace this many steps into RUN/logs/profile")
    return parser


def _with_recipe_file(argv: list[str]) -> list[str]:
    """Replace the recipe's name by its file, and note the name; quickstart where none is given."""
    found = list(argv)
    joined = [number for number, word in enumerate(found) if word.startswith("--recipe=")]
    for number in reversed(joined):
        found[number : number + 1] = ["--recipe", found[number].partition("=")[2]]
    places = [number for number, word in enumerate(found[:-1]) if word == "--recipe"]
    configured = any(word == "--config" or word.startswith("--config=") for word in found)
    if not places and configured:
        return found
    if not places:
        found, places = ["--recipe", DEFAULT, *found], [0]
    path = find_recipe(found[places[-1] + 1])
    found[places[-1] + 1] = str(path)
    # First, so that a --recipe-name of the user's own wins.
    return ["--recipe-name", path.stem, *found]
