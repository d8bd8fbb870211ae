"""What `--geometry-every 10` costs: a step, a measurement of the update, and one of the step, at hidden size 1024.

    python experiments/benchmarks/geometry.py
    python experiments/benchmarks/geometry.py --layers 28 --rows 64 --columns 1024        # on an accelerator

Two layers of the shapes of Qwen3-0.6B are enough: step and measurement both grow with the layers alike. The vocabulary
is cut to 8,192 tokens, which takes work from the step and none from the measurement (it measures the layers' matrices).
Prints seconds, processor seconds, and the share of the steps' time at one measurement every 10 steps.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.cpu_memory import keep_freed_memory
from jaxgeom.models import Qwen3, Qwen3Config
from jaxgeom.models.names import spectral_specs
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.sharding import platform_of
from jaxgeom.training import Batch, SFTSettings, initial_state, make_optimizer, make_train_step, objective_of
from jaxgeom.training.geometry import geometry_of

EVERY = 10


def seconds_of(program: Callable[[], Any], rounds: int) -> np.ndarray:
    """Seconds and processor seconds: medians of some calls after one that compiles."""
    ends = []
    for _ in range(rounds + 1):
        jax.block_until_ready(program())
        ends.append((time.perf_counter(), time.process_time()))
    return np.median(np.diff(ends, axis=0), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    keep_freed_memory()
    config = Qwen3Config(
        vocab_size=8192, hidden_size=given.hidden, intermediate_size=3 * given.hidden,
        num_hidden_layers=given.layers, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3(config, platform=platform_of(None))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    start = jax.tree.map(jnp.copy, params)
    shape = (given.rows, given.columns)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape, dtype=np.int32)
    batch = Batch(jnp.asarray(tokens), jnp.ones(shape, bool), jnp.ones(shape, bool).at[:, 0].set(False))
    settings = SFTSettings(steps=10, batch_size=given.rows, optimizer=AdamWSettings(learning_rate=1e-5))
    optimizer = make_optimizer(settings, params)
    held = [initial_state(params, optimizer)]
    step = make_train_step(objective_of(settings, model), optimizer, held[0])

    def update() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    taken = seconds_of(update, given.rounds)
    geometry, now = geometry_of(spectral_specs(config)), held[0].params
    of_update = seconds_of(lambda: geometry.of_update(now, start), given.rounds)
    of_step = seconds_of(lambda: geometry.of_step(start, now), given.rounds)
    print(f"hidden {given.hidden}, {given.layers} layers, {shape[0]}x{shape[1]}, {jax.devices()[0].device_kind}")
    for what, place in (("seconds", 0), ("processor seconds", 1)):
        step_s, update_s, last_s = (float(found[place]) for found in (taken, of_update, of_step))
        share = (update_s + last_s) / (EVERY * step_s)
        print(f"{what}: step {step_s:.2f}, update since the start {update_s:.2f}, last step {last_s:.2f}: {share:.1%}")


if __name__ == "__main__":
    main()
