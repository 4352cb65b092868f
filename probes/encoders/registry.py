"""Encoders by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nml import layout
from nml.errors import UserError
from nml.registry import Registry
from probes.encoders.encoder import Encoder, Settings
from probes.encoders.layers import LayerEncoder, of_layers, split_layers
from probes.spec import Spec, split_spec

ENCODERS = Registry(
    "nml.encoders", kind="encoder", where="--encoder", listing="python -m probes.encoders list"
)
"""The registered kinds of encoders."""
RUNS = Path(layout.RUNS)
"""Where the newest run is looked for."""

EncoderOpener = Callable[[Spec, Settings], Encoder]
"""What an entry point of the group ``nml.encoders`` names."""


def open_encoder(text: str, settings: Settings | None = None) -> Encoder:
    """Return the encoder a user named, for example ``timm:resnet50``; of several layers the first.

    Raises:
        UserError: If the kind is unknown or its weights cannot be had; one line with the mend.
    """
    spec = split_spec(text)
    return open_with(ENCODERS.load(spec.kind), spec, settings or Settings())


def open_with(opener: EncoderOpener, spec: Spec, settings: Settings) -> Encoder:
    """Return what an opener makes of a specification, or the encoder of the first layer that it names.

    Raises:
        UserError: As :func:`open_encoder`, and if there is no such layer.
    """
    bare, layers = split_layers(spec)
    encoder = opener(bare, settings)
    return of_layers(encoder, layers) if layers else encoder


def open_encoders(text: str, settings: Settings | None = None) -> Sequence[Encoder]:
    """Return all that a user named in one specification: of ``layer=a+b`` an encoder a layer."""
    encoder = open_encoder(text, settings)
    return encoder.siblings if isinstance(encoder, LayerEncoder) else (encoder,)


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


PAPER_MODELS = {
    "ResNet152x2 (BiT)": "timm:resnetv2_152x2_bit.goog_in21k",
    "Swin-L (IN-21K)": "timm:swin_large_patch4_window7_224.ms_in22k",
    "EfficientNet-B3 (noisy student)": "timm:tf_efficientnet_b3.ns_jft_in1k",
    "ViT-L (LAION-2B)": "open_clip:ViT-L-14/laion2b_s32b_b82k",
    "ConvNeXt-L (LAION-2B)": "open_clip:convnext_large_d_320/laion2b_s29b_b131k_ft_soup",
    "BERT-L": "transformers:google-bert/bert-large-uncased",
    "RoBERTa-L": "transformers:FacebookAI/roberta-large",
    "GPT-2": "transformers:openai-community/gpt2,pooling=last",
    "text-ada-002 (closed; its successor)": "api:text-embedding-3-small",
}
"""The public models of the paper's Table 2, and what they are called here."""
