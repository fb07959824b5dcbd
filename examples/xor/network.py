"""Exclusive or by a 2-2-1 network: with steps and weights set by hand, and a smooth twin that learns its weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CORNERS: Array = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
XOR: Array = np.array([0.0, 1, 1, 0])


def step_perceptron(x: Array) -> Array:
    """One hidden unit says OR, one says AND, and the output is OR but not AND."""
    hidden = (x @ np.array([[1.0, 1], [1, 1]]) - [0.5, 1.5] > 0).astype(float)
    return np.asarray(hidden @ [1.0, -1.0] - 0.5 > 0, float)


@dataclass
class Smooth:
    """The twin: ``f(x) = w2 . tanh(w1 x + b1) + b2``, trained on the squared error; all derivatives written out."""

    w1: Array  # (2, hidden)
    b1: Array
    w2: Array  # (hidden,)
    b2: float

    def __call__(self, x: Array) -> Array:
        """Values (B,)."""
        return np.asarray(np.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2)

    def gradient(self, x: Array) -> Array:
        """The gradient of the value with respect to x, (B, 2)."""
        h = np.tanh(x @ self.w1 + self.b1)
        return ((1 - h * h) * self.w2) @ self.w1.T

    def descend(self, x: Array, y: Array, rate: float) -> float:
        """One step of gradient descent on the mean of ``(f - y)^2 / 2``; the loss before it."""
        h = np.tanh(x @ self.w1 + self.b1)
        error = (h @ self.w2 + self.b2 - y) / len(x)
        back = error[:, None] * self.w2 * (1 - h * h)
        self.w2 -= rate * h.T @ error
        self.b2 -= rate * error.sum()
        self.w1 -= rate * x.T @ back
        self.b1 -= rate * back.sum(axis=0)
        return float(len(x) * (error**2).sum() / 2)


def train(seed: int = 0, steps: int = 4000, rate: float = 0.5) -> Smooth:
    """The twin, trained on the four corners."""
    rng = np.random.default_rng(seed)
    net = Smooth(rng.standard_normal((2, 2)), rng.standard_normal(2), rng.standard_normal(2), 0.0)
    for _ in range(steps):
        net.descend(CORNERS, XOR, rate)
    return net


def lipschitz_constant(net: Smooth) -> tuple[float, Array]:
    """The exact Lipschitz constant on the whole plane, and a point where the gradient is that long.

    The gradient is ``sum_i s_i w2_i w1_i`` with the slopes ``s_i`` of tanh, in (0, 1]. Two units and two inputs: with
    w1 invertible every pair of slopes occurs somewhere. The length is convex in them, so it is largest at a corner of
    the square [0, 1]^2: where each unit either stands at its steepest or is saturated.
    """
    slopes = np.array(list(itertools.product((0.0, 1.0), repeat=len(net.w2))))
    sizes = np.linalg.norm((slopes * net.w2) @ net.w1.T, axis=1)
    there = np.where(slopes[sizes.argmax()] == 1, 0, 20)  # tanh has slope 1 at 0, and 10^-17 at 20
    return float(sizes.max()), np.linalg.solve(net.w1.T, there - net.b1)


def steepest(net: Smooth, low: float = -0.5, high: float = 1.5, n: int = 801) -> tuple[float, Array]:
    """The largest gradient on a grid over a square, and where it is."""
    axis = np.linspace(low, high, n)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    size = np.linalg.norm(net.gradient(points), axis=1)
    return float(size.max()), points[size.argmax()]
