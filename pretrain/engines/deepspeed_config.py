"""The JSON that DeepSpeed reads: generated from the recipe, with a file of the user's own merged over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nml.errors import UserError
from nml.recipe import Recipe
from nml.untrusted import read_json

# What the recipe decides, and by which of its values.
_DECIDED = {
    "train_batch_size": "--recipe.global_batch",
    "train_micro_batch_size_per_gpu": "--recipe.engine.micro_batch",
    "gradient_accumulation_steps": "--recipe.engine.micro_batch",
    "gradient_clipping": "--recipe.optimizer.clip",
    "zero_optimization.stage": "--recipe.engine.zero_stage",
}
# Sections that would train something else than the recipe says, and what says it.
_REFUSED = {
    "optimizer": "--recipe.optimizer.name, .lr, ...",
    "scheduler": "--recipe.schedule.name, ...",
    "fp16": "--recipe.engine.dtype",
    "bf16": "--recipe.engine.dtype",
    "amp": "--recipe.engine.dtype",
    "torch_autocast": "--recipe.engine.dtype",
    "elasticity": "--recipe.global_batch, which holds at every number of processes",
    "data_efficiency": "the recipe's order of samples",
    "curriculum_learning": "the recipe's order of samples",
    "compression_training": "the recipe's network",
    "checkpoint": "--recipe.checkpoints.every_steps, ...",
    "nebula": "--recipe.checkpoints.every_steps, ...",
}
# The share of the optimizer's state that lies in the host's memory.
_OFFLOADED = "zero_optimization.offload_optimizer.ratio"
_NORM = "zero_optimization.compute_grad_norm"


def deepspeed_config(recipe: Recipe, *, accumulation: int, world_size: int) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a recipe, with the user's own file merged over it.

    Raises:
        UserError: If the file does not read, or contradicts what the recipe decides.
    """
    config: dict[str, Any] = {
        "train_batch_size": recipe.global_batch,
        "train_micro_batch_size_per_gpu": recipe.global_batch // world_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": recipe.optimizer.clip,
        "zero_optimization": {"stage": recipe.engine.zero_stage},
        # Elementwise rules only: check_engine has refused lamb.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # Its clock has the host wait for the device twice a step; metrics.jsonl tells the rate.
        "timers": {"throughput": {"enabled": False}},
    }
    if recipe.engine.dtype == "bf16":
        # Gradients and gathered weights of modules that it lists would travel in bf16; autocast needs none.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        # ZeRO 3 would put a linear layer of its own in the place of torch's, which rounds once more.
        config["zero_optimization"]["memory_efficient_linear"] = False
    if not recipe.engine.deepspeed_config:
        return config
    path = Path(recipe.engine.deepspeed_config)
    own = read_own(path)
    for name, flag in _DECIDED.items():
        found, decided = _at(own, name), _at(config, name)
        if found not in (None, "auto", decided):
            raise UserError(
                f"{path}: {name} {found}: the recipe gives {decided}",
                mend=f'leave it out or write "auto"; it is set by {flag}',
            )
    return _merge(config, own)


def read_own(path: Path) -> dict[str, Any]:
    """Return a user's DeepSpeed JSON.

    Raises:
        UserError: If it is no JSON object, has sections that are the recipe's to decide, offloads a part
            of the optimizer's state, or switches off what tells of steps that are not finite.
    """
    where = f"recipe.engine.deepspeed_config {path}"
    try:
        own = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{where}: does not read: {reason}", possible="a JSON file") from error
    if not isinstance(own, dict):
        raise UserError(f"{where}: holds a {type(own).__name__}", possible="a JSON object")
    if not isinstance(own.get("zero_optimization", {}), dict):
        raise UserError(f"{where}: zero_optimization {own['zero_optimization']}", possible="a JSON object")
    for name, flag in _REFUSED.items():
        section = own.get(name)
        switched_off = isinstance(section, dict) and section.get("enabled") is False
        if section not in (None, "auto") and not switched_off:
            raise UserError(f"{where}: {name}: the recipe decides that", mend=f"leave it out; see {flag}")
    if _at(own, _NORM) is False:
        raise UserError(
            f"{where}: {_NORM} false: by the norm ZeRO knows a step that is not finite", mend="leave it out"
        )
    ratio = _at(own, _OFFLOADED)
    if ratio not in (None, "auto", 1):
        raise UserError(
            f"{where}: {_OFFLOADED} {ratio}: a state of which a part is offloaded is not proven to resume",
            possible="1, the whole of it",
            mend="leave it out",
        )
    return own


def _at(config: dict[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        if value != "auto":
            merged[name] = _merge(base[name], value) if both else value
    return merged
