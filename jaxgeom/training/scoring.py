"""Log-probabilities of given tokens: the one forward path by which student and teacher are scored and trained."""

from typing import cast

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgeom.models import Qwen3
from jaxgeom.models.qwen3 import unembedding
from jaxgeom.objectives import token_log_probs
from jaxgeom.objectives.log_probs import DEFAULT_CHUNK, ChunkedWeight, chunked_weight
from jaxgeom.sharding import BATCH_AXES, batch_divisor

# Up to so many bytes of float32 logits are held whole, for the backward pass too; beyond, they are chunked over time.
_WHOLE_LOGITS = 1 << 28


def sequence_log_probs(
    model: Qwen3,
    params: PyTree,
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
    *,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    segments: Int[Array, "batch time"] | None = None,
) -> Float[Array, "batch time"]:
    """Log-probability of every token given those before it; pure and differentiable in `params`.

    Args:
        model: Qwen3 module.
        params: Its parameters.
        tokens: int32 token ids.
        valid: True on real tokens, false on padding of either side.
        temperature: The logits are divided by it.
        mesh: What the parameters and the batch are sharded over; None for one device.
        segments: The number of each token's sequence, in rows that hold several: no token sees another sequence's.

    Returns:
        float32 nats, 0 at index 0. Entries at padding, and at the first token of a sequence behind another, mean
        nothing and must be masked.
    """
    rows = {"valid": valid, "segments": segments}
    hidden = cast(jax.Array, model.apply({"params": params}, tokens, **rows, method="hidden_states"))
    whole = 4 * tokens.size * model.config.vocab_size <= _WHOLE_LOGITS
    chunk = tokens.shape[1] if whole else DEFAULT_CHUNK

    def head(hidden: Array, weight: ChunkedWeight, tokens: Array) -> Array:
        return token_log_probs(hidden, weight, tokens, temperature=temperature, chunk=chunk)

    shards = batch_divisor(mesh)
    if shards > 1 and tokens.shape[0] % shards == 0:
        # Each device works through the chunks of its own rows. The compiler by itself would gather the weight, and sum
        # its gradient over the devices, once a chunk; so it is once before the first and once after the last.
        rows = PartitionSpec(BATCH_AXES)
        specs = (rows, PartitionSpec(), rows)
        head = jax.shard_map(
            head, mesh=mesh, in_specs=specs, out_specs=rows, axis_names=set(BATCH_AXES), check_vma=False
        )
    return head(hidden, chunked_weight(unembedding(model.config, params), hidden.dtype), tokens)
