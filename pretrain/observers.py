"""Who else hears of each metrics line: the terminal, TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nml import cli
from nml.errors import UserError
from pretrain import layout
from pretrain.options import Options

Observer = Callable[[dict[str, Any]], None]


def build_observers(options: Options, steps_per_epoch: int) -> list[Observer]:
    """Return what the options ask for, the terminal always.

    Raises:
        UserError: If an extra is not installed.
    """
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

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line."""
        epoch = -(-line["step"] // self._steps_per_epoch)
        if line["event"] == "validation":
            top1, top5 = 100 * line["top1"], 100 * line["top5"]
            self._bar.write(
                f"epoch {epoch}/{self._epochs}: validation top-1 {top1:.1f} %, top-5 {top5:.1f} %"
            )
            return
        self._bar.n = line["step"]
        shown = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        self._bar.set_postfix_str(f"loss {shown}, {line['samples_per_s']:.0f} samples/s")
        if not self._live and line["step"] % self._steps_per_epoch == 0:
            print(
                f"epoch {epoch}/{self._epochs}: loss {shown}, lr {line['lr']:.3g}, "
                f"{line['samples_per_s']:.0f} samples/s, goodput {line['goodput']:.2f}",
                flush=True,
            )


class TensorBoard:
    """Scalars of every line under RUN/logs/tensorboard."""

    def __init__(self, options: Options) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "--tensorboard: not installed", mend="pip install 'noisy-model-learning[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(options.run_dir / layout.LOGS / "tensorboard"))

    def __call__(self, line: dict[str, Any]) -> None:
        """Write a line."""
        for name, value in line.items():
            if isinstance(value, int | float) and name not in ("step", "time"):
                self._writer.add_scalar(f"{line['event']}/{name}", value, line["step"])
        if line["event"] == "validation":
            self._writer.flush()


class WandB:
    """A run of Weights & Biases, offline where WANDB_MODE says so."""

    def __init__(self, options: Options) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "--wandb: not installed", mend="pip install 'noisy-model-learning[wandb]'"
            ) from error
        self._run = wandb.init(
            project="noisy-model-learning",
            name=options.run_dir.name,
            id=options.run_dir.name,
            resume="allow",
            dir=str(options.run_dir / layout.LOGS),
            config=options.recipe.resolved(),
        )

    def __call__(self, line: dict[str, Any]) -> None:
        """Log a line."""
        numbers = {f"{line['event']}/{name}": value for name, value in line.items() if name != "event"}
        self._run.log(numbers, step=line["step"])
