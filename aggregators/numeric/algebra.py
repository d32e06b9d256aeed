"""Linear algebra on n x n numbers, on as many threads as torch has.

numpy's BLAS takes all cores for some of it, and then waits for those that are busy otherwise.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

ALONE = 1 << 18
"""Multiplications of a matrix product that no library shares out."""
FEW = 24
"""Rows of a symmetric matrix whose eigenvalues no library finds in blocks."""
SMALL = 1 << 14
"""Entries of a system that no library shares out."""


def product(a: Array, b: Array) -> Array:
    """The matrix a @ b."""
    if a.size * b.shape[1] <= ALONE:
        found: Array = a @ b
        return found
    # In memory of torch: how far from a multiple of 64 a matrix begins may decide its last bit.
    return (torch.from_numpy(a).clone() @ torch.from_numpy(b).clone()).numpy()


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues in ascending order, and eigenvectors as columns."""
    if len(matrix) <= FEW:
        found = np.linalg.eigh(matrix)
        return found.eigenvalues, found.eigenvectors
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()


def cholesky(matrix: Array) -> Array | None:
    """The lower factor; None where the matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(matrix))
    return None if int(failed) else factor.numpy()


def solve(matrix: Array, right: Array) -> Array | None:
    """The x with matrix @ x = right, (n,); None where the matrix is singular."""
    if matrix.size <= SMALL:
        try:
            return cast("Array", np.linalg.solve(matrix, right))
        except np.linalg.LinAlgError:
            return None
    found, failed = torch.linalg.solve_ex(torch.from_numpy(matrix), torch.from_numpy(right))
    return None if int(failed) else found.numpy()
