"""Several sequences in one row: each has the numbers that it has alone, in every form of attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.models import Qwen3
from jaxgeom.models import attention as forms
from jaxgeom.models.attention import attend_chunked, attend_splash, causal_attention
from jaxgeom.sharding import make_mesh
from tests.tiny import tiny_config, tiny_params

LENGTHS = ((5, 9, 3), (14, 2), (1, 16))
WIDTH = 19


def packed(rng):
    """Rows of sequences behind one another, padding at the end with a number of its own."""
    tokens, segments = rng.integers(1, 100, (len(LENGTHS), WIDTH)), np.zeros((len(LENGTHS), WIDTH), np.int32)
    for row, lengths in enumerate(LENGTHS):
        ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        segments[row, : len(ids)] = ids
    return tokens, segments


@pytest.mark.parametrize("changes", [{}, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}])
@pytest.mark.parametrize("kind", ["plain", "chunked"])
def test_each_sequence_has_the_logits_that_it_has_alone(kind, changes):
    if changes:
        changes |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    config = tiny_config(**changes)
    model, params = Qwen3(config, attention=kind, platform="cpu"), tiny_params(config)
    tokens, segments = packed(np.random.default_rng(0))
    hidden = functools.partial(model.apply, {"params": params}, method="hidden_states")
    found = np.asarray(jax.jit(lambda *a: hidden(a[0], segments=a[1]))(jnp.asarray(tokens), jnp.asarray(segments)))
    alone = jax.jit(lambda tokens, valid: hidden(tokens, valid=valid))
    for row in range(len(LENGTHS)):
        for number in range(1, segments[row].max() + 1):
            own = segments[row] == number
            # Padded to one width, so that one program serves all.
            single = np.zeros((1, WIDTH), int)
            single[0, : own.sum()] = tokens[row, own]
            wanted = np.asarray(alone(jnp.asarray(single), jnp.asarray(np.arange(WIDTH)[None] < own.sum())))[
                0, : own.sum()
            ]
            np.testing.assert_allclose(found[row, own], wanted, atol=3e-5)


def blocks(rng, heads, kv, hd, time):
    q, k, v = (jnp.asarray(rng.normal(size=(2, time, h, hd)), jnp.float32) for h in (heads, kv, kv))
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, time)), axis=1))
    return q, k, v, segments


def softmax_within(q, k, v, segments):
    """Float64, by the definition."""
    q, k, v, segments = (np.asarray(x, np.float64) for x in (q, k, v, segments))
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    seen = np.tril(np.ones(scores.shape[-2:], bool)) & (segments[:, :, None] == segments[:, None])
    weights = np.where(seen[:, None], np.exp(scores - scores.max()), 0.0)
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


FORMS = {
    "plain": functools.partial(causal_attention, valid=None, kind="plain"),
    "chunked": functools.partial(attend_chunked, valid=None, chunk=16),
    "splash": functools.partial(attend_splash, interpret=True),
    # The kernel's own arguments, run by XLA: what is tested is the mask.
    "cudnn": functools.partial(forms._attend_cudnn, implementation="xla"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_sees_its_own_sequence_alone(form):
    hd = 128 if form == "splash" else 16
    q, k, v, segments = blocks(np.random.default_rng(3), 2, 1, hd, 140)
    found = jax.jit(FORMS[form])(q, k, v, segments=segments)
    np.testing.assert_allclose(found, softmax_within(q, k, v, segments), atol=2e-5)


def test_the_kernel_takes_each_devices_rows():
    mesh = make_mesh(2, 1, 1, 1, devices=jax.devices()[:2])
    q, k, v, segments = blocks(np.random.default_rng(4), 2, 2, 128, 128)
    found = jax.jit(functools.partial(attend_splash, mesh=mesh, interpret=True))(q, k, v, segments)
    np.testing.assert_allclose(found, softmax_within(q, k, v, segments), atol=2e-5)
