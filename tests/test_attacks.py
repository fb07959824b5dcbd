"""The loops over steps: what they reach, what they tell, how they fail, and other libraries' iterates."""

import numpy as np
import pytest

from npkernels import perturb
from test_reference_perturb import size

RNG = np.random.default_rng(0)
W1, W2 = RNG.standard_normal((6, 16)), RNG.standard_normal((16, 3))


def logits(x):
    return np.tanh(np.asarray(x, np.float64) @ W1) @ W2


def losses(x, y):
    f = logits(x)
    shifted = f - f.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), y]


def gradient(x, y):
    h = np.tanh(np.asarray(x, np.float64) @ W1)
    e = np.exp(h @ W2)
    p = e / e.sum(axis=1, keepdims=True)
    p[np.arange(len(x)), y] -= 1
    return ((p @ W2.T) * (1 - h * h)) @ W1.T


def batch(n=20, dtype=np.float64):
    x = np.random.default_rng(1).random((n, 6)).astype(dtype)
    return x, logits(x).argmax(axis=1)


def both(y):
    return lambda x: (losses(x, y), gradient(x, y))


def wrong(y):
    return lambda x: logits(x).argmax(axis=1) != y


def test_the_gradient_of_these_tests_is_right():
    x, y = batch(4)
    for i in range(6):
        h = np.zeros(6)
        h[i] = 1e-6
        np.testing.assert_allclose(
            (losses(x + h, y) - losses(x - h, y)) / 2e-6, gradient(x, y)[:, i], atol=1e-8
        )


@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_fgsm_is_one_step(norm):
    x, y = batch()
    result = perturb.fgsm(x, lambda z: gradient(z, y), 0.1, norm=norm, bounds=(0, 1))
    want = perturb.steepest_step(x, gradient(x, y), 0.1, norm=norm, bounds=(0, 1))
    assert np.array_equal(result.x, want)
    assert result.success is None
    assert result.loss is None
    assert result.steps == 1
    np.testing.assert_allclose(result.distance, size(want - x, norm), atol=1e-15)


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pgd_is_a_loop_of_steps(norm, dtype):
    x, y = batch(dtype=dtype)
    result = perturb.pgd(
        x, lambda z: gradient(z, y).astype(dtype), eps=0.2, step=0.05, steps=7, norm=norm, bounds=(0, 1)
    )
    z = x
    for _ in range(7):
        z = perturb.pgd_step(z, x, gradient(z, y).astype(dtype), 0.05, 0.2, norm=norm, bounds=(0, 1))
    assert np.array_equal(result.x, z)
    assert result.x.dtype == dtype
    assert (losses(result.x, y) > losses(x, y)).all()


def test_momentum_is_followed():
    x, y = batch()
    result = perturb.mi_fgsm(x, lambda z: gradient(z, y), eps=0.2, steps=4)
    z, v = x, np.zeros_like(x)
    for _ in range(4):
        v = perturb.momentum(v, gradient(z, y))
        z = perturb.pgd_step(z, x, v, 0.05, 0.2)
    np.testing.assert_allclose(result.x, z, atol=1e-15)


def test_success_stops_a_sample_where_it_is():
    x, y = batch(50)
    seen = []

    def success(z):
        seen.append(np.array(z))
        return wrong(y)(z)

    result = perturb.pgd(x, lambda z: gradient(z, y), eps=0.5, step=0.05, steps=30, success=success)
    assert np.array_equal(result.success, wrong(y)(result.x))
    assert result.success.sum() > 0
    for b in np.flatnonzero(result.success):
        first = result.step[b]
        assert first >= 1
        assert np.array_equal(seen[first][b], result.x[b])
        assert not wrong(y)(seen[first - 1])[b]
    assert (result.step[~result.success] == -1).all()


def test_a_sample_that_was_never_right_is_left_alone():
    x, y = batch()
    y[0] = (y[0] + 1) % 3
    result = perturb.pgd(x, lambda z: gradient(z, y), eps=0.1, steps=3, success=wrong(y))
    assert result.success[0]
    assert result.step[0] == 0
    assert np.array_equal(result.x[0], x[0])
    everything = perturb.fgsm(x, lambda z: gradient(z, y), 0.1, success=lambda z: np.ones(len(z), bool))
    assert everything.steps == 0
    assert np.array_equal(everything.x, x)


def test_restarts_keep_what_was_best():
    x, y = batch(30)
    one = perturb.pgd(x, both(y), eps=0.3, step=0.1, steps=4, random_start=True, rng=0)
    many = perturb.pgd(x, both(y), eps=0.3, step=0.1, steps=4, random_start=True, restarts=6, rng=0)
    assert (many.loss >= one.loss).all()
    assert (many.loss > one.loss).any()
    np.testing.assert_allclose(many.loss, losses(many.x, y), atol=1e-12)
    assert (size(many.x - x, "inf") <= 0.3 + 1e-12).all()
    again = perturb.pgd(x, both(y), eps=0.3, step=0.1, steps=4, random_start=True, restarts=6, rng=0)
    assert np.array_equal(many.x, again.x)
    flagged = perturb.pgd(x, lambda z: gradient(z, y), eps=0.3, steps=4, restarts=3, success=wrong(y), rng=0)
    assert np.array_equal(flagged.success, wrong(y)(flagged.x))


def test_targeted_attacks_go_down():
    x, y = batch(30)
    goal = (y + 1) % 3
    result = perturb.pgd(x, both(goal), eps=0.5, steps=20, targeted=True, success=lambda z: ~wrong(goal)(z))
    assert (losses(result.x, goal)[~result.success] <= losses(x, goal)[~result.success]).all()
    assert result.success.any()
    assert (logits(result.x).argmax(axis=1) == goal)[result.success].all()


def test_one_radius_for_each_sample_and_masks():
    x, y = batch()
    eps = np.linspace(0, 0.4, len(x))
    mask = np.arange(6) < 3
    for norm in ("inf", 2, 1):
        result = perturb.pgd(x, both(y), eps=eps, steps=5, norm=norm, mask=mask, random_start=True, rng=3)
        assert (result.distance <= eps + 1e-12).all()
        assert np.array_equal(result.x[:, 3:], x[:, 3:])
        assert np.array_equal(result.x[0], x[0])


def apgd_by_hand(x, y, eps, steps, norm):
    """Algorithm 1 of Croce & Hein 2020, sample by sample."""
    points = [0.0, 0.22]
    while points[-1] < 1:
        points.append(points[-1] + max(points[-1] - points[-2] - 0.03, 0.06))
    points = [int(np.ceil(p * steps)) for p in points]
    out = np.empty_like(x)
    for b in range(len(x)):
        c, label = x[b : b + 1], y[b : b + 1]
        eta, now, before, best = 2 * eps, c, c, c
        f_best, rises, last = -np.inf, 0, -np.inf
        kept = (-np.inf, np.inf)
        for k in range(steps):
            f = losses(now, label)[0]
            rises += f > last and k > 0
            last = f
            if f > f_best:
                f_best, best = f, now
            if k in points and k > 0:
                since = k - points[points.index(k) - 1]
                halve = rises < 0.75 * since or (f_best <= kept[0] and eta == kept[1])
                kept, rises = (f_best, eta), 0
                if halve:
                    eta, now, before = eta / 2, best, best
            z = perturb.pgd_step(now, c, gradient(now, label), eta, eps, norm=norm)
            a = 1.0 if k == 0 else 0.75
            moved = perturb.project(now + a * (z - now) + (1 - a) * (now - before), c, eps, norm=norm)
            before, now = now, moved
        if losses(now, label)[0] > f_best:
            best = now
        out[b] = best[0]
    return out


@pytest.mark.parametrize("norm", ["inf", 2])
def test_apgd_is_its_algorithm(norm):
    x, y = batch(12)
    result = perturb.apgd(x, both(y), eps=0.4, steps=40, norm=norm)
    np.testing.assert_allclose(losses(result.x, y), losses(apgd_by_hand(x, y, 0.4, 40, norm), y), rtol=1e-6)
    pgd = perturb.pgd(x, both(y), eps=0.4, step=0.4 / 4, steps=40, norm=norm)
    assert (result.loss >= pgd.loss - 0.01).mean() > 0.8


def test_other_arrays_and_dtypes():
    torch = pytest.importorskip("torch")
    x, y = batch(dtype=np.float32)
    w1, w2 = (torch.tensor(w, dtype=torch.float32) for w in (W1, W2))

    def grad_fn(z):
        assert isinstance(z, torch.Tensor)
        z = z.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(torch.tanh(z @ w1) @ w2, torch.tensor(y), reduction="none")
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    result = perturb.pgd(
        torch.from_numpy(x), grad_fn, eps=0.2, steps=5, success=lambda z: torch.zeros(len(z)) > 0
    )
    assert isinstance(result.x, torch.Tensor)
    assert isinstance(result.success, torch.Tensor)
    want = perturb.pgd(x, both(y), eps=0.2, steps=5)
    np.testing.assert_allclose(result.x.numpy(), want.x, atol=1e-5)


def test_gradients_of_a_wider_dtype_are_not_lost():
    x = np.full((2, 3), 0.5, np.float32)
    g = np.array([[1e-60, -2e-60, 0], [1e60, 1e59, -1e60]])
    for norm in ("inf", 2, 1):
        result = perturb.fgsm(x, lambda z: g, 0.1, norm=norm)
        want = perturb.steepest_step(x.astype(np.float64), g, 0.1, norm=norm)
        np.testing.assert_allclose(result.x, want, atol=1e-7)


def test_nan_gradients_are_counted():
    x, y = batch()

    def grad_fn(z):
        g = gradient(z, y)
        g[3] = np.nan
        return g

    result = perturb.pgd(x, grad_fn, eps=0.1, steps=4)
    assert result.nan_count == 4 * 6
    assert np.array_equal(result.x[3], x[3])


# --- what goes wrong


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mi_fgsm", "apgd"])
def test_refusals(name):
    x, y = batch()
    attack = getattr(perturb, name)

    def refuses(error, words, f=both(y), clean=x, eps=0.1, **options):  # noqa: B008
        before = clean.tobytes() if isinstance(clean, np.ndarray) else None
        with pytest.raises(error, match=rf"^{name}: .*{words}"):
            attack(clean, f, eps=eps, **options)
        assert before is None or clean.tobytes() == before

    refuses(ValueError, "eps", eps=-1)
    refuses(ValueError, "eps", eps=np.ones(3))
    refuses(ValueError, "eps", eps=np.inf)
    refuses(ValueError, "norm", norm=3)
    refuses(ValueError, "bounds", bounds=(1, 0))
    refuses(ValueError, "outside the bounds", bounds=(0.5, 1))
    refuses(TypeError, "grad_fn", f=3)
    refuses(TypeError, "success", success=3)
    refuses(TypeError, "mask", mask=np.ones(6))
    for targeted in (3, "no", None, np.ones(20, bool)):
        refuses(TypeError, "targeted", targeted=targeted)
    refuses(ValueError, r"grad_fn gave shape \(19, 6\); expected \(20, 6\)", f=lambda z: gradient(z, y)[1:])
    refuses(ValueError, "grad_fn", f=lambda z: (losses(z, y)[1:], gradient(z, y)))
    refuses(TypeError, "what grad_fn gave has dtype object", f=lambda z: None)
    refuses(TypeError, "what grad_fn gave has dtype complex128", f=lambda z: 1j * z)
    refuses(ValueError, "success", success=lambda z: np.ones(3, bool))
    refuses(ValueError, "success", success=lambda z: np.ones(20))
    refuses(ValueError, "x has shape", clean=x[0], f=lambda z: z, norm=2)
    if name != "fgsm":
        for steps in (0, -1, 1.5, "3", True):
            refuses(ValueError, "steps", steps=steps)
    if name == "pgd":
        refuses(TypeError, "rng", random_start=True)
        refuses(ValueError, "restarts", restarts=0)
        refuses(ValueError, "restarts need", restarts=2, rng=0, f=lambda z: gradient(z, y))
        refuses(ValueError, "step", step=-1)
    if name == "apgd":
        refuses(ValueError, "losses", f=lambda z: gradient(z, y))
        refuses(ValueError, "norm", norm=1)


def test_what_was_found_before_an_error_is_kept():
    x, y = batch()
    calls = []

    def grad_fn(z):
        calls.append(np.array(z))
        if len(calls) == 8:
            raise RuntimeError("out of memory")
        return gradient(z, y)

    with pytest.raises(
        perturb.AttackError, match=r"pgd: grad_fn raised RuntimeError after 7 steps: out of memory"
    ) as e:
        perturb.pgd(x, grad_fn, eps=0.5, step=0.05, steps=20, success=wrong(y))
    assert isinstance(e.value.__cause__, RuntimeError)
    found = e.value.result
    assert found.steps == 7
    assert np.array_equal(found.success, wrong(y)(found.x))
    assert found.success.any()

    def success(z):
        raise KeyError("no")

    with pytest.raises(perturb.AttackError, match="success raised KeyError after 0 steps") as e:
        perturb.fgsm(x, lambda z: gradient(z, y), 0.1, success=success)
    assert np.array_equal(e.value.result.x, x)


# --- the same gradients in other libraries


def torch_model():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w1 = torch.nn.Parameter(torch.tensor(W1, dtype=torch.float32))
            self.w2 = torch.nn.Parameter(torch.tensor(W2, dtype=torch.float32))

        def forward(self, x):
            return torch.tanh(x @ self.w1) @ self.w2

    model = Net().eval()

    def grad_fn(y):
        labels = torch.tensor(y)

        def grad(z):
            z = torch.tensor(z, requires_grad=True)
            loss = torch.nn.functional.cross_entropy(model(z), labels, reduction="sum")
            return torch.autograd.grad(loss, z)[0].numpy()

        return grad

    return torch, model, grad_fn


def assert_within_ulps(a, b, ulps=2):
    assert (np.abs(np.float64(a) - b) <= ulps * np.spacing(np.maximum(np.abs(a), np.abs(b)))).all()


@pytest.mark.filterwarnings("ignore")
def test_foolbox_has_the_same_iterates():
    foolbox = pytest.importorskip("foolbox")
    torch, model, grad_fn = torch_model()
    x, y = batch(dtype=np.float32)
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    _, theirs, _ = foolbox.attacks.FGSM()(bounded, images, labels, epsilons=0.1)
    assert_within_ulps(perturb.fgsm(x, grad_fn(y), 0.1, bounds=(0, 1)).x, theirs.numpy())
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.03, steps=8, random_start=False)
    _, theirs, _ = attack(bounded, images, labels, epsilons=0.1)
    ours = perturb.pgd(x, grad_fn(y), eps=0.1, step=0.03, steps=8, bounds=(0, 1))
    assert_within_ulps(ours.x, theirs.numpy())
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.1, steps=1, random_start=False)
    _, theirs, _ = attack(bounded, images, labels, epsilons=0.3)
    ours = perturb.pgd(x, grad_fn(y), eps=0.3, step=0.1, steps=1, norm=2, bounds=(0, 1))
    np.testing.assert_allclose(ours.x, theirs.numpy(), atol=2e-7)


@pytest.mark.filterwarnings("ignore")
def test_art_has_the_same_iterates():
    pytest.importorskip("art")
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
    from art.estimators.classification import PyTorchClassifier

    torch, model, grad_fn = torch_model()
    x, y = batch(dtype=np.float32)
    classifier = PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(reduction="sum"), (6,), 3, clip_values=(0, 1), device_type="cpu"
    )
    one_hot = np.eye(3, dtype=np.float32)[y]
    theirs = FastGradientMethod(classifier, eps=0.1).generate(x, one_hot)
    assert_within_ulps(perturb.fgsm(x, grad_fn(y), 0.1, bounds=(0, 1)).x, theirs)
    attack = ProjectedGradientDescentNumpy(classifier, eps=0.1, eps_step=0.03, max_iter=8, verbose=False)
    theirs = attack.generate(x, one_hot)
    assert_within_ulps(perturb.pgd(x, grad_fn(y), eps=0.1, step=0.03, steps=8, bounds=(0, 1)).x, theirs)
