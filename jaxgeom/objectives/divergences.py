"""Divergences between student and teacher over the whole vocabulary, chunked like the log-probabilities."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from jaxgeom.diagnostics.functional import kl_of_log_probs

from .log_probs import (
    DEFAULT_CHUNK,
    ChunkedWeight,
    check_hidden,
    chunked_weight,
    map_time_chunks,
    shift_to_tokens,
    unembed,
)

Hidden = Float[Array, "batch time d_student"]
TeacherHidden = Float[Array, "batch time d_teacher"]
Unembedding = Float[Array, "d_student vocab"]
TeacherUnembedding = Float[Array, "d_teacher vocab"]


def reverse_kl(
    student_hidden: Hidden,
    student_unembedding: Unembedding,
    teacher_hidden: TeacherHidden,
    teacher_unembedding: TeacherUnembedding,
    *,
    chunk: int = DEFAULT_CHUNK,
    temperature: float = 1.0,
    remat: bool = True,
) -> Float[Array, "batch time"]:
    """Exact `KL(π_θ‖π_T)` at every position: `Σ_v π_θ(v) (log π_θ(v) - log π_T(v))`.

    The student's arguments may be differentiated through; the teacher is detached, as in every function here. The
    gradient is that of the exact sum: it has no sampling noise, unlike the policy gradient of `opd_advantages`.

    Args:
        student_hidden: final, normed hidden states `[batch, time, d]`.
        student_unembedding: `[d, vocab]`.
        teacher_hidden: the teacher's, `[batch, time, d']`, on the same tokens.
        teacher_unembedding: `[d', vocab]`, the same vocabulary.
        chunk: time steps at a time; the largest intermediates are float32 `[batch, chunk, vocab]`.
        temperature: divides both models' logits.
        remat: False keeps every chunk's logits for the backward pass.

    Returns:
        float32 `[batch, time]`, nats: index t compares the distributions of token t given those before it; 0 at t = 0.

    Raises:
        ValueError: shapes that do not fit.
    """

    def divergence(student: Array, teacher: Array) -> Array:
        return kl_of_log_probs(student, teacher)

    models = (student_hidden, student_unembedding, teacher_hidden, teacher_unembedding)
    return _over_chunks("reverse_kl", divergence, models, chunk, temperature, remat)


def forward_kl(
    student_hidden: Hidden,
    student_unembedding: Unembedding,
    teacher_hidden: TeacherHidden,
    teacher_unembedding: TeacherUnembedding,
    *,
    chunk: int = DEFAULT_CHUNK,
    temperature: float = 1.0,
    remat: bool = True,
) -> Float[Array, "batch time"]:
    """Exact `KL(π_T‖π_θ)` at every position: `Σ_v π_T(v) (log π_T(v) - log π_θ(v))`.

    With the initial model in the teacher's place it is the functional distance `KL(π_0‖π)` of a trained model.

    Args:
        student_hidden: final, normed hidden states `[batch, time, d]`.
        student_unembedding: `[d, vocab]`.
        teacher_hidden: the teacher's, `[batch, time, d']`, on the same tokens.
        teacher_unembedding: `[d', vocab]`, the same vocabulary.
        chunk: time steps at a time.
        temperature: divides both models' logits.
        remat: False keeps every chunk's logits for the backward pass.

    Returns:
        float32 `[batch, time]`, nats, as `reverse_kl`.

    Raises:
        ValueError: shapes that do not fit.
    """

    def divergence(student: Array, teacher: Array) -> Array:
        return kl_of_log_probs(teacher, student)

    models = (student_hidden, student_unembedding, teacher_hidden, teacher_unembedding)
    return _over_chunks("forward_kl", divergence, models, chunk, temperature, remat)


def generalized_jsd(
    student_hidden: Hidden,
    student_unembedding: Unembedding,
    teacher_hidden: TeacherHidden,
    teacher_unembedding: TeacherUnembedding,
    *,
    beta: float,
    chunk: int = DEFAULT_CHUNK,
    temperature: float = 1.0,
    remat: bool = True,
) -> Float[Array, "batch time"]:
    """Generalized Jensen-Shannon divergence of GKD at every position.

        β·KL(π_T‖M) + (1 − β)·KL(π_θ‖M),  M = β·π_T + (1 − β)·π_θ

    At β → 0 it is β times the forward KL, at β → 1 it is (1-β) times the reverse KL; at 0.5 the Jensen-Shannon
    divergence, at most log 2.

    Args:
        student_hidden: `[batch, time, d]`.
        student_unembedding: `[d, vocab]`.
        teacher_hidden: `[batch, time, d']`.
        teacher_unembedding: `[d', vocab]`.
        beta: strictly between 0 and 1; the divergence is 0 at both ends, where `forward_kl` and `reverse_kl` serve.
        chunk: time steps at a time.
        temperature: divides both models' logits.
        remat: False keeps every chunk's logits for the backward pass.

    Returns:
        float32 `[batch, time]`, nats, as `reverse_kl`.

    Raises:
        ValueError: beta outside (0, 1), or shapes that do not fit.

    Reference: On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD, arXiv 2306.13649).
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(f"generalized_jsd: beta is {beta}; a number strictly between 0 and 1 is needed")

    def divergence(student: Array, teacher: Array) -> Array:
        return jensen_shannon(student, teacher, beta)

    models = (student_hidden, student_unembedding, teacher_hidden, teacher_unembedding)
    return _over_chunks("generalized_jsd", divergence, models, chunk, temperature, remat)


def teacher_top_k_kl(
    student_hidden: Hidden,
    student_unembedding: Unembedding,
    teacher_hidden: TeacherHidden,
    teacher_unembedding: TeacherUnembedding,
    *,
    k: int,
    direction: Literal["reverse", "forward"] = "reverse",
    chunk: int = DEFAULT_CHUNK,
    temperature: float = 1.0,
    remat: bool = True,
) -> Float[Array, "batch time"]:
    """KL between student and teacher on the teacher's k likeliest tokens, both renormalised to them.

        π̃(v) = π(v) / Σ_{u ∈ S} π(u),  S = top-k(π_T)

    Mass that the student has outside S is neither seen nor penalised. With k the vocabulary it is the full KL.

    Args:
        student_hidden: `[batch, time, d]`.
        student_unembedding: `[d, vocab]`.
        teacher_hidden: `[batch, time, d']`.
        teacher_unembedding: `[d', vocab]`.
        k: tokens kept, 1 to the vocabulary; ties go to the lower token id.
        direction: "reverse" `KL(π̃_θ‖π̃_T)` or "forward" `KL(π̃_T‖π̃_θ)`.
        chunk: time steps at a time.
        temperature: divides both models' logits.
        remat: False keeps every chunk's logits for the backward pass.

    Returns:
        float32 `[batch, time]`, nats, as `reverse_kl`.

    Raises:
        ValueError: k outside the vocabulary, an unknown direction, or shapes that do not fit.
    """
    vocabulary = teacher_unembedding.shape[-1]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"teacher_top_k_kl: k is {k}; 1 to {vocabulary} is needed")
    if direction not in ("reverse", "forward"):
        raise ValueError(f"teacher_top_k_kl: direction is {direction!r}; 'reverse' or 'forward' is needed")

    def divergence(student: Array, teacher: Array) -> Array:
        top, index = jax.lax.top_k(teacher, k)
        teacher = jax.nn.log_softmax(top, axis=-1)
        student = jax.nn.log_softmax(jnp.take_along_axis(student, index, axis=-1), axis=-1)
        first, second = (student, teacher) if direction == "reverse" else (teacher, student)
        return kl_of_log_probs(first, second)

    models = (student_hidden, student_unembedding, teacher_hidden, teacher_unembedding)
    return _over_chunks("teacher_top_k_kl", divergence, models, chunk, temperature, remat)


def jensen_shannon(student: Array, teacher: Array, beta: float) -> Array:
    """`generalized_jsd` of log-probabilities `[..., outcomes]` -> `[...]`, for β strictly between 0 and 1."""
    middle = jnp.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl_of_log_probs(teacher, middle) + (1.0 - beta) * kl_of_log_probs(student, middle)


def _over_chunks(
    name: str,
    divergence: Callable[[Array, Array], Array],
    models: tuple[Array, Array, Array, Array],
    chunk: int,
    temperature: float,
    remat: bool,
) -> Array:
    """Applies a function of the two models' log-probabilities over the vocabulary, `[..., vocab]` -> `[...]`."""
    student_hidden, student_unembedding, teacher_hidden, teacher_unembedding = models
    check_hidden(f"{name}: student", student_hidden, student_unembedding, chunk)
    check_hidden(f"{name}: teacher", teacher_hidden, teacher_unembedding, chunk)
    if student_hidden.shape[:2] != teacher_hidden.shape[:2]:
        raise ValueError(
            f"{name}: teacher's hidden states {teacher_hidden.shape} are not of the student's batch and time"
        )
    if student_unembedding.shape[1] != teacher_unembedding.shape[1]:
        vocabularies = f"student {student_unembedding.shape[1]}, teacher {teacher_unembedding.shape[1]}"
        raise ValueError(f"{name}: vocabularies differ: {vocabularies}")

    def body(arrays: tuple[Array, Array], weights: tuple[ChunkedWeight, ChunkedWeight]) -> Array:
        student = jax.nn.log_softmax(unembed(arrays[0], *weights[0]) / temperature, axis=-1)
        teacher = jax.nn.log_softmax(unembed(arrays[1], *weights[1]) / temperature, axis=-1)
        return divergence(student, jax.lax.stop_gradient(teacher))

    hidden = (student_hidden, jax.lax.stop_gradient(teacher_hidden))
    weights = (
        chunked_weight(student_unembedding, student_hidden.dtype),
        chunked_weight(jax.lax.stop_gradient(teacher_unembedding), teacher_hidden.dtype),
    )
    return shift_to_tokens(map_time_chunks(body, hidden, weights, chunk=chunk, remat=remat))
