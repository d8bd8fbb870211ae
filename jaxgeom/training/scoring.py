"""Log-probabilities of given tokens: the one forward path by which student and teacher are scored and trained."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from jaxgeom.models import Qwen3
from jaxgeom.models.qwen3 import unembedding
from jaxgeom.objectives import Distilled, distillation, token_log_probs
from jaxgeom.objectives.log_probs import ChunkedWeight, chunked_weight
from jaxgeom.sharding import BATCH_AXES, batch_divisor

# Up to so many bytes of float32 logits a device holds whole, for the backward pass too; beyond, they are chunked over
# time, so many tokens at once. Each chunk reads the unembedding and adds to its gradient, which fewer tokens do not pay
# for; more gain nothing.
_WHOLE_LOGITS = 1 << 28
_CHUNK_TOKENS = 1024


def sequence_log_probs(
    model: Qwen3,
    params: PyTree,
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
    *,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    segments: Int[Array, "batch time"] | None = None,
    return_entropy: bool = False,
) -> Any:
    """Log-probability of every token given those before it; pure and differentiable in `params`.

    Args:
        model: Qwen3 module.
        params: Its parameters.
        tokens: int32 token ids.
        valid: True on real tokens, false on padding of either side.
        temperature: The logits are divided by it.
        mesh: What the parameters and the batch are sharded over; None for one device.
        segments: The number of each token's sequence, in rows that hold several: no token sees another sequence's.
        return_entropy: Also the entropy of the distribution that each token was drawn from, while its logits are there.

    Returns:
        `[batch, time]`, or a pair of them with `return_entropy`: float32 nats, 0 at index 0. Entries at padding, and at
        the first token of a sequence behind another, mean nothing and must be masked.
    """
    hidden = hidden_states(model, params, tokens, valid, segments)
    chunk = _chunk(tokens.shape, model.config.vocab_size, mesh)

    def head(arrays: tuple[Array, Array], weight: ChunkedWeight) -> Any:
        options: dict[str, Any] = {"temperature": temperature, "chunk": chunk, "vocabulary": model.vocabulary}
        return token_log_probs(arrays[0], weight, arrays[1], return_entropy=return_entropy, **options)

    return _by_rows(head, (hidden, tokens), chunked_weight(unembedding(model.config, params), hidden.dtype), mesh)


def sequence_divergences(
    student: Qwen3,
    params: PyTree,
    teachers: Sequence[Qwen3],
    teacher_params: Sequence[PyTree],
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
    which: Int[Array, " batch"] | None = None,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Distilled:
    """Divergence of student and teacher at every token given those before it; pure and differentiable in `params`.

    The teachers' hidden states are computed here, inside the program that differentiates, and for the rows that are
    given alone: with micro-batches they are `[batch / parts, time, d']` at a time, where states computed before the
    step would all wait for it in memory.

    Args:
        student: the module that is trained.
        params: its parameters.
        teachers: one module or several.
        teacher_params: the parameters of each.
        tokens: int32 token ids.
        valid: True on real tokens.
        which: the place of each row's teacher; None where there is one.
        mesh: what parameters and batch are sharded over; None for one device.
        options: of `distillation`.

    Returns:
        As `distillation`. Entries at padding mean nothing and must be masked.
    """
    hidden = hidden_states(student, params, tokens, valid)
    weight = chunked_weight(unembedding(student.config, params), hidden.dtype)
    chunk = _chunk(tokens.shape, 2 * student.config.vocab_size, mesh)

    def taught(place: int) -> Distilled:
        teacher, frozen = teachers[place], jax.lax.stop_gradient(teacher_params[place])

        def head(arrays: tuple[Array, Array, Array], weights: tuple[ChunkedWeight, ChunkedWeight]) -> Distilled:
            (mine, theirs, tokens), (weight, their_weight) = arrays, weights
            return distillation(
                mine, weight, theirs, their_weight, tokens, chunk=chunk, vocabulary=student.vocabulary, **options
            )

        said = hidden_states(teacher, frozen, tokens, valid)
        weights = weight, chunked_weight(unembedding(teacher.config, frozen), said.dtype)
        return _by_rows(head, (hidden, said, tokens), weights, mesh)

    if which is None:
        return taught(0)
    nothing = Distilled(*(jnp.zeros(tokens.shape, jnp.float32) for _ in Distilled._fields))
    total = nothing
    for place in range(len(teachers)):
        mine = which == place
        # A teacher of none of the rows costs nothing.
        found = jax.lax.cond(jnp.any(mine), partial(taught, place), lambda: nothing)
        total = jax.tree.map(lambda new, old, mine=mine: jnp.where(mine[:, None], new, old), found, total)
    return total


def hidden_states(model: Qwen3, params: PyTree, tokens: Array, valid: Array, segments: Array | None = None) -> Array:
    """`[batch, time, dim]`, the normed last hidden states of a model; see `Qwen3.hidden_states`."""
    rows = {"valid": valid, "segments": segments}
    return cast(jax.Array, model.apply({"params": params}, tokens, **rows, method="hidden_states"))


def _chunk(shape: tuple[int, ...], vocabulary: int, mesh: Mesh | None) -> int:
    """Time steps whose logits are held at once."""
    rows, time = -(-shape[0] // batch_divisor(mesh)), shape[1]
    return time if 4 * rows * time * vocabulary <= _WHOLE_LOGITS else max(1, _CHUNK_TOKENS // rows)


def _by_rows(head: Callable[[Any, Any], Any], arrays: Any, weights: Any, mesh: Mesh | None) -> Any:
    """`head(arrays, weights)`, a tree of `[batch, time]`, each device working through the chunks of its own rows.

    The compiler by itself would gather the weights, and sum their gradients over the devices, once a chunk; so it is
    once before the first and once after the last. They are gathered here by name: the gradient of that is a sum of
    which each device keeps its shard, where a whole one sends twice as much and takes room for the whole. (But not
    where tensor splits them too: what is gathered by name along one axis the compiler gathers along the other as well.)
    """
    shards = batch_divisor(mesh)
    if mesh is not None and shards > 1 and jax.tree.leaves(arrays)[0].shape[0] % shards == 0:
        fsdp = mesh.shape["fsdp"] if mesh.shape.get("tensor", 1) == 1 else 1
        split = jax.tree.map(lambda weight: fsdp > 1 and weight.shape[0] % fsdp == 0, weights)

        def gathered(weight: Array, is_split: bool) -> Array:
            return jax.lax.all_gather(weight, "fsdp", tiled=True) if is_split else weight

        def local(arrays: Any, weights: Any) -> Any:
            return head(arrays, jax.tree.map(gathered, weights, split))

        rows = PartitionSpec(BATCH_AXES)
        lies = jax.tree.map(lambda is_split: PartitionSpec("fsdp") if is_split else PartitionSpec(), split)
        options: dict[str, Any] = {"axis_names": set(BATCH_AXES), "check_vma": False}
        return jax.shard_map(local, mesh=mesh, in_specs=(rows, lies), out_specs=rows, **options)(arrays, weights)
    return head(arrays, weights)
