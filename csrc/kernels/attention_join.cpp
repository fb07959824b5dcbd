// Joins the partial results of attention over parts of the keys: out = sum of the parts by their shares
// (shares.h), among which a sink takes its own without a value.
#include "attention_block.h"
#include "kernels.h"
#include "shares.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
void join_block(const JoinCall& join, int64_t index) {
  const AttentionCall& call = *join.call;
  const AttentionTask& task = join.tasks[index * join.parts];
  const Block<T> block(call, task);
  const int64_t n = call.value_dim;
  const auto part_row = [&](int64_t part, int r) { return (task.slot + part) * call.slot_rows + r; };
  alignas(64) T acc[kChunk];
  for (int r = 0; r < block.rows; ++r) {
    const T* const lses = reinterpret_cast<const T*>(call.part_lse);
    const T sink = call.sinks ? static_cast<const T*>(call.sinks)[block.head[r]] : T(-INFINITY);
    const Shares shares(join.parts + 1,
                        [&](int64_t part) { return part == join.parts ? sink : lses[part_row(part, r)]; });
    char* const out = block.row(call.out, r);
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t count = smaller<int64_t>(kChunk, n - first);
      for (int64_t d = 0; d < count; ++d) acc[d] = 0;
      for (int64_t part = 0; part < join.parts; ++part) {
        if (shares.empty(part)) continue;
        const T share = static_cast<T>(shares.of(part));
        const T* const from = reinterpret_cast<const T*>(call.part_out) + part_row(part, r) * n + first;
        for (int64_t d = 0; d < count; ++d) acc[d] += share * from[d];
      }
      narrow(acc, count, call.dtype, out + first * item_size(call.dtype));
    }
    if (call.lse) static_cast<T*>(call.lse)[block.index(r)] = static_cast<T>(shares.total());
  }
}

}  // namespace

void attention_join(const JoinCall& call) {
  parallel(call.blocks, [&](int64_t block) {
    if (call.call->dtype == DType::float64)
      join_block<double>(call, block);
    else
      join_block<float>(call, block);
  });
}

}  // namespace npkernels::NPK_ISA
