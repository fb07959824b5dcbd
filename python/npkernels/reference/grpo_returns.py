"""Returns and advantages along time, and pass@k.

rewards (..., T), or packed (total,) with the boundaries cu_seqlens. Masked places are passed over: the recursion goes
on behind them as if they were not there, whatever they hold, and they get 0.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np

from ._common import Array, ArrayLike, BoolArray, as_array, as_mask, broadcast, like, working


def _sequences(name: str, x: Array, cu_seqlens: ArrayLike | None) -> list[Any]:
    """The index of each sequence of x."""
    if cu_seqlens is None:
        return [(*i, slice(None)) for i in np.ndindex(x.shape[:-1])]
    cu = as_array(cu_seqlens)
    if x.ndim != 1 or cu.ndim != 1 or cu[0] != 0 or cu[-1] != len(x) or (np.diff(cu) < 0).any():
        raise ValueError(f"{name}: cu_seqlens must rise from 0 to the {x.shape} tokens of packed rewards")
    return [slice(a, b) for a, b in itertools.pairwise(cu)]


def _bits(name: str, value: ArrayLike | None, otherwise: bool, x: Array) -> BoolArray:
    """Booleans, or 0 and 1, one for each token."""
    bits = as_mask(name, otherwise if value is None else as_array(value).astype(bool), x.shape)
    assert bits is not None
    return bits


def _per_sequence(name: str, argument: str, value: ArrayLike, x: Array, count: int, packed: bool) -> Array:
    array = like(name, argument, value, x)
    return broadcast(name, argument, array, (count,) if packed else x.shape[:-1]).reshape(-1)


@np.errstate(all="ignore")
def discounted_returns(
    rewards: ArrayLike,
    gamma: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    last_value: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> Array:
    """``R_t = r_t + gamma R_{t+1}``, R_T = last_value.

    Examples
    --------
    >>> discounted_returns(np.float32([0, 0, 1]), 0.5)
    array([0.25, 0.5 , 1.  ])
    """
    name = "discounted_returns"
    (r,) = working(name, rewards=rewards)
    places = _sequences(name, r, cu_seqlens)
    g = _per_sequence(name, "gamma", gamma, r, len(places), cu_seqlens is not None)
    v = _per_sequence(
        name, "last_value", 0 if last_value is None else last_value, r, len(places), cu_seqlens is not None
    )
    kept = _bits(name, mask, True, r)
    R = np.zeros_like(r)
    for i, at in enumerate(places):
        following = v[i]
        for t in reversed(range(len(r[at]))):
            if kept[at][t]:
                R[at][t] = following = r[at][t] + g[i] * following
    return R


@np.errstate(all="ignore")
def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    *,
    gamma: ArrayLike,
    lam: ArrayLike,
    dones: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    last_value: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """``A_t = d_t + gamma lam A_{t+1}`` with ``d_t = r_t + gamma V_{t+1} - V_t``, and the returns ``A + V``.

    Nothing is added from behind a place where `dones` is True.

    Examples
    --------
    >>> advantages, returns = gae(np.float32([0, 1]), np.float32([0.5, 0.5]), gamma=1.0, lam=0.5)
    >>> advantages, returns
    (array([0.25, 0.5 ]), array([0.75, 1.  ]))
    """
    name = "gae"
    r, V = working(name, rewards=rewards, values=values)
    if r.shape != V.shape:
        raise ValueError(f"{name}: values has shape {V.shape}; expected {r.shape}")
    places = _sequences(name, r, cu_seqlens)
    packed = cu_seqlens is not None
    g = _per_sequence(name, "gamma", gamma, r, len(places), packed)
    lams = _per_sequence(name, "lam", lam, r, len(places), packed)
    last = _per_sequence(name, "last_value", 0 if last_value is None else last_value, r, len(places), packed)
    kept = _bits(name, mask, True, r)
    ends = _bits(name, dones, False, r)
    A, R = np.zeros_like(r), np.zeros_like(r)
    for i, at in enumerate(places):
        value, advantage = last[i], r.dtype.type(0)
        for t in reversed(range(len(r[at]))):
            if not kept[at][t]:
                continue
            if ends[at][t]:
                value = advantage = r.dtype.type(0)
            delta = r[at][t] + g[i] * value - V[at][t]
            A[at][t] = advantage = delta + g[i] * lams[i] * advantage
            R[at][t] = advantage + V[at][t]
            value = V[at][t]
    return A, R


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> Array:
    """``1 - C(n - c, k) / C(n, k)``: the chance that one of k out of n samples is among the c right ones.

    Examples
    --------
    >>> float(pass_at_k(8, 3, 4).round(6))
    0.928571
    """
    ns, cs, ks = np.broadcast_arrays(as_array(n), as_array(c), as_array(k))
    flat = [
        float(1 - Fraction(comb(int(a) - int(b), int(d)), comb(int(a), int(d))))
        for a, b, d in zip(ns.flat, cs.flat, ks.flat, strict=True)
    ]
    return np.array(flat, np.longdouble).reshape(ns.shape)
