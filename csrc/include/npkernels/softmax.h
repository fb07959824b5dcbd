// Softmax, its logarithm and normaliser, their derivatives, and per-token statistics of logits.
//
// Letters: x logits, T temperature, m the largest x/T of a row, p = softmax(x/T), V row length.
// A "row" runs along `axis`; every other axis is an outer one. Arrays of one call have one shape, except
// `mask`, which has the same number of axes with stride 0 where it is broadcast, and per-row arrays, which
// are contiguous in the C order of the outer axes. Per-row values are of the compute dtype (float64 for
// float64, else float32). Preconditions (shapes agree, dtypes equal, 0 <= axis < ndim, T > 0, ids in range)
// are the caller's: the Python layer and the C functions of npkernels.h check them. `out` may be the very
// same memory as an input of the same dtype.
#pragma once

#include "array.h"

namespace npkernels {

// What takes part: with `mask`, entries where it is false do not exist, and a row without entries gives 0 /
// -inf.
struct SoftmaxOptions {
  int axis;
  double temperature;
  const Array* mask;  // boolean or null
};

NPK_API void softmax(const Array& x, const SoftmaxOptions&, const Array& y);
NPK_API void log_softmax(const Array& x, const SoftmaxOptions&, const Array& y);
// lse and entropy: per row, either may be null.
NPK_API void logsumexp(const Array& x, const SoftmaxOptions&, void* lse, void* entropy);

// dx = y (dy - sum(dy y)) / T
NPK_API void softmax_vjp(const Array& dy, const Array& y, const SoftmaxOptions&, const Array& dx);
// dx = (dy - exp(y) sum(dy)) / T, y the logarithm
NPK_API void log_softmax_vjp(const Array& dy, const Array& y, const SoftmaxOptions&, const Array& dx);
// dx = d exp(x/T - lse) / T; d and lse per row
NPK_API void logsumexp_vjp(const void* d, const Array& x, const void* lse, const SoftmaxOptions&,
                           const Array& dx);

// y = softmax(x), dy = y (dx - sum(y dx)) / T
NPK_API void softmax_jvp(const Array& x, const Array& dx, const SoftmaxOptions&, const Array& y,
                         const Array& dy);
NPK_API void log_softmax_jvp(const Array& x, const Array& dx, const SoftmaxOptions&, const Array& y,
                             const Array& dy);
NPK_API void logsumexp_jvp(const Array& x, const Array& dx, const SoftmaxOptions&, void* lse, void* dlse);

// Statistics of each row in one read; every output is per row and may be null.
struct TokenStatsOut {
  void* log_prob;  // of ids[row]
  void* lse;
  void* entropy;  // nats
  void* sum_p2;   // sum of p^2
  int64_t* top1;  // index of the first largest logit; -1 for a row without entries
  int64_t* rank;  // number of logits that are strictly larger than that of the id
};
NPK_API void token_log_probs(const Array& logits, const int64_t* ids, const SoftmaxOptions&,
                             const TokenStatsOut&);
// dlogits = (dlogp (onehot - p) - dentropy p (log p + H)) / T; dentropy and entropy may both be null.
NPK_API void token_log_probs_vjp(const void* dlogp, const Array& logits, const int64_t* ids, const void* lse,
                                 const void* dentropy, const void* entropy, const SoftmaxOptions&,
                                 const Array& dlogits);

// loss = w[t] (1 - s) (lse - x[t]) + s / V * sum_c w[c] (lse - x[c]) per row, 0 where ids[row] < 0.
struct CrossEntropyOptions {
  int axis;
  double label_smoothing;
  const void* weight;  // (V,) of the compute dtype, or null
  double weight_sum;   // sum of weight (V without)
  double grad_scale;   // the gradient is of grad_scale * sum of the losses
};
// loss per row; dx (of x's dtype) may be null.
NPK_API void cross_entropy(const Array& x, const int64_t* ids, const CrossEntropyOptions&, void* loss,
                           const Array* dx);

}  // namespace npkernels
