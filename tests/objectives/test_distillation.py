"""Divergences as losses: values and gradients against PyTorch in float64, what coarsening keeps, padding, memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.objectives import distillation, distillation_loss, forward_kl, policy_gradient_loss, reverse_kl

BETA = 0.3
SUPPORTS = [("full", True), *itertools.product(("teacher-top-k", "student-top-k"), (True, False))]
CASES = [(divergence, *support) for divergence in ("reverse", "forward", "jsd") for support in SUPPORTS]
CHUNKED = ("jsd", "student-top-k", True)


def make(time=6, vocab=23, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = (2, time, 4), (4, vocab), (2, time, 6), (6, vocab)
    return [scale * rng.normal(size=shape) for shape in shapes], rng.integers(0, vocab, (2, time))


def reference(torch, case, student, teacher, k):
    """Straight from the definitions, on log-probabilities [..., vocab]."""
    divergence, support, tail = case
    p, q = student.exp(), teacher.exp()
    if support != "full":
        index = torch.topk((q if support == "teacher-top-k" else p).detach(), k, -1).indices
        tops = [one.gather(-1, index) for one in (p, q)]
        if tail:
            p, q = (torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1) for top in tops)
        else:
            p, q = (top / top.sum(-1, keepdim=True) for top in tops)

    def kl(a, b):
        return (a * (a / b).log()).sum(-1)

    middle = BETA * q + (1 - BETA) * p
    return {"reverse": kl(p, q), "forward": kl(q, p), "jsd": BETA * kl(q, middle) + (1 - BETA) * kl(p, middle)}[
        divergence
    ]


@pytest.fixture(scope="module")
def found():
    """Every case's values and gradients, by one program."""
    arrays, targets = make()
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6)), jnp.float32)

    def one(case, chunk, *models):
        divergence, support, tail = case
        k = None if support == "full" else 5
        value = distillation(
            *models, jnp.asarray(targets), divergence=divergence, support=support, k=k, tail_bucket=tail, beta=BETA,
            chunk=chunk, temperature=1.3,
        )  # fmt: skip
        return jnp.sum(value.divergence * cotangent), value

    @jax.jit
    def all_of_them(*models):
        def differentiated(case, chunk, arguments):
            return jax.value_and_grad(lambda *models: one(case, chunk, *models), arguments, has_aux=True)(*models)

        return {case: differentiated(case, 6, (0, 1)) for case in CASES} | {
            ("in chunks",): differentiated(CHUNKED, 4, (0, 1, 2, 3))
        }

    return all_of_them(*(jnp.asarray(array, jnp.float32) for array in arrays)), np.asarray(cotangent, np.float64)


def test_chunks_change_nothing_and_the_teacher_is_detached(found):
    (_, whole), grads = found[0][CHUNKED]
    (_, value), (*of_student, of_hidden, of_weight) = found[0][("in chunks",)]
    for one, other in zip((*whole, *grads), (*value, *of_student), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(of_hidden, 0.0)
    np.testing.assert_array_equal(of_weight, 0.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_value_and_gradient_equal_pytorch(found, case):
    torch = pytest.importorskip("torch", reason="PyTorch oracle")
    arrays, targets = make()
    h, w = (torch.tensor(a, requires_grad=True) for a in arrays[:2])
    student = torch.log_softmax(h @ w / 1.3, -1)
    teacher = torch.log_softmax(torch.tensor(arrays[2]) @ torch.tensor(arrays[3]) / 1.3, -1)
    expected = reference(torch, case, student, teacher, 5)[:, :-1]
    results, cotangent = found
    (expected * torch.tensor(cotangent)[:, 1:]).sum().backward()
    (_, value), grads = results[case]
    np.testing.assert_allclose(value.divergence[:, 1:], expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    for name, table in (("log_probs", student), ("teacher_log_probs", teacher)):
        picked = table[:, :-1].gather(-1, torch.tensor(targets)[:, 1:, None])[..., 0]
        np.testing.assert_allclose(getattr(value, name)[:, 1:], picked.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grads[0], h.grad.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(grads[1], w.grad.numpy(), rtol=1e-3, atol=1e-5)
    for part in value:
        np.testing.assert_array_equal(part[:, 0], 0.0)


def test_a_coarsened_divergence_is_between_0_and_the_whole_one_however_small_the_rest():
    """Peaked models: the rest is 1e-9 of the mass and less, where 1 − Σ is 0 in float32."""
    arrays, targets = make(scale=5.0)
    arrays[2:] = [
        np.asarray(a) + 0.1 for a in (np.pad(arrays[0], ((0, 0), (0, 0), (0, 2))), np.pad(arrays[1], ((0, 2), (0, 0))))
    ]
    inputs = [jnp.asarray(array, jnp.float32) for array in arrays]
    logits = [
        np.asarray(h, np.float64) @ np.asarray(w, np.float64) for h, w in zip(arrays[::2], arrays[1::2], strict=True)
    ]
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in logits)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    order = np.argsort(-q, axis=-1)

    @jax.jit
    def values(*models):
        whole = reverse_kl(*models)
        options = {"support": "teacher-top-k", "tail_bucket": True}
        return whole, {k: distillation(*models, jnp.asarray(targets), k=k, **options).divergence for k in (1, 2, 8, 23)}

    whole, parts = values(*inputs)
    for k, part in parts.items():
        tops = [np.take_along_axis(one, order[..., :k], -1) for one in (p, q)]
        rests = [np.take_along_axis(one, order[..., k:], -1).sum(-1, keepdims=True) for one in (p, q)]
        one, other = (np.concatenate(pair, -1) for pair in zip(tops, rests, strict=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(one > 0, one * np.log(one / other), 0.0).sum(-1)[:, :-1]
        np.testing.assert_allclose(part[:, 1:], expected, rtol=1e-3, atol=2e-6)
        assert float(part.min()) > -1e-6 and bool(jnp.all(part <= whole + 1e-5))
    assert min(rests[0].min(), 1e-9) < 1e-8  # k = 8 leaves less than what float32 could tell from 1


def test_padding_has_no_probability_in_either_model():
    """Whatever its logits are: the numbers are those of the vocabulary without it, and no gradient reaches it."""
    arrays, targets = make()
    padded = [arrays[0], np.pad(arrays[1], ((0, 0), (0, 3))), arrays[2], np.pad(arrays[3], ((0, 0), (0, 3)))]
    padded[1][:, 23:], padded[3][:, 23:] = 9.0, -7.0
    cases = [("jsd", "full", 1), ("reverse", "teacher-top-k", 5), ("forward", "student-top-k", 23)]

    def losses(models, vocabulary):
        return [
            distillation(
                *models, jnp.asarray(targets), divergence=divergence, support=support, k=k, vocabulary=vocabulary
            ).divergence
            for divergence, support, k in cases
        ]

    @jax.jit
    def both(models, without):
        total, grads = jax.value_and_grad(lambda models: sum(map(jnp.sum, losses(models, 23))))(models)
        return losses(models, 23), losses(without, None), total, grads

    as_float = [[jnp.asarray(array, jnp.float32) for array in one] for one in (padded, arrays)]
    found, expected, total, grads = both(*as_float)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.isfinite(float(total)) and all(np.isfinite(grad).all() for grad in grads)
    np.testing.assert_array_equal(grads[1][:, 23:], 0.0)


def test_the_loss_is_averaged_as_the_policy_gradients_is():
    """At a ratio of 1 an advantage of −d is a loss of d: both average alike, over whatever."""
    rng = np.random.default_rng(3)
    values = jnp.asarray(rng.uniform(size=(4, 7)), jnp.float32)
    mask = jnp.asarray(np.arange(7) < np.array([[7], [3], [1], [0]]))
    zero = jnp.zeros((4, 7))
    for aggregate in ("token", "sequence", "constant"):
        expected, _ = policy_gradient_loss(zero, zero, -values, mask, aggregate=aggregate, constant=9.0)
        loss, metrics = distillation_loss(values, zero + 2.0, mask, aggregate=aggregate, constant=9.0)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["tokens"]) == 11 and float(metrics["gap"]) == 2.0
    np.testing.assert_allclose(metrics["divergence"], np.asarray(values)[np.asarray(mask)].mean(), rtol=1e-6)
    halved, metrics = distillation_loss(values, zero, mask, weights=zero + 0.5)
    np.testing.assert_allclose(halved, 0.5 * metrics["divergence"], rtol=1e-6)


def test_never_holds_the_logits():
    batch, time, vocab, chunk = 2, 2048, 20_000, 32
    shapes = [(batch, time, 16), (16, vocab), (batch, time, 24), (24, vocab)]
    targets = jax.ShapeDtypeStruct((batch, time), jnp.int32)

    def loss(targets, *models):
        options = {"support": "student-top-k", "k": 8, "chunk": chunk}
        return jnp.mean(distillation(*models, targets, **options).divergence)

    program = (
        jax.jit(jax.grad(loss, (1, 2)))
        .lower(targets, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
        .compile()
    )
    one_chunk = 4 * batch * chunk * vocab
    assert program.memory_analysis().temp_size_in_bytes < 16 * one_chunk < 4 * batch * time * vocab / 3
    assert f"{time},{vocab}]" not in program.as_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"divergence": "jsd", "beta": 1.0}, "beta is 1.0"),
        ({"support": "teacher-top-k"}, "k is None"),
        ({"support": "teacher-top-k", "k": 24}, "k is 24; 1 to 23"),
        ({"support": "student-top-k", "k": 20, "vocabulary": 19}, "k is 20; 1 to 19"),
        ({"support": "student-top-k", "k": 1, "tail_bucket": False}, "its divergence is 0"),
    ],
)
def test_refuses(options, says):
    arrays, targets = make()
    with pytest.raises(ValueError, match=says):
        distillation(*(jnp.asarray(a, jnp.float32) for a in arrays), jnp.asarray(targets), **options)


def test_the_whole_support_is_the_plain_divergence():
    arrays, targets = make()
    models = [jnp.asarray(array, jnp.float32) for array in arrays]
    for divergence, plain in (("reverse", reverse_kl), ("forward", forward_kl)):
        found = distillation(*models, jnp.asarray(targets), divergence=divergence).divergence
        np.testing.assert_allclose(found, plain(*models), rtol=1e-6, atol=1e-7)
