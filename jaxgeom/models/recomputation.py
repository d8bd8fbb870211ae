"""What the backward pass of a block reads again and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

_PRODUCT = "product"


def product(x: Array) -> Array:
    """`x`, marked as the result of a matrix product whose value the gradient needs."""
    return checkpoint_name(x, _PRODUCT)


def keep_everything(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is: the gradient keeps whatever it reads."""
    return function


def keep_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of which the gradient keeps the arguments and every `product`, and computes the rest again.

    What stands between two products (norms, rotations, activations) reads and writes more than it computes: keeping it
    for the backward pass moves more bytes than computing it again where it is used.
    """
    policy = jax.checkpoint_policies.save_only_these_names(_PRODUCT)
    return jax.checkpoint(function, policy=policy, prevent_cse=False)  # a scan keeps its steps apart
