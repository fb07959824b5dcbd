"""npkernels in JAX: attention, softmax and token statistics under `jit`, `vmap` and `grad`, on CPU.

Needs JAX, the extra `jax`. See docs/jax.md.
"""

from npkernels.jax._attention import attention
from npkernels.jax._softmax import log_softmax, logsumexp, softmax
from npkernels.jax._tokens import token_log_probs

__all__ = ["attention", "log_softmax", "logsumexp", "softmax", "token_log_probs"]
