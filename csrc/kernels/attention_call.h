// Calls of the attention family after normalising. Strides are in bytes.
#pragma once

#include "row_call.h"

namespace npkernels {

// Letters: B batch, Hq/Hkv query/key heads, G = Hq/Hkv query heads per key head, S queries, K keys, D head
// size, Dv value head size.

// Queries and keys that belong together: one entry of a batch, or one sequence of a packed array.
struct Sequence {
  int64_t batch;             // entry of the batch axis of q, k, v
  int64_t q_first, queries;  // its rows of q, out and lse
  int64_t k_first, keys;     // its rows of k and v
  int64_t offset;            // query i stands at key position i + offset
};

// One unit of work: rows first .. first+rows-1 of the G * S query rows of a key head (row s * G + g is query
// s of head g), and the keys begin .. end-1 that it may look at.
struct AttentionTask {
  int64_t sequence, kv_head, first, rows, begin, end;
  int64_t slot;  // where its partial result goes; -1 = it is the whole result
};

// q, out and what has their shape: (B, Hq, S, D or Dv), entries adjacent.
struct HeadArray {
  char* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;  // strides
};

// k and v: (B, Hkv, K, D or Dv), entries adjacent. With pages, key j of entry b lies in row j % page_size of
// page table[b][j / page_size], and `batch` is the stride of pages.
struct KeyArray : HeadArray {
  DType dtype = DType::float32;
  const int64_t* table = nullptr;
  int64_t pages_per_entry = 0, page_size = 0;
  const float* row_scale =
      nullptr;  // int8: what each row is multiplied by, (B or pages, Hkv, rows), rows adjacent
  int64_t scale_batch = 0, scale_head = 0;  // strides of row_scale, in entries
};

// Something per pair of query and key: (B, Hq, S, K), stride 0 where broadcast; data = null if not given.
struct PairArray {
  const char* data = nullptr;
  int64_t stride[4] = {};
};

struct AttentionCall {
  DType dtype = DType::float32;  // of q, out, bias and what has their shape
  int64_t kv_heads = 0, group = 1, dim = 0, value_dim = 0;
  HeadArray q, out;
  KeyArray k, v;
  void* lse = nullptr;   // (B, Hq, lse_rows) contiguous, or null
  int64_t lse_rows = 0;  // rows of a head in lse, and of its numbering for dropout
  PairArray mask, bias;  // mask: booleans
  double scale = 1, softcap = 0;
  bool causal = false;
  int64_t left = -1, right = -1;  // window around the query's position; -1 = open
  const void* slopes = nullptr;   // ALiBi, compute dtype: (B, Hq) by the strides below
  int64_t slope_stride[2] = {};
  const void* sinks = nullptr;  // (Hq,) of the compute dtype
  uint32_t drop_below = 0;      // a weight is dropped if its random number is below; 0 = none
  double keep_scale = 1;        // what kept weights are multiplied by
  uint64_t dropout_seed = 0;

  const Sequence* sequences = nullptr;
  const AttentionTask* tasks = nullptr;
  int64_t task_count = 0;
  int workers = 1;
  char* scratch = nullptr;  // workers x scratch_bytes, aligned to 64
  int64_t scratch_bytes = 0;

  // Partial results over parts of the keys: rows of slots, (slot_rows, Dv) and (slot_rows,), compute dtype.
  char *part_out = nullptr, *part_lse = nullptr;
  int64_t slot_rows = 0;
};

// Partial results that are to become one: the tasks of block b are tasks[b * parts] .. tasks[b * parts +
// parts - 1].
struct JoinCall {
  const AttentionCall* call = nullptr;
  const AttentionTask* tasks = nullptr;
  int64_t parts = 0, blocks = 0;
};

// The gradients. delta[row] = sum(dout * out) - dlse, per row as lse.
struct AttentionVjpCall : AttentionCall {
  HeadArray dout, dq, dk, dv;
  const void* dlse = nullptr;
  void* delta = nullptr;
  // Sums over the queries of a task, compute dtype: (slot, keys of its sequence, D and Dv padded), or null
  // where the task has a key head for itself.
  char *part_dk = nullptr, *part_dv = nullptr;
  int64_t slot_keys = 0;
  int64_t chunks = 1;  // tasks per sequence and key head
  int64_t sequence_count = 0;
  // Gradient of the bias, double, by the strides of `dbias`.
  PairArray dbias;
};

// The passes of attention_vjp, each over its own tasks: delta of blocks of rows; dq, dk, dv of runs of rows;
// the sum of chunks (tasks are the first chunks); dbias, whose tasks have -1 for what one task goes through
// whole.
enum class VjpStep { delta, gradients, chunks, bias };

struct AttentionJvpCall : AttentionCall {
  HeadArray dq, dout;
  KeyArray dk, dv;
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
