"""token_log_probs against float64 numpy, PyTorch autograd and finite differences; memory from the compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxgeom.objectives import token_log_probs

FP32 = dict(rtol=2e-5, atol=2e-5)
BF16 = dict(rtol=2e-2, atol=2e-2)


def make(batch=3, time=11, d=8, vocab=30, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, time, d))
    weight = rng.normal(size=(d, vocab))
    targets = rng.integers(0, vocab, (batch, time))
    return hidden, weight, targets


def oracle(hidden, weight, targets, temperature=1.0):
    logits = hidden @ weight / temperature
    logits = logits - logits.max(-1, keepdims=True)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs, entropy = np.zeros(targets.shape), np.zeros(targets.shape)
    for b, t in np.ndindex(*targets.shape):
        if t > 0:
            log_probs[b, t] = log_softmax[b, t - 1, targets[b, t]]
            entropy[b, t] = -(np.exp(log_softmax[b, t - 1]) * log_softmax[b, t - 1]).sum()
    return log_probs, entropy


def device(hidden, weight, targets):
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(weight, jnp.float32), jnp.asarray(targets, jnp.int32)


@pytest.mark.parametrize(
    ("time", "chunk", "temperature"), [(11, 4, 1.0), (12, 4, 0.7), (11, 1, 1.0), (5, 64, 0.7), (1, 3, 1.0)]
)
def test_equals_float64(time, chunk, temperature):
    arrays = make(time=time)
    expected = oracle(*arrays, temperature)
    found = jax.jit(
        lambda h, w, t: token_log_probs(h, w, t, chunk=chunk, temperature=temperature, return_entropy=True)
    )(*device(*arrays))
    np.testing.assert_allclose(found[0], expected[0], **FP32)
    np.testing.assert_allclose(found[1], expected[1], **FP32)
    assert found[0].dtype == jnp.float32
    np.testing.assert_array_equal(found[0][:, 0], 0.0)


@pytest.mark.parametrize("remat", [True, False])
def test_gradients_equal_pytorch(remat):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    hidden, weight, targets = make()
    cotangent = np.random.default_rng(1).normal(size=targets.shape)
    h = torch.tensor(hidden, requires_grad=True)
    w = torch.tensor(weight, requires_grad=True)
    log_softmax = torch.log_softmax(h @ w, -1)[:, :-1]
    picked = torch.gather(log_softmax, 2, torch.tensor(targets)[:, 1:, None])[..., 0]
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    ((picked + 0.3 * entropy) * torch.tensor(cotangent)[:, 1:]).sum().backward()

    def objective(h, w, t):
        log_probs, entropy = token_log_probs(h, w, t, chunk=4, return_entropy=True, remat=remat)
        return jnp.sum((log_probs + 0.3 * entropy) * jnp.asarray(cotangent, jnp.float32))

    grads = jax.jit(jax.grad(objective, (0, 1)))(*device(hidden, weight, targets))
    np.testing.assert_allclose(grads[0], h.grad.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads[1], w.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_forward_and_reverse_derivatives_equal_finite_differences():
    hidden, weight, targets = make(batch=2, time=5, d=3, vocab=7)
    d_hidden, d_weight, _ = make(batch=2, time=5, d=3, vocab=7, seed=1)
    step = 1e-5
    plus, minus = (oracle(hidden + s * d_hidden, weight + s * d_weight, targets)[0] for s in (step, -step))
    expected = (plus - minus) / (2 * step)
    h, w, t = device(hidden, weight, targets)
    tangents = device(d_hidden, d_weight, targets)[:2]

    def log_probs(h, w):
        return token_log_probs(h, w, t, chunk=2)

    @jax.jit
    def both():
        _, forward = jax.jvp(log_probs, (h, w), tangents)
        return forward, jax.vjp(log_probs, h, w)[1](jnp.ones_like(forward))

    forward, pulled = both()
    np.testing.assert_allclose(forward, expected, rtol=1e-4, atol=1e-4)
    reverse = sum(float(jnp.vdot(g, v)) for g, v in zip(pulled, tangents, strict=True))
    np.testing.assert_allclose(reverse, expected.sum(), rtol=1e-4)


def test_bfloat16_states_with_float32_master_weights():
    hidden, weight, targets = make(time=64, d=32, vocab=50)
    weight = weight / 6
    h, w, t = device(hidden, weight, targets)
    h = h.astype(jnp.bfloat16)
    rounded = np.asarray(h.astype(jnp.float32), np.float64), np.asarray(w.astype(jnp.bfloat16).astype(jnp.float32))
    # The products of bf16 numbers are summed in float32: against the float64 sum over the same bf16 numbers.
    np.testing.assert_allclose(token_log_probs(h, w, t, chunk=8), oracle(*rounded, targets)[0], rtol=1e-4, atol=1e-4)
    grad = jax.jit(jax.grad(lambda h, w: token_log_probs(h, w, t, chunk=8).sum(), (0, 1)))
    exact = grad(h.astype(jnp.float32), w)
    found = grad(h, w)
    assert found[0].dtype == jnp.bfloat16 and found[1].dtype == jnp.float32
    for a, b in zip(found, exact, strict=True):
        error = jnp.linalg.norm((a.astype(jnp.float32) - b).ravel()) / jnp.linalg.norm(b.ravel())
        assert error < BF16["rtol"]


def test_weight_gradient_is_summed_over_chunks_in_float32_even_for_bfloat16_weights():
    hidden, weight, targets = device(*make(batch=1, time=512, d=4, vocab=8))
    hidden, weight = hidden.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    grad = jax.jit(jax.grad(lambda w: token_log_probs(hidden, w, targets, chunk=2).sum()))(weight)
    states, table = (np.asarray(x.astype(jnp.float32), np.float64) for x in (hidden[0], weight))
    logits = states @ table
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    slope = -probabilities / probabilities.sum(axis=1, keepdims=True)
    slope[np.arange(511), np.asarray(targets)[0, 1:]] += 1
    wanted = states[:-1].T @ slope[:-1]
    # Rounding of the result to bfloat16 gives 2e-3; 256 additions in bfloat16 would be off by several percent.
    error = np.linalg.norm(np.asarray(grad.astype(jnp.float32)) - wanted) / np.linalg.norm(wanted)
    assert error < 6e-3


@jax.jit
def log_probs_of_every_token(hidden, weight):
    """`[6, 1, 4]`: of each of the 6 tokens at every place."""
    tokens = jnp.arange(6, dtype=jnp.int32)
    return jax.vmap(lambda token: token_log_probs(hidden, weight, jnp.full((1, 4), token), chunk=2))(tokens)


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 4), st.integers(0, 2**31 - 1))
def test_is_a_distribution_at_any_scale_of_logits(log_scale, seed):
    hidden, weight, _ = device(*make(batch=1, time=4, d=3, vocab=6, seed=seed))
    hidden = hidden * 10.0**log_scale
    each = log_probs_of_every_token(hidden, weight)
    assert bool(jnp.all(jnp.isfinite(each))) and bool(jnp.all(each <= 1e-6))
    np.testing.assert_allclose(jnp.exp(each[:, :, 1:]).sum(0), 1.0, rtol=1e-4)


def compiled(batch, time, d, vocab, chunk, dtype=jnp.float32):
    def loss(h, w, t):
        return jnp.mean(token_log_probs(h, w, t, chunk=chunk))

    shapes = (
        jax.ShapeDtypeStruct((batch, time, d), dtype),
        jax.ShapeDtypeStruct((d, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, time), jnp.int32),
    )
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()


def test_value_and_gradient_never_hold_the_logits():
    batch, time, d, vocab, chunk = 2, 4096, 32, 151_936, 64
    program = compiled(batch, time, d, vocab, chunk)
    logits, one_chunk, weight = (4 * n for n in (batch * time * vocab, batch * chunk * vocab, d * vocab))
    states = 4 * batch * time * d
    temporary = program.memory_analysis().temp_size_in_bytes
    assert temporary < 5 * one_chunk + 6 * weight + 8 * states
    assert temporary < logits / 8
    assert f"{time},{vocab}]" not in program.as_text()


@pytest.mark.parametrize(
    ("hidden", "weight", "targets", "chunk", "says"),
    [
        ((2, 3, 4), (5, 9), (2, 3), 4, "unembedding"),
        ((2, 3, 4), (9, 4), (2, 3), 4, "transposed"),
        ((2, 3, 4), (4, 9), (2, 4), 4, "targets"),
        ((2, 3, 4), (4, 9), (2, 3), 0, "chunk"),
    ],
)
def test_refuses(hidden, weight, targets, chunk, says):
    # The checked annotations of the test run refuse some of these first: both name the argument.
    with pytest.raises(Exception, match=says if says != "transposed" else "unembedding"):
        token_log_probs(jnp.zeros(hidden), jnp.zeros(weight), jnp.zeros(targets, jnp.int32), chunk=chunk)


def test_the_backward_pass_of_a_chunk_seeks_no_maximum_and_no_sum_again():
    hidden, weight, targets = device(*make(time=12))

    def gradient(h, w):
        return jax.grad(lambda h, w: jnp.sum(token_log_probs(h, w, targets, chunk=4)), (0, 1))(h, w)

    text = str(jax.make_jaxpr(gradient)(hidden, weight))
    assert text.count("dot_general[") >= 4 and text.count("reduce_max[") == 1
