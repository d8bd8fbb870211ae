"""The whole chain, hidden states to loss and gradient, on 8 devices: the same numbers as on one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgeom.objectives import (
    grpo_advantages,
    informative_groups,
    mix_advantages,
    opd_advantages,
    policy_gradient_loss,
    reverse_kl,
    sft_loss,
    sparsify_tokens,
    token_log_probs,
)


def objective(hidden, weight, teacher, teacher_weight, targets, rewards, mask, key):
    log_probs, entropy = token_log_probs(hidden, weight, targets, chunk=4, return_entropy=True)
    old = jax.lax.stop_gradient(log_probs) - 0.1
    teacher_log_probs = token_log_probs(teacher, teacher_weight, targets, chunk=4)
    opd = opd_advantages(old, teacher_log_probs, mask)
    opd = (
        opd
        * sparsify_tokens(-opd, mask, fraction=0.5)
        * sparsify_tokens(opd, mask, fraction=0.5, method="random", key=key)
    )
    mixed = mix_advantages(opd, grpo_advantages(rewards).reshape(-1), 0.3)
    mask = mask & jnp.repeat(informative_groups(rewards), 2)[:, None]
    loss, metrics = policy_gradient_loss(log_probs, old, mixed, mask, aggregate="sequence", entropy=entropy)
    kl = reverse_kl(hidden, weight, teacher, teacher_weight, chunk=4)
    return loss + 0.1 * sft_loss(log_probs, mask) + 0.1 * sft_loss(-kl, mask), metrics


def test_eight_devices_give_the_numbers_of_one():
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(8, 10, 4)).astype(np.float32),
        rng.normal(size=(4, 24)).astype(np.float32),
        rng.normal(size=(8, 10, 4)).astype(np.float32),
        rng.normal(size=(4, 24)).astype(np.float32),
        rng.integers(0, 24, (8, 10)).astype(np.int32),
        np.array([[0, 1], [1, 1], [1, 0], [0, 1]], np.float32),
        rng.random((8, 10)) < 0.7,
    )
    step = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    key = jax.random.key(3)
    expected = step(*arrays, key)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))
    rows, columns = P("data"), P(None, "tensor")
    places = (rows, columns, rows, columns, rows, rows, rows)
    placed = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip(arrays, places, strict=True)]
    found = step(*placed, jax.device_put(key, NamedSharding(mesh, P())))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    # The gradient of the states stays sharded by data, that of the unembedding by vocabulary.
    assert found[1][0].sharding.is_equivalent_to(NamedSharding(mesh, rows), 3)
    assert found[1][1].sharding.is_equivalent_to(NamedSharding(mesh, columns), 2)
