"""Which checkpoints of a run stay, as it is told: help waits for no reader."""

from collections.abc import Collection
from dataclasses import dataclass

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types


@dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """Which checkpoints stay.

    Attributes:
        keep: So many of the newest checkpoints stay, older ones are removed; none: all stay. Step 0, the last step and
            the step that geometry is compared with stay in any case.
        keep_every: Of the older ones those at multiples of so many steps stay too.
        keep_steps: Steps that stay too: those that other runs begin with or take their basis from, as `RUN@STEP`.
    """

    keep: int | None = None
    keep_every: int | None = None
    keep_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if self.keep is not None and self.keep < 1:
            raise UserError(f"keep={self.keep}: must be positive; the last whole checkpoint is never removed")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"keep_every={self.keep_every}: must be positive")
        if self.keep_every is not None and self.keep is None:
            raise UserError(f"keep_every={self.keep_every}: nothing is removed without keep")
        if min(self.keep_steps, default=0) < 0:
            raise UserError(f"keep_steps={self.keep_steps}: must be at least 0")

    def removed(self, saved: Collection[int], newest: int, always: Collection[int] = ()) -> list[int]:
        """The steps that go once another is saved.

        Args:
            saved: steps whose checkpoints are whole.
            newest: the one that was saved last; what is beyond it, from before the run went back, counts for nothing.
            always: steps that stay whatever the settings say.

        Returns:
            Ascending.

        >>> KeepSettings(keep=2, keep_every=30).removed([0, 10, 20, 30, 40, 50, 90], newest=50)
        [10, 20]
        """
        past = sorted(step for step in saved if step <= newest)
        if self.keep is None:
            return []
        stay = {0, *always, *self.keep_steps, *past[-self.keep :]}
        return [step for step in past if step not in stay and not (self.keep_every and step % self.keep_every == 0)]
