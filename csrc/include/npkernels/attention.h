// Scaled dot-product attention and its companions.
//
// Letters: B batch, Hq query heads, Hkv key/value heads (Hq a multiple), S queries, K keys, D head size, Dv
// value head size. Preconditions (shapes agree, dtypes equal, last axes contiguous) are the caller's.
#pragma once

#include "array.h"

namespace npkernels {

struct AttentionOptions {
  double scale;
  bool causal;
  const int64_t* offset;  // (B,): query i stands at key position i + offset[b]; null = 0 for all
  const Array* mask;      // boolean (B, Hq, S, K), broadcast axes with stride 0, or null
  const Array* bias;      // of q's dtype, likewise
};

// out (B, Hq, S, Dv) = softmax(scale q k^T + bias, where allowed) v. A weight of zero contributes nothing,
// and a row with nothing to attend to is 0 with lse = -inf. lse: (B, Hq, S) contiguous, of the compute dtype,
// or null. q (B, Hq, S, D), k (B, Hkv, K, D), v (B, Hkv, K, Dv). False if the scratch memory could not be
// had.
NPK_API bool attention(const Array& q, const Array& k, const Array& v, const AttentionOptions&,
                       const Array& out, void* lse);

// Joins partial results over disjoint keys: lse = logsumexp(lses), out = sum(exp(lses[i] - lse) outs[i]).
// outs[i] and out (..., Dv), lses[i] and lse contiguous per row.
NPK_API void merge_attention(int parts, const Array* outs, const void* const* lses, const Array& out,
                             void* lse);

// Rotates pairs of the first rotary_dim entries of each row of x by the angle whose cosine and sine are
// given: (x[i], x[i + rotary_dim/2]), or (x[2i], x[2i+1]) if interleaved; `inverse` rotates back. cos, sin:
// the shape of x but rotary_dim / 2 at the end, of the compute dtype, broadcast axes with stride 0.
NPK_API void rotary_embedding(const Array& x, const Array& cos, const Array& sin, int64_t rotary_dim,
                              bool interleaved, bool inverse, const Array& out);

}  // namespace npkernels
