"""Who else hears of each metrics line: the terminal, TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

from nml import cli, layout
from nml.errors import UserError
from nml.files import make_folder, write_bytes
from pretrain.options import Options

if TYPE_CHECKING:
    # It imports torch, which --help and a refused option need not wait for.
    from pretrain.recording import Observer


def build_observers(options: Options, steps_per_epoch: int) -> list[Observer]:
    """Return what the options ask for, the terminal always."""
    observers: list[Observer] = [Terminal(options.recipe.epochs, steps_per_epoch)]
    if options.tensorboard:
        observers.append(TensorBoard(options))
    if options.wandb:
        observers.append(WandB(options))
    return observers


class Terminal:
    """A live line on a terminal; a line an epoch elsewhere."""

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        from tqdm import tqdm

        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._live = cli.is_interactive()
        self._bar = tqdm(total=epochs * steps_per_epoch, unit="step", disable=not self._live, leave=False)
        self._begun = False

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line."""
        epoch = -(-line["step"] // self._steps_per_epoch)
        if line["event"] == "validation":
            top1, top5 = 100 * line["top1"], 100 * line["top5"]
            self._say(f"epoch {epoch}/{self._epochs}: validation top-1 {top1:.1f} %, top-5 {top5:.1f} %")
            return
        if line["event"] != "step":
            return
        if not self._begun:
            # The rate is that of this process: what an earlier one did is no part of it.
            self._bar.initial = self._bar.n = line["step"] - 1
            self._begun = True
        shown = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        self._bar.set_postfix_str(f"loss {shown}, {_rate(line)}", refresh=False)
        self._bar.update(line["step"] - self._bar.n)
        if not self._live and line["step"] % self._steps_per_epoch == 0:
            self._say(
                f"epoch {epoch}/{self._epochs}: loss {shown}, lr {line['lr']:.3g}, "
                f"{_rate(line)}, goodput {line['goodput']:.2f}"
            )

    def _say(self, text: str) -> None:
        if self._live:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Take the live line away."""
        self._bar.close()


def _rate(line: dict[str, Any]) -> str:
    """Return samples/s, and MFU where there is one, which tells what of the device is left."""
    mfu = f", MFU {100 * line['mfu']:.0f} %" if "mfu" in line else ""
    return f"{line['samples_per_s']:.0f} samples/s{mfu}"


class TensorBoard:
    """Scalars of every line under RUN/logs/tensorboard."""

    def __init__(self, options: Options) -> None:
        self._folder = options.run_dir / layout.LOGS / "tensorboard"
        self._writer: Any = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Write a line."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an attempt wrote beyond the checkpoint it is resumed from is done again.
            self._writer = SummaryWriter(str(self._folder), purge_step=line["step"])
        for name, value in _numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])
        if line["event"] == "validation":
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A run of Weights & Biases, offline where WANDB_MODE says so.

    Its id is drawn once and kept in the run folder: two runs of one name are two runs there.

    Raises:
        UserError: If it does not start, for example for want of a key.
    """

    def __init__(self, options: Options) -> None:
        import wandb

        note = options.run_dir / layout.LOGS / "wandb-id"
        # Where it finds no such folder, wandb may take the system's temporary one without a word.
        make_folder(note.parent)
        name = note.read_text() if note.exists() else secrets.token_hex(8)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "noisy-model-learning"),
                name=options.run_dir.name,
                id=name,
                resume="allow",
                dir=str(options.run_dir / layout.LOGS),
                config={
                    "noise": options.noise,
                    "seed": options.seed,
                    "engine": options.engine,
                    "recipe_name": options.recipe_name,
                    "recipe": options.recipe.resolved(),
                },
            )
        except (wandb.Error, OSError) as error:
            raise UserError(
                f"--wandb: {error}", mend="set WANDB_API_KEY, or WANDB_MODE=offline and `wandb sync` later"
            ) from error
        write_bytes(note, name.encode())
        # Steps go back after a crash; W&B's own counter must not.
        self._run.define_metric("trained_steps")
        self._run.define_metric("*", step_metric="trained_steps")

    def __call__(self, line: dict[str, Any]) -> None:
        """Log a line."""
        self._run.log({**_numbers(line), "trained_steps": line["step"]})

    def close(self) -> None:
        """Write, or send, what is left."""
        self._run.finish()


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line under EVENT/NAME, those within its records too."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if name in ("step", "time"):
            continue
        if isinstance(value, dict):
            found |= {f"{line['event']}/{name}/{inner}": number for inner, number in value.items()}
        elif isinstance(value, int | float) and name != "slowest_rank":
            found[f"{line['event']}/{name}"] = value
    return found
