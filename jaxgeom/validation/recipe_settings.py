"""What a recipe that both sides train by is told, checked when it is made."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training.inputs import RunInputs
from jaxgeom.training.settings import OPDSettings, RLVRSettings, RunSettings, SFTSettings

_SAVED_EVERY = 64
_EVALUATIONS = 4  # along a sampled run, beside the one before its first step

Recipe = Literal["sft", "rlvr", "opd"]

_SAMPLED: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 5e-5,
    "seeds": 3,
    "samples_per_prompt": 8,
    "max_new_tokens": 64,
    "eval_limit": 256,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 16, "learning_rate": 1e-3, "seeds": 1, "max_length": 1024},
    "rlvr": _SAMPLED,
    "opd": _SAMPLED,
}
"""By recipe, its settings beyond data and steps with their defaults; one that is not here does not belong to it."""


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """A recipe of `jaxgeom validate --recipe`.

    The optimizer has every part at work: warmup over a tenth of the steps, a cosine to a tenth of the rate, decoupled
    decay of 0.1 on all parameters, clipping at norm 1, betas (0.9, 0.95). Answers are sampled at temperature 1, their
    loss is the clipped policy gradient (0.2, 0.28), averaged over tokens; groups of equal rewards stay in the batch, so
    that both sides have the same prompts at every step.

    Attributes:
        recipe: Its objective.
        data: Rows, as `jaxgeom train` takes them for that objective.
        teacher: Of `opd`: a Hugging Face directory.
        eval_data: Prompts that greedy accuracy is taken on; None: those of `data`.
        steps: Optimizer steps.
        batch_size: Sequences a step.
        learning_rate: The peak rate.
        max_length: Longer demonstrations are cut here.
        samples_per_prompt: Answers to one prompt.
        max_new_tokens: Of an answer.
        eval_limit: At most so many prompts for the accuracy.
        seed: Of the first data order.
        seeds: How many data orders: `seed`, `seed + 1`, ….

    Where one of these is None it becomes the recipe's default, see `DEFAULTS`.

    Raises:
        UserError: naming the field and its value.
    """

    recipe: Recipe = "sft"
    data: Path
    teacher: Path | None = None
    eval_data: Path | None = None
    steps: int = 50
    batch_size: int | None = None
    learning_rate: float | None = None
    max_length: int | None = None
    samples_per_prompt: int | None = None
    max_new_tokens: int | None = None
    eval_limit: int | None = None
    seed: int = 0
    seeds: int | None = None

    def __post_init__(self):
        check_types(self)
        own = DEFAULTS[self.recipe]
        for name in {**DEFAULTS["sft"], **_SAMPLED}:
            if name in own and getattr(self, name) is None:
                object.__setattr__(self, name, own[name])
            elif name not in own and getattr(self, name) is not None:
                raise UserError(f"{name}={getattr(self, name)}: recipe {self.recipe} has no use for it")
        if self.recipe == "opd" and self.teacher is None:
            raise UserError("teacher=None: recipe opd needs one")
        for name, value in (("teacher", self.teacher), ("eval_data", self.eval_data)):
            if value is not None and (self.recipe == "sft" or (self.recipe == "rlvr" and name == "teacher")):
                raise UserError(f"{name}={value}: recipe {self.recipe} has no use for it")
        least = 2 if self.is_sampled else 1
        if not least <= self.all_seeds.stop - self.seed <= 100:
            why = ": sampled runs are compared over seeds" if self.is_sampled else ""
            raise UserError(f"seeds={self.seeds}: must be between {least} and 100{why}")
        if not self.optimizer.learning_rate > 0:
            raise UserError(f"learning_rate={self.learning_rate}: must be positive")
        for seed in self.all_seeds:
            _ = self.run_settings(seed)  # checks what it is told

    @property
    def is_sampled(self) -> bool:
        """Whether the model's own answers are learned from."""
        return self.recipe != "sft"

    @property
    def all_seeds(self) -> range:
        """The seeds of the data orders."""
        return range(self.seed, self.seed + self._number("seeds"))

    @property
    def optimizer(self) -> AdamWSettings:
        """AdamW of both sides."""
        rate = self._number("learning_rate")
        return AdamWSettings(
            learning_rate=rate, schedule="cosine", learning_rate_end=rate / 10,
            warmup_fraction=0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0,
        )  # fmt: skip

    @property
    def paths(self) -> dict[str, Path]:
        """What is read beside the model, by the name of its field."""
        held = {"data": self.data, "teacher": self.teacher, "eval_data": self.eval_data}
        return {name: path for name, path in held.items() if path is not None}

    def inputs(self, model: Path, *, evaluated: bool = True) -> RunInputs:
        """What our runs read.

        Args:
            model: the start.
            evaluated: whether a sampled recipe's accuracy is taken on its own prompts where no others are given.

        Raises:
            UserError: `eval_data` is no file.
        """
        own = self.data if self.is_sampled and evaluated else None
        found = RunInputs(model=model, data=self.data, teacher=self.teacher, eval_data=self.eval_data or own)
        if any(found.evaluations):  # NAME=FILE, of which a run takes several
            raise UserError(f"{self.eval_data}: no such file")
        return found

    def run_settings(self, seed: int) -> RunSettings:
        """The run of one seed, as `jaxgeom train` would be told."""
        common: dict[str, Any] = {
            "steps": self.steps, "batch_size": self.batch_size, "optimizer": self.optimizer, "seed": seed,
            "save_every": _SAVED_EVERY, "compute_dtype": "float32",
        }  # fmt: skip
        if not self.is_sampled:
            return SFTSettings(**common, max_length=self._number("max_length"))
        common |= {name: getattr(self, name) for name in ("samples_per_prompt", "max_new_tokens", "eval_limit")}
        common |= {"eval_every": max(1, self.steps // _EVALUATIONS)}
        # A refilled rollout would read on in the rows by as much as chance has it.
        return OPDSettings(**common) if self.recipe == "opd" else RLVRSettings(**common, dynamic_filter=False)

    def to_json(self) -> dict:
        """Plain JSON values, the optimizer among them."""
        held = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        held |= {name: str(path) for name, path in self.paths.items()}
        return held | {"optimizer": dataclasses.asdict(self.optimizer), "dtype": "float32"}

    def _number(self, name: str) -> Any:
        """A setting that `__post_init__` has given its default."""
        value = getattr(self, name)
        assert value is not None
        return value
