"""What each statistic is called, in which unit it is printed, and what its null is, for every page and figure."""

import math
import re
from typing import NamedTuple


class Statistic(NamedTuple):
    """How one statistic is presented: `unit` is "share" (printed in percent), "deg", "rank", "relative" or ""."""

    key: str
    label: str
    unit: str = ""
    null: str = ""
    undefined: str = "it is not defined for this update"


_NO_CHANGE = "no entry of the matrix changed in the bf16 view, so there is no mask to overlap"
_ZERO = "the update is exactly zero"
_NORM = "isotropic update of equal Frobenius norm"
_ROUNDING = "direction-free noise of the observed density, rounded to bf16"
_BASIS = "the gap at k is smaller than what the update moves, or the spectrum was left out"
_FIXED = "fixed direction, rounded to bf16"
_ENDS = "nothing follows the last checkpoint, or one of the two is zero"
_INDEPENDENCE = "independent masks; rounding: two random updates"
_WALK = "random walk with the observed increment norms"

STATISTICS: dict[str, Statistic] = {
    s.key: s
    for s in (
        Statistic("sparsity_bf16", "visible sparsity (bf16)", "share"),
        Statistic("sparsity_stored", "sparsity as stored", "share"),
        Statistic("sparsity_abs_1e-5", "sparsity, |Δ| ≤ 1e-5", "share"),
        Statistic("density_bf16", "visible density (bf16)", "share"),
        Statistic("fro_norm", "update norm ‖ΔW‖"),
        Statistic("relative_norm", "relative norm ‖ΔW‖/‖W0‖", "relative", "", "W0 is exactly zero"),
        Statistic("op_norm", "spectral norm of ΔW"),
        Statistic("stable_rank", "stable rank", "rank", _NORM, _ZERO),
        Statistic("stable_rank_bf16", "stable rank (bf16 view)", "rank", _NORM, _NO_CHANGE),
        Statistic("entropy_rank", "entropy rank", "rank", _NORM, _ZERO),
        Statistic("participation_ratio", "participation ratio", "rank", _NORM, _ZERO),
        Statistic("hill", "Hill tail index", "", _NORM, "σ_k of the update is numerically zero"),
        Statistic("nss", "spectral shift (NSS)", "relative", _NORM, "the full spectrum was left out, or W0 is zero"),
        Statistic("nss_bf16", "spectral shift (NSS, bf16 view)", "relative", _NORM, "the full spectrum was left out"),
        Statistic("nss_without_decay", "NSS without decay", "relative", _NORM, "the full spectrum was left out"),
        Statistic("share_beyond_half_ulp", "changed by over ½ ULP (bf16)", "share"),
        Statistic("parameters", "parameters", "count"),
        Statistic("decay", "decay component c", "relative", "0", "W0 is exactly zero"),
        Statistic("angle_left_mean_deg", "mean principal angle, left", "deg", _NORM, _BASIS),
        Statistic("angle_left_max_deg", "largest principal angle, left", "deg", _NORM, _BASIS),
        Statistic("angle_right_mean_deg", "mean principal angle, right", "deg", _NORM, _BASIS),
        Statistic("angle_right_max_deg", "largest principal angle, right", "deg", _NORM, _BASIS),
        Statistic("angle_k", "k of the angles", "count"),
        Statistic("angle_gap", "gap σ_k − σ_{k+1}"),
        Statistic("overlap_principal", "overlap, principal mask", "share", _ROUNDING, _NO_CHANGE),
        Statistic("overlap_low", "overlap, low-magnitude mask", "share", _ROUNDING, _NO_CHANGE),
        Statistic("projection_joint", "energy in U_k and V_k of W0", "share", "k²/(mn)", _ZERO),
        Statistic("projection_left", "energy in U_k of W0", "share", "k/m", _ZERO),
        Statistic("projection_right", "energy in V_k of W0", "share", "k/n", _ZERO),
        Statistic("sim_to_final", "similarity to the final subspace", "share", _WALK, _ZERO),
        Statistic("sim_to_final_bf16", "similarity to the final subspace (bf16 view)", "share", _FIXED, _NO_CHANGE),
        Statistic("sim_disjoint", "similarity of the update so far and the rest", "share", "K/n", _ENDS),
        Statistic("path_cosine", "cosine of this stretch and the next", "", "0: independent steps", _ENDS),
        Statistic("cosine_to_rest", "cosine of the update so far and the rest", "", "0: independent steps", _ENDS),
        Statistic("drift_ratio", "‖ΔW‖ over the root of the squared steps", "", "1: independent steps", _ZERO),
        Statistic("lr_diffusion_ratio", "‖ΔW‖ rms over lr·√T", "", "1: steps of size lr, at random", _ZERO),
        Statistic("lr_drift_ratio", "‖ΔW‖ rms over lr·T", "", "1: steps of size lr, all one way", _ZERO),
        Statistic("density_a", "visible density of A (bf16)", "share"),
        Statistic("density_b", "visible density of B (bf16)", "share"),
        Statistic("jaccard", "Jaccard of the changed masks", "share", _INDEPENDENCE, _NO_CHANGE),
        Statistic("overlap_a_in_b", "share of B's changes that A has", "share", _INDEPENDENCE, _NO_CHANGE),
        Statistic("overlap_b_in_a", "share of A's changes that B has", "share", _INDEPENDENCE, _NO_CHANGE),
        Statistic("orthogonal_share", "orthogonal share of the updates", "share", "1 − 1/(mn)", _ZERO),
        Statistic("subspace_similarity", "similarity of the right subspaces", "share", "K/n", _ZERO),
        Statistic("functional_distance", "forward KL(π0‖π), nats a token", "", "none; 0 when nothing changed"),
        Statistic("accuracy", "held-out accuracy", "share"),
    )
}

_DETAILS = {
    "rounding_scale": ("noise scale of the rounding null", ""),
    "hill_k": ("k of the Hill index", "count"),
    "mask_rank": ("rank behind the principal mask", "count"),
    "projection_k": ("k of the energies in U_k and V_k", "count"),
}  # how the others were taken: in the long tables only

MODULES = ("q", "k", "v", "o", "gate", "up", "down", "router", "embedding", "head", "norm")

METHOD_LABELS = {"sft_anchor": "SFT", "opd": "OPD", "rlvr": "RLVR", "sft_continued": "SFT continued"}

FURTHER_NULLS = {"profile": "scale profile", "permutation": "permuted"}
"""Nulls that some statistics have beside their first one, as `<name>_<null>_null` and so on, with short labels."""

FURTHER_NULLS_SAY = (
    "Further nulls where there are any: scale profile, the same noise with the row and column scales of the real "
    "update; permuted, the update's own entries in random places."
)

SUFFIXES = {f"_{further}_{kind}": kind for further in FURTHER_NULLS for kind in ("null", "excess", "z")} | {
    "_rounding_null": "rounding null",
    "_null": "null",
    "_excess": "excess",
    "_z": "z",
    "_ratio": "ratio",
}  # the longer ones first


def statistic(key: str) -> Statistic:
    """The entry of `key`, or one made from the key itself where the table does not know it."""
    if key in STATISTICS:
        return STATISTICS[key]
    if key in _DETAILS:
        return Statistic(key, *_DETAILS[key])
    if found := re.fullmatch(r"(projection_(?:joint|left|right))_([\d.]+)pct", key):
        base = STATISTICS[found[1]]
        return base._replace(key=key, label=f"{base.label}, k = {found[2]} %")
    if found := re.fullmatch(r"sparsity_rms_(.+)", key):
        return Statistic(key, f"sparsity, |Δ| ≤ {found[1]}·RMS(W0)", "share", "", "W0 is exactly zero")
    if found := re.fullmatch(r"energy_top_(\d+)", key):
        return Statistic(key, f"energy in the {found[1]} leading directions", "share", "", _ZERO)
    if found := re.fullmatch(r"(overlap_\w+)_enrichment", key):
        return Statistic(key, f"{statistic(found[1]).label}: ratio to its null", "", "", _NO_CHANGE)
    return Statistic(key, key.replace("_", " "))


def base_key(key: str) -> tuple[str, str]:
    """`overlap_low_null` or `overlap_low_profile_null` -> (`overlap_low`, `null`); without a suffix it is a `value`."""
    for suffix, kind in SUFFIXES.items():
        if key.endswith(suffix) and key not in STATISTICS:
            return key.removesuffix(suffix), kind
    return key, "value"


def column_label(key: str) -> str:
    """The label of a column of the per-matrix table: the statistic, and which of value, null, excess or z it is."""
    base, kind = base_key(key)
    if kind == "value":
        return statistic(base).label
    further = next((label for name, label in FURTHER_NULLS.items() if key == f"{base}_{name}_{kind}"), "")
    return f"{statistic(base).label}: {kind}" + (f" ({further})" if further else "")


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def format_number(value: float | int | None, *, digits: int = 3) -> str:
    """Three significant digits, with a power of ten outside 1e-3 to 1e5: `0.0123`, `7.70×10⁻⁵`; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -3 <= exponent < 5:
        text = f"{value:.{max(digits - 1 - exponent, 0)}f}"
    else:
        text = f"{value / 10.0**exponent:.{digits - 1}f}×10{str(exponent).translate(_SUPERSCRIPT)}"
    return text.replace("-", "−")


def format_value(key: str, value: float | int | None, *, signed: bool = False) -> str:
    """`value` of the statistic `key` as a reader wants it: `46.3 %`, `1.23°`, `7.70×10⁻⁵`; `signed` for an excess."""
    if value is None or not math.isfinite(value):
        return "–"
    unit = statistic(base_key(key)[0]).unit
    if unit == "share":
        percent = 100.0 * value
        small = 0 < abs(percent) < 0.1 and not signed
        text = format_number(percent, digits=2) if small else f"{percent:.1f}".replace("-", "−")
        text = "0.0" if text == "−0.0" else text
        text += " pp" if signed else " %"
    elif unit == "deg":
        text = format_number(value, digits=2 if signed else 3) + "°"
    elif unit == "count":
        text = f"{value:.0f}"
    else:
        text = format_number(value, digits=2 if signed else 3)
    return f"+{text}" if signed and value > 0 and not text.startswith("0.0 pp") else text


def format_count(value: float | int | None) -> str:
    """A whole number, its thousands apart: `18 432`."""
    return "–" if value is None else f"{value:,.0f}".replace(",", "\u202f")
