"""The hot CPU kernels of reasoning models: NumPy arrays in and out, no deep-learning framework needed."""

from npkernels._load import __version__  # isort: skip  (before anything else loads the compiled module)
from npkernels import lipschitz, perturb, plot, reference
from npkernels._advantages import group_advantages
from npkernels._attention import attention, attention_weights, merge_attention
from npkernels._attention_grads import attention_jvp, attention_vjp
from npkernels._attention_varlen import attention_varlen, attention_varlen_vjp
from npkernels._build import get_cmake_dir, get_include
from npkernels._cache import KVCache
from npkernels._checked import MismatchError, checked
from npkernels._clibrary import c_library, get_address
from npkernels._config import (
    available_isas,
    check_environment,
    get_num_threads,
    isa,
    num_threads,
    set_isa,
    set_num_threads,
    show_config,
    use_isa,
)
from npkernels._decoding import beam_step, sample
from npkernels._group_stats import advantages_from_stats, group_stats, merge_group_stats
from npkernels._grpo_types import GroupAdvantages, PolicyLoss, PolicyMetrics
from npkernels._kl import kl_divergence
from npkernels._losses import cross_entropy, nll_loss, perplexity
from npkernels._multi_head import multi_head_attention, multi_head_attention_vjp
from npkernels._policy import policy_loss
from npkernels._returns import discounted_returns, gae, pass_at_k
from npkernels._rotary import rotary_embedding, rotary_embedding_vjp
from npkernels._softmax import (
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
from npkernels._token_policy import token_policy_loss
from npkernels._tokens import token_log_probs, token_log_probs_vjp
from npkernels._types import AttentionGrads, MultiHeadGrads, TokenStats

check_environment()

__all__ = [
    "AttentionGrads",
    "GroupAdvantages",
    "KVCache",
    "MismatchError",
    "MultiHeadGrads",
    "PolicyLoss",
    "PolicyMetrics",
    "TokenStats",
    "__version__",
    "advantages_from_stats",
    "attention",
    "attention_jvp",
    "attention_varlen",
    "attention_varlen_vjp",
    "attention_vjp",
    "attention_weights",
    "available_isas",
    "beam_step",
    "c_library",
    "checked",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "gae",
    "get_address",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "group_advantages",
    "group_stats",
    "isa",
    "kl_divergence",
    "lipschitz",
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
    "num_threads",
    "pass_at_k",
    "perplexity",
    "perturb",
    "plot",
    "policy_loss",
    "reference",
    "rotary_embedding",
    "rotary_embedding_vjp",
    "sample",
    "set_isa",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_jvp",
    "softmax_vjp",
    "token_log_probs",
    "token_log_probs_vjp",
    "token_policy_loss",
    "use_isa",
]
