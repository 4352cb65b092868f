"""Encoders of transformers: ``transformers:bert-base-uncased,pooling=mean`` or a local folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nml.errors import UserError
from nml.files import sha256_file
from nml.hub import unreachable
from probes.encoders.encoder import Encoder, EncoderInfo, Settings
from probes.encoders.transformer_images import image_tower, open_image_tower
from probes.encoders.weights import RANDOM_SEED, hash_model, not_loaded
from probes.samples import Content
from probes.spec import Spec, check_options

MAX_TOKENS = 512
OPTIONS = ("pooling", "max_tokens", "revision", "prompt", "dimensions")


def _cls(states: Any, mask: Any) -> Any:  # noqa: ARG001 - one signature for all poolings
    return states[:, 0]


def _mean(states: Any, mask: Any) -> Any:
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _last(states: Any, mask: Any) -> Any:
    import torch

    return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]


POOLINGS: dict[str, Callable[[Any, Any], Any]] = {"cls": _cls, "mean": _mean, "last": _last}


def open_transformers(spec: Spec, settings: Settings) -> Encoder:
    """Return the encoder of ``spec``: a name on the hub or a local folder.

    Models of images are :func:`probes.encoders.transformer_images.open_image_tower`'s, and of models that
    read both the tower of images is taken. No code that comes with a model is run.

    Options for texts: ``pooling`` is ``cls`` (the first token), ``mean`` (over all tokens, special ones
    included) or ``last`` (default: ``last`` for left-to-right models, ``cls`` else); ``max_tokens`` cuts
    longer texts;
    ``revision`` pins a revision on the hub; ``prompt`` is put before every text, the first one of a pair;
    ``dimensions`` keeps the first of the features, as models trained for it (Matryoshka) allow. Of
    encoder-decoder models the encoder is taken.

    Raises:
        UserError: If the model cannot be had or an option is impossible.
    """
    check_options(spec, OPTIONS, where="--encoder")
    if len(spec.arguments) != 1:
        raise UserError(
            f"--encoder {spec.text}: names no single model", possible="transformers:NAME or :FOLDER"
        )
    from transformers import AutoImageProcessor, AutoTokenizer

    model, missing = _load_model(spec)
    tower = image_tower(model)
    if tower is not None:
        model = tower
        kept = {name for name, _ in tower.named_parameters()}
        missing = [name for name in missing if name in kept or name.partition(".")[2] in kept]
    loading = _loading(missing)
    if loading:
        print(f"warning: encoder {spec.text}: {loading}", file=sys.stderr)
    if tower is not None:
        processor = _from_pretrained(AutoImageProcessor, spec, "image processor")
        return open_image_tower(spec, settings, tower, processor, missing)
    tokenizer = _from_pretrained(AutoTokenizer, spec, "tokenizer")
    pooling = spec.options.get("pooling")
    if pooling is not None and pooling not in POOLINGS:
        raise UserError(f"--encoder {spec.text}: pooling {pooling}", possible=", ".join(POOLINGS))
    left_to_right = _reads_left_to_right(model, tokenizer)
    if pooling == "cls" and left_to_right:
        raise UserError(
            f"--encoder {spec.text}: pooling cls: the model reads left to right, "
            "so its first token knows nothing of the text",
            possible="last, mean",
        )
    pooling = pooling or ("last" if left_to_right else "cls")
    asked = spec.options.get("max_tokens", str(MAX_TOKENS))
    if not asked.isdigit() or int(asked) < 1:
        raise UserError(f"--encoder {spec.text}: max_tokens {asked}", possible="1 or more")
    prompt, dimensions = spec.options.get("prompt", ""), _dimensions(spec, model)
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    # RoBERTa's positions begin after its padding index.
    positions -= model.config.pad_token_id + 1 if model.config.model_type in ("roberta", "xlm-roberta") else 0
    max_tokens = min(int(asked), positions)
    if tokenizer.pad_token is None:
        # GPT-2 has none. Which token pads does not matter: padding is masked and never pooled.
        if tokenizer.eos_token is None:
            raise UserError(f"--encoder {spec.text}: the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    info = EncoderInfo(
        name=spec.text,
        kind="transformers",
        modality="text",
        identity={
            "library": "transformers",
            "architecture": model.config.model_type,
            "config": hashlib.sha256(model.config.to_json_string().encode()).hexdigest(),
            "weights_sha256": hash_model(model),
            "tokenizer": _hash_tokenizer(tokenizer),
            "pooling": pooling,
            "max_tokens": max_tokens,
            # Only where they are set: features that were computed without them keep their keys.
            **({"prompt": prompt} if prompt else {}),
            **({"dimensions": dimensions} if dimensions else {}),
        },
        versions={package: metadata.version(package) for package in ("torch", "transformers", "tokenizers")},
    )
    pool = POOLINGS[pooling]
    return TransformersEncoder(
        info,
        tokenizer,
        model,
        lambda states, mask: pool(states, mask)[:, :dimensions],
        max_tokens,
        settings,
        prompt=prompt,
    )


def _dimensions(spec: Spec, model: Any) -> int | None:
    """Return how many of the features are kept; None for all of them."""
    asked = spec.options.get("dimensions")
    if asked is None:
        return None
    width = model.config.hidden_size
    if not asked.isdigit() or not 1 <= int(asked) <= width:
        raise UserError(f"--encoder {spec.text}: dimensions {asked}", possible=f"1 to {width}")
    return int(asked) if int(asked) < width else None


def _load_model(spec: Spec) -> tuple[Any, list[str]]:
    """Return the model, of two that code and decode the first, and the parameters that its files lack."""
    import torch
    from transformers import AutoModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        # What the files lack is drawn: the same each time, or features would never be found again.
        torch.manual_seed(RANDOM_SEED)
        model, loading = _from_pretrained(
            AutoModel,
            spec,
            "model",
            use_safetensors=True,
            output_loading_info=True,
            # In the half precision that a checkpoint may be stored in, features depend on the rest of their
            # batch. The argument is called dtype since 4.56; this name is read by all versions.
            torch_dtype=torch.float32,
        )
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    model.eval()
    return model, sorted(loading["missing_keys"])


def _from_pretrained(kind: Any, spec: Spec, part: str, **options: Any) -> Any:
    """Return a part of a model: what it is, and the words for it in an error."""
    name = spec.arguments[0]
    local = Path(name).is_dir()
    revision = {} if local else {"revision": spec.options.get("revision", "main")}
    if not local:
        unreachable()
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **revision, **options)
    except (OSError, ValueError, RuntimeError) as error:
        if local:
            raise UserError(
                f"--encoder {spec.text}: {name} is no complete model: {error}",
                mend=f"save it with save_pretrained, its {part} included",
            ) from error
        mend = "download it on a machine with network and name its folder: transformers:FOLDER"
        raise not_loaded(spec.text, error, mend=mend) from error


def _loading(missing: Sequence[str]) -> str:
    """Return what is to be said of parameters that are not in a model's files."""
    missing = [key for key in missing if "pooler" not in key]
    if not missing:
        return ""
    return f"{len(missing)} parameters are not in its files and RANDOM, for example {missing[0]}"


def _reads_left_to_right(model: Any, tokenizer: Any) -> bool:
    """Whether the first token's state is the same whatever follows it.

    Tried out, not looked up: names of architectures are many, and the same one may be trained either way.
    """
    import torch

    special = set(tokenizer.all_special_ids)
    first, *others = (
        token for token in range(model.get_input_embeddings().num_embeddings) if token not in special
    )
    if not others:
        return False
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([[first, others[0]], [first, others[-1]]])).last_hidden_state
    return bool(torch.allclose(states[0, 0], states[1, 0], rtol=1e-5, atol=1e-6))


def _hash_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    return sha256_file(Path(tokenizer.vocab_file))


class TransformersEncoder:
    """A frozen text model.

    Attributes:
        module: The module.

    Args:
        info: What it is made of.
        tokenizer: From texts to tokens.
        model: The module.
        pool: From states [B, T, D] and mask [B, T] to features [B, D].
        max_tokens: Longer texts are cut.
        settings: Device and batch size.
        prompt: Put before every text.
    """

    def __init__(
        self,
        info: EncoderInfo,
        tokenizer: Any,
        model: Any,
        pool: Callable[[Any, Any], Any],
        max_tokens: int,
        settings: Settings,
        *,
        prompt: str = "",
    ) -> None:
        self._prompt = prompt
        self.info = info
        self.batch_size = settings.batch_size
        self._device = settings.torch_device()
        self._tokenizer = tokenizer
        self.module = model.to(self._device).eval().requires_grad_(False)
        self._pool = pool
        self._max_tokens = max_tokens

    def prepare(self, content: Content) -> Any:
        """Return the text, or the pair of texts, after the prompt: tokenizers work on batches."""
        if isinstance(content, str):
            return self._prompt + content
        if isinstance(content, tuple):
            return (self._prompt + content[0], *content[1:])
        raise UserError(f"encoder {self.info.name} reads texts, the task holds images")

    def encode(self, prepared: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return features, float32 [B, D]."""
        import torch

        features: npt.NDArray[np.float32] = self.run(prepared)[0].to("cpu", torch.float32).numpy()
        return features

    def run(self, prepared: Sequence[Any]) -> tuple[Any, Callable[[Any], Any]]:
        """Return features [B, D], and what makes features of a layer's states [B, T, D]."""
        import torch

        texts = [(text,) if isinstance(text, str) else text for text in prepared]
        tokens = self._tokenize(texts)
        empty = tokens["attention_mask"].sum(1) == 0
        if empty.any():
            # A model that adds no token of its own has nothing to read in an empty text but the end.
            end = self._tokenizer.eos_token or self._tokenizer.pad_token
            texts = [(end, *text[1:]) if no else text for text, no in zip(texts, empty, strict=True)]
            tokens = self._tokenize(texts)
        tokens = tokens.to(self._device)
        with torch.inference_mode():
            states = self.module(**tokens).last_hidden_state
            mask = tokens["attention_mask"]
            return self._pool(
                states, mask
            ), lambda inner: inner if inner.ndim == 2 else self._pool(inner, mask)

    def _tokenize(self, texts: Sequence[tuple[str, ...]]) -> Any:
        # Padded on the right whatever the tokenizer prefers: positions then count from the first token,
        # and no state that is pooled follows any padding.
        return self._tokenizer(
            *(list(part) for part in zip(*texts, strict=True)),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
