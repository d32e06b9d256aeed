"""The top eigenvector of a covariance, from inner products.

m  points
"""

from __future__ import annotations

import numpy as np

from varangian.aggregators.numeric.algebra import Array, eigh, product


def leading(products: Array, shares: Array) -> tuple[float, Array]:
    """The top eigenvalue of a weighted covariance, and the points' coordinates along its eigenvector.

    Args:
        products: inner products of the points (m, m).
        shares: the weight of each point in the mean and in the covariance (m,), of sum 1.

    Returns:
        The eigenvalue, and the inner products of all points with the eigenvector (m,), not centred:
        differences of points would be lost to rounding if one that is very far away moved the mean.
    """
    centring = np.eye(len(shares)) - shares
    roots = np.sqrt(shares)
    spread = roots[:, None] * product(product(centring, products), centring.T) * roots
    values, vectors = eigh(spread)
    if values[-1] <= 0:
        return 0.0, np.zeros_like(shares)
    direction = centring.T @ (roots * vectors[:, -1]) / np.sqrt(values[-1])
    return float(values[-1]), products @ direction
