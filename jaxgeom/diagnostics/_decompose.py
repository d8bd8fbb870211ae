"""Small dense algebra in the namespace of its arguments: LAPACK through NumPy, or XLA's own, matrix by matrix."""

from typing import Any

import numpy as np

from . import _layout, _sequential
from ._namespace import namespace


def matmul(a: Any, b: Any) -> Any:
    """`a @ b`, in full precision on every device."""
    return np.matmul(a, b) if namespace(a, b) is np else _layout.matmul(a, b)


def transpose(a: Any) -> Any:
    """The two trailing axes exchanged."""
    return namespace(a).swapaxes(a, -1, -2)


def svd_values(a: Any) -> Any:
    """Singular values, descending `[..., r]`."""
    return np.linalg.svd(a, compute_uv=False) if namespace(a) is np else _sequential.svd_values(a)


def svd(a: Any) -> tuple[Any, Any, Any]:
    """Reduced decomposition `u [..., m, r]`, `σ [..., r]`, `vᵀ [..., r, n]`."""
    u, sigma, vt = np.linalg.svd(a, full_matrices=False) if namespace(a) is np else _sequential.svd(a)
    return u, sigma, vt


def triangle(a: Any) -> Any:
    """The triangular factor `[..., r, k]` of a QR decomposition."""
    return np.linalg.qr(a, mode="r") if namespace(a) is np else _sequential.qr(a)[1]


def symmetric_values(a: Any) -> Any:
    """Eigenvalues of a symmetric matrix, ascending `[..., k]`."""
    return np.linalg.eigvalsh(a) if namespace(a) is np else _sequential.eigh(a)[0]


def short_gram(a: Any) -> Any:
    """Gram matrix of the smaller side of `[..., m, n]`, whose eigenvalues are the squared singular values."""
    tall = a.shape[-2] >= a.shape[-1]
    return matmul(transpose(a), a) if tall else matmul(a, transpose(a))
