"""Losses and gradients of scikit-learn's estimators, from their own coefficients; scikit-learn is not imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from npkernels._arrays import Array

ArrayLike = npt.ArrayLike
SUPPORTED = "MLPClassifier, MLPRegressor, LogisticRegression, LinearSVC or SVC(kernel='linear')"

# Each activation as a function of its argument, and its derivative as a function of its value.
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, lambda a: np.ones_like(a)),
    "relu": (lambda z: np.maximum(z, 0), lambda a: (a > 0).astype(a.dtype)),
    "tanh": (np.tanh, lambda a: 1 - a * a),
    "logistic": (lambda z: 0.5 * (1 + np.tanh(z / 2)), lambda a: a * (1 - a)),
}


class SklearnGradient:
    """A fitted estimator as a network: values, Jacobian products, losses and their gradients, in float64.

    `logits` are what the last layer gives, before any softmax: one for each class (two for a binary classifier, the
    first of them 0), or the predictions of a regressor.
    """

    def __init__(
        self, weights: list[Array], biases: list[Array], activation: str, kind: str, classes: Array | None
    ) -> None:
        self.weights, self.biases, self.kind, self.classes = weights, biases, kind, classes
        self._activate, self._slope = _ACTIVATIONS[activation]

    def _layers(self, x: ArrayLike) -> list[Array]:
        values = [np.asarray(x, np.float64)]
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            z = values[-1] @ w + b
            values.append(z if i == len(self.weights) - 1 else self._activate(z))
        return values

    def logits(self, x: ArrayLike) -> Array:
        """Values of the last layer, (B, outputs)."""
        return self._layers(x)[-1]

    def predict(self, x: ArrayLike) -> Array:
        """The estimator's predictions: classes, or values of a regressor."""
        f = self.logits(x)
        return f if self.classes is None else self.classes[f.argmax(axis=1)]

    def vjp(self, x: ArrayLike, cotangent: ArrayLike) -> Array:
        """``J^T cotangent`` of the logits, for each sample."""
        values = self._layers(x)
        back = np.asarray(cotangent, np.float64)
        for i in reversed(range(len(self.weights))):
            back = back @ self.weights[i].T
            if i:
                back = back * self._slope(values[i])
        return back

    def jvp(self, x: ArrayLike, dx: ArrayLike) -> Array:
        """``J dx`` of the logits, for each sample."""
        values = self._layers(x)
        ahead = np.asarray(dx, np.float64)
        for i, w in enumerate(self.weights):
            ahead = ahead @ w
            if i < len(self.weights) - 1:
                ahead = ahead * self._slope(values[i + 1])
        return ahead

    def loss_and_grad(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Loss (B,) and its gradient with respect to x, for labels or targets y.

        Cross-entropy for MLPClassifier and LogisticRegression, half the squared error (summed over outputs) for
        MLPRegressor, and for a linear SVM the largest logit of another class less that of y.
        """
        f = self.logits(x)
        if self.classes is None:
            target = np.asarray(y, np.float64).reshape(f.shape)
            return ((f - target) ** 2).sum(axis=1) / 2, self.vjp(x, f - target)
        rows, chosen = np.arange(len(f)), self._indices(y, len(f))
        if self.kind == "margin":
            others = f.copy()
            others[rows, chosen] = -np.inf
            cotangent = np.zeros_like(f)
            cotangent[rows, others.argmax(axis=1)] = 1
            cotangent[rows, chosen] = -1
            return others.max(axis=1) - f[rows, chosen], self.vjp(x, cotangent)
        shifted = f - f.max(axis=1, keepdims=True)
        e = np.exp(shifted)
        total = e.sum(axis=1, keepdims=True)
        cotangent = e / total
        loss = np.log(total[:, 0]) - shifted[rows, chosen]
        cotangent[rows, chosen] -= 1
        return loss, self.vjp(x, cotangent)

    def _indices(self, y: ArrayLike, n: int) -> Array:
        labels = np.asarray(y)
        assert self.classes is not None
        places = np.minimum(np.searchsorted(self.classes, labels), len(self.classes) - 1)
        if labels.shape != (n,) or not np.array_equal(self.classes[places], labels):
            raise ValueError(f"sklearn_gradient: y must hold one of the classes for each of {n} samples")
        return np.asarray(places)

    def of(self, y: ArrayLike) -> Callable[[Array], tuple[Array, Array]]:
        """What the attacks take as `grad_fn`: x -> (losses, gradient), for these labels."""
        return lambda x: self.loss_and_grad(x, y)

    def wrong(self, y: ArrayLike) -> Callable[[Array], Array]:
        """What the attacks take as `success`: x -> whether a prediction differs from y."""
        labels = np.asarray(y)
        return lambda x: np.asarray(self.predict(x) != labels)


def sklearn_gradient(estimator: Any) -> SklearnGradient:
    """Give the losses and input gradients of a fitted scikit-learn estimator, from its own coefficients.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor, LogisticRegression, LinearSVC or SVC(kernel="linear")
        Fitted. Several classes are taken as one softmax for LogisticRegression; SVC may have two only.

    Returns
    -------
    SklearnGradient
        ``.of(y)`` is a `grad_fn`, ``.wrong(y)`` a `success` for the attacks; ``.logits``, ``.jvp`` and ``.vjp`` are
        what `npkernels.lipschitz` takes.

    Raises
    ------
    TypeError
        If the estimator is of another kind.
    ValueError
        If it is not fitted, or has an option that is not covered (several outputs of 0 or 1, one-vs-one).

    Examples
    --------
    >>> import numpy as np, npkernels
    >>> class LogisticRegression:  # as scikit-learn's, when fitted
    ...     coef_, intercept_, classes_ = np.array([[2.0, -1.0]]), np.array([0.5]), np.array([0, 1])
    >>> model = npkernels.perturb.sklearn_gradient(LogisticRegression())
    >>> x, y = np.array([[1.0, 1.0]]), [1]
    >>> result = npkernels.perturb.fgsm(x, model.of(y), 1.0, success=model.wrong(y))
    >>> result.x, result.success
    (array([[0., 2.]]), array([ True]))
    """
    names = {base.__name__ for base in type(estimator).__mro__}
    known = names & {"MLPClassifier", "MLPRegressor", "LogisticRegression", "LinearSVC", "SVC"}
    if not known:
        raise TypeError(f"sklearn_gradient: estimator is a {type(estimator).__name__}; expected {SUPPORTED}")
    fitted = "coefs_" if any(n.startswith("MLP") for n in known) else "coef_"
    if "SVC" in known and getattr(estimator, "kernel", "linear") != "linear":
        raise ValueError(f"sklearn_gradient: the kernel is {estimator.kernel!r}; expected 'linear'")
    if not hasattr(estimator, fitted):
        raise ValueError(f"sklearn_gradient: the {type(estimator).__name__} is not fitted; call fit first")
    if fitted == "coefs_":
        return _of_mlp(estimator, "MLPClassifier" in known)
    return _of_linear(
        estimator, "cross-entropy" if "LogisticRegression" in known else "margin", "SVC" in known
    )


def _of_mlp(estimator: Any, classifies: bool) -> SklearnGradient:
    weights = [np.asarray(w, np.float64) for w in estimator.coefs_]
    biases = [np.asarray(b, np.float64) for b in estimator.intercepts_]
    if not classifies:
        if getattr(estimator, "loss", "squared_error") != "squared_error":
            raise ValueError(f"sklearn_gradient: the loss is {estimator.loss!r}; expected 'squared_error'")
        return SklearnGradient(weights, biases, estimator.activation, "squares", None)
    if estimator.out_activation_ == "logistic":
        if weights[-1].shape[1] != 1:
            raise ValueError(
                "sklearn_gradient: several outputs of 0 or 1 are not covered; expected one label"
            )
        weights[-1], biases[-1] = _beside_zero(weights[-1], biases[-1])
    return SklearnGradient(
        weights, biases, estimator.activation, "cross-entropy", np.asarray(estimator.classes_)
    )


def _of_linear(estimator: Any, kind: str, one_vs_one: bool) -> SklearnGradient:
    w, b = (
        np.asarray(estimator.coef_, np.float64).T,
        np.atleast_1d(np.asarray(estimator.intercept_, np.float64)),
    )
    classes = np.asarray(estimator.classes_)
    if len(classes) == 2:
        w, b = _beside_zero(w, b)
    elif one_vs_one:
        raise ValueError(
            f"sklearn_gradient: SVC with {len(classes)} classes is one-vs-one; expected two classes"
        )
    return SklearnGradient([w], [b], "identity", kind, classes)


def _beside_zero(w: Array, b: Array) -> tuple[Array, Array]:
    """One logit as two, the first of them 0: the same probabilities."""
    return np.hstack([np.zeros_like(w), w]), np.hstack([np.zeros_like(b), b])
