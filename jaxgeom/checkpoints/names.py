"""What a stored name says: wrappers around a parameter's name, buffers, towers, adapters. The one table of names.

A name's *key* is what is left without the wrappers that trainers and larger models put around it; two checkpoints whose
names differ are matched by it, and a model is loaded by it.
"""

import re
from collections.abc import Iterable

from jaxgeom.errors import UserError

_INNER_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_OUTER_WRAPPERS = re.compile(r"^(?:module\.|base_model\.model\.|pretrained_model\.|language_model\.|model\.)")
_BUFFERS = re.compile(
    r"(?:^|\.)(?:inv_freq|original_inv_freq|cos_cached|sin_cached|position_ids|masked_bias|rope\.freqs)$"
)
_TOWERS = re.compile(
    r"(?:^|\.)((?:visual|vision|image|img|video|audio|speech|vit|siglip|clip|sam|mm|multi_modal|multimodal|mtp|talker"
    r"|token2wav|code2wav|projector|connector|aligner|resampler|perceiver)(?:_\w+)*|\w+_projector)(?=\.|$)"
)
_ADAPTER = re.compile(r"\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.|$)")
_SCALES = re.compile(
    r"(?:\.|_)(?:weight_scale(?:_inv|_2)?|input_scale|qweight|qzeros|g_idx|absmax|quant_map|quant_state\.\S+|SCB"
    r"|nested_absmax|nested_quant_map|weight_packed|weight_shape|scale_inv|blocks|scales)$"
)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
"""Keys of the embedding and of the head in the names that most decoders share."""


def key_of(name: str) -> str:
    """What is left of a parameter's name without wrappers.

    >>> key_of("module.model.layers.0.mlp.up_proj.weight"), key_of("model.language_model.norm.weight")
    ('layers.0.mlp.up_proj.weight', 'norm.weight')
    """
    name = _INNER_WRAPPERS.sub("", name)
    while found := _OUTER_WRAPPERS.match(name):
        name = name[found.end() :]
    return name


def by_key(names: Iterable[str], where: str) -> dict[str, str]:
    """Names by their key.

    Raises:
        UserError: two names have one key, so that they cannot be told apart.
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(key_of(name), name)
        if other != name:
            raise UserError(f"{where}: tensors {other!r} and {name!r} are one and the same without their prefixes")
    return found


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is none that is learned: rotary frequencies, positions, a causal mask of GPT-2's kind."""
    return _BUFFERS.search(name) is not None or (
        re.search(r"\.(?:attn|attention)\.bias$", name) is not None and len(shape) == 4
    )


def tower_of(name: str) -> str | None:
    """The part beside the text model that a parameter belongs to (`vision_tower`, `visual`, `mtp`, …), None for text.

    >>> tower_of("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"), tower_of("model.norm.weight")
    ('vision_tower', None)
    """
    found = _TOWERS.search(name)
    return found.group(1) if found else None


def is_adapter(name: str) -> bool:
    """Whether a tensor is part of a LoRA adapter."""
    return _ADAPTER.search(name) is not None


def is_scale(name: str) -> bool:
    """Whether a tensor stands beside quantised weights: a scale, a zero point, packed blocks."""
    return _SCALES.search(name) is not None
