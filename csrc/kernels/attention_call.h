// Calls of the attention family after normalising. Strides are in bytes.
#pragma once

#include "row_call.h"

namespace npkernels {

// Letters: B batch, G query heads per key/value head, S queries, K keys, D head size, Dv value head size.
struct AttentionCall {
  DType dtype = DType::float32;
  int64_t batch = 0, kv_heads = 0, group = 1, queries = 0, keys = 0, dim = 0, value_dim = 0;
  const char *q = nullptr, *k = nullptr, *v = nullptr;
  char* out = nullptr;
  int64_t q_stride[3] = {}, k_stride[3] = {}, v_stride[3] = {},
          out_stride[3] = {};                        // batch, head, row; entries adjacent
  void* lse = nullptr;                               // (B, Hq, S) contiguous, or null
  const char* mask = nullptr;                        // booleans
  const char* bias = nullptr;                        // of `dtype`
  int64_t mask_stride[4] = {}, bias_stride[4] = {};  // batch, query head, query, key; 0 where broadcast
  double scale = 1;
  bool causal = false;
  const int64_t* offset = nullptr;  // per batch: query i stands at key position i + offset; null = 0
  char* scratch = nullptr;          // workers x scratch_bytes, aligned to 64
  int64_t scratch_bytes = 0;
  int workers = 1;
};

// Partial results over disjoint keys; rows as in RowCall, n = Dv.
struct MergeCall : RowCall {
  int parts = 0;
  const RowOperand* outs = nullptr;
  const void* const* lses = nullptr;  // per part: contiguous, per row
  void* lse = nullptr;
};

// Rows as in RowCall, n = D; cos and sin hold rotary_dim / 2 entries of the compute dtype per row.
struct RotaryCall : RowCall {
  RowOperand cos, sin;
  int64_t rotary_dim = 0;
  bool interleaved = false, inverse = false;
};

}  // namespace npkernels
