"""The LAPACK and BLAS routines that SciPy ships, called without the interpreter lock.

SciPy exposes its LAPACK through `scipy.linalg.cython_lapack`, a public C interface that covers routines which
`scipy.linalg.lapack` does not (`dstedc`, `dormtr`) and that a thread may call while another one runs Python: two
matrices can be measured side by side. Matrices are Fortran-ordered; functions work in place where they say so.

A routine that is given a pointer believes the sizes and the order that come with it. So every array is checked before
its pointer leaves Python: dtype, shape, order, and that it may be written to where it is. What does not fit is a
`ValueError` that says so, not a wrong number or a crash.
"""

import ctypes
from typing import Any

import numpy as np
import scipy.linalg.cython_blas
import scipy.linalg.cython_lapack

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype = ctypes.c_char_p
_capsule_name.argtypes = [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _routine(module: Any, name: str, argument_count: int) -> Any:
    capsule = module.__pyx_capi__[name]
    address = _capsule_pointer(capsule, _capsule_name(capsule))
    return ctypes.CFUNCTYPE(None, *([ctypes.c_void_p] * argument_count))(address)


_dsyrk = _routine(scipy.linalg.cython_blas, "dsyrk", 10)
_ssyrk = _routine(scipy.linalg.cython_blas, "ssyrk", 10)
_dgemm = _routine(scipy.linalg.cython_blas, "dgemm", 13)
_sgemm = _routine(scipy.linalg.cython_blas, "sgemm", 13)
_ssymm = _routine(scipy.linalg.cython_blas, "ssymm", 12)
_ssymv = _routine(scipy.linalg.cython_blas, "ssymv", 10)
_dsytrd = _routine(scipy.linalg.cython_lapack, "dsytrd", 10)
_ssytrd = _routine(scipy.linalg.cython_lapack, "ssytrd", 10)
_dsterf = _routine(scipy.linalg.cython_lapack, "dsterf", 4)
_ssterf = _routine(scipy.linalg.cython_lapack, "ssterf", 4)
_dstedc = _routine(scipy.linalg.cython_lapack, "dstedc", 11)
_dstemr = _routine(scipy.linalg.cython_lapack, "dstemr", 21)
_dstebz = _routine(scipy.linalg.cython_lapack, "dstebz", 18)
_dstein = _routine(scipy.linalg.cython_lapack, "dstein", 13)
_dormtr = _routine(scipy.linalg.cython_lapack, "dormtr", 13)
_sormtr = _routine(scipy.linalg.cython_lapack, "sormtr", 13)
_dgesdd = _routine(scipy.linalg.cython_lapack, "dgesdd", 14)


_LARGEST = 2**31 - 1
_REAL = (np.dtype(np.float32), np.dtype(np.float64))
_DOUBLE = (np.dtype(np.float64),)


def _int(value: int) -> Any:
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"a size of {value} does not fit into the 32 bits that LAPACK counts with")
    return ctypes.byref(ctypes.c_int(value))


def _require(
    name: str, array: np.ndarray, shape: tuple[int | None, ...], dtypes: tuple[np.dtype, ...] = _REAL,
    *, order: str = "F", written: bool = False,
) -> None:  # fmt: skip
    """Raises `ValueError` unless an array is what a routine will take it for.

    Args:
        name: its name, for the message.
        array: the array.
        shape: its shape; None where any size will do.
        dtypes: native dtypes that it may have.
        order: `F` for Fortran order, `A` for that or C order.
        written: whether the routine writes to it.
    """
    if array.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {array.dtype}, not {' or '.join(map(str, dtypes))}")
    fits = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(wanted not in (None, held) for held, wanted in fits):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(array.shape)}, not [{wanted}]")
    flags = array.flags
    if not (flags.aligned and (flags.f_contiguous or (order == "A" and flags.c_contiguous))):
        raise ValueError(f"{name} is not contiguous in {'C or Fortran' if order == 'A' else 'Fortran'} order")
    if written and not flags.writeable:
        raise ValueError(f"{name} is read-only, but is to be overwritten")


def _require_tridiagonal(diagonal: np.ndarray, off: np.ndarray, dtypes: tuple[np.dtype, ...]) -> None:
    """Checks a diagonal `[p]` and an off-diagonal of one dtype, of which the first p − 1 entries count."""
    _require("diagonal", diagonal, (None,), dtypes)
    _require("off", off, (None,), (diagonal.dtype,))
    if off.size < diagonal.size - 1:
        raise ValueError(f"off has {off.size} entries, a diagonal of {diagonal.size} needs {diagonal.size - 1}")


def _require_count(count: int, size: int) -> None:
    if not 1 <= count <= size:
        raise ValueError(f"count = {count}: of {size} vectors 1 to {size} can be asked for")


def _char(value: str) -> Any:
    return ctypes.byref(ctypes.c_char(value.encode()))


def _check(name: str, info: ctypes.c_int) -> None:
    if info.value != 0:
        raise ArithmeticError(f"LAPACK {name} reports info = {info.value}")


def add_gram(gram: np.ndarray, rows: np.ndarray) -> None:
    """`gram += rowsᵀ rows`, upper triangle of the Fortran-ordered `gram [p, p]` only; `rows [r, p]` in either order."""
    _require("gram", gram, (rows.shape[-1],) * 2, written=True)
    if not (rows.flags.c_contiguous or rows.flags.f_contiguous):
        rows = np.ascontiguousarray(rows)
    _require("rows", rows, (None, gram.shape[0]), (gram.dtype,), order="A")
    count, size = rows.shape
    if 0 in (count, size):
        return
    real, routine = (ctypes.c_double, _dsyrk) if gram.dtype == np.float64 else (ctypes.c_float, _ssyrk)
    one = ctypes.byref(real(1.0))
    if rows.flags.c_contiguous:
        form, step = _char("N"), size
    else:
        form, step = _char("T"), count
    size_, count_ = _int(size), _int(count)
    routine(_char("U"), form, size_, count_, one, rows.ctypes.data, _int(step), one, gram.ctypes.data, size_)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left [m, p] @ right [p, n]`, float32 or float64, each C- or Fortran-ordered: `[m, n]`, Fortran-ordered."""
    left, right = (array if array.flags.f_contiguous else np.ascontiguousarray(array) for array in (left, right))
    _require("left", left, (None, None), order="A")
    _require("right", right, (left.shape[1], None), (left.dtype,), order="A")
    (rows, inner), columns = left.shape, right.shape[1]
    out = np.empty((rows, columns), left.dtype, order="F")
    if 0 in (rows, inner, columns):
        out[:] = 0
        return out
    real, routine = (ctypes.c_double, _dgemm) if left.dtype == np.float64 else (ctypes.c_float, _sgemm)

    def form(array: np.ndarray) -> tuple[np.ndarray, Any, Any]:
        if array.flags.f_contiguous:
            return array, _char("N"), _int(max(1, array.shape[0]))
        return array, _char("T"), _int(max(1, array.shape[1]))

    left, left_form, left_step = form(left)
    right, right_form, right_step = form(right)
    routine(
        left_form,
        right_form,
        _int(rows),
        _int(columns),
        _int(inner),
        ctypes.byref(real(1.0)),
        left.ctypes.data,
        left_step,
        right.ctypes.data,
        right_step,
        ctypes.byref(real(0.0)),
        out.ctypes.data,
        _int(rows),
    )
    return out


def symmetric_multiply(upper: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Product of a symmetric float32 matrix `[p, p]` with `[p]` or `[p, k]`; its upper triangle is read."""
    _require("upper", upper, (upper.shape[0],) * 2, (np.dtype(np.float32),))
    size, one, zero, step = upper.shape[0], ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0)), _int(1)
    vectors = np.asfortranarray(vectors, np.float32)
    _require("vectors", vectors, (size, None)[: vectors.ndim], (np.dtype(np.float32),))
    out, rows, data = np.empty_like(vectors), _int(size), upper.ctypes.data
    if vectors.ndim == 1:
        _ssymv(_char("U"), rows, one, data, rows, vectors.ctypes.data, step, zero, out.ctypes.data, step)
        return out
    _ssymm(
        _char("L"), _char("U"), rows, _int(vectors.shape[1]), one, data, rows, vectors.ctypes.data, rows, zero,
        out.ctypes.data, rows,
    )  # fmt: skip
    return out


def tridiagonalize(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Householder form of a symmetric matrix `[p, p]` (upper triangle, overwritten), float64 or float32.

    Diagonal `[p]`, off-diagonal `[p − 1]` and reflector scales `[p − 1]` (of one entry at least), in its dtype.
    """
    _require("matrix", matrix, (matrix.shape[0],) * 2, written=True)
    size, dtype = matrix.shape[0], matrix.dtype
    name, routine = ("dsytrd", _dsytrd) if dtype == np.float64 else ("ssytrd", _ssytrd)
    diagonal, off, tau = np.empty(size, dtype), np.empty(max(size - 1, 1), dtype), np.empty(max(size - 1, 1), dtype)
    work = np.empty(max(1, size * 64), dtype)
    info = ctypes.c_int()
    routine(
        _char("U"),
        _int(size),
        matrix.ctypes.data,
        _int(size),
        diagonal.ctypes.data,
        off.ctypes.data,
        tau.ctypes.data,
        work.ctypes.data,
        _int(work.size),
        ctypes.byref(info),
    )
    _check(name, info)
    return diagonal, off, tau


def tridiagonal_values(diagonal: np.ndarray, off: np.ndarray) -> np.ndarray:
    """All eigenvalues `[p]`, ascending, of a symmetric tridiagonal matrix: diagonal `[p]`, p − 1 entries beside it."""
    _require_tridiagonal(diagonal, off, _REAL)
    values, off = diagonal.copy(), off.copy()
    name, routine = ("dsterf", _dsterf) if values.dtype == np.float64 else ("ssterf", _ssterf)
    info = ctypes.c_int()
    routine(_int(values.size), values.ctypes.data, off.ctypes.data, ctypes.byref(info))
    _check(name, info)
    return values


def symmetric_values(matrix: np.ndarray) -> np.ndarray:
    """All eigenvalues `[p]`, ascending, of a symmetric matrix `[p, p]`, in its dtype; other threads run meanwhile."""
    diagonal, off, _ = tridiagonalize(np.array(matrix, order="F"))
    return tridiagonal_values(diagonal, off)


_GOOD_PART = 6
"""From this part (a sixth) of the vectors on, all of them by divide and conquer cost less than the wanted ones alone:
`experiments/benchmarks/algebra_thresholds.py`."""

_SMALL = 64
"""Below this size neither route takes a millisecond, and divide and conquer is the more accurate."""


def tridiagonal_top_vectors(diagonal: np.ndarray, off: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors `[p, count]` of the `count` largest, ascending; all eigenvalues where they come along.

    Divide and conquer when a good part is asked for, else relatively robust representations on the wanted part.

    Args:
        diagonal: float64 `[p]`.
        off: float64, the p − 1 entries beside it.
        count: 1 to p.
    """
    _require_tridiagonal(diagonal, off, _DOUBLE)
    _require_count(count, diagonal.size)
    return _top_vectors(diagonal, off, count, divide=count * _GOOD_PART >= diagonal.size or diagonal.size < _SMALL)


def _top_vectors(diagonal: np.ndarray, off: np.ndarray, count: int, *, divide: bool) -> tuple[np.ndarray, np.ndarray]:
    size = diagonal.size
    info = ctypes.c_int()
    if divide:
        values, scratch = diagonal.copy(), np.append(off[: size - 1], 0.0)
        vectors = np.empty((size, size), order="F")
        work = np.empty(1 + 4 * size + size * size)
        integers = np.empty(3 + 5 * size, np.intc)
        _dstedc(
            _char("I"),
            _int(size),
            values.ctypes.data,
            scratch.ctypes.data,
            vectors.ctypes.data,
            _int(size),
            work.ctypes.data,
            _int(work.size),
            integers.ctypes.data,
            _int(integers.size),
            ctypes.byref(info),
        )
        _check("dstedc", info)
        return values, vectors[:, size - count :]
    scratch_diagonal, scratch_off = diagonal.copy(), np.append(off[: size - 1], 0.0)
    found, wanted = ctypes.c_int(), np.empty(size)
    vectors = np.empty((size, count), order="F")
    support = np.empty(2 * count, np.intc)
    work, integers = np.empty(18 * size), np.empty(10 * size, np.intc)
    zero = ctypes.byref(ctypes.c_double(0.0))
    _dstemr(
        _char("V"),
        _char("I"),
        _int(size),
        scratch_diagonal.ctypes.data,
        scratch_off.ctypes.data,
        zero,
        zero,
        _int(size - count + 1),
        _int(size),
        ctypes.byref(found),
        wanted.ctypes.data,
        vectors.ctypes.data,
        _int(size),
        _int(count),
        support.ctypes.data,
        ctypes.byref(ctypes.c_int(1)),
        work.ctypes.data,
        _int(work.size),
        integers.ctypes.data,
        _int(integers.size),
        ctypes.byref(info),
    )
    _check("dstemr", info)
    return wanted[:count], vectors


def tridiagonal_few_vectors(diagonal: np.ndarray, off: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest eigenvalues, ascending, and their vectors `[p, count]`, of a float64 tridiagonal matrix.

    For one whose entries have single precision: bisection to 1e-10 of the largest value, then inverse iteration.
    """
    _require_tridiagonal(diagonal, off, _DOUBLE)
    _require_count(count, diagonal.size)
    if count * _GOOD_PART >= diagonal.size or diagonal.size < _SMALL:
        values, vectors = tridiagonal_top_vectors(diagonal, off, count)
        return values[-count:], vectors
    size, info, real = diagonal.size, ctypes.c_int(), ctypes.c_double
    off = np.append(off[: size - 1], 0.0)
    reach = float(np.abs(diagonal).max(initial=0.0) + 2 * np.abs(off).max(initial=0.0))
    values, work, zero = np.empty(size), np.empty(5 * size), ctypes.byref(real(0.0))
    found, blocks, integers = ctypes.c_int(), ctypes.c_int(), np.empty(3 * size, np.intc)
    block, split = np.empty(size, np.intc), np.empty(size, np.intc)
    _dstebz(
        _char("I"),
        _char("B"),
        _int(size),
        zero,
        zero,
        _int(size - count + 1),
        _int(size),
        ctypes.byref(real(1e-10 * reach)),
        diagonal.ctypes.data,
        off.ctypes.data,
        ctypes.byref(found),
        ctypes.byref(blocks),
        values.ctypes.data,
        block.ctypes.data,
        split.ctypes.data,
        work.ctypes.data,
        integers.ctypes.data,
        ctypes.byref(info),
    )
    _check("dstebz", info)
    vectors, failed = np.empty((size, found.value), order="F"), np.empty(size, np.intc)
    _dstein(
        _int(size),
        diagonal.ctypes.data,
        off.ctypes.data,
        _int(found.value),
        values.ctypes.data,
        block.ctypes.data,
        split.ctypes.data,
        vectors.ctypes.data,
        _int(size),
        work.ctypes.data,
        integers.ctypes.data,
        failed.ctypes.data,
        ctypes.byref(info),
    )
    _check("dstein", info)
    order = np.argsort(values[: found.value], kind="stable")
    return values[order], vectors[:, order]


def back_transform(reflectors: np.ndarray, tau: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors of the tridiagonal form turned into those of the original matrix (in place; Fortran-ordered `[p, k]`).

    Args:
        reflectors: `[p, p]` as `tridiagonalize` left the matrix.
        tau: `[p − 1]` beside it, in the same dtype.
        vectors: `[p, k]`, copied where it has another dtype or order.
    """
    vectors = np.asfortranarray(vectors, reflectors.dtype)
    _require("reflectors", reflectors, (reflectors.shape[0],) * 2)
    _require("tau", tau, (max(reflectors.shape[0] - 1, 1),), (reflectors.dtype,))
    _require("vectors", vectors, (reflectors.shape[0], None), (reflectors.dtype,), written=True)
    name, routine = ("dormtr", _dormtr) if vectors.dtype == np.float64 else ("sormtr", _sormtr)
    size, count = vectors.shape
    work = np.empty(max(1, count * 64) + 64 * 65, vectors.dtype)
    info = ctypes.c_int()
    routine(
        _char("L"),
        _char("U"),
        _char("N"),
        _int(size),
        _int(count),
        reflectors.ctypes.data,
        _int(size),
        tau.ctypes.data,
        vectors.ctypes.data,
        _int(size),
        work.ctypes.data,
        _int(work.size),
        ctypes.byref(info),
    )
    _check(name, info)
    return vectors


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """All singular values `[min(m, n)]`, descending, of a matrix `[m, n]` by the bidiagonal route.

    `dgesdd` keeps those near `eps·σ₁`.
    """
    matrix = np.array(matrix, np.float64, order="F")
    _require("matrix", matrix, (None, None), _DOUBLE)
    rows, columns = matrix.shape
    values = np.empty(min(rows, columns))
    smaller, larger = min(rows, columns), max(rows, columns)
    work = np.empty(3 * smaller + max(larger, 7 * smaller) + 64 * (rows + columns))
    integers = np.empty(8 * smaller, np.intc)
    info = ctypes.c_int()
    unused = np.empty(1)
    _dgesdd(
        _char("N"),
        _int(rows),
        _int(columns),
        matrix.ctypes.data,
        _int(rows),
        values.ctypes.data,
        unused.ctypes.data,
        _int(1),
        unused.ctypes.data,
        _int(1),
        work.ctypes.data,
        _int(work.size),
        integers.ctypes.data,
        ctypes.byref(info),
    )
    _check("dgesdd", info)
    return values
