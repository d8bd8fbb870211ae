"""What an entry of the table of statistics says."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from .sources import SOURCES

Unit = Literal["share", "deg", "rank", "relative", "count", "nats", ""]
"""How a number is printed: a share in percent, an angle in degrees; "" and the others are plain numbers."""

Weighting = Literal["parameters", "matrices", "tokens"]
"""How a mean is taken: over every parameter, each tensor weighted by its size; plainly over the matrices; or over the
tokens of answers, for what is one number of the models."""

Command = Literal["compare", "trajectory", "between", "measure"]

KINDS = ("null", "excess", "z")
"""What stands beside the value of a statistic that has a null, as `<name>_null` and so on."""


@dataclasses.dataclass(frozen=True)
class Null:
    """What chance gives in place of the update.

    Attributes:
      says: what it is, in words.
      form: "closed" (a formula), "sampled" (draws), or "fixed" (a constant by definition).
      how: which closed form, or what is drawn.
      deviation: whether it has a standard deviation, and with it a z.
      lost: what leaves it, or its deviation, undefined where the statistic is defined.
      suites: in which suites of `compare` it is taken.
      sources: where it comes from, keys of `SOURCES`.
    """

    says: str
    form: Literal["closed", "sampled", "fixed"] = "closed"
    how: str = ""
    deviation: bool = True
    lost: str = ""
    suites: tuple[str, ...] = ("full", "fast")
    sources: tuple[str, ...] = ()

    @property
    def described(self) -> str:
        """`closed: isotropic update of equal Frobenius norm, …`, as `settings.null_forms` of a report has it."""
        return f"{self.form}: {self.says}" + (f", {self.how}" if self.how else "")


@dataclasses.dataclass(frozen=True)
class Statistic:
    """One statistic: how it is called, defined, averaged and read.

    Attributes:
      key: its name in `report.json`; a family's key has a part in capitals (`energy_top_K`).
      label: what tables and figures call it.
      definition: the formula.
      meaning: what it says, in one sentence.
      unit: how it is printed.
      weighting: how its mean over a checkpoint is taken.
      null: what chance gives; None where it has none.
      further: nulls beside the first one, by kind: `<key>_<kind>_null`, `_excess`, `_z`.
      along: its null along a trajectory, where that is another one than between two checkpoints.
      commands: which commands have it; "measure" for those that `measure` alone has.
      suites: which suites of `compare` and `trajectory` have it.
      undefined: what leaves it without a value.
      sources: where it comes from, keys of `SOURCES`; none for this project's own.
      agreement: relative difference between a report of the full suite and the public function on the same arrays under
        x64 that is allowed; degrees for angles.
      agreement_fast: the same for the fast suite, where it takes another route.
      over_gap: what is allowed on top, in units of σ₁²/(σ_K² − σ_{K+1}²) of the updates: by so much rounding turns the
        directions at the cut of a float32 Gram matrix.
      cheap: whether it needs no decomposition of a whole matrix, and is in `CHEAP`.
      is_setting: a parameter that a statistic was taken with (`angle_k`): shown by the matrix, never averaged.
      compared: whether methods are compared by it, at the same step and at the same size.
      headline: whether tables show it before every other one.
      short: what narrow columns and panels call it; the label where empty.
      signed: whether it can be below zero, which no share, angle, rank, norm or count can.
    """

    key: str
    label: str
    definition: str
    meaning: str
    unit: Unit = ""
    weighting: Weighting = "matrices"
    null: Null | None = None
    further: Mapping[str, Null] = dataclasses.field(default_factory=dict)
    along: Null | None = None
    commands: tuple[Command, ...] = ("compare",)
    suites: tuple[str, ...] = ("full", "fast")
    undefined: str = "never"
    sources: tuple[str, ...] = ()
    agreement: float = 1e-9
    agreement_fast: float | None = None
    over_gap: float = 0.0
    cheap: bool = False
    is_setting: bool = False
    compared: bool = False
    headline: bool = False
    short: str = ""
    signed: bool = False

    def __post_init__(self) -> None:
        nulls = [null for null in (self.null, self.along, *self.further.values()) if null is not None]
        unknown = {key for of in (self, *nulls) for key in of.sources} - SOURCES.keys()
        if unknown:
            raise ValueError(f"{self.key}: {', '.join(sorted(unknown))}: no such source")
        if self.further and self.null is None:
            raise ValueError(f"{self.key} has further nulls beside none")

    @property
    def counted(self) -> bool:
        """Whether its mean is over every parameter, weighted by their number."""
        return self.weighting == "parameters"

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The least and the largest value that there can be, None where there is none: no interval goes beyond."""
        if self.signed:
            return None, None
        least = 1.0 if self.unit == "rank" else 0.0
        return least, {"share": 1.0, "deg": 90.0}.get(self.unit)

    def null_in(self, command: str) -> Null | None:
        """Its null in a command's report."""
        return self.along if command == "trajectory" and self.along is not None else self.null
