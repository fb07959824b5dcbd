"""Bad input of the GRPO family: the error names function and argument, and nothing has been written."""

import re

import numpy as np
import pytest

import npkernels as nk

NAN, INF = np.nan, np.inf
LP = np.full((2, 3), -1.0)
A = np.ones(2)
LOGITS = np.zeros((2, 3, 4))
IDS = np.zeros((2, 3), int)
R = np.arange(6.0)
GOOD = {
    "group_advantages": {"rewards": R, "groups": 3},
    "group_stats": {"rewards": R, "groups": 3},
    "merge_group_stats": {"a": nk.group_stats(R, 3), "b": nk.group_stats(R, 2)},
    "advantages_from_stats": {"rewards": R, "groups": 3, "stats": nk.group_stats(R, 3)},
    "policy_loss": {"logp": LP, "old_logp": LP, "advantages": A, "mask": None},
    "token_policy_loss": {"logits": LOGITS, "ids": IDS, "old_logp": LP, "advantages": A, "mask": None},
    "kl_divergence": {"logp": LP, "ref_logp": LP},
    "discounted_returns": {"rewards": LP, "gamma": 0.9},
    "gae": {"rewards": LP, "values": LP, "gamma": 0.9, "lam": 0.9},
    "pass_at_k": {"n": 8, "c": 3, "k": 4},
    "sample": {"logits": LP, "rng": 0},
    "beam_step": {"log_probs": LP, "scores": A, "beam_width": 2},
}
READ_ONLY = np.zeros((2, 3))
READ_ONLY.flags.writeable = False
NOT_NUMBERS = [np.ones((2, 3), complex), np.full((2, 3), "a"), np.ones((2, 3), np.longdouble), "x", {"a": 1}]
MASKS = [
    ({"mask": np.ones((2, 3)) * 2}, ValueError),
    ({"mask": np.full((2, 3), NAN)}, ValueError),
    ({"mask": np.full((2, 3), -1)}, ValueError),
    ({"mask": np.ones((2, 2), bool)}, ValueError),
    ({"mask": np.ones(3, bool)}, ValueError),
    ({"mask": np.full((2, 3), "x")}, TypeError),
]
POLICY = [
    *MASKS,
    ({"loss": "reinforce"}, ValueError),
    ({"loss": None}, ValueError),
    ({"level": "batch"}, ValueError),
    ({"level": "token", "loss": "gmpo"}, ValueError),
    ({"level": "sequence", "loss": "gpg"}, ValueError),
    ({"aggregate": "mean"}, ValueError),
    ({"clip": 0.2}, TypeError),
    ({"clip": (0.2,)}, TypeError),
    ({"clip": (-0.1, 0.2)}, ValueError),
    ({"clip": (0.2, NAN)}, ValueError),
    ({"clip": ("a", 1)}, TypeError),
    ({"kl": "k4"}, ValueError),
    ({"beta": 0.1}, ValueError),
    ({"beta": "x"}, TypeError),
    ({"beta": INF, "ref_logp": LP}, ValueError),
    ({"kl_clamp": (1, -1)}, ValueError),
    ({"dual_clip": 0.5}, ValueError),
    ({"dual_clip": 3.0, "loss": "sapo"}, ValueError),
    ({"delta": -1.0}, ValueError),
    ({"delta": 2.0, "loss": "gpg"}, ValueError),
    ({"tau": (1.0, 1.0)}, ValueError),
    ({"tau": (0.0, 1.0), "loss": "sapo"}, ValueError),
    ({"max_length": 5}, ValueError),
    ({"max_length": 0, "loss": "dr_grpo"}, ValueError),
    ({"total_tokens": 5.0}, ValueError),
    ({"total_tokens": -5.0, "loss": "dapo"}, ValueError),
    ({"importance": ("token-mask", 2.0)}, ValueError),
    ({"importance": ("mask", 2.0), "sampler_logp": LP}, ValueError),
    ({"importance": ("token-mask", -2.0), "sampler_logp": LP}, ValueError),
    ({"importance": "token-mask", "sampler_logp": LP}, TypeError),
    ({"sampler_logp": LP[:1]}, ValueError),
    ({"ref_logp": LP[:, :2]}, ValueError),
    ({"old_logp": LP[:1]}, ValueError),
    ({"advantages": np.ones(3)}, ValueError),
    ({"advantages": np.ones((3, 2))}, ValueError),
    ({"advantages": np.ones(2, complex)}, TypeError),
    ({"cu_seqlens": [0, 6]}, ValueError),
    ({"out": np.zeros(3)}, ValueError),
    ({"out": READ_ONLY}, ValueError),
    ({"out": [1, 2]}, TypeError),
]
OUT = [
    ({"out": np.zeros((2, 4))}, ValueError),
    ({"out": np.zeros((2, 3), np.float32)}, TypeError),
    ({"out": READ_ONLY}, ValueError),
    ({"out": LP}, ValueError),
]
SEQUENCES = [
    ({"cu_seqlens": [1, 6], "rewards": LP.ravel()}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": [0, 5], "rewards": LP.ravel()}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": [0, 4, 2, 6], "rewards": LP.ravel()}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": [[0, 6]], "rewards": LP.ravel()}, ValueError, "cu_seqlens"),
    ({"cu_seqlens": [0.0, 6.0], "rewards": LP.ravel()}, TypeError, "cu_seqlens"),
    ({"gamma": np.ones(3)}, ValueError, "gamma"),
    ({"gamma": "x"}, TypeError, "gamma"),
    ({"last_value": np.ones((2, 3))}, ValueError, "last_value"),
]
CASES = [
    *((name, o, e, "groups") for name in ("group_advantages", "group_stats", "advantages_from_stats") for o, e in [
        ({"groups": -3}, ValueError), ({"groups": 0}, ValueError), ({"groups": 4}, ValueError),
        ({"groups": True}, ValueError), ({"groups": 2.0}, ValueError), ({"groups": np.ones(6)}, TypeError),
        ({"groups": np.zeros(5, int)}, ValueError), ({"groups": [["a"], ["b", "c"]]}, ValueError),
        ({"groups": np.array([[], [], [], [], [], {}], object)[:, None]}, ValueError),
    ]),
    *((name, {"rewards": x}, TypeError, "rewards") for name in GOOD if "rewards" in GOOD[name] for x in NOT_NUMBERS),
    *((name, {"rewards": x}, ValueError, "rewards") for name in ("group_advantages", "advantages_from_stats")
      for x in ([1, 2, 3, INF, 5, 6], [1, 2, 3, -INF, 5, 6])),
    ("group_advantages", {"rewards": [[1.0, INF]] * 6}, ValueError, "rewards"),
    ("group_advantages", {"rewards": np.ones((6, 1, 1))}, ValueError, "rewards"),
    ("group_stats", {"rewards": R * 1e151}, ValueError, "rewards"),
    ("group_stats", {"rewards": np.full(6, INF)}, ValueError, "rewards"),
    ("group_advantages", {"preset": "ppo"}, ValueError, "preset"),
    ("group_advantages", {"preset": 3}, ValueError, "preset"),
    ("group_advantages", {"baseline": "median"}, ValueError, "baseline"),
    ("group_advantages", {"scale": "std"}, ValueError, "scale"),
    ("group_advantages", {"scale": "group", "preset": "gdpo"}, ValueError, "scale"),
    ("group_advantages", {"ddof": 2}, ValueError, "ddof"),
    ("group_advantages", {"eps": -1e-4}, ValueError, "eps"),
    ("group_advantages", {"eps": NAN}, ValueError, "eps"),
    ("group_advantages", {"eps": "x"}, TypeError, "eps"),
    ("group_advantages", {"weights": [1.0, 2.0]}, ValueError, "weights"),
    ("group_advantages", {"rewards": np.ones((6, 2)), "weights": [1.0]}, ValueError, "weights"),
    ("group_advantages", {"rewards": np.ones((6, 2)), "weights": [1.0, NAN]}, ValueError, "weights"),
    ("group_advantages", {"lengths": [1] * 6}, ValueError, "lengths"),
    ("group_advantages", {"preset": "opo"}, ValueError, "lengths"),
    ("group_advantages", {"preset": "opo", "lengths": [1] * 5}, ValueError, "lengths"),
    ("group_advantages", {"preset": "opo", "lengths": [-1] * 6}, ValueError, "lengths"),
    ("group_advantages", {"preset": "opo", "lengths": [1.0] * 6}, TypeError, "lengths"),
    ("group_advantages", {"k": 2}, ValueError, "k"),
    ("group_advantages", {"preset": "pass@k", "k": 0}, ValueError, "k"),
    ("group_advantages", {"preset": "pass@k", "k": 4}, ValueError, "groups"),
    ("group_advantages", {"preset": "pass@k", "groups": 1}, ValueError, "groups"),
    ("advantages_from_stats", {"preset": "gdpo"}, ValueError, "preset"),
    ("advantages_from_stats", {"groups": [0, 0, 0, 9, 9, 9]}, ValueError, "groups"),
    ("advantages_from_stats", {"stats": 3}, TypeError, "stats"),
    ("advantages_from_stats", {"stats": (np.arange(2), np.zeros((2, 4)))}, ValueError, "stats"),
    ("merge_group_stats", {"a": np.zeros((2, 5))[:1]}, TypeError, "a"),
    ("merge_group_stats", {"b": (np.arange(3), np.zeros((2, 5)))}, ValueError, "b"),
    *((name, o, e, next(iter(o))) for name in ("policy_loss", "token_policy_loss") for o, e in POLICY),
    ("policy_loss", {"logp": LP.ravel()}, ValueError, "logp"),
    ("policy_loss", {"entropy": LP[:1]}, ValueError, "entropy"),
    ("policy_loss", {"out": LP}, ValueError, "out"),
    ("policy_loss", {"out": np.zeros((2, 3)), "return_grad": False}, ValueError, "out"),
    ("token_policy_loss", {"ids": IDS[:1]}, ValueError, "ids"),
    ("token_policy_loss", {"ids": IDS + 4}, IndexError, "ids"),
    ("token_policy_loss", {"ids": IDS - 1}, IndexError, "ids"),
    ("token_policy_loss", {"ids": IDS * 1.0}, TypeError, "ids"),
    ("token_policy_loss", {"temperature": 0.0}, ValueError, "temperature"),
    ("token_policy_loss", {"temperature": "x"}, TypeError, "temperature"),
    ("token_policy_loss", {"entropy": LP}, TypeError, "entropy"),
    ("token_policy_loss", {"logits": LP}, ValueError, "logits"),
    ("token_policy_loss", {"logits": LP[0, 0]}, ValueError, "logits"),
    ("kl_divergence", {"estimator": "k5"}, ValueError, "estimator"),
    ("kl_divergence", {"ref_logp": LP[:1]}, ValueError, "ref_logp"),
    ("kl_divergence", {"clamp": (1.0,)}, TypeError, "clamp"),
    *(("kl_divergence", o, e, "out") for o, e in OUT),
    *(("discounted_returns", o, e, "out") for o, e in OUT),
    *(("discounted_returns", *case) for case in SEQUENCES),
    *(("gae", *case) for case in SEQUENCES if "cu_seqlens" not in case[0]),
    *((name, o, e, "mask") for name in ("discounted_returns", "gae") for o, e in MASKS),
    *(("gae", {"dones": o["mask"]}, e, "dones") for o, e in MASKS),
    ("gae", {"values": LP[:1]}, ValueError, "values"),
    ("gae", {"values": LP.astype(np.float32)}, TypeError, "values"),
    ("gae", {"lam": np.ones(5)}, ValueError, "lam"),
    ("gae", {"out": np.zeros((2, 3))}, TypeError, "out"),
    ("gae", {"out": (READ_ONLY, np.zeros((2, 3)))}, ValueError, "out"),
    ("gae", {"out": (np.zeros((2, 3)),) * 2}, TypeError, "out"),
    ("pass_at_k", {"c": 9}, ValueError, "c"),
    ("pass_at_k", {"c": -1}, ValueError, "c"),
    ("pass_at_k", {"k": 9}, ValueError, "k"),
    ("pass_at_k", {"k": 0}, ValueError, "k"),
    ("pass_at_k", {"n": 8.0}, TypeError, "n"),
    ("pass_at_k", {"n": [8, 8], "c": [1, 2, 3]}, ValueError, "n"),
    ("sample", {"logits": np.zeros((2, 0))}, ValueError, "logits"),
    ("sample", {"logits": 3.0}, ValueError, "logits"),
    ("sample", {"temperature": -1.0}, ValueError, "temperature"),
    ("sample", {"temperature": NAN}, ValueError, "temperature"),
    ("sample", {"top_k": 0}, ValueError, "top_k"),
    ("sample", {"top_k": 1.5}, ValueError, "top_k"),
    ("sample", {"top_p": 0.0}, ValueError, "top_p"),
    ("sample", {"top_p": 1.5}, ValueError, "top_p"),
    ("sample", {"min_p": -0.1}, ValueError, "min_p"),
    ("sample", {"min_p": "x"}, TypeError, "min_p"),
    ("sample", {"rng": 1.5}, TypeError, "rng"),
    ("sample", {"rng": [1, 2, 3]}, ValueError, "rng"),
    ("beam_step", {"scores": np.ones(3)}, ValueError, "scores"),
    ("beam_step", {"log_probs": np.ones(3)}, ValueError, "log_probs"),
    ("beam_step", {"beam_width": 0}, ValueError, "beam_width"),
    ("beam_step", {"beam_width": 7}, ValueError, "beam_width"),
    ("beam_step", {"beam_width": 2.0}, TypeError, "beam_width"),
]  # fmt: skip


def arrays(value):
    if isinstance(value, list | tuple):
        return [a for v in value for a in arrays(v)]
    return [value] if isinstance(value, np.ndarray) else []


@pytest.mark.parametrize(("name", "options", "error", "argument"), CASES, ids=range(len(CASES)))
def test_refused_by_name(name, options, error, argument):
    given = {**GOOD[name], **options}
    if name == "gae" and isinstance(options.get("out"), tuple) and options["out"][0] is options["out"][-1]:
        error = ValueError  # one array twice
    before = [a.tobytes() for a in arrays(list(given.values()))]
    with pytest.raises(error) as caught:
        getattr(nk, name)(**given)
    message = str(caught.value)
    assert message.startswith(f"{name}: "), message
    assert re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message), message
    assert len(message) > len(name) + len(argument) + 10
    assert [a.tobytes() for a in arrays(list(given.values()))] == before


@pytest.mark.parametrize("name", GOOD)
def test_the_good_arguments_are_good(name):
    getattr(nk, name)(**GOOD[name])
    with nk.checked():
        getattr(nk, name)(**GOOD[name])


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"'trl', 'verl', 'openrlhf'"):
        nk.group_advantages(R, 3, preset="x")
    with pytest.raises(ValueError, match=r"'grpo', 'ppo'"):
        nk.policy_loss(LP, LP, A, loss="x")


def test_masked_arrays_and_foreign_arrays():
    with pytest.raises(TypeError, match="group_advantages: rewards is a masked array"):
        nk.group_advantages(np.ma.masked_array(R, R > 3), 3)
    torch = pytest.importorskip("torch")
    g = nk.group_advantages(torch.arange(6.0), 3)
    assert isinstance(g.advantages, torch.Tensor)
    for name in ("mean", "count", "zero_variance", "group_index", "informative", "stats"):
        assert isinstance(getattr(g, name), torch.Tensor), name
    assert g.resample.tolist() == []
    r = nk.policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))
    assert isinstance(r.dlogp, torch.Tensor)
    assert isinstance(nk.sample(torch.zeros(2, 3), rng=1), torch.Tensor)
