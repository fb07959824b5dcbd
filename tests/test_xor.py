"""examples/xor: the truth table, the constants in their order, the shortest ways over the border."""

import numpy as np
import pytest

from central_differences import numeric_vjp
from xor import __main__ as demo
from xor.network import CORNERS, XOR, Smooth, lipschitz_constant, step_perceptron, train


def test_the_step_perceptron_is_exclusive_or():
    assert np.array_equal(step_perceptron(CORNERS), XOR)


def test_the_twin_learns_it_and_its_gradients_are_right():
    net = train()
    np.testing.assert_allclose(net(CORNERS), XOR, atol=0.05)
    for x in CORNERS:
        np.testing.assert_allclose(
            net.gradient(x[None])[0], numeric_vjp(net, x[None], np.ones(1))[0], atol=1e-8
        )
    rng = np.random.default_rng(1)
    before = [rng.standard_normal(s) for s in ((2, 2), (2,), (2,))]

    def loss(w1, b1, w2, b2):
        return ((Smooth(w1, b1, w2, b2)(CORNERS) - XOR) ** 2).mean() / 2

    small = Smooth(*[p.copy() for p in before], 0.3)
    assert small.descend(CORNERS, XOR, 1.0) == pytest.approx(loss(*before, 0.3))
    for i, name in enumerate(("w1", "b1", "w2")):
        stepped = before[i] - getattr(small, name)
        for place in np.ndindex(stepped.shape):
            ends = []
            for h in (1e-6, -1e-6):
                moved = [p.copy() for p in before]
                moved[i][place] += h
                ends.append(loss(*moved, 0.3))
            assert stepped[place] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-7)


def test_the_constant_is_exact():
    for net in (train(), train(seed=5)):
        exact, far = lipschitz_constant(net)
        assert np.linalg.norm(net.gradient(far[None])) == pytest.approx(exact, rel=1e-9)
        points = (
            np.random.default_rng(2).standard_normal((200_000, 2)) * np.geomspace(0.1, 1e4, 200_000)[:, None]
        )
        assert np.linalg.norm(net.gradient(points), axis=1).max() <= exact * (1 + 1e-12)


def test_lower_bounds_exact_constant_and_upper_bound_are_in_order():
    found = demo.constants(train())
    exact, product = found["Lipschitz constant, exact"], found["product of layers, upper"]
    near = found["largest gradient on the picture (grid)"]
    secants, climbed = (found[f"{kind} secants at the corners, lower"] for kind in ("random", "climbing"))
    assert 0.5 * near < secants <= climbed * 1.02
    assert climbed <= near * (1 + 1e-6)
    assert near <= exact <= product
    assert found["CLEVER at the corners, estimate"] <= exact * 1.05


def test_each_corner_finds_the_border():
    net = train()
    result = demo.attack(net)
    assert result.success.all()
    assert ((net(result.x) > 0.5) != (XOR > 0.5)).all()
    assert (result.distance < 0.8).all()
    nearer = CORNERS + 0.95 * (result.x - CORNERS)
    assert ((net(nearer) > 0.5) == (XOR > 0.5)).all()


def test_the_demo_runs(capsys, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    assert demo.main(["--figure", str(tmp_path / "xor.png")]) == 0
    text = capsys.readouterr().out
    assert "product of layers, upper" in text
    assert (tmp_path / "xor.png").stat().st_size > 5000
