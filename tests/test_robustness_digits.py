"""examples/robustness: the table of the known split and network within 0.03, and what adversarial training gains."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from npkernels import perturb
from robustness import __main__ as demo
from robustness.digits import accuracy, load, train, train_adversarially

KNOWN = {
    "FGSM": (0.828, 0.460, 0.128, 0.006),
    "PGD": (0.820, 0.416, 0.070, 0.0),
    "random sign": (0.980, 0.968, 0.948, 0.910),
}


@pytest.fixture(scope="module")
def data():
    return load()


@pytest.fixture(scope="module")
def model(data):
    return train(data)


def test_accuracy_under_attack(data, model):
    assert accuracy(model, data.x_test, data.y_test) == pytest.approx(0.984, abs=0.03)
    for i, eps in enumerate(demo.EPS):
        for attack, got in demo.under_attack(model, data, eps).items():
            assert got == pytest.approx(KNOWN[attack][i], abs=0.03), (attack, eps)


def test_the_loss_is_steep_where_the_attack_looks(data, model):
    found = demo.reports(model, data, n=60)
    assert found["loss"].ratio("adversarial", "random") > 10
    assert found["loss"].ratio("adversarial") > 100
    assert 0.5 < found["logits"].ratio("normal", "tangent") < 2  # chance directions; the worst ones differ:
    assert 1.2 < demo.sigma_ratio(model, data, n=20) < 3.5


def test_adversarial_training_pays(data, model):
    robust = train_adversarially(data)
    before, after = (demo.under_attack(m, data, 0.1)["PGD"] for m in (model, robust))
    assert before < 0.5
    assert after > 0.8
    assert accuracy(robust, data.x_test, data.y_test) > 0.93


def test_each_norm_stays_in_its_ball(data, model):
    for norm, eps, left, distance in demo.by_norm(model, data):
        assert 0 <= left < 0.9, norm
        assert 0 < distance <= eps + 1e-9


def test_pictures(data, model, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    demo.draw_split(model, data, tmp_path / "split.png")
    demo.draw_reports(demo.reports(model, data, n=10), tmp_path / "anisotropy.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("split", "anisotropy"))
    assert np.isfinite(perturb.sklearn_gradient(model).logits(data.x_test)).all()
