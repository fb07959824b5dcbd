// The public functions of attention.h: what belongs together (sequences), what is done as one piece (tasks),
// and the memory for it.
#include "npkernels/attention.h"

#include <math.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "kernels/table.h"
#include "npkernels/threads.h"
#include "rows.h"

namespace npkernels {
namespace {

// Multiply-adds below which a second thread costs more than it brings.
constexpr double kSerialWork = 500e3;
// Tasks that a call should have so that threads share it evenly; with fewer, keys are looked at in parts of
// at least kPart. Neither follows the number of threads, which must not change a bit.
constexpr int64_t kTasks = 32, kPart = 256;

struct Free {
  void operator()(char* p) const { free(p); }
};
using Memory = std::unique_ptr<char, Free>;

Memory allocate(int64_t bytes) {
  return Memory(static_cast<char*>(aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))));
}

HeadArray heads(const Array& a) {
  HeadArray h;
  h.data = static_cast<char*>(a.data);
  h.batch = a.strides[0], h.head = a.strides[1], h.row = a.strides[2];
  return h;
}

KeyArray keys(const Array& a, const AttentionOptions& options, const float* row_scale) {
  KeyArray k;
  static_cast<HeadArray&>(k) = heads(a);
  k.dtype = a.dtype;
  k.table = options.block_table;
  k.pages_per_entry = options.pages_per_entry;
  k.page_size = a.shape[2];
  k.row_scale = row_scale;
  k.scale_head = a.shape[2];
  k.scale_batch = a.shape[1] * a.shape[2];
  return k;
}

PairArray pairs(const Array* a) {
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
  call.q = heads(q);
  call.k = keys(k, o, o.k_scale);
  call.v = keys(v, o, o.v_scale);
  call.lse_rows = q.shape[2];
  call.mask = pairs(o.mask);
  call.bias = pairs(o.bias);
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

// Blocks of query rows, cut evenly; late ones first, which see the most keys under a causal mask.
// f(sequence, kv_head, first, rows, begin, end)
template <class F>
void each_block(const AttentionCall& call, const std::vector<Sequence>& all, int64_t most, F f) {
  for (size_t i = 0; i < all.size(); ++i) {
    const int64_t rows = all[i].queries * call.group;
    const int64_t blocks = (rows + most - 1) / most;
    for (int64_t head = 0; head < call.kv_heads; ++head)
      for (int64_t b = blocks - 1; b >= 0; --b) {
        const int64_t first = rows * b / blocks, next = rows * (b + 1) / blocks;
        int64_t begin, end;
        visible(call, all[i], first / call.group, (next - 1) / call.group, &begin, &end);
        f(static_cast<int64_t>(i), head, first, next - first, begin, end);
      }
  }
}

double work_of(const AttentionCall& call, const std::vector<AttentionTask>& tasks) {
  double pairs = 0;
  for (const AttentionTask& task : tasks) pairs += double(task.rows) * double(task.end - task.begin);
  return pairs * double(call.dim + call.value_dim);
}

// Joins the parts of each block; the sinks come in here.
bool join(const AttentionCall& call, const std::vector<AttentionTask>& tasks, int64_t parts) {
  JoinCall joined;
  joined.call = &call;
  joined.tasks = tasks.data();
  joined.parts = parts;
  joined.blocks = static_cast<int64_t>(tasks.size()) / parts;
  kernels().attention_join(joined);
  return true;
}

}  // namespace

bool attention(const Array& q, const Array& k, const Array& v, const AttentionOptions& options,
               const Array& out, void* lse) {
  AttentionCall call;
  describe(call, q, k, v, options);
  call.out = heads(out);
  call.lse = lse;
  const std::vector<Sequence> all = sequences(q, k, options);
  call.sequences = all.data();

  std::vector<AttentionTask> tasks;
  const int64_t most = kernels().attention_block(call.dtype);
  each_block(call, all, most,
             [&](int64_t s, int64_t head, int64_t first, int64_t rows, int64_t begin, int64_t end) {
               tasks.push_back({s, head, first, rows, begin, end, -1});
             });
  if (tasks.empty()) return true;

  int64_t longest = 0, tallest = 0;
  for (const AttentionTask& task : tasks) {
    longest = std::max(longest, task.end - task.begin);
    tallest = std::max(tallest, task.rows);
  }
  const int64_t blocks = static_cast<int64_t>(tasks.size());
  const int64_t parts = std::min((kTasks + blocks - 1) / blocks, (longest + kPart - 1) / kPart);
  Memory part_memory;
  if (parts > 1) {
    std::vector<AttentionTask> cut;
    for (const AttentionTask& task : tasks)
      for (int64_t p = 0; p < parts; ++p) {
        AttentionTask part = task;
        const int64_t n = task.end - task.begin;
        part.begin = task.begin + n * p / parts;
        part.end = task.begin + n * (p + 1) / parts;
        part.slot = static_cast<int64_t>(cut.size());
        cut.push_back(part);
      }
    tasks.swap(cut);
    call.slot_rows = tallest;
    const int64_t item = item_size(compute_dtype(call.dtype)),
                  rows = static_cast<int64_t>(tasks.size()) * tallest;
    part_memory = allocate(rows * (call.value_dim + 1) * item);
    if (!part_memory) return false;
    call.part_out = part_memory.get();
    call.part_lse = part_memory.get() + rows * call.value_dim * item;
  }
  call.tasks = tasks.data();
  call.task_count = static_cast<int64_t>(tasks.size());
  call.workers = work_of(call, tasks) < kSerialWork ? 1 : workers_for(call.task_count);
  call.scratch_bytes = (kernels().attention_scratch(call) + 63) / 64 * 64;
  const Memory scratch = allocate(call.scratch_bytes * call.workers);
  if (!scratch) return false;
  call.scratch = scratch.get();
  kernels().attention(call);
  return parts > 1 ? join(call, tasks, parts) : true;
}

void merge_attention(int parts, const Array* outs, const void* const* lses, const Array& out, void* lse) {
  MergeCall call;
  call.dtype = out.dtype;
  call.parts = parts;
  std::vector<RowOperand> operands(static_cast<size_t>(parts));
  std::vector<RowArray> arrays{{&out, &call.out[0]}};
  for (int i = 0; i < parts; ++i) arrays.push_back({&outs[i], &operands[static_cast<size_t>(i)]});
  make_rows(call, out.ndim - 1, arrays.data(), parts + 1);
  call.outs = operands.data();
  call.lses = lses;
  call.lse = lse;
  kernels().merge_attention(call);
}

void rotary_embedding(const Array& x, const Array& cos, const Array& sin, int64_t rotary_dim,
                      bool interleaved, bool inverse, const Array& out) {
  RotaryCall call;
  call.dtype = x.dtype;
  const RowArray arrays[] = {{&x, &call.in[0]}, {&out, &call.out[0]}, {&cos, &call.cos}, {&sin, &call.sin}};
  make_rows(call, x.ndim - 1, arrays, 4);
  call.rotary_dim = rotary_dim;
  call.interleaved = interleaved;
  call.inverse = inverse;
  kernels().rotary(call);
}

}  // namespace npkernels
