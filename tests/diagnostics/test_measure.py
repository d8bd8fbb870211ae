"""`measure`: every cheap number against float64 NumPy, under every transformation, and on leaves that stay split."""

import functools
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxgeom import diagnostics as jd
from jaxgeom import sharding
from jaxgeom.diagnostics import MatrixSpec

from .matrices import as_bf16, from_spectrum, gaussian, orthogonal

DIM, HEADS, INNER, LAYERS, K = 64, 8, 96, 2, 4

SPECS = {
    "layers": {
        "attention": {"q": {"kernel": MatrixSpec((2, 3), (1,), (0,))}, "o": {"kernel": MatrixSpec((3,), (1, 2), (0,))}},
        "mlp": {"gate": {"kernel": MatrixSpec((2,), (1,), (0,))}, "down": {"kernel": MatrixSpec((2,), (1,), (0,))}},
        "input_norm": {"scale": None},
    }
}
SHAPES = {
    "layers": {
        "attention": {
            "q": {"kernel": (LAYERS, DIM, HEADS, DIM // HEADS)}, "o": {"kernel": (LAYERS, HEADS, DIM // HEADS, DIM)}
        },
        "mlp": {"gate": {"kernel": (LAYERS, DIM, INNER)}, "down": {"kernel": (LAYERS, INNER, DIM)}},
        "input_norm": {"scale": (LAYERS, DIM)},
    }
}  # fmt: skip
OPTIONS = {"subspace_k": K}


def is_shape(node) -> bool:
    return isinstance(node, tuple) and not isinstance(node, MatrixSpec)


def is_spec(node) -> bool:
    return node is None or isinstance(node, MatrixSpec)


@functools.cache
def trees():
    """Two trees and bases; updates have decaying spectra, which the iteration takes few rounds for."""

    def updated(w, spec):
        if spec is None:
            return w + np.float32(1e-3)
        shape = jd.matrix_shape(w.shape, spec)
        steps = [from_spectrum(*shape[1:], 1e-2 * 0.8 ** np.arange(12), seed=layer) for layer in range(LAYERS)]
        return w + np.asarray(jd.from_matrix(np.stack(steps).astype(np.float32), spec, w.shape))

    params0 = jax.tree.map(lambda s: gaussian(s, seed=sum(s)).astype(np.float32), SHAPES, is_leaf=is_shape)
    params1 = jax.tree.map(lambda spec, w: updated(w, spec), SPECS, params0, is_leaf=is_spec)

    def basis(spec, w):
        if spec is None:
            return None
        columns = jd.matrix_shape(w.shape, spec)[-1]
        return np.stack([orthogonal(columns, K, seed) for seed in range(LAYERS)]).astype(np.float32)

    return params0, params1, jax.tree.map(basis, SPECS, params0, is_leaf=is_spec)


def cheap(params0, params1, bases):
    return jd.measure(params0, params1, SPECS, bases=bases, **OPTIONS)


@functools.cache
def whole():
    return jax.jit(cheap)(*trees())


def numpy_numbers(a: np.ndarray, b: np.ndarray, basis: np.ndarray) -> dict[str, float]:
    """The definitions, on one matrix in float64."""
    stored = b.astype(np.float64) - a
    _, s, vt = np.linalg.svd(stored)
    changed = as_bf16(a) != as_bf16(b)
    ulp = 2.0 ** (np.floor(np.log2(np.abs(as_bf16(a)))) - 7)
    squares, top = np.square(s), vt[: basis.shape[1]]
    wide = basis.astype(np.float64)
    return {
        "sparsity_bf16": 1 - changed.mean(),
        "density_bf16": changed.mean(),
        "sparsity_stored": (a == b).mean(),
        "sparsity_abs_1e-5": (np.abs(stored) <= 1e-5).mean(),
        "sparsity_rms_0.01": (np.abs(stored) <= 1e-2 * np.sqrt(np.square(a.astype(np.float64)).mean())).mean(),
        "share_beyond_half_ulp": (np.abs(stored) > ulp / 2).mean(),
        "fro_norm": np.sqrt(squares.sum()),
        "relative_norm": np.sqrt(squares.sum()) / np.linalg.norm(a.astype(np.float64)),
        "decay": (stored * a).sum() / np.square(a.astype(np.float64)).sum(),
        "op_norm": s[0],
        "stable_rank": squares.sum() / squares[0],
        f"energy_top_{K}": squares[:K].sum() / squares.sum(),
        "participation_ratio": squares.sum() ** 2 / np.square(squares).sum(),
        "basis_similarity": np.square(top @ wide).sum() / K,
        "leakage": np.square(stored - stored @ wide @ wide.T).sum() / squares.sum(),
    }


def check_against_numpy(measured, rtol: float, atol: float) -> None:
    params0, params1, bases = trees()
    leaves = zip(*(jax.tree.leaves(t, is_leaf=is_spec) for t in (SPECS, params0, params1)), strict=True)
    kept = [(spec, a, b) for spec, a, b in leaves if spec is not None]
    for place, ((spec, a, b), basis) in enumerate(zip(kept, jax.tree.leaves(bases), strict=True)):
        for layer in range(LAYERS):
            pair = (np.asarray(jd.as_matrix(w, spec))[layer] for w in (a, b))
            for name, value in numpy_numbers(*pair, basis[layer]).items():
                found = jax.tree.leaves(measured[name])[place][layer]
                np.testing.assert_allclose(found, value, rtol=rtol, atol=atol, err_msg=name)


def test_every_cheap_number_is_its_definition_in_float32():
    measured = whole()
    assert all(leaf.shape == (LAYERS,) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(measured))
    assert jax.tree.structure(measured["stable_rank"]) == jax.tree.structure(
        jax.tree.map(lambda s: None if s is None else 0, SPECS, is_leaf=is_spec)
    )
    check_against_numpy(measured, rtol=5e-6, atol=1e-8)


def test_every_cheap_number_is_its_definition_in_float64():
    with jax.enable_x64(True):
        check_against_numpy(jax.jit(cheap)(*trees()), rtol=1e-9, atol=1e-12)


# A matrix without gaps, where iterations are at their slowest, beside one whose spectrum ends and one that is zero.
def test_leading_values_are_exact_where_the_spectrum_has_no_gaps():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        ended = from_spectrum(160, 200, np.array([3.0, 2.0, 1.0]), seed=3)
        w1 = np.stack([rng.standard_normal((160, 200)), np.eye(160, 200), ended, np.zeros((160, 200))])
        specs, names = {"w": MatrixSpec((1,), (2,), (0,))}, ("op_norm", "stable_rank", "energy_top_16")
        measured = jax.jit(lambda w: jd.measure({"w": 0.0 * w}, {"w": w}, specs, statistics=names))(w1)
        s = np.linalg.svd(w1, compute_uv=False)[:3]
        expected = s[:, 0], np.square(s).sum(-1) / s[:, 0] ** 2, np.square(s[:, :16]).sum(-1) / np.square(s).sum(-1)
        for name, values in zip(names, expected, strict=True):
            np.testing.assert_allclose(measured[name]["w"][:3], values, rtol=1e-11, err_msg=name)
        assert measured["op_norm"]["w"][3] == 0 and np.isnan(measured["stable_rank"]["w"][3])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
def test_no_leaf_is_gathered_where_the_leaves_are_sharded(axis_type):
    params0, params1, bases = trees()
    mesh = jax.make_mesh((1, 4, 2, 1), sharding.AXES, axis_types=(axis_type,) * 4)
    with jax.set_mesh(mesh):
        shardings = sharding.parameter_shardings(params0, mesh)
        placed = (*jax.device_put((params0, params1), (shardings, shardings)), bases)
        compiled = jax.jit(cheap).lower(*placed).compile()
        text = compiled.as_text()
        assert "all-reduce" in text and "all-to-all" not in text
        smallest = DIM * DIM
        for result in re.findall(r"= (\S+) (?:all-gather|collective-permute)", text):
            sizes = [int(size) for size in re.search(r"\[([\d,]*)\]", result)[1].split(",")]
            assert np.prod(sizes) < smallest / 4, result
        whole_leaf = {DIM * DIM * LAYERS, DIM * INNER * LAYERS}
        shapes = {np.prod([int(size) for size in found.split(",")]) for found in re.findall(r"f32\[([\d,]+)\]", text)}
        assert not whole_leaf & shapes
        measured = compiled(*placed)
    for name, tree in whole().items():
        for one, other in zip(jax.tree.leaves(measured[name]), jax.tree.leaves(tree), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9, err_msg=name)


def test_under_vmap_and_inside_shard_map():
    names = ("sparsity_bf16", "decay_z", "stable_rank", "participation_ratio")
    params0, params1, _ = trees()
    a, b = (tree["layers"]["mlp"]["gate"]["kernel"] for tree in (params0, params1))
    one = {"w": MatrixSpec((1,), (0,))}
    fn = jax.vmap(lambda a, b: jd.measure({"w": a}, {"w": b}, one, statistics=names))
    mesh, split = jax.make_mesh((2,), ("layer",), axis_types=(AxisType.Auto,)), PartitionSpec("layer")
    for mapped in (fn, jax.shard_map(fn, mesh=mesh, in_specs=(split, split), out_specs=split)):
        measured = jax.jit(mapped)(a, b)
        for name in names:
            if name in whole():
                np.testing.assert_allclose(
                    measured[name]["w"], whole()[name]["layers"]["mlp"]["gate"]["kernel"], rtol=1e-5, err_msg=name
                )


DIFFERENTIABLE = ("fro_norm", "relative_norm", "decay", "op_norm", "stable_rank", "energy_top_4", "participation_ratio")


def test_gradients_are_central_differences():
    with jax.enable_x64(True):
        w0, w1, direction = (jnp.asarray(gaussian((2, 14, 3, 4), seed, 1.0)) for seed in range(3))
        specs = {"w": MatrixSpec((2, 3), (1,), (0,))}

        @jax.jit
        def numbers(w):
            measured = jd.measure({"w": w0}, {"w": w}, specs, statistics=DIFFERENTIABLE, **OPTIONS)
            return jnp.stack([jnp.sum(measured[name]["w"]) for name in DIFFERENTIABLE])

        h = 1e-5
        numeric = (numbers(w1 + h * direction) - numbers(w1 - h * direction)) / (2 * h)
        analytic = jnp.sum(jax.jit(jax.jacrev(numbers))(w1) * direction, axis=(1, 2, 3, 4))
        np.testing.assert_allclose(analytic, numeric, rtol=1e-6)


def test_unknown_names_are_said_with_their_neighbours():
    params0, params1, _ = trees()
    for statistics, options, said in (
        (("stable_rnk",), {}, "'stable_rnk'; near it: .*stable_rank"),
        (("stable_rank",), {"sub_space_k": 3}, "'sub_space_k'; near it: subspace_k"),
        (("leakage",), {}, "leakage needs bases"),
        (("fro_norm_null",), {}, "fro_norm_null"),
    ):
        with pytest.raises(ValueError, match=said):
            jd.measure(params0, params1, SPECS, statistics=statistics, **options)
    with pytest.raises(ValueError, match="params1 does not have the structure of specs"):
        jd.measure(params0, {"layers": 1}, SPECS)


def test_vmapped_decompositions_side_by_side_end():
    """More batched decompositions at once than XLA's pool has threads: they waited for each other for ever."""
    program = textwrap.dedent("""
        import os
        os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:2]))
        import jax, jax.numpy as jnp
        from jaxgeom import diagnostics as jd
        keys = jax.random.split(jax.random.key(0), 4)
        leaves = [jax.random.normal(key, (16, 48, 32)) for key in keys]

        def statistics(w):
            angles = jd.principal_angles(w, w.T @ w @ w.T, k=4) if w.shape[0] == w.shape[1] else ()
            return jd.entropy_rank(w), jd.top_subspace(w, k=4), jd.top_subspace(w, k=4, method="krylov"), angles

        def total(leaves):
            return sum(jnp.sum(x) for leaf in leaves for x in jax.tree.leaves(jax.vmap(statistics)(leaf)))

        for _ in range(3):
            jax.block_until_ready(jax.jit(jax.value_and_grad(total))(leaves))
        print("ended")
    """)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout.strip() == "ended", ran.stderr[-2000:]


PARTS = {
    "sparsity_bf16": 1.2,  # what is counted runs over one update
    "decay": 2.2,  # both sides, widened
    "participation_ratio": 3.0,  # the update, its transpose, and thin blocks
    "stable_rank": 4.4,  # those, and the update once more beside its products in the iteration
    "sparsity_bf16_z": 7.2,  # histograms: bits, bins and weights of every entry, on both grids that W+ may be on
}
"""Temporary memory in a device's parts of the leaf (a whole leaf is 8): measured 1.03, 2.00, 2.75, 4.07 and 5.75."""


@pytest.mark.parametrize("name", PARTS)
def test_memory_beside_a_sharded_leaf_is_a_few_of_its_parts(name):
    """Compiled for 8 devices from shapes alone."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        split = jax.sharding.NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
        leaf = jax.ShapeDtypeStruct((4, 1024, 8, 128), jnp.float32, sharding=split)
        specs = {"w": MatrixSpec((2, 3), (1,), (0,))}
        fn = jax.jit(lambda a, b: jd.measure({"w": a}, {"w": b}, specs, statistics=(name,)))
        compiled = fn.lower(leaf, leaf).compile()
    part = 4 * 4 * 1024 * 1024 / 8
    assert compiled.memory_analysis().temp_size_in_bytes < PARTS[name] * part
    # Neither a matrix of one layer nor the leaf: histograms of sharded weights are added up too.
    assert not re.search(r" (all-gather|all-to-all|collective-permute)\(", compiled.as_text())


def test_a_call_outside_of_jit_is_one_program_compiled_once(caplog):
    specs = {"w": MatrixSpec((2,), (1,), (0,)), "bias": None}
    trees = [{"w": jnp.asarray(gaussian((2, 5, 7), seed)), "bias": None} for seed in (0, 1)]

    def compiled(**options):
        caplog.clear()
        with jax.log_compiles(True):
            jd.measure(*trees, specs, statistics=("fro_norm", "relative_norm"), **options)
        said = [re.search(r"Finished XLA compilation of (\S+)", record.getMessage()) for record in caplog.records]
        return [found[1] for found in said if found]

    assert len(compiled()) == 1 and not compiled() and len(compiled(eta=2e-3)) == 1
