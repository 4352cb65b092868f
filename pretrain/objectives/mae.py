"""MAE (He et al. 2022): a transformer sees a quarter of an image, and a small one draws the rest of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from nml.errors import UserError
from nml.objectives import Takes
from nml.recipe import Recipe
from nml.recipe_checks import below_one, positive
from pretrain.engines import Engine
from pretrain.loading import Batch
from pretrain.models import build_network
from pretrain.objective import Objective, Setting
from pretrain.upload import sent


@dataclass(frozen=True, kw_only=True)
class MaeOptions:
    """Of the masked autoencoder; the defaults are the paper's.

    Attributes:
        mask: Share of an image's patches that the encoder does not see.
        decoder_dim: Width of the decoder, a multiple of four times its heads.
        decoder_depth: Its blocks.
        decoder_heads: Heads of each.
        normalised: Whether a patch is to be drawn as its deviations from its own mean in units of its own
            standard deviation, or in the values that the network sees.
    """

    mask: float = 0.75
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    normalised: bool = True

    def __post_init__(self) -> None:
        below_one("recipe.options", self, "mask")
        positive("recipe.options", self, "mask", "decoder_dim", "decoder_depth", "decoder_heads")
        if self.decoder_dim % (4 * self.decoder_heads):
            raise UserError(
                f"recipe.options.decoder_dim {self.decoder_dim}: does not divide into its heads",
                possible=f"multiples of {4 * self.decoder_heads}",
            )


class Visible(nn.Module):
    """Keeps some patches of an image, in the place of timm's patch dropout.

    Attributes:
        places: The patches that the next forward pass keeps, int64 [n, k]; None for all.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.places: torch.Tensor | None = None
        self._prefix = prefix

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return those of [n, prefix + L, D]; class tokens and registers stay."""
        if self.places is None:
            return tokens
        before, patches = tokens[:, : self._prefix], tokens[:, self._prefix :]
        return torch.cat([before, patches.gather(1, _each(self.places, tokens.shape[2]))], dim=1)


class Decoder(nn.Module):
    """From what the encoder made of the visible patches to the pixels of all.

    Args:
        encoder: timm's.
        options: The objective's.
    """

    def __init__(self, encoder: Any, options: MaeOptions) -> None:
        from timm.layers import build_sincos2d_pos_embed
        from timm.models.vision_transformer import Block

        super().__init__()
        width, side = options.decoder_dim, encoder.patch_embed.patch_size
        self.prefix = int(encoder.num_prefix_tokens)
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.hidden = nn.Parameter(torch.zeros(1, 1, width))
        grid = build_sincos2d_pos_embed(list(encoder.patch_embed.grid_size), width)
        self.register_buffer("positions", torch.cat([torch.zeros(self.prefix, width), grid])[None])
        blocks = (Block(width, options.decoder_heads, qkv_bias=True) for _ in range(options.decoder_depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * side[0] * side[1])
        nn.init.normal_(self.hidden, std=0.02)

    def forward(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return [n, L, 3 P^2], from tokens [n, prefix + k, D] of the patches at ``places`` [n, k]."""
        seen = self.embed(tokens)
        positions: Any = self.positions
        number, width = positions.shape[1] - self.prefix, seen.shape[2]
        whole = self.hidden.to(seen.dtype).expand(len(seen), number, width)
        whole = whole.scatter(1, _each(places, width), seen[:, self.prefix :])
        whole = torch.cat([seen[:, : self.prefix], whole], dim=1) + positions
        drawn: torch.Tensor = self.pixels(self.norm(self.blocks(whole))[:, self.prefix :])
        return drawn


class Masked(nn.Module):
    """An encoder of timm's that can be shown a part of its patches, and what draws the others.

    The encoder is called as a whole, whatever it sees: what shards it hangs on that call.

    Args:
        encoder: The encoder.
        options: The objective's.
    """

    def __init__(self, encoder: Any, options: MaeOptions) -> None:
        super().__init__()
        encoder.patch_drop = Visible(int(encoder.num_prefix_tokens))
        self.encoder, self.decoder = encoder, Decoder(encoder, options)
        self._tokens: torch.Tensor | None = None
        encoder.norm.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, tokens: torch.Tensor) -> None:  # noqa: ARG002 - torch's
        self._tokens = tokens

    def forward(self, images: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """Return features [n, D] of whole images, or, of those that are seen at ``places``, all patches."""
        self.encoder.patch_drop.places = places
        features: torch.Tensor = self.encoder(images)
        tokens, self._tokens = self._tokens, None
        if places is None:
            return features
        drawn: torch.Tensor = self.decoder(tokens, places)
        return drawn

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are spared: positions and tokens, as timm has it."""
        spared: Any = self.encoder.no_weight_decay
        return {"decoder.hidden", *(f"encoder.{name}" for name in spared())}


class MAE(Objective):
    """The mean squared error of the patches that the encoder did not see.

    Which those are is a function of the seed, the step and the sample, whatever the number of processes.

    Raises:
        UserError: If the model is no vision transformer, or sees images of another size.
    """

    takes: ClassVar[Takes] = "any"
    encoder: ClassVar[str] = "encoder."
    judged_by: ClassVar[Literal["scores", "neighbours"]] = "neighbours"
    Options: ClassVar[type[Any]] = MaeOptions
    small: ClassVar[dict[str, Any]] = {
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 3},
            "batch_norm": "local",
        },
        "options": {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2},
    }

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        super().__init__(recipe, setting)
        self._patch, self._number = 0, 0

    def network(self) -> nn.Module:
        """See :class:`pretrain.objective.Objective`."""
        from timm.models.vision_transformer import VisionTransformer

        encoder = build_network(self.architecture, self.setting.seed)
        name, size = self.recipe.model.name, self.recipe.data.size
        if not isinstance(encoder, VisionTransformer) or not isinstance(encoder.fc_norm, nn.Identity):
            raise UserError(
                f"recipe.model.name {name}: mae masks patches of a vision transformer that norms its tokens "
                "before it pools them",
                possible="timm's vit_*, without the argument global_pool",
            )
        embed: Any = encoder.patch_embed
        if tuple(embed.img_size) != (size, size) or len(set(embed.patch_size)) > 1:
            raise UserError(
                f"recipe.data.size {size}: {name} sees {list(embed.img_size)} in patches of "
                f"{list(embed.patch_size)}",
                possible="square patches of images of that size",
                mend=f"set recipe.model.kwargs img_size to {size}",
            )
        self._patch, self._number = embed.patch_size[0], embed.num_patches
        kept = self._kept
        if not 0 < kept < self._number:
            raise UserError(
                f"recipe.options.mask {self.options.mask}: of {self._number} patches {kept} are seen",
                possible="some, but not all",
            )
        return Masked(encoder, self.options)

    @property
    def _kept(self) -> int:
        return int(self._number * (1 - self.options.mask))

    def backward(self, engine: Engine, batch: Batch, step: int) -> torch.Tensor:
        """See :class:`pretrain.objective.Objective`."""

        def loss(part: Batch) -> torch.Tensor:
            places = sent(self._places(part.indices, step), part.images.device)
            drawn = engine.forward(part.images, places).float()
            errors = (drawn - self._target(part.images)).square().mean(2)
            hidden = torch.ones_like(errors).scatter(1, places, 0.0)
            return (errors * hidden).sum() / hidden.sum()

        return self.mean_over_parts(engine, batch, step, loss)

    def _places(self, samples: torch.Tensor, step: int) -> torch.Tensor:
        """Return the patches of each sample that are seen, int64 [n, k]."""
        drawn = []
        for sample in samples.tolist():
            text = f"mask {self.setting.seed} {step} {sample}"
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
            drawn.append(torch.randperm(self._number, generator=generator)[: self._kept])
        return torch.stack(drawn)

    def _target(self, images: torch.Tensor) -> torch.Tensor:
        """Return what is to be drawn, [n, L, 3 P^2], of images [n, 3, H, W]."""
        side = self._patch
        cut = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if not self.options.normalised:
            return patches
        mean, variance = patches.mean(2, keepdim=True), patches.var(2, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def scorer(self, engine: Engine) -> Callable[[torch.Tensor], torch.Tensor]:
        """See :class:`pretrain.objective.Objective`: the encoder's features of whole images."""

        def features(images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = engine.forward(images)
            return found.float()

        return features


def _each(places: torch.Tensor, width: int) -> torch.Tensor:
    return places.unsqueeze(2).expand(-1, -1, width)
