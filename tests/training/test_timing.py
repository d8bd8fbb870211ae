"""Where a step's time goes: sums, overlaps and what is left out, on a clock that is told the time."""

import jax.numpy as jnp
import pytest

from jaxgeom.training import timing
from jaxgeom.training.timing import PHASES, StepClock, is_time


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time is set by the test."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    with StepClock() as found:
        found.now = now
        yield found


def test_shares_of_two_steps(clock):
    def spend(name, step, seconds):
        with clock.host(name, step):
            clock.now[0] += seconds

    def on_devices(name, step, seconds):
        with clock.devices(name, step) as until:
            clock.now[0] += seconds
            until(jnp.zeros(()))
        clock._ready[-1][-1].result()

    with clock.host("rollout", 1):
        clock.now[0] += 3.0
        spend("verifying", 1, 1.0)
    on_devices("scoring", 1, 2.0)
    on_devices("update", 1, 4.0)
    spend("evaluation", 2, 5.0)  # in no step's seconds
    spend("saving", 2, 1.0)
    with clock.host("rollout", 2):
        clock.now[0] += 1.0
        on_devices("scoring", 2, 1.0)
        spend("verifying", 2, 1.0)
    on_devices("update", 2, 4.0)
    first, second = clock.row(1), clock.row(2)
    assert first["seconds"] == pytest.approx(10.0) and second["seconds"] == pytest.approx(8.0)
    shares = [[row[f"time/{phase}"] for phase in PHASES] for row in (first, second)]
    assert shares[0] == pytest.approx([0.3, 0.2, 0.4, 0.1, 0.0])
    assert shares[1] == pytest.approx([0.125, 0.125, 0.5, 0.125, 0.125])
    assert all(map(is_time, first)) and not is_time("loss")


def test_what_waits_for_the_step_before_is_that_steps_time(clock):
    """Asynchronous devices: the next rows are read while an update runs, and take nothing."""
    with clock.devices("update", 1) as until:
        until(jnp.zeros(()))
    with clock.host("rollout", 2):
        clock.now[0] += 2.0
    clock._ready[-1][-1].result()
    clock._spans.append(timing._Span(1, "update", 0.0, 6.0))
    with clock.devices("update", 2) as until:
        clock.now[0] = 9.0
        until(jnp.zeros(()))
    clock._ready[-1][-1].result()
    first, second = clock.row(1), clock.row(2)
    assert first["seconds"] == pytest.approx(6.0) and second["seconds"] == pytest.approx(3.0)
    assert second["time/rollout"] == 0.0
