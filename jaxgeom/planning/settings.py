"""What a plan is told: of a run's settings those that decide what its programs are."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training.geometry_settings import GeometrySettings
from jaxgeom.training.settings import (
    Divergence,
    MeshSettings,
    OPDSettings,
    RLVRSettings,
    RunSettings,
    SFTSettings,
    Support,
)
from jaxgeom.unread_settings import refuse_unread

_KINDS: dict[str, type[RunSettings]] = {"sft": SFTSettings, "rlvr": RLVRSettings, "opd": OPDSettings}
_OF_PLAN = {"model", "topology", "objective", "teacher", "geometry_every", "search"}  # no field of a run's by this name


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The run that is planned; where `train` has the option too, it means the same and has the same default.

    Attributes:
        model: A published shape (qwen3-0.6b, -1.7b, -4b, -8b, -14b, -32b, -30b-a3b, -235b-a22b), or a directory with a
            config.json; no weights are read.
        topology: A TPU slice that need not be there (v5e:8x8, v6e:4x4, v5p:2x2x4, v4:2x2x2), or `local`: the devices
            that are here.
        objective: What the model is trained by.
        teacher: For OPD: named as the model is.
        batch_size: Sequences a step, over all devices; none: the fewest that the mesh takes.
        max_length: Tokens of a demonstration (SFT).
        max_prompt_length: Tokens of the longest prompt (RLVR, OPD).
        max_new_tokens: Of a sampled answer (RLVR, OPD).
        samples_per_prompt: Answers to one prompt (RLVR, OPD).
        updates_per_rollout: Optimizer steps that the answers of one rollout are divided among (RLVR, OPD).
        kl_coefficient: Of the KL to the start (RLVR, OPD): given, the start's parameters stay on the devices and score.
        packing: Rows of `max_length` tokens hold several demonstrations each (SFT).
        rollout_lag: Rollouts that are sampled ahead of the step (RLVR, OPD).
        rollouts: Who answers (OPD).
        alpha: The teacher's share of the advantage, beside the reward's (OPD).
        micro_batches: Gradient accumulation: the batch is worked off in so many parts.
        compute_dtype: Of activations.
        teacher_devices: So many devices, the last ones, are the teacher's alone, and the student has the others; of
            several hosts each gives as many, its last ones.
        teacher_dtype: Of the teacher's parameters and activations; none: parameters in float32.
        remat: Recompute activations in the backward pass.
        divergence: Of OPD.
        support: Of OPD's divergence.
        top_k: Tokens of a top-k support.
        geometry_every: Live geometry: above 0 the parameters of the start stay on the devices.
        mesh: How devices are laid out.
        search: At most so many programs more are compiled to find the largest batch, to an eighth; 0: it is estimated.
    """

    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    topology: Annotated[str, tyro.conf.arg(metavar="TOPOLOGY")]
    objective: Literal["sft", "rlvr", "opd"]
    teacher: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    batch_size: int | None = None
    max_length: int = 4096
    max_prompt_length: int = 1024
    max_new_tokens: int = 512
    samples_per_prompt: int = 8
    updates_per_rollout: int = 1
    kl_coefficient: float | None = None
    packing: bool = False
    rollout_lag: int = 0
    rollouts: Literal["student", "teacher"] = "student"
    alpha: float = 1.0
    micro_batches: int = 1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    teacher_devices: int | None = None
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    remat: bool = False
    divergence: Divergence = "reverse"
    support: Support = "sampled"
    top_k: int | None = None
    geometry_every: int = 0
    mesh: MeshSettings = field(default_factory=MeshSettings)
    search: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        if (self.teacher is None) == (self.objective == "opd"):
            needed = "opd needs --teacher" if self.teacher is None else f"{self.objective} has no teacher"
            raise UserError(f"--teacher {self.teacher}: {needed}" if self.teacher is not None else needed)
        for name in ("batch_size", "micro_batches", "max_prompt_length", "samples_per_prompt", "teacher_devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be positive")
        if self.teacher_devices is not None and self.teacher is None:
            raise UserError(f"--teacher-devices {self.teacher_devices}: {self.objective} has no teacher")
        if self.search < 0:
            raise UserError(f"search={self.search}: must be at least 0")
        known = {one.name for one in dataclasses.fields(_KINDS[self.objective])} | _OF_PLAN
        known -= {"max_new_tokens"} if self.objective == "sft" else set()  # of its evaluation, which is not planned
        unread = [one.name for one in dataclasses.fields(self) if one.name not in known]
        refuse_unread(self, tuple(unread), f"objective={self.objective}")

    @property
    def prompt_length(self) -> int:
        """What `run_programs` is told: tokens of the longest prompt, or demonstration."""
        return self.max_length if self.objective == "sft" else self.max_prompt_length

    def unit(self, shards: int) -> int:
        """The fewest sequences that a step can take; larger batches are its multiples.

        Args:
            shards: of the batch over the mesh.
        """
        parts = math.lcm(shards * self.micro_batches, self.teacher_devices or 1)
        return parts if self.objective == "sft" else math.lcm(parts, self.samples_per_prompt)

    def run_settings(self, batch_size: int) -> RunSettings:
        """The settings of such a run, as `train` makes them.

        Args:
            batch_size: sequences a step.

        Raises:
            UserError: a field that `train` refuses.
        """
        kind = _KINDS[self.objective]
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)} | {"batch_size": batch_size}
        known = {one.name for one in dataclasses.fields(kind)}
        given: dict[str, Any] = {name: value for name, value in own.items() if name in known}
        geometry = GeometrySettings(geometry_every=self.geometry_every)
        # The rate and the number of steps decide no shape.
        rate, steps = AdamWSettings(learning_rate=1e-6), max(1, self.geometry_every)
        return kind(steps=steps, save_every=1, optimizer=rate, geometry=geometry, **given)
