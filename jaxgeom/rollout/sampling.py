"""Sampling: prefill and decode, one jitted program each, every request with its own seed."""

import functools
from collections.abc import Sequence
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxgeom.data.buckets import bucket_length, bucket_rows
from jaxgeom.errors import UserError
from jaxgeom.models.qwen3 import Qwen3
from jaxgeom.processes import whole
from jaxgeom.rollout.choose import SamplingSettings as SamplingSettings
from jaxgeom.rollout.choose import choose_tokens
from jaxgeom.rollout.cpu_parts import count_parts, run_parts
from jaxgeom.sharding import BATCH_AXES, batch_divisor, mesh_of


@flax.struct.dataclass
class Rollout:
    """Prompts and answers side by side, on the host.

    Attributes:
        tokens: `[batch, prompt_length + max_new_tokens]`: the prompt, padded on its left, the answer, on its right.
        valid: which tokens are real.
        response_mask: which are the answer's, its stop token included.
        log_probs: of the answer's tokens under the distribution that they were drawn from, nats; 0 elsewhere.
        prompt_length: columns of the prompt, the same for all rows.
    """

    tokens: Int[np.ndarray, "batch time"]
    valid: Bool[np.ndarray, "batch time"]
    response_mask: Bool[np.ndarray, "batch time"]
    log_probs: Float[np.ndarray, "batch time"]
    prompt_length: int = flax.struct.field(pytree_node=False)

    def responses(self) -> list[list[int]]:
        """The answers as lists of token ids, the stop token included."""
        return [row[mask].tolist() for row, mask in zip(self.tokens, self.response_mask, strict=True)]


def sample(
    model: Qwen3,
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | Int[np.ndarray, " batch"],
    settings: SamplingSettings,
    *,
    pad_id: int,
    cache_length: int | None = None,
) -> Rollout:
    """Continue every prompt.

    A request's tokens depend on its prompt, its seed and the settings, not on the rest of the batch (in float32; the
    rounding of matmuls of other shapes can flip a token whose draw falls on the edge between two).

    Args:
        model: the module; its compute dtype and its platform's forms are used.
        params: its parameters, sharded or not, on devices of that platform.
        prompts: token ids, of any lengths.
        seeds: one number in [0, 2³²) per request.
        settings: how tokens are drawn.
        pad_id: token id of the padding.
        cache_length: columns of the KV cache, for the padded prompt and the answer together; the smallest bucket that
            holds them where None.
    Returns:
        The rollout, in the order of the prompts.
    Raises:
        UserError: no prompts, an empty one, a token out of range, too few seeds, or a prompt that does not fit.
    """
    _check_requests(model, prompts, seeds)
    rows, longest, new = len(prompts), max(map(len, prompts)), settings.max_new_tokens
    limit = cache_length if cache_length is not None else model.config.max_position_embeddings
    if longest + new > limit:
        name = "cache_length" if cache_length is not None else "max_position_embeddings"
        raise UserError(
            f"prompts[{max(range(rows), key=lambda i: len(prompts[i]))}] has {longest} tokens; with "
            f"max_new_tokens={new} it needs {longest + new} columns, {name} is {limit}"
        )
    width = bucket_length(longest) if cache_length is None else cache_length - new
    mesh = mesh_of(params)
    padded_rows = bucket_rows(rows, batch_divisor(mesh))
    tokens = np.full((padded_rows, width), pad_id, np.int32)
    valid = np.zeros((padded_rows, width), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        valid[row, width - len(prompt) :] = True
    row_seeds = np.zeros(padded_rows, np.uint32)
    row_seeds[:rows] = np.asarray(seeds, np.uint32)
    weights = _decoding_weights(model, params) if model.decodes_apart else None

    def answer(tokens: np.ndarray, valid: np.ndarray, row_seeds: np.ndarray) -> tuple[np.ndarray, ...]:
        logits, cache = _prefill(model, mesh, new, params, tokens, valid)
        answers, _ = _decode(model, settings, mesh, pad_id, params, weights, logits, cache, valid, row_seeds)
        return whole(answers)

    parts = count_parts(padded_rows, model.platform, mesh)
    drawn, log_probs, answered = run_parts(answer, (tokens, valid, row_seeds), parts)
    blank = np.zeros((rows, width))
    return Rollout(
        tokens=np.concatenate([tokens[:rows], drawn[:rows]], axis=1),
        valid=np.concatenate([valid[:rows], answered[:rows]], axis=1),
        response_mask=np.concatenate([blank.astype(bool), answered[:rows]], axis=1),
        log_probs=np.concatenate([blank.astype(np.float32), log_probs[:rows]], axis=1),
        prompt_length=width,
    )


def sampler_programs(
    model: Qwen3, params: Any, settings: SamplingSettings, *, rows: int, width: int, pad_id: int
) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The programs that `sample` runs on `rows` prompts of at most `width` tokens, and what each is called with.

    Args:
        model: the module.
        params: its parameters or their shapes, with shardings.
        settings: how tokens are drawn.
        rows: requests.
        width: tokens of the longest prompt.
        pad_id: token id of the padding.

    Returns:
        By name, in their order, a jitted function and its arguments; arrays among them are shapes alone.
    """
    mesh, padded = mesh_of(params), bucket_rows(rows, batch_divisor(mesh_of(params)))
    of_part, width = padded // side_by_side(model, params, rows), bucket_length(width)
    tokens, valid = (jax.ShapeDtypeStruct((of_part, width), dtype) for dtype in (jnp.int32, jnp.bool_))
    prefill = (model, mesh, settings.max_new_tokens, params, tokens, valid)
    logits, cache = _prefill.eval_shape(*prefill)
    if mesh is not None:
        cache = jax.tree.map(lambda x: _laid_out(x, mesh, *_cache_axes(x, mesh)), cache)
    seeds = jax.ShapeDtypeStruct((of_part,), jnp.uint32)
    weights = _decoding_weights.eval_shape(model, params) if model.decodes_apart else None
    decode = (model, settings, mesh, pad_id, params, weights, logits, cache, valid, seeds)
    programs: dict[str, tuple[Any, tuple[Any, ...]]] = {"prefill": (_prefill, prefill), "decode": (_decode, decode)}
    return ({"decoding_weights": (_decoding_weights, (model, params))} if model.decodes_apart else {}) | programs


def side_by_side(model: Qwen3, params: Any, rows: int) -> int:
    """In how many parts `sample` works off so many rows, each by a run of its own of `sampler_programs`.

    Args:
        model: the module.
        params: its parameters or their shapes, with shardings.
        rows: requests.
    """
    mesh = mesh_of(params)
    return count_parts(bucket_rows(rows, batch_divisor(mesh)), model.platform, mesh)


def _check_requests(model: Qwen3, prompts: Sequence[Sequence[int]], seeds: Any) -> None:
    if len(prompts) == 0:
        raise UserError("prompts is empty")
    if len(seeds) != len(prompts):
        raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts; one each is needed")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompts[{row}] has no tokens")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise UserError(f"prompts[{row}] has a token outside [0, vocab_size={model.config.vocab_size})")
    if not all(0 <= int(seed) < 2**32 for seed in seeds):
        raise UserError("seeds must lie in [0, 2**32)")


def _constrain(x: jax.Array, mesh: jax.sharding.Mesh | None, *axes: Any) -> jax.Array:
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))


def _laid_out(x: jax.ShapeDtypeStruct, mesh: jax.sharding.Mesh, *axes: Any) -> jax.ShapeDtypeStruct:
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


@functools.partial(jax.jit, static_argnums=0)
def _decoding_weights(model: Qwen3, params: Any) -> Any:
    return model.apply({"params": params}, method="decoding_weights")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(model: Qwen3, mesh: Any, new: int, params: Any, tokens: jax.Array, valid: jax.Array) -> Any:
    """Logits of the prompts' next tokens, and a cache with room for `new` tokens more."""
    tokens, valid = _constrain(tokens, mesh, BATCH_AXES), _constrain(valid, mesh, BATCH_AXES)
    hidden, cache = cast(Any, model.apply({"params": params}, tokens, valid=valid, room=new, method="prefill"))
    logits = model.apply({"params": params}, hidden, method="unembed")

    return logits, jax.tree.map(lambda x: _constrain(x, mesh, *_cache_axes(x, mesh)), cache)


def _cache_axes(x: Any, mesh: Any) -> tuple[Any, ...]:
    """The mesh axes of a leaf of the cache, `[(layer,) batch, kv, slots, head_dim]`."""
    heads = "tensor" if mesh is not None and x.shape[-3] % mesh.shape["tensor"] == 0 else None
    return (*[None] * (x.ndim - 4), BATCH_AXES, heads)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=7)
def _decode(
    model: Qwen3, settings: SamplingSettings, mesh: Any, pad_id: int, params: Any, weights: Any,
    logits: jax.Array, cache: Any, valid: jax.Array, seeds: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:  # fmt: skip
    """Draw up to `max_new_tokens` per row; stops early when every row has stopped.

    Returns:
        Tokens, log-probabilities and the mask of the answers, each `[batch, max_new_tokens]`; and the cache, which
        nobody reads: only an output can take over the donated input's memory.
    """
    batch, width = valid.shape
    new = settings.max_new_tokens
    if not model.is_unrolled:
        # As each product would cast them: so every token reads half of float32 masters.
        params = jax.tree.map(lambda leaf: leaf.astype(model.dtype), params)
    uniforms = _uniforms(seeds, new, settings.greedy)
    stop_tokens = jnp.asarray(settings.stop_tokens, jnp.int32)
    prompt_lengths = jnp.sum(valid, axis=1)
    # Pad rows are done before they begin.
    active = jnp.any(valid, axis=1)
    slots = jnp.arange(width + new)
    in_prompt = jnp.pad(valid, ((0, 0), (0, new)))

    def draw(logits, step):
        # Made where the head's shards lie, then exchanged: told of the end alone, the compiler gathers the head.
        if mesh is not None and logits.shape[-1] % mesh.shape["tensor"] == 0:
            logits = _constrain(logits, mesh, BATCH_AXES, "tensor")
        return choose_tokens(_constrain(logits, mesh, BATCH_AXES), uniforms[step], settings)

    def record(buffers, step, tokens, log_probs, active):
        written = (jnp.where(active, tokens, pad_id), jnp.where(active, log_probs, 0.0), active)
        return tuple(jax.lax.dynamic_update_index_in_dim(b, w, step, 0) for b, w in zip(buffers, written, strict=True))

    def advance(state):
        step, tokens, active, cache, buffers = state
        active = active & ~jnp.any(tokens[:, None] == stop_tokens, axis=1)
        index = width + step - 1
        visible = in_prompt | ((slots >= width) & (slots <= index))
        logits, cache = model.apply(
            {"params": params},
            tokens,
            cache,
            weights=weights,
            positions=prompt_lengths + step - 1,
            index=index,
            visible=visible,
            method="decode",
        )
        tokens, log_probs = draw(logits, step)
        return step + 1, tokens, active, cache, record(buffers, step, tokens, log_probs, active)

    def unfinished(state):
        step, tokens, active, _, _ = state
        return (step < new) & jnp.any(active & ~jnp.any(tokens[:, None] == stop_tokens, axis=1))

    buffers = (jnp.full((new, batch), pad_id, jnp.int32), jnp.zeros((new, batch)), jnp.zeros((new, batch), bool))
    tokens, log_probs = draw(logits, jnp.int32(0))
    state = (jnp.int32(1), tokens, active, cache, record(buffers, 0, tokens, log_probs, active))
    *_, cache, buffers = jax.lax.while_loop(unfinished, advance, state)
    drawn, log_probs, answered = (buffer.T for buffer in buffers)
    return (drawn, log_probs, answered), cache


def _uniforms(seeds: jax.Array, steps: int, greedy: bool) -> jax.Array:
    """`[steps, batch]` in [0, 1): each from its request's seed and its step alone, whatever else is in the batch."""
    if greedy:
        return jnp.zeros((steps, seeds.shape[0]))

    def row(seed):
        key = jax.random.key(seed)
        return jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step)))(jnp.arange(steps))

    return jax.vmap(row, out_axes=1)(seeds)
