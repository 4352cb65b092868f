"""The command line of ``python -m pretrain.run`` as one checked record."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from nml import cli
from nml.recipe import Recipe
from nml.recipe_files import DEFAULT, find_recipe
from nml.run_options import RunOptions

EPILOG = """examples:
  python -m pretrain.run --noise 0.2
  python -m pretrain.run --recipe rsb_a3 --shards /data/shards/in1k --noise 0.2 --recipe.engine.dtype bf16
  torchrun --nproc-per-node 8 -m pretrain.run --recipe clip_rn50_cc12m --shards /data/shards/cc12m
The same command again continues where the run stopped, or says that it is done."""


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What one run is asked to be.

    Attributes:
        recipe: The resolved recipe, with ``epochs`` in it.
        run_dir: The run folder, as it was named or as it is named by default.
    """

    recipe: Recipe
    recipe_name: str
    run_dir: Path


def parse_options(argv: list[str] | None) -> tuple[Options, str]:
    """Return the options of a command line, and the same as a YAML text for ``--config``.

    Raises:
        UserError: If a value is impossible.
    """
    parser = build_parser()
    namespace = parser.parse_args(_with_recipe_file(sys.argv[1:] if argv is None else argv))
    if namespace.epochs is not None:
        namespace.recipe.epochs, namespace.epochs = namespace.epochs, None
    recipe: Recipe = parser.instantiate(namespace).recipe
    namespace.recipe.options = recipe.options
    given = cli.given_options(namespace, RunOptions)
    # A configuration file of one's own may leave it out.
    given["recipe_name"] = given["recipe_name"] or DEFAULT
    options = Options(recipe=recipe, **{**given, "run_dir": RunOptions(**given).run_folder})
    namespace.config = None
    # A run that was not to be there yet is there the next time that its config is used.
    namespace.resume = "auto"
    return options, parser.dump(namespace, skip_unset=True)


def build_parser() -> cli.Parser:
    """Return the parser of ``python -m pretrain.run``."""
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
    cli.add_options(parser, RunOptions)
    return parser


def _with_recipe_file(argv: list[str]) -> list[str]:
    """Put the file of the recipe, the last one named, and its name first; quickstart where none is."""
    found = list(argv)
    joined = [number for number, word in enumerate(found) if word.startswith("--recipe=")]
    for number in reversed(joined):
        found[number : number + 1] = ["--recipe", found[number].partition("=")[2]]
    places = [number for number, word in enumerate(found[:-1]) if word == "--recipe"]
    configured = any(word == "--config" or word.startswith("--config=") for word in found)
    if not places and configured:
        return found
    path = find_recipe(found[places[-1] + 1] if places else DEFAULT)
    for number in reversed(places):
        del found[number : number + 2]
    # First, so that --recipe-name and values of the recipe that the user gives win.
    return ["--recipe-name", path.stem, "--recipe", str(path), *found]
