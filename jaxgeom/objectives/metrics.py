"""The metrics of a loss over the parts of a batch: as sums, which add up, and as the means that the sums give."""

from jax import Array
from jaxtyping import Float

from .losses import divide_or_zero

Metrics = dict[str, Float[Array, ""]]


def token_sums(metrics: Metrics) -> Metrics:
    """The metrics of one part as sums over its tokens; those of several parts may be added.

    Args:
        metrics: scalars: "tokens", a count, and means over so many tokens, as `policy_gradient_loss` returns them; or
            none at all.

    Returns:
        scalars of the same names: "tokens" as it is, each mean times it.
    """
    return {name: value if name == "tokens" else value * metrics["tokens"] for name, value in metrics.items()}


def token_means(sums: Metrics) -> Metrics:
    """What `token_sums` was made of, for the whole batch: the inverse of it, 0 for every mean over no tokens.

    Args:
        sums: scalars, added over the parts.

    Returns:
        scalars: "tokens", the whole batch's, and means over all of them.
    """
    return {name: value if name == "tokens" else divide_or_zero(value, sums["tokens"]) for name, value in sums.items()}
