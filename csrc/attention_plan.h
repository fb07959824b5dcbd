// From the arrays and options of attention.h to a call of the kernels: what belongs together (sequences),
// and what is done as one piece (tasks).
#pragma once

#include <vector>

#include "kernels/table.h"
#include "memory.h"
#include "npkernels/attention.h"

namespace npkernels {

HeadArray head_array(const Array& a);
KeyArray key_array(const Array& a, const AttentionOptions& options, const float* row_scale);
PairArray pair_array(const Array* a);

// What belongs together: the entries of the batch, or the packed sequences.
std::vector<Sequence> sequences(const Array& q, const Array& k, const AttentionOptions& options);

// Everything in a call that follows from the inputs and options alone.
void describe(AttentionCall& call, const Array& q, const Array& k, const Array& v,
              const AttentionOptions& options);

// Blocks of at most that many query rows of each key head, cut evenly, with the keys that they may see; late
// ones first, which see the most under a causal mask.
std::vector<AttentionTask> blocks_of(const AttentionCall& call, const std::vector<Sequence>& all,
                                     int64_t most);

// Sets the tasks of a call, and threads that are worth their start for them: `products` is how many
// multiply-adds a pair of query and key takes for each entry of a head.
void set_tasks(AttentionCall& call, const std::vector<AttentionTask>& tasks, double products);

}  // namespace npkernels
