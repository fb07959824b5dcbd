"""Every argument of the steps and projections, wrong in every way: refused by name, before anything is written."""

import inspect
import re

import numpy as np
import pytest

from npkernels import perturb, reference

INF, NAN = np.inf, np.nan
NAMES = perturb.__all__
ATTACKS = [n for n in NAMES if n not in reference.perturb.__all__]
KERNELS = reference.perturb.__all__


def arguments(name, dtype=np.float32, shape=(5, 19)):
    rng = np.random.default_rng(0)
    arrays = {key: rng.random(shape).astype(dtype) for key in ("x", "center", "grad", "velocity")}
    given = {**arrays, "eps": 0.25, "step": 0.1, "rng": 0}
    parameters = inspect.signature(getattr(perturb, name)).parameters
    return {key: value for key, value in given.items() if key in parameters}


def having(parameter):
    return [n for n in KERNELS if parameter in inspect.signature(getattr(perturb, n)).parameters]


def refuses(error, name, argument, **changed):
    """The call raises; the message names function and argument; inputs and `out` keep their bits."""
    args = {"out": np.full((5, 19), 7, np.float32), **arguments(name), **changed}
    before = [a.tobytes() for a in args.values() if isinstance(a, np.ndarray)]
    with pytest.raises(error) as caught:
        getattr(perturb, name)(**args)
    message = str(caught.value)
    assert message.startswith(f"{name}: "), message
    assert re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message), message
    assert [a.tobytes() for a in args.values() if isinstance(a, np.ndarray)] == before
    return message


ARRAYS = [(n, key) for n in KERNELS for key, v in arguments(n).items() if isinstance(v, np.ndarray)]


@pytest.mark.parametrize(("name", "key"), ARRAYS)
def test_arrays(name, key):
    wrong = [
        np.ones((5, 19), complex),
        np.ones((5, 19), object),
        np.full((5, 19), "1"),
        "hello",
        None,
        {"a": 1},
    ]
    wrong += [np.ones((5, 19), np.longdouble), np.ma.masked_array(np.ones((5, 19)), mask=True)]
    for bad in wrong:
        refuses(TypeError, name, key, **{key: bad})
    refuses(ValueError, name, key, **{key: [[1.0, 2.0], [3.0]]})


@pytest.mark.parametrize(
    ("name", "key"), [(n, k) for n, k in ARRAYS if k in ("center", "grad") and n != "random_in_ball"]
)
def test_shapes_and_dtypes_agree(name, key):
    for shape in ((5, 18), (4, 19), (19,), (5, 1), (1, 5, 19)):
        message = refuses(ValueError, name, key, **{key: np.ones(shape, np.float32)})
        assert str(shape) in message
    for dtype in (np.float64, np.float16):
        refuses(TypeError, name, key, **{key: np.ones((5, 19), dtype)})


@pytest.mark.parametrize("name", having("norm"))
def test_norms(name):
    for norm in (0, 3, "1", "L2", "l1", None, True, -INF, NAN, [2], "linf", 1.5, np.array([1, 2])):
        refuses(ValueError, name, "norm", norm=norm)


@pytest.mark.parametrize("name", having("targeted"))
def test_targeted(name):
    for bad in (1, "yes", None, np.array([True] * 5)):
        refuses(TypeError, name, "targeted", targeted=bad)
    args = arguments(name)
    plain, numpy = (getattr(perturb, name)(**args, targeted=flag) for flag in (True, np.True_))
    assert np.array_equal(plain, numpy)


@pytest.mark.parametrize("name", having("eps") + having("step"))
def test_lengths(name):
    keys = [k for k in ("eps", "step") if k in arguments(name)]
    for key in keys:
        for bad in (-1, -1e-300, NAN, np.float32(-2), [1, 1, -1, 1, 1], [1, 1, NAN, 1, 1]):
            refuses(ValueError, name, key, **{key: bad})
        for bad in ("1", None, 1j, np.ones(5, complex), "x"):
            refuses(TypeError, name, key, **{key: bad})
        for bad in (np.ones(4), np.ones((5, 18)), np.ones((1, 5, 19)), np.ones((0,))):
            refuses(ValueError, name, key, **{key: bad})
        if "norm" in inspect.signature(getattr(perturb, name)).parameters:
            message = refuses(ValueError, name, key, norm=2, **{key: np.ones((5, 19))})
            assert "sample" in message
        if key == "step" or name in ("sign_step", "random_in_ball"):
            refuses(ValueError, name, key, **{key: INF})
            refuses(ValueError, name, key, **{key: [1, 1, 1, 1, INF]})


@pytest.mark.parametrize("name", having("bounds"))
def test_bounds(name):
    for bad in (0.5, "01", (0,), (0, 1, 2), {0, 1}):
        refuses(TypeError, name, "bounds", bounds=bad)
    for bad in ((1, 0), (NAN, 1), (0, NAN), (np.full(19, 0.5), 0.4), (0, -np.ones((5, 1)))):
        refuses(ValueError, name, "bounds", bounds=bad)
    for bad in ((np.zeros(18), 1), (0, np.ones((4, 19))), (0, np.ones((1, 5, 19)))):
        refuses(ValueError, name, f"bounds[{0 if isinstance(bad[0], np.ndarray) else 1}", bounds=bad)
    refuses(TypeError, name, "bounds[0", bounds=(np.zeros(19, complex), 1))
    refuses(TypeError, name, "bounds[1", bounds=(0, None))


@pytest.mark.parametrize("name", having("center"))
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_a_center_outside_the_bounds(name, norm):
    if name == "pgd_step" and norm == "inf":  # not looked for in the one pass; the bounds come last
        x = np.full((5, 19), 3, np.float32)
        y = perturb.pgd_step(x, x, x, 0.1, 0.25, bounds=(0, 1))
        assert np.array_equal(y, np.ones_like(x))
        return
    for place in ((0, 0), (4, 18), (2, 9)):
        center = np.full((5, 19), 0.5, np.float32)
        for bad in (1.5, -0.5, NAN):
            center[place] = bad
            refuses(ValueError, name, "center", center=center, norm=norm, bounds=(0, 1))
            refuses(
                ValueError, name, "center", center=center, norm=norm, bounds=(np.zeros(19), np.ones((5, 1)))
            )


@pytest.mark.parametrize("name", having("mask"))
def test_masks(name):
    refuses(TypeError, name, "mask", mask=np.ones(19, np.int8))
    refuses(TypeError, name, "mask", mask="yes")
    refuses(ValueError, name, "mask", mask=np.ones(18, bool))
    refuses(ValueError, name, "mask", mask=np.ones((1, 5, 19), bool))


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "sign_step"])
def test_one_sample_without_its_axis(name):
    one = {k: v[0] for k, v in arguments(name).items() if isinstance(v, np.ndarray)}
    norm = {"norm": 2} if name in having("norm") else {}
    first = next(key for key in inspect.signature(getattr(perturb, name)).parameters if key in one)
    message = refuses(ValueError, name, first, **one, **norm, out=None)
    assert "[None]" in message


def test_momentum_and_decay():
    for decay in (-0.1, NAN, INF):
        refuses(ValueError, "momentum", "decay", decay=decay)
        refuses(ValueError, "pgd_step", "decay", decay=decay, momentum=np.zeros((5, 19), np.float32))
    refuses(TypeError, "momentum", "decay", decay="1")
    name = "pgd_step"
    read_only = np.zeros((5, 19), np.float32)
    read_only.flags.writeable = False
    slid = np.lib.stride_tricks.as_strided(np.zeros(24, np.float32), (5, 19), (4, 4))
    for bad in (np.zeros((5, 18), np.float32), np.zeros((5, 19)), read_only, slid):
        refuses(ValueError, name, "momentum", momentum=bad)
    refuses(TypeError, name, "momentum", momentum=[[0.0]])
    x = arguments(name)["x"]
    refuses(ValueError, name, "momentum", x=x, momentum=x)


def test_random_keys():
    for bad in (-1, 2**64):
        refuses(ValueError, "random_in_ball", "rng", rng=bad)
    for bad in (None, 1.0, "0", True, np.random.RandomState(0)):
        refuses(TypeError, "random_in_ball", "rng", rng=bad)


@pytest.mark.parametrize("name", having("out"))
def test_out(name):
    good = np.zeros((5, 19), np.float32)
    read_only = good.copy()
    read_only.flags.writeable = False
    stretched = np.lib.stride_tricks.as_strided(good, good.shape, (0, 4))
    for error, bad in [
        (ValueError, good[1:]),
        (ValueError, good[None]),
        (TypeError, good.astype(np.float64)),
        (TypeError, good.astype(">f4")),
        (TypeError, good.tolist()),
        (ValueError, read_only),
        (ValueError, stretched),
    ]:
        refuses(error, name, "out", out=bad)


@pytest.mark.parametrize(("name", "key"), ARRAYS)
def test_out_that_overlaps(name, key):
    block = np.zeros(5 * 19 + 1, np.float32)
    inside, out = block[1:].reshape(5, 19), block[:-1].reshape(5, 19)
    refuses(ValueError, name, "out", **{key: inside}, out=out)


@pytest.mark.parametrize("name", having("mask"))
def test_out_that_overlaps_an_option(name):
    block = np.zeros((5, 19), np.float32)
    refuses(ValueError, name, "out", mask=block.view(np.uint8)[:, :19].view(bool), out=block)
    if name in having("bounds"):
        refuses(ValueError, name, "out", bounds=(block, 1), out=block)
