#include "attention_plan.h"

#include <algorithm>

#include "npkernels/threads.h"

namespace npkernels {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr double kSerialWork = 500e3;

// The keys that queries first .. last of a sequence may see by their positions.
void visible(const AttentionCall& call, const Sequence& s, int64_t first, int64_t last, int64_t* begin,
             int64_t* end) {
  *begin = call.left >= 0 ? std::max<int64_t>(0, first + s.offset - call.left) : 0;
  *end = s.keys;
  if (call.causal) *end = std::min(*end, last + s.offset + 1);
  if (call.right >= 0) *end = std::min(*end, last + s.offset + call.right + 1);
  *begin = std::min(*begin, s.keys);
  *end = std::max(*begin, *end);
}

}  // namespace

HeadArray head_array(const Array& a) {
  HeadArray h;
  h.data = static_cast<char*>(a.data);
  h.batch = a.strides[0], h.head = a.strides[1], h.row = a.strides[2];
  return h;
}

KeyArray key_array(const Array& a, const AttentionOptions& options, const float* row_scale) {
  KeyArray k;
  static_cast<HeadArray&>(k) = head_array(a);
  k.dtype = a.dtype;
  k.table = options.block_table;
  k.pages_per_entry = options.pages_per_entry;
  k.page_size = a.shape[2];
  k.row_scale = row_scale;
  k.scale_head = a.shape[2];
  k.scale_batch = a.shape[1] * a.shape[2];
  return k;
}

PairArray pair_array(const Array* a) {
  PairArray p;
  if (!a) return p;
  p.data = static_cast<const char*>(a->data);
  std::copy_n(a->strides, 4, p.stride);
  return p;
}

std::vector<Sequence> sequences(const Array& q, const Array& k, const AttentionOptions& o) {
  std::vector<Sequence> all;
  const bool packed = o.cu_seqlens_q != nullptr;
  const int64_t count = packed ? o.sequences : q.shape[0];
  all.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    Sequence s{};
    if (packed) {
      s = {0,
           o.cu_seqlens_q[i],
           o.cu_seqlens_q[i + 1] - o.cu_seqlens_q[i],
           o.cu_seqlens_k[i],
           o.cu_seqlens_k[i + 1] - o.cu_seqlens_k[i],
           0};
    } else {
      s = {i, 0, q.shape[2], 0, o.block_table ? 0 : k.shape[2], 0};
      if (o.kv_lengths) s.keys = o.kv_lengths[i];
    }
    if (o.offset) s.offset = o.offset[i];
    all.push_back(s);
  }
  return all;
}

void describe(AttentionCall& call, const Array& q, const Array& k, const Array& v,
              const AttentionOptions& o) {
  call.dtype = q.dtype;
  call.kv_heads = k.shape[1];
  call.group = k.shape[1] ? q.shape[1] / k.shape[1] : 1;
  call.dim = q.shape[3];
  call.value_dim = v.shape[3];
  call.q = head_array(q);
  call.k = key_array(k, o, o.k_scale);
  call.v = key_array(v, o, o.v_scale);
  call.lse_rows = q.shape[2];
  call.mask = pair_array(o.mask);
  call.bias = pair_array(o.bias);
  call.scale = o.scale;
  call.softcap = o.softcap;
  call.causal = o.causal;
  call.left = o.window_left;
  call.right = o.window_right;
  if (o.slopes) {
    call.slopes = o.slopes->data;
    call.slope_stride[0] = o.slopes->strides[0];
    call.slope_stride[1] = o.slopes->strides[1];
  }
  call.sinks = o.sinks;
  if (o.dropout_p > 0) {
    call.drop_below = static_cast<uint32_t>(o.dropout_p * 4294967296.0);
    call.keep_scale = 1 / (1 - o.dropout_p);
    call.dropout_seed = o.dropout_seed;
  }
}

std::vector<AttentionTask> blocks_of(const AttentionCall& call, const std::vector<Sequence>& all,
                                     int64_t most) {
  std::vector<AttentionTask> tasks;
  for (size_t i = 0; i < all.size(); ++i) {
    const int64_t rows = all[i].queries * call.group, blocks = (rows + most - 1) / most;
    for (int64_t head = 0; head < call.kv_heads; ++head)
      for (int64_t b = blocks - 1; b >= 0; --b) {
        const int64_t first = rows * b / blocks, next = rows * (b + 1) / blocks;
        AttentionTask task{static_cast<int64_t>(i), head, first, next - first, 0, 0, -1};
        visible(call, all[i], first / call.group, (next - 1) / call.group, &task.begin, &task.end);
        tasks.push_back(task);
      }
  }
  return tasks;
}

void set_tasks(AttentionCall& call, const std::vector<AttentionTask>& tasks, double products) {
  double pairs = 0;
  for (const AttentionTask& task : tasks) pairs += double(task.rows) * double(task.end - task.begin);
  call.tasks = tasks.data();
  call.task_count = static_cast<int64_t>(tasks.size());
  call.workers = pairs * products * double(call.dim + call.value_dim) / 2 < kSerialWork
                     ? 1
                     : workers_for(call.task_count);
}

}  // namespace npkernels
