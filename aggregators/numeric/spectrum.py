"""The direction in which points scatter most, from their inner products.

m  points
"""

from __future__ import annotations

import numpy as np

from varangian.aggregators.numeric.algebra import Array, eigh, product


def leading(products: Array, shares: Array) -> tuple[float, Array]:
    """The largest eigenvalue of a covariance, and how far each point lies in the eigenvector's direction.

    Args:
        products: inner products of the points (m, m).
        shares: the weight of each point in the mean and in the covariance (m,), of sum 1.

    Returns:
        The eigenvalue, and the inner products of all points with the eigenvector (m,), not centred: what
        lies between points with a share would be lost below the mean if one of them is very far away.
    """
    centring = np.eye(len(shares)) - shares
    roots = np.sqrt(shares)
    spread = roots[:, None] * product(product(centring, products), centring.T) * roots
    values, vectors = eigh(spread)
    if values[-1] <= 0:
        return 0.0, np.zeros_like(shares)
    direction = centring.T @ (roots * vectors[:, -1]) / np.sqrt(values[-1])
    return float(values[-1]), products @ direction
