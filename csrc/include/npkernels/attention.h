// Scaled dot-product attention and its companions.
//
// Letters: B batch, Hq query heads, Hkv key/value heads (Hq a multiple), S queries, K keys, D head size, Dv
// value head size. Preconditions (shapes agree, dtypes fit, last axes contiguous, lengths and pages in range)
// are the caller's.
#pragma once

#include "array.h"

namespace npkernels {

// Scores: scale -> softcap -> bias, ALiBi -> interval of positions, mask.
struct AttentionOptions {
  double scale = 1;
  double softcap = 0;  // c > 0: s becomes c tanh(s / c)
  // Query i stands at key position p = i + offset[b]; null = 0 for all. It sees keys j <= p if causal, and
  // p - window_left <= j <= p + window_right where these are not negative.
  bool causal = false;
  int64_t window_left = -1, window_right = -1;
  const int64_t* offset = nullptr;      // (B,) or one per sequence
  const int64_t* kv_lengths = nullptr;  // (B,): keys from there on do not exist; null = all do
  const Array* mask = nullptr;          // booleans (B, Hq, S, K), broadcast axes with stride 0
  const Array* bias = nullptr;          // of q's dtype, likewise; added
  const Array* slopes = nullptr;        // ALiBi, (B or sequences, Hq), compute dtype: -slope |p - j| is added
  const void* sinks = nullptr;          // (Hq,) of the compute dtype: a logit in the denominator only
  double dropout_p = 0;                 // share of the weights that are dropped
  uint64_t dropout_seed = 0;

  // Packed sequences: q is (1, Hq, total, D), k and v likewise; sequence i has rows cu[i] .. cu[i+1]-1.
  const int64_t *cu_seqlens_q = nullptr, *cu_seqlens_k = nullptr;
  int64_t sequences = 0;

  // Pages: k and v are (pages, Hkv, page size, D), and key j of entry b lies in page block_table[b][j / page
  // size]. Needs kv_lengths.
  const int64_t* block_table = nullptr;  // (B, pages_per_entry) contiguous
  int64_t pages_per_entry = 0;
  const float *k_scale = nullptr, *v_scale = nullptr;  // of int8 rows: (B or pages, Hkv, rows) contiguous
};

// out (B, Hq, S, Dv) = softmax(scores) v. A weight of zero contributes nothing, and a row with nothing to
// attend to is 0 with lse = -inf. lse: (B, Hq, S) contiguous, of the compute dtype, or null. k and v are of
// q's dtype; for float32 queries also float16, bfloat16 or int8. False if the scratch memory could not be
// had.
NPK_API bool attention(const Array& q, const Array& k, const Array& v, const AttentionOptions&,
                       const Array& out, void* lse);

// Where the gradients go: dq, dk, dv of the shapes and dtype of q, k, v. dbias: float64 whatever that is,
// zeroed by the caller, (B, Hq, S, K) with stride 0 where the bias is broadcast, or null. dsinks: (Hq,) of
// the compute dtype, or null.
struct AttentionVjpOut {
  const Array *dq, *dk, *dv, *dbias;
  void* dsinks;
};

// Cotangents of q, k, v (bias, sinks) from those of out and lse (null = 0), with out and lse as attention
// gave them.
NPK_API bool attention_vjp(const Array& dout, const Array& q, const Array& k, const Array& v,
                           const Array& out, const void* lse, const void* dlse, const AttentionOptions&,
                           const AttentionVjpOut&);

// out and its derivative along (dq, dk, dv), in one pass; lse as in attention.
NPK_API bool attention_jvp(const Array& q, const Array& k, const Array& v, const Array& dq, const Array& dk,
                           const Array& dv, const AttentionOptions&, const Array& out, const Array& dout,
                           void* lse);

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
