"""What a stored name says by itself: wrappers around a parameter's name, buffers, adapters, quantised weights.

What it says among the other names of its checkpoint (whether it is the text model's) is in `anatomy`.
"""

import re

_INNER_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_OUTER_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.|pretrained_model\.|language_model\.|model\.)")
_BUFFERS = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|masked_bias|causal_mask|attention_mask"
    r"|freqs_cis|num_batches_tracked|(?:rope|rotary_emb|rotary_pos_emb)\.\w+)$"
)
_ADAPTER = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.|$)")
_SCALES = re.compile(
    r"(?:\.|_)(?:weight(?:_global)?_scale(?:_inv|_2)?|input(?:_global)?_scale|weight_zero_point|codes|qweight|qzeros|g_idx|absmax|quant_map"
    r"|quant_state\.\S+|SCB|nested_absmax|nested_quant_map|weight_packed|weight_shape|scale_inv|blocks|scales)$"
)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""Keys of the embedding and of the head in the names that most decoders share."""


def without_inner_wrappers(name: str) -> str:
    """A name without what `torch.compile`, FSDP and activation checkpointing put into it."""
    return _INNER_WRAPPERS.sub("", name)


def dropped(name: str, key: str) -> str:
    """What a name has around its key: what stands before it, or the wrappers within."""
    inner, bare = dict.fromkeys(_INNER_WRAPPERS.findall(name)), without_inner_wrappers(name)
    before = bare.removesuffix(key) if bare.endswith(key) else "other words for experts"
    return " and ".join([*([before] if before else []), *inner]) or "no prefix"


def key_of(name: str) -> str:
    """What is left of a parameter's name without wrappers.

    >>> key_of("module.model.layers.0.mlp.up_proj.weight"), key_of("model.language_model.norm.weight")
    ('layers.0.mlp.up_proj.weight', 'norm.weight')
    """
    name = without_inner_wrappers(name)
    while found := _OUTER_WRAPPERS.match(name):
        name = name[found.end() :]
    return name


def is_buffer(name: str, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a tensor is none that is learned: rotary frequencies, positions, a mask of GPT-2's kind or of truths."""
    masks = re.search(r"\.(?:attn|attention)\.bias$", name) is not None and len(shape) == 4
    return dtype == "bool" or masks or _BUFFERS.search(name) is not None


def is_adapter(name: str) -> bool:
    """Whether a tensor is part of a LoRA adapter."""
    return _ADAPTER.search(name) is not None


def is_scale(name: str) -> bool:
    """Whether a tensor stands beside quantised weights: a scale, a zero point, packed blocks."""
    return _SCALES.search(name) is not None
