"""`checked()`: a wrong kernel is found and its worst place named; a right one never blamed."""

import threading

import numpy as np
import pytest

import npkernels
from npkernels import _checked, _softmax

X = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)


class Changed:
    """The compiled module with one function's results passed through another."""

    def __init__(self, module, name, change):
        self.module, self.name, self.change = module, name, change

    def __getattr__(self, name):
        function = getattr(self.module, name)
        return (lambda *args: self.change(function(*args))) if name == self.name else function


def with_entry(value):
    def change(y):
        y[2, 5] = value
        return y

    return change


@pytest.mark.parametrize("value", [0.75, np.nan, np.inf])
def test_a_wrong_entry_is_named(monkeypatch, value):
    monkeypatch.setattr(_softmax, "_core", Changed(_softmax._core, "softmax", with_entry(value)))
    npkernels.softmax(X)
    with npkernels.checked(), pytest.raises(npkernels.MismatchError, match=rf"^softmax: {value} at \(2, 5\)"):
        npkernels.softmax(X)
    with npkernels.checked(), pytest.raises(npkernels.MismatchError, match=r"^softmax"):
        npkernels.softmax(x=X)


def test_a_wrong_shape_is_named(monkeypatch):
    monkeypatch.setattr(_softmax, "_core", Changed(_softmax._core, "softmax", lambda y: y[1:]))
    with (
        npkernels.checked(),
        pytest.raises(npkernels.MismatchError, match=r"shape \(3, 7\), the reference has"),
    ):
        npkernels.softmax(X)


def test_what_is_beyond_the_dtype_is_infinite():
    with npkernels.checked():
        assert npkernels.log_softmax(np.float16([65504, -65504]))[1] == -np.inf
        assert npkernels.logsumexp(np.float32([3e38, 1]), temperature=0.1) == np.inf


def test_both_draw_the_same_numbers():
    logits = np.zeros((50, 100))
    with npkernels.checked():
        drawn = [npkernels.sample(logits), npkernels.sample(logits, rng=None)]
    assert not np.array_equal(*drawn)


def test_an_iterator_is_read_by_both():
    with npkernels.checked():
        t = npkernels.token_log_probs(X, [0, 1, 2, 3], stats=iter(["lse", "rank"]))
    assert t.lse is not None
    assert t.entropy is None


def test_out_is_written_and_errors_are_those_of_the_function():
    out = np.empty_like(X)
    with npkernels.checked():
        assert npkernels.softmax(X, out=out) is out
        in_place = X.copy()
        npkernels.softmax(in_place, out=in_place)
        with pytest.raises(ValueError, match=r"^softmax: axis 2 is out of bounds"):
            npkernels.softmax(X, axis=2)
    assert np.array_equal(out, npkernels.softmax(X))
    assert np.array_equal(in_place, out)


def test_the_block_is_left_as_it_was_found():
    seen = []
    with npkernels.checked():
        with npkernels.checked():
            pass
        assert _checked.enabled()
        thread = threading.Thread(target=lambda: seen.append(_checked.users))
        thread.start()
        thread.join()
    with pytest.raises(KeyboardInterrupt), npkernels.checked():
        raise KeyboardInterrupt
    assert seen == [1]
    assert _checked.users == 0
    assert not _checked.enabled()
