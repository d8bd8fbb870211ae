"""Qwen3, dense and mixture of experts: a Flax module that declares parameters and applies the functions of `layers`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.float32_products import float32_products
from jaxgeom.models import cpu_layers, gpu_decoding, tpu_experts
from jaxgeom.models.attention import attend_cache, attend_cache_and_own, causal_attention, resolve_attention
from jaxgeom.models.config import Qwen3Config
from jaxgeom.models.layers import Spread, block, rms_norm
from jaxgeom.models.moe import mixture_by_rows
from jaxgeom.models.recomputation import keep_everything, keep_products
from jaxgeom.models.rope import rope_frequencies, rope_tables
from jaxgeom.objectives.log_probs import without_padding
from jaxgeom.sharding import spread_columns, spread_rows

Cache = Mapping[str, Any]
"""`k` and `v` as `Qwen3.prefill` returns them."""


class Qwen3(nn.Module):
    """A Qwen3 language model; `model.apply({"params": params}, tokens) -> logits`.

    Parameters keep the dtype that they are given in; `dtype` is that of activations and matmul inputs. Norms, softmax
    and logits are float32.

    Attributes:
        config: architecture.
        dtype: compute dtype.
        remat: recompute each block in the backward pass. Without it a scan keeps the matrix products and
            attention, and computes again what is elementwise (see `recomputation`).
        attention: `auto` (by platform and length), `plain`, `chunked`, `cudnn` or `splash`.
        platform: "cpu", "gpu" or "tpu", as `sharding.platform_of` the parameters says: which of the forms that are for
            one platform alone are used (attention kernels, `cpu_layers`, `gpu_decoding`, `tpu_experts`). None: none.
        mesh: devices that the parameters lie on, for kernels that see one device's rows and heads; None for one.
        vocabulary: rows of the embedding from here on are padding, whose logits give no probability; None: none are.
    """

    config: Qwen3Config
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"
    platform: str | None = None
    mesh: jax.sharding.Mesh | None = None
    vocabulary: int | None = None

    def setup(self) -> None:
        self.embed = self.param("embed", _init_embed, self.config)
        self.layers = self.param("layers", _init_layers, self.config)
        self.norm = self.param("norm", lambda key, dim: {"scale": jnp.ones(dim)}, self.config.hidden_size)
        if not self.config.tie_word_embeddings:
            self.head = self.param("head", _init_head, self.config)

    def __call__(
        self, tokens: Int[Array, "batch time"], *, valid: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch time vocab"]:
        """Logits of the next token, float32.

        Args:
            tokens: token ids.
            valid: marks the real tokens, so padding on either side is never attended; None where all are real.
        """
        return self.unembed(self.hidden_states(tokens, valid=valid))

    def hidden_states(
        self,
        tokens: Int[Array, "batch time"],
        *,
        valid: Bool[Array, "batch time"] | None = None,
        segments: Int[Array, "batch time"] | None = None,
    ) -> Float[Array, "batch time dim"]:
        """The normed last hidden states, in the compute dtype: what `unembed` turns into logits.

        Args:
            tokens: token ids.
            valid: marks the real tokens; None where all are real.
            segments: of rows that hold several sequences behind one another: the number of each column's sequence. A
                token sees those of its own sequence, and its position counts from that sequence's first. Padding has a
                number of its own, and `valid` is not needed.
        """
        return self._run(tokens, valid if segments is None else None, segments=segments)[0]

    def unembed(self, hidden: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """Logits of normed hidden states, float32."""
        return self._logits(hidden, self._unembedding().astype(hidden.dtype))

    def prefill(
        self, tokens: Int[Array, "batch time"], *, valid: Bool[Array, "batch time"], room: int
    ) -> tuple[Float[Array, "batch dim"], Cache]:
        """Hidden state of the last column, and the keys and values of every layer with `room` empty slots behind them.

        Both are stacked, `[layer, batch, kv, slots, head_dim]`; where `is_unrolled`, lists of what
        `cpu_layers.cache_layer` makes; on a GPU, of what `gpu_decoding.split_cache` makes.

        Args:
            tokens: prompts, padded on their left.
            valid: which tokens are real.
            room: slots to leave for what will be decoded.
        """
        return self._run(tokens, valid, room=room)

    def decoding_weights(self) -> dict[str, Any]:
        """What `decode` reads beside the parameters where `decodes_apart`: made once for all steps."""
        if self.is_unrolled:
            return cpu_layers.turn_weights(self.config, dict(self.layers), self.norm, self._unembedding())
        return gpu_decoding.split_weights(dict(self.layers), self._unembedding(), self.dtype)

    def decode(
        self,
        tokens: Int[Array, " batch"],
        cache: Cache,
        *,
        weights: Mapping[str, Any] | None = None,
        positions: Int[Array, " batch"],
        index: Int[Array, ""],
        visible: Bool[Array, "batch slots"],
    ) -> tuple[Float[Array, "batch vocab"], Cache]:
        """One token per row: writes its keys and values to slot `index`, attends to the `visible` slots.

        Args:
            tokens: the newest token of each row.
            cache: `k` and `v` as `prefill` returns them, with room for the new slots.
            weights: where `decodes_apart`, what `decoding_weights` returns.
            positions: rotary position of each row's token.
            index: the slot to write, the same for all rows.
            visible: which slots a row may attend to, the new one included.
        Returns:
            Logits of the next token, float32, and the cache with the slot written.
        """
        config = self.config
        cos, sin = rope_tables(positions[:, None], *self._frequencies())
        x = self.embed["embedding"][tokens[:, None]].astype(self.dtype)
        if self.is_unrolled:
            assert weights is not None
            tables = cos[:, 0], sin[:, 0]
            logits, cache = cpu_layers.decode_columns(config, weights, x[:, 0], tables, cache, index, visible)
            return without_padding(logits, self.vocabulary), cache
        spread = partial(spread_columns, mesh=self.mesh)
        with float32_products(self.dtype):
            if weights is not None:
                x, cache = gpu_decoding.decode_layers(
                    config, weights["layers"], x, (cos, sin), cache, index, visible, spread=spread
                )
                return self._logits(spread(self._final_norm(x)[:, 0]), weights["head"]), cache
            x, cache = self._scan_decode(x, cos, sin, cache, index, visible, spread)
        return self.unembed(spread(self._final_norm(x)[:, 0])), cache

    def _scan_decode(
        self, x: Array, cos: Array, sin: Array, cache: Cache, index: Array, visible: Array, spread: Spread
    ) -> tuple[Array, Cache]:
        """The residual stream after the last layer, and the stacked cache with slot `index` written."""
        before = visible & (jnp.arange(visible.shape[1]) != index)

        def step(carry, scanned):
            x, keys, values = carry
            layer, number = scanned

            def attend(q, k, v):
                new_keys = jax.lax.dynamic_update_slice(keys, _to_slot(k), (number, 0, 0, index, 0))
                new_values = jax.lax.dynamic_update_slice(values, _to_slot(v), (number, 0, 0, index, 0))
                # Read as it came: of a stack just written a layer would be copied out before a product reads it.
                out = attend_cache_and_own(q, k, v, keys[number], values[number], before)
                return out, (new_keys, new_values)

            x, (keys, values) = block(self.config, layer, x, cos, sin, attend, spread=spread)
            return (x, keys, values), None

        layers = (dict(self.layers), jnp.arange(self.config.num_hidden_layers))
        (x, keys, values), _ = jax.lax.scan(step, (x, cache["k"], cache["v"]), layers)
        return x, {"k": keys, "v": values}

    @property
    def is_unrolled(self) -> bool:
        """Whether `cpu_layers` runs the layers, in place of a scan."""
        return cpu_layers.is_unrolled(self.config, self.platform, remat=self.remat)

    @property
    def decodes_apart(self) -> bool:
        """Whether `decode` reads weights laid out for it, and a cache in lists over the layers."""
        return self.is_unrolled or self.platform == "gpu"

    def _run(
        self, tokens: Array, valid: Array | None, *, room: int | None = None, segments: Array | None = None
    ) -> tuple[Array, Cache]:
        """Normed hidden states of all columns; with `room`, of the last one, and a cache with that many free slots."""
        with float32_products(self.dtype):
            return self._run_blocks(tokens, valid, room=room, segments=segments)

    def _run_blocks(
        self, tokens: Array, valid: Array | None, *, room: int | None, segments: Array | None
    ) -> tuple[Array, Cache]:
        time = tokens.shape[1]
        kind = resolve_attention(self.attention, platform=self.platform, dtype=self.dtype, time=time)
        positions, order = jnp.arange(time)[None], None
        if segments is not None:
            positions = positions - _first_columns(segments)
        if valid is not None and kind in ("cudnn", "splash"):
            # Real tokens first: causality then hides the padding and the kernels need no mask.
            order = jnp.argsort(~valid, axis=1, stable=True)
            tokens, valid = jnp.take_along_axis(tokens, order, axis=1), None
        elif valid is not None:
            positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        back = None if order is None else jnp.argsort(order, axis=1)
        tables = rope_tables(positions, *self._frequencies())
        x = self._look_up(tokens)
        lighten = keep_everything if self.remat or room is not None else keep_products
        is_tpu = self.platform == "tpu" and jnp.dtype(self.dtype) == jnp.bfloat16
        grouped = tpu_experts.ragged_product if is_tpu else jax.lax.ragged_dot
        mixture = partial(mixture_by_rows, mesh=self.mesh, grouped=grouped)

        def cached(k, v):
            if room is None:
                return {}
            k, v = _in_order(k, back), _in_order(v, back)
            if self.platform == "gpu":
                return {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2)}
            k, v = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (k, v))
            return cpu_layers.cache_layer(k, v) if self.is_unrolled else {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2)}

        def attend(q, k, v):
            return causal_attention(q, k, v, valid=valid, segments=segments, kind=kind, mesh=self.mesh), cached(k, v)

        def attend_last(q, k, v):
            visible = jnp.ones(tokens.shape, bool) if valid is None else valid
            return attend_cache(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible), cached(k, v)

        def step(x, layer):
            return block(self.config, layer, x, *tables, attend, mixture=mixture, lighten=lighten)

        if self.is_unrolled:
            # A sampler needs the last column alone, where that is the newest token's.
            last = attend_last if room is not None and order is None else None
            x, kept = cpu_layers.run_layers(self.config, dict(self.layers), x, tables, attend, attend_last=last)
            cache: Cache = {name: [of_layer[name] for of_layer in kept] for name in kept[0]}
        else:
            step = jax.checkpoint(step, prevent_cse=False) if self.remat else step  # a scan keeps its steps apart
            x, cache = jax.lax.scan(step, x, dict(self.layers))
            if room is not None and self.platform == "gpu":
                cache = gpu_decoding.split_cache(cache, room)
        x = _in_order(x, back)
        return self._final_norm(x if room is None else x[:, -1]), cache

    def _logits(self, hidden: Array, kernel: Array) -> Array:
        """Of normed hidden states by a kernel `[dim, vocab]` of their dtype, float32."""
        with float32_products(hidden.dtype):
            logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        return without_padding(logits, self.vocabulary)

    def _unembedding(self) -> Array:
        return self.embed["embedding"].T if self.config.tie_word_embeddings else self.head["kernel"]

    def _look_up(self, tokens: Array) -> Array:
        """The tokens' embeddings; none of the padding token's gradient, as PyTorch's embedding has it."""
        x = spread_rows(self.embed["embedding"][tokens], self.mesh)
        if self.config.pad_token_id is not None:
            x = jnp.where((tokens == self.config.pad_token_id)[..., None], jax.lax.stop_gradient(x), x)
        return x.astype(self.dtype)

    def _frequencies(self):
        config = self.config
        return rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling, config.max_position_embeddings)

    def _final_norm(self, x: Array) -> Array:
        return rms_norm(x, self.norm["scale"], self.config.rms_norm_eps)


def unembedding(config: Qwen3Config, params: Mapping[str, Any]) -> Float[Array, "dim vocab"]:
    """The kernel that turns hidden states into logits: the head's, or the tied embedding transposed."""
    return params["embed"]["embedding"].T if config.tie_word_embeddings else params["head"]["kernel"]


def _to_slot(x: Array) -> Array:
    """`[batch, 1, kv, hd]` to the cache's `[1, batch, kv, 1, hd]`."""
    return x.swapaxes(1, 2)[None]


def _in_order(x: Array, back: Array | None) -> Array:
    """The columns of `[batch, time, ...]` put back where they came from."""
    return x if back is None else jnp.take_along_axis(x, back.reshape(back.shape + (1,) * (x.ndim - 2)), axis=1)


def _normal(key: Array, shape: tuple[int, ...], config: Qwen3Config) -> Array:
    return config.initializer_range * jax.random.normal(key, shape, jnp.float32)


def _init_embed(key: Array, config: Qwen3Config) -> dict[str, Array]:
    return {"embedding": _normal(key, (config.vocab_size, config.hidden_size), config)}


def _init_head(key: Array, config: Qwen3Config) -> dict[str, Array]:
    return {"kernel": _normal(key, (config.hidden_size, config.vocab_size), config)}


def _init_layers(key: Array, config: Qwen3Config) -> dict[str, Any]:
    """All blocks, stacked on axis 0: normal(0, initializer_range) kernels, zero biases, unit scales."""
    count, dim, hd = config.num_hidden_layers, config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    shapes: dict[str, Any] = {
        "q": (dim, heads, hd), "k": (dim, kv, hd), "v": (dim, kv, hd), "o": (heads, hd, dim),
    }  # fmt: skip
    if config.is_moe:
        experts, inner = (config.num_experts,), config.moe_intermediate_size
        shapes["router"] = (dim, config.num_experts)
    else:
        experts, inner = (), config.intermediate_size
    shapes |= {"gate": (*experts, dim, inner), "up": (*experts, dim, inner), "down": (*experts, inner, dim)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    kernels = {name: {"kernel": _normal(keys[name], (count, *shape), config)} for name, shape in shapes.items()}
    attention = {name: kernels.pop(name) for name in ("q", "k", "v", "o")}
    if config.attention_bias:
        for name, shape in {"q": (heads, hd), "k": (kv, hd), "v": (kv, hd), "o": (dim,)}.items():
            attention[name]["bias"] = jnp.zeros((count, *shape))
    for name in ("q_norm", "k_norm"):
        attention[name] = {"scale": jnp.ones((count, hd))}
    norms = {name: {"scale": jnp.ones((count, dim))} for name in ("input_norm", "post_norm")}
    return {**norms, "attention": attention, "mlp": kernels}


def _first_columns(segments: Int[Array, "batch time"]) -> Int[Array, "batch time"]:
    """The column at which the sequence of each column begins."""
    columns = jnp.arange(segments.shape[1])
    begins = jnp.concatenate([jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    return jax.lax.cummax(jnp.where(begins, columns, 0), axis=1)
