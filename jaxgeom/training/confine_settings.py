"""Where a run's update may go, as it is told: help waits for no reader."""

from dataclasses import dataclass
from typing import Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.unread_settings import refuse_unread


@dataclass(frozen=True, kw_only=True)
class ConfineSettings:
    """Training confined to a subspace of every matrix, or to a mask of its entries.

    The matrices are q, k, v, o, gate, up and down of every layer. Optimizer moments start at zero.

    Attributes:
        confine: `gradients`: g ← g V Vᵀ before the optimizer, which leaks through Adam and decay; `updates`: the final
            update is projected; `coordinates`: the optimizer works on the K coordinates; `mask`: chosen entries alone.
        basis: Directions: `delta`, the leading ones of the update of --basis-from since that run's start; its controls
            `random` and `initial` (the leading ones of the model's own weights).
        basis_rank: K, directions a matrix; fewer where the matrix is smaller.
        basis_side: The input (right) or output (left) side of the matrices.
        mask: Entries: `principal` (largest in the rank-r part of the model's weights), `low-magnitude`, `changed` (what
            --mask-from changed visibly in bf16 since that run's start), `random`.
        mask_fraction: Share of a matrix's entries in the mask; `changed` has its own.
        mask_rank: r of `principal`.
        unconfined: Embeddings, head, norms, biases, routers: left as they are, or trained freely.
    """

    confine: Literal["gradients", "updates", "coordinates", "mask"] | None = None
    basis: Literal["delta", "random", "initial"] = "delta"
    basis_rank: int = 16
    basis_side: Literal["right", "left"] = "right"
    mask: Literal["principal", "low-magnitude", "changed", "random"] = "principal"
    mask_fraction: float = 0.5
    mask_rank: int = 64
    unconfined: Literal["frozen", "free"] = "frozen"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("basis_rank", "mask_rank"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be positive")
        if not 0.0 < self.mask_fraction < 1.0:
            raise UserError(f"mask_fraction={self.mask_fraction}: must be between 0 and 1")
        by = f"confine={self.confine}"
        if not self._reads("basis"):
            refuse_unread(self, ("basis", "basis_rank", "basis_side"), by)
        if not self._reads("mask"):
            refuse_unread(self, ("mask", "mask_fraction", "mask_rank"), by)
        if self.confine is None:
            refuse_unread(self, ("unconfined",), by)
        if self.mask == "changed":
            refuse_unread(self, ("mask_fraction",), "mask=changed, which has its own")
        if self.mask != "principal":
            refuse_unread(self, ("mask_rank",), f"mask={self.mask}")

    def _reads(self, kind: str) -> bool:
        return self.confine is not None and (self.confine == "mask") == (kind == "mask")

    def require_sources(self, basis_from: object, mask_from: object) -> None:
        """Raises UserError unless the runs that bases and masks come from are given exactly where they are read."""
        for kind, source, wanted in (
            ("basis", basis_from, self._reads("basis") and self.basis == "delta"),
            ("mask", mask_from, self._reads("mask") and self.mask == "changed"),
        ):
            if wanted and source is None:
                raise UserError(
                    f"confine={self.confine} with {kind}={getattr(self, kind)} needs {kind}_from, a checkpoint RUN@STEP"
                )
            if source is not None and not wanted:
                what = f"confine={self.confine}" + (f", {kind}={getattr(self, kind)}" if self._reads(kind) else "")
                raise UserError(f"{kind}_from={source}: nothing reads it with {what}")
