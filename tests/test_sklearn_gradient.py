"""Losses and gradients from scikit-learn's coefficients: its own predictions, central differences, attacks."""

import types

import numpy as np
import pytest

from npkernels import perturb

sklearn = pytest.importorskip("sklearn")
from sklearn.datasets import load_iris  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402

X, Y = load_iris(return_X_y=True)
TWO = Y < 2
MLP = {"hidden_layer_sizes": (7, 5), "max_iter": 60, "random_state": 0}
ESTIMATORS = [
    *((MLPClassifier(activation=a, **MLP), X, Y) for a in ("relu", "tanh", "logistic", "identity")),
    (MLPClassifier(**MLP), X[TWO], np.array(["a", "b"])[Y[TWO]]),
    (MLPRegressor(**MLP), X[:, :3], X[:, 3]),
    (MLPRegressor(**MLP), X[:, :2], X[:, 2:]),
    (LogisticRegression(max_iter=500), X, Y),
    (LogisticRegression(max_iter=500), X[TWO], Y[TWO]),
    (LinearSVC(), X, Y),
    (LinearSVC(), X[TWO], Y[TWO]),
    (SVC(kernel="linear"), X[TWO], Y[TWO]),
]


@pytest.mark.filterwarnings("ignore:.*[Cc]onverge.*")
@pytest.mark.parametrize(("estimator", "x", "y"), ESTIMATORS, ids=lambda v: type(v).__name__)
def test_predictions_losses_and_gradients(estimator, x, y):
    estimator.fit(x, y)
    model = perturb.sklearn_gradient(estimator)
    some = x[::7]
    labels = y[::7]
    if model.classes is None:
        np.testing.assert_allclose(
            model.predict(some).reshape(labels.shape), estimator.predict(some), atol=1e-10
        )
    else:
        assert np.array_equal(model.predict(some), estimator.predict(some))
    loss, grad = model.loss_and_grad(some, labels)
    if hasattr(estimator, "predict_proba"):
        p = estimator.predict_proba(some)[np.arange(len(some)), np.searchsorted(model.classes, labels)]
        np.testing.assert_allclose(loss, -np.log(p), rtol=1e-6, atol=1e-9)
    h = 1e-6
    for i in range(x.shape[1]):
        step = h * np.eye(x.shape[1])[i]
        ahead, behind = (model.loss_and_grad(some + s, labels)[0] for s in (step, -step))
        np.testing.assert_allclose(
            (ahead - behind) / (2 * h), grad[:, i], atol=1e-5 * max(1, np.abs(grad).max())
        )
        tangent = (model.logits(some + step) - model.logits(some - step)) / (2 * h)
        np.testing.assert_allclose(model.jvp(some, np.tile(step / h, (len(some), 1))), tangent, atol=1e-4)
    rng = np.random.default_rng(0)
    dx, cotangent = rng.standard_normal(some.shape), rng.standard_normal(model.logits(some).shape)
    inner = (model.jvp(some, dx) * cotangent).sum(axis=1)
    np.testing.assert_allclose((model.vjp(some, cotangent) * dx).sum(axis=1), inner, rtol=1e-9, atol=1e-9)
    attacked = perturb.pgd(some, model.of(labels), eps=0.5, steps=5)
    assert (attacked.loss >= loss - 1e-12).all()


def test_refusals():
    for bad in (3, None, types.SimpleNamespace(coef_=1)):
        with pytest.raises(TypeError, match="sklearn_gradient: estimator is a"):
            perturb.sklearn_gradient(bad)
    for unfitted in (MLPClassifier(), LogisticRegression(), LinearSVC()):
        with pytest.raises(ValueError, match="is not fitted"):
            perturb.sklearn_gradient(unfitted)
    with pytest.raises(ValueError, match="kernel is 'rbf'"):
        perturb.sklearn_gradient(SVC().fit(X, Y))
    with pytest.raises(ValueError, match="one-vs-one"):
        perturb.sklearn_gradient(SVC(kernel="linear").fit(X, Y))
    model = perturb.sklearn_gradient(LinearSVC().fit(X, Y))
    for labels in ([0], np.full(len(X), 7), np.zeros((len(X), 1))):
        with pytest.raises(ValueError, match="sklearn_gradient: y must hold"):
            model.loss_and_grad(X, labels)
