import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom import diagnostics as jd

from .matrices import orthogonal


def sampled_walk(shape, norms, k, draws):
    rng = np.random.default_rng(3)
    total = np.zeros((len(norms), len(norms)))
    for _ in range(draws):
        steps = rng.standard_normal((len(norms), *shape)) * np.asarray(norms)[:, None, None]
        v = [np.linalg.svd(w, full_matrices=False)[2][:k].T for w in np.cumsum(steps, axis=0)]
        total += [[np.sum((a.T @ b) ** 2) / k for b in v] for a in v]
    return total / draws


@pytest.mark.parametrize("shape", [(48, 32), (24, 48)])
def test_random_walk_against_a_sampled_walk(shape):
    norms = [1.0, 2.0, 0.5, 1.0, 1.0]
    curve = jax.jit(lambda key: jd.similarity_curve(key, shape=shape, k=4, draws=16))(jax.random.key(0))
    null = np.asarray(jd.random_walk_similarity(curve, np.float32(norms)))
    np.testing.assert_allclose(null, sampled_walk(shape, norms, 4, 40), atol=0.05)
    np.testing.assert_allclose(np.diag(null), 1.0, atol=1e-5)
    np.testing.assert_allclose(null, null.T)


def test_smaller_samples_stand_for_a_larger_shape():
    draw = jax.jit(
        lambda key, limit: jd.similarity_curve(key, shape=(128, 128), k=6, draws=4, size_limit=limit),
        static_argnums=1,
    )
    direct, scaled = draw(jax.random.key(0), 128), draw(jax.random.key(1), 48)
    np.testing.assert_allclose(scaled.mean, direct.mean, atol=0.08)
    assert float(direct.mean[-1]) == pytest.approx(6 / 128)


def test_steps_before_anything_moved_are_undefined():
    curve = jd.SimilarityCurve(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.1]), jnp.zeros(2))
    null = jd.random_walk_similarity(curve, jnp.array([0.0, 1.0, 1.0]))
    assert np.isnan(null[0]).all() and np.isfinite(null[1:, 1:]).all()


def test_disjoint_similarity_of_random_subspaces():
    values = [np.sum((orthogonal(20, 4, s).T @ orthogonal(20, 4, s + 1000)) ** 2) / 4 for s in range(600)]
    assert jd.disjoint_similarity((30, 20), k=4) == pytest.approx(np.mean(values), rel=0.03)
    assert jd.disjoint_similarity_std((30, 20), k=4) == pytest.approx(np.std(values), rel=0.12)
    assert jd.disjoint_similarity_std((30, 4), k=4) == 0.0
