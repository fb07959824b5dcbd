"""Small loops compiled by Numba, with npkernels inside: advantages, and an attack on a linear model."""

import numba
import numpy as np

import npkernels.numba as nkn


@numba.njit(nogil=True)
def advantages(rewards, size):
    """Relative to the group, by npkernels."""
    a = np.empty_like(rewards)
    nkn.group_advantages(rewards, size, a)
    return a


@numba.njit
def plain_advantages(rewards, size):
    """The same in plain loops."""
    a = np.empty_like(rewards)
    for first in range(0, len(rewards), size):
        mean = squares = 0.0
        for i in range(first, first + size):
            mean += rewards[i] / size
        for i in range(first, first + size):
            squares += (rewards[i] - mean) ** 2
        for i in range(first, first + size):
            a[i] = (rewards[i] - mean) / ((squares / (size - 1)) ** 0.5 + 1e-4)
    return a


@numba.njit(nogil=True)
def attack(x, w, eps, steps):
    """Projected gradient ascent on the loss x @ w, in the box [0, 1]."""
    y, grad = x.copy(), np.empty_like(x)
    for _ in range(steps):
        for i in range(len(x)):
            for j in range(len(w)):
                grad[i, j] = w[j]
        nkn.pgd_step(y, x, grad, eps / 2, eps, y, 0, 0.0, 1.0)
    return y


def main():
    """Compare with plain loops."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 1, 24)
    np.testing.assert_allclose(advantages(rewards, 6), plain_advantages(rewards, 6), rtol=1e-12)
    x, w = rng.random((5, 7)), rng.normal(0, 1, 7)
    np.testing.assert_allclose(attack(x, w, 0.1, 5), np.clip(x + 0.1 * np.sign(w), 0, 1), rtol=1e-12)
    print("numba: advantages and attack agree with plain loops")


if __name__ == "__main__":
    main()
