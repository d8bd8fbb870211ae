"""The dense algebra of one matrix on a device without float64 units: exact integer products there, LAPACK here.

A TPU multiplies small integers exactly and fast, and emulates float64 slowly; its eigensolvers compile for minutes. So
the device does what costs most and suits it, the products with the long sides (Gram matrix, `W·V`, `Wᵀ·U`), and the
host brings the Gram matrix to tridiagonal form as it does without a device.

A product of two matrices X, Y is split as in Ozaki, Ogita, Oishi and Rump, *Error-free transformations of matrix
multiplication by using fast routines* (2012), but in fixed point. Each entry becomes `2^e Σ_{i=1..8} d_i 128^{-i}` with
one exponent e for the whole matrix and digits `|d_i| ≤ 64`, 56 bits below the largest entry, so that the truncation is
within float64's own rounding of ‖X‖. The levels `Σ_{i+j=l} D_i(X) D_j(Y)`, l = 2…9, are int8 products summed in int32;
levels above 9 lie below the 56 bits and are left out. At most 8·64²·2¹⁵ < 2³¹ for an inner dimension up to 2¹⁵, so no
sum overflows or rounds: **the result does not depend on the order of summation, hence not on the device**. The device
sees integers only; scaling is done here in float64.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxgeom.comparison.algebra.device_matrix import DeviceMatrix

_DIGITS = 8
_BITS = 7
_WORD = 28
"""Bits in an int32 word: four digits."""

_INNER = 1 << 15
"""Longest inner dimension whose sums stay below 2³¹."""

_BLOCK = 1 << 20
"""Entries that are brought to fixed point at a time on the host."""


def _words(array: np.ndarray, scale: float) -> np.ndarray:
    """Fixed-point form `[2, ...]` in int32: `array ≈ scale·(words[0]·2⁻²⁸ + words[1]·2⁻⁵⁶)`, `|words| ≤ 2²⁷`."""
    fixed = np.rint(array * (2.0 ** (2 * _WORD) / scale)).astype(np.int64)
    high = (fixed + (1 << (_WORD - 1))) >> _WORD
    return np.stack([high, fixed - (high << _WORD)]).astype(np.int32)


def _power_above(array: np.ndarray) -> float:
    """A power of two at least twice the largest magnitude; 1 for zeros."""
    peak = float(np.abs(array).max(initial=0.0))
    return float(np.ldexp(1.0, int(np.frexp(peak)[1]) + 1)) if peak else 1.0


def _digits(words: jax.Array) -> jax.Array:
    """int8 digits `[8, ...]` of a fixed-point number, most significant first, each in [−64, 64]."""
    found = []
    for word in (words[1], words[0]):
        for _ in range(_WORD // _BITS - 1):
            digit = ((word + 64) & 127) - 64
            found.append(digit.astype(jnp.int8))
            word = (word - digit) >> _BITS
        found.append(word.astype(jnp.int8))
    return jnp.stack(found[::-1])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _product(left: jax.Array, right: jax.Array | None, left_axis: int, right_axis: int) -> jax.Array:
    """Product over one axis each of two fixed-point matrices (of one with itself where `right` is None).

    Level by level from the lowest, the carry handed upwards: one int8 product in a loop, one program per shape.

    Returns:
        int32 `[3, m, n]`: `p[0]·2⁻¹⁴ + p[1]·2⁻⁴² + p[2]·2⁻⁶³`, to be scaled by both scales.
    """
    first = _digits(left)
    second = first if right is None else _digits(right)
    contract = (((0, 1 + left_axis), (0, 1 + right_axis)), ((), ()))
    # The window of level l holds digits l−1, l−2, …, 1 of the right side and then zeros.
    padded = jnp.concatenate([second[::-1], jnp.zeros_like(second[1:])])

    def level(step: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        carry, middle, low = state
        window = jax.lax.dynamic_slice_in_dim(padded, step, _DIGITS)
        total = carry + jax.lax.dot_general(first, window, contract, preferred_element_type=jnp.int32)
        rest = total & 127
        low = jnp.where(step < 3, low | (rest << (_BITS * jnp.minimum(step, 3))), low)
        middle = jnp.where((step >= 3) & (step < 7), middle | (rest << (_BITS * jnp.clip(step - 3, 0, 3))), middle)
        return jnp.where(step < 7, total >> _BITS, total), middle, low

    zeros = jnp.zeros((first.shape[2 - left_axis], second.shape[2 - right_axis]), jnp.int32)
    return jnp.stack(jax.lax.fori_loop(0, _DIGITS, level, (zeros, zeros, zeros)))


def _scaled(parts: jax.Array, scale: float) -> np.ndarray:
    """float64 of what `_product` gives."""
    high, middle, low = np.asarray(parts)
    out = low * 2.0**-63
    out += middle * 2.0**-42
    out += high * 2.0**-14
    out *= scale
    return out


@dataclasses.dataclass(frozen=True)
class IntegerMatrix(DeviceMatrix):
    """A matrix whose products are formed exactly in integers on one JAX device, and decomposed on the host."""

    @functools.cached_property
    def _placed(self) -> tuple[list[tuple[slice, jax.Array]], float]:
        """Fixed-point words on the device in blocks of the long side, and their scale."""
        scale = _power_above(self.array)
        if self.minus is not None:
            # The difference may be far below both: its own largest entry sets the scale.
            scale = max((_power_above(self._rows(where)) for where in self._row_blocks()), default=1.0)
        words = np.empty((2, *self.array.shape), np.int32)
        for where in self._row_blocks():
            words[:, where] = _words(self._rows(where), scale)
        blocks = []
        for start in range(0, self.long, _INNER):
            where = slice(start, min(start + _INNER, self.long))
            cut = words[:, :, where] if self.is_wide else words[:, where]
            blocks.append((where, self.put(cut)))
        return blocks, scale

    def _row_blocks(self) -> list[slice]:
        rows, columns = self.array.shape
        step = max(1, _BLOCK // columns)
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _rows(self, where: slice) -> np.ndarray:
        """Rows in float64, exact for a plain matrix, rounded once or twice for a difference."""
        out = self.array[where].astype(np.float64)
        if self.minus is not None:
            out -= np.float64(self.scale) * self.minus[where].astype(np.float64)
        return out

    @property
    def _long_axis(self) -> int:
        return 1 if self.is_wide else 0

    def gram(self, dtype: type = np.float64) -> np.ndarray:
        """Gram matrix `[short, short]`, upper triangle, Fortran-ordered; exact but for the fixed point."""
        blocks, scale = self._placed
        gram = np.zeros((self.short, self.short))
        for _, words in blocks:
            gram += _scaled(_product(words, None, self._long_axis, self._long_axis), scale * scale)
        return np.asfortranarray(np.triu(gram)).astype(dtype, copy=False)

    def times_short(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the short side `[short, k]`: `[long, k]`."""
        blocks, scale = self._placed
        size = _power_above(vectors)
        if self.short > _INNER:
            return super().times_short(vectors)
        right = self.put(_words(vectors.astype(np.float64), size))
        out = np.empty((self.long, vectors.shape[1]), vectors.dtype, order="F")
        for where, words in blocks:
            out[where] = _scaled(_product(words, right, 1 - self._long_axis, 0), scale * size)
        return out

    def times_long(self, vectors: np.ndarray) -> np.ndarray:
        """Product with vectors over the long side `[long, k]`: `[short, k]`."""
        blocks, scale = self._placed
        size = _power_above(vectors)
        out = np.zeros((self.short, vectors.shape[1]), order="F")
        for where, words in blocks:
            right = self.put(_words(vectors[where].astype(np.float64), size))
            out += _scaled(_product(words, right, self._long_axis, 0), scale * size)
        return out.astype(vectors.dtype, copy=False)
