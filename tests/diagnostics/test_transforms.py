"""Every public diagnostic under jit (traced once), vmap, shard_map, and on arrays sharded over 8 devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgeom import diagnostics as jd

from . import tolerances as tol
from .matrices import gaussian

B, M, N = 4, 16, 8

# Each takes w0, w1 [..., out, in] and gives one array or a tuple of arrays, batch axes first.
FUNCTIONS = {
    "visible_sparsity": jd.visible_sparsity,
    "visible_density": jd.visible_density,
    "stored_sparsity": jd.stored_sparsity,
    "absolute_sparsity": jd.absolute_sparsity,
    "relative_sparsity": jd.relative_sparsity,
    "ulp_share": jd.ulp_share,
    "hidden_by_decile": lambda a, b: jd.hidden_by_decile(jd.entry_counts(a, b)),
    "entry_statistics": lambda a, b: jd.entry_statistics(jd.entry_counts(a, b), eta=1e-3),
    "update_nulls": lambda a, b: jd.update_null_statistics(a, b, {"overlap_low": a > 0}),
    "relative_norm": jd.relative_norm,
    "stable_rank": lambda a, b: jd.stable_rank(jd.update(a, b)),
    "stable_rank_krylov": lambda a, b: jd.stable_rank(jd.update(a, b), method="krylov", iterations=4, block=2),
    "hill_estimate": lambda a, b: jd.hill_estimate(jd.update(a, b), k=4),
    "entropy_rank": lambda a, b: jd.entropy_rank(jd.bf16_update(a, b)),
    "participation_ratio": lambda a, b: jd.participation_ratio(jd.update(a, b)),
    "energy_share": lambda a, b: jd.energy_share(jd.update(a, b), k=2),
    "nss": jd.normalized_spectral_shift,
    "nss_without_decay": jd.nss_without_decay,
    "principal_angles": lambda a, b: tuple(jd.principal_angles(a, b, k=3)),
    "subspace_similarity": lambda a, b: jd.subspace_similarity(
        jd.top_subspace(a, k=3), jd.top_subspace(jd.update(a, b), k=3)
    ),
    "similarity_left": lambda a, b: jd.subspace_similarity(
        jd.top_subspace(a, k=3, side="left", method="krylov"), jd.top_subspace(b, k=3, side="left")
    ),
    "projection_energy": lambda a, b: tuple(jd.projection_energy(a, jd.update(a, b), k=2)),
    "leakage": lambda a, b: jd.subspace_leakage(jd.update(a, b), jd.top_subspace(a, k=2)),
    "principal_mask": lambda a, b: jd.principal_mask(a, rank=2, fraction=0.3),
    "low_magnitude_mask": lambda a, b: jd.low_magnitude_mask(a, fraction=0.3),
    "mask_overlap": lambda a, b: jd.mask_overlap(jd.low_magnitude_mask(a, fraction=0.3), jd.changed_mask(a, b)),
    "changed_overlaps": lambda a, b: tuple(jd.changed_overlaps(jd.changed_mask(a, b), a > 0)),
    "decay": jd.decay_component,
    "orthogonal_share": lambda a, b: jd.orthogonal_share(a, jd.update(a, b)),
    "path_cosine": lambda a, b: jd.path_cosine(a, b, 2.0 * a),
    "rounding_null": lambda a, b: tuple(
        jd.rounding_null(a, jd.low_magnitude_mask(a, fraction=0.3), jd.visible_density(a, b))
    ),
    "rounding_null_bf16": lambda a, b: tuple(jd.rounding_null(a.astype(jnp.bfloat16), a > 0, jd.visible_density(a, b))),
    "cross_run_null": lambda a, b: tuple(
        jd.cross_run_null(a, jd.visible_density(a, b), 0.5 + 0 * jd.decay_component(a, b)).jaccard
    ),
    "rounding_deciles": lambda a, b: jd.rounding_null_by_decile(a, jd.visible_density(a, b)).mean,
    "update_numbers": lambda a, b: {
        key: x
        for key, x in jd.update_statistics(
            jd.singular_values(jd.update(a, b)),
            shape=(M, N),
            kurtosis=jd.entry_kurtosis(jd.update(a, b)),
            hill_k=4,
            subspace_k=2,
        ).items()
        if not key.endswith(("_excess", "_z"))  # differences of nearly equal numbers
    },
    "shift_numbers": lambda a, b: {
        key: x
        for key, x in jd.shift_statistics(
            jd.singular_values(a),
            jd.singular_values(b),
            jd.norm_matched_shift(jd.singular_values(a), jd.frobenius_norm(jd.update(a, b)), shape=(M, N)),
        ).items()
        if not key.endswith(("_excess", "_z"))
    },
    "rounded_update": lambda a, b: jd.rounded_update(a, jd.update(a, b), jd.frobenius_norm(jd.update(a, b))),
}


# One program per group: compiling is what these tests cost, and of two of them most.
LONG = ("update_nulls", "entry_statistics")
NAMES = [name for name in FUNCTIONS if name not in LONG]
GROUPS = [tuple(NAMES[i::4]) for i in range(4)]
ALL = [*GROUPS, pytest.param(LONG, marks=pytest.mark.slow)]


def together(names: tuple[str, ...]):
    return lambda a, b: {name: FUNCTIONS[name](a, b) for name in names}


def pair() -> tuple[jax.Array, jax.Array]:
    w0 = gaussian((B, M, N)).astype(np.float32)
    return jnp.asarray(w0), jnp.asarray(w0 + gaussian((B, M, N), 1, 1e-4).astype(np.float32))


@functools.cache
def single(names: tuple[str, ...]):
    """The first two matrices one by one."""
    w0, w1 = pair()
    fn = jax.jit(together(names))
    rows = [fn(w0[i], w1[i]) for i in range(2)]
    return jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows)


def check(names: tuple[str, ...], value) -> None:
    expected = single(names)
    for name in names:
        for x, y in zip(jax.tree.leaves(value[name]), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(np.asarray(x)[:2], y, rtol=2e-3, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("names", ALL)
def test_jit_traces_once_and_batches_like_single_matrices(names):
    w0, w1 = pair()
    chex.clear_trace_counter()
    fn = jax.jit(chex.assert_max_traces(together(names), n=1))
    check(names, fn(w0, w1))
    fn(w1, w0)


@pytest.mark.parametrize("names", ALL)
def test_vmap_inside_shard_map(names):
    mesh = jax.make_mesh((2,), ("layer",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("layer")
    fn = jax.shard_map(jax.vmap(together(names)), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    check(names, jax.jit(fn)(*pair()))


def sharded(names: tuple[str, ...], axis_type: AxisType, *spec: str | None) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        w0, w1 = (jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))) for x in pair())
        check(names, jax.jit(together(names))(w0, w1))


@pytest.mark.parametrize("names", ALL)
def test_sharded_over_eight_devices_with_explicit_axes(names):
    sharded(names, AxisType.Explicit, None, "fsdp", "tensor")


def test_sharded_over_eight_devices_with_auto_axes():
    # The same programs without shardings in the types: one of each kind of computation.
    names = ("visible_sparsity", "stable_rank", "principal_angles", "low_magnitude_mask", "rounding_null_bf16")
    sharded(names, AxisType.Auto, None, "fsdp", "tensor")


def test_batch_axis_may_be_sharded_with_the_matrix():
    names = ("stable_rank", "low_magnitude_mask", "principal_angles", "rounding_null_bf16")
    sharded(names, AxisType.Explicit, "fsdp", "tensor", None)


def test_sharded_kernels_read_as_matrices_under_explicit_axes():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    spec = jd.MatrixSpec(out=(2, 3), in_=(1,), batch=(0,))
    kernel = gaussian((2, 8, 4, 6)).astype(np.float32)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None)))
        ranks = jax.jit(lambda k: jd.map_matrices(jd.stable_rank, spec, k))(sharded)
    np.testing.assert_allclose(ranks, jd.stable_rank(jd.as_matrix(kernel, spec)), rtol=1e-5)


@pytest.mark.parametrize("method", ["svd", "krylov"])
def test_no_decomposition_waits_for_the_pool_that_it_runs_on(method):
    """LAPACK calls on a batch block a thread of XLA's pool: as many side by side as it has threads never end."""

    def several(a, b):
        ranks = jd.stable_rank(b - a, method=method, **({"iterations": 2, "block": 2} if method == "krylov" else {}))
        return ranks, jd.principal_angles(a, b, k=2, method=method)

    text = jax.jit(jax.grad(lambda a, b: several(a, b)[0].sum())).lower(*pair()).as_text()
    text += jax.jit(several).lower(*pair()).as_text()
    calls = [line for line in text.splitlines() if "custom_call @lapack" in line]
    assert calls and not [line for line in calls if re.search(r"tensor<\d+x\d+x\d+x", line)]


GRADIENTS = {
    "stable_rank": lambda d, w: jd.stable_rank(d),
    "stable_rank_krylov": lambda d, w: jd.stable_rank(d, method="krylov"),
    "nss": lambda d, w: jd.normalized_spectral_shift(w, w + d),
    "projection_joint": lambda d, w: jd.projection_energy(w, d, k=2).joint,
    "projection_left": lambda d, w: jd.projection_energy(w, d, k=2).left,
    "projection_of_w0": lambda d, w: jd.projection_energy(d, w, k=2).right,
    "similarity": lambda d, w: jd.subspace_similarity(jd.top_subspace(d, k=2), jd.top_subspace(w, k=2)),
    "similarity_left": lambda d, w: jd.subspace_similarity(
        jd.top_subspace(d, k=2, side="left"), jd.top_subspace(w, k=2, side="left")
    ),
    "participation_ratio": lambda d, w: jd.participation_ratio(d),
    "frobenius": lambda d, w: jd.frobenius_norm(d),
    "leakage": lambda d, w: jd.subspace_leakage(d, jnp.linalg.qr(w)[0][: d.shape[1], :2] * 0.5),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_against_central_differences(name):
    with jax.enable_x64(True):
        d, w = jnp.asarray(gaussian((9, 6), 1, 1.0)), jnp.asarray(gaussian((9, 6), 2, 1.0))
        direction = jnp.asarray(gaussian((9, 6), 3, 1.0))
        fn = jax.jit(GRADIENTS[name])
        h = 1e-5
        numeric = (fn(d + h * direction, w) - fn(d - h * direction, w)) / (2 * h)
        analytic = jnp.sum(jax.jit(jax.grad(GRADIENTS[name]))(d, w) * direction)
        np.testing.assert_allclose(analytic, numeric, rtol=tol.GRADIENT, atol=1e-8)


def test_gradients_at_the_start_of_training_are_finite():
    w = jnp.asarray(gaussian((6, 5)), jnp.float32)
    assert np.isfinite(np.asarray(jax.grad(lambda x: jd.normalized_spectral_shift(w, x))(w))).all()
    assert np.isfinite(np.asarray(jax.grad(jd.frobenius_norm)(jnp.zeros((6, 5))))).all()


def test_float64_stays_float64():
    with jax.enable_x64(True):
        w0, w1 = (jnp.asarray(np.asarray(x, np.float64)) for x in pair())
        for name in ("stable_rank", "nss", "principal_angles", "projection_energy", "orthogonal_share"):
            assert {x.dtype.name for x in jax.tree.leaves(FUNCTIONS[name](w0[0], w1[0]))} == {"float64"}
