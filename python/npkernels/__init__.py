"""The hot CPU kernels of reasoning models: NumPy arrays in and out, no deep-learning framework needed."""

from npkernels._load import __version__  # isort: skip  (before anything else loads the compiled module)
from npkernels import reference
from npkernels._advantages import advantages_from_stats, group_advantages, group_stats, merge_group_stats
from npkernels._attention import (
    attention,
    attention_weights,
    merge_attention,
    rotary_embedding,
    rotary_embedding_vjp,
)
from npkernels._build import get_cmake_dir, get_include
from npkernels._checked import MismatchError, checked
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
from npkernels._grpo_types import GroupAdvantages, PolicyLoss, PolicyMetrics
from npkernels._losses import cross_entropy, nll_loss, perplexity
from npkernels._policy import kl_divergence, policy_loss, token_policy_loss
from npkernels._returns import discounted_returns, gae, pass_at_k
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
from npkernels._tokens import token_log_probs, token_log_probs_vjp
from npkernels._types import TokenStats

check_environment()

__all__ = [
    "GroupAdvantages",
    "MismatchError",
    "PolicyLoss",
    "PolicyMetrics",
    "TokenStats",
    "__version__",
    "advantages_from_stats",
    "attention",
    "attention_weights",
    "available_isas",
    "beam_step",
    "checked",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "gae",
    "get_cmake_dir",
    "get_include",
    "get_num_threads",
    "group_advantages",
    "group_stats",
    "isa",
    "kl_divergence",
    "log_softmax",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "merge_attention",
    "merge_group_stats",
    "nll_loss",
    "num_threads",
    "pass_at_k",
    "perplexity",
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
