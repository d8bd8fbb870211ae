"""Distillation as a differentiable loss: a divergence of student and teacher, on the whole vocabulary or on a part."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Num

from jaxgeom.diagnostics.functional import kl_of_log_probs

from .divergences import Hidden, TeacherHidden, TeacherUnembedding, Unembedding, jensen_shannon
from .log_probs import (
    DEFAULT_CHUNK,
    ChunkedWeight,
    as_chunked,
    at_targets,
    check_hidden,
    map_time_chunks,
    scaled_logits,
    shift_to_tokens,
)
from .losses import Aggregate, aggregated, divide_or_zero, loss_denominator

Divergence = Literal["reverse", "forward", "jsd"]
Support = Literal["full", "teacher-top-k", "student-top-k"]
StudentWeight = Unembedding | ChunkedWeight
TeacherWeight = TeacherUnembedding | ChunkedWeight


class Distilled(NamedTuple):
    """What student and teacher say of every token given those before it, float32 `[batch, time]`, 0 at t = 0.

    Attributes:
        divergence: of the two distributions, nats; differentiable in the student.
        log_probs: of the token itself under the student, nats; differentiable.
        teacher_log_probs: under the teacher; detached.
        entropy: of the student's whole distribution, nats; detached.
    """

    divergence: Array
    log_probs: Array
    teacher_log_probs: Array
    entropy: Array


def distillation(
    student_hidden: Hidden,
    student_unembedding: StudentWeight,
    teacher_hidden: TeacherHidden,
    teacher_unembedding: TeacherWeight,
    targets: Int[Array, "batch time"],
    *,
    divergence: Divergence = "reverse",
    support: Support = "full",
    k: int | None = None,
    tail_bucket: bool = True,
    beta: float = 0.5,
    chunk: int = DEFAULT_CHUNK,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    remat: bool = True,
) -> Distilled:
    r"""A divergence at every position, exact or of coarsened distributions, chunk by chunk along time.

        reverse  KL(π_θ‖π_T)      forward  KL(π_T‖π_θ)
        jsd      β·KL(π_T‖M) + (1 − β)·KL(π_θ‖M),  M = β·π_T + (1 − β)·π_θ

    On a support S of k tokens both distributions are coarsened first. With the tail bucket they become k + 1 numbers,
    those of S and the rest of the mass: the divergence of these is at most that of the whole and never negative.
    Without it both are renormalised to S: mass outside is neither seen nor penalised.

    The gradient flows through the student alone, not through the choice of S.

    Args:
        student_hidden: final, normed hidden states `[batch, time, d]`.
        student_unembedding: `[d, vocab]`, or a `chunked_weight` of it.
        teacher_hidden: the teacher's, `[batch, time, d']`, on the same tokens.
        teacher_unembedding: `[d', vocab]`, the same vocabulary.
        targets: the tokens themselves, `[batch, time]`, not shifted.
        divergence: which one.
        support: the whole vocabulary, or the k likeliest tokens of the teacher or of the student.
        k: tokens of the support, 1 to the vocabulary; ties go to the lower token id.
        tail_bucket: whether the rest of the mass is one more outcome.
        beta: of the Jensen-Shannon divergence, strictly between 0 and 1.
        chunk: time steps at a time; the largest intermediates are float32 `[batch, chunk, vocab]`.
        temperature: divides both models' logits.
        vocabulary: tokens from here on are padding, without probability in either model; None for no padding.
        remat: False keeps every chunk's logits for the backward pass.

    Raises:
        ValueError: shapes that do not fit, an unknown divergence or support, k or beta out of range, or a support of
            one token without a tail bucket: renormalised it is one outcome, whose divergence is 0 whatever the models.

    Reference: On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD, arXiv 2306.13649).
    """
    student_weight = as_chunked(student_unembedding, student_hidden.dtype)
    teacher_weight = jax.lax.stop_gradient(as_chunked(teacher_unembedding, teacher_hidden.dtype))
    check_hidden("distillation: student", student_hidden, student_weight, chunk)
    check_hidden("distillation: teacher", teacher_hidden, teacher_weight, chunk)
    sizes = student_weight.value.shape[1], teacher_weight.value.shape[1]
    if student_hidden.shape[:2] != teacher_hidden.shape[:2] or sizes[0] != sizes[1]:
        raise ValueError(
            f"distillation: student {student_hidden.shape} and vocabulary {sizes[0]}, teacher {teacher_hidden.shape}"
            f" and {sizes[1]}: batch, time and vocabulary must be the same"
        )
    _check(divergence, support, k, tail_bucket, beta, vocabulary or sizes[0])

    def body(arrays: tuple[Array, Array, Array], weights: tuple[ChunkedWeight, ChunkedWeight]) -> Distilled:
        student, teacher = (
            jax.nn.log_softmax(scaled_logits(hidden, weight, temperature, vocabulary), axis=-1)
            for hidden, weight in zip(arrays[:2], weights, strict=True)
        )
        teacher, mine = jax.lax.stop_gradient((teacher, student))
        entropy = -jnp.sum(jnp.where(mine > -jnp.inf, jnp.exp(mine) * mine, 0.0), axis=-1)
        of_tokens = at_targets(student, arrays[2]), at_targets(teacher, arrays[2])
        if support != "full":
            leader = teacher if support == "teacher-top-k" else jax.lax.stop_gradient(student)
            student, teacher = coarsened(student, teacher, leader, k=k or 1, tail_bucket=tail_bucket)
        return Distilled(_divergence(student, teacher, divergence, beta), *of_tokens, entropy)

    arrays = (student_hidden, jax.lax.stop_gradient(teacher_hidden), jnp.roll(targets, -1, axis=1))
    found = map_time_chunks(body, arrays, (student_weight, teacher_weight), chunk=chunk, remat=remat)
    return Distilled(*map(shift_to_tokens, found))


def coarsened(
    student: Float[Array, "*batch vocab"],
    teacher: Float[Array, "*batch vocab"],
    leader: Float[Array, "*batch vocab"],
    *,
    k: int,
    tail_bucket: bool,
) -> tuple[Float[Array, "*batch outcomes"], Float[Array, "*batch outcomes"]]:
    """Two distributions on the k likeliest tokens of a third: with the rest as one more outcome, or renormalised.

    Args:
        student: log-probabilities, nats.
        teacher: likewise.
        leader: whose k likeliest tokens are kept.
        k: how many; ties go to the lower token id.
        tail_bucket: whether the rest of the mass is one more outcome, the last.

    Returns:
        Log-probabilities of k + 1 outcomes, or of k.
    """
    _, kept = jax.lax.top_k(leader, k)
    tops = [jnp.take_along_axis(one, kept, axis=-1) for one in (student, teacher)]
    if not tail_bucket:
        return jax.nn.log_softmax(tops[0], axis=-1), jax.nn.log_softmax(tops[1], axis=-1)
    if k == student.shape[-1]:
        return tops[0], tops[1]  # no rest
    # Summed over the rest itself: 1 − Σ of what is kept would lose a small rest to rounding.
    inside = jnp.put_along_axis(jnp.zeros(leader.shape, bool), kept, True, axis=-1, inplace=False)
    rests = [jax.nn.logsumexp(jnp.where(inside, -jnp.inf, one), axis=-1, keepdims=True) for one in (student, teacher)]
    student, teacher = (jnp.concatenate(parts, axis=-1) for parts in zip(tops, rests, strict=True))
    return student, teacher


def distillation_loss(
    values: Float[Array, "batch time"],
    gap: Float[Array, "batch time"],
    mask: Num[Array, "batch time"] | Bool[Array, "batch time"],
    *,
    weights: Float[Array, "batch time"] | None = None,
    aggregate: Aggregate = "token",
    constant: float | None = None,
    denominator: Float[Array, ""] | None = None,
    entropy: Float[Array, "batch time"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The divergences of the masked tokens as one loss, averaged as `policy_gradient_loss` averages its.

    Args:
        values: `Distilled.divergence`.
        gap: `log π_θ(y_t) − log π_T(y_t)` of the tokens, for the metric.
        mask: `[batch, time]`, true or 1 on the tokens that count.
        weights: of the tokens, as `sparsify_tokens` gives them; None weighs all alike.
        aggregate: "token", "sequence" or "constant".
        constant: tokens by which a sequence is divided under "constant".
        denominator: what to divide by in place of `loss_denominator` of this mask: the whole batch's.
        entropy: of the student's distributions, nats, for the metric alone.

    Returns:
        `(loss, metrics)`: "tokens", and means over so many: "divergence", "gap", and where given "entropy".
    """
    weight = mask.astype(jnp.float32)
    if denominator is None:
        denominator = loss_denominator(mask, aggregate=aggregate, constant=constant)
    weighted = values if weights is None else values * weights
    loss = divide_or_zero(aggregated(jnp.where(weight > 0, weighted * weight, 0.0), weight, aggregate), denominator)
    tokens = jnp.sum(weight)

    def mean(of: Array) -> Array:
        return jax.lax.stop_gradient(divide_or_zero(jnp.sum(jnp.where(weight > 0, of * weight, 0.0)), tokens))

    told = {} if entropy is None else {"entropy": mean(entropy)}
    return loss, {"tokens": tokens, "divergence": mean(values), "gap": mean(gap)} | told


def _divergence(student: Array, teacher: Array, kind: Divergence, beta: float) -> Array:
    """Of log-probabilities `[..., outcomes]`."""
    if kind == "jsd":
        return jensen_shannon(student, teacher, beta)
    return kl_of_log_probs(*((student, teacher) if kind == "reverse" else (teacher, student)))


def _check(divergence: str, support: str, k: int | None, tail_bucket: bool, beta: float, vocabulary: int) -> None:
    for name, value, allowed in (("divergence", divergence, Divergence), ("support", support, Support)):
        if value not in get_args(allowed):
            raise ValueError(f"distillation: {name} is {value!r}; one of {', '.join(get_args(allowed))} is needed")
    if divergence == "jsd" and not 0.0 < beta < 1.0:
        raise ValueError(f"distillation: beta is {beta}; a number strictly between 0 and 1 is needed")
    if support != "full":
        if k is None or not 1 <= k <= vocabulary:
            raise ValueError(f"distillation: k is {k}; 1 to {vocabulary} is needed")
        if k == 1 and not tail_bucket:
            raise ValueError(
                "distillation: one token without a tail bucket is one outcome once renormalised: its divergence is 0"
                " for any two models"
            )
