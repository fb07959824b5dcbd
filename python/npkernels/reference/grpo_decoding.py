"""Choosing tokens: sampling from a filtered distribution, one step of a beam search.

Every row of logits has its own uniform number u in [0, 1): the token is the first one, in the order of the vocabulary,
at which the cumulated probability of what is kept exceeds u.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._uniform import uniforms
from ._common import Array, ArrayLike, BoolArray, IntArray, check_temperature, working


def _kept(p: Array, top_k: int | None, top_p: float | None, min_p: float | None) -> BoolArray:
    """Which entries of one row may be drawn; each filter looks at what those before it left."""
    kept = p > 0
    order = np.argsort(-p, kind="stable")
    if top_k is not None and top_k < len(p):
        kept &= p >= p[order[top_k - 1]]  # what is as probable as the k-th stays too
    if top_p is not None and top_p < 1:
        mass = np.cumsum(np.where(kept, p, 0)[order])
        fewest = int(np.searchsorted(mass, np.longdouble(top_p) * mass[-1])) + 1
        kept[order[fewest:]] = False
    if min_p is not None:
        kept &= p >= np.longdouble(min_p) * p.max()
    return kept


@np.errstate(all="ignore")
def sample(
    logits: ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    rng: Any = None,
) -> IntArray:
    """One token of every row of logits (..., V); temperature 0 takes the first of the largest.

    So does a row whose largest number is not finite. NaN has no probability; a row of NaN alone gives 0.

    Examples
    --------
    >>> sample(np.float32([[0, 9, 0]]), temperature=0.0)
    array([1])
    """
    (x,) = working("sample", logits=logits)
    rows = x.reshape(-1, x.shape[-1])
    if temperature != 0:
        check_temperature("sample", temperature)
    u = uniforms("sample", rng, x.shape[:-1]).reshape(-1)
    ids = np.empty(len(rows), np.int64)
    for i, row in enumerate(rows):
        largest = np.fmax.reduce(row)
        if temperature == 0 or not np.isfinite(largest):
            ids[i] = np.argmax(row == largest)
            continue
        z = np.where(np.isnan(row), -np.inf, row - largest) / temperature  # row / temperature may overflow
        p = np.exp(z - z.max()).astype(np.longdouble)
        mass = np.cumsum(np.where(_kept(p, top_k, top_p, min_p), p, 0))
        ids[i] = np.searchsorted(mass, np.longdouble(u[i]) * mass[-1], side="right")
    return ids.reshape(x.shape[:-1])


@np.errstate(all="ignore")
def beam_step(log_probs: ArrayLike, scores: ArrayLike, beam_width: int) -> tuple[Array, IntArray, IntArray]:
    """The best `beam_width` of all ``scores + log_probs``, largest first: their scores, beams and tokens.

    Examples
    --------
    >>> scores, beams, tokens = beam_step(np.float32([[-1, -2], [-3, -1]]), np.float32([0, -1]), 2)
    >>> scores, beams, tokens
    (array([-1., -2.]), array([0, 0]), array([0, 1]))
    """
    lp, s = working("beam_step", log_probs=log_probs, scores=scores)
    V = lp.shape[-1]
    total = (s[..., None] + lp).reshape(*lp.shape[:-2], -1)
    best = np.argsort(-total, axis=-1, kind="stable")[..., :beam_width]
    return np.take_along_axis(total, best, -1), best // V, best % V
