// The public functions of attention.h, but for the derivatives.
#include "npkernels/attention.h"

#include <algorithm>

#include "attention_plan.h"
#include "rows.h"

namespace npkernels {
namespace {

// Tasks that a call should have so that threads share it evenly; with fewer, keys are looked at in parts of
// at least kPart. Neither follows the number of threads, which must not change a bit.
constexpr int64_t kTasks = 32, kPart = 256;

// Cuts the keys of each task into parts.
std::vector<AttentionTask> cut_keys(const std::vector<AttentionTask>& tasks, int64_t parts) {
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
  return cut;
}

}  // namespace

bool attention(const Array& q, const Array& k, const Array& v, const AttentionOptions& options,
               const Array& out, void* lse) {
  AttentionCall call;
  describe(call, q, k, v, options);
  call.out = head_array(out);
  call.lse = lse;
  const std::vector<Sequence> all = sequences(q, k, options);
  call.sequences = all.data();

  std::vector<AttentionTask> tasks = blocks_of(call, all, kernels().attention_block(call.dtype));
  if (tasks.empty()) return true;
  int64_t longest = 0, tallest = 0;
  for (const AttentionTask& task : tasks) {
    longest = std::max(longest, task.end - task.begin);
    tallest = std::max(tallest, task.rows);
  }
  JoinCall join;
  join.blocks = static_cast<int64_t>(tasks.size());
  join.parts = std::min((kTasks + join.blocks - 1) / join.blocks, (longest + kPart - 1) / kPart);
  Memory part_memory;
  if (join.parts > 1) {
    tasks = cut_keys(tasks, join.parts);
    call.slot_rows = tallest;
    const int64_t item = item_size(compute_dtype(call.dtype)),
                  rows = static_cast<int64_t>(tasks.size()) * tallest;
    part_memory = allocate(rows * (call.value_dim + 1) * item);
    if (!part_memory) return false;
    call.part_out = part_memory.get();
    call.part_lse = part_memory.get() + rows * call.value_dim * item;
  }
  set_tasks(call, tasks, 2);
  call.scratch_bytes = (kernels().attention_scratch(call) + 63) / 64 * 64;
  const Scratch scratch(call.scratch_bytes * call.workers);
  if (!scratch.get()) return false;
  call.scratch = scratch.get();
  kernels().attention(call);
  if (join.parts > 1) {
    join.call = &call;
    join.tasks = tasks.data();
    kernels().attention_join(join);
  }
  return true;
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
