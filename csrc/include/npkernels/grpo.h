// The GRPO family: statistics and advantages of groups of rewards, policy losses with their gradients,
// returns along time, and the choice of tokens by a beam.
//
// Letters: B samples or sequences, n groups, T tokens of a sequence, V vocabulary. Arrays are contiguous.
// Preconditions (lengths agree, indices in range) are the caller's: the Python layer checks them.
#pragma once

#include "array.h"

namespace npkernels {

// Numbers ids in the order of their first appearance: index[i] is the number of ids[i], keys[number] the id.
// keys has room for B. Returns how many there are; -1 if memory for the table cannot be had.
NPK_API int64_t number_groups(const int64_t* ids, int64_t B, int64_t* index, int64_t* keys);

// Which samples belong together: consecutive ones of `size`, or, with size 0, those of equal index[i] in [0,
// n).
struct Groups {
  int64_t samples;
  int64_t n;
  int64_t size;
  const int64_t* index;
};

// Rewards, float32 or float64; NaN takes no part.
struct Rewards {
  const void* data;
  DType dtype;
};

// state (n, 5): count, mean, sum of squared deviations, min, max; 0, 0, 0, inf, -inf for a group without
// rewards. Returns false if memory cannot be had (index only); then nothing was written.
NPK_API bool group_stats(const Rewards&, const Groups&, double* state);

enum class Baseline : int32_t { mean = 0, leave_one_out = 1, none = 2 };
enum class Scale : int32_t { group = 0, batch = 1, none = 2 };

struct AdvantageOptions {
  Baseline baseline;
  Scale scale;
  int32_t ddof;  // 0 or 1
  double eps;
  bool lone_reward;  // a group of one keeps its reward, over 1 + eps if scaled
  bool over_mean;    // (r - mean) / mean
};

// a = (r - baseline) / (deviation + eps), of the dtype of the rewards; exactly 0 for groups whose rewards are
// all equal (unless neither baseline nor scale is there) and for NaN. stats (n, 5): count, mean, standard
// deviation, min, max.
NPK_API bool group_advantages(const Rewards&, const Groups&, const AdvantageOptions&, void* a, double* stats);

// Sequences of tokens one after the other: of `length` each, or, with ends (count + 1,), sequence s from
// ends[s] to ends[s + 1].
struct Sequences {
  int64_t count;
  int64_t length;
  const int64_t* ends;
};

enum class Surrogate : int32_t { clip = 0, cap = 1, range = 2, gate = 3, geometric = 4, log = 5 };
enum class Kl : int32_t { k1 = 0, k2 = 1, k3 = 2, k3_plus = 3 };
enum class Aggregate : int32_t {
  token_mean = 0,
  token_sum = 1,
  seq_mean_token_sum = 2,
  seq_mean_token_mean = 3,
  seq_mean_token_sum_norm = 4
};

// rho = exp(logp - old_logp) of each token, or of the mean over its sequence; the surrogates are
//   clip       -min(min(rho, delta) A, clip(rho, 1 - low, 1 + high) A), for A < 0 at most -dual_clip A
//   cap        -min(rho, high) A logp, the ratio held constant;  range: clip(rho, 1 - low, 1 + high) A logp
//   gate       -4 / tau sigmoid(tau (rho - 1)) A, tau by the sign of A
//   geometric  -rho A, rho = exp(mean of the clipped logp - old_logp); sequence level only
//   log        -A logp; token level only
struct PolicyOptions {
  Surrogate surrogate = Surrogate::clip;
  bool sequence_level = false;
  Aggregate aggregate = Aggregate::token_mean;
  double max_length = 1;     // of seq_mean_token_sum_norm
  double total_tokens = -1;  // of token_mean; negative: those that are kept
  double clip_low = 0.2, clip_high = 0.2;
  double delta = __builtin_inf(), dual_clip = __builtin_inf();
  double tau_positive = 1, tau_negative = 1.05;
  Kl kl = Kl::k3;
  double beta = 0, kl_inner = __builtin_inf(), kl_outer = __builtin_inf();
  bool importance_of_sequence = true, truncates = false;  // how sampler_logp corrects
  double importance_cap = 3;
};

// Tokens in the order of the sequences; each array of one dtype, float32 or float64. Null where there is
// none: ref_logp, sampler_logp, entropy, mask (bytes, 0 leaves a token out whatever the arrays hold there).
struct PolicyTokens {
  DType dtype;
  const void *logp, *old_logp, *ref_logp, *sampler_logp, *entropy;
  const uint8_t* mask;
  const void* advantages;  // of each token, or of each sequence
  bool per_token;
};

// Sums, over the kept tokens, except for the loss, which is aggregated.
struct PolicyTotals {
  double loss, kl, ratio, old_kl, clip_low, clip_high, importance, entropy;
  int64_t tokens, sequences;
};
constexpr int kPolicySums = 9;

// dlogp may be null. Returns false if memory cannot be had; then nothing was written.
NPK_API bool policy_loss(const PolicyTokens&, const Sequences&, const PolicyOptions&, PolicyTotals*,
                         void* dlogp);

// Log-probabilities, loss and dlogits in one read and one write of the logits (rows along the last axis);
// token level only. ids: negative leaves a row out. Per row: weights the w of the aggregation, correction
// (may be null) between sampler and trainer. dlogits may be null, or the logits themselves. sums (rows,
// kPolicySums), in the order loss, kl, ratio, old_kl, clip_low, clip_high, importance, entropy, logp; the
// loss without w.
struct TokenPolicy {
  const int64_t* ids;
  const void *old_logp, *ref_logp, *advantages, *correction;
  const double* weights;
  double temperature;
  bool want_entropy;
};
NPK_API void token_policy_loss(const Array& logits, const TokenPolicy&, const PolicyOptions&, double* sums,
                               const Array* dlogits);

// R_t = r_t + gamma R_{t+1} with R = last behind the end; gamma and last of each sequence. Masked places are
// passed over and get 0.
NPK_API void discounted_returns(DType, const void* rewards, const Sequences&, const uint8_t* mask,
                                const double* gamma, const double* last, void* returns);
// A_t = r_t + gamma V_{t+1} - V_t + gamma lam A_{t+1} with V = last behind the end, and R_t = A_t + V_t.
// Where dones is not 0 nothing comes from behind.
NPK_API void gae(DType, const void* rewards, const void* values, const Sequences&, const uint8_t* mask,
                 const uint8_t* dones, const double* gamma, const double* lam, const double* last,
                 void* advantages, void* returns);

// The `width` best of scores + log_probs (batch, beams, vocabulary), largest first, equals in order, NaN
// last.
NPK_API void beam_step(DType, const void* log_probs, const void* scores, int64_t batch, int64_t beams,
                       int64_t vocabulary, int64_t width, void* best, int64_t* beam, int64_t* token);

// One token of each row of logits (rows along the last axis), where the cumulated probability of what the
// filters keep exceeds u. top_k 0 keeps all.
struct SampleOptions {
  double temperature;
  int64_t top_k;
  double top_p, min_p;
};
NPK_API void sample(const Array& logits, const SampleOptions&, const double* u, int64_t* ids);

}  // namespace npkernels
