"""The same functions as NumPy users write them: textbook formulas in the dtype of the input.

16-bit inputs are computed in float32 and rounded once at the end; statistics of rows (logsumexp, entropy, losses) stay
in float32. These formulas set the allowance of the accuracy gate, and they are the NumPy that the kernels are timed
beside. They know the options of the functions, but not the special cases (rows without entries, infinities); the
specification is `npkernels.reference`.
"""

from npkernels._cli.plain import perturb
from npkernels._cli.plain.attention import attention, attention_weights, merge_attention
from npkernels._cli.plain.attention_grads import attention_jvp, attention_vjp
from npkernels._cli.plain.attention_varlen import attention_varlen, attention_varlen_vjp
from npkernels._cli.plain.cached_attention import cached_attention
from npkernels._cli.plain.grpo import (
    advantages_from_stats,
    beam_step,
    discounted_returns,
    gae,
    group_advantages,
    group_stats,
    kl_divergence,
    merge_group_stats,
    pass_at_k,
    policy_loss,
    sample,
    token_policy_loss,
)
from npkernels._cli.plain.multi_head import multi_head_attention, multi_head_attention_vjp
from npkernels._cli.plain.rotary import rotary_embedding, rotary_embedding_vjp
from npkernels._cli.plain.softmax import (
    cross_entropy,
    entropy,
    log_softmax,
    log_softmax_jvp,
    log_softmax_vjp,
    logsumexp,
    logsumexp_jvp,
    logsumexp_vjp,
    nll_loss,
    perplexity,
    softmax,
    softmax_jvp,
    softmax_vjp,
    token_log_probs,
    token_log_probs_vjp,
)

__all__ = [
    "advantages_from_stats",
    "attention",
    "attention_jvp",
    "attention_varlen",
    "attention_varlen_vjp",
    "attention_vjp",
    "attention_weights",
    "beam_step",
    "cached_attention",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "gae",
    "group_advantages",
    "group_stats",
    "kl_divergence",
    "log_softmax",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "merge_attention",
    "merge_group_stats",
    "multi_head_attention",
    "multi_head_attention_vjp",
    "nll_loss",
    "pass_at_k",
    "perplexity",
    "perturb",
    "policy_loss",
    "rotary_embedding",
    "rotary_embedding_vjp",
    "sample",
    "softmax",
    "softmax_jvp",
    "softmax_vjp",
    "token_log_probs",
    "token_log_probs_vjp",
    "token_policy_loss",
]
