"""Encoders by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nml import layout
from nml.errors import UserError
from nml.registry import Registry
from probes.encoders.encoder import Encoder, Settings
from probes.spec import Spec, split_spec

ENCODERS = Registry(
    "nml.encoders", kind="encoder", where="--encoder", listing="python -m probes.encoders list"
)
RUNS = Path("runs")

EncoderOpener = Callable[[Spec, Settings], Encoder]
"""What an entry point of the group ``nml.encoders`` names."""


def open_encoder(text: str, settings: Settings | None = None) -> Encoder:
    """Return the encoder a user named, for example ``timm:resnet50``.

    Raises:
        UserError: If the kind is unknown or its weights cannot be had; one line with the mend.
    """
    spec = split_spec(text)
    opener: EncoderOpener = ENCODERS.load(spec.kind)
    return opener(spec, settings or Settings())


def open_checkpoint(path: Path, settings: Settings | None = None) -> Encoder:
    """Return the encoder that pre-training exported; ``path`` is a run, an export or a checkpoint."""
    opener: EncoderOpener = ENCODERS.load("checkpoint")
    return opener(Spec(f"checkpoint:{path}", "checkpoint", (str(path),), {}), settings or Settings())


def newest_run(runs: Path = RUNS) -> Path:
    """Return the pre-training run that finished last.

    Raises:
        UserError: If there is none.
    """
    finished = [
        run for run in runs.glob("*") if layout.is_done(run) and layout.is_export(run / layout.EXPORT)
    ]
    if finished:
        return max(finished, key=lambda run: ((run / layout.DONE).stat().st_mtime_ns, run.name))
    begun = sum(1 for _ in runs.glob(f"*/{layout.CONFIG}"))
    raise UserError(
        f"no finished pre-training run in {runs}/" + (f" ({begun} not finished)" if begun else ""),
        mend="pre-train one: python slurm/launch.py pretrain --noise 0.2 --nodes 8, "
        "or name an encoder: --checkpoint PATH or --encoder timm:resnet50",
    )
