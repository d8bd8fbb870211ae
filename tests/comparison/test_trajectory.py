"""Trajectories against float64 NumPy, and against chance."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.comparison import CompareSettings, compare, compare_checkpoints, trajectory_checkpoints
from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.errors import UserError
from tests.comparison import disk

NAME = "model.layers.0.mlp.{}_proj.weight"
K = 3


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """Two matrices of a run with five checkpoints: a random walk with growing steps."""
    folder, rng = tmp_path_factory.mktemp("walk"), np.random.default_rng(0)
    weights = [
        {
            NAME.format(m): (rng.standard_normal(s) * 0.02).astype(np.float32)
            for m, s in (("up", (60, 40)), ("down", (40, 60)))
        }
    ]
    for step in range(1, 6):
        weights.append(
            {n: (w + rng.standard_normal(w.shape) * 1e-4 * step).astype(np.float32) for n, w in weights[-1].items()}
        )
    paths = [disk.write(folder / str(step), side) for step, side in enumerate(weights)]
    return weights, [open_checkpoint(path) for path in paths]


def right(delta: np.ndarray) -> np.ndarray:
    return np.linalg.svd(delta, full_matrices=False)[2][:K].T


def sim(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.linalg.svd(right(a).T @ right(b), compute_uv=False) ** 2).sum() / K)


def test_every_step_equals_the_float64_oracle(walk, tmp_path):
    weights, checkpoints = walk
    settings = CompareSettings(subspace_k=K, hill_k=8)
    result = trajectory_checkpoints(checkpoints[0], list(enumerate(checkpoints))[1:], settings, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "trajectory.json").read_text()) == json.loads(json.dumps(result))
    assert result["steps"] == [1, 2, 3, 4, 5]
    full = np.zeros((5, 5))
    for row in result["matrices"]:
        path = [side[row["name"]].astype(np.float64) for side in weights]
        deltas = [w - path[0] for w in path[1:]]
        increments = [np.linalg.norm(b - a) for a, b in zip(path, path[1:], strict=False)]
        for t, delta in enumerate(deltas):
            s = np.linalg.svd(delta, compute_uv=False)
            assert row["stable_rank"][t] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-9)
            assert row["fro_norm"][t] == pytest.approx(np.linalg.norm(delta), rel=1e-9)
            assert row["hill"][t] == pytest.approx(1 / np.mean(np.log(s[:7] / s[7])), rel=1e-7)
            view = disk.bf16(weights[t + 1][row["name"]]) - disk.bf16(weights[0][row["name"]])
            z = np.linalg.svd(view, compute_uv=False)
            assert row["stable_rank_bf16"][t] == pytest.approx((z**2).sum() / z[0] ** 2, rel=1e-5)
            assert row["sparsity_bf16"][t] == pytest.approx((view == 0).mean())
            assert row["sim_to_final"][t] == pytest.approx(sim(delta, deltas[-1]), abs=1e-7)
            assert row["drift_ratio"][t] == pytest.approx(
                np.linalg.norm(delta) / np.sqrt(np.square(increments[: t + 1]).sum())
            )
            if t < 4:
                rest = path[-1] - path[t + 1]
                assert row["sim_disjoint"][t] == pytest.approx(sim(delta, rest), abs=1e-3)
                cosine = (delta * rest).sum() / np.linalg.norm(delta) / np.linalg.norm(rest)
                assert row["cosine_to_rest"][t] == pytest.approx(cosine, abs=1e-9)
            full[t] += [sim(delta, other) / 2 for other in deltas]
    np.testing.assert_allclose(np.array(result["similarity"]["full"], float), full, atol=1e-7)
    null = np.array(result["similarity"]["full_null"], float)
    assert np.all(np.diff(null[:, -1]) > 0) and null[-1, -1] == pytest.approx(1, abs=1e-5)
    assert result["similarity"]["disjoint"][3][1] is None
    assert result["summary"]["sim_disjoint"]["null"][0] == pytest.approx((K / 40 + K / 60) / 2)
    assert result["coverage"]["hill"] == {"parameters": 1.0, "matrices": 2}


def test_fast_suite_and_a_step_at_which_nothing_had_moved(walk):
    _, checkpoints = walk
    settings = CompareSettings(suite="fast", subspace_k=K)
    result = trajectory_checkpoints(
        checkpoints[0], [(0, checkpoints[0]), (1, checkpoints[1]), (2, checkpoints[2])], settings
    )
    assert result["summary"]["stable_rank"]["mean"][0] is None and result["summary"]["stable_rank"]["mean"][1] > 1
    assert result["summary"]["hill"]["mean"] == [None, None, None]
    json.dumps(result, allow_nan=False)


def test_steps_out_of_order_and_empty_trajectories_are_refused(walk):
    _, checkpoints = walk
    with pytest.raises(UserError, match="at least one"):
        trajectory_checkpoints(checkpoints[0], [])
    with pytest.raises(UserError, match="ascend: 2, 1"):
        trajectory_checkpoints(checkpoints[0], [(2, checkpoints[1]), (1, checkpoints[2])])


def test_trees_in_memory_give_what_files_give(tmp_path):
    initial = disk.weights(layers=2)
    final = disk.moved(initial, 1e-3)
    files = [open_checkpoint(disk.write(tmp_path / name, side)) for name, side in (("a", initial), ("b", final))]
    settings = CompareSettings(angle_k=8, mask_rank=5)
    on_disk = {row["name"]: row for row in compare_checkpoints(*files, settings).matrices}

    def tree(side):
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2)]
        kernel = jnp.stack([jnp.asarray(side[name].T) for name in names])
        return {
            "layers": {"mlp": {"up": {"kernel": kernel}}},
            "norm": {"scale": jnp.asarray(side["model.norm.weight"])},
        }

    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    trees = [tree(side) for side in (initial, final)]
    trees[1]["layers"]["mlp"]["up"]["kernel"] = jax.device_put(trees[1]["layers"]["mlp"]["up"]["kernel"], shard)
    specs = {"layers": {"mlp": {"up": {"kernel": MatrixSpec((2,), (1,), (0,))}}}, "norm": {"scale": None}}
    report = compare(*trees, specs, settings)
    for layer, row in enumerate(report.matrices):
        theirs = on_disk[f"model.layers.{layer}.mlp.up_proj.weight"]
        assert row["layer"] == layer and row["module"] == "up" and row["shape"] == theirs["shape"]
        for name in (
            "nss",
            "stable_rank",
            "overlap_low",
            "overlap_principal",
            "angle_left_max_deg",
            "projection_right",
        ):
            assert row[name] == theirs[name], name
    assert report.parameters[0]["group"] == "norm"
    with pytest.raises(UserError, match="specs have no entry for norm.scale"):
        compare(*trees, {"layers": specs["layers"]}, settings)
