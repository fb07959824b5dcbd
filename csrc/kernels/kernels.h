// The kernels of one instruction set, as kernels/table.cpp lists them.
#pragma once

#include "table.h"

namespace npkernels::NPK_ISA {

void softmax(const RowCall&);
void log_softmax(const RowCall&);
void logsumexp(const StatsCall&);
void softmax_vjp(const RowCall&);
void log_softmax_vjp(const RowCall&);
void logsumexp_vjp(const RowGradCall&);
void softmax_jvp(const RowCall&);
void log_softmax_jvp(const RowCall&);
void logsumexp_jvp(const StatsCall&);
void token_log_probs(const StatsCall&);
void token_log_probs_vjp(const RowGradCall&);
void cross_entropy(const LossCall&);
void attention(const AttentionCall&);
int64_t attention_scratch(const AttentionCall&);
int64_t attention_block(DType);
void attention_join(const JoinCall&);
void attention_vjp(const AttentionVjpCall&, VjpStep);
int64_t attention_vjp_scratch(const AttentionVjpCall&);
void attention_jvp(const AttentionJvpCall&);
int64_t attention_jvp_scratch(const AttentionJvpCall&);
void merge_attention(const MergeCall&);
void rotary(const RotaryCall&);
double probe_fma(int64_t steps);
double probe_stream(const char* source, char* target, int64_t bytes, int kind);

void group_advantages(const GroupCall&);
void policy_loss(const PolicyCall&);
void token_policy_loss(const TokenPolicyCall&);
void scan(const ScanCall&);
void beam_step(const BeamCall&);
void sample(const SampleCall&);
void step_linf(const PerturbCall&);
void step_norms(const PerturbCall&);
void momentum(const PerturbCall&);
void random_in_ball(const PerturbCall&);
void outside_bounds(const PerturbCall&);

}  // namespace npkernels::NPK_ISA
