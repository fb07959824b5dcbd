"""Attention of Hugging Face Transformers by npkernels: after `register()`, ``attn_implementation="npkernels"``."""

from __future__ import annotations

from typing import Any

from npkernels._party import party  # isort: skip  (before anything else imports them)

party("npkernels.transformers", "torch", "2.4", "npkernels[transformers]")
party("npkernels.transformers", "transformers", "5.0", "npkernels[transformers]", before="6")

import torch  # noqa: E402
from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402

from npkernels._torch_attention import dropout_seed, tensor_attention  # noqa: E402
from npkernels._transformers_cache import GrowingCache  # noqa: E402
from npkernels._transformers_mask import PatternMask, npkernels_mask  # noqa: E402

__all__ = ["GrowingCache", "npkernels_attention", "npkernels_mask", "register"]

_FUNCTION = "npkernels_attention"
# What models hand over that changes the result, and that nobody here does.
_UNSERVED = ("output_attentions", "head_mask", "layer_head_mask", "block_indices", "sinks", "block_table")


def register(name: str = "npkernels") -> None:
    """Make ``attn_implementation=name`` known to every model of Transformers that uses the attention interface.

    Both halves are registered: the attention function, and the mask function without which Transformers would drop the
    padding without a word. Calling it again changes nothing.

    Parameters
    ----------
    name : str
        What is written for ``attn_implementation``.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If it is one of Transformers' own implementations.

    Examples
    --------
    >>> import torch, transformers, npkernels.transformers
    >>> npkernels.transformers.register()
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
    ...     num_key_value_heads=2, attn_implementation="npkernels")
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 16])
    """
    if not isinstance(name, str):
        raise TypeError(f"register: name is {name!r}; expected a string")
    known: Any = AttentionInterface
    current = known().get(name)
    if name == "eager" or current not in (None, npkernels_attention):
        raise ValueError(f"register: name is {name!r}, which is taken; expected another, such as 'npkernels'")
    AttentionInterface.register(name, npkernels_attention)
    AttentionMaskInterface.register(name, npkernels_mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def npkernels_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as the layers of Transformers call it.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer; without a mask its ``is_causal`` counts.
    query : tensor (B, Hq, S, D)
        float32, float64, float16 or bfloat16, on the CPU, of any strides.
    key, value : tensor (B, Hkv, K, D), (B, Hkv, K, Dv)
        Hq is a multiple of Hkv; nothing is repeated.
    attention_mask : tensor that broadcasts to (B, Hq, S, K), optional
        bool, True = may attend, or floating, added to the scores. A `PatternMask` is taken as its rule, so that what it
        hides is not computed. It has the last word: `is_causal` and `sliding_window` only count without a mask.
    dropout : float
        The share of weights that are dropped; `torch.manual_seed` decides which.
    scaling : float, optional
        Default ``1 / sqrt(D)``.
    is_causal : bool, optional
        Instead of the module's.
    position_bias : tensor that broadcasts to (B, Hq, S, K), optional
        Added to the scores; differentiable.
    sliding_window : int, optional
        Without a mask: how many keys a query sees, itself included.
    softcap : float, optional
        c bounds the scaled products: s becomes ``c * tanh(s / c)``.
    s_aux : tensor (Hq,), optional
        Attention sinks: a logit per head in the denominator only; differentiable.
    **kwargs
        What else layers hand over and attention does not need.

    Returns
    -------
    out : tensor (B, S, Hq, Dv)
        Contiguous. A query with nothing to attend to gives 0.
    None
        Weights are never made.

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or device does not fit, or an option is asked for that is not served: ``output_attentions``,
        ``head_mask``, ``block_indices``, ``sinks``, ``block_table``.

    Examples
    --------
    >>> import torch
    >>> from npkernels.transformers import npkernels_attention
    >>> q, v = torch.zeros(1, 2, 2, 4), torch.tensor([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> out, _ = npkernels_attention(torch.nn.Identity(), q, q[:, :1], v, None, is_causal=True)
    >>> out[0, :, 0, 0]
    tensor([1., 2.])
    """
    for name in _UNSERVED:
        given = kwargs.get(name)
        if given is not None and given is not False:
            raise ValueError(
                f"{_FUNCTION}: {name} is given, which is not served; expected none (use attn_implementation='eager')"
            )
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = (
            x.to(dtype) if x.dtype in (torch.float32, torch.float16, torch.bfloat16) else x
            for x in (query, key, value)
        )
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        options, bias = (
            _options_without_mask(bool(causal), query.shape[2], key.shape[2], sliding_window),
            None,
        )
    else:
        options, bias = _mask_options(query, key, attention_mask)
    if scaling == query.shape[-1] ** -0.5:  # the default, for which calls are checked more quickly
        scaling = None
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    out, _ = tensor_attention(
        _FUNCTION,
        query,
        key,
        value,
        bias=None if bias is None else bias.to(query.dtype),
        sinks=None if s_aux is None else s_aux.to(query.dtype),
        scale=scaling,
        softcap=softcap or 0.0,
        dropout_p=dropout,
        dropout_seed=dropout_seed(dropout),
        **options,
    )
    return out.transpose(1, 2).contiguous(), None


def _mask_options(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor
) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Return what a mask says as options of `attention`, and as a bias."""
    if isinstance(mask, PatternMask):
        if mask.is_rule and mask.shape[2:] == (query.shape[2], key.shape[2]):
            return mask.options(), None
        mask = mask.values_now()
    if mask.ndim != 4:
        raise ValueError(
            f"{_FUNCTION}: attention_mask has shape {tuple(mask.shape)}; expected one that broadcasts to (B, Hq, S, K)"
        )
    if mask.dtype == torch.bool:
        return {"mask": mask}, None
    if not mask.is_floating_point():
        raise TypeError(
            f"{_FUNCTION}: attention_mask has dtype {mask.dtype}; expected bool or a floating one"
        )
    return {}, mask


def _options_without_mask(
    causal: bool, queries: int, keys: int, sliding_window: int | None
) -> dict[str, Any]:
    """As "sdpa" has it: one query sees all keys, several are aligned with the first ones (an empty static cache)."""
    if sliding_window is None:
        return {"causal": "top_left"} if causal and queries > 1 else {}
    if not causal:
        raise ValueError(
            f"{_FUNCTION}: sliding_window is {sliding_window} without a mask in a layer that is not causal; expected "
            "the mask that Transformers makes for it"
        )
    return {"window": (sliding_window - 1, 0), "q_offset": 0 if queries > 1 else keys - 1}
