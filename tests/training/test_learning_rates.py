"""Learning rates read back from a run directory, and what `jaxgeom trajectory` makes of its arguments."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgeom.commands.trajectory import rates_of
from jaxgeom.errors import UserError
from jaxgeom.optimizers import AdamWSettings, learning_rate_schedule
from jaxgeom.training import SFTSettings, initial_state, make_optimizer, run_learning_rates
from jaxgeom.training.logs import Log
from jaxgeom.training.optimizer_state import leaf_names
from tests.tiny import tiny_config, tiny_params
from tests.training.bases import random_confinement

COSINE = AdamWSettings(learning_rate=1e-3, schedule="cosine", learning_rate_end=1e-4, warmup_fraction=0.25)


def _run(directory, rows, optimizer=COSINE, start="/models/base"):
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"steps": 8, "optimizer": dataclasses.asdict(optimizer)}
    (directory / "config.json").write_text(json.dumps({"settings": settings, "inputs": {"model": str(start)}}))
    return directory


def test_logged_rates_win_and_skipped_steps_count_nothing(tmp_path):
    rows = [{"step": 0, "accuracy": 0.5}]
    rows += [{"step": s, "learning_rate": s * 1e-4} | ({"skipped": 1.0} if s == 3 else {}) for s in range(1, 9)]
    rates = run_learning_rates(_run(tmp_path / "run", rows), initial_step=2)
    assert "metrics.jsonl" in rates.source
    total, root = rates.sums(5)
    assert total == pytest.approx(9e-4) and root == pytest.approx(np.sqrt(4**2 + 5**2) * 1e-4)


def test_without_a_whole_log_the_schedule_is_taken(tmp_path):
    rates = run_learning_rates(_run(tmp_path / "run", [{"step": 5, "learning_rate": 1.0}]))
    assert "cosine schedule" in rates.source
    warm = np.array([0.5e-3, 1e-3])  # two of eight steps
    rest = 1e-4 + 9e-4 * 0.5 * (1 + np.cos(np.pi * np.arange(6) / 6))
    expected = np.concatenate([warm, rest])
    assert rates.sums(8) == pytest.approx((expected.sum(), np.linalg.norm(expected)), rel=1e-5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="tells no learning rate"):
        run_learning_rates(tmp_path / "empty")


def test_a_log_holds_the_rates_of_no_more_steps_than_it_writes(tmp_path):
    """A run of a thousand million steps begins as any other; the rates are those of the schedule."""
    most = 2**30
    for steps in (most, 6000):
        settings = SFTSettings(steps=steps, batch_size=1, optimizer=COSINE)
        schedule = learning_rate_schedule(COSINE, steps)
        with Log(settings, tmp_path, None, {}) as log:
            for step in (1, 4096, 4097, 1500, 6000):
                assert log._rate(step) == pytest.approx(float(schedule(step - 1)), rel=1e-6)
            assert len(log._rates[1]) < 10_000


def test_a_rate_that_is_no_number_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl: step 1: learning_rate=None is no number"):
        run_learning_rates(_run(tmp_path / "run", [{"step": 1, "learning_rate": None}]))


def test_which_rates_a_trajectory_takes(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    logged = [{"step": s, "learning_rate": 1e-4} for s in range(1, 9)]
    run = _run(tmp_path / "run", logged, start=base)
    steps = [f"{run}@4", f"{run}@8"]
    rates, said = rates_of(str(base), steps, None, None)
    assert rates is not None and rates.sums(8)[0] == pytest.approx(8e-4) and "metrics.jsonl" in said
    rates, _ = rates_of(f"{run}@4", steps[1:], None, None)
    assert rates is not None and rates.sums(8)[0] == pytest.approx(4e-4)
    rates, said = rates_of(str(tmp_path / "other"), steps, None, None)
    assert rates is None and "did not begin at" in said
    rates, _ = rates_of(str(tmp_path / "other"), steps, None, 0)
    assert rates is not None and rates.sums(8)[0] == pytest.approx(8e-4)
    rates, _ = rates_of(str(base), ["a/checkpoint-100", "a/checkpoint-200"], 1e-5, 50)
    assert rates is not None and rates.sums(200) == pytest.approx((150e-5, np.sqrt(150) * 1e-5))
    assert rates_of(str(base), ["a", "b"], None, None)[0] is None
    with pytest.raises(UserError, match="learning_rate"):
        rates_of(str(base), ["early", "late"], 1e-5, None)


def test_a_skipped_step_takes_its_rate_with_it_and_adam_has_seen_nothing():
    """Adam's first update is the rate times the gradient's sign; so it is after steps that were skipped."""
    optimizer = AdamWSettings(learning_rate=1e-3, warmup_fraction=1.0, weight_decay=0.0)
    made = make_optimizer(SFTSettings(steps=4, batch_size=8, optimizer=optimizer), {})
    params = {"kernel": jnp.ones((2, 3))}
    state = initial_state(params, made)
    uncounted = state.replace(step=jnp.int32(2)).on_schedule()  # of a checkpoint whose schedule did not count them
    for after in (state.skipped().skipped(), uncounted):
        updates, _ = made.update({"kernel": jnp.full((2, 3), 5.0)}, after.opt_state, params)
        np.testing.assert_allclose(updates["kernel"], -0.75e-3, rtol=1e-5)


@pytest.mark.parametrize("form", ["coordinates", "updates"])
def test_the_schedule_of_a_confined_optimizer_counts_them_too(form):
    config = tiny_config(num_hidden_layers=1)
    params = tiny_params(config)
    settings = SFTSettings(steps=4, batch_size=8, optimizer=AdamWSettings(learning_rate=1e-3))
    state = initial_state(params, make_optimizer(settings, params, random_confinement(config, params, form)))
    after = state.skipped().skipped().opt_state
    counts = {path[-2]: int(leaf) for path, leaf in zip(leaf_names(after), jax.tree.leaves(after), strict=True)
              if path[-1] == "count"}  # fmt: skip
    assert counts == {"ScaleByAdamState": 0, "ScaleByScheduleState": 2}
