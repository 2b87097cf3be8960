# SPDX-License-Identifier: Apache-2.0
"""Vendi score: the effective number of different images in a set (Friedman and Dieng 2023).

It needs no real images. Read it beside a distance: noise is diverse, too.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from metrics.precision_recall import blocks, unit_rows


def vendi_score(rows: np.ndarray) -> float:
    """Exponential of the entropy of the eigenvalues of K / n; K has the cosine similarities of rows [n, D].

    It lies between 1 (all alike) and n (all orthogonal). Computed from the smaller one of K and its D x D
    counterpart, which has the same eigenvalues beside zeros.

    Raises:
        ValueError: there is no row.
    """
    if not len(rows):
        raise ValueError("the Vendi score needs at least 1 image, got 0")
    count, dim = rows.shape
    gram = np.zeros((min(count, dim),) * 2)
    if count <= dim:
        unit = unit_rows(rows)
        gram = unit @ unit.T
    else:
        for part in blocks(count):
            unit = unit_rows(rows[part])
            gram += unit.T @ unit
    eigenvalues = scipy.linalg.eigvalsh(gram / count)
    eigenvalues = eigenvalues[eigenvalues > np.finfo(np.float64).eps]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def per_class(rows: np.ndarray, labels: np.ndarray | None) -> dict[int, float]:
    """The Vendi score of each class; of the whole set, as class 0, without labels [n]."""
    labels = np.zeros(len(rows), np.int64) if labels is None else labels
    return {int(label): vendi_score(rows[labels == label]) for label in np.unique(labels)}
