"""What AdamW is told, checked when it is made."""

import math
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.unread_settings import refuse_unread

_SMALLEST = 2.0**-126  # what is below it in float32 counts as 0


def _in_float32(value: float) -> float:
    """A number as the optimizer has it."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True)
class AdamWSettings:
    """Optimizer of a run, checked on construction.

    Attributes:
        learning_rate: peak rate.
        schedule: "constant" or "cosine" (to `learning_rate_end`), both after a linear warmup from 0.
        learning_rate_end: floor of the cosine.
        warmup_fraction: share of the run's steps that are warmup.
        b1, b2, eps: Adam's.
        weight_decay: decoupled; multiplied by the learning rate.
        decay: what is decayed: "all" parameters, as PyTorch's default does, or "matrices" only (no norm scales, no
            biases).
        clip_norm: the gradient's global norm is clipped to it; None leaves it.

    The study that this package reimplements, "On the Geometry of On-Policy Distillation" (arXiv 2606.07082), states
    neither what it decays nor whether it clips.

    Raises:
        UserError: naming the field and its value.
    """

    learning_rate: Annotated[float, tyro.conf.arg(aliases=["--lr"])]
    schedule: Literal["constant", "cosine"] = "constant"
    learning_rate_end: float = 0.0
    warmup_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: Literal["all", "matrices"] = "all"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        check_types(self)

        def refuse(name: str, needed: str) -> None:
            raise UserError(f"{name}={getattr(self, name)!r}: {needed} is needed")

        for name in ("learning_rate", "learning_rate_end", "weight_decay"):
            if not (math.isfinite(_in_float32(getattr(self, name))) and getattr(self, name) >= 0):
                refuse(name, "a finite number of float32, at least 0,")
        # An entry without a gradient (the row of a token that no text has) is moved by 0 / (√0 + eps).
        if not (math.isfinite(_in_float32(self.eps)) and self.eps >= _SMALLEST):
            refuse("eps", f"a finite number of float32, at least {_SMALLEST:g},")
        for name in ("b1", "b2"):
            if not (0 <= getattr(self, name) and _in_float32(getattr(self, name)) < 1):
                refuse(name, "a number in [0, 1), also in float32,")
        if not 0 <= self.warmup_fraction <= 1:
            refuse("warmup_fraction", "a number in [0, 1]")
        if self.schedule not in ("constant", "cosine"):
            refuse("schedule", "'constant' or 'cosine'")
        if self.decay not in ("all", "matrices"):
            refuse("decay", "'all' or 'matrices'")
        if self.schedule == "constant":
            refuse_unread(self, ("learning_rate_end",), "schedule=constant")
        elif self.learning_rate_end > self.learning_rate:
            refuse("learning_rate_end", f"at most learning_rate ({self.learning_rate})")
        if self.clip_norm is not None and not _in_float32(self.clip_norm) >= _SMALLEST:
            refuse("clip_norm", "a positive number, or None,")
