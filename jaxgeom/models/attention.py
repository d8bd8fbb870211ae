"""Causal grouped-query attention: plain, chunked over queries, cuDNN's kernel, the Pallas splash kernel."""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxgeom.sharding import BATCH_AXES

KINDS = ("auto", "plain", "chunked", "cudnn", "splash")
# Finite, so that a query with no visible key (padding) gives a finite average and finite gradients.
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# Up to this many columns the scores are held whole.
_PLAIN_LIMIT = 1024
_CHUNK = 256
# A query sees no later key. So the queries of `attend_chunked` are cut into so many blocks, each of which leaves out
# the keys behind its own end: with 3 of them 2/3 of all scores are computed, with n blocks (n + 1) / 2n. Every block
# more adds a tenth to the memory that the gradient needs, for the sake of which long sequences are chunked.
_BLOCKS = 3
# The splash kernel works on tiles of lanes.
_LANES = 128


def resolve_attention(kind: str, *, platform: str | None, dtype: Any, time: int) -> str:
    """What `auto` stands for: a kernel where the platform has one that fits, else by length.

    Args:
        kind: one of `KINDS`; any but `auto` stands for itself.
        platform: "tpu" and "gpu" have kernels; others, and None, have the forms that run anywhere.
        dtype: of the activations.
        time: columns.
    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"attention={kind!r} must be one of {', '.join(KINDS)}")
    if kind != "auto":
        return kind
    if platform == "tpu" and time >= _LANES:
        return "splash"
    if platform == "gpu" and jnp.dtype(dtype).itemsize == 2:
        return "cudnn"
    return "chunked" if time > _PLAIN_LIMIT else "plain"


def causal_attention(
    q: Float[Array, "batch time heads hd"],
    k: Float[Array, "batch time kv hd"],
    v: Float[Array, "batch time kv hd"],
    *,
    valid: Bool[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    kind: str,
    mesh: Mesh | None = None,
) -> Float[Array, "batch time heads hd"]:
    """`softmax(q·kᵀ/√hd + causal mask)·v`; head h uses key head ⌊h·kv/heads⌋.

    Args:
        q, k, v: projected and rotated, in the compute dtype.
        valid: which keys may be attended to; None for all. The kernels take None only: real tokens stand first
            there, so causality alone hides the padding.
        segments: which of several packed sequences a column belongs to; a query sees the keys of its own alone.
        kind: a resolved form, not `auto`.
        mesh: devices over which rows and heads are spread, for `splash`; None for one device.
    Returns:
        The mixed values, in the dtype of `q`.
    """
    if kind in ("cudnn", "splash"):
        if valid is not None:
            raise ValueError(f"attention={kind!r} takes no mask: put the real tokens first")
        return (attend_splash if kind == "splash" else _attend_cudnn)(q, k, v, segments, mesh=mesh)
    if kind == "chunked":
        return attend_chunked(q, k, v, valid, segments)
    time = q.shape[1]
    return attend_plain(q, k, v, _visible(jnp.arange(time), time, valid, segments))


def _visible(
    columns: Int[Array, " queries"],
    keys: int,
    valid: Bool[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None,
) -> Bool[Array, "#batch queries keys"]:
    """Which of the first `keys` keys the queries of these columns see."""
    visible = (jnp.arange(keys) <= columns[:, None])[None]
    if valid is not None:
        visible = visible & valid[:, None, :keys]
    if segments is not None:
        # A chunk may end behind the last column: what is there is cut off later.
        visible = visible & (segments[:, columns][..., None] == segments[:, None, :keys])
    return visible


def attend_plain(
    q: Float[Array, "batch time heads hd"],
    k: Float[Array, "batch keys kv hd"],
    v: Float[Array, "batch keys kv hd"],
    visible: Bool[Array, "#batch time keys"],
) -> Float[Array, "batch time heads hd"]:
    """Attention with all scores held, softmax in float32; `visible` says which keys a query sees.

    The weights are divided by their sum after the product with the values, so that neither pass touches the scores once
    more; the scores keep the order `[batch, kv, time, group, keys]` in which the product leaves them.
    """
    batch, time, heads, hd = q.shape
    kv = k.shape[2]
    grouped = (q * jnp.asarray(hd**-0.5, q.dtype)).reshape(batch, time, kv, heads // kv, hd)
    scores = jnp.einsum("btkgd,bskd->bktgs", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, :, None], scores, _MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(weights, axis=-1)[..., None]
    mixed = jnp.einsum("bktgs,bskd->bktgd", weights.astype(q.dtype), v, preferred_element_type=jnp.float32) / total
    return mixed.astype(q.dtype).swapaxes(1, 2).reshape(batch, time, heads, hd)


def _blocks(time: int, chunk: int) -> list[tuple[int, int]]:
    """First column and end, exclusive, of up to `_BLOCKS` blocks of queries, all but the last of whole chunks."""
    size = chunk * -(-time // (_BLOCKS * chunk))
    return [(first, min(first + size, time)) for first in range(0, time, size)]


def attend_chunked(
    q: Float[Array, "batch time heads hd"],
    k: Float[Array, "batch time kv hd"],
    v: Float[Array, "batch time kv hd"],
    valid: Bool[Array, "batch time"] | None,
    segments: Int[Array, "batch time"] | None = None,
    *,
    chunk: int = _CHUNK,
) -> Float[Array, "batch time heads hd"]:
    """`attend_plain` for `chunk` queries at a time, recomputed in the backward pass.

    The scores in memory are `[batch, heads, chunk, time]`, never `[batch, heads, time, time]`. The chunks of a block of
    queries take the keys up to the block's end.
    """
    # Cast inside, so that the gradients of keys and values are summed over the chunks in float32.
    wide_keys, wide_values = k.astype(jnp.float32), v.astype(jnp.float32)

    @jax.checkpoint
    def one(q_chunk: Array, start: Array, keys: Array, values: Array) -> Array:
        visible = _visible(start + jnp.arange(chunk), keys.shape[1], valid, segments)
        return attend_plain(q_chunk, keys.astype(q.dtype), values.astype(q.dtype), visible)

    def block(first: int, end: int) -> Array:
        count = -(-(end - first) // chunk)
        padded = jnp.pad(q[:, first:end], ((0, 0), (0, count * chunk - (end - first)), (0, 0), (0, 0)))
        chunks = jnp.moveaxis(padded.reshape(q.shape[0], count, chunk, *q.shape[2:]), 1, 0)
        keys, values = wide_keys[:, :end], wide_values[:, :end]
        starts = first + chunk * jnp.arange(count)
        _, out = jax.lax.scan(lambda carry, xs: (carry, one(*xs, keys, values)), None, (chunks, starts))
        return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], count * chunk, *q.shape[2:])[:, : end - first]

    return jnp.concatenate([block(*edges) for edges in _blocks(q.shape[1], chunk)], axis=1)


def attend_splash(
    q: Float[Array, "batch time heads hd"],
    k: Float[Array, "batch time kv hd"],
    v: Float[Array, "batch time kv hd"],
    segments: Int[Array, "batch time"] | None = None,
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Float[Array, "batch time heads hd"]:
    """The Pallas TPU kernel, one call per device of the mesh: each works on its rows and heads.

    The compiler cannot split a kernel; without a mesh every device would work on the whole batch.

    Reference:
        FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness (arXiv 2205.14135);
        `jax.experimental.pallas.ops.tpu.splash_attention`.
    """
    time = q.shape[1]
    # Causality hides the padding at the end.
    room = -time % _LANES
    q, k, v = (jnp.pad(x, ((0, 0), (0, room), (0, 0), (0, 0))) for x in (q, k, v))
    arrays = (q, k, v) if segments is None else (q, k, v, jnp.pad(segments, ((0, 0), (0, room)), constant_values=-1))
    run = functools.partial(_splash_kernel, interpret=interpret)
    if mesh is not None:
        rows = tuple(axis for axis in BATCH_AXES if axis in mesh.shape)
        divides = q.shape[0] % math.prod(mesh.shape[axis] for axis in rows) == 0
        heads = "tensor" if "tensor" in mesh.shape and k.shape[2] % mesh.shape["tensor"] == 0 else None
        spec = PartitionSpec(rows if divides else None, None, heads, None)
        specs = (spec, spec, spec, PartitionSpec(spec[0], None))[: len(arrays)]
        run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)
    return run(*arrays)[:, :time]


def _splash_kernel(q: Array, k: Array, v: Array, segments: Array | None = None, *, interpret: bool) -> Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    time, heads, hd = q.shape[1:]
    tile = max(size for size in (128, 256, 512) if time % size == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=tile, block_kv=tile, block_kv_compute=tile,
        block_q_dkv=tile, block_kv_dkv=tile, block_kv_dkv_compute=tile,
        block_q_dq=tile, block_kv_dq=tile,
    )  # fmt: skip
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((time, time)) for _ in range(heads)])
    kernel = splash_attention_kernel.make_splash_mha_single_device(mask=mask, block_sizes=sizes, interpret=interpret)
    scaled = q * jnp.asarray(1 / math.sqrt(hd), q.dtype)
    ids = None if segments is None else splash_attention_kernel.SegmentIds(segments, segments)
    out = cast(Array, jax.vmap(kernel)(scaled.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), ids))
    return out.swapaxes(1, 2).astype(q.dtype)


def _attend_cudnn(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None = None,
    *,
    mesh: Mesh | None = None,
    implementation: Any = "cudnn",
) -> Array:
    """cuDNN's kernel, which the compiler splits by itself. Packed rows cost it a mask of `[batch, 1, time, time]`."""
    del mesh
    mask = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=implementation)


def attend_cache(
    q: Float[Array, "batch 1 heads hd"],
    keys: Float[Array, "batch kv slots hd"],
    values: Float[Array, "batch kv slots hd"],
    visible: Bool[Array, "batch slots"],
) -> Float[Array, "batch 1 heads hd"]:
    """Attention of one query per row to the `visible` slots of a cache; softmax in float32."""
    _, scores = _cache_scores(q, keys, visible)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    return jnp.einsum("bkgs,bksd->bkgd", weights, values).reshape(q.shape)


def attend_cache_and_own(
    q: Float[Array, "batch 1 heads hd"],
    k: Float[Array, "batch 1 kv hd"],
    v: Float[Array, "batch 1 kv hd"],
    keys: Float[Array, "batch kv slots hd"],
    values: Float[Array, "batch kv slots hd"],
    before: Bool[Array, "batch slots"],
) -> Float[Array, "batch 1 heads hd"]:
    """`attend_cache` to a cache that the query's own key and value are not yet written to.

    Args:
        q, k, v: of the newest token of each row, projected and rotated.
        keys, values: the cache as it came.
        before: the slots that a row may attend to, its own left out.
    Returns:
        The mixed values, in the dtype of `q`.
    """
    grouped, scores = _cache_scores(q, keys, before)
    own = jnp.einsum("bkgd,bkd->bkg", grouped, k[:, 0], preferred_element_type=jnp.float32)[..., None]
    largest = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), own)
    weights, own = jnp.exp(scores - largest), jnp.exp(own - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True) + own
    mixed = jnp.einsum("bkgs,bksd->bkgd", (weights / total).astype(q.dtype), values, preferred_element_type=jnp.float32)
    mixed = mixed + own / total * v[:, 0, :, None].astype(jnp.float32)
    return mixed.astype(q.dtype).reshape(q.shape)


def _cache_scores(
    q: Float[Array, "batch 1 heads hd"], keys: Float[Array, "batch kv slots hd"], visible: Bool[Array, "batch slots"]
) -> tuple[Float[Array, "batch kv group hd"], Float[Array, "batch kv group slots"]]:
    """Queries over the root of `hd`, by the key head that they use, and their scores, those of other slots masked."""
    batch, _, heads, hd = q.shape
    kv = keys.shape[1]
    grouped = (q * jnp.asarray(hd**-0.5, q.dtype)).reshape(batch, kv, heads // kv, hd)
    scores = jnp.einsum("bkgd,bksd->bkgs", grouped, keys, preferred_element_type=jnp.float32)
    return grouped, jnp.where(visible[:, None, None], scores, _MASKED)
