"""What a recipe that both sides train by is told, checked when it is made."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training.settings import SFTSettings

_SAVED_EVERY = 64


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """A recipe of `jaxgeom validate --recipe`.

    The optimizer has every part at work: warmup over a tenth of the steps, a cosine to a tenth of the rate, decoupled
    decay of 0.1 on all parameters, clipping at norm 1, betas (0.9, 0.95).

    Attributes:
        recipe: Its objective.
        data: Demonstrations, as `jaxgeom train sft` takes them.
        steps: Optimizer steps.
        batch_size: Sequences a step.
        learning_rate: The peak rate.
        max_length: Longer demonstrations are cut here.
        seed: Of the first data order.
        seeds: How many data orders: `seed`, `seed + 1`, ….

    Raises:
        UserError: naming the field and its value.
    """

    recipe: Literal["sft"] = "sft"
    data: Path
    steps: int = 50
    batch_size: int = 16
    learning_rate: float = 1e-3
    max_length: int = 1024
    seed: int = 0
    seeds: int = 1

    def __post_init__(self):
        check_types(self)
        if not 1 <= self.seeds <= 100:
            raise UserError(f"seeds={self.seeds}: must be between 1 and 100")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate={self.learning_rate}: must be positive")
        for seed in self.all_seeds:
            _ = self.run_settings(seed)  # checks what it is told

    @property
    def all_seeds(self) -> range:
        """The seeds of the data orders."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def optimizer(self) -> AdamWSettings:
        """AdamW of both sides."""
        return AdamWSettings(
            learning_rate=self.learning_rate, schedule="cosine", learning_rate_end=self.learning_rate / 10,
            warmup_fraction=0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
        )  # fmt: skip

    def run_settings(self, seed: int) -> SFTSettings:
        """The run of one seed, as `jaxgeom train` would be told."""
        return SFTSettings(
            steps=self.steps,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            seed=seed,
            save_every=_SAVED_EVERY,
            max_length=self.max_length,
            compute_dtype="float32",
        )

    def to_json(self) -> dict:
        """Plain JSON values, the optimizer among them."""
        held = dataclasses.asdict(self) | {"data": str(self.data)}
        return held | {"optimizer": dataclasses.asdict(self.optimizer), "dtype": "float32"}
