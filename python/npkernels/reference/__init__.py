"""The specification: every function of the package, with its name and signature, as a formula in NumPy.

Differences to the package itself: there is no `out=`; NumPy arrays come back whatever came in; and results
are wider, float64 for 16-bit and float32 inputs and longdouble for float64 and integers, so that they can
judge the kernels.

Examples
--------
>>> import numpy as np
>>> softmax(np.float32([0, 0]))
array([0.5, 0.5])
"""

from . import lipschitz as lipschitz
from . import perturb as perturb
from .attention import attention, attention_weights, merge_attention
from .attention_grads import attention_jvp, attention_vjp
from .attention_varlen import attention_varlen, attention_varlen_vjp
from .cached_attention import cached_attention
from .grpo_advantages import advantages_from_stats, group_advantages, group_stats, merge_group_stats
from .grpo_decoding import beam_step, sample
from .grpo_losses import kl_divergence, policy_loss, token_policy_loss
from .grpo_returns import discounted_returns, gae, pass_at_k
from .losses import cross_entropy, nll_loss
from .multi_head import multi_head_attention, multi_head_attention_vjp
from .rotary import rotary_embedding, rotary_embedding_vjp
from .softmax import (
    entropy,
    log_softmax,
    log_softmax_jvp,
    log_softmax_vjp,
    logsumexp,
    logsumexp_jvp,
    logsumexp_vjp,
    softmax,
    softmax_jvp,
    softmax_vjp,
)
from .token_stats import perplexity, token_log_probs, token_log_probs_vjp

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
