"""The digits, the network, and adversarial training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from npkernels import perturb

Array = npt.NDArray[np.float64]
BOUNDS = (0.0, 1.0)


@dataclass(frozen=True)
class Digits:
    """8 x 8 digits in [0, 1], shuffled: 1297 to train, 500 to test."""

    x_train: Array
    y_train: npt.NDArray[np.int64]
    x_test: Array
    y_test: npt.NDArray[np.int64]


def load() -> Digits:
    """The split that all figures are about."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order] / 16, y[order]
    return Digits(x[:1297], y[:1297], x[1297:], y[1297:])


def train(data: Digits) -> MLPClassifier:
    """One hidden layer of 64, trained on the clean digits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier((64,), max_iter=300, random_state=0).fit(data.x_train, data.y_train)


def train_adversarially(data: Digits, eps: float = 0.1, epochs: int = 120, steps: int = 7) -> MLPClassifier:
    """The same network, trained on what PGD makes of each batch just before it is learnt (Madry et al. 2018)."""
    model = MLPClassifier((64,), random_state=0, learning_rate_init=2e-3)
    classes, rng = np.unique(data.y_train), np.random.default_rng(0)
    for epoch in range(epochs):
        for places in np.array_split(rng.permutation(len(data.x_train)), 13):
            x, y = data.x_train[places], data.y_train[places]
            if epoch:  # the first on clean digits: there is nothing to attack yet
                x = attacked(model, x, y, eps, steps, rng)
            model.partial_fit(x, y, classes=classes)
    return model


def attacked(
    model: MLPClassifier, x: Array, y: npt.NDArray[np.int64], eps: float, steps: int, rng: np.random.Generator
) -> Array:
    """The samples after PGD from random starts."""
    gradient = perturb.sklearn_gradient(model)
    loss = gradient.of(y)
    result: Array = perturb.pgd(
        x, lambda z: loss(z)[1], eps=eps, steps=steps, bounds=BOUNDS, random_start=True, rng=rng
    ).x
    return result


def accuracy(model: MLPClassifier, x: Array, y: npt.NDArray[np.int64]) -> float:
    """Share of right answers."""
    return float((model.predict(x) == y).mean())
