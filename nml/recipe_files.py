"""Recipes as YAML files: found by name, near matches told."""

from __future__ import annotations

from pathlib import Path

from nml.errors import UserError, unknown_name

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
DEFAULT = "quickstart"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the project."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def find_recipe(recipe: str, base: Path | None = None) -> Path:
    """Return the file of a recipe, named or given as a path. A name means the project's recipe, whatever
    lies in the working folder.

    Args:
        recipe: The name or path.
        base: The folder that a relative path starts from; None for the current one.

    Raises:
        UserError: If there is none.
    """
    named = FOLDER / f"{recipe}.yaml"
    if "/" not in recipe and named.is_file():
        return named
    path = (base or Path()) / Path(recipe).expanduser()
    if path.is_file():
        return path.resolve()
    if "/" in recipe or path.suffix in (".yaml", ".yml"):
        raise UserError(
            f"--recipe {recipe}: no such file", possible=f"a YAML file, or one of {', '.join(recipe_names())}"
        )
    raise unknown_name(
        "--recipe", recipe, recipe_names(), mend=f"or give the path of a YAML file; recipes live in {FOLDER}"
    )
