"""What every kind of checkpoint looks like from outside: a mapping of names to tensors that are read when asked for."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FLOAT_DTYPES = ("float32", "float16", "bfloat16")
"""The stored dtypes that weights are measured in."""

_HASH_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One named array of a checkpoint, not read yet.

    Attributes:
        name: Hugging Face parameter name.
        shape: shape on disk; `[out, in]` for matrices.
        dtype: stored dtype by its NumPy name (`float32`, `float16`, `bfloat16`, …).
        reader: reads rows `start:stop` of the leading axis, or everything for `(None, None)`.
        tower: the part beside the text model that it belongs to (`anatomy`), None for the text model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    reader: Callable[[int | None, int | None], np.ndarray] = dataclasses.field(repr=False, compare=False)
    tower: str | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_float(self) -> bool:
        """Whether the stored dtype is one that weights are measured in."""
        return self.dtype in FLOAT_DTYPES

    def read(self) -> np.ndarray:
        """The whole tensor in its stored dtype."""
        return self.reader(None, None)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows `start:stop` of the leading axis, in the stored dtype; only they are read."""
        if not self.shape:
            raise ValueError(f"tensor {self.name!r} is a scalar: it has no rows")
        return self.reader(max(start, 0), min(stop, self.shape[0]))

    def row_blocks(self, entries: int) -> Iterator[np.ndarray]:
        """The tensor in blocks of rows that hold about `entries` entries each."""
        if not self.shape or self.size <= entries:
            yield self.read()
            return
        rows = max(1, entries * self.shape[0] // self.size)
        for start in range(0, self.shape[0], rows):
            yield self.read_rows(start, start + rows)

    def sha256(self) -> str:
        """Digest of shape, dtype and content, independent of the file that holds the tensor."""
        return content_digest(self.shape, self.dtype, self.row_blocks(_HASH_BYTES // 4))


def content_digest(shape: tuple[int, ...], dtype: str, blocks: Iterator[np.ndarray] | list[np.ndarray]) -> str:
    """sha256 of `dtype`, `shape` and the bytes of the row blocks in order."""
    digest = hashlib.sha256(f"{dtype}{list(shape)}".encode())
    for block in blocks:
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """The digest of a tensor that is held whole."""
    return content_digest(array.shape, array.dtype.name, [array])


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one checkpoint by Hugging Face name; nothing but headers has been read.

    Attributes:
        name: how the user named it.
        config: the Hugging Face configuration, None where there is none.
        fingerprint: changes whenever the files do; cheap, unlike `sha256`.
        notes: what was left out or read in another way than it may seem; a sentence each.
        adapter: of a LoRA adapter its base with the fingerprint of that (`base_files`), its rank and scale; None for
            every other checkpoint.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        *,
        config: dict[str, Any] | None,
        fingerprint: str,
        notes: Sequence[str] = (),
        adapter: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.fingerprint = fingerprint
        self.notes = tuple(notes)
        self.adapter = adapter
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({self.name!r}, {len(self)} tensors, {self.dtype})"

    @property
    def dtype(self) -> str:
        """The stored dtype, or all of them joined by `+` when tensors differ."""
        return "+".join(sorted({tensor.dtype for tensor in self.values()}))

    def sha256(self, known: Mapping[str, str] | None = None) -> str:
        """Digest of all names and contents; the same however the tensors are spread over files.

        Args:
            known: digests of single tensors that were computed already, by name; the others are read.
        """
        known = known or {}
        digest = hashlib.sha256()
        for name in sorted(self):
            digest.update(f"{name}:{known.get(name) or self[name].sha256()}\n".encode())
        return digest.hexdigest()


class Renamed(Checkpoint):
    """A checkpoint under other names, some tensors left out or cut up; its digest is that of what is stored.

    Attributes:
        origin: the checkpoint as it was opened.
        stored_names: the name in `origin` of each tensor that is whole there.
    """

    def __init__(
        self, origin: Checkpoint, tensors: Mapping[str, Tensor], stored_names: Mapping[str, str], notes: Sequence[str]
    ) -> None:
        super().__init__(
            origin.name, tensors, config=origin.config, fingerprint=origin.fingerprint,
            notes=(*origin.notes, *notes), adapter=origin.adapter,
        )  # fmt: skip
        self.origin = origin
        self.stored_names = dict(stored_names)

    def sha256(self, known: Mapping[str, str] | None = None) -> str:
        """Digest of the stored checkpoint.

        Args:
            known: digests of single tensors that were computed already, by their name here.
        """
        stored = {self.stored_names[name]: one for name, one in (known or {}).items() if name in self.stored_names}
        return self.origin.sha256(stored)
