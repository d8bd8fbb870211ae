"""Trajectories against float64 NumPy, and against chance."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxgeom import diagnostics
from jaxgeom.checkpoints import open_checkpoint
from jaxgeom.checkpoints.learning_rates import LearningRates
from jaxgeom.comparison import CompareSettings, compare, compare_checkpoints, trajectory_checkpoints
from jaxgeom.comparison.one_matrix import pair as matrix_module
from jaxgeom.comparison.one_matrix import weight_changes
from jaxgeom.diagnostics.matrix_spec import MatrixSpec
from jaxgeom.errors import UserError
from tests.comparison import disk
from tests.study import populations

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
    assert result["settings"]["used"] == {"subspace_k": {str(K): 2}, "hill_k": {"8": 2}}
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


def test_z_of_independent_isotropic_steps_is_standard(tmp_path):
    """48 matrices walk at random: each null with a deviation gives a z of mean 0 and deviation 1 over them."""
    rng = np.random.default_rng(3)
    sides = [{f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((60, 40)) * 0.02 for i in range(48)}]
    for scale in (4e-5, 6e-5, 5e-5):
        sides.append({name: w + scale * rng.standard_normal(w.shape) for name, w in sides[-1].items()})
    checkpoints = [
        open_checkpoint(disk.write(tmp_path / str(step), {name: w.astype(np.float32) for name, w in side.items()}))
        for step, side in enumerate(sides)
    ]
    settings = CompareSettings(subspace_k=K, hill_k=8)
    result = trajectory_checkpoints(checkpoints[0], list(enumerate(checkpoints))[1:], settings)
    places = {
        "stable_rank": (0, 1, 2), "hill": (0, 1, 2), "sparsity_bf16": (0, 1, 2), "drift_ratio": (1, 2),
        "path_cosine": (0, 1), "cosine_to_rest": (0, 1), "sim_to_final": (0, 1), "sim_disjoint": (0, 1),
    }  # fmt: skip
    for name, indices in places.items():
        z = np.array([[row[f"{name}_z"][index] for index in indices] for row in result["matrices"]])
        assert np.all(np.abs(z.mean(0)) < 0.9), (name, z.mean(0))
        assert np.all((z.std(0) > 0.6) & (z.std(0) < 1.6)), (name, z.std(0))
        values = [row[name][0] - row[f"{name}_null"][0] for row in result["matrices"]]
        if name != "drift_ratio":
            assert [row[f"{name}_excess"][0] for row in result["matrices"]] == pytest.approx(values, abs=1e-12)
        assert result["summary"][name]["z"][indices[0]] == pytest.approx(z[:, 0].mean())
    row = result["matrices"][0]
    assert row["sim_to_final_z"][-1] is None and row["drift_ratio_z"][0] is None
    assert row["stable_rank_bf16_z"] == [None] * 3 and result["summary"]["stable_rank_bf16"]["z"] is None


def test_a_rounded_walk_has_one_disjoint_null_in_curve_and_heat_map(tmp_path):
    """24 matrices walk at random and are stored in bfloat16: the null of every pair of stretches is their mean."""
    rng = np.random.default_rng(5)
    walked = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal((60, 40)) * 0.02 for i in range(24)}
    walked = {name: disk.bf16(w) for name, w in walked.items()}
    checkpoints = []
    for step in range(4):
        stored = {name: w.astype(ml_dtypes.bfloat16) for name, w in walked.items()}
        checkpoints.append(open_checkpoint(disk.write(tmp_path / str(step), stored)))
        walked = {name: w + 3e-5 * rng.standard_normal(w.shape) for name, w in walked.items()}
    settings = CompareSettings(suite="fast", subspace_k=8)
    result = trajectory_checkpoints(checkpoints[0], list(enumerate(checkpoints))[1:], settings)
    populations.check_similarities(result)
    value, null = (np.array(result["similarity"][key], float) for key in ("disjoint", "disjoint_null"))
    shared = np.triu_indices(2)
    assert np.all(np.diagonal(null)[:2] > 0.2 + 5e-3)  # K/n is that of stretches which share no rounding error
    error = diagnostics.disjoint_similarity_std((60, 40), k=8) / np.sqrt(24)
    assert np.all(np.abs(value - null)[shared] < 4 * error), (value, null)


def test_learning_rate_ratios_are_those_of_the_pure_functions(walk):
    weights, checkpoints = walk
    settings, along = CompareSettings(suite="fast", subspace_k=K), [(10 * s, c) for s, c in enumerate(checkpoints)][1:]
    result = trajectory_checkpoints(checkpoints[0], along, settings, learning_rates=2e-5)
    rates = tuple(float(rate) for rate in np.linspace(1e-6, 4e-5, 50))
    scheduled = trajectory_checkpoints(
        checkpoints[0], along, settings, learning_rates=LearningRates(rates, "as scheduled")
    )
    for row, other in zip(result["matrices"], scheduled["matrices"], strict=True):
        for t in range(5):
            delta, steps = weights[t + 1][row["name"]] - weights[0][row["name"]], 10 * (t + 1)
            known = {"learning_rate": 2e-5, "steps": steps}
            assert row["lr_diffusion_ratio"][t] == pytest.approx(
                float(diagnostics.lr_diffusion_ratio(delta, **known)), rel=1e-5
            )
            drift = float(diagnostics.lr_drift_ratio(delta, **known))
            assert row["lr_drift_ratio"][t] == pytest.approx(drift, rel=1e-5)
            taken = np.array(rates[:steps])
            mean, root = float(taken.mean()), float(np.sqrt(np.square(taken).mean()))
            assert other["lr_diffusion_ratio"][t] == pytest.approx(
                float(diagnostics.lr_diffusion_ratio(delta, learning_rate=root, steps=steps)), rel=1e-5
            )
            assert other["lr_drift_ratio"][t] == pytest.approx(
                float(diagnostics.lr_drift_ratio(delta, learning_rate=mean, steps=steps)), rel=1e-5
            )
            assert row["lr_drift_ratio_null"][t] == 1
            assert row["lr_drift_ratio_excess"][t] == row["lr_drift_ratio"][t] - 1
    told = scheduled["settings"]["learning_rates"]
    assert told["source"] == "as scheduled" and told["sum"][0] == pytest.approx(sum(rates[:10]))
    assert "lr_drift_ratio" not in trajectory_checkpoints(checkpoints[0], along[:1], settings)["summary"]
    later = LearningRates(2e-5, "constant", initial_step=6)
    moved = trajectory_checkpoints(checkpoints[0], along[:1], settings, learning_rates=later)["matrices"][0]
    assert moved["lr_drift_ratio"][0] == pytest.approx(result["matrices"][0]["lr_drift_ratio"][0] * 10 / 4)
    with pytest.raises(UserError, match="rates of 50 steps, but a checkpoint at step 60"):
        trajectory_checkpoints(checkpoints[0], [(60, checkpoints[1])], learning_rates=LearningRates(rates, "run"))


def test_steps_of_plus_and_minus_the_learning_rate_diffuse(tmp_path):
    """Sign updates of size lr: at random the first ratio is 1, all one way the second."""
    rng, name, lr, steps = np.random.default_rng(4), NAME.format("up"), 1e-3, 64
    start = (rng.standard_normal((60, 40)) * 0.02).astype(np.float32)
    signs = rng.choice([-1.0, 1.0], (steps, 60, 40))
    ends = {"random": lr * signs.sum(0), "straight": lr * steps * signs[0]}
    initial = open_checkpoint(disk.write(tmp_path / "start", {name: start}))
    for kind, delta in ends.items():
        end = open_checkpoint(disk.write(tmp_path / kind, {name: (start + delta).astype(np.float32)}))
        settings = CompareSettings(suite="fast", subspace_k=K)
        row = trajectory_checkpoints(initial, [(steps, end)], settings, learning_rates=lr)["matrices"][0]
        ratio = row["lr_diffusion_ratio" if kind == "random" else "lr_drift_ratio"][0]
        assert ratio == pytest.approx(1, abs=0.03 if kind == "random" else 1e-4)


def test_spectra_decompose_w0_once_and_equal_a_comparison(walk, tmp_path, monkeypatch):
    _, checkpoints = walk
    bases, decompositions = [], []
    measure_base, decompose = matrix_module.measure_base, weight_changes.decompose
    monkeypatch.setattr(matrix_module, "measure_base", lambda w, *a, **k: bases.append(1) or measure_base(w, *a, **k))
    monkeypatch.setattr(
        weight_changes,
        "decompose",
        lambda m, *a, **k: decompositions.append(m.minus is None) or decompose(m, *a, **k),
    )
    settings = CompareSettings(subspace_k=K, angle_k=6, mask_rank=4)
    along = list(enumerate(checkpoints))[1:]
    plain = trajectory_checkpoints(checkpoints[0], along, settings)
    assert not bases and not decompositions and "nss" not in plain["summary"]
    result = trajectory_checkpoints(checkpoints[0], along, settings, spectra=True, cache=tmp_path / "cache")
    assert len(bases) == 2 and len(decompositions) == 2 * len(along)  # two matrices
    again = trajectory_checkpoints(checkpoints[0], along, settings, spectra=True, cache=tmp_path / "cache")
    assert len(bases) == 2 and again["summary"]["nss"] == result["summary"]["nss"]
    reports = [
        compare_checkpoints(checkpoints[0], end, settings, cache=tmp_path / "cache" if step % 2 else None)
        for step, end in along
    ]
    assert len(bases) == 2 + 2 * 2  # the comparisons without the cache, of two matrices each
    for place, report in enumerate(reports):
        for ours, theirs in zip(result["matrices"], report.matrices, strict=True):
            assert ours["name"] == theirs["name"]
            for name in ("nss", "angle_left_mean_deg", "angle_right_mean_deg"):
                for key in (name, f"{name}_null", f"{name}_excess", f"{name}_z"):
                    assert ours[key][place] == pytest.approx(theirs[key], rel=1e-9), (key, place)
    assert result["coverage"]["nss"]["matrices"] == 2 and result["settings"]["spectra"] is True
    with pytest.raises(UserError, match="fast suite"):
        trajectory_checkpoints(checkpoints[0], along, CompareSettings(suite="fast"), spectra=True)


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


def test_a_trajectory_of_files_that_have_changed_since_is_left_alone(tmp_path):
    initial, out = disk.weights(), tmp_path / "out"
    start = open_checkpoint(disk.write(tmp_path / "initial", initial))

    def measure(scale, **options):
        later = disk.write(tmp_path / "later", disk.moved(initial, scale))
        return trajectory_checkpoints(start, [(3, open_checkpoint(later))], out=out, **options)

    first = measure(1e-3)
    before = (out / "trajectory.json").read_bytes()
    assert measure(1e-3) == first and (out / "trajectory.json").read_bytes() == before
    with pytest.raises(UserError, match=r"content has changed since.*--force"):
        measure(2e-3)
    assert (out / "trajectory.json").read_bytes() == before
    assert measure(2e-3, force=True)["inputs"]["initial"] == first["inputs"]["initial"]
    assert (out / "trajectory.json").read_bytes() != before
