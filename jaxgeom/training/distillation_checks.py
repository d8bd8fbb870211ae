"""Forms of distillation that are none: what they lack, or why they would teach nothing."""

from typing import Any

from jaxgeom.errors import UserError
from jaxgeom.unread_settings import refuse_unread


def check_support(settings: Any) -> None:
    """Refuses a support that is none, or numbers that belong to another one.

    Args:
        settings: `OPDSettings`.

    Raises:
        UserError: naming the field and its value.
    """
    top_k, beta = settings.top_k, settings.jsd_beta
    if settings.support in ("teacher-top-k", "student-top-k"):
        if top_k is None or top_k < 1:
            raise UserError(f"top_k={top_k}: support={settings.support} needs a number of tokens, at least 1")
        if top_k == 1 and not settings.tail_bucket:
            raise UserError(
                "top_k=1, tail_bucket=False: one token renormalised has probability 1 in both models, so that the"
                " divergence is 0 whatever they are; leave out --no-tail-bucket, or give a larger --top-k"
            )
    elif top_k is not None or not settings.tail_bucket:
        what = f"top_k={top_k}" if top_k is not None else "tail_bucket=False"
        raise UserError(
            f"{what}: support={settings.support} has no top-k; give --support teacher-top-k or student-top-k"
        )
    if beta is not None and settings.divergence != "jsd":
        raise UserError(f"jsd_beta={beta}: divergence={settings.divergence} has none")
    if beta is not None and not 0.0 < beta < 1.0:
        raise UserError(
            f"jsd_beta={beta}: must be strictly between 0 and 1, where the divergence is 0; the limits are --divergence"
            " forward and reverse"
        )


def check_signal(settings: Any) -> None:
    """Refuses what would teach nothing.

    Args:
        settings: `OPDSettings`.

    Raises:
        UserError: naming the field, its value and the reason.
    """
    support, divergence, signal = settings.support, settings.divergence, settings.signal
    if support != "sampled":
        if signal == "advantage":
            raise UserError(
                f"signal=advantage: the divergence over support={support} is the same whatever token was drawn: as an"
                " advantage its expected gradient is zero; give --signal loss"
            )
        return
    if divergence == "jsd":
        raise UserError("divergence=jsd: support=sampled has no samples of the mixture; give --support full")
    if divergence == "forward":
        if settings.rollouts == "student":
            raise UserError(
                "divergence=forward: the student's own tokens (support=sampled) do not sample KL(π_T‖π_θ); give"
                " --rollouts teacher, or --support full"
            )
        if signal == "advantage":
            raise UserError("signal=advantage: the forward KL on the teacher's answers is a loss; give --signal loss")
    elif signal == "loss":
        raise UserError(
            "signal=loss: the gradient through the sampled gap log π_θ(y) − log π_T(y) is that of log π_θ(y), whose"
            " mean over samples is zero: noise without the teacher in it; give --signal advantage, or --support full"
        )


def check_controls(settings: Any) -> None:
    """Refuses controls that the settings have no use for.

    Args:
        settings: `OPDSettings`.

    Raises:
        UserError: naming the field and its value.
    """
    if settings.teacher_devices is not None:
        if settings.teacher_devices < 1:
            raise UserError(f"teacher_devices={settings.teacher_devices}: must be positive")
        if settings.support != "sampled":
            raise UserError(
                f"teacher_devices={settings.teacher_devices}: with support={settings.support} the student's step reads"
                " the teacher itself, which must lie beside it; give --support sampled"
            )
    if settings.keep_by != "gap" and settings.keep_tokens == 1.0:
        raise UserError(f"keep_by={settings.keep_by}: all tokens are kept with keep_tokens=1.0")
    if settings.mix == "matched" and settings.alpha == 1.0:
        raise UserError("mix=matched: there is nothing to mix with alpha=1.0; give --alpha below 1")
    if settings.mix == "matched" and settings.kl_coefficient:
        raise UserError(
            f"kl_coefficient={settings.kl_coefficient}: mix=matched weighs the gradients of distillation and reward"
            " alone; 0 measures the KL"
        )
    if settings.advantage == "constant" and settings.is_differentiated:
        raise UserError(
            f"advantage=constant: support={settings.support} with divergence={settings.divergence} is a loss and has no"
            " advantage"
        )
    constant = settings.advantage_constant
    if settings.advantage != "constant":
        refuse_unread(settings, ("advantage_constant",), f"advantage={settings.advantage}")
    clip = ("clip_low", "clip_high")
    if settings.rollouts == "teacher":
        refuse_unread(settings, clip, "rollouts=teacher, whose ratio is not clipped")
    if settings.alpha == 1.0:
        refuse_unread(settings, ("normalize_by_std",), "alpha=1.0")
        if settings.is_differentiated:
            by = f"support={settings.support} and divergence={settings.divergence}, a loss without a ratio"
            refuse_unread(settings, clip, by)
    if constant is not None and not 0.0 < constant < float("inf"):
        raise UserError(f"advantage_constant={constant}: must be positive and finite")
    if settings.kl_coefficient is not None and settings.rollouts == "teacher":
        raise UserError(
            f"kl_coefficient={settings.kl_coefficient}: rollouts=teacher: answers of the teacher do not sample the"
            " KL of the student"
        )
    if settings.rollout_lag and settings.rollouts == "teacher":
        raise UserError(f"rollout_lag={settings.rollout_lag}: rollouts=teacher: a teacher's answers are never stale")


def check_models(settings: Any, rows: int, teachers: int) -> None:
    """Refuses a support of more tokens than there are, and answers of several teachers.

    Args:
        settings: `OPDSettings`.
        rows: of the vocabulary, those that have a probability.
        teachers: so many are given.

    Raises:
        UserError: naming the field and its value.
    """
    if (settings.top_k or 1) > rows:
        raise UserError(f"top_k={settings.top_k}: the vocabulary has {rows} tokens")
    check_number_of_teachers(settings, teachers)


def check_number_of_teachers(settings: Any, teachers: int) -> None:
    """Refuses answers of several teachers.

    Args:
        settings: of a run of any objective.
        teachers: so many are given.

    Raises:
        UserError: naming field and value.
    """
    if teachers > 1 and getattr(settings, "rollouts", None) == "teacher":
        raise UserError(f"rollouts=teacher: {teachers} teachers are given; one alone can answer")
