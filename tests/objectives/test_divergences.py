"""Full-vocabulary divergences against PyTorch in float64, their limits, memory, and the detached teacher."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.objectives import forward_kl, generalized_jsd, reverse_kl, teacher_top_k_kl

ALL = {
    "reverse": reverse_kl,
    "forward": forward_kl,
    "jsd": partial(generalized_jsd, beta=0.3),
    "top_k_reverse": partial(teacher_top_k_kl, k=5),
    "top_k_forward": partial(teacher_top_k_kl, k=5, direction="forward"),
}


def make(time=7, vocab=23, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(2, time, 4)),
        rng.normal(size=(4, vocab)),
        rng.normal(size=(2, time, 6)),
        rng.normal(size=(6, vocab)),
    )


def reference(torch, name, student, teacher):
    """Straight from the definitions, on log-probabilities [..., vocab]."""

    def kl(p, q):
        return (p * (p / q).log()).sum(-1)

    p, q = student.exp(), teacher.exp()
    if name == "reverse":
        return kl(p, q)
    if name == "forward":
        return kl(q, p)
    if name == "jsd":
        middle = 0.3 * q + 0.7 * p
        return 0.3 * kl(q, middle) + 0.7 * kl(p, middle)
    index = torch.topk(q, 5, -1).indices
    p, q = p.gather(-1, index), q.gather(-1, index)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return kl(p, q) if name == "top_k_reverse" else kl(q, p)


@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_equal_pytorch(name):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    arrays = make()
    h, w = (torch.tensor(a, requires_grad=True) for a in arrays[:2])
    student = torch.log_softmax(h @ w / 1.3, -1)
    teacher = torch.log_softmax(torch.tensor(arrays[2]) @ torch.tensor(arrays[3]) / 1.3, -1)
    expected = reference(torch, name, student, teacher)[:, :-1]
    cotangent = np.random.default_rng(1).normal(size=(2, 7))
    (expected * torch.tensor(cotangent)[:, 1:]).sum().backward()

    def objective(*args):
        value = ALL[name](*args, chunk=3, temperature=1.3)
        return jnp.sum(value * jnp.asarray(cotangent, jnp.float32)), value

    inputs = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    grads, value = jax.jit(jax.grad(objective, (0, 1, 2, 3), has_aux=True))(*inputs)
    np.testing.assert_allclose(value[:, 1:], expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(value[:, 0], 0.0)
    np.testing.assert_allclose(grads[0], h.grad.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(grads[1], w.grad.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(grads[2], 0.0)
    np.testing.assert_array_equal(grads[3], 0.0)


def test_limits():
    # Tame logits: the limits in beta are reached once beta times the largest ratio of probabilities is small.
    inputs = tuple(jnp.asarray(0.3 * a, jnp.float32) for a in make())

    @jax.jit
    def values(student, teacher):
        both = (*student, *teacher)
        jsd = {beta: generalized_jsd(*both, beta=beta) for beta in (1e-3, 0.5, 1 - 1e-3)}
        top = {k: teacher_top_k_kl(*both, k=k) for k in (1, 23)}
        equal = {name: divergence(*student, *student) for name, divergence in ALL.items()}
        swapped = generalized_jsd(*teacher, *student, beta=0.5)
        return forward_kl(*both), reverse_kl(*both), jsd, top, equal, swapped

    forward, reverse, jsd, top, equal, swapped = values(inputs[:2], inputs[2:])
    np.testing.assert_allclose(jsd[1e-3] / 1e-3, forward, rtol=5e-2, atol=1e-3)
    np.testing.assert_allclose(jsd[1 - 1e-3] / 1e-3, reverse, rtol=5e-2, atol=1e-3)
    np.testing.assert_allclose(top[23], reverse, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(top[1], 0.0, atol=1e-6)
    np.testing.assert_allclose(jsd[0.5], swapped, rtol=1e-4, atol=1e-6)
    assert float(jsd[0.5].max()) <= np.log(2)
    for name, value in equal.items():
        np.testing.assert_allclose(value, 0.0, atol=1e-6, err_msg=name)


def test_never_holds_the_logits():
    batch, time, vocab, chunk = 2, 2048, 20_000, 32
    shapes = [(batch, time, 16), (16, vocab), (batch, time, 24), (24, vocab)]
    program = (
        jax.jit(jax.grad(lambda *a: jnp.mean(reverse_kl(*a, chunk=chunk)), (0, 1)))
        .lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        .compile()
    )
    one_chunk = 4 * batch * chunk * vocab
    assert program.memory_analysis().temp_size_in_bytes < 12 * one_chunk < 4 * batch * time * vocab / 4
    assert f"{time},{vocab}]" not in program.as_text()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda a: generalized_jsd(*a, beta=0.0), "beta"),
        (lambda a: generalized_jsd(*a, beta=1.0), "beta"),
        (lambda a: teacher_top_k_kl(*a, k=0), "k is 0"),
        (lambda a: teacher_top_k_kl(*a, k=24), "k is 24"),
    ],
)
def test_refuses(call, says):
    with pytest.raises(ValueError, match=says):
        call(tuple(jnp.asarray(a, jnp.float32) for a in make()))
