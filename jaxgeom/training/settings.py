"""What a training run is told: one frozen dataclass per objective, checked when it is made."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

from jaxgeom.buckets.places import named
from jaxgeom.data.row_settings import RowSettings
from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.optimizers import AdamWSettings
from jaxgeom.training.confine_settings import ConfineSettings
from jaxgeom.training.distillation_checks import check_controls, check_signal, check_support
from jaxgeom.training.geometry_settings import GeometrySettings
from jaxgeom.training.inputs import RunInputs as RunInputs
from jaxgeom.training.keep_settings import KeepSettings
from jaxgeom.training.reward_settings import rewards_of
from jaxgeom.unread_settings import refuse_unread

_TEMPERATURES = (1e-6, 1e6)
"""Below, the largest logit alone counts in float32 (answers are sampled from no lower one); above, none does."""


@dataclass(frozen=True)
class MeshSettings:
    """How the devices are laid out; a size of −1 takes what the others leave.

    Attributes:
        data: Replicas of the parameters; the batch is split over them.
        fsdp: Shards of the parameters; the batch is split over them too.
        tensor: Shards of heads and feed-forward units.
        expert: Shards of the experts of a mixture.
    """

    data: Annotated[int, tyro.conf.arg(name="mesh-data")] = 1
    fsdp: Annotated[int, tyro.conf.arg(name="mesh-fsdp")] = -1
    tensor: Annotated[int, tyro.conf.arg(name="mesh-tensor")] = 1
    expert: Annotated[int, tyro.conf.arg(name="mesh-expert")] = 1

    def __post_init__(self):
        check_types(self)
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(f"mesh (data, fsdp, tensor, expert)={sizes}: sizes must be ≥ 1, and one may be -1")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every objective is told beyond its inputs.

    Attributes:
        steps: Optimizer steps.
        batch_size: Sequences a step, over all devices.
        seed: Of data order and sampling.
        save_every: Steps between checkpoints; step 0 and the last are always saved.
        eval_every: Steps between evaluations; 0: at the start and the end only.
        eval_limit: At most so many held-out prompts of each file.
        eval_samples: Answers to each held-out prompt beside the greedy one, drawn at `eval_temperature`, for avg@k and
            pass@k; 0: none.
        eval_temperature: Of these.
        max_new_tokens: Of a sampled answer (in training and evaluation).
        micro_batches: Gradient accumulation: the batch is worked off in so many parts.
        allow_unisolated_code: Run programs of rows with tests even where bubblewrap is not to be had. They can then
            read and change what this user can, use the network, stop the run.
        code_timeout: Seconds for one test of a program.
        remat: Recompute activations in the backward pass.
        compute_dtype: Of activations; parameters and optimizer are always float32 masters.
        optimizer: AdamW and its learning-rate schedule.
        mesh: How devices are laid out.
        rows: How rows become tokens.
        confine: Where the update may go.
        geometry: What is measured while the run goes on.
        keeping: Which checkpoints stay.
    """

    objective: ClassVar[str]
    """Its name, as commands and files have it."""
    reads: ClassVar[Literal["demonstrations", "prompts"]]
    """What its rows are."""
    is_taught: ClassVar[bool] = False
    """Whether it has a teacher."""

    steps: int
    batch_size: int
    optimizer: AdamWSettings
    seed: int = 0
    save_every: int = 64
    eval_every: int = 0
    eval_limit: int = 512
    eval_samples: int = 0
    eval_temperature: float = 1.0
    max_new_tokens: int = 512
    micro_batches: int = 1
    allow_unisolated_code: bool = False
    code_timeout: float = 10.0
    remat: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshSettings = field(default_factory=MeshSettings)
    rows: RowSettings = field(default_factory=RowSettings)
    confine: ConfineSettings = field(default_factory=ConfineSettings)
    geometry: GeometrySettings = field(default_factory=GeometrySettings)
    keeping: KeepSettings = field(default_factory=KeepSettings)

    def __post_init__(self):
        check_types(self)
        for name in ("steps", "batch_size", "save_every", "max_new_tokens", "micro_batches", "eval_limit"):
            _positive(self, name)
        _within(self, "steps", 1, 2**30)  # they are counted in int32
        _within(self, "batch_size", 1, 2**20)  # a larger one by mistake would fill the memory row by row
        _positive(self, "code_timeout")
        _within(self, "eval_temperature", *_TEMPERATURES)
        _within(self, "eval_samples", 0, 10_000)
        _within(self, "eval_every", 0, float("inf"))
        _within(self, "seed", 0, 2**31 - 1)
        if self.geometry.geometry_every > self.steps:
            raise UserError(f"geometry_every={self.geometry.geometry_every}: nothing is measured in steps={self.steps}")
        if not self.eval_samples:
            refuse_unread(self, ("eval_temperature",), "eval_samples=0")
        reference = self.geometry.geometry_step
        if reference is not None and (reference % self.save_every or reference > self.steps):
            raise UserError(f"geometry_step={reference}: no step that is saved, with save_every={self.save_every}")
        if (self.keeping.keep_every or 0) % self.save_every:
            raise UserError(f"keep_every={self.keeping.keep_every}: must be a multiple of save_every={self.save_every}")
        for step in self.keeping.keep_steps:
            if step > self.steps or (step % self.save_every and step != self.steps):
                raise UserError(f"keep_steps={step}: no step that is saved, with save_every={self.save_every}")
        if self.batch_size % self.micro_batches:
            raise UserError(f"batch_size={self.batch_size} is not divisible by micro_batches={self.micro_batches}")

    @property
    def needs_truth(self) -> bool:
        """Whether every prompt must have a right answer."""
        return True


@dataclass(frozen=True, kw_only=True)
class SFTSettings(RunSettings):
    """Cross-entropy on the assistant's tokens of demonstrations.

    Attributes:
        max_length: Longer demonstrations are cut here, and counted.
        packing: Rows of `max_length` tokens hold as many whole demonstrations as fit, each seeing itself alone;
            `batch_size` counts rows then.
    """

    objective = "sft"
    reads = "demonstrations"

    max_length: int = 4096
    packing: bool = False

    def __post_init__(self):
        super().__post_init__()
        _positive(self, "max_length")


_Repeated: Any = tuple[str, ...]
_UNNORMALIZED = "GRPO's advantages are the rewards less their group's mean alone, as in Dr. GRPO."


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings(RunSettings):
    """What RLVR and OPD share: sampling and the policy-gradient loss.

    Attributes:
        max_prompt_length: Prompts of more tokens are left out, and counted; none: those that with `max_new_tokens` do
            not fit into the model's context cannot be used.
        samples_per_prompt: Answers to one prompt; `batch_size` / `samples_per_prompt` prompts a step.
        temperature: Of sampling; log-probabilities are those of the sampled distribution.
        clip_low: Lower clip of the ratio, ε_low; from 1 on there is none. With one update a rollout and no lag the
            ratio is 1.
        clip_high: Upper clip of the ratio, ε_high.
        aggregate: Mean over all tokens of the batch (DAPO), over sequences, or Dr. GRPO's constant divisor.
        updates_per_rollout: Optimizer steps that one rollout of so many times `batch_size` answers is split into. The
            ratio is to the policy that answered, in all of them.
        rollout_lag: Answers are those of the policy as it was so many rollouts ago (steps, with one update a rollout),
            scored as it was then.
        reward: What answers are worth, NAME or NAME=WEIGHT, several added up: `math` and `code` judge rows with an
            answer and with tests, MODULE:FUNCTION takes a list of texts and a list of the rows and returns a number for
            each; none: math and code.
        normalize_by_std: Divide GRPO's advantages by the standard deviation of their group's rewards.
        kl_coefficient: Of the KL to the run's start (k3) in the loss; 0 measures it alone; none: neither, and the
            start's parameters are not kept.
    """

    reads = "prompts"

    max_prompt_length: int | None = None
    samples_per_prompt: int = 8
    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregate: Literal["token", "sequence", "constant"] = "token"
    updates_per_rollout: int = 1
    rollout_lag: int = 0
    reward: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="NAME[=WEIGHT]", constructor=_Repeated, help_behavior_hint="(default: by row) (repeatable)"
        ),
        tyro.conf.UseAppendAction,
    ] = ()
    normalize_by_std: Annotated[bool, tyro.conf.arg(help=_UNNORMALIZED, help_behavior_hint="")] = True
    kl_coefficient: float | None = None

    def __post_init__(self):
        super().__post_init__()
        rewards_of(self.reward)
        _within(self, "updates_per_rollout", 1, 1000)
        _within(self, "rollout_lag", 0, 1000)
        if self.kl_coefficient is not None:
            _within(self, "kl_coefficient", 0.0, 1e30)
        _positive(self, "samples_per_prompt")
        _within(self, "temperature", *_TEMPERATURES)
        if self.max_prompt_length is not None:
            _positive(self, "max_prompt_length")
        for name in ("clip_low", "clip_high"):
            _within(self, name, 0.0, float("inf"))
        if self.batch_size % self.samples_per_prompt:
            raise UserError(
                f"batch_size={self.batch_size} is not divisible by samples_per_prompt={self.samples_per_prompt}"
            )

    @property
    def prompts_per_rollout(self) -> int:
        """Of which each has `samples_per_prompt` answers."""
        return self.updates_per_rollout * self.batch_size // self.samples_per_prompt

    @property
    def needs_truth(self) -> bool:
        return any(reward.is_built_in for reward in rewards_of(self.reward))


_UNFILTERED = (
    "Learn from groups whose rewards are all equal too; else they are skipped, and others sampled in their place."
)


@dataclass(frozen=True, kw_only=True)
class RLVRSettings(OnPolicySettings):
    """GRPO with verified rewards.

    Attributes:
        dynamic_filter: Skip groups whose rewards are all equal and sample others in their place.
        refills: At most so many further rounds of sampling a rollout.
        overlong: Answers that `max_new_tokens` cut: judged as they stand, left out of the loss (their reward still
            counts in their group's mean), or DAPO's soft penalty: a reward that falls to −1 over the last
            `overlong_buffer` tokens, not seen by the dynamic filter.
        overlong_buffer: Tokens over which that penalty grows.
    """

    objective = "rlvr"

    dynamic_filter: Annotated[bool, tyro.conf.arg(help=_UNFILTERED, help_behavior_hint="")] = True
    refills: int = 2
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    overlong_buffer: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _within(self, "refills", 0, 100)
        if not self.dynamic_filter and self.refills:  # none are what is done
            refuse_unread(self, ("refills",), "dynamic_filter=False")
        if (self.overlong == "penalty") != (self.overlong_buffer is not None):
            raise UserError(
                f"overlong_buffer={self.overlong_buffer}: overlong={self.overlong} "
                + ("needs a number of tokens" if self.overlong == "penalty" else "has none")
            )
        if self.overlong_buffer is not None:
            _within(self, "overlong_buffer", 1, self.max_new_tokens)
        if self.samples_per_prompt < 2:
            raise UserError(f"samples_per_prompt={self.samples_per_prompt}: GRPO compares at least 2 answers")


Divergence = Literal["reverse", "forward", "jsd"]
Support = Literal["sampled", "full", "teacher-top-k", "student-top-k"]


@dataclass(frozen=True, kw_only=True)
class OPDSettings(OnPolicySettings):
    """On-policy distillation: by the sampled-token reverse KL, or by another divergence of student and teacher.

    The controls (which tokens, whose rollouts, the mix) are those of section 5 of "On the Geometry of On-Policy
    Distillation" (arXiv 2606.07082).

    Attributes:
        divergence: Reverse KL(π_θ‖π_T), forward KL(π_T‖π_θ), or the generalized Jensen-Shannon divergence of GKD.
        support: What it is taken over. `sampled`, the answers' own tokens: the reverse KL as an advantage, or the
            forward KL on answers of the teacher. Any other is a differentiable loss: the whole vocabulary, or the
            `top_k` likeliest tokens of the teacher or of the student.
        top_k: Tokens of a top-k support.
        tail_bucket: The rest of the mass counts as one more token, so that the divergence is one of whole distributions
            and never negative; without, both are renormalised to the support.
        jsd_beta: The teacher's share β in the mixture M = β·π_T + (1−β)·π_θ of `jsd`; none, 0.5.
        signal: How the divergence teaches: as the advantage of the token that was drawn, or as a loss that is
            differentiated; none: the one that the support has, and the other is refused with the reason.
        keep_tokens: Fraction ρ of response tokens that keep their signal.
        keep_by: The largest signed gaps, at random, or each answer's first tokens.
        rollouts: Who generates; with `teacher` the ratio is not clipped (ε = 1).
        teacher_dtype: Of the teacher's parameters and activations; none: parameters in float32, activations as the
            model's.
        teacher_devices: So many devices, the last ones, are the teachers' alone, sharded over them; the student has the
            others. Of several processes each gives as many, its last ones. None: every teacher lies beside the student,
            on all of them.
        alpha: Share of distillation in the mix with GRPO's advantage (or loss): α·(−r_t) + (1−α)·A_GRPO.
        mix: The two as they are, or weighted so that their gradients have norms as α : 1−α, and the sum that of
            distillation alone.
        advantage: Of a sampled token: minus its gap, or a constant −c whatever the teacher says, the null of its
            signal.
        advantage_constant: That c; none: the mean of each rollout's own |gap|.
    """

    objective = "opd"
    is_taught = True

    divergence: Divergence = "reverse"
    support: Support = "sampled"
    top_k: int | None = None
    tail_bucket: bool = True
    jsd_beta: float | None = None
    signal: Literal["advantage", "loss"] | None = None
    keep_tokens: float = 1.0
    keep_by: Literal["gap", "random", "first"] = "gap"
    rollouts: Literal["student", "teacher"] = "student"
    teacher_dtype: Literal["float32", "bfloat16"] | None = None
    teacher_devices: int | None = None
    alpha: float = 1.0
    mix: Literal["raw", "matched"] = "raw"
    advantage: Literal["gap", "constant"] = "gap"
    advantage_constant: float | None = None

    def __post_init__(self):
        super().__post_init__()
        _within(self, "alpha", 0.0, 1.0)
        if not 0.0 < self.keep_tokens <= 1.0:
            raise UserError(f"keep_tokens={self.keep_tokens}: must be in (0, 1]")
        check_support(self)
        check_signal(self)
        check_controls(self)

    @property
    def needs_truth(self) -> bool:
        return self.alpha < 1.0 and super().needs_truth  # what a teacher alone teaches needs no right answer

    @property
    def is_differentiated(self) -> bool:
        """Whether the divergence is a loss in the step, and not the advantage of what was sampled before it."""
        return self.support != "sampled" or self.divergence != "reverse"


def to_json(settings: Any) -> Any:
    """A settings dataclass as plain JSON values, paths as text: of a copy the `gs://` path that it is of."""
    return json.loads(named(json.dumps(dataclasses.asdict(settings), default=str, ensure_ascii=False)))


def defaults_of(objective: str) -> dict[str, Any]:
    """The settings of an objective that have a default, as plain JSON values."""
    kind = next(kind for kind in (SFTSettings, RLVRSettings, OPDSettings) if kind.objective == objective)
    found = {}
    for field_ in dataclasses.fields(kind):
        if field_.default_factory is not dataclasses.MISSING:
            found[field_.name] = to_json(field_.default_factory())
        elif field_.default is not dataclasses.MISSING:
            found[field_.name] = field_.default
    return json.loads(json.dumps(found, default=str))


def _positive(settings: Any, name: str) -> None:
    value = getattr(settings, name)
    if not value > 0:
        raise UserError(f"{name}={value}: must be positive")


def _within(settings: Any, name: str, low: float | int, high: float | int) -> None:
    value = getattr(settings, name)
    if not low <= value <= high:
        ends = [f"{end:g}" if isinstance(end, float) else str(end) for end in (low, high)]
        raise UserError(f"{name}={value}: must be between {' and '.join(ends)}")
