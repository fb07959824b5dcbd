"""Attacks with callables as they are found: that scale in place, share memory, round, fail, or are interrupted."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import npkernels
from npkernels import perturb
from test_attacks import batch, both, gradient, losses, wrong

ATTACKS = {
    "fgsm": lambda x, f, **o: perturb.fgsm(x, f, 0.3, **o),
    "pgd": lambda x, f, **o: perturb.pgd(x, f, eps=0.3, steps=6, **o),
    "mi_fgsm": lambda x, f, **o: perturb.mi_fgsm(x, f, eps=0.3, steps=6, **o),
    "apgd": lambda x, f, **o: perturb.apgd(x, f, eps=0.3, steps=12, **o),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def same(a, b):
    for name in ("x", "success", "step", "distance", "loss"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@each_attack
def test_callables_may_write_into_what_they_are_given(attack):
    x, y = batch()

    def grad_fn(z):
        answer = both(y)(z)
        z *= 0
        return answer

    def success(z):
        answer = wrong(y)(z)
        z += 7
        return answer

    same(attack(x, grad_fn, success=success), attack(x, both(y), success=wrong(y)))


@each_attack
def test_callables_may_give_the_same_memory_every_time(attack):
    x, y = batch()
    loss, grad = np.empty(len(x)), np.empty_like(x)

    def grad_fn(z):
        loss[:], grad[:] = both(y)(z)
        return loss, grad

    same(attack(x, grad_fn), attack(x, both(y)))


@each_attack
@pytest.mark.parametrize("targeted", [False, True])
def test_the_loss_is_that_of_the_samples_that_come_back(attack, targeted):
    """Also of samples that succeeded, which no step looks at again."""
    x, y = batch(40)
    y = (y + 1) % 3 if targeted else y
    success = (lambda z: ~wrong(y)(z)) if targeted else wrong(y)
    result = attack(x, both(y), targeted=targeted, success=success)
    assert result.success.any()
    np.testing.assert_allclose(result.loss, losses(result.x, y), rtol=1e-12)
    everything = attack(x, both(y), success=lambda z: (z != x).any(axis=1))  # all at once, after a step
    assert everything.success.all()
    np.testing.assert_allclose(everything.loss, losses(everything.x, y), rtol=1e-12)


def test_a_loss_that_is_never_a_number_is_nan():
    x, y = batch()

    def grad_fn(z):
        loss, grad = both(y)(z)
        loss[2] = np.nan
        return loss, grad

    for attack in ATTACKS.values():
        result = attack(x, grad_fn)
        assert np.isnan(result.loss[2])
        assert np.isfinite(np.delete(result.loss, 2)).all()


def test_only_gradients_that_are_followed_are_counted():
    x, y = batch()

    def grad_fn(z):
        loss, grad = both(y)(z)
        grad[3] = np.nan
        return loss, grad

    result = perturb.pgd(x, grad_fn, eps=0.1, steps=4)
    assert (result.steps, result.nan_count) == (4, 4 * 6)


@each_attack
def test_an_interrupt_keeps_what_was_found(attack):
    x, y = batch()
    calls = []

    def success(z):
        calls.append(np.array(z))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return wrong(y)(z)

    with pytest.raises(KeyboardInterrupt) as e:
        attack(x, lambda z: (losses(z, y), gradient(z, y)), success=success)
    found = e.value.result
    assert found.steps == 1
    assert not found.success.any()

    def grad_fn(z):
        calls.append(np.array(z))
        return gradient(z, y)[len(calls) > 4 :]

    calls.clear()
    with pytest.raises(ValueError, match=r"pgd: grad_fn gave shape \(19, 6\)") as wrong_shape:
        perturb.pgd(x, grad_fn, eps=0.3, step=0.1, success=wrong(y))
    assert wrong_shape.value.result.steps == 4


def test_without_losses_the_last_points_are_kept():
    x, y = batch()
    calls = []

    def grad_fn(z):
        calls.append(np.array(z))
        if len(calls) == 4:
            raise OSError("gone")
        return gradient(z, y)

    with pytest.raises(perturb.AttackError) as e:
        perturb.pgd(x, grad_fn, eps=0.3, step=0.1, success=lambda z: np.zeros(len(z), bool))
    assert np.array_equal(e.value.result.x, calls[-1])
    assert (e.value.result.distance > 0).all()


def test_an_attack_error_comes_out_of_another_process():
    x, _ = batch()
    with pytest.raises(perturb.AttackError) as e:
        perturb.fgsm(x, lambda z: 1 / 0, 0.1)
    again = pickle.loads(pickle.dumps(e.value))
    assert str(again) == str(e.value)
    assert np.array_equal(again.result.x, x)


# --- numbers


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_small_entries_of_a_wide_gradient_keep_their_signs(dtype):
    x = np.zeros((2, 4), dtype)
    g = np.tile([1.0, 1e-9, -1e-12, 0], (2, 1))
    for wide in (g, g.astype(np.float32), g.astype(ml_dtypes.bfloat16)):
        result = perturb.fgsm(x, lambda z, wide=wide: wide, 0.5)
        assert np.array_equal(np.float64(result.x), 0.5 * np.sign(g))


def test_a_bfloat16_gradient_in_float16():
    g = np.array([[1e-10, 1e-11, 0], [1e10, -1e9, 0]]).astype(ml_dtypes.bfloat16)
    result = perturb.fgsm(np.zeros((2, 3), np.float16), lambda z: g, 1.0, norm=2)
    want = perturb.steepest_step(np.zeros((2, 3)), g.astype(np.float64), 1.0, norm=2)
    np.testing.assert_allclose(np.float64(result.x), want, rtol=1e-2)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_distances_of_any_size(scale):
    x = np.zeros((3, 4))
    result = perturb.fgsm(x, lambda z: z + 1, scale, norm=2)
    np.testing.assert_allclose(result.distance, scale, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_what_was_clipped_lies_within_the_bounds(dtype, norm):
    """A bound that the dtype does not have is rounded to it first; the reference does the same."""
    x = np.array([[0.1, 0.9, 0.7], [0.3, 0.9, 0.1]]).astype(dtype)
    for bounds in ((0.1, 0.9), (np.full(3, 0.1), np.full((2, 3), 0.9)), (-1e30, 0.9)):
        with npkernels.checked():
            for y in (x, perturb.project(x + dtype(0.5), x, 9.0, norm=norm, bounds=bounds)):
                perturb.project(y, y, 0.1, norm=norm, bounds=bounds)
                perturb.pgd_step(y, y, y, 0.1, 0.1, norm=norm, bounds=bounds)
                perturb.random_in_ball(y, 0.1, norm=norm, rng=1, bounds=bounds)
        result = perturb.pgd(x, lambda z: -z, eps=0.2, norm=norm, bounds=bounds, steps=3)
        assert (np.float64(result.x) <= np.float64(dtype(0.9))).all()


def test_amounts_of_one_entry():
    """An array of one entry broadcasts, whatever the number of axes."""
    x, g = np.zeros(5, np.float32), np.ones(5, np.float32)
    assert np.array_equal(perturb.sign_step(x, g, np.array([0.5])), np.full(5, 0.5, np.float32))
    assert np.array_equal(perturb.project(x + 2, x, np.array([0.5])), np.full(5, 0.5, np.float32))


def test_apgd_has_one_radius_for_each_sample():
    x, y = batch(3)
    with pytest.raises(
        ValueError, match=r"apgd: eps has shape \(3, 6\); expected one number or one for each"
    ):
        perturb.apgd(x, both(y), eps=np.ones((3, 6)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("norm", [2, 1])
def test_random_starts_are_uniform_in_the_entries_that_may_move(norm, dtype):
    B, d, dims = 4000, 16, np.arange(4000) % 4  # how many entries of a sample may move
    rng = np.random.default_rng(0)
    x, eps = rng.random((B, d)).astype(dtype), np.linspace(0.1, 0.5, B)
    mask = rng.permuted(np.arange(d) < dims[:, None], axis=1)
    starts = []

    def grad_fn(z):
        starts.append(z)
        return np.zeros_like(z)

    perturb.pgd(x, grad_fn, eps=eps, steps=1, norm=norm, mask=mask, random_start=True, rng=0)
    moved = starts[0].astype(np.float64) - x
    assert np.array_equal(moved != 0, mask)
    length = np.linalg.norm(moved, norm, axis=1) / eps
    for k in (1, 2, 3):  # a share r^k of the ball's volume is within r of its radius
        volume = np.sort(length[dims == k] ** k)
        assert np.abs(volume - (np.arange(B // 4) + 0.5) / (B // 4)).max() < 1.95 / np.sqrt(B // 4)
        each = moved[dims == k][mask[dims == k]].reshape(-1, k) / eps[dims == k, None]
        assert (np.abs(each.mean(axis=0)) < 4 * each.std(axis=0) / np.sqrt(len(each))).all()


def test_random_starts_with_a_mask_keep_to_the_bounds():
    x = np.random.default_rng(0).random((50, 3, 4), dtype=np.float32)
    lows = np.zeros((3, 1))
    for norm in ("inf", 2, 1):
        result = perturb.pgd(
            x,
            lambda z: 0 * z,
            eps=0.5,
            steps=1,
            norm=norm,
            bounds=(lows, 1),
            mask=np.eye(3, 4, dtype=bool),
            random_start=True,
            rng=np.random.default_rng(1),
        )
        assert (result.x >= 0).all()
        assert (result.x <= 1).all()
        assert np.array_equal(result.x != x, np.broadcast_to(np.eye(3, 4, dtype=bool), x.shape))
