"""A diagnostic that trains: the mean stable rank of the update as a penalty, beside the same run without it.

    python experiments/regularize.py
    python experiments/regularize.py --strength 0 0.01 0.1 --steps 40

The embedded base model learns to work out sums (supervised, the embedded task) under the loss

    cross-entropy + λ · mean over matrices of ‖ΔW‖_F²/‖ΔW‖₂²,    ΔW = W − W0,

whose second term is `jaxgeom.diagnostics.stable_rank` read through the tree of `MatrixSpec`s. Data, order, optimizer
and start are the same for every λ. At step 0 the update is zero and its stable rank undefined, so the first step is
taken without the penalty.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgeom as jg
from jaxgeom.data import ArithmeticTask, arithmetic, chat, embedded_model, pipelines
from jaxgeom.data.prepared import Limits
from jaxgeom.data.preparing import prepare_demonstrations
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.data.rows import write_jsonl
from jaxgeom.objectives import sft_loss
from jaxgeom.optimizers import with_standard_promotion
from jaxgeom.training import sequence_log_probs

HELD_OUT = 128


class Outcome(NamedTuple):
    """Of one run: held-out loss in nats a token and mean stable rank of the update, at every printed step."""

    strength: float
    steps: list[int]
    losses: list[float]
    ranks: list[float]


def mean_stable_rank(params: Any, start: Any, specs: Any) -> jax.Array:
    """Mean stable rank of `params − start` over all matrices of the tree.

    Args:
        params: parameters.
        start: parameters at step 0, same tree.
        specs: `MatrixSpec` per leaf, None where a leaf is no matrix of the layers.
    """

    matrices: list[jax.Array] = []

    def gather(spec, leaf, origin):
        if spec is not None:
            delta = jg.diagnostics.as_matrix(leaf - origin, spec)
            matrices.extend(delta.reshape(-1, *delta.shape[-2:]))

    jax.tree.map(
        gather,
        specs["layers"],
        params["layers"],
        start["layers"],
        is_leaf=lambda node: node is None or isinstance(node, jg.MatrixSpec),
    )
    side = max(max(matrix.shape) for matrix in matrices)
    padded = jnp.stack([jnp.pad(m, ((0, side - m.shape[0]), (0, side - m.shape[1]))) for m in matrices])
    # Rows and columns of zeros change no singular value. One matrix after the other: batched
    # LAPACK calls of all leaves side by side can block each other for ever on a CPU of few cores.
    return jnp.mean(jax.lax.map(partial(jg.diagnostics.stable_rank, method="krylov", iterations=8), padded))


def train(model: Any, start: Any, batches: Sequence[dict], held_out: dict, *, strength: float, rate: float) -> Outcome:
    """Trains on the batches in order; measured on `held_out` after a quarter, half, three quarters and all of them."""
    specs = jg.parameter_specs(model.config)
    optimizer = with_standard_promotion(optax.adam(rate))

    def task_loss(params, batch):
        return sft_loss(sequence_log_probs(model, params, batch["tokens"], batch["valid"]), batch["loss_mask"])

    @partial(jax.jit, static_argnames="penalised")
    def step(params, state, batch, *, penalised):
        def loss(tree):
            penalty = strength * mean_stable_rank(tree, start, specs) if penalised else 0.0
            return task_loss(tree, batch) + penalty

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    held_out_loss = jax.jit(task_loss)
    rank_of = jax.jit(lambda params: mean_stable_rank(params, start, specs))
    params, state, outcome = start, optimizer.init(start), Outcome(strength, [], [], [])
    marks = {max(1, round(len(batches) * quarter / 4)) for quarter in (1, 2, 3, 4)}
    for number, batch in enumerate(batches, start=1):
        params, state = step(params, state, batch, penalised=strength > 0 and number > 1)
        if number in marks:
            outcome.steps.append(number)
            outcome.losses.append(float(held_out_loss(params, held_out)))
            outcome.ranks.append(float(rank_of(params)))
    return outcome


def run(strengths: Sequence[float], *, steps: int, batch_size: int = 16, rate: float = 5e-4) -> list[Outcome]:
    """One run per strength λ, everything else equal."""
    model, start = jg.load_model(embedded_model("base"), dtype="float32")
    tokenizer, task = chat.load_tokenizer(embedded_model("base")), ArithmeticTask(terms=3, digits=2)

    def taken(count: int, size: int, seed: int) -> list[dict]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "demonstrations.jsonl"
            write_jsonl(file, arithmetic.demonstrations(task, count * size, seed=seed))
            limits = Limits(vocabulary=model.config.vocab_size, context=64)
            rows = prepare_demonstrations(file, tokenizer, settings=RowSettings(), limits=limits)
        iterator = pipelines.demonstration_batches(rows, batch_size=size, seed=0)
        return [jax.tree.map(np.asarray, next(iterator)) for _ in range(count)]

    batches, held_out = taken(steps, batch_size, 0), taken(1, HELD_OUT, 1)[0]
    return [train(model, start, batches, held_out, strength=strength, rate=rate) for strength in strengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--strength", type=float, nargs="+", default=[0.0, 0.03], help="λ, one run each")
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    begun = time.monotonic()
    outcomes = run(options.strength, steps=options.steps)
    print("held-out loss (nats a token) and mean stable rank of the update")
    print("step  " + "  ".join(f"{f'λ = {outcome.strength:g}':>20}" for outcome in outcomes))
    for place, number in enumerate(outcomes[0].steps):
        cells = [f"{outcome.losses[place]:8.3f} {outcome.ranks[place]:11.2f}" for outcome in outcomes]
        print(f"{number:>4}  " + "  ".join(cells))
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
