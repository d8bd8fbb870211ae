"""What a comparison measures and with which parameters."""

import dataclasses
import re
from typing import Any, Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types

MOST_DRAWS = 10_000
"""Of a null: its mean and deviation are known to a hundredth of the deviation then; more is a mistake of typing."""

ATTENTION = ("q", "k", "v", "o")
"""Modules of the population `attention`."""


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Parameters of every statistic of a comparison.

    Attributes:
        suite: `full`, or `fast` without whatever needs a full spectrum.
        include: only parameters whose name this regular expression finds.
        exclude: without parameters whose name this regular expression finds.
        population: `all`, or `attention`: q, k, v and o of every layer alone (a fused projection's parts too), which
            is what the trajectory statistics of *On the Geometry of OPD* are taken of.
        angle_k: singular vectors per side for the principal angles; capped at min(m, n) − 1, the cap is reported.
        mask_rank: rank of the reconstruction of W0 behind the principal mask; capped at min(m, n).
        mask_fraction: share of the entries in the principal and in the low-magnitude mask.
        eta: relative tolerance of the bfloat16 unchanged test; below 2⁻⁸ the same as bitwise inequality.
        hill_k: order statistics in the Hill estimate, capped at min(m, n); max(10, ⌈min(m, n)/10⌉) when None.
        subspace_k: dimension of the subspaces of the update that are compared along and between runs; capped at
            min(m, n).
        projection_fraction: share of min(m, n) taken as k of the projection energies.
        null_draws: draws of each null that is sampled (2 to 10,000).
        permutation_draws: draws of the permutation null of the stable rank and the participation ratio, 0 for none.
            Taken by the full suite. None are drawn unless asked for: where the entries have no heavy tails, the
            spectrum of permuted entries is that of Gaussian noise (its bulk and its edge are universal) and the
            isotropic null says the same. A draw costs a shuffle and a float32 Gram matrix of the update.
        seed: seed of those draws, combined with the matrix name.
        device: where the dense algebra runs: `cpu` on the host, `gpu` or `tpu` on all local devices of that kind,
            `auto` on the accelerator that JAX uses by default and else on the host.
    """

    suite: Literal["full", "fast"] = "full"
    include: str | None = None
    exclude: str | None = None
    population: Literal["all", "attention"] = "all"
    angle_k: int = 512
    mask_rank: int = 64
    mask_fraction: float = 0.3
    eta: float = 1e-3
    hill_k: int | None = None
    subspace_k: int = 16
    projection_fraction: float = 0.1
    null_draws: int = 5
    permutation_draws: int = 0
    seed: int = 0
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        for field, allowed in (
            ("suite", ("full", "fast")),
            ("population", ("all", "attention")),
            ("device", ("auto", "cpu", "gpu", "tpu")),
        ):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} = {getattr(self, field)!r}: one of {', '.join(allowed)} is needed")
        for field in ("include", "exclude"):
            pattern = getattr(self, field)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UserError(f"{field} = {pattern!r} is no regular expression: {error}") from None
        for field, least in (("angle_k", 1), ("mask_rank", 1), ("subspace_k", 1), ("null_draws", 2), ("seed", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise UserError(f"{field} = {value!r}: a whole number of at least {least} is needed")
        draws = self.permutation_draws
        for field in ("null_draws", "permutation_draws"):
            if getattr(self, field) > MOST_DRAWS:
                raise UserError(f"{field} = {getattr(self, field)}: at most {MOST_DRAWS:,} draws are taken")
        if not isinstance(draws, int) or draws < 0 or draws == 1:
            raise UserError(f"permutation_draws = {draws!r}: 0 or a whole number of at least 2 is needed")
        if self.hill_k is not None and (not isinstance(self.hill_k, int) or self.hill_k < 2):
            raise UserError(f"hill_k = {self.hill_k!r}: a whole number of at least 2 is needed")
        for field in ("mask_fraction", "projection_fraction"):
            if not 0 < getattr(self, field) < 1:
                raise UserError(f"{field} = {getattr(self, field)!r}: a share between 0 and 1 is needed")
        if not 0 <= self.eta < 1:
            raise UserError(f"eta = {self.eta!r}: a relative tolerance in [0, 1) is needed")

    def selects(self, name: str) -> bool:
        """Whether `include` and `exclude` let the parameter pass."""
        if self.include is not None and not re.search(self.include, name):
            return False
        return self.exclude is None or not re.search(self.exclude, name)

    def admits(self, module: str) -> bool:
        """Whether parameters of the module (`q`, …, `down`, `norm`, …) belong to the population."""
        return self.population == "all" or module in ATTENTION

    def hill_order(self, smaller: int) -> int:
        """k of the Hill estimate for a matrix whose smaller side is `smaller`."""
        from jaxgeom.diagnostics.spectral_numbers import default_hill_k  # with it comes JAX

        return min(self.hill_k, smaller) if self.hill_k else default_hill_k((smaller, smaller))

    def to_json(self) -> dict[str, Any]:
        """Every parameter of every statistic, those that are fixed in the code too."""
        from jaxgeom.diagnostics.counting import ABSOLUTE_TOLERANCE, RMS_TOLERANCES  # with them comes JAX
        from jaxgeom.diagnostics.weight_numbers import PROJECTION_SHARES

        return dataclasses.asdict(self) | {
            "absolute_tolerance": ABSOLUTE_TOLERANCE,
            "rms_tolerances": list(RMS_TOLERANCES),
            "projection_shares": list(PROJECTION_SHARES),
            "device_used": "cpu: float64 LAPACK on the host",
            "hill_rule": "hill_k, or max(10, ceil(0.1 min(m, n)))",
            "unchanged_test": "bitwise equality of bfloat16 values"
            if self.eta < 2**-8
            else "|a-b| <= eta max(|a|,|b|)",
        }
