"""ART's and Foolbox's attacks with the steps of `npkernels.perturb`: the iterates of their own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
foolbox = pytest.importorskip("foolbox")
art_classes = pytest.importorskip("art.estimators.classification")

from art.attacks import evasion  # noqa: E402

from npkernels.contrib import art as with_art  # noqa: E402
from npkernels.contrib import foolbox as with_foolbox  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of these projects


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).eval()


@pytest.fixture(scope="module")
def samples(network):
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    return x, network(x).argmax(1)


FOOLBOX = {
    "FGSM": {},
    "FGM": {},
    "LinfPGD": {"abs_stepsize": 0.03, "steps": 8, "random_start": False},
    "L2PGD": {"rel_stepsize": 0.3, "steps": 4, "random_start": False},
}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", FOOLBOX)
def test_foolbox(network, samples, name, targeted):
    x, y = samples
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    goal = foolbox.criteria.TargetedMisclassification((y + 1) % 3) if targeted else y
    if targeted and name in ("FGSM", "FGM"):
        goal = y  # Foolbox's own have no targets
    own, fused = (getattr(place, name)(**FOOLBOX[name]) for place in (foolbox.attacks, with_foolbox))
    _, theirs, _ = own(model, x, goal, epsilons=0.1)
    _, ours, success = fused(model, x, goal, epsilons=0.1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 if name == "L2PGD" else 1e-6)
    assert isinstance(fused, type(own))
    assert success.shape == (20,)


@pytest.mark.parametrize(("name", "norm"), [("LinfPGD", np.inf), ("L2PGD", 2)])
def test_foolbox_with_a_random_start(network, samples, name, norm):
    x, y = samples
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = getattr(with_foolbox, name)(steps=3, random_start=True)

    def run(seed):
        torch.manual_seed(seed)
        return attack(model, x, y, epsilons=0.2)[1]

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.linalg.vector_norm(first - x, norm, dim=1).max() <= 0.2 + 1e-6
    assert first.min() >= 0
    assert first.max() <= 1
    with pytest.raises(TypeError):
        attack.run(model, x, y, epsilon=0.2, unknown=1)
    with pytest.raises(ValueError, match="expected Misclassification or TargetedMisclassification"):
        attack.run(
            model, x, foolbox.criteria.Misclassification(y) & foolbox.criteria.Misclassification(y), epsilon=1
        )


def classifier(network, clip_values=(0, 1)):
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    return art_classes.PyTorchClassifier(network, loss, (6,), 3, clip_values=clip_values, device_type="cpu")


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", [np.inf, 2, "inf"])
@pytest.mark.parametrize("name", ["fgm", "pgd", "momentum"])
def test_art(network, samples, name, norm, targeted):
    x, y = (t.numpy() for t in samples)
    labels = np.eye(3, dtype=np.float32)[(y + targeted) % 3]
    eps = 0.1 if norm in (np.inf, "inf") else 0.3
    options = {"norm": norm, "eps": eps, "targeted": targeted, "batch_size": 7}
    if name == "fgm":
        own, fused = evasion.FastGradientMethod, with_art.FastGradientMethod
    else:
        own, fused = evasion.ProjectedGradientDescentNumpy, with_art.ProjectedGradientDescent
        options |= {"eps_step": eps / 4, "max_iter": 6, "verbose": False}
        options |= {"decay": 0.9} if name == "momentum" else {}
    # by norm 2 it matters that ART clips first and projects then
    net = classifier(network, None if norm == 2 else (0, 1))
    theirs = own(net, **options).generate(x, labels)
    ours = fused(net, **options).generate(x, labels)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 if norm == 2 else 1e-6)
    mask = np.tile([1.0, 0.0, 1.0], 2).astype(np.float32)
    masked = fused(net, **options).generate(x, labels, mask=mask)
    np.testing.assert_array_equal(masked[:, mask == 0], x[:, mask == 0])
    np.testing.assert_allclose(masked, own(net, **options).generate(x, labels, mask=mask), rtol=0, atol=1e-5)


def test_art_with_a_radius_of_each_sample_norm_1_and_random_starts(network, samples):
    x, y = (t.numpy() for t in samples)
    labels, net = np.eye(3, dtype=np.float32)[y], classifier(network)
    radius = np.linspace(0.05, 0.4, 20, dtype=np.float32).reshape(20, 1)
    for norm in (np.inf, 2):
        options = {
            "norm": norm,
            "eps": radius,
            "eps_step": radius / 3,
            "max_iter": 5,
            "verbose": False,
        }
        free = classifier(network, None)
        ours, theirs = (
            kind(free, **options).generate(x, labels)
            for kind in (with_art.ProjectedGradientDescent, evasion.ProjectedGradientDescentNumpy)
        )
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    each = np.linspace(0.05, 0.2, 6, dtype=np.float32)  # of each entry, for all samples
    options = {"eps": each, "eps_step": each / 3, "max_iter": 5, "verbose": False}
    for n in (20, 6):  # more samples than entries, and as many
        ours, theirs = (
            kind(classifier(network, None), **options).generate(x[:n], labels[:n])
            for kind in (with_art.ProjectedGradientDescent, evasion.ProjectedGradientDescentNumpy)
        )
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for norm in (1, 2, np.inf):
        attack = with_art.ProjectedGradientDescent(
            net, norm=norm, eps=0.3, eps_step=0.1, max_iter=3, num_random_init=2, verbose=False
        )
        np.random.seed(0)  # noqa: NPY002
        first = attack.generate(x, labels)
        np.random.seed(0)  # noqa: NPY002
        assert np.array_equal(attack.generate(x, labels), first)
        assert np.linalg.norm(first - x, norm, axis=1).max() <= 0.3 + 1e-6
        assert first.min() >= 0
        assert first.max() <= 1
