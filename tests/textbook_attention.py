"""Attention once more, as a textbook has it, in PyTorch's float64: what the reference is compared with.

Nothing is shared with the reference. Which key is hidden is decided pair by pair in Python, dropout is done with
Python's integers, and the softmax is exp over its sum, as the scores of the tests are small. PyTorch differentiates.
"""

import itertools
import math

import numpy as np

M32, M64 = 2**32 - 1, 2**64 - 1


def dropout_number(seed, row, key):
    """The 32 bits that decide about one weight."""
    z = (seed + (row + 1) * 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    z ^= z >> 31

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & M32
        x = ((x ^ (x >> 15)) * 0x846CA68B) & M32
        return x ^ (x >> 16)

    return mix((mix(key ^ (z & M32)) + (z >> 32)) & M32)


def visible(b, i, j, S, K, options):
    """Whether query i of batch b may look at key j, but for `mask`; and how far away it is."""
    lengths, offset = options.get("kv_lengths"), options.get("q_offset")
    causal, (left, right) = options.get("causal", False), options.get("window") or (-1, -1)
    count = K if lengths is None else lengths[b]
    if offset is not None:
        p = i + np.ravel(offset)[b % np.size(offset)]
    elif causal == "bottom_right":
        p = i + count - S
    else:
        p = i
    seen = j < count
    if causal and j > p:
        seen = False
    if left != -1 and j < p - left:
        seen = False
    if right != -1 and j > p + right:
        seen = False
    return bool(seen), abs(int(p) - j)


def attention(torch, q, k, v, bias=None, sinks=None, **options):
    """(out, lse) for tensors; q, k, v, bias and sinks may ask for gradients, the other options are NumPy's."""
    (B, H, S, D), (_, Hk, K, _) = q.shape, k.shape
    seen, distance = np.zeros((B, 1, S, K), bool), np.zeros((B, 1, S, K))
    for b, i, j in itertools.product(range(B), range(S), range(K)):
        seen[b, 0, i, j], distance[b, 0, i, j] = visible(b, i, j, S, K, options)
    if options.get("mask") is not None:
        seen = seen & options["mask"]
    scale = 1 / math.sqrt(D) if options.get("scale") is None else options["scale"]
    k, v = (x.repeat_interleave(H // Hk, dim=1) for x in (k, v))
    s = scale * torch.einsum("bhid,bhjd->bhij", q, k)
    if options.get("softcap"):
        s = options["softcap"] * torch.tanh(s / options["softcap"])
    if bias is not None:
        s = s + bias
    if options.get("alibi_slopes") is not None:
        slopes = np.broadcast_to(options["alibi_slopes"], (B, H))[:, :, None, None]
        s = s - torch.tensor(slopes * distance)
    e = torch.where(torch.tensor(np.broadcast_to(seen, s.shape).copy()), torch.exp(s), 0.0)
    total = e.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks)[:, None, None]
    empty = total == 0
    weights = e / torch.where(empty, 1.0, total)
    if options.get("dropout_p"):
        p, seed = options["dropout_p"], options["dropout_seed"]
        keep = [
            dropout_number(seed, row, j) >= math.floor(p * 2**32)
            for row in range(B * H * S)
            for j in range(K)
        ]
        weights = weights * torch.tensor(keep).reshape(B, H, S, K) / (1 - p)
    lse = torch.where(empty, -math.inf, torch.log(torch.where(empty, 1.0, total)))
    return torch.einsum("bhij,bhjd->bhid", weights, v), lse[..., 0]
