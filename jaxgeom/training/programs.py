"""The compiled programs of a run, built from modules and shapes: what the loop calls is what can be lowered unseen."""

from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxgeom.models import Qwen3
from jaxgeom.rollout import SamplingSettings, sampler_programs, side_by_side
from jaxgeom.sharding import batch_sharding, mesh_of
from jaxgeom.training.confinement import Confinement
from jaxgeom.training.objectives.interface import Objective
from jaxgeom.training.scoring import sequence_log_probs
from jaxgeom.training.state import Frozen, TrainState, abstract_state
from jaxgeom.training.step import Step, train_step


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    confinement: Confinement | None = None,
) -> Step:
    """`train_step`, compiled: `(state, batch, frozen) -> (state, metrics)`; the state is donated, its shardings kept.

    Args:
        objective: of the run.
        optimizer: any Optax transformation.
        state: the first state, or its shapes, for its shardings: left to itself the compiler may return parameters
            laid out otherwise.
        confinement: of the run.

    Returns:
        A jitted function.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(train_step(objective, optimizer, confinement), donate_argnums=0, out_shardings=(shardings, None))


class Program(NamedTuple):
    """A jitted function and what it is called with; arrays may be shapes alone.

    Attributes:
        function: jitted.
        arguments: of it.
        copies: how often it runs side by side, each with rows of its own and the same parameters.
        beside: the name of a program whose results lie there meanwhile, for a later one; None where nothing does.
    """

    function: Any
    arguments: tuple[Any, ...]
    copies: int = 1
    beside: str | None = None

    def lower(self) -> jax.stages.Lowered:
        """The program, traced and lowered for its devices, not compiled."""
        return self.function.lower(*self.arguments)


def run_programs(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    frozen: Frozen,
    *,
    prompt_length: int,
    pad_id: int = 0,
) -> dict[str, Program]:
    """The programs of one step of a run, as the loop calls them, from the shapes of its parameters.

    Args:
        objective: of the run.
        optimizer: of the run.
        params: the student's, `jax.ShapeDtypeStruct`s with shardings (or arrays).
        frozen: those of teachers and reference, likewise.
        prompt_length: tokens of the longest prompt; of the longest demonstration for SFT.
        pad_id: of the sampler.

    Returns:
        By name: `train`; where answers are sampled `rollout.…`, `score`; with teachers `score.teacher0`, ….
    """
    settings, mesh, state = objective.settings, objective.mesh, abstract_state(params, optimizer)
    sampler = objective.sampler(params, frozen)
    columns = objective.padded_length(prompt_length) + (0 if sampler is None else settings.max_new_tokens)

    def rows(dtype: Any, *, by_row: bool = False) -> jax.ShapeDtypeStruct:
        place = None if mesh is None else batch_sharding(mesh)
        shape = (settings.batch_size,) if by_row else (settings.batch_size, columns)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    batch = objective.shape_of_batch(rows)
    step = make_train_step(objective, optimizer, state)
    programs = {"train": Program(step, (state, batch, objective.step_inputs(frozen)))}
    if sampler is None:
        return programs
    sampling = SamplingSettings(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        stop_tokens=sampler.model.config.stop_tokens,
    )
    answers = settings.batch_size * settings.updates_per_rollout
    drawn = sampler_programs(sampler.model, sampler.params, sampling, rows=answers, width=prompt_length, pad_id=pad_id)
    parts = side_by_side(sampler.model, sampler.params, answers)
    for name, program in drawn.items():
        programs[f"rollout.{name}"] = Program(
            *program,
            copies=1 if name == "decoding_weights" else parts,
            beside="rollout.decoding_weights" if name == "prefill" and "decoding_weights" in drawn else None,
        )
    for name, actor in objective.scorers(params, frozen).items():
        there, read = mesh_of(actor.params), (batch.tokens, batch.valid)
        if there is not None and there != mesh:  # a teacher on devices of its own
            read = [jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=batch_sharding(there)) for one in read]
        programs[name] = Program(_score, (actor.model, there, settings.temperature, actor.params, *read))
    return programs


def score(
    model: Qwen3,
    params: PyTree,
    tokens: Int[Array, "batch time"],
    valid: Bool[Array, "batch time"],
    *,
    temperature: float = 1.0,
) -> Float[Array, "batch time"]:
    """`sequence_log_probs`, compiled once a model and shape.

    Student and teacher of one architecture run the identical program, so with equal weights their gap is exactly 0.

    Args:
        model: the module.
        params: its parameters, sharded or not.
        tokens: `[batch, time]` ids.
        valid: `[batch, time]`, which tokens are real.
        temperature: divides the logits.

    Returns:
        `[batch, time]` float32, nats, as `sequence_log_probs`.
    """
    return _score(model, mesh_of(params), temperature, params, tokens, valid)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _score(
    model: Qwen3, mesh: Mesh | None, temperature: float, params: PyTree, tokens: Array, valid: Array
) -> Float[Array, "batch time"]:
    return sequence_log_probs(model, params, tokens, valid, temperature=temperature, mesh=mesh)
