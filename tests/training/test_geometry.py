"""Live geometry against `jg.compare` on the same trees, and against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgeom as jg
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import compare_checkpoints
from jaxgeom.models.names import spectral_specs
from jaxgeom.sharding import make_mesh, parameter_shardings
from jaxgeom.training.geometry import geometry_of
from tests.tiny import tiny_config, tiny_params
from tests.training import runs


def moved(start, size, seed):
    """Noise with a gap behind four directions, so that a subspace means something."""
    rng = np.random.default_rng(seed)

    def one(leaf):
        noise = rng.normal(size=leaf.shape)
        if leaf.ndim > 2:
            left, right = rng.normal(size=(*leaf.shape[:2], 4)), rng.normal(size=(4, *leaf.shape[2:]))
            noise = noise + np.tensordot(left, right, axes=1)
        return leaf + jnp.asarray(size * noise, jnp.float32)

    return jax.tree.map(one, start)


def of_two_modules(tree):
    """Fewer leaves, a smaller program."""
    return {
        "layers": {"attention": {"q": tree["layers"]["attention"]["q"]}, "mlp": {"down": tree["layers"]["mlp"]["down"]}}
    }


@pytest.fixture(scope="module")
def trees():
    config = tiny_config()
    specs, start = (of_two_modules(tree) for tree in (spectral_specs(config), tiny_params(config)))
    return specs, start, moved(start, 1e-4, 1), moved(start, 3e-4, 2)


def test_it_is_the_report(trees):
    specs, start, _, late = trees
    found = geometry_of(specs).of_update(late, start)
    report = jg.compare(start, late, specs, jg.CompareSettings(suite="fast")).to_json()
    sizes = [np.prod(row["shape"]) for row in report["matrices"]]
    for name in ("density_bf16", "relative_norm", "stable_rank"):
        weights = sizes if name == "density_bf16" else None
        mean = np.average([row[name] for row in report["matrices"]], weights=weights)
        assert float(found[f"geometry/{name}"]) == pytest.approx(mean, rel=2e-3), name
        for module in ("q", "down"):
            # Counted over the matrices of a module, all of one size here.
            rows = [row[name] for row in report["matrices"] if f".{module}." in f".{row['name']}."]
            assert len(rows) == 2
            assert float(found[f"geometry/{module}/{name}"]) == pytest.approx(np.mean(rows), rel=2e-3), (module, name)
    assert float(found["geometry/density_bf16_null"]) == pytest.approx(float(found["geometry/density_bf16"]), rel=0.05)


def test_similarity_and_leakage_are_beside_the_subspace_of_the_earlier_step(trees):
    specs, start, early, late = trees
    geometry = geometry_of(specs, subspace_k=4)
    bases = geometry.subspaces(early, start)
    found = geometry.of_update(late, start, bases)
    similarity, leakage = [], []
    for layer in range(2):
        deltas = [
            np.asarray(tree["layers"]["mlp"]["down"]["kernel"][layer], np.float64).T
            - np.asarray(start["layers"]["mlp"]["down"]["kernel"][layer], np.float64).T
            for tree in (early, late)
        ]
        first, second = (np.linalg.svd(delta)[2][:4].T for delta in deltas)
        similarity.append(np.sum((first.T @ second) ** 2) / 4)
        rest = deltas[1] - deltas[1] @ first @ first.T
        leakage.append(np.sum(rest**2) / np.sum(deltas[1] ** 2))
    assert float(found["geometry/down/basis_similarity"]) == pytest.approx(np.mean(similarity), abs=2e-3)
    assert float(found["geometry/down/leakage"]) == pytest.approx(np.mean(leakage), abs=2e-3)
    assert "geometry/basis_similarity" not in geometry.of_update(late, start)


@pytest.mark.slow
def test_on_a_mesh_it_is_the_same(trees):
    specs, start, early, late = trees
    geometry = geometry_of(specs, subspace_k=4)
    mesh = make_mesh(1, 4, 2, 1)
    placed = [jax.device_put(tree, parameter_shardings(tree, mesh)) for tree in (start, early, late)]
    wanted = geometry.of_update(late, start, geometry.subspaces(early, start))
    found = geometry.of_update(placed[2], placed[0], geometry.subspaces(placed[1], placed[0]))
    step = geometry.of_step(placed[1], placed[2])
    for name, value in {**wanted, **geometry.of_step(early, late)}.items():
        assert float((found | step)[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_a_run_is_measured_as_its_checkpoints_are(jaxgeom, inputs, tmp_path):
    given = {"geometry_every": 2, "geometry_step": 2, "geometry_rank": 4, "eval_data": None}
    assert runs.train(inputs, tmp_path / "run", **given) == 0
    rows = [row for row in runs.logged(tmp_path / "run") if "geometry/stable_rank" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert "geometry/leakage" not in rows[0] and rows[1]["geometry/leakage"] > 0
    report = compare_checkpoints(
        open_checkpoint(f"{tmp_path / 'run'}@0"), open_checkpoint(f"{tmp_path / 'run'}@4"),
        jg.CompareSettings(suite="fast"),
    ).to_json()  # fmt: skip
    assert rows[1]["geometry/stable_rank"] == pytest.approx(report["summary"]["stable_rank"]["mean"], rel=2e-3)
    assert 0 < rows[1]["step_geometry/density_bf16"] < rows[1]["geometry/density_bf16"] * 1.01

    # Gone on with behind the step that it is compared with, and from host memory, it is the same.
    more = ("--geometry-reference", "host")
    assert runs.train(inputs, tmp_path / "parts", *more, **given | {"steps": 2}) == 0
    assert runs.train(inputs, tmp_path / "parts", *more, **given) == 0
    assert runs.logged(tmp_path / "parts") == runs.logged(tmp_path / "run")

    # A step that was gone past and not saved is no reference: nothing of the finished run is touched.
    held = runs.files(tmp_path / "run")
    said = jaxgeom(
        *runs.arguments(inputs, tmp_path / "run", **given | {"geometry_step": 1, "save_every": 1, "steps": 6})
    )
    assert said.status == 2 and "geometry_step=1: the run went past it, and checkpoints/1 is not whole" in said.err
    assert runs.files(tmp_path / "run") == held


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"geometry_every": -1}, "geometry_every=-1"),
        ({"geometry_step": 2}, "geometry_every=0"),
        ({"geometry_every": 1, "geometry_step": 3}, "geometry_step=3: no step that is saved"),
        ({"geometry_every": 1, "geometry_step": 6}, "geometry_step=6: no step that is saved"),
    ],
)
def test_what_cannot_be_measured_is_refused(jaxgeom, inputs, tmp_path, given, words):
    said = jaxgeom(*runs.arguments(inputs, tmp_path / "run", **given))
    assert said.status == 2 and words in said.err and said.err.count("\n") == 1, said.err
    assert not (tmp_path / "run").exists()
