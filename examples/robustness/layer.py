"""``python -m robustness.layer``: how far SmolLM2's first attention layer moves for the worst small change.

The layer: x (S, E), already normalised, to queries, keys and values, rotary positions, causal attention, and the output
matrix. Its Jacobian at a sentence is never formed: a product with it is one `attention_jvp` between matrix products,
one with its transpose one `attention_vjp`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import npkernels
from npkernels import lipschitz
from smollm2.model import Llama, rms_norm
from smollm2.tokenizer import Tokenizer
from smollm2.weights import load_weights, open_gguf

Array = npt.NDArray[np.float32]
SENTENCE = "The old bridge over the river was closed because the water had risen too high."


class AttentionLayer:
    """The first attention layer of a model as a function of its normalised input, with its derivatives."""

    def __init__(self, model: Llama) -> None:
        self.layer, self.config = model.weights.layers[0], model.config
        half = self.config.head_dim // 2
        self.frequency = self.config.rope_base ** (-np.arange(half) / half)

    def _tables(self, length: int) -> dict[str, Array]:
        angle = np.arange(length)[:, None] * self.frequency
        return {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}

    def into(self, x: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values, (heads, S, D): linear in x."""
        c = self.config
        heads = np.ascontiguousarray(
            (x @ self.layer.qkv.T).reshape(len(x), -1, c.head_dim).transpose(1, 0, 2)
        )
        turned = npkernels.rotary_embedding(
            heads[: c.heads + c.kv_heads], **self._tables(len(x)), interleaved=True
        )
        return turned[: c.heads], turned[c.heads :], heads[c.heads + c.kv_heads :]

    def back(self, dq: Array, dk: Array, dv: Array) -> Array:
        """The transpose of `into`."""
        turned = np.concatenate([dq, dk])
        plain = npkernels.rotary_embedding_vjp(turned, **self._tables(dq.shape[1]), interleaved=True)
        heads = np.concatenate([plain, dv]).transpose(1, 0, 2)
        return np.asarray(heads.reshape(len(heads), -1) @ self.layer.qkv)

    def out(self, mixed: Array) -> Array:
        """What the heads found, (heads, S, D), through the output matrix."""
        return np.asarray(mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1) @ self.layer.output.T)

    def out_back(self, dy: Array) -> Array:
        """The transpose of `out`."""
        c = self.config
        return np.ascontiguousarray((dy @ self.layer.output).reshape(len(dy), c.heads, -1).transpose(1, 0, 2))

    def __call__(self, x: Array) -> Array:
        """The layer's output, (S, E)."""
        return self.out(npkernels.attention(*self.into(x), causal="top_left"))

    def norm(self, x: Array, tol: float = 1e-3) -> lipschitz.Bound:
        """The spectral norm of the Jacobian at x, and the direction that attains it."""
        q, k, v = self.into(x)
        o, lse = npkernels.attention(q, k, v, causal="top_left", return_lse=True)

        def jvp(d: Array) -> Array:
            tangents = self.into(d.astype(np.float32))
            return self.out(npkernels.attention_jvp(q, k, v, *tangents, causal="top_left")[1])

        def vjp(dy: Array) -> Array:
            do = self.out_back(dy.astype(np.float32))
            grads = npkernels.attention_vjp(do, q, k, v, o, lse, causal="top_left")
            return self.back(grads.dq, grads.dk, grads.dv)

        return lipschitz.spectral_norm((jvp, vjp), shape=x.shape, tol=tol)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the norm, and which tokens the worst change is made of."""
    parser = argparse.ArgumentParser(prog="python -m robustness.layer", description=__doc__)
    parser.add_argument("--sentence", default=SENTENCE)
    options = parser.parse_args(arguments)
    reader = open_gguf()
    model, tokenizer = Llama(load_weights(reader, progress=True)), Tokenizer(reader)
    ids = np.asarray(tokenizer.encode(options.sentence))
    first = model.weights.layers[0]
    x = rms_norm(model.weights.embedding[ids], first.attention_norm, model.config.norm_eps)
    layer = AttentionLayer(model)
    b = layer.norm(x)
    d = np.asarray(b.direction, np.float32)
    step = 1e-2 / np.abs(d).max()
    slope = np.linalg.norm((layer(x + step * d) - layer(x - step * d)) / (2 * step))
    random = lipschitz.local_lipschitz(lambda z: np.stack([layer(s) for s in z]), x[None], 1e-2, n=20)
    print(f"{len(ids)} tokens, {x.shape[1]} numbers each")
    print(
        f"norm of the Jacobian      {float(b):8.3f}   ({b.details['iterations']} iterations, residual {b.residual:.0e})"
    )
    print(f"slope along its direction {slope:8.3f}")
    print(f"best of 20 random secants {float(random):8.3f}")
    share = (d.astype(np.float64) ** 2).sum(axis=1)
    print("\nshare of the worst change by token")
    for i in np.argsort(-share)[:5]:
        print(f"{100 * share[i]:5.1f} %  {i:>3}  {tokenizer.decode([int(ids[i])])!r}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
