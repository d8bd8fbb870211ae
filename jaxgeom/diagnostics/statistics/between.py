"""Two runs from one start: whether they change the same entries, and move the same way."""

import dataclasses

from .changes import NO_CHANGE
from .entry import Null, Statistic
from .path import CHANCE, FEW, LEANING
from .spectrum import ZERO

INDEPENDENCE = Null("masks of the observed sizes laid at random", how="hypergeometric")
ROUNDING = Null(
    "two independent Gaussian updates of the observed visible densities, rounded to bfloat16",
    how="joint probabilities by magnitude of W0, given the masks' sizes; none where a run's end is float16 and W0 or "
    "the other end is not",
)
APART = dataclasses.replace(
    CHANCE,
    how=f"{CHANCE.how}; by their correlation, without a z, where both ends share the rounding error of W0",
    lost=LEANING,
)
NO_MASK = NO_CHANGE.replace(", so there is no mask to overlap", " of one of the runs")

BETWEEN = (
    Statistic(
        "density_a", "visible density of A (bf16)", "visible density of ΔW_A",
        "The share of the matrix that run A changed visibly.", unit="share", commands=("between",),
    ),
    Statistic(
        "density_b", "visible density of B (bf16)", "visible density of ΔW_B",
        "The share of the matrix that run B changed visibly.", unit="share", commands=("between",),
    ),
    *(
        Statistic(
            key, label, formula, meaning, unit="share", null=INDEPENDENCE, further={"rounding": ROUNDING},
            commands=("between",), undefined=NO_MASK, sources=("2511.08567", "2505.11711"), headline=True,
        )
        for key, label, formula, meaning in (
            ("jaccard", "Jaccard of the changed masks", "|A ∩ B|/|A ∪ B|",
             "The share of the entries that either run changed which both changed."),
            ("overlap_a_in_b", "share of B's changes that A has", "|A ∩ B|/|B|",
             "The share of the entries that run B changed which run A changed too."),
            ("overlap_b_in_a", "share of A's changes that B has", "|A ∩ B|/|A|",
             "The share of the entries that run A changed which run B changed too."),
        )
    ),
    Statistic(
        "orthogonal_share", "orthogonal share of the updates", "1 − cos²(ΔW_A, ΔW_B)",
        "The share of one update's energy that is orthogonal to the other.",
        unit="share", null=Null(
            "1 − Σa²b²/(‖A‖²‖B‖²), independent signs of the entries (1 − 1/(mn) for isotropic updates)",
            how="z from the two-sided tail of the cosine; where both ends are rounded to a grid that W0 is not on, "
            "less the squared cosine that this shared error gives them, without a z",
        ),
        commands=("between",), undefined=ZERO, headline=True,
    ),
    Statistic(
        "subspace_similarity", "similarity of the right subspaces", "‖V_K(ΔW_A)ᵀ V_K(ΔW_B)‖_F²/K",
        "How near the leading right subspaces of the two updates are.",
        unit="share", null=APART, commands=("between",), undefined=FEW, sources=("2606.07082",),
        agreement=1e-6, agreement_fast=1e-4, over_gap=2e-6, headline=True,
    ),
    Statistic(
        "subspace_k", "K of the subspaces", "min(subspace_k, min(m, n) − 1)", "As the settings have it, capped.",
        unit="count", commands=("trajectory", "between"), is_setting=True,
    ),
)  # fmt: skip
