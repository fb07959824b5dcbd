"""npkernels on PyTorch's CPU tensors, with autograd, forward mode and torch.compile.

Results and gradients are in the memory that the kernels wrote: nothing is copied on the way. Derivatives are of first
order; a second one is an error.
"""

from npkernels._party import party  # isort: skip  (before anything else imports PyTorch)

# the first with torch.library.custom_op, register_autograd and unsigned 16-bit tensors
party("npkernels.torch", "torch", "2.4", "npkernels[torch]")

from npkernels.torch._attention import attention, attention_varlen  # noqa: E402
from npkernels.torch._losses import cross_entropy  # noqa: E402
from npkernels.torch._policy import policy_loss, token_policy_loss  # noqa: E402
from npkernels.torch._sdpa import replace_sdpa, scaled_dot_product_attention  # noqa: E402
from npkernels.torch._softmax import log_softmax, logsumexp, softmax  # noqa: E402
from npkernels.torch._tokens import entropy, token_log_probs  # noqa: E402

__all__ = [
    "attention",
    "attention_varlen",
    "cross_entropy",
    "entropy",
    "log_softmax",
    "logsumexp",
    "policy_loss",
    "replace_sdpa",
    "scaled_dot_product_attention",
    "softmax",
    "token_log_probs",
    "token_policy_loss",
]
