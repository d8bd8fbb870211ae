"""Along a run: when the update finds its subspace, and how straight its path is; and what the model says."""

from collections.abc import Sequence

from ..null_isotropic import NEAR
from ..null_trajectory import SHOWN
from ..path_numbers import LEFT
from .entry import Null, Statistic
from .spectrum import HAAR, NO_VISIBLE, PRECISION, ZERO

LEANING = (
    f"none where few entries carry one of the updates: of kurtosis κ, (κ − 3)/√(mn) > {NEAR:g}; no z where that is "
    f"over {SHOWN:g}/√min(m, n)"
)
WALK = Null(
    "random walk of independent increments with the observed norms, as rounded checkpoints show it",
    how="mean from the overlaps of correlated Gaussian matrices, deviation from draws at reduced size",
    lost=LEANING,
)
REMAINS = f"no z where rounding leaves few entries of a stretch: of kurtosis κ, (κ − 3)/(mn) > {LEFT:g}"
CHANCE = Null("K/n, the similarity of two independent random subspaces", how="Haar-distributed subspaces")
INDEPENDENT = Null(
    "independent increments: 0, and below where checkpoints are rounded to 16 bits and share its error; none where "
    "they are stored unlike one another",
    how="independent signs of the entries: deviation √Σa²b²/(‖A‖‖B‖), 1/√(mn) for isotropic ones",
    lost=REMAINS,
)
STRETCHES = Null(
    "K/n, the similarity of two independent random subspaces; of a stored random walk where checkpoints are rounded",
    how="Haar-distributed subspaces; rounded walk by its correlation",
    lost=LEANING,
)
ENDS = "nothing follows the last checkpoint, or one of the two stretches is zero"
FEW = f"{ZERO}, or it has fewer than K directions"

EARLY = 0.2
"""The share of training at which *On the Geometry of On-Policy Distillation* asks whether the subspace is found."""


def early_place(steps: Sequence[float | int]) -> int:
    """Which of ascending steps is nearest to `EARLY` of the last one."""
    return min(range(len(steps)), key=lambda i: abs(steps[i] - EARLY * steps[-1]))


PATH = (
    Statistic(
        "sim_to_final", "similarity to the final subspace", "Sim_K(t, T) = ‖V_K(ΔW_t)ᵀ V_K(ΔW_T)‖_F²/K",
        "How near the leading right subspace of the update so far is to that of the whole update.",
        unit="share", null=WALK, commands=("trajectory",), undefined=FEW, sources=("2606.07082",),
        agreement=1e-6, agreement_fast=1e-4, over_gap=2e-6, compared=True,
        headline=True, short="sim. to final",
    ),
    Statistic(
        "sim_to_final_bf16", "similarity to the final subspace (bf16 view)", "Sim_K(t, T) of the bfloat16 views",
        "The same as a bfloat16 reader sees it, where rounding makes a small update's subspace converge late.",
        unit="share", null=PRECISION, commands=("trajectory",), undefined=NO_VISIBLE, sources=("2606.07082",),
        agreement=1e-4, over_gap=2e-6,
    ),
    Statistic(
        "sim_disjoint", "similarity of the update so far and the rest", "Sim_K between W_t − W_0 and W_T − W_t",
        "Whether training goes on in the directions that it used before: two stretches that share no step.",
        unit="share", null=STRETCHES, commands=("trajectory",), undefined=ENDS,
        agreement=1e-6, agreement_fast=1e-4, over_gap=2e-6, headline=True,
    ),
    Statistic(
        "path_cosine", "cosine of this stretch and the next", "cos(W_t − W_s, W_u − W_t), s, t, u neighbours",
        "Whether neighbouring stretches of training go the same way.",
        null=INDEPENDENT, commands=("trajectory",), undefined=ENDS, signed=True,
    ),
    Statistic(
        "cosine_to_rest", "cosine of the update so far and the rest", "cos(W_t − W_0, W_T − W_t)",
        "Whether what follows continues what was done.",
        null=INDEPENDENT, commands=("trajectory",), undefined=ENDS, signed=True,
    ),
    Statistic(
        "drift_ratio", "‖ΔW‖ over the root of the squared steps", "‖W_t − W_0‖/√Σ‖increments‖²",
        "1 where stretches add up at random, √t where they all go one way.",
        null=Null(
            "independent increments: 1, and below where checkpoints are rounded to 16 bits",
            how="deviation to first order in their cosines",
            lost=REMAINS,
        ),
        commands=("trajectory",), undefined=ZERO,
        headline=True,
    ),
    Statistic(
        "lr_diffusion_ratio", "‖ΔW‖ rms over lr·√T", "‖ΔW‖_rms/√Σlr²",
        "1 where Adam's steps, of size lr per entry, add up at random.",
        null=Null("1, steps of size lr per entry at random", "fixed", deviation=False),
        commands=("trajectory",), undefined="no learning rate is known, or it is zero so far",
    ),
    Statistic(
        "lr_drift_ratio", "‖ΔW‖ rms over lr·T", "‖ΔW‖_rms/Σlr",
        "1 where Adam's steps, of size lr per entry, all go one way.",
        null=Null("1, steps of size lr per entry, all one way", "fixed", deviation=False),
        commands=("trajectory",), undefined="no learning rate is known, or it is zero so far",
    ),
    Statistic(
        "basis_similarity", "similarity to a given subspace", "‖V_K(ΔW)ᵀ B‖_F²/K, B orthonormal [in, K]",
        "How near the leading right subspace of the update is to a given one.",
        unit="share", null=CHANCE, commands=("measure",), undefined=FEW, sources=("2606.07082",), cheap=True,
    ),
    Statistic(
        "leakage", "leakage out of a given subspace", "‖ΔW(I − BBᵀ)‖_F²/‖ΔW‖_F², B orthonormal [in, K]",
        "The share of the update's energy outside a given right subspace.",
        unit="share", null=Null("1 − K/n", how=HAAR), commands=("measure",),
        undefined=ZERO, sources=("2606.07082",), cheap=True,
    ),
    Statistic(
        "functional_distance", "forward KL(π0‖π), nats a token",
        "mean over the tokens of answers by π0 of Σ_v π0(v) log(π0(v)/π(v)); k3 beside it: r − 1 − log r, r = π/π0",
        "How far the final model's distribution is from the initial one's, on what the initial one says.",
        unit="nats", weighting="tokens", undefined="no prompts were given",
        sources=("2509.04259", "schulman2020"), agreement=1e-5,
        headline=True,
    ),
)  # fmt: skip
