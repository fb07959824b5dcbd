"""A call of every function of npkernels.h that works, what of it is output or optional, and ways to spoil it."""

import ctypes

import numpy as np
from numpy.testing import assert_array_equal

from c_library import (
    DTYPES,
    NONE,
    AdvantageOptions,
    AttentionOptions,
    CrossEntropyOptions,
    NpkArray,
    PolicyMetrics,
    PolicyOptions,
    ReturnOptions,
    StepOptions,
    TokenStats,
    bad_argument,
    call,
    struct,
)

FLOATS = DTYPES[:4]
INF, NAN = float("inf"), float("nan")


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng((seed, *shape)).normal(0, 2, shape).astype(dtype)


def compute(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def same(got, wanted):
    assert got.dtype == wanted.dtype
    # bytes, since NaN is equal to nothing and bfloat16 unknown to assert_array_equal
    assert_array_equal(np.ascontiguousarray(got).view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8))


GRPO = ("group_advantages", "policy_loss", "token_policy_loss", "discounted_returns", "gae")


def arguments_of(function):
    """A call that works: its arguments by name, in the order of the C function."""
    x, rows = normal(3, 8), normal(3)
    common = {"axis": 1, "temperature": 1.0, "mask": np.ones((3, 8), np.bool_)}
    match function:
        case "softmax" | "log_softmax":
            return {"x": x, **common, "y": np.zeros_like(x)}
        case "logsumexp":
            return {"x": x, **common, "lse": rows, "entropy": rows.copy()}
        case "softmax_vjp" | "log_softmax_vjp":
            return {"dy": x, "y": x.copy(), **common, "dx": np.zeros_like(x)}
        case "logsumexp_vjp":
            return {"d": rows, "x": x, "lse": rows.copy(), **common, "dx": np.zeros_like(x)}
        case "softmax_jvp" | "log_softmax_jvp":
            return {"x": x, "dx": x.copy(), **common, "y": np.zeros_like(x), "dy": np.zeros_like(x)}
        case "logsumexp_jvp":
            return {"x": x, "dx": x.copy(), **common, "lse": rows, "dlse": rows.copy()}
        case "token_log_probs":
            common.pop("axis")
            wanted = {name: rows.copy() for name in ("log_prob", "lse", "entropy", "sum_p2")}
            wanted |= {name: np.arange(3) for name in ("top1", "rank")}
            return {"logits": x, "ids": np.array([0, 7, 3]), **common, **wanted}
        case "token_log_probs_vjp":
            common.pop("axis")
            inputs = {"dlogp": rows, "logits": x, "ids": np.array([0, 7, 3]), "lse": rows.copy()}
            return inputs | {
                "dentropy": rows.copy(),
                "entropy": rows.copy(),
                **common,
                "dlogits": np.zeros_like(x),
            }
        case "cross_entropy":
            options = {
                "weight": normal(8),
                "ignore_index": -1,
                "label_smoothing": 0.5,
                "reduction": NONE,
                "reserved": 0,
            }
            inputs = {"logits": x, "targets": np.array([0, 7, -1]), "axis": 1, **options}
            return inputs | {"loss": rows, "dlogits": np.zeros_like(x)}
        case "attention" | "attention_vjp" | "attention_jvp":
            return attention_arguments(function)
        case "merge_attention":
            return {"parts": 1, "outs": normal(3, 8), "lses": rows, "out": x, "lse": rows.copy()}
        case "rotary_embedding":
            tables = {"cos": normal(3, 4), "sin": normal(3, 4, seed=1)}
            return {"x": x, **tables, "interleaved": 0, "inverse": 0, "y": np.zeros_like(x)}
    return (grpo_arguments() if function in GRPO else perturb_arguments())[function]


def attention_arguments(function):
    qkv = {"q": normal(2, 4, 3, 8), "k": normal(2, 2, 5, 8), "v": normal(2, 2, 5, 6)}
    options = {"scale": 1.0, "causal": 1, "windowed": 1, "q_offset": np.array([0, 1])}
    options |= {"mask": np.ones((2, 4, 3, 5), np.bool_), "bias": normal(2, 4, 3, 5)}
    options |= {"kv_lengths": np.array([5, 4]), "alibi_slopes": normal(2, 4), "sinks": normal(4)}
    options |= {"window_left": 3, "window_right": -1, "softcap": 9.0}
    options |= {"dropout_p": 0.0 if function == "attention_jvp" else 0.1, "dropout_seed": 7}
    out, lse = {"out": normal(2, 4, 3, 6)}, {"lse": normal(2, 4, 3)}
    other = {f"d{name}": normal(*value.shape, seed=1) for name, value in (qkv | out | lse).items()}
    inner = {name: other[name] for name in ("dq", "dk", "dv")}
    if function == "attention":
        return {**qkv, **options, **out, **lse}
    if function == "attention_jvp":
        return {**qkv, **inner, **options, **out, "dout": other["dout"], **lse}
    extra = {"dbias": normal(2, 4, 3, 5), "dsinks": normal(4)}
    return {"dout": other["dout"], **qkv, **out, **lse, "dlse": other["dlse"], **options, **inner, **extra}


def grpo_arguments():
    ids, numbers = np.arange(12) // 3 - 5, {"baseline": 0, "scale": 0, "ddof": 1}
    numbers |= {"eps": 1e-4, "lone_reward": 0, "over_mean": 0, "reserved": 0}
    groups = {"rewards": normal(12), "group_size": ctypes.c_int64(0), "ids": ids, **numbers}
    groups |= {"advantages": normal(12), "stats": np.ones((12, 5)), "index": np.arange(12), "groups": None}

    def policy(shape):
        options = {"mask": np.ones(shape, np.bool_), "ref_logp": normal(*shape, seed=3), "beta": 0.1}
        return options | {"sampler_logp": normal(*shape, seed=4), "importance": 0}

    tokens = {"old_logp": normal(3, 8, seed=1), "advantages": normal(3, 8, seed=2), **policy((3, 8))}
    loss = {"logp": normal(3, 8), **tokens, "entropy": normal(3, 8), "metrics": struct(PolicyMetrics)}
    rows = {"old_logp": normal(2, 3), "advantages": normal(2, 3, seed=2), "temperature": 1.0}
    rows |= {**policy((2, 3)), "want_entropy": 1, "metrics": struct(PolicyMetrics)}
    logits = {"logits": normal(2, 3, 8), "ids": np.array([[0, 7, 3], [1, 1, 2]]), **rows}
    each = {"last_value": normal(3).astype(np.float64), "gammas": np.full(3, 0.9)}
    rewards, there = normal(3, 8), np.ones((3, 8), np.bool_)
    returns = {"rewards": rewards, "gamma": 0.5, "mask": there, **each, "returns": normal(3, 8)}
    gae = {
        "rewards": rewards,
        "values": normal(3, 8, seed=1),
        "gamma": 0.5,
        "lam": 0.5,
        "mask": there,
        **each,
    }
    gae |= {"dones": np.zeros((3, 8), np.bool_), "lams": np.ones(3)}
    return {
        "group_advantages": groups,
        "policy_loss": loss | {"dlogp": normal(3, 8)},
        "token_policy_loss": logits | {"dlogits": normal(2, 3, 8)},
        "discounted_returns": returns,
        "gae": gae | {"advantages": normal(3, 8), "returns": normal(3, 8)},
    }


def perturb_arguments():
    x, grad, center, y = normal(3, 8), normal(3, 8, seed=1), normal(3, 8, seed=2) / 4, normal(3, 8)
    options = {"bounded": 1, "reserved": 0, "low": -20.0, "high": 20.0}
    options |= {"lows": np.full(8, -9, np.float32), "highs": np.full(8, 9, np.float32)}
    mask, lengths, radii = (
        {"mask": np.ones((3, 8), np.bool_)},
        {"step_lengths": np.ones(3)},
        {"radii": np.ones(3)},
    )
    moved, around = {**options, "targeted": 0, **mask}, {"x": x, "center": center}
    end = {"y": y, "nans": None}
    return {
        "sign_step": {"x": x, "grad": grad, "eps": 0.1, "norm": 0, **moved, **lengths, **end},
        "steepest_step": {"x": x, "grad": grad, "step": 0.1, "norm": 2, **moved, **lengths, **end},
        "project": {**around, "eps": 0.1, "norm": 1, **options, **mask, **radii, "y": y},
        "pgd_step": {
            **around,
            "grad": grad,
            "step": 0.1,
            "eps": 0.1,
            "norm": 2,
            **moved,
            **lengths,
            **radii,
            **end,
        },
        "random_in_ball": {
            "center": center,
            "eps": 0.1,
            "key": ctypes.c_uint64(5),
            "norm": 2,
            **options,
            **radii,
            "y": y,
        },
    }


OUTPUTS = {
    "softmax": ["y"],
    "log_softmax": ["y"],
    "logsumexp": ["lse", "entropy"],
    "softmax_vjp": ["dx"],
    "log_softmax_vjp": ["dx"],
    "logsumexp_vjp": ["dx"],
    "softmax_jvp": ["y", "dy"],
    "log_softmax_jvp": ["y", "dy"],
    "logsumexp_jvp": ["lse", "dlse"],
    "token_log_probs": ["log_prob", "lse", "entropy", "sum_p2", "top1", "rank"],
    "token_log_probs_vjp": ["dlogits"],
    "cross_entropy": ["loss", "dlogits"],
    "attention": ["out", "lse"],
    "merge_attention": ["out", "lse"],
    "rotary_embedding": ["y"],
    "attention_vjp": ["dq", "dk", "dv", "dbias", "dsinks"],
    "attention_jvp": ["out", "dout", "lse"],
    "group_advantages": ["advantages", "stats", "index"],
    "policy_loss": ["dlogp"],
    "token_policy_loss": ["dlogits"],
    "discounted_returns": ["returns"],
    "gae": ["advantages", "returns"],
    "sign_step": ["y"],
    "steepest_step": ["y"],
    "project": ["y"],
    "pgd_step": ["y"],
    "random_in_ball": ["y"],
}
OPTIONAL = {"mask", "bias", "q_offset", "weight", "entropy", "log_prob", "sum_p2", "top1", "rank", "dlogits"}
OPTIONAL |= {"kv_lengths", "alibi_slopes", "sinks"}
OPTIONAL |= {"dlse", "dbias", "dsinks", "ids", "stats", "index", "sampler_logp", "dlogp"}
OPTIONAL |= {"dones", "last_value", "gammas", "lams", "lows", "highs", "step_lengths", "radii"}
STRUCTS = {  # of options, and where it stands
    "token_log_probs": (TokenStats, 4),
    "cross_entropy": (CrossEntropyOptions, 3),
    "attention": (AttentionOptions, 3),
    "attention_vjp": (AttentionOptions, 7),
    "attention_jvp": (AttentionOptions, 6),
    "group_advantages": (AdvantageOptions, 3),
    "policy_loss": (PolicyOptions, 3),
    "token_policy_loss": (PolicyOptions, 5),
    "discounted_returns": (ReturnOptions, 2),
    "gae": (ReturnOptions, 4),
    "sign_step": (StepOptions, 3),
    "steepest_step": (StepOptions, 3),
    "project": (StepOptions, 3),
    "pgd_step": (StepOptions, 5),
    "random_in_ball": (StepOptions, 3),
}
IN_PLACE = [  # an output may be the very same memory as an input
    f
    for f in OUTPUTS
    if f not in ("merge_attention", "policy_loss", "discounted_returns", "gae") and "attention" not in f
]


def split(function, arguments):
    """The arguments that the structure of options takes, and the others as a list."""
    fields = dict(STRUCTS[function][0]._fields_)
    return {n: v for n, v in arguments.items() if n in fields}, [
        v for n, v in arguments.items() if n not in fields
    ]


def status_of(function, arguments):
    if function not in STRUCTS:
        return call(function, *arguments.values())
    options, others = split(function, arguments)
    kind, place = STRUCTS[function]
    others.insert(place, struct(kind, **options))
    return call(function, *others)


def expect_refused(function, changes, status, argument=None):
    fresh = arguments_of(function)
    arguments = fresh | changes
    outputs = {name: fresh[name] for name in OUTPUTS[function]}
    for name in OUTPUTS[function]:
        value = arguments[name]
        memory = value if isinstance(value, np.ndarray) else getattr(value, "kept", [None])[0]
        if memory is not None:
            memory[...] = 42
            outputs[name] = memory
    assert status_of(function, arguments) == status
    assert bad_argument() == (next(iter(changes)) if argument is None else argument)
    for name, memory in outputs.items():
        if isinstance(arguments[name], np.ndarray | NpkArray):
            assert (memory == 42).all(), f"{name} was written to"
