"""The perturbation family of npkernels.h: the answers of the Python functions, and what else it refuses."""

import ctypes

import numpy as np
import pytest

from c_calls import FLOATS, INF, NAN, arguments_of, compute, expect_refused, normal, same, status_of
from c_library import BAD_DTYPE, BAD_SHAPE, BAD_STRIDES, BAD_VALUE, OK, StepOptions, call, struct
from npkernels import perturb

CODES = {"inf": 0, 1: 1, 2: 2}
STEPS = ("sign_step", "steepest_step", "pgd_step")
BALLS = ("project", "pgd_step", "random_in_ball")


def samples(dtype):
    """x, center and grad (B, 3, 4), strided, with a NaN in the gradient."""
    x, c, g = (normal(6, 4, 5, seed=s) / 4 for s in range(3))
    g[0, 0, 0] = NAN
    x, c, g = (a.astype(dtype).transpose(0, 2, 1)[::2, :3] for a in (x, c.clip(-0.5, 0.5), g))
    return x, c, g


def limits(kind, dtype):
    """(fields of the structure, the bounds in Python) that hold the center."""
    if kind == "none":
        return {}, None
    if kind == "numbers":
        return {"bounded": 1, "low": -0.5, "high": 0.75}, (-0.5, 0.75)
    low, high = np.full((3, 1), -0.5, compute(dtype)), np.linspace(0.5, 1, 4).astype(compute(dtype))
    return {"bounded": 1, "low": -INF, "high": 0.0, "lows": low, "highs": high}, (low, high)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", CODES)
@pytest.mark.parametrize("kind", ["none", "numbers", "arrays"])
def test_steps(norm, kind, dtype):
    x, c, g = samples(dtype)
    fields, bounds = limits(kind, dtype)
    mask = normal(3, 4) > -2
    fields |= {"norm": CODES[norm]}
    options = struct(StepOptions, mask=mask, targeted=1, **fields)
    kwargs = {"norm": norm, "bounds": bounds, "mask": mask}
    y, nans = np.empty(x.shape, dtype), ctypes.c_int64(-1)

    assert call("steepest_step", x, g, 0.25, options, y, ctypes.byref(nans)) == OK
    wanted, count = perturb.steepest_step(x, g, 0.25, targeted=True, return_nan_count=True, **kwargs)
    same(y, wanted)
    assert nans.value == count
    if norm == "inf":
        assert call("sign_step", x, g, 0.25, options, y, None) == OK
        same(y, wanted)
    assert call("pgd_step", x, c, g, 0.25, 0.3, options, y, ctypes.byref(nans)) == OK
    wanted, count = perturb.pgd_step(x, c, g, 0.25, 0.3, targeted=True, return_nan_count=True, **kwargs)
    same(y, wanted)
    assert nans.value == count
    options = struct(StepOptions, mask=mask, **fields)
    assert call("project", x, c, 0.3, options, y) == OK
    same(y, perturb.project(x, c, 0.3, **kwargs))
    kwargs.pop("mask")
    assert call("random_in_ball", c, 0.3, ctypes.c_uint64(2**64 - 1), struct(StepOptions, **fields), y) == OK
    same(y, perturb.random_in_ball(c, 0.3, rng=2**64 - 1, **kwargs))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("norm", CODES)
def test_lengths_of_each_sample_and_entry(norm, dtype):
    x, c, g = samples(dtype)
    lengths, radii = np.array([0.1, 0.0, 0.3]), np.array([0.2, INF, 0.0])
    pairs = [(lengths, radii)]
    if norm == "inf":
        entries = np.linspace(0, 0.3, 12).reshape(1, 3, 4).astype(compute(dtype))
        pairs.append((entries, entries[:, :, :1]))
    y = np.empty(x.shape, dtype)
    for step, eps in pairs:
        only = struct(StepOptions, norm=CODES[norm], step_lengths=step)
        assert call("steepest_step", x, g, NAN, only, y, None) == OK
        same(y, perturb.steepest_step(x, g, step, norm=norm))
        assert (
            call(
                "pgd_step",
                x,
                c,
                g,
                NAN,
                NAN,
                struct(StepOptions, norm=CODES[norm], step_lengths=step, radii=eps),
                y,
                None,
            )
            == OK
        )
        same(y, perturb.pgd_step(x, c, g, step, eps, norm=norm))
        assert call("project", x, c, NAN, struct(StepOptions, norm=CODES[norm], radii=eps), y) == OK
        same(y, perturb.project(x, c, eps, norm=norm))


def test_by_default_and_of_nothing():
    x, g = normal(7), normal(7, seed=1)  # one entry per sample
    y = np.empty_like(x)
    assert call("sign_step", x, g, 0.1, None, y, None) == OK
    same(y, perturb.sign_step(x, g, 0.1))
    assert call("project", x, g, INF, None, y) == OK
    same(y, x)
    for shape in ((0, 3), (3, 0)):
        empty = normal(*shape)
        for norm in (0, 1, 2):
            options = struct(StepOptions, norm=norm, bounded=1, low=0.0, high=1.0)
            assert (
                call("pgd_step", empty, empty.copy(), empty.copy(), 0.1, 0.1, options, empty.copy(), None)
                == OK
            )


@pytest.mark.parametrize("function", [*STEPS, "project", "random_in_ball"])
def test_values_that_mean_nothing(function):
    wrong = {"norm": (-1, 3), "bounded": (-1, 2), "targeted": (-1, 2), "reserved": (1,)}
    if function in BALLS[::2]:
        wrong["targeted"] = (1,)
    for name, values in wrong.items():
        for value in values:
            expect_refused(function, {name: value}, BAD_VALUE)
    nan = np.full(8, NAN, np.float32)
    expect_refused(function, {"low": NAN}, BAD_VALUE)
    expect_refused(function, {"high": NAN}, BAD_VALUE, "low")
    expect_refused(function, {"low": 30.0}, BAD_VALUE)
    expect_refused(function, {"highs": np.full(8, -9.5, np.float32)}, BAD_VALUE)
    expect_refused(function, {"highs": nan}, BAD_VALUE)
    expect_refused(function, {"lows": np.full((3, 1), 30, np.float32), "highs": None}, BAD_VALUE)
    expect_refused(function, {"lows": nan, "highs": None}, BAD_VALUE)
    expect_refused(function, {"highs": nan, "lows": None}, BAD_VALUE)
    lead = "center" if function == "random_in_ball" else "x"
    expect_refused(function, {lead: np.ones((), np.float32)}, BAD_SHAPE)
    if function != "sign_step":
        expect_refused(function, {lead: normal(3)}, BAD_SHAPE)  # the norms 1 and 2 need something behind B


@pytest.mark.parametrize("function", [*STEPS, "project", "random_in_ball"])
def test_lengths_that_mean_nothing(function):
    fits = {"step_lengths": function in STEPS, "radii": function in BALLS}
    number = {"step_lengths": "eps" if function == "sign_step" else "step", "radii": "eps"}
    for name, used in fits.items():
        if not used:
            expect_refused(function, {name: np.ones(3)}, BAD_VALUE)
            continue
        infinite = name == "step_lengths" or function == "random_in_ball"
        for value in (-0.1, NAN) + ((INF,) if infinite else ()):
            expect_refused(function, {name: np.array([0, value, 1])}, BAD_VALUE)
            expect_refused(function, {number[name]: value, name: None}, BAD_VALUE)
            entries = np.array([[0, value, 1, 0, 0, 0, 0, 0]], np.float32)
            if function != "sign_step":
                expect_refused(function, {name: entries}, BAD_SHAPE)  # each entry its own only with norm inf
                expect_refused(function, {"norm": 0, name: entries}, BAD_VALUE, name)
            expect_refused(function, {"norm": 0, name: entries.astype(np.float64)}, BAD_DTYPE, name)
        expect_refused(function, {name: np.ones(6)[::2]}, BAD_STRIDES)


@pytest.mark.parametrize("function", BALLS)
def test_centers_outside_the_bounds(function):
    for value in (20.5, -10, NAN):
        center = arguments_of(function)["center"]
        center[2, 7] = value
        expect_refused(function, {"center": center}, BAD_VALUE)
        arguments = arguments_of(function) | {"center": center, "norm": 0}
        assert status_of(function, arguments) == (OK if function == "pgd_step" else BAD_VALUE)


def test_what_only_some_take():
    expect_refused("sign_step", {"norm": 2}, BAD_VALUE)
    expect_refused("random_in_ball", {"mask": np.ones((3, 8), np.bool_)}, BAD_VALUE)
