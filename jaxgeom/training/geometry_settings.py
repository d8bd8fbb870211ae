"""What is measured of a run while it runs, as it is told: help waits for no reader."""

from dataclasses import dataclass
from typing import Literal

from jaxgeom.errors import UserError
from jaxgeom.field_types import check_types
from jaxgeom.unread_settings import refuse_unread


@dataclass(frozen=True, kw_only=True)
class GeometrySettings:
    """Live geometry of the update since the run's start, and of single steps.

    Attributes:
        geometry_every: Steps between measurements, into metrics.jsonl and TensorBoard; 0: none.
        geometry_step: Step whose subspace later ones are compared with (similarity, leakage); a step that is saved.
        geometry_rank: Directions of that subspace, fewer where a matrix is smaller.
        geometry_reference: Where the parameters of the start are kept meanwhile: on the devices, or in host memory.
    """

    geometry_every: int = 0
    geometry_step: int | None = None
    geometry_rank: int = 16
    geometry_reference: Literal["device", "host"] = "device"

    def __post_init__(self) -> None:
        check_types(self)
        if self.geometry_every < 0:
            raise UserError(f"geometry_every={self.geometry_every}: must be at least 0")
        if self.geometry_rank < 1:
            raise UserError(f"geometry_rank={self.geometry_rank}: must be positive")
        if self.geometry_step is not None and self.geometry_step < 1:
            raise UserError(f"geometry_step={self.geometry_step}: must be positive")
        if not self.geometry_every:
            refuse_unread(self, ("geometry_step", "geometry_rank", "geometry_reference"), "geometry_every=0")
        if self.geometry_step is None:
            refuse_unread(self, ("geometry_rank",), "geometry_step=None")
