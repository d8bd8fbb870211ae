"""What is computed of W0 alone: shared by all statistics, by all checkpoints of a trajectory, and kept in a cache."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
import zlib

import numpy as np

from jaxgeom.comparison.algebra.matrix import Matrix, MatrixMaker
from jaxgeom.comparison.algebra.spectrum import Spectrum, decompose, exact_values, value_errors, values_only
from jaxgeom.comparison.settings import CompareSettings
from jaxgeom.diagnostics.weight_numbers import PROJECTION_SHARES
from jaxgeom.errors import UserError
from jaxgeom.files import as_user_error
from jaxgeom.owned_files import MARK

_FORMAT = "1"


@dataclasses.dataclass
class Base:
    """Spectra of one initial matrix.

    Attributes:
        stored: values and leading vectors as stored.
        exact: the values again by the bidiagonal route, once something has needed them.
        bf16: values of the bfloat16 view, None where W0 is on the bfloat16 grid.
    """

    stored: Spectrum
    exact: Spectrum | None = None
    bf16: Spectrum | None = None


def vector_count(settings: CompareSettings, shape: tuple[int, int]) -> int:
    """How many leading vectors of W0 the statistics of a full comparison need."""
    smaller = min(shape)
    share = max(settings.projection_fraction, *PROJECTION_SHARES)
    return min(smaller, max(settings.angle_k, settings.mask_rank, round(share * smaller), 1))


class BaseCache:
    """Base spectra in a folder, one file per content and number of vectors; without a folder nothing is kept.

    Args:
        directory: the folder.
        computed_by: `Algebra.key`; spectra of another device differ in their last bits and are another entry.

    Raises:
        UserError: the folder is a file.
    """

    def __init__(self, directory: str | os.PathLike[str] | None, computed_by: str = "") -> None:
        self.directory = pathlib.Path(directory) if directory is not None else None
        if self.directory is not None and self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory}: is no directory to keep base spectra in")
        self.computed_by = [computed_by] if computed_by else []

    def _path(self, digest: str, count: int) -> pathlib.Path | None:
        if self.directory is None:
            return None
        key = hashlib.sha256(json.dumps([_FORMAT, digest, count, *self.computed_by]).encode()).hexdigest()
        return self.directory / f"{key[:40]}.npz"

    def load(self, digest: str, count: int) -> Base | None:
        """The stored spectra of a matrix, None where there are none (or a file that is damaged in any way)."""
        path = self._path(digest, count)
        if path is None or not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                held = {name: file[name] for name in file.files}
            stored = _unpack(held, "stored")
            further = [_unpack(held, name) if f"{name}_values" in held else None for name in ("exact", "bf16")]
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return None
        return Base(stored, *further) if stored.long.shape[1:] == stored.short.shape[1:] == (count,) else None

    def save(self, digest: str, count: int, base: Base) -> None:
        """Keeps the spectra; the file appears whole or not at all.

        Raises:
            UserError: the folder cannot be written to.
        """
        path = self._path(digest, count)
        if path is None:
            return
        arrays = {MARK: np.array(_FORMAT)}
        for prefix, spectrum in (("stored", base.stored), ("exact", base.exact), ("bf16", base.bf16)):
            if spectrum is not None:
                arrays |= {f"{prefix}_values": spectrum.values, f"{prefix}_exact": np.array(spectrum.is_exact)}
                if spectrum.short.size:
                    arrays |= {f"{prefix}_short": spectrum.short, f"{prefix}_long": spectrum.long}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]  (allow_pickle, a bool, is its one other keyword)
                os.replace(temporary, path)
            except OSError:
                pathlib.Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise as_user_error(error, path.parent) from error


class HeldBase(BaseCache):
    """The base of one matrix, held in memory for every step of a trajectory; behind it the folder of another cache."""

    def __init__(self, behind: BaseCache) -> None:
        super().__init__(behind.directory, *behind.computed_by)
        self._held: Base | None = None
        self._written: tuple[int, bool] | None = None

    def load(self, digest: str, count: int) -> Base | None:
        """The held base, or the folder's."""
        if self._held is None:
            self._held = super().load(digest, count)
        return self._held

    def save(self, digest: str, count: int, base: Base) -> None:
        """Holds the base, and keeps it in the folder where there is one and something is new."""
        self._held = base
        content = (id(base), base.exact is not None)
        if content != self._written:
            super().save(digest, count, base)
            self._written = content


def _unpack(held: dict[str, np.ndarray], prefix: str) -> Spectrum:
    values, is_exact, empty = held[f"{prefix}_values"], bool(held[f"{prefix}_exact"]), np.empty((0, 0))
    error = float(np.linalg.norm(value_errors(values, is_exact)))
    return Spectrum(values, held.get(f"{prefix}_short", empty), held.get(f"{prefix}_long", empty), error, is_exact)


def measure_base(
    initial: np.ndarray, count: int, *, view: np.ndarray | None, make_matrix: MatrixMaker = Matrix
) -> Base:
    """Spectra of W0, and the values of its bfloat16 view where one is given.

    Args:
        initial: W0 widened to float32 `[out, in]`.
        count: number of leading vectors.
        view: its bfloat16 view widened to float32 `[out, in]`, None where that is W0 itself.
        make_matrix: `Matrix`, or what makes one on an accelerator.
    """
    stored = decompose(make_matrix(initial), count, long=True)
    return Base(stored, bf16=values_only(make_matrix(view)) if view is not None else None)


def exact_base(base: Base, initial: np.ndarray, make_matrix: MatrixMaker = Matrix) -> Spectrum:
    """The values of W0 (float32 `[out, in]`) by the bidiagonal route, computed on first need and kept with the base."""
    if base.stored.is_exact:
        return base.stored
    if base.exact is None:
        base.exact = exact_values(make_matrix(initial))
    return base.exact
