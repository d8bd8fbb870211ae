"""Size, rank and tail of an update, and what it did to the spectrum and the singular subspaces of the weights."""

from ..null_isotropic import KNOWN, NEAR
from .changes import PERMUTATION, ZERO_WEIGHTS
from .entry import Null, Statistic

LOST = (
    f"none where few entries carry the update: of kurtosis κ, (κ − 3)/√(mn) > {NEAR:g}; no z where that is over "
    f"{KNOWN:g}/√min(m, n)"
)
ISOTROPIC = "independent entries of the update's own kurtosis, any scale (Gaussian ones: an isotropic update)"
EQUAL_NORM = "isotropic Gaussian update of equal Frobenius norm"
RANK = Null(
    ISOTROPIC,
    how="Tracy–Widom law of σ₁; corrections and deviation from draws at reduced size",
    lost=LOST,
    sources=("johnstone2001",),
)
BULK = Null(
    ISOTROPIC,
    how="quarter-circle spectrum; corrections and deviation from draws at reduced size (participation ratio: moments)",
    lost=LOST,
    sources=("marchenko1967", "johnstone2001"),
)
SHIFT = Null(EQUAL_NORM, how="expansion about the spectrum of W0; none where the update is too large for it")
SHIFT_WITHOUT_DECAY = Null(EQUAL_NORM, how="the same expansion with the update's component along W0 taken out")
ROTATION = Null(
    EQUAL_NORM,
    "sampled",
    "first-order rotation, or decompositions of W0 plus noise where it is large (angle_null_form)",
)
PERMUTED_RANKS = Null(
    PERMUTATION.says, "sampled", "ranks of permuted updates, permutation_draws of them", suites=("full",)
)
HAAR = "independent entries of the update's own kurtosis, uniformly random subspaces (Gaussian ones: a Beta variable)"
PRECISION = Null(
    "the final update's direction at this step's norm, in bfloat16",
    how="one construction, no draw",
    deviation=False,
)

ZERO = "the update is exactly zero"
NO_VISIBLE = "no entry changed in the bf16 view"
GAP = "the gap after singular value k of W0 is smaller than what the update moves, or W0 is zero"
NO_SPECTRUM = "W0 is exactly zero"

SPECTRUM = (
    Statistic(
        "fro_norm", "update norm ‖ΔW‖", "‖ΔW‖_F", "The size of the update.",
        commands=("compare", "trajectory"), cheap=True, compared=True,
    ),
    Statistic(
        "relative_norm", "relative norm ‖ΔW‖/‖W0‖", "‖ΔW‖_F/‖W0‖_F",
        "The size of the update beside the weights; most static statistics move with this number.",
        unit="relative", commands=("compare", "trajectory"), undefined=ZERO_WEIGHTS, sources=("2606.07082",),
        cheap=True, compared=True,
        headline=True, short="relative norm",
    ),
    Statistic(
        "op_norm", "spectral norm of ΔW", "‖ΔW‖₂ = σ₁(ΔW)", "The size of the update along its leading direction.",
        commands=("compare", "trajectory"), agreement_fast=1e-5, cheap=True,
    ),
    Statistic(
        "decay", "decay component c", "c = ⟨ΔW, W0⟩/‖W0‖²",
        "How much of the update shrinks (c < 0) or grows the weights along themselves, as weight decay does.",
        unit="relative",
        null=Null(
            "isotropic Gaussian update of equal Frobenius norm",
            how="0 with deviation s/‖W0‖; after rounding, where both sides are stored in 16 bits, from W0's magnitudes",
        ),
        undefined=ZERO_WEIGHTS, cheap=True, signed=True,
    ),
    Statistic(
        "stable_rank", "stable rank", "‖ΔW‖_F²/‖ΔW‖₂²", "How many directions of equal strength carry the update.",
        unit="rank", null=RANK, further={"permutation": PERMUTED_RANKS}, commands=("compare", "trajectory"),
        undefined=ZERO, sources=("rudelson2007", "2606.07082"), agreement_fast=1e-5, cheap=True, compared=True,
        headline=True, short="stable rank",
    ),
    Statistic(
        "stable_rank_bf16", "stable rank (bf16 view)", "‖Δ‖_F²/‖Δ‖₂², Δ the difference of the bfloat16 views",
        "The stable rank that a bfloat16 reader sees: rounding spreads a small update over many directions.",
        unit="rank", null=RANK, along=PRECISION, commands=("compare", "trajectory"), undefined=NO_VISIBLE,
        sources=("2606.07082",), agreement=1e-6, agreement_fast=1e-5, compared=True,
        headline=True, short="stable rank, bf16",
    ),
    Statistic(
        "entropy_rank", "entropy rank", "exp H(σ/Σσ), σ the singular values of ΔW, H the entropy",
        "How many directions carry the update when small singular values count too.",
        unit="rank", null=BULK, suites=("full",), undefined=ZERO, sources=("roy2007", "2606.13657", "2605.11739"),
        agreement=2e-6,
    ),
    Statistic(
        "participation_ratio", "participation ratio", "(Σσ²)²/Σσ⁴ of ΔW",
        "How many directions share the update's energy.",
        unit="rank", null=BULK, further={"permutation": PERMUTED_RANKS}, undefined=ZERO, agreement_fast=1e-5,
        cheap=True,
    ),
    Statistic(
        "energy_top_K", "energy in the K leading directions", "Σ_{i≤K} σ_i²/Σσ² of ΔW",
        "The share of the update's energy in its K leading directions.",
        unit="share", null=BULK, suites=("full",), undefined=ZERO, cheap=True,
    ),
    Statistic(
        "hill", "Hill tail index", "[1/(k − 1)·Σ_{i<k} log(σ_i/σ_k)]⁻¹ of ΔW",
        "How heavy the tail of the update's spectrum is; smaller is heavier.",
        null=BULK, commands=("compare", "trajectory"), suites=("full",),
        undefined="σ_k of the update is numerically zero, or equal to all above it", sources=("hill1975", "2606.07082"),
        agreement=1e-6, compared=True,
        headline=True, short="Hill index",
    ),
    Statistic(
        "hill_k", "k of the Hill index", "hill_k, or max(10, ⌈0.1·min(m, n)⌉)", "As the settings have it, capped.",
        unit="count", commands=("compare", "trajectory"), suites=("full",), is_setting=True,
    ),
    Statistic(
        "nss", "spectral shift (NSS)", "‖σ(W+) − σ(W0)‖₂/‖σ(W0)‖₂",
        "How far the singular values of the weights moved, whichever way their vectors turned.",
        unit="relative", null=SHIFT, commands=("compare", "trajectory"), suites=("full",), undefined=NO_SPECTRUM,
        sources=("2511.08567", "2606.07082"), agreement=2e-6, compared=True,
        headline=True, short="spectral shift",
    ),
    Statistic(
        "nss_bf16", "spectral shift (NSS, bf16 view)", "NSS between the bfloat16 views of W0 and W+",
        "The spectral shift that a bfloat16 reader sees.",
        unit="relative", null=SHIFT, suites=("full",), undefined=NO_SPECTRUM, sources=("2511.08567",), agreement=2e-6,
    ),
    Statistic(
        "nss_without_decay", "NSS without decay", "NSS between W0 and W+ − c·W0, c the decay component",
        "The spectral shift that is left when uniform shrinking of W0 is taken out.",
        unit="relative", null=SHIFT_WITHOUT_DECAY, suites=("full",), undefined=NO_SPECTRUM, agreement=8e-6,
    ),
    *(
        Statistic(
            f"angle_{side}_{figure}_deg", f"{word} principal angle, {side}",
            f"{formula} over i ≤ k of θ_i, cos θ_i = σ_i({basis}0_kᵀ {basis}+_k)",
            f"How far the leading {side} singular subspace of the weights turned" + (
                " in its direction that turned most." if figure == "max" else ", over its directions."
            ),
            unit="deg", null=ROTATION,
            commands=("compare", "trajectory") if figure == "mean" else ("compare",), suites=("full",),
            undefined=GAP, sources=("bjorck1973", "2511.08567", "2606.07082"), agreement=1e-4,
            compared=figure == "mean", headline=figure == "mean",
            short=f"angle, {side}" if figure == "mean" else "",
        )
        for side, basis in (("left", "U"), ("right", "V"))
        for figure, word, formula in (("mean", "mean", "mean"), ("max", "largest", "maximum"))
    ),
    Statistic(
        "angle_k", "k of the angles", "min(angle_k, min(m, n) − 1)", "As the settings have it, capped.",
        unit="count", commands=("compare", "trajectory"), suites=("full",), is_setting=True,
    ),
    Statistic(
        "angle_gap", "gap σ_k − σ_{k+1}", "σ_k(W0) − σ_{k+1}(W0)",
        "What separates the leading subspace of W0 from the rest; angles are read beside it.",
        commands=("compare", "trajectory"), suites=("full",), undefined=NO_SPECTRUM,
    ),
    *(
        Statistic(
            f"projection_{name}{suffix}", label + (", k = SHARE %" if suffix else ""),
            f"{formula}, k = max(1, round({'SHARE %' if suffix else 'projection_fraction'}·min(m, n)))",
            meaning, unit="share", null=Null(chance, how=HAAR), suites=("full",),
            undefined="the update or W0 is zero, or two singular values of W0 around k are equal",
            sources=("2606.13657",), agreement=1e-6,
        )
        for suffix in ("", "_SHAREpct")
        for name, label, formula, chance, meaning in (
            ("joint", "energy in U_k and V_k of W0", "‖U_kᵀ ΔW V_k‖²/‖ΔW‖²", "k²/(mn)",
             "The share of the update's energy inside both leading subspaces of W0."),
            ("left", "energy in U_k of W0", "‖U_kᵀ ΔW‖²/‖ΔW‖²", "k/m",
             "The share of the update's energy inside the leading output directions of W0."),
            ("right", "energy in V_k of W0", "‖ΔW V_k‖²/‖ΔW‖²", "k/n",
             "The share of the update's energy inside the leading input directions of W0."),
        )
    ),
    Statistic(
        "projection_k", "k of the energies in U_k and V_k", "max(1, round(projection_fraction·min(m, n)))",
        "As the settings have it, at least one direction.", unit="count", suites=("full",), is_setting=True,
    ),
)  # fmt: skip
