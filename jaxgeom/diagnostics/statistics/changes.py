"""What is counted entry by entry: sparsities, ULP distance, masks."""

from .entry import Null, Statistic

ROUNDED_NORM = Null(
    "isotropic Gaussian update of equal Frobenius norm, rounded to bfloat16",
    how="from the histogram of W0's magnitudes; where W+ is rounded to another grid than W0 no z, and a mean only from "
    "float32 to bfloat16",
    lost="from float32 to bfloat16 none where the noise is too small to be told from the rounding of W0's own places",
)
ROUNDED_DENSITY = Null(
    "isotropic Gaussian noise of the observed visible density, rounded to bfloat16",
    how="Σ over the mask of p(w, s) over Σ p(w, s), from histograms of W0's magnitudes; none where W+ alone is float16",
    suites=("full", "fast"),
)
PROFILE = Null(
    "the same noise with scales by which every row and column of the real update is equally loud (those before "
    "rounding where both sides are stored in 16 bits)",
    how="on classes of W0's entries and of scales, the estimation of the scales taken out to second order; none where "
    "W+ is rounded to another grid than W0",
    suites=("full",),
    lost="where both sides are stored in one 16-bit format no z of sparsity where a tenth of the changes lie in rows "
    "or columns, with fewer than 3, none of overlaps where there are fewer changes than rows and columns",
)
PERMUTATION = Null(
    "the update's own entries in random places of the matrix",
    how="mean and deviation of a sum over a random permutation; no z where both sides are stored in one 16-bit format, "
    "since rounded entries fit the places that they have; none where W+ is rounded to another grid than W0",
    suites=("full",),
    sources=("hoeffding1951",),
)

NO_CHANGE = "no entry of the matrix changed in the bf16 view, so there is no mask to overlap"
ZERO_WEIGHTS = "W0 is exactly zero"

CHANGES = (
    Statistic(
        "sparsity_bf16",
        "visible sparsity (bf16)",
        "1 − #{|a − b| > η·max(|a|, |b|)}/n, a and b the bfloat16 values of W0 and W+",
        "The share of parameters that a bfloat16 reader sees unchanged; it falls as the update's norm grows.",
        unit="share", weighting="parameters",
        null=ROUNDED_NORM, further={"profile": PROFILE, "permutation": PERMUTATION},
        commands=("compare", "trajectory"), sources=("2511.08567", "2606.07082"), cheap=True, compared=True,
        headline=True, short="visible sparsity",
    ),
    Statistic(
        "density_bf16",
        "visible density (bf16)",
        "1 − sparsity_bf16",
        "The share of parameters that a bfloat16 reader sees changed.",
        unit="share", weighting="parameters", null=ROUNDED_NORM, sources=("2511.08567",), cheap=True,
    ),
    Statistic(
        "sparsity_stored",
        "sparsity as stored",
        "#{W+ = W0}/n in the stored precision",
        "The share of parameters that are exactly what they were; the gap to the bf16 view is the work of rounding.",
        unit="share", weighting="parameters", sources=("2511.08567",), cheap=True,
    ),
    Statistic(
        "sparsity_abs_1e-5",
        "sparsity, |Δ| ≤ 1e-5",
        "#{|W+ − W0| ≤ 1e-5}/n",
        "An absolute tolerance calls changes of small weights unchanged first: read it beside the visible sparsity.",
        unit="share", weighting="parameters", sources=("2606.13657", "2505.11711"), cheap=True,
    ),
    Statistic(
        "sparsity_rms_TOLERANCE",
        "sparsity, |Δ| ≤ TOLERANCE·RMS(W0)",
        "#{|W+ − W0| ≤ TOLERANCE·RMS(W0)}/n",
        "Sparsity at a tolerance in units of the matrix's own weights.",
        unit="share", weighting="parameters", undefined=ZERO_WEIGHTS, sources=("2606.13657",), cheap=True,
    ),
    Statistic(
        "share_beyond_half_ulp",
        "changed by over ½ ULP (bf16)",
        "#{|W+ − W0| > ½·ULP_bf16(W0)}/n",
        "The share of parameters whose stored change is larger than what rounding to bfloat16 can hide.",
        unit="share", weighting="parameters", sources=("2511.08567",), cheap=True,
    ),
    Statistic(
        "hidden_by_decile",
        "hidden by a tolerance of 1e-5, by decile of |W0|",
        "of the entries of a decile of |W0| that changed in the bf16 view, the share with |W+ − W0| ≤ 1e-5",
        "Which weights an absolute tolerance overlooks: where it falls from the first decile to the last, the small "
        "ones.",
        unit="share", undefined="nothing in the decile changed", sources=("2606.13657",), is_setting=True,
    ),
    Statistic(
        "overlap_principal",
        "overlap, principal mask",
        "|M★ ∩ M|/|M|, M the visibly changed entries, M★ the largest α·n entries of the rank-r reconstruction of W0",
        "The share of the visible changes that fall on entries which carry the leading directions of W0.",
        unit="share",
        null=ROUNDED_DENSITY, further={"profile": PROFILE, "permutation": PERMUTATION},
        undefined=NO_CHANGE, sources=("2511.08567", "2606.07082", "2506.00772"), agreement_fast=5e-3, compared=True,
        headline=True, short="overlap, principal",
    ),
    Statistic(
        "overlap_low",
        "overlap, low-magnitude mask",
        "|M★ ∩ M|/|M|, M the visibly changed entries, M★ the α·n entries of W0 of smallest magnitude",
        "The share of the visible changes that fall on small weights, which rounding alone makes change first.",
        unit="share",
        null=ROUNDED_DENSITY, further={"profile": PROFILE, "permutation": PERMUTATION},
        undefined=NO_CHANGE, sources=("2511.08567", "2606.07082"), compared=True,
        headline=True, short="overlap, low-mag.",
    ),
    *(
        Statistic(
            f"overlap_{mask}_enrichment",
            f"overlap, {words} mask: ratio to its null",
            f"overlap_{mask}/overlap_{mask}_null, or over the mask's share of the entries where that null has no scale",
            "How many times as many visible changes fall in the mask as rounding alone brings there.",
            undefined=NO_CHANGE, sources=("2511.08567",), agreement_fast=5e-3 if mask == "principal" else None,
        )
        for mask, words in (("principal", "principal"), ("low", "low-magnitude"))
    ),
    Statistic(
        "rounding_scale", "noise scale of the rounding null",
        "s of s·G, G standard normal, at which the expected visible density is the observed one",
        "The parameter of the rounding null.", undefined="the density is 0 or 1",
    ),
    Statistic(
        "mask_rank", "rank behind the principal mask", "min(mask_rank, m, n)", "As the settings have it, capped.",
        unit="count", is_setting=True,
    ),
)  # fmt: skip
