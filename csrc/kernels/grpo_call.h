// Calls of the GRPO family.
#pragma once

#include "npkernels/grpo.h"
#include "row_call.h"

namespace npkernels {

// Letters: B samples, n groups.
struct GroupCall {
  Rewards rewards;
  Groups groups;
  AdvantageOptions options;
  double* stats = nullptr;         // (n, 5)
  double* transform = nullptr;     // (n, 3): scratch
  const int64_t* first = nullptr;  // (n + 1,): where each group begins, where groups.size is 0
  void* advantages = nullptr;      // (B,) of the rewards' dtype; null: statistics only

  int64_t begin(int64_t g) const { return first ? first[g] : g * groups.size; }
  int64_t length(int64_t g) const { return begin(g + 1) - begin(g); }
  // The usual length of a group, at least 1.
  int64_t usual() const {
    const int64_t size = first ? (groups.samples + groups.n - 1) / groups.n : groups.size;
    return size > 0 ? size : 1;
  }
};

// The tokens of sequence s are begin(s) .. begin(s + 1) - 1.
struct SequenceCall {
  DType dtype = DType::float32;
  int64_t sequences = 0, length = 0;  // length: of every sequence, where ends is null
  const int64_t* ends = nullptr;      // (sequences + 1,)
  int64_t begin(int64_t s) const { return ends ? ends[s] : s * length; }
  int64_t tokens() const { return begin(sequences); }
};

struct PolicyCall : SequenceCall {
  const void *logp = nullptr, *old_logp = nullptr, *ref_logp = nullptr, *sampler_logp = nullptr,
             *entropy = nullptr;
  const void* advantages = nullptr;
  bool per_token = false;
  const uint8_t* mask = nullptr;
  PolicyOptions options;
  const int64_t* counts = nullptr;  // kept tokens of each sequence
  const double* weights = nullptr;  // of each token, by sequence
  double* sums = nullptr;           // (sequences, kPolicySums)
  void* dlogp = nullptr;
};

// Rows of logits; the other arrays have an entry per row, of the compute dtype unless a type is given.
struct TokenPolicyCall : RowCall {
  const int64_t* ids = nullptr;  // negative: left out, gradient 0
  const void *old_logp = nullptr, *ref_logp = nullptr, *advantages = nullptr, *correction = nullptr;
  const double* weights = nullptr;
  PolicyOptions options;
  bool want_entropy = false;
  double* sums = nullptr;  // (rows, kPolicySums)
};

struct ScanCall : SequenceCall {
  const void *rewards = nullptr, *values = nullptr;  // values null: plain returns
  const uint8_t *mask = nullptr, *dones = nullptr;
  const double *gamma = nullptr, *lam = nullptr, *last = nullptr;  // of each sequence
  void *advantages = nullptr, *returns = nullptr;
};

struct BeamCall {
  DType dtype = DType::float32;
  int64_t batch = 0, beams = 0, vocabulary = 0, width = 0;
  const void *log_probs = nullptr, *scores = nullptr;
  void* best = nullptr;
  int64_t *beam = nullptr, *token = nullptr;
};

struct SampleCall : RowCall {
  int64_t top_k = 0;  // 0: all
  double top_p = 1, min_p = 0;
  const double* u = nullptr;  // per row, in [0, 1)
  int64_t* ids = nullptr;
};

}  // namespace npkernels
