#include "kernels.h"

namespace npkernels::NPK_ISA {

extern const KernelTable table;
const KernelTable table = {
    softmax,
    log_softmax,
    logsumexp,
    softmax_vjp,
    log_softmax_vjp,
    logsumexp_vjp,
    softmax_jvp,
    log_softmax_jvp,
    logsumexp_jvp,
    token_log_probs,
    token_log_probs_vjp,
    cross_entropy,
    attention,
    attention_scratch,
    attention_block,
    attention_join,
    attention_vjp,
    attention_vjp_scratch,
    attention_jvp,
    attention_jvp_scratch,
    merge_attention,
    rotary,
    probe_fma,
    probe_stream,
    group_advantages,
    policy_loss,
    token_policy_loss,
    scan,
    beam_step,
    sample,
    // perturbation
    step_linf,
    step_norms,
    momentum,
    random_in_ball,
    outside_bounds,
};

}  // namespace npkernels::NPK_ISA
