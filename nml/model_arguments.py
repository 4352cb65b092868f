"""Which arguments of a model factory an export or a recipe may name.

``create_model`` of timm and of open_clip takes much more than a model's shape: files to unpickle, addresses
to download from, folders to write to. An export or a recipe comes from anywhere, so what shapes a model is
listed here, each with its kind of value, and nothing else reaches a factory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from nml.errors import UserError
from nml.untrusted import shown

Library = Literal["timm", "open_clip"]

_WORD = re.compile(r"[A-Za-z0-9_-]{0,32}")
# A number is None, too: not set. More repetitions of a block than _MOST_BLOCKS are minutes of building.
_NUMBER, _BLOCKS, _TEXT, _FLAG = "a number", "a number of blocks", "a word", "true or false"
_MOST = {_NUMBER: 1_000_000, _BLOCKS: 1_000}
_MOST_ITEMS = 64

_Kinds = Mapping[str, "str | _Kinds"]


def _kinds(numbers: str = "", blocks: str = "", words: str = "", flags: str = "") -> dict[str, Any]:
    named = ((numbers, _NUMBER), (blocks, _BLOCKS), (words, _TEXT), (flags, _FLAG))
    return {name: kind for names, kind in named for name in names.split()}


_TIMM: _Kinds = _kinds(
    numbers="num_classes in_chans img_size patch_size embed_dim embed_dims dim dims num_heads mlp_ratio "
    "mlp_ratios drop_rate drop_path_rate drop_block_rate attn_drop_rate proj_drop_rate pos_drop_rate "
    "patch_drop_rate channels width stem_width stem_size base_width cardinality output_stride growth_rate "
    "reduction_ratio window_size window_ratio kernel_size kernel_sizes init_values ls_init_value "
    "layer_scale_init_value head_init_scale head_hidden_size num_features reg_tokens bn_eps bn_momentum "
    "round_multiplier channel_multiplier down_kernel_size block_size stem_kernel_size stem_chs head_dim",
    blocks="depth depths layers num_layers block_repeats",
    words="global_pool act_layer norm_layer stem_type pos_embed pool_type weight_init",
    flags="qkv_bias qk_norm scale_attn_norm class_token no_embed_class pre_norm final_norm fc_norm "
    "dynamic_img_size dynamic_img_pad strict_img_size block_reduce_first avg_down zero_init_last "
    "use_rel_pos_bias use_abs_pos_emb use_rot_pos_emb conv_mlp conv_bias head_norm_first ape "
    "always_partition flex_window",
)
_TOWER = _kinds(
    numbers="width mlp_ratio ls_init_value",
    blocks="layers",
    words="pool_type block_type",
    flags="output_tokens final_ln_after_pool qk_norm scaled_cosine_attn scale_heads scale_attn_inner "
    "scale_attn scale_fc",
)
_OPEN_CLIP: _Kinds = {
    **_kinds(
        numbers="embed_dim init_logit_scale init_logit_bias force_patch_dropout force_image_size "
        "force_context_length",
        flags="quick_gelu force_quick_gelu custom_text force_custom_text",
    ),
    "vision_cfg": {
        **_TOWER,
        **_kinds(
            numbers="head_width patch_size image_size patch_dropout attn_pooler_queries attn_pooler_heads",
            words="pos_embed_type",
            flags="attentional_pool no_ln_pre",
        ),
    },
    "text_cfg": {
        **_TOWER,
        **_kinds(
            numbers="context_length vocab_size heads pad_id eos_id",
            words="proj_type",
            flags="embed_cls no_causal_mask proj_bias",
        ),
    },
}
_ARGUMENTS: dict[Library, _Kinds] = {"timm": _TIMM, "open_clip": _OPEN_CLIP}


def check_model_arguments(library: Library, arguments: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a model factory, each one that only shapes the model.

    Args:
        library: Whose factory.
        arguments: As a file gave them.
        where: The field they are in, for messages.

    Raises:
        UserError: If they are no fields, or one is not listed here or of another kind.
    """
    _check(_ARGUMENTS[library], arguments, where, library)
    checked: dict[str, Any] = arguments
    return checked


def _check(kinds: _Kinds, arguments: Any, where: str, library: str) -> None:
    if not isinstance(arguments, dict):
        raise UserError(f"{where} {shown(arguments)}: no arguments of a model", possible="NAME: VALUE, ...")
    for name, value in arguments.items():
        kind = kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            named = name if _is_word(name) else shown(name)
            raise UserError(
                f"{where}.{named}: not among what shapes a model of {library}",
                mend="leave it out; what may be named is listed in nml/model_arguments.py",
            )
        if not isinstance(kind, str):
            _check(kind, value, f"{where}.{name}", library)
        elif not _fits(kind, value):
            raise UserError(f"{where}.{name} {shown(value)}: not what it takes", possible=kind)


def _fits(kind: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        # Some numbers may be switched off by false; a flag or a word that is not set has its default.
        return True
    if kind == _TEXT:
        return _is_word(value)
    if isinstance(value, list | tuple):
        return len(value) <= _MOST_ITEMS and all(_fits(kind, item) for item in value)
    return kind in _MOST and isinstance(value, int | float) and abs(value) <= _MOST[kind]


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(_WORD.fullmatch(value))
