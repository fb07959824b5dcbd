// The arguments that the policy losses of npkernels.h share, checked.
#pragma once

#include "c_arguments.h"
#include "npkernels/grpo.h"

namespace npkernels::c_api {

// Sequences of tokens: along the last axis of an array, or one behind another between the ends.
class TokenSequences {
 public:
  // shape: of an array with an entry per token, by the name of which it is refused. padded_ndim: how many
  // axes it has without cu_seqlens; 0 = any number from 1 on.
  TokenSequences(const char* name, const int64_t* shape, int ndim, const npk_array* cu_seqlens,
                 int padded_ndim);

  Sequences sequences;
  int64_t tokens;
  const View* ends() const { return pointer(ends_); }
  int64_t begin(int64_t s) const { return sequences.ends ? sequences.ends[s] : s * sequences.length; }
  int64_t longest() const;
  // Whether an array has one entry per sequence.
  bool per_sequence(const View& a) const;

 private:
  std::optional<View> ends_;
  const int64_t* shape_;
  int ndim_;
};

// float32 or float64, in C order.
void check_wide(const View& a);

// What both losses take beside log-probabilities or logits: one entry per token, `dtype`, contiguous.
class PolicyArguments {
 public:
  PolicyArguments(const npk_policy_options* options, const char* lead, const int64_t* shape, int ndim,
                  DType dtype);

  const npk_policy_options asked;
  const TokenSequences layout;
  PolicyOptions options;
  std::optional<View> mask, ref_logp, sampler_logp, entropy;

  View per_token(const npk_array* array, const char* name) const;
  // Per sequence, or per token; where both fit the first.
  View advantages(const npk_array* array) const;
  bool per_token_advantages(const View& a) const { return !layout.per_sequence(a); }
  const uint8_t* kept() const { return mask ? reinterpret_cast<const uint8_t*>(mask->data) : nullptr; }
  // The options' arrays, for the checks of an output.
  void check_apart(const View& written) const;

 private:
  void check_options();

  const int64_t* shape_;
  const int ndim_;
  const DType dtype_;
};

// Refuses metrics that are not there or of no known size.
void check_metrics(const npk_policy_metrics* metrics);
// Means over the kept tokens; NaN for what was not given.
void store_metrics(const PolicyTotals& totals, const PolicyArguments& given, bool entropy,
                   npk_policy_metrics* metrics);

}  // namespace npkernels::c_api
