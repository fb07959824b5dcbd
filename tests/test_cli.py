"""`python -m npkernels`: info, check with its accuracy gate, and bench with its outputs."""

import doctest
import importlib.util
import inspect
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import npkernels
from npkernels import reference
from npkernels.__main__ import main
from npkernels._cli import (
    bench,
    cases,
    check,
    gate,
    machine,
    page,
    peers,
    plain,
    report,
    workloads,
    workloads_attention,
)
from npkernels._cli.plain import sums

INF, NAN = np.inf, np.nan
KERNELS = sorted(reference.__all__)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npkernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a wrong command line is told."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- info


def test_info_says_what_show_config_says(capsys):
    done = run("info")
    assert done.returncode == 0, done.stderr
    npkernels.show_config()
    assert done.stdout == capsys.readouterr().out
    assert npkernels.__version__ in done.stdout


def test_a_command_is_needed(capsys):
    assert "required: command" in fails(capsys)


# --- the accuracy gate


def judged(result, function="softmax", *args):
    return gate.expect(function, *(args or (np.float32([1, 2, 3]),))).judge(result)


def test_the_right_result_passes():
    (verdict,) = judged(npkernels.softmax(np.float32([1, 2, 3])))
    assert verdict.passed
    assert 0 < verdict.share < 1
    assert verdict.error == pytest.approx(verdict.error_in_ulp * 2.0**-24)  # the largest entry is 0.67


@pytest.mark.parametrize("dtype", cases.dtypes().values(), ids=str)
def test_a_few_ulp_of_the_largest_entry_are_allowed(dtype):
    x = np.array([1, 2, 3]).astype(dtype)
    exact = reference.softmax(x)
    right = exact.astype(dtype)
    unit = gate.ulp(0.66, dtype)
    for ulp in (-1, 1):
        (verdict,) = judged(last_plus(right, ulp * unit), "softmax", x)
        assert verdict.passed, verdict.text
    (verdict,) = judged(last_plus(right, 8 * unit), "softmax", x)
    assert not verdict.passed
    assert verdict.error_in_ulp == pytest.approx(8, abs=0.51)
    came = last_plus(right, 8 * unit)[2]
    assert verdict.text.startswith(f"{came} came at [2]; the reference has 0.66")


def last_plus(x, more):
    wide = x.astype(np.float64)
    wide[-1] += more
    return wide.astype(x.dtype)


WRONG = {
    "a NaN": np.float32([NAN, 0.24472848, 0.66524094]),
    "an inf": np.float32([INF, 0.24472848, 0.66524094]),
    "the dtype": np.float64([0.09003057, 0.24472847, 0.66524096]),
    "the shape": np.float32([[0.09003057, 0.24472848, 0.66524094]]),
    "two arrays": (np.float32([0.09003057, 0.24472848, 0.66524094]),) * 2,
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_a_matter_of_rounding_fails(what):
    (verdict,) = judged(WRONG[what])
    assert not verdict.passed
    assert verdict.error == INF


def test_nan_and_inf_stand_where_the_reference_has_them():
    x = np.float32([[-INF, 0], [NAN, 0], [INF, 0]])
    good = np.float32([[-INF, 0], [NAN, NAN], [NAN, NAN]])
    assert judged(good, "log_softmax", x)[0].passed
    for place in np.ndindex(good.shape):
        bad = good.copy()
        bad[place] = 0 if not np.isfinite(bad[place]) else NAN
        verdict = judged(bad, "log_softmax", x)[0]
        assert not verdict.passed, place
        assert f"at [{place[0]}, {place[1]}]" in verdict.text


def test_what_overflows_the_dtype_is_inf():
    x = np.float32([[3e38, -3e38]])  # the log-probability of the second is -6e38
    assert judged(np.float32([[0, -INF]]), "log_softmax", x)[0].passed
    assert not judged(np.float32([[0, INF]]), "log_softmax", x)[0].passed


def test_integers_are_exact_and_every_field_counts():
    x, ids = np.float32([[0, 3, 1]]), np.array([2])
    right = npkernels.token_log_probs(x, ids)
    assert all(v.passed for v in judged(right, "token_log_probs", x, ids))
    wrong = [
        v for v in judged(replace(right, rank=right.rank + 1), "token_log_probs", x, ids) if not v.passed
    ]
    assert [v.place for v in wrong] == [".rank"]
    assert wrong[0].text == "2 came at [0]; the reference has 1"
    (verdict,) = judged(replace(right, entropy=None), "token_log_probs", x, ids)
    assert not verdict.passed
    with pytest.raises(AssertionError, match=r"token_log_probs\.rank: 2 came"):
        gate.assert_passes(replace(right, rank=right.rank + 1), "token_log_probs", x, ids)


def test_an_allowance_is_twice_the_error_of_the_plain_formula_and_two_ulp():
    x = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    exact = reference.softmax(x)
    errors = []
    for k in range(gate.MOST):
        with sums.order(k):
            errors.append(np.abs(plain.softmax(x) - exact).max())
    unit = np.spacing(np.float32(exact.max()))
    expectation = gate.expect("softmax", x)
    (verdict,) = expectation.judge(exact.astype(np.float32))
    assert verdict.allowance == 2 * max(errors[: gate.FIRST]) + 2 * unit
    (verdict,) = expectation.judge((exact + 100 * unit).astype(np.float32))  # refused: all orders were tried
    assert verdict.allowance == 2 * max(errors) + 2 * unit
    assert not verdict.passed


def test_a_sum_that_loses_its_small_terms_fails():
    """float32 terms added one after the other to a large one: what the gate is there to find."""
    x = np.full((4, 4001), -9, np.float32)
    x[:, 0] = 0
    e = np.exp(x)
    naive = e / np.add.accumulate(e, axis=1)[:, -1:]
    (verdict,) = gate.expect("softmax", x).judge(naive)
    assert not verdict.passed
    assert judged(npkernels.softmax(x), "softmax", x)[0].passed


@pytest.mark.parametrize("kernel", ["softmax", "log_softmax_vjp", "logsumexp_jvp", "cross_entropy"])
def test_numpy_in_an_order_of_its_own_passes(kernel):
    """The gate must not refuse a sum as good as those that set the allowance, for its luck."""
    known = cases.families()["softmax"][kernel]
    for case in known(cases.Inputs(kernel, np.dtype(np.float32), 1)):
        if not case.label.startswith("past the cache"):
            expectation = gate.expect(kernel, *case.args, **case.kwargs)
            with sums.order(1000), np.errstate(all="ignore"):
                result = getattr(plain, kernel)(*case.args, **case.kwargs)
            wrong = [v for v in expectation.judge(result) if np.isfinite(v.error) and not v.passed]
            assert not wrong, (case.label, wrong)


@pytest.mark.parametrize("kernel", KERNELS)
def test_plain_formulas_have_the_options_of_the_reference(kernel):
    theirs, ours = (inspect.signature(getattr(m, kernel)).parameters for m in (reference, plain))
    assert list(ours) == list(theirs)
    assert [(p.kind, p.default) for p in ours.values()] == [(p.kind, p.default) for p in theirs.values()]


@pytest.mark.parametrize("module", [gate, sums, report], ids=lambda m: m.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


# --- check


def test_every_kernel_is_checked():
    known = [kernel for kernels in cases.families().values() for kernel in kernels]
    assert sorted(kernel for kernel in known if "." not in kernel) == KERNELS
    assert {"perturb", *KERNELS} == set(plain.__all__)
    steps = [kernel.removeprefix("perturb.") for kernel in known if "." in kernel]
    assert len(steps) == 6
    assert all(hasattr(reference.perturb, step) and hasattr(plain.perturb, step) for step in steps)


@pytest.mark.parametrize("kernel", ["softmax", "attention"])
def test_cases_are_as_awkward_as_promised(kernel):
    family = "attention" if kernel == "attention" else "softmax"
    made = list(cases.families()[family][kernel](cases.Inputs(kernel, np.dtype(np.float32), 0)))
    labels = [case.label for case in made]
    assert len(set(labels)) == len(labels)
    if kernel == "softmax":
        lengths = {case.args[0].shape[-1] for case in made}
        widths = (2, 4, 8, 16)
        assert lengths >= {1, 1025} | {n for w in widths for n in (w - 1, w, w + 1, 2 * w - 1)}
        assert max(case.args[0].nbytes for case in made) >= 8 << 20
    assert any(not np.isfinite(case.args[0]).all() for case in made)
    assert any("mask" in case.kwargs and not case.kwargs["mask"].any(axis=-1).all() for case in made)
    assert any(not case.args[0].flags.c_contiguous for case in made)


def test_inputs_are_the_same_for_a_seed_and_differ_between_seeds():
    first, again, other = (
        cases.Inputs("softmax", np.dtype(np.float32), seed).normal((5,)) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_check_prints_one_table_and_succeeds():
    isa = npkernels.available_isas()[-1]
    done = run("check", "--kernel", "perplexity,nll_loss", "--isa", isa, "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["kernel", "dtype", "cases", isa]
    table = [line.split()[:2] for line in lines[: lines.index("")]]
    assert table == [[k, d] for k in ("perplexity", "nll_loss") for d in cases.dtypes()]
    assert "every result is within its allowance" in done.stdout


@pytest.mark.parametrize("family", ["softmax", "attention"])
def test_family_chooses_kernels(family, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(check, "run", lambda kernels, isas, seed: seen.extend(kernels) or [])
    assert main(["check", "--family", family]) == 0
    assert seen == list(cases.families()[family])


def off_by(factor):
    right = npkernels.merge_attention

    def wrong(outs, lses):
        out, lse = right(outs, lses)
        return out * out.dtype.type(factor), lse

    return wrong


def raising(outs, lses):
    raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (off_by(1.001), "merge_attention float32, "),
        (off_by(NAN), "nan came at"),
        (raising, "RuntimeError: no such luck"),
        (lambda outs, lses: np.float32(1), "expected ['[0]', '[1]']"),
    ],
)
def test_check_fails_when_a_kernel_is_wrong(kernel, message, monkeypatch, capsys):
    isa = npkernels.isa()
    monkeypatch.setattr(npkernels, "merge_attention", kernel)
    assert main(["check", "--kernel", "merge_attention", "--isa", isa]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert "results are wrong" in out
    assert message in out
    assert npkernels.isa() == isa


def test_check_in_place_keeps_the_layout_and_leaves_the_input_alone():
    x = np.arange(20, dtype=np.float32).reshape(2, 10)[:, ::2]
    case = cases.Case("in place", (x,), {}, inplace=0)
    before = x.copy()
    result = check.call("softmax", case)
    assert np.array_equal(x, before)
    assert result is not x
    assert np.array_equal(result, npkernels.softmax(x))
    assert result.strides == x.strides


def test_check_says_when_bfloat16_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert "bfloat16" not in cases.dtypes()
    assert main(["check", "--kernel", "perplexity"]) == 0
    assert "bfloat16 was not checked: it needs ml_dtypes" in capsys.readouterr().out


def test_check_names_the_choices(capsys):
    assert "invalid choice: 'convolution' (choose from " in fails(capsys, "check", "--family", "convolution")
    message = fails(capsys, "check", "--isa", "baseline,avx9")
    assert f"'avx9' cannot be used; this CPU runs {', '.join(npkernels.available_isas())}" in message
    assert "unrecognized arguments: --fam=grpo" in fails(capsys, "check", "--fam=grpo")
    for bad in ("", ",", "softmax,", ",softmax"):
        for option in ("--kernel", "--isa"):
            assert f"argument {option}: {bad!r} has no name where" in fails(capsys, "check", option, bad)
    for bad in ("-1", "x", ""):
        assert f"argument --seed: {bad!r} is no seed" in fails(capsys, "check", f"--seed={bad}")
    message = fails(capsys, "check", "--kernel", "softmin", "--family", "softmax")
    assert "'softmin' is not known; expected some of softmax, log_softmax" in message


# --- bench


SMALL = [
    workloads.softmax("softmax", (5, 33)),
    workloads.softmax("log_softmax", (10,)),
    workloads.token_log_probs((6, 50), "float32"),
    workloads.token_log_probs_vjp((6, 50), "float32"),
    *(workloads.token_log_probs((6, 50), name) for name in cases.dtypes() if name == "bfloat16"),
    *(workloads.token_log_probs_vjp((6, 50), name) for name in cases.dtypes() if name == "bfloat16"),
    workloads.cross_entropy((6, 50)),
    workloads_attention.attention(1, 4, 9, 8),
    workloads_attention.attention(2, 4, 9, 8, kv_heads=2, causal=True),
    workloads_attention.attention(1, 2, 9, 8, window=3),
    workloads_attention.attention_vjp(2, 4, 9, 8, kv_heads=2, causal=True),
    workloads_attention.attention_vjp(1, 2, 9, 8, window=3),
    workloads_attention.attention_jvp(1, 2, 9, 8, causal=True),
    workloads_attention.decode(2, 4, 9, 8, kv_heads=2),
    workloads.rotary(1, 2, 9, 8),
]


def changed(result):
    """The result with every array a little off."""
    if isinstance(result, tuple):
        return tuple(changed(part) for part in result)
    if isinstance(result, npkernels.TokenStats | npkernels.AttentionGrads):
        return replace(result, **{k: changed(v) for k, v in vars(result).items() if v is not None})
    return (np.asarray(result).astype(np.float64) * 1.1).astype(np.asarray(result).dtype)


@pytest.mark.parametrize("workload", SMALL, ids=lambda w: w.name)
def test_every_library_gives_the_answer_and_a_wrong_one_is_found(workload):
    inputs = workload.inputs()
    for library in peers.able(workload, peers.installed()):
        call = peers.verified_call(library, workload, inputs)
        call()
    right = workload.ours(inputs)()
    workload.verify(inputs, right)
    for verify in (workload.verify, workload.verify_peer):
        with pytest.raises(AssertionError):
            verify(inputs, changed(right))


def test_workloads_are_those_of_the_table():
    names = [w.name for w in workloads.workloads()]
    assert len(set(names)) == len(names)
    expected = {
        "softmax float32 4096x1024",
        "softmax float32 512x32000",
        "softmax float32 64x64",
        "softmax float32 10",
        "log_softmax float32 4096x1024",
        "log_softmax float32 512x32000",
        "token_log_probs float32 256x151936",
        "token_log_probs_vjp float32 256x151936 in place",
        "cross_entropy float32 512x32000 with gradient",
        "attention float32 1x12x512x64",
        "attention float32 1x12x1024x64 causal",
        "attention float32 1x8x2048x128",
        "attention float32 1x8x4096x64",
        "attention float32 1x8x4096x64 causal",
        "attention float32 1x32/8x1024x128 causal",
        "rotary_embedding float32 1x32x2048x128",
        "group_advantages float64 8 in 1 consecutive",
        "group_advantages float64 16384 in 1024 consecutive",
        "group_advantages float64 65536 in 4096 by id",
        "policy_loss float32 64x8192 with reference and mask",
        "token_policy_loss float32 256x151936 in place",
        "gae float32 64x8192",
    }
    assert expected <= set(names)
    assert {w.family for w in workloads.workloads() if w.quick} == set(cases.families())


def test_work_is_counted_over_allowed_pairs():
    full, causal = (workloads_attention.attention(2, 4, 7, 8, kv_heads=2, causal=c) for c in (False, True))
    pairs = sum(j <= i for i in range(7) for j in range(7))
    assert full.flops == 2 * 4 * 49 * (2 * 8 + 2 * 8)
    assert causal.flops == 2 * 4 * pairs * (2 * 8 + 2 * 8)
    arrays = full.inputs()
    assert full.bytes == sum(x.nbytes for x in arrays.values()) + arrays["q"].nbytes
    assert workloads.softmax("softmax", (3, 5)).bytes == 2 * 60
    assert workloads.token_log_probs((3, 5), "float32").bytes == 60


def test_calls_are_interleaved_and_medians_are_taken():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "AB"}
    times = bench.interleave(calls, seconds=0, least=3, most=3)
    assert {name: len(t) for name, t in times.items()} == {"A": 3, "B": 3}
    turns = [name for name, before in zip(order[4:], order[3:], strict=False) if name != before]
    assert turns == list("ABABAB")
    outcome = bench.Outcome(SMALL[0], {"npkernels": [1.0, 9.0, 2.0], "numpy": [8.0, 3.0, 4.0]})
    assert (outcome.seconds(), outcome.ratio("numpy")) == (2.0, 2.0)


def test_shares_are_of_the_right_limit():
    limits = machine.Limits(multiply_adds=100.0, read=10.0, copy=20.0, stream_copy=30.0)
    assert [limits.of(name) for name in ("multiply-adds", "read", "copy", "none")] == [100, 10, 30, INF]
    for workload, work, limit in (
        (workloads_attention.attention(1, 1, 4, 2), 4 * 16 * 2, 100),
        (workloads.token_log_probs((2, 3), "float32"), 24, 10),
        (workloads.cross_entropy((2, 3)), 48, 30),
    ):
        share = bench.Outcome(workload, {"npkernels": [2.0]}).share(limits)
        assert share == pytest.approx(work / 2 / limit)
    assert bench.Outcome(workloads.softmax("softmax", (3,)), {"npkernels": [2.0]}).share(limits) is None


def test_bench_prints_and_writes_json(tmp_path):
    file = tmp_path / "report.json"
    done = run("bench", "--quick", "--only", "softmax float32 10", "--threads", "1", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["schema"] == report.SCHEMA
    assert {"processor", "instruction set", "threads", "npkernels", "libraries"} <= found["machine"].keys()
    assert found["machine"]["threads"].startswith("1 ")
    assert set(found["limits"]) == {"multiply_adds", "read", "copy", "stream_copy"}
    assert all(value > 1e8 for value in found["limits"].values())
    (entry,) = found["workloads"]
    assert entry["name"] == "softmax float32 10"
    assert (entry["limit"], entry["share_of_limit"]) == ("none", None)
    assert set(entry["contenders"]) == {"npkernels", "numpy", *peers.installed()}
    ours = entry["contenders"]["npkernels"]
    assert ours["ratio"] == 1
    assert 0 < ours["best"] <= ours["seconds"] < 1e-3
    assert ours["rounds"] >= 3
    line = next(line for line in done.stdout.splitlines() if line.startswith("softmax float32 10"))
    assert f"{entry['contenders']['numpy']['ratio']:.2f} x" in line


def example() -> bench.Run:
    limits = machine.Limits(multiply_adds=1e11, read=2e10, copy=3e10, stream_copy=4e10)
    chosen = [workloads.cross_entropy((2, 300)), workloads_attention.attention(1, 2, 30, 8), SMALL[1]]
    outcomes = [bench.Outcome(w, {"npkernels": [1e-4], "numpy": [3e-4], "torch": [2e-4]}) for w in chosen]
    return bench.Run({"processor": "<one> & only"}, limits, outcomes)


def test_page_needs_nothing_else():
    pytest.importorskip("matplotlib")
    text = page.html(example())
    assert text.startswith("<!doctype html>")
    assert "://" not in text
    references = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(references) == 2
    assert all(r.startswith("data:image/png;base64,iVBOR") for r in references)
    assert "<script" not in text
    assert "&lt;one&gt; &amp; only" in text
    for outcome in example().outcomes:
        assert outcome.workload.name in text
    assert "3.00 x" in text


def test_page_of_cached_workloads_has_no_roofline():
    pytest.importorskip("matplotlib")
    only = example()
    assert page.html(replace(only, outcomes=only.outcomes[-1:])).count("<img") == 1


def test_page_needs_matplotlib(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else found(name, *a)
    )
    assert "pip install 'npkernels[plot]'" in fails(capsys, "bench", "--quick", "--html", "unwritten.html")


def test_bench_names_the_choices(monkeypatch, capsys):
    assert "invalid choice: 'convolution'" in fails(capsys, "bench", "--family", "convolution")
    assert "'jax' is no peer; expected some of torch, scipy" in fails(capsys, "bench", "--against", "jax")
    monkeypatch.setattr(peers, "installed", lambda: ["scipy"])
    message = fails(capsys, "bench", "--against", "scipy,torch")
    assert "torch is not installed (pip install 'npkernels[peers]')" in message
    message = fails(capsys, "bench", "--only", "softmin", "--family", "grpo")
    assert (
        "no workload of the family grpo has 'softmin' in its name; a name is like 'group_advantages "
        in message
    )
    assert "the kernels are group_advantages, policy_loss" in message
    message = fails(capsys, "bench", "--quick", "--only", "attention float32 1x8x4096x64")
    assert (
        "no quick workload has 'attention float32 1x8x4096x64' in its name; there is one without" in message
    )
    assert "n is 0; expected a positive integer" in fails(capsys, "bench", "--quick", "--threads", "0")
    assert peers.choose([]) == []
    for option in ("--html", "--json"):
        message = fails(capsys, "bench", "--against", "", option, "no/such/folder/report")
        assert f"argument {option}: there is no folder 'no/such/folder'" in message
        assert f"argument {option}: '.' is a folder" in fails(capsys, "bench", "--against", "", option, ".")
        message = fails(capsys, "bench", "--against", "", option, "")
        assert f"argument {option}: the name of the file is empty" in message


def test_two_reports_need_two_files(capsys):
    assert "the file is that of --json" in fails(
        capsys,
        "bench",
        "--against",
        "",
        "--only",
        "softmax float32 10",
        "--quick",
        "--json",
        "a.json",
        "--html",
        "./a.json",
    )


def test_a_file_that_cannot_be_written_is_told_before(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(str(path)) or False)
    for file in (tmp_path / "new.json", tmp_path / "old.json"):
        (tmp_path / "old.json").touch()
        message = fails(capsys, "bench", "--against", "", "--json", str(file))
        assert f"argument --json: '{file}' cannot be written to" in message
    assert asked == [str(tmp_path), str(tmp_path / "old.json")]


def test_a_report_that_cannot_be_written_leaves_the_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "run", lambda *_: example())
    file = tmp_path / "folder" / "report.json"
    file.parent.mkdir()
    monkeypatch.setattr(bench, "_report", lambda *_: file.parent.rmdir() or "lost")
    assert main(["bench", "--against", "", "--json", str(file)]) == 1
    out, err = capsys.readouterr()
    assert f"bench: '{file}' could not be written: No such file or directory" in err
    assert "3.00 x" in out


# --- while it runs


class Screen(io.StringIO):
    """stderr that is a terminal, or not."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_in_a_terminal_says_what_is_at_work(monkeypatch, terminal):
    pytest.importorskip("tqdm")
    monkeypatch.setenv("COLUMNS", "200")
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    limits = machine.Limits(1e11, 1e10, 1e10, 1e10)
    monkeypatch.setattr(machine, "probe", lambda quick: limits)
    monkeypatch.setattr(bench, "measure", lambda w, names, seconds: bench.Outcome(w, {"npkernels": [1e-6]}))
    assert main(["bench", "--against", "", "--only", "softmax float32 64x64"]) == 0
    isa = npkernels.isa()
    assert main(["check", "--kernel", "perplexity", "--isa", f"{isa},{isa}"]) == 0
    said = screen.getvalue()
    assert ("softmax float32 64x64" in said) == terminal
    assert ("perplexity float64" in said) == terminal
    assert terminal or said == ""


def test_closed_output_is_no_error(monkeypatch):
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdout", None)
        closed.setattr(sys, "stderr", None)
        assert main(["check", "--kernel", "perplexity", "--isa", npkernels.isa()]) == 0


@pytest.mark.parametrize("command", ["check", "bench"])
def test_ctrl_c_ends_without_a_traceback(command, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", interrupted)
    monkeypatch.setattr(bench, "run", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr().err == "\npython -m npkernels: interrupted\n"


@pytest.mark.parametrize("arguments", [["info"], ["check", "--kernel", "perplexity"]])
def test_output_that_nobody_reads_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "npkernels", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
