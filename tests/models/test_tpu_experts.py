"""The kernel of the experts' gradient on TPUs, step by step on a CPU, against products group by group."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3, tpu_experts
from jaxgeom.models.moe import mixture_by_rows
from jaxgeom.sharding import make_mesh, parameter_shardings
from tests.tiny import tiny_config, tiny_params


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("m", "k", "n", "sizes"),
    [(700, 96, 40, [0, 300, 0, 250, 0]), (512, 64, 64, [512, 0]), (1030, 600, 520, [1, 2, 1000, 27, 0])],
    ids=["rows of no group", "one group", "uneven tiles"],
)
def test_the_gradient_of_each_group_is_of_its_rows(m, k, n, sizes):
    rows, gradient = drawn(m, k), drawn(m, n, seed=1)
    found = tpu_experts.kernels_gradient(rows, gradient, jnp.array(sizes, jnp.int32), interpret=True)
    ends = np.cumsum([0, *sizes])
    want = [np.asarray(rows[a:b], np.float64).T @ gradient[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    np.testing.assert_allclose(found, want, atol=2e-4)


@pytest.mark.parametrize("sizes", [None, (1, 4, 1, 2), (2, 1, 2, 2)], ids=str)
def test_a_mixture_has_the_gradient_of_its_sum(monkeypatch, sizes):
    """Of all arguments; over devices, and where most tokens choose two experts and others have none."""
    kernel = partial(tpu_experts.kernels_gradient, interpret=True)
    monkeypatch.setattr(tpu_experts, "kernels_gradient", kernel)
    tokens, dim, experts, inner = 32, 16, 4, 8
    x, router = drawn(tokens, dim), 0.1 * drawn(dim, experts)
    x, router = x.at[:, 0].set(4.0), router.at[0, :2].set(3.0)
    kernels = {"router": router, "gate": drawn(experts, dim, inner), "up": drawn(experts, dim, inner, seed=1)}
    mlp = {name: {"kernel": leaf} for name, leaf in (kernels | {"down": drawn(experts, inner, dim)}).items()}

    def by_hand(x, mlp):
        share = jax.nn.softmax(x @ mlp["router"]["kernel"])
        top = jax.lax.top_k(share, 2)[0]
        share = jnp.where(share >= top[:, 1:], share, 0) / top.sum(axis=1, keepdims=True)
        gate, up = (jnp.einsum("td,edf->tef", x, mlp[name]["kernel"]) for name in ("gate", "up"))
        return jnp.einsum("tef,efd,te->td", jax.nn.silu(gate) * up, mlp["down"]["kernel"], share)

    mesh = None if sizes is None else make_mesh(*sizes)
    options = {"experts_per_token": 2, "normalize": True, "mesh": mesh, "grouped": tpu_experts.ragged_product}
    towards = drawn(tokens, dim, seed=2)
    pulled = [
        jax.jit(lambda x, mlp, of=of: jax.vjp(of, x, mlp)[1](towards))(x, mlp)
        for of in (partial(mixture_by_rows, **options), by_hand)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), *pulled)


def test_a_model_for_tpus_trains_its_experts_by_the_kernel(monkeypatch):
    """bfloat16 alone; float32 products stay those of XLA, which are exact."""
    called = []

    def kernel(rows, gradient, sizes):
        called.append(rows.dtype)
        return jnp.zeros((len(sizes), rows.shape[1], gradient.shape[1]), rows.dtype)

    monkeypatch.setattr(tpu_experts, "kernels_gradient", kernel)
    config = dataclasses.replace(tiny_config(), num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    mesh = make_mesh(2, 2, 1, 2)
    params = jax.device_put(tiny_params(config), parameter_shardings(tiny_params(config), mesh))
    for dtype in (jnp.float32, jnp.bfloat16):
        model = Qwen3(config, mesh=mesh, platform="tpu", dtype=dtype)

        def loss(params, model=model):
            return jnp.mean(jnp.square(model.apply({"params": params}, jnp.ones((4, 8), jnp.int32))))

        jax.eval_shape(jax.grad(loss), params)
    assert called and set(called) == {jnp.dtype(jnp.bfloat16)}
