"""The reference of token statistics and losses against PyTorch and values worked out by hand."""

import itertools

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from central_differences import DIFFERENCE, numeric_vjp
from npkernels import reference as ref

INF, NAN = np.inf, np.nan
EPS = np.finfo(np.float64).eps
LOG2 = float(np.log(2))


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


# --- token statistics


def test_token_log_probs_agrees_with_torch():
    torch = pytest.importorskip("torch")
    logits = rng(9).normal(0, 3, (4, 5, 11))
    ids = rng(10).integers(0, 11, (4, 5))
    got = ref.token_log_probs(logits, ids, temperature=0.8)
    d = torch.distributions.Categorical(logits=torch.tensor(logits) / 0.8)
    assert_allclose(got.log_prob, d.log_prob(torch.tensor(ids)).numpy(), atol=100 * EPS)
    assert_allclose(got.entropy, d.entropy().numpy(), atol=100 * EPS)
    assert_allclose(got.lse, torch.logsumexp(torch.tensor(logits) / 0.8, -1).numpy(), atol=100 * EPS)
    assert_allclose(got.sum_p2, (d.probs**2).sum(-1).numpy(), rtol=200 * EPS)
    assert_array_equal(got.top1, torch.tensor(logits).argmax(-1).numpy())
    order = torch.tensor(logits).argsort(-1, descending=True).argsort(-1).numpy()
    assert_array_equal(got.rank, np.take_along_axis(order, ids[..., None], -1)[..., 0])
    assert got.top1.dtype == got.rank.dtype == np.int64


# logits, mask, id -> log_prob, entropy, lse, sum_p2, top1, rank
TOKENS = {
    "plain": ([0, 0, -INF], None, 0, -LOG2, LOG2, LOG2, 0.5, 0, 0),
    "ties": ([1, 2, 2, 2], [1, 1, 1, 0], 2, -np.log(2 + np.exp(-1)), None, None, None, 1, 0),
    "id at -inf": ([0, 0, -INF], None, 2, -INF, LOG2, LOG2, 0.5, 0, 2),
    "masked id": ([5, 0, 0], [0, 1, 1], 0, -INF, LOG2, LOG2, 0.5, 1, 2),
    "masked NaN id": ([NAN, 0, -INF], [0, 1, 1], 0, -INF, 0, 0, 1, 1, 1),
    "all masked": ([NAN, 0, 0], [0, 0, 0], 1, -INF, 0, -INF, 0, -1, 0),
    "allowed are -inf": ([-INF, 0, -INF], [1, 0, 1], 2, -INF, 0, -INF, 0, -1, 0),
    "all -inf": ([-INF, -INF], None, 1, NAN, NAN, -INF, NAN, 0, 0),
    "NaN": ([0, NAN, 7, NAN], None, 0, NAN, NAN, NAN, NAN, 1, 1),
    "id is NaN": ([0, NAN, 7], None, 1, NAN, NAN, NAN, NAN, 1, 0),
    "+inf": ([0, INF, INF], None, 0, NAN, NAN, INF, NAN, 1, 2),
}


@pytest.mark.parametrize("case", TOKENS)
def test_token_special_rows(case):
    logits, mask, token, *expected = TOKENS[case]
    options = {} if mask is None else {"mask": np.array([mask], bool)}
    got = ref.token_log_probs(np.float32([logits]), [token], **options)
    for name, value in zip(("log_prob", "entropy", "lse", "sum_p2", "top1", "rank"), expected, strict=True):
        if value is not None:
            assert_allclose(getattr(got, name), [value], rtol=4 * EPS, err_msg=name)


def test_token_stats_that_were_not_asked_are_none():
    got = ref.token_log_probs(np.zeros((2, 3)), [0, 1], stats=("lse",))
    assert got.lse is not None
    assert [got.entropy, got.sum_p2, got.top1, got.rank] == [None] * 4
    with pytest.raises(AttributeError):
        got.lse = None
    for stats in (("lse", "variance"), "lse"):
        with pytest.raises(ValueError, match="token_log_probs: stats is"):
            ref.token_log_probs(np.zeros((2, 3)), [0, 1], stats=stats)


def test_token_ids_are_checked():
    logits = np.zeros((2, 2, 3))
    for wrong in (3, -1):
        with pytest.raises(IndexError, match=rf"ids\[1, 0\] is {wrong}, outside \[0, 3\)"):
            ref.token_log_probs(logits, [[0, 1], [wrong, 1]])
    with pytest.raises(IndexError, match="token_log_probs_vjp: ids is 3"):
        ref.token_log_probs_vjp(1.0, logits[0, 0], 3, 0.0)
    with pytest.raises(ValueError, match=r"ids has shape \(2,\)"):
        ref.token_log_probs(logits, [0, 1])
    for ids in ([0.0, 1.0], [True, False]):
        with pytest.raises(TypeError, match="ids has dtype"):
            ref.token_log_probs(logits[0], ids)


def test_tokens_may_be_none_or_one():
    empty = ref.token_log_probs(np.zeros((0, 3)), [])
    assert empty.log_prob.shape == empty.rank.shape == empty.top1.shape == (0,)
    assert ref.token_log_probs(np.zeros((0, 0)), np.zeros(0, int)).top1.shape == (0,)
    one = ref.token_log_probs(np.float32([0, 0]), 1)
    assert_allclose(one.log_prob, -LOG2)
    assert ref.token_log_probs_vjp(np.zeros(0), np.zeros((0, 3)), [], np.zeros(0)).shape == (0, 3)


@pytest.mark.parametrize("masked", [False, True])
def test_token_gradients_agree_with_central_differences(masked):
    logits = rng(11).normal(size=(3, 2, 5))
    ids = rng(12).integers(0, 5, (3, 2))
    dlogp, dentropy = rng(13).normal(size=(2, 3, 2))
    mask = np.ones((3, 2, 5), bool)
    if masked:
        mask = rng(14).random((3, 2, 5)) < 0.6
        np.put_along_axis(mask, ids[..., None], True, -1)
    options = {"temperature": 0.7, "mask": mask if masked else None}
    got = ref.token_log_probs(logits, ids, **options)

    def log_prob(x):
        return ref.token_log_probs(x, ids, **options).log_prob

    def entropy(x):
        return ref.token_log_probs(x, ids, **options).entropy

    first = numeric_vjp(log_prob, logits, dlogp)
    second = numeric_vjp(entropy, logits, dentropy)
    dirty = np.where(mask, logits, NAN)
    alone = ref.token_log_probs_vjp(dlogp, dirty, ids, got.lse, **options)
    assert_allclose(alone, first, **DIFFERENCE)
    options |= {"dentropy": dentropy, "entropy": got.entropy}
    both = ref.token_log_probs_vjp(dlogp, dirty, ids, got.lse, **options)
    assert_allclose(both, first + second, **DIFFERENCE)
    assert_array_equal(both[~mask], 0)


def test_token_gradient_special_rows():
    with pytest.raises(ValueError, match="dentropy needs entropy"):
        ref.token_log_probs_vjp([1.0], [[0.0, 0.0]], [0], [LOG2], dentropy=[1.0])
    nothing = ref.token_log_probs_vjp(
        [1.0], [[NAN, -INF]], [1], [-INF], mask=[[False, True]], dentropy=[2.0], entropy=[0.0]
    )
    assert_array_equal(nothing, [[0, 0]])
    hard = ref.token_log_probs_vjp([1.0], [[0.0, -INF]], [0], [0.0], dentropy=[2.0], entropy=[0.0])
    assert_array_equal(hard, [[0, 0]])  # p log p is 0 at p = 0
    assert np.isnan(ref.token_log_probs_vjp([1.0], [[-INF, -INF]], [0], [-INF])).all()


# --- losses

LOSS_OPTIONS = list(
    itertools.product(
        ["mean", "sum", "none"], [False, True], [-100, 2], [0.0, 0.1], [((6, 5), -1), ((2, 5, 3), 1)]
    )
)


@pytest.mark.parametrize(("reduction", "weighted", "ignore_index", "smoothing", "place"), LOSS_OPTIONS)
def test_losses_agree_with_torch(reduction, weighted, ignore_index, smoothing, place):
    torch = pytest.importorskip("torch")
    shape, axis = place
    x = rng(15).normal(size=shape)
    targets = rng(16).integers(0, 5, shape[:1] + shape[2:])
    weight = rng(17).random(5) if weighted else None
    common = {"reduction": reduction, "ignore_index": ignore_index}
    torch_common = common | {"weight": None if weight is None else torch.tensor(weight)}

    def compare(got, torch_loss, x):
        loss, grad = got
        torch_loss.sum().backward()
        assert_allclose(loss, torch_loss.detach().numpy(), rtol=50 * EPS)
        assert_allclose(grad, x.grad.numpy(), atol=10 * EPS)

    t = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        t, torch.tensor(targets), **torch_common, label_smoothing=smoothing
    )
    options = common | {"axis": axis, "weight": weight}
    got = ref.cross_entropy(x, targets, **options, label_smoothing=smoothing, return_grad=True)
    compare(got, expected, t)
    assert_array_equal(ref.cross_entropy(x, targets, **options, label_smoothing=smoothing), got[0])

    log_p = scipy.special.log_softmax(x, axis=axis)
    t = torch.tensor(log_p, requires_grad=True)
    expected = torch.nn.functional.nll_loss(t, torch.tensor(targets), **torch_common)
    got = ref.nll_loss(log_p, targets, **options, return_grad=True)
    compare(got, expected, t)
    assert_array_equal(ref.nll_loss(log_p, targets, **options), got[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_of_nothing_agree_with_torch(reduction):
    torch = pytest.importorskip("torch")
    for rows, target in [(0, []), (2, [-100, -100])]:
        for name in ("cross_entropy", "nll_loss"):
            x = torch.zeros((rows, 3), dtype=torch.float64, requires_grad=True)
            function = getattr(torch.nn.functional, name)
            loss = function(x, torch.tensor(target, dtype=torch.int64), reduction=reduction)
            loss.sum().backward()
            got, grad = getattr(ref, name)(np.zeros((rows, 3)), target, reduction=reduction, return_grad=True)
            assert_array_equal(got, loss.detach().numpy())
            assert_array_equal(grad, x.grad.numpy())


def test_ignored_rows_may_hold_anything():
    x = np.array([[0.0, 0.0], [NAN, INF], [0.0, 0.0]])
    for function in (ref.cross_entropy, ref.nll_loss):
        kept = function(x[[0, 2]], [0, 1], return_grad=True)
        loss, grad = function(x, [0, 7, 1], ignore_index=7, return_grad=True)
        assert_array_equal(loss, kept[0])
        assert_array_equal(grad, np.insert(kept[1], 1, 0, axis=0))


def test_losses_of_one_row_and_of_infinite_logits():
    loss, grad = ref.cross_entropy([0.0, 0.0], 1, return_grad=True)
    assert_allclose(loss, LOG2, rtol=EPS)
    assert_allclose(grad, [0.5, -0.5], rtol=EPS)
    loss, grad = ref.cross_entropy([[0.0, -INF]], [1], return_grad=True)
    assert loss == INF
    assert_array_equal(grad, [[1, -1]])
    assert ref.cross_entropy([[0.0, -INF]], [0]) == 0
    assert np.isnan(ref.cross_entropy([[-INF, -INF]], [0]))
    assert np.isnan(ref.cross_entropy([[0.0, INF]], [0]))


@pytest.mark.parametrize("row", [[-INF, -INF], [0.0, INF], [0.0, NAN], [-INF, 0.0]])
def test_a_weight_of_zero_does_not_hide_what_is_not_finite(row):
    torch = pytest.importorskip("torch")
    for name in ("cross_entropy", "nll_loss"):
        x = torch.tensor([row], dtype=torch.float64, requires_grad=True)
        function = getattr(torch.nn.functional, name)
        loss = function(x, torch.tensor([0]), weight=torch.tensor([0.0, 2.0]).double(), reduction="sum")
        loss.backward()
        got, grad = getattr(ref, name)([row], [0], weight=[0.0, 2.0], reduction="sum", return_grad=True)
        assert_array_equal(got, loss.detach().numpy())
        assert_array_equal(grad, x.grad.numpy())


def test_wrong_arguments_of_losses():
    x = np.zeros((2, 3))
    for function in (ref.cross_entropy, ref.nll_loss):
        with pytest.raises(IndexError, match=r"targets\[1\] is 3, outside \[0, 3\)"):
            function(x, [0, 3])
        with pytest.raises(IndexError, match=r"targets\[0\] is -100"):
            function(x, [-100, 0], ignore_index=0)
        with pytest.raises(ValueError, match="reduction is 'max'"):
            function(x, [0, 1], reduction="max")
        with pytest.raises(ValueError, match=r"weight has shape \(2,\)"):
            function(x, [0, 1], weight=[1.0, 2.0])
        with pytest.raises(ValueError, match=r"targets has shape \(3,\)"):
            function(x, [0, 1, 2])
        with pytest.raises(TypeError, match="targets has dtype"):
            function(x, [0.0, 1.0])
    for smoothing in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="label_smoothing is"):
            ref.cross_entropy(x, [0, 1], label_smoothing=smoothing)


def test_perplexity():
    log_p = np.log([[0.5, 0.5, 0.25], [0.1, 0.1, 1.0]])
    assert_allclose(ref.perplexity(log_p[0, :2]), 2, rtol=4 * EPS)
    assert_allclose(ref.perplexity(log_p, axis=None), np.exp(-log_p.mean()), rtol=4 * EPS)
    assert_allclose(ref.perplexity(log_p, axis=0), np.exp(-log_p.mean(axis=0)), rtol=4 * EPS)
    mask = np.array([[True, False, False], [False, False, False]])
    log_p[1] = NAN
    assert_allclose(ref.perplexity(log_p, mask), [2, NAN], rtol=4 * EPS)
    assert_allclose(ref.perplexity(log_p, mask, axis=None), 2, rtol=4 * EPS)
    assert np.isnan(ref.perplexity([]))
    assert ref.perplexity([-INF, 0.0]) == INF
    with pytest.raises(ValueError, match="axis 1 is out of range"):
        ref.perplexity([0.0], axis=1)
