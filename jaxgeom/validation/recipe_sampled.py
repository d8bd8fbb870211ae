"""RLVR and OPD as whole recipes, in PyTorch and here: the same prompts in the same order, the answers each side's own.

Our side is `jaxgeom train rlvr` or `opd` itself. The first answers are compared to rounding (`recipe_exact`); from then
on chance parts the two, and means over seeds are compared with what the seeds of both sides leave open.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from jaxgeom.diagnostics import MatrixSpec, measure, summarize
from jaxgeom.progress import Reporter
from jaxgeom.training.inputs import RunInputs
from jaxgeom.training.logs import read_json_lines
from jaxgeom.training.rows import read_run_rows
from jaxgeom.training.settings import OnPolicySettings
from jaxgeom.validation import torch_side
from jaxgeom.validation.checks import Check
from jaxgeom.validation.recipe_exact import FirstAnswers, compare_first
from jaxgeom.validation.recipe_runs import Rows, relative, run_ours
from jaxgeom.validation.recipe_settings import RecipeSettings
from jaxgeom.validation.tolerances import RECIPE_TOLERANCES, SAMPLED_CONFIDENCE, SAMPLED_FLOOR
from jaxgeom.validation.torch_sampled import train_sampled

STATISTICS = {
    "accuracy": "greedy accuracy at the end",
    "reward": "reward, last quarter",
    "gap": "gap to the teacher, last quarter",
    "response_length": "tokens an answer, last quarter",
    "grad_norm_early": "gradient norm, first quarter",
    "grad_norm_late": "gradient norm, last quarter",
    "relative_norm": "update: relative norm",
    "density_bf16": "update: visible density",
    "stable_rank": "update: stable rank",
}
"""What is compared over seeds, a number a run: its key in `recipe.json`, and what it is called."""

_GEOMETRY = ("relative_norm", "density_bf16", "stable_rank")
_MATRIX = re.compile(r".*\.([qkvo]|gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class SampledSide:
    """One side's run of one seed.

    Attributes:
        rows: A dict a step.
        accuracy: Greedy accuracy by steps taken; empty where no prompt has a right answer.
        geometry: Of the whole update: mean relative norm and stable rank over matrices, visible density.
    """

    rows: Rows
    accuracy: dict[int, float]
    geometry: dict[str, float]

    def statistics(self) -> dict[str, float]:
        """The numbers of `STATISTICS` that the run has."""
        quarter = max(1, len(self.rows) // 4)
        early, late = self.rows[:quarter], self.rows[-quarter:]
        found = {"accuracy": self.accuracy[max(self.accuracy)]} if self.accuracy else {}
        for key in ("reward", "gap", "response_length"):
            if any(key in row for row in late):
                found[key] = float(np.mean([row[key] for row in late if key in row]))
        norms = (float(np.mean([row["grad_norm"] for row in part])) for part in (early, late))
        return found | dict(zip(("grad_norm_early", "grad_norm_late"), norms, strict=True)) | self.geometry


@dataclass(frozen=True)
class SampledResult:
    """One seed on both sides.

    Attributes:
        seed: Of the data order; each side's draws come from it too.
        ours: Our run.
        torch: PyTorch's.
        prompts: Steps at which the first prompt of our log is another than PyTorch's.
    """

    seed: int
    ours: SampledSide
    torch: SampledSide
    prompts: int


def sampled_inputs(model: Path, settings: RecipeSettings, reporter: Reporter) -> RunInputs:
    """What both sides read: the accuracy is on the data's own prompts where no others are given, if they have answers.

    Raises:
        UserError: rows that cannot be used.
    """
    inputs = settings.inputs(model, evaluated=False)
    if settings.eval_data is not None:
        return inputs
    rows = read_run_rows(settings.run_settings(settings.seed), inputs, reporter=reporter)
    return settings.inputs(model, evaluated=any(truth is not None for truth in rows.data.truths))


def run_sampled(
    settings: RecipeSettings, inputs: RunInputs, out: Path, reporter: Reporter, first: FirstAnswers, *,
    reference: Any, teacher: Any = None,
) -> tuple[list[SampledResult], list[Check]]:  # fmt: skip
    """Trains both sides by the recipe, seed by seed.

    Args:
        settings: the recipe.
        inputs: of `sampled_inputs`.
        out: where our runs lie: `ours/seedN`; an interrupted one goes on.
        reporter: where to say what is done.
        first: of the first seed.
        reference: the model of `load_torch`. It is trained.
        teacher: the teacher likewise, of `opd`.

    Returns:
        A result a seed, and the rows of the table about the first answers.

    Raises:
        UserError: see `train`.
    """
    start = {name: value.detach().clone() for name, value in reference.state_dict().items()}
    found, exact = [], []
    for seed in settings.all_seeds:
        run, place = settings.run_settings(seed), out / "ours" / f"seed{seed}"
        assert isinstance(run, OnPolicySettings)
        mine = run_ours(run, inputs, place, reporter)
        reference.load_state_dict(start)
        if not exact:
            reporter.say("the first answers in PyTorch")
            exact = compare_first(first, mine.rows[0], reference, teacher)
        rows = first.rows
        batches = list(itertools.islice(rows.batches(run), run.steps))
        evaluated = rows.evaluated.get("", [])
        with reporter.task(f"PyTorch, seed {seed}", run.steps) as task:
            theirs, accuracy = train_sampled(
                reference, teacher, batches, first.recipe, first.judge, seed=seed, evaluated=evaluated,
                evaluate_every=run.eval_every, task=task,
            )  # fmt: skip
        weights = torch_side.torch_weights(reference, first.names)
        ours = SampledSide(
            [{key: row[key] for key in theirs[0] if key in row} for row in mine.rows],
            {row["step"]: row["accuracy"] for row in mine.log if "accuracy" in row},
            geometry(mine.start, mine.weights),
        )
        asked = {row["step"]: row["prompt"] for row in reversed(read_json_lines(place / "samples.jsonl"))}
        differ = sum(asked[step] != row["prompt"] for step, row in enumerate(theirs, 1))
        found.append(SampledResult(seed, ours, SampledSide(theirs, accuracy, geometry(mine.start, weights)), differ))
    return found, exact


def geometry(start: dict[str, np.ndarray], end: dict[str, np.ndarray]) -> dict[str, float]:
    """The cheap geometry of an update: q, k, v, o, gate, up and down of every layer, each a matrix.

    Args:
        start: parameters before, by Hugging Face name.
        end: after.
    """
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name in start:
        found = _MATRIX.fullmatch(name)
        if found is not None:
            kinds.setdefault((found[1], *map(str, start[name].shape)), []).append(name)
    stacks = [{" ".join(kind): np.stack([side[one] for one in held]) for kind, held in kinds.items()}
              for side in (start, end)]  # fmt: skip
    specs = {kind: MatrixSpec((1,), (2,), (0,)) for kind in stacks[0]}
    before, after = stacks
    means = summarize(measure(before, after, specs, statistics=list(_GEOMETRY)), specs)
    return {name: float(means[name]) for name in _GEOMETRY}


def compare_sampled(results: Sequence[SampledResult], exact: Sequence[Check]) -> list[Check]:
    """The table: first what is compared to rounding, then means over seeds.

    Args:
        results: of `run_sampled`.
        exact: likewise.

    Returns:
        A `Check` a row. The tolerance of a mean is the half width of Welch's interval for the difference of the two
        sides' means, 95 % over all such rows together (Bonferroni), or `SAMPLED_FLOOR` of PyTorch's mean where that is
        larger; its `null` is the standard error of the difference.
    """
    limits = RECIPE_TOLERANCES["sampled"]
    checks = list(exact)
    began = [(one.ours.accuracy[0], one.torch.accuracy[0], one.seed) for one in results if one.torch.accuracy]
    if began:
        error, seed = max((abs(a - b), seed) for a, b, seed in began)
        checks.append(Check("greedy accuracy before step 1", error, limits["accuracy"], f"seed {seed}"))
    rates = [
        (relative(a["learning_rate"], b["learning_rate"]), step, one.seed)
        for one in results
        for step, (a, b) in enumerate(zip(one.ours.rows, one.torch.rows, strict=True), 1)
    ]
    error, step, seed = max(rates)
    checks.append(Check("learning rate, worst step", error, limits["learning_rate"], f"seed {seed}, step {step}"))
    differ = float(sum(one.prompts for one in results))
    checks.append(Check("steps whose first prompt differs", differ, 0.0))
    numbers = [(one.ours.statistics(), one.torch.statistics()) for one in results]
    shared = [key for key in STATISTICS if all(key in ours and key in theirs for ours, theirs in numbers)]
    for key in shared:
        ours, theirs = (np.array([pair[side][key] for pair in numbers]) for side in (0, 1))
        checks.append(_over_seeds(STATISTICS[key], ours, theirs, rows=len(shared)))
    return checks


def _over_seeds(label: str, ours: np.ndarray, theirs: np.ndarray, *, rows: int) -> Check:
    """The difference of two means beside the half width of its interval; see `compare_sampled`."""
    error, half = welch(ours, theirs, confidence=1.0 - (1.0 - SAMPLED_CONFIDENCE) / rows)
    where = f"{ours.mean():.4g} here, {theirs.mean():.4g} in PyTorch"
    return Check(label, abs(float(ours.mean() - theirs.mean())), max(half, SAMPLED_FLOOR * abs(float(theirs.mean()))),
                 where, error)  # fmt: skip


def welch(ours: np.ndarray, theirs: np.ndarray, *, confidence: float) -> tuple[float, float]:
    """Welch's interval for the difference of two means.

    Args:
        ours: `[seeds]`, at least 2.
        theirs: likewise.
        confidence: of the interval, such as 0.95.

    Returns:
        The standard error of the difference `√(s²/n + s'²/n')`, and the half width of the interval: that times
        Student's quantile at Welch and Satterthwaite's degrees of freedom; both 0 where neither side varies.
    """
    parts = [float(side.var(ddof=1)) / side.size for side in (ours, theirs)]
    total = sum(parts)
    if total == 0.0:
        return 0.0, 0.0
    freedom = total**2 / sum(part**2 / (side.size - 1) for part, side in zip(parts, (ours, theirs), strict=True))
    error = float(np.sqrt(total))
    return error, error * float(stats.t.ppf(0.5 + confidence / 2, freedom))
