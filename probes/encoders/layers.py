"""Features of inner layers: ``timm:resnet50,layer=layer2+layer3+output``, each its own, all of one pass."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from nml.errors import UserError, unknown_name
from probes.encoders.encoder import Encoder, EncoderInfo
from probes.samples import Content
from probes.spec import Spec

OPTION = "layer"
OUTPUT = "output"
"""Stands for the features that the encoder has without the option, under the key that they have then."""

_OF_OUTPUT = ("class_embeddings", "texts")


@runtime_checkable
class Layered(Encoder, Protocol):
    """An encoder whose network can be looked into.

    Attributes:
        module: The network; layers are called as its ``named_modules`` calls them.
    """

    module: Any

    def run(self, prepared: Sequence[Any]) -> tuple[Any, Callable[[Any], Any]]:
        """Return features [B, D], and what makes features of a layer's output in the same pass."""
        ...


class LayerEncoder:
    """The features of one layer.

    Attributes:
        siblings: The encoders of all layers that were asked for together, this one included.

    Args:
        encoder: The encoder of the network.
        layer: The layer.
        together: From prepared samples to the features of all siblings.
    """

    siblings: tuple[LayerEncoder, ...]

    def __init__(
        self, encoder: Encoder, layer: str, together: Callable[[Sequence[Any]], dict[str, Any]]
    ) -> None:
        self.info: EncoderInfo = encoder.info
        if layer != OUTPUT:
            self.info = dataclasses.replace(
                encoder.info,
                name=f"{encoder.info.name},{OPTION}={layer}",
                identity={**encoder.info.identity, OPTION: layer},
            )
        self.batch_size = encoder.batch_size
        self.layer = layer
        self._encoder = encoder
        self._together = together

    def __getattr__(self, name: str) -> Any:
        # What a text tower says lies in the space of the output alone.
        if name in _OF_OUTPUT and self.layer == OUTPUT:
            return getattr(self._encoder, name)
        raise AttributeError(name)

    def prepare(self, content: Content) -> Any:
        """Return what the network reads, the same for all layers."""
        return self._encoder.prepare(content)

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return features, float32 [B, D]."""
        features: npt.NDArray[np.float32] = self._together(prepared)[self.layer]
        return features

    def encode_together(self, prepared: Sequence[Any]) -> list[npt.NDArray[np.float32]]:
        """Return the features of all siblings, in their order, of one forward pass."""
        found = self._together(prepared)
        return [found[sibling.layer] for sibling in self.siblings]


def split_layers(spec: Spec) -> tuple[Spec, tuple[str, ...]]:
    """Return a specification without its option ``layer``, and the layers that it names.

    Raises:
        UserError: If a layer is named twice.
    """
    if OPTION not in spec.options:
        return spec, ()
    layers = tuple(filter(None, spec.options[OPTION].split("+")))
    if not layers or len(set(layers)) < len(layers):
        raise UserError(
            f"--encoder {spec.text}: {OPTION} {spec.options[OPTION]}",
            possible="NAME, or NAME+NAME, each once",
        )
    parts = [part for part in spec.text.split(",") if not part.startswith(f"{OPTION}=")]
    kind, _, rest = parts[0].partition(":")
    # Where it stands first: timm:layer=...
    parts = [kind + ":", *parts[1:]] if rest.startswith(f"{OPTION}=") else parts
    options = {name: value for name, value in spec.options.items() if name != OPTION}
    return spec._replace(text=",".join(parts), options=options), layers


def of_layers(encoder: Encoder, layers: Sequence[str]) -> LayerEncoder:
    """Return the encoder of the first of some layers; the others are its ``siblings``.

    Raises:
        UserError: If the encoder has no such layer, or one that gives no features.
    """
    where = f"--encoder {encoder.info.name}: {OPTION}"
    if not isinstance(encoder, Layered):
        raise UserError(
            f"{where} {'+'.join(layers)}: encoders of kind {encoder.info.kind} have none",
            mend="leave it out, or name a network that runs here: timm, open_clip, transformers, ...",
        )
    modules = {name: module for name, module in encoder.module.named_modules() if name}
    for layer in layers:
        if layer not in modules and layer != OUTPUT:
            raise unknown_name(where, layer, [*modules, OUTPUT])
    inner = {layer: modules[layer] for layer in layers if layer != OUTPUT}
    together = functools.partial(_encode, encoder, inner, where)
    # Now: what a layer gives is not known before it has run.
    blank = "a" if encoder.info.modality == "text" else Image.new("RGB", (32, 32))
    together([encoder.prepare(blank)])
    siblings = tuple(LayerEncoder(encoder, layer, together) for layer in layers)
    for sibling in siblings:
        sibling.siblings = siblings
    return siblings[0]


def _encode(
    encoder: Layered, inner: dict[str, Any], where: str, prepared: Sequence[Any]
) -> dict[str, npt.NDArray[np.float32]]:
    import torch

    outputs: dict[str, Any] = {}

    def keep(layer: str, module: Any, inputs: Any, output: Any) -> None:  # noqa: ARG001 - a hook of torch
        outputs[layer] = output

    hooks = [module.register_forward_hook(functools.partial(keep, layer)) for layer, module in inner.items()]
    try:
        usual, pool = encoder.run(prepared)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.inference_mode():
        found = {OUTPUT: usual} | {layer: pool(_states(layer, outputs, where)) for layer in inner}
        for layer, features in found.items():
            if features.ndim != 2 or len(features) != len(prepared):
                raise UserError(f"{where} {layer}: gives {list(features.shape)} of {len(prepared)} samples")
        return {layer: features.to("cpu", torch.float32).numpy() for layer, features in found.items()}


def _states(layer: str, outputs: dict[str, Any], where: str) -> Any:
    """Return the tensor that a layer gave: the first of several."""
    import torch

    if layer not in outputs:
        raise UserError(f"{where} {layer}: does not run where features are computed", mend="name another")
    output = outputs[layer]
    while isinstance(output, tuple | list | dict) and output:
        output = next(iter(output.values() if isinstance(output, dict) else output))
    if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.ndim not in (2, 3, 4):
        shown = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UserError(f"{where} {layer}: gives {shown}", possible="[B, D], [B, T, D] or [B, C, H, W]")
    return output
