// The derivatives of attention.h.
#include <string.h>

#include <algorithm>
#include <cmath>

#include "attention_plan.h"

namespace npkernels {
namespace {

// Tasks that a call should have so that threads share it evenly, and the most runs of queries that a key head
// is cut into for that: each has sums of its own for all keys. Neither follows the number of threads, which
// must not change a bit.
constexpr int64_t kTasks = 16, kChunks = 4;
// Keys of a task of the gradient of the bias.
constexpr int64_t kBiasKeys = 512;

int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

// Runs of query rows of each key head, late ones first.
std::vector<AttentionTask> chunks_of(const AttentionVjpCall& call, const std::vector<Sequence>& all) {
  std::vector<AttentionTask> tasks;
  for (size_t i = 0; i < all.size(); ++i)
    for (int64_t head = 0; head < call.kv_heads; ++head) {
      const int64_t rows = all[i].queries * call.group, slot = static_cast<int64_t>(tasks.size());
      for (int64_t c = call.chunks - 1; c >= 0; --c) {
        const int64_t first = rows * c / call.chunks, next = rows * (c + 1) / call.chunks;
        tasks.push_back({static_cast<int64_t>(i), head, first, next - first, 0, all[i].keys, slot + c});
      }
    }
  return tasks;
}

// One task for each first chunk.
std::vector<AttentionTask> first_chunks(const AttentionVjpCall& call,
                                        const std::vector<AttentionTask>& chunks) {
  std::vector<AttentionTask> tasks;
  for (const AttentionTask& task : chunks)
    if (task.slot % call.chunks == 0) tasks.push_back(task);
  return tasks;
}

// What shares an entry of the bias's gradient is in one task: an axis along which the bias is broadcast is
// gone through whole (-1), the others are cut.
std::vector<AttentionTask> bias_tasks(const AttentionVjpCall& call, const std::vector<Sequence>& all,
                                      int64_t most) {
  if (all.empty()) return {};
  const int64_t* stride = call.dbias.stride;
  int64_t keys = 0;
  for (const Sequence& s : all) keys = std::max(keys, s.keys);
  const int64_t rows = all[0].queries * call.group;
  const auto cuts = [](int64_t step, int64_t n, int64_t most_each) {
    return step == 0 || n == 0 ? 1 : (n + most_each - 1) / most_each;
  };
  const int64_t blocks = cuts(stride[2], rows, most), ranges = cuts(stride[3], keys, kBiasKeys);
  const int64_t batches = stride[0] ? static_cast<int64_t>(all.size()) : 1,
                heads = stride[1] ? call.kv_heads : 1;
  std::vector<AttentionTask> tasks;
  for (int64_t i = 0; i < batches; ++i)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t b = 0; b < blocks; ++b)
        for (int64_t r = 0; r < ranges; ++r) {
          const int64_t first = all[0].queries * b / blocks * call.group,
                        next = all[0].queries * (b + 1) / blocks * call.group;
          tasks.push_back({stride[0] ? i : -1, stride[1] ? h : -1, first, next - first, keys * r / ranges,
                           keys * (r + 1) / ranges, -1});
        }
  return tasks;
}

// Writes 0 to the keys that no sequence has: those behind kv_lengths.
void clear_rest(const HeadArray& a, const std::vector<Sequence>& all, int64_t heads, int64_t rows,
                int64_t row_bytes) {
  for (const Sequence& s : all)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t j = s.keys; j < rows; ++j)
        memset(a.data + s.batch * a.batch + h * a.head + j * a.row, 0, static_cast<size_t>(row_bytes));
}

// dsinks[h] = sum over the rows of head h of exp(sink - lse) (0 - delta): the sink has no value, so its dP is
// 0.
// Summed in a wider type: what T has lost in lse and delta is enough.
template <class Wide, class T>
void sink_gradient(const AttentionVjpCall& call, const std::vector<Sequence>& all, T* dsinks) {
  const int64_t q_heads = call.kv_heads * call.group;
  const T *lse = static_cast<const T*>(call.lse), *delta = static_cast<const T*>(call.delta);
  for (int64_t h = 0; h < q_heads; ++h) {
    const Wide sink = static_cast<const T*>(call.sinks)[h];
    Wide sum = 0;
    for (const Sequence& s : all)
      for (int64_t i = 0; i < s.queries; ++i) {
        const int64_t row = (s.batch * q_heads + h) * call.lse_rows + s.q_first + i;
        const Wide weight = sink == -Wide(INFINITY) ? 0 : std::exp(sink - Wide(lse[row]));
        if (weight != 0) sum -= weight * Wide(delta[row]);
      }
    dsinks[h] = static_cast<T>(sum);
  }
}

}  // namespace

bool attention_vjp(const Array& dout, const Array& q, const Array& k, const Array& v, const Array& o,
                   const void* lse, const void* dlse, const AttentionOptions& options,
                   const AttentionVjpOut& out) {
  AttentionVjpCall call;
  describe(call, q, k, v, options);
  const std::vector<Sequence> all = sequences(q, k, options);
  call.sequences = all.data();
  call.sequence_count = static_cast<int64_t>(all.size());
  call.dout = head_array(dout);
  call.out = head_array(o);
  call.lse = const_cast<void*>(lse);
  call.dlse = dlse;
  call.dq = head_array(*out.dq);
  call.dk = head_array(*out.dk);
  call.dv = head_array(*out.dv);
  call.dbias = pair_array(out.dbias);
  for (const Sequence& s : all) call.slot_keys = std::max(call.slot_keys, s.keys);

  const int64_t item = item_size(compute_dtype(call.dtype)), most = kernels().attention_block(call.dtype);
  const int64_t q_heads = call.kv_heads * call.group,
                entries = options.cu_seqlens_q ? 1 : call.sequence_count;
  const Memory delta = allocate(std::max<int64_t>(1, entries * q_heads * call.lse_rows * item));
  if (!delta) return false;
  call.delta = delta.get();

  // As many runs of queries as there are blocks, at most.
  const int64_t heads = std::max<int64_t>(1, call.sequence_count * call.kv_heads);
  int64_t longest = 0;
  for (const Sequence& s : all) longest = std::max(longest, s.queries * call.group);
  call.chunks =
      std::max<int64_t>(1, std::min({(kTasks + heads - 1) / heads, kChunks, (longest + most - 1) / most}));
  const std::vector<AttentionTask> chunks = chunks_of(call, all);
  Memory sums;
  if (call.chunks > 1) {
    const int64_t rows = static_cast<int64_t>(chunks.size()) * call.slot_keys;
    sums = allocate(rows * (padded(call.dim) + padded(call.value_dim)) * item);
    if (!sums) return false;
    call.part_dk = sums.get();
    call.part_dv = sums.get() + rows * padded(call.dim) * item;
  }
  call.scratch_bytes = (kernels().attention_vjp_scratch(call) + 63) / 64 * 64;
  const std::vector<AttentionTask> blocks = blocks_of(call, all, most);
  const std::vector<AttentionTask> firsts = first_chunks(call, chunks);
  const std::vector<AttentionTask> of_bias =
      out.dbias ? bias_tasks(call, all, most) : std::vector<AttentionTask>();
  set_tasks(call, chunks, 5);
  const int workers = call.workers;
  const Scratch scratch(call.scratch_bytes * workers);
  if (!scratch.get()) return false;
  call.scratch = scratch.get();
  const auto pass = [&](const std::vector<AttentionTask>& tasks, VjpStep step) {
    set_tasks(call, tasks, 5);
    call.workers = std::min(call.workers, workers);
    kernels().attention_vjp(call, step);
  };
  pass(blocks, VjpStep::delta);
  pass(chunks, VjpStep::gradients);
  if (call.chunks > 1) pass(firsts, VjpStep::chunks);
  if (out.dbias) pass(of_bias, VjpStep::bias);
  if (out.dsinks) {
    if (call.dtype == DType::float64)
      sink_gradient<long double>(call, all, static_cast<double*>(out.dsinks));
    else
      sink_gradient<double>(call, all, static_cast<float*>(out.dsinks));
  }
  if (options.kv_lengths) {
    clear_rest(call.dk, all, call.kv_heads, k.shape[2], call.dim * item_size(call.dtype));
    clear_rest(call.dv, all, call.kv_heads, k.shape[2], call.value_dim * item_size(call.dtype));
  }
  return true;
}

bool attention_jvp(const Array& q, const Array& k, const Array& v, const Array& dq, const Array& dk,
                   const Array& dv, const AttentionOptions& options, const Array& out, const Array& dout,
                   void* lse) {
  AttentionJvpCall call;
  describe(call, q, k, v, options);
  call.dq = head_array(dq);
  call.dk = key_array(dk, options, nullptr);
  call.dv = key_array(dv, options, nullptr);
  call.out = head_array(out);
  call.dout = head_array(dout);
  call.lse = lse;
  const std::vector<Sequence> all = sequences(q, k, options);
  call.sequences = all.data();
  const std::vector<AttentionTask> tasks = blocks_of(call, all, kernels().attention_block(call.dtype));
  set_tasks(call, tasks, 6);
  call.scratch_bytes = (kernels().attention_jvp_scratch(call) + 63) / 64 * 64;
  const Scratch scratch(call.scratch_bytes * call.workers);
  if (!scratch.get()) return false;
  call.scratch = scratch.get();
  kernels().attention_jvp(call);
  return true;
}

}  // namespace npkernels
