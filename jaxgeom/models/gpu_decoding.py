"""For GPUs alone: decoding with the layers one after the other, each with weights and cache of its own.

A scan over stacked layers copies a layer's weights and its part of the cache out of the stack before any product reads
them. A token's products do little more than read weights and cache once, so the copies double and treble its time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgeom.models.attention import attend_cache
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.layers import Spread, as_it_lies, block, split_layers

Tables = tuple[Float[Array, "batch 1 half"], Float[Array, "batch 1 half"]]


def split_weights(layers: PyTree, unembedding: Float[Array, "dim vocab"], dtype: Any) -> dict[str, Any]:
    """What `decode_layers` reads, made once for all steps: a tree a layer, and the head, in the compute dtype."""
    layers = jax.tree.map(lambda leaf: leaf.astype(dtype), layers)
    return {"layers": split_layers(layers), "head": unembedding.astype(dtype)}


def split_cache(
    cache: Mapping[str, Float[Array, "layer batch kv slots hd"]], room: int
) -> dict[str, list[Float[Array, "batch kv more hd"]]]:
    """A stacked cache as one array a layer, with `room` empty slots behind those that are filled."""
    return {
        name: [jnp.pad(one, ((0, 0), (0, 0), (0, room), (0, 0))) for one in split_layers(stacked)]
        for name, stacked in cache.items()
    }


def decode_layers(
    config: Qwen3Config,
    layers: Sequence[Mapping[str, Any]],
    x: Float[Array, "batch 1 dim"],
    tables: Tables,
    cache: Mapping[str, Sequence[Array]],
    index: Int[Array, ""],
    visible: Bool[Array, "batch slots"],
    *,
    spread: Spread = as_it_lies,
) -> tuple[Float[Array, "batch 1 dim"], dict[str, list[Array]]]:
    """One token per request through all layers, whose keys and values go to slot `index` of the cache.

    Args:
        config: architecture.
        layers: as `split_weights` returns them.
        x: the embedded tokens, in the compute dtype.
        tables: cosines and sines of the tokens' positions.
        cache: `k` and `v`, as `split_cache` returns them.
        index: the slot to write.
        visible: which slots a request may attend to, the new one included.
        spread: of `layers.block`.
    Returns:
        The residual stream after the last layer, and the cache with the slot written.
    """
    written: dict[str, list[Array]] = {"k": [], "v": []}
    for layer, keys, values in zip(layers, cache["k"], cache["v"], strict=True):

        def attend(q: Array, k: Array, v: Array, keys: Array = keys, values: Array = values) -> tuple[Array, Any]:
            new_keys, new_values = (
                jax.lax.dynamic_update_slice(held, new.swapaxes(1, 2), (0, 0, index, 0))
                for held, new in ((keys, k), (values, v))
            )
            return attend_cache(q, new_keys, new_values, visible), (new_keys, new_values)

        x, (new_keys, new_values) = block(config, layer, x, *tables, attend, spread=spread)
        written["k"].append(new_keys)
        written["v"].append(new_values)
    return x, written
