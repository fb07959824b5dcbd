"""Advantages with verl's and TRL's signatures, against what these projects compute, written out."""

import importlib
import itertools
import pathlib
import re
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from npkernels.contrib import art, trl, verl  # noqa: E402

RNG = np.random.default_rng(0)

# --- verl: loops over groups, as its estimators are


def batch(sizes=(4, 4, 3, 1), T=6, levels=3):
    """token_level_rewards with the reward at the last token, response_mask, ids; the groups mixed up."""
    ids = np.repeat([f"question-{i}" for i in range(len(sizes))], sizes).astype(object)
    ids = ids[RNG.permutation(len(ids))]
    lengths = torch.as_tensor(RNG.integers(1, T + 1, len(ids)))
    mask = (torch.arange(T) < lengths[:, None]).to(torch.float32)
    rewards = torch.zeros(len(ids), T)
    rewards[torch.arange(len(ids)), lengths - 1] = torch.as_tensor(
        RNG.integers(0, levels, len(ids)) / 2
    ).float()
    return rewards, mask, ids


def members(ids):
    return [np.flatnonzero(ids == i) for i in dict.fromkeys(ids)]


def by_group(rewards, mask, ids, rule, lone=None):
    """rule maps the scores and lengths of a group to advantages."""
    scores, lengths, result = rewards.sum(-1), mask.sum(-1), torch.zeros(len(ids))
    for group in members(ids):
        s = scores[group]
        result[group] = s if len(group) == 1 and lone == "reward" else rule(s, lengths[group])
    return result


def passk(s, _):
    best, second = torch.topk(s, 2).values
    return torch.where(
        torch.arange(len(s)) == torch.topk(s, 2).indices[0], (best - second) / (s.std() + 1e-6), 0
    )


def whitened(a, mask):
    """Mean 0 and variance 1 over the tokens, with the unbiased variance."""
    n = mask.sum()
    mean = (a * mask).sum() / n
    variance = ((a - mean) ** 2 * mask).sum() / (n - 1)
    return (a - mean) / torch.sqrt(variance + 1e-8) * mask


VERL = {
    "grpo": (lambda s, _: (s - s.mean()) / (s.std() + 1e-6), "reward"),
    "rloo": (lambda s, _: (s - s.mean()) * len(s) / (len(s) - 1), "reward"),
    "opo": (lambda s, n: s - (n * s).sum() / n.sum(), "reward"),
    "reinforce_plus_plus_baseline": (lambda s, _: s - s.mean(), "reward"),
}


@pytest.mark.parametrize("name", VERL)
def test_verl(name):
    for _ in range(5):
        rewards, mask, ids = batch()
        before = rewards.clone()
        rule, lone = VERL[name]
        expected = by_group(rewards, mask, ids, rule, lone)[:, None] * mask
        if name.startswith("reinforce"):
            expected = whitened(expected, mask)
        advantages, returns = verl.estimator(name)(rewards, mask, ids)
        assert advantages.shape == mask.shape
        assert advantages.dtype == rewards.dtype
        torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(advantages, returns)
        assert torch.equal(rewards, before)


def test_verls_pass_at_k():
    rewards, mask, ids = batch(sizes=(4, 5, 2), levels=100)
    expected = by_group(rewards, mask, ids, passk)[:, None] * mask
    torch.testing.assert_close(
        verl.estimator("grpo_passk")(rewards, mask, ids)[0], expected, rtol=1e-5, atol=1e-6
    )


def test_verls_options():
    rewards, mask, ids = batch()
    centred = by_group(rewards, mask, ids, lambda s, _: s - s.mean(), "reward")[:, None] * mask
    f = verl.estimator("grpo")
    torch.testing.assert_close(f(rewards, mask, ids, norm_adv_by_std_in_grpo=False)[0], centred)
    torch.testing.assert_close(f(rewards, mask, ids, config={"norm_adv_by_std_in_grpo": False})[0], centred)
    eps = by_group(rewards, mask, ids, lambda s, _: (s - s.mean()) / (s.std() + 0.5), "reward")
    got = f(rewards, mask, ids, epsilon=0.5, reward_baselines=None)[0]
    for group in members(ids):
        if len(group) == 1:  # verl: mean 0, deviation 1
            eps[group] = rewards.sum(-1)[group] / 1.5
    torch.testing.assert_close(got, eps[:, None] * mask)
    double = f(rewards.double(), mask, torch.arange(len(ids)) % 3)[0]
    assert double.dtype == torch.float64
    assert f(rewards.bfloat16(), mask.bfloat16(), ids)[0].dtype == torch.bfloat16
    equal = f(torch.full((4, 1), 0.1), torch.ones(4, 1), np.zeros(4, int))[0]
    assert torch.equal(equal, torch.zeros(4, 1))


@pytest.mark.parametrize("name", [name for name in verl.ESTIMATORS if name != "grpo_passk"])
def test_nan_is_not_hidden_from_verl(name):
    rewards, mask = torch.tensor([[1.0], [float("nan")], [1.0], [0.0]]), torch.ones(4, 1)
    got = verl.estimator(name)(rewards, mask, np.array([0, 0, 1, 1]))[0]
    assert got[:2].isnan().all()
    assert got[2:].isnan().all() == name.startswith("reinforce")  # which whitens over the batch


def test_register_with_verl(monkeypatch):
    registry = {}

    def register_adv_est(name):
        def decorator(function):
            assert registry.get(name, function) is function, "verl refuses another function of the same name"
            registry[name] = function
            return function

        return decorator

    path = "verl.trainer.ppo.core_algos"
    for name in itertools.accumulate(path.split("."), lambda a, b: f"{a}.{b}"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[path].register_adv_est = register_adv_est
    assert verl.register() == verl.register() == list(registry)
    assert set(registry) == {f"npkernels_{name}" for name in verl.ESTIMATORS}
    rewards, mask, ids = batch()
    called = registry["npkernels_rloo"](
        token_level_rewards=rewards, response_mask=mask, index=ids, config=None
    )
    assert torch.equal(called[0], verl.estimator("rloo")(rewards, mask, ids)[0])


def test_verls_refusals():
    with pytest.raises(ValueError, match=r"verl.estimator: name is 'gae'; expected one of grpo, rloo"):
        verl.estimator("gae")
    with pytest.raises(ValueError, match="response_mask has 1 tokens; expected 2 or more"):
        verl.estimator("reinforce_plus_plus_baseline")(torch.ones(1, 1), torch.ones(1, 1), np.zeros(1, int))


# --- TRL: its formula in its own terms


def nanstd(x, dim, keepdim=False):
    n = (~x.isnan()).sum(dim, keepdim=True).double()
    squares = torch.nanmean((x - torch.nanmean(x, dim, keepdim=True)) ** 2, dim, keepdim=True)
    std = torch.sqrt(squares * torch.where(n > 1, n / (n - 1), torch.nan))
    return std if keepdim else std.squeeze(dim)


def trl_formula(rewards, G, weights=None, scale="group", aggregation="sum_then_normalize"):
    weights = torch.ones(rewards.shape[1]) if weights is None else weights
    nothing = rewards.isnan().all(1)
    if aggregation == "sum_then_normalize":
        r = (rewards * weights).nansum(1)
        r[nothing] = torch.nan
        groups = r.view(-1, G)
        a = groups - torch.nanmean(groups, 1, keepdim=True)
        if scale == "group":
            a = a / (nanstd(groups, 1, True) + 1e-4)
        elif scale == "batch":
            a = a / (nanstd(r, 0) + 1e-4)
        a = a.reshape(-1)
    else:
        each = rewards.view(-1, G, rewards.shape[1])
        z = (each - torch.nanmean(each, 1, keepdim=True)) / (nanstd(each, 1, True) + 1e-4)
        r = (z.reshape(rewards.shape) * weights).nansum(1)
        r[nothing] = torch.nan
        a = (r - torch.nanmean(r)) / (nanstd(r, 0) + 1e-4)
    return torch.nan_to_num(a, nan=0.0)


def trl_rewards(n=5, G=4, F=3, missing=0.3):
    x = torch.as_tensor(RNG.integers(0, 4, (n * G, F)) / 2)
    x[torch.as_tensor(RNG.random(x.shape) < missing)] = torch.nan
    x[1] = torch.nan  # a completion that nothing scores
    x[G : 2 * G] = torch.tensor([1.0, 0.5, torch.nan])[:F]  # a group of equal rewards
    x[2 * G + 1 : 3 * G] = torch.nan  # a group with one scored completion
    return x


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_trl(weights, scale, aggregation):
    for missing in (0.0, 0.3, 0.7):
        rewards = trl_rewards(missing=missing)
        w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        expected = trl_formula(rewards, 4, w, scale, aggregation)
        options = {"num_generations": 4, "reward_weights": w, "scale_rewards": scale}
        got = trl.advantages(rewards, **options, multi_objective_aggregation=aggregation)
        assert isinstance(got, torch.Tensor)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(got[4:8], torch.zeros(4, dtype=got.dtype)) or aggregation == "normalize_then_sum"
        short = trl.advantages(rewards.float(), **options, multi_objective_aggregation=aggregation)
        assert short.dtype == torch.float32
        torch.testing.assert_close(short, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_trl_with_one_generation_and_one_completion(scale):
    for n in (1, 4):
        got = trl.advantages(np.arange(n, dtype=float)[:, None], num_generations=1, scale_rewards=scale)
        assert np.array_equal(got, np.zeros(n))


def test_trls_configuration():
    rewards = trl_rewards()
    config = types.SimpleNamespace(
        num_generations=4,
        reward_weights=[1.0, 2.0, 3.0],
        scale_rewards="batch",
        multi_objective_aggregation=None,
    )
    got = trl.advantages(rewards, config)
    torch.testing.assert_close(got, trl_formula(rewards, 4, torch.tensor([1.0, 2.0, 3.0]), "batch"))
    again = trl.advantages(rewards, config, scale_rewards="none", num_generations=2)
    torch.testing.assert_close(again, trl_formula(rewards, 2, torch.tensor([1.0, 2.0, 3.0]), "none"))
    for flag, scale in ((True, "group"), (False, "none")):
        config.scale_rewards = flag
        expected = trl_formula(rewards, 4, torch.tensor([1.0, 2.0, 3.0]), scale)
        torch.testing.assert_close(trl.advantages(rewards, config), expected)
    numbers = trl.advantages(np.array([[1.0], [0.0]]), num_generations=2)
    np.testing.assert_allclose(numbers, np.array([1, -1]) * 0.5 / (np.sqrt(0.5) + 1e-4))


def test_trls_refusals():
    x = np.ones((4, 1))
    with pytest.raises(TypeError, match=r"trl.advantages: num_generations is missing"):
        trl.advantages(x)
    with pytest.raises(
        ValueError, match=r"trl.advantages: scale_rewards is 'all'; expected one of 'group', 'batch'"
    ):
        trl.advantages(x, num_generations=2, scale_rewards="all")
    with pytest.raises(ValueError, match=r"trl.advantages: multi_objective_aggregation is 'sum'"):
        trl.advantages(x, num_generations=2, multi_objective_aggregation="sum")
    with pytest.raises(
        ValueError, match=r"trl.advantages: rewards_per_func has shape \(4,\); expected \(B, F\)"
    ):
        trl.advantages(x[:, 0], num_generations=2)
    for bad in (3, 0, -2, 2.5, "2", True):
        with pytest.raises(
            ValueError, match=f"trl.advantages: num_generations is {bad!r}; expected an integer"
        ):
            trl.advantages(x, num_generations=bad)


def test_trls_part_of_the_page_runs():
    page = pathlib.Path(__file__).parents[1] / "docs" / "contrib.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(next(block for block in blocks if "trl.advantages" in block), names)
    np.testing.assert_allclose(
        names["a"], trl_formula(torch.as_tensor(names["rewards"]), 2, torch.tensor([1, 0.5]))
    )


@pytest.mark.parametrize(("module", "name"), [("art", "FastGradientMethod"), ("foolbox", "LinfPGD")])
def test_hooks_name_what_they_have(module, name):
    hook = importlib.import_module(f"npkernels.contrib.{module}")
    assert name in hook.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hook.nothing  # noqa: B018


# --- ART: what its arrays of radii mean; its own attacks are in test_contrib_attacks.py


@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (6, 1), (6, 6)])
def test_arts_radii_broadcast_as_numpys_arrays(shape):
    x, away = RNG.random((6, 6)).astype(np.float32), RNG.random((6, 6)).astype(np.float32)
    eps = RNG.uniform(0.1, 0.3, shape).astype(np.float32)

    class Attack(art._Fused):
        norm, targeted, batch_size = np.inf, False, 4
        estimator = types.SimpleNamespace(clip_values=None, loss_gradient=lambda x, y: x - y)

    for project in (True, False):
        got = Attack()._compute(x, x, away, None, eps, 2 * eps, project, False)
        np.testing.assert_allclose(
            got, x + (1 if project else 2) * eps * np.sign(x - away), rtol=0, atol=1e-6
        )
