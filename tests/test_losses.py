"""Losses and perplexity at the edges of their numbers: the reference's result, and never a warning."""

import numpy as np
import pytest

import npkernels
from npkernels import reference

INF, NAN = np.inf, np.nan
X = np.arange(6.0).reshape(2, 3)
WEIGHTS = [[-1, 1, 3], [0, 0, 3], [INF, 0, 3], [1, 1, NAN], [1, 1, -2]]


@pytest.fixture(autouse=True)
def _floating_point_errors_raise():
    with np.errstate(all="raise"):
        yield


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_weights_of_any_value_and_sum(name, weight, reduction):
    options = {"weight": weight, "reduction": reduction, "return_grad": True}
    for targets in ([0, 1], [-100, 1], [-100, -100]):
        loss, grad = getattr(npkernels, name)(X, targets, **options)
        want, want_grad = getattr(reference, name)(X, targets, **options)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(loss, want.astype(float), rtol=1e-14)
            np.testing.assert_allclose(grad, want_grad.astype(float), atol=1e-14)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_beyond_its_dtype_is_infinite(reduction):
    far = np.float32([[-3e38, 3e38]] * 2)
    for loss in (
        npkernels.cross_entropy(far, [0, 0], reduction=reduction),
        npkernels.nll_loss(far, [0, 0], weight=[10, 1] if reduction == "none" else None, reduction="sum"),
        npkernels.cross_entropy(far, [0, 0], weight=[1e300, 1], reduction=reduction),
    ):
        assert loss.dtype == np.float32
        assert not np.isfinite(loss).any()


def test_a_gradient_beyond_its_dtype_is_infinite():
    x = np.float16([[-3, 3]])
    for name in ("cross_entropy", "nll_loss"):
        loss, grad = getattr(npkernels, name)(x, [0], weight=[1e6, 1], reduction="sum", return_grad=True)
        assert np.isfinite(loss)
        assert grad[0, 0] == -INF


def test_a_loss_of_one_row_is_a_number():
    for reduction in ("mean", "sum", "none"):
        for loss in (
            npkernels.cross_entropy([1.0, 2.0], 1, reduction=reduction),
            npkernels.nll_loss([-1.0, -2.0], 1, reduction=reduction),
        ):
            assert type(loss) is np.float64


def test_perplexity_of_what_is_not_finite():
    assert np.isnan(npkernels.perplexity([INF, -INF]))
    assert npkernels.perplexity([-1e308, -1e308]) == INF
    assert npkernels.perplexity([1e308, 1e308]) == 0
    assert npkernels.perplexity([1000.0]) == 0
    assert npkernels.perplexity([[-INF, 0.0], [NAN, 0.0]], mask=[[True, True], [False, True]]).tolist() == [
        INF,
        1,
    ]
