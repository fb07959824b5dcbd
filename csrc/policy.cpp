// The functions of grpo.h about tokens: counts and weights of the sequences, scratch memory, and the kernel
// in use.
#include <cstring>

#include "kernels/grpo_call.h"
#include "kernels/table.h"
#include "memory.h"
#include "npkernels/grpo.h"
#include "rows.h"

namespace npkernels {
namespace {

void lay_out(SequenceCall& call, DType dtype, const Sequences& sequences) {
  call.dtype = dtype;
  call.sequences = sequences.count;
  call.length = sequences.length;
  call.ends = sequences.ends;
}

// How many bytes are not 0, eight at a time.
int64_t count_bytes(const uint8_t* mask, int64_t n) {
  int64_t found = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t word;
    std::memcpy(&word, mask + i, 8);
    found += static_cast<int64_t>((word * 0x0101010101010101u) >> 56);  // bytes are 0 or 1
  }
  for (; i < n; ++i) found += mask[i];
  return found;
}

// What the loss of a token is multiplied by, in a sequence of n kept tokens, out of N in S sequences that
// have any.
double weight(const PolicyOptions& o, int64_t n, int64_t N, int64_t S) {
  const double sequences = double(S > 0 ? S : 1);
  switch (o.aggregate) {
    case Aggregate::token_mean:
      return o.total_tokens > 0 ? 1 / o.total_tokens : 1 / double(N > 0 ? N : 1);
    case Aggregate::token_sum:
      return 1;
    case Aggregate::seq_mean_token_sum:
      return 1 / sequences;
    case Aggregate::seq_mean_token_mean:
      return 1 / (sequences * double(n > 0 ? n : 1));
    case Aggregate::seq_mean_token_sum_norm:
      return 1 / (sequences * o.max_length);
  }
  return 0;
}

}  // namespace

bool policy_loss(const PolicyTokens& tokens, const Sequences& sequences, const PolicyOptions& options,
                 PolicyTotals* totals, void* dlogp) {
  const auto counts = buffer<int64_t>(sequences.count);
  const auto weights = buffer<double>(sequences.count), sums = buffer<double>(sequences.count * kPolicySums);
  if (!counts || !weights || !sums) return false;
  PolicyCall call;
  lay_out(call, tokens.dtype, sequences);
  call.logp = tokens.logp;
  call.old_logp = tokens.old_logp;
  call.ref_logp = tokens.ref_logp;
  call.sampler_logp = tokens.sampler_logp;
  call.entropy = tokens.entropy;
  call.mask = tokens.mask;
  call.advantages = tokens.advantages;
  call.per_token = tokens.per_token;
  call.options = options;
  call.counts = counts.get();
  call.weights = weights.get();
  call.sums = sums.get();
  call.dlogp = dlogp;

  *totals = {};
  for (int64_t s = 0; s < sequences.count; ++s) {
    const int64_t first = call.begin(s), n = call.begin(s + 1) - first;
    const int64_t kept = tokens.mask ? count_bytes(tokens.mask + first, n) : n;
    counts.get()[s] = kept;
    totals->tokens += kept;
    totals->sequences += kept > 0;
  }
  for (int64_t s = 0; s < sequences.count; ++s)
    weights.get()[s] = weight(options, counts.get()[s], totals->tokens, totals->sequences);
  kernels().policy_loss(call);
  for (int64_t s = 0; s < sequences.count; ++s) {
    const double* part = sums.get() + s * kPolicySums;
    totals->loss += weights.get()[s] * (part[0] + (options.beta != 0 ? options.beta * part[1] : 0));
    totals->kl += part[1];
    totals->ratio += part[2];
    totals->old_kl -= part[3];
    totals->clip_low += part[4];
    totals->clip_high += part[5];
    totals->importance += part[6];
    totals->entropy += part[7];
  }
  return true;
}

void token_policy_loss(const Array& logits, const TokenPolicy& tokens, const PolicyOptions& options,
                       double* sums, const Array* dlogits) {
  TokenPolicyCall call;
  call.dtype = logits.dtype;
  call.temperature = tokens.temperature;
  const RowArray arrays[] = {{&logits, &call.in[0]}, {dlogits, &call.out[0]}};
  make_rows(call, logits.ndim - 1, arrays, dlogits ? 2 : 1);
  if (!dlogits) {  // an output that nobody reads, laid out like the logits
    call.out[0] = call.in[0];
    call.out[0].data = nullptr;
  }
  call.ids = tokens.ids;
  call.old_logp = tokens.old_logp;
  call.ref_logp = tokens.ref_logp;
  call.advantages = tokens.advantages;
  call.correction = tokens.correction;
  call.weights = tokens.weights;
  call.want_entropy = tokens.want_entropy;
  call.options = options;
  call.sums = sums;
  kernels().token_policy_loss(call);
}

void discounted_returns(DType dtype, const void* rewards, const Sequences& sequences, const uint8_t* mask,
                        const double* gamma, const double* last, void* returns) {
  ScanCall call;
  lay_out(call, dtype, sequences);
  call.rewards = rewards;
  call.mask = mask;
  call.gamma = gamma;
  call.last = last;
  call.returns = returns;
  kernels().scan(call);
}

void gae(DType dtype, const void* rewards, const void* values, const Sequences& sequences,
         const uint8_t* mask, const uint8_t* dones, const double* gamma, const double* lam,
         const double* last, void* advantages, void* returns) {
  ScanCall call;
  lay_out(call, dtype, sequences);
  call.rewards = rewards;
  call.values = values;
  call.mask = mask;
  call.dones = dones;
  call.gamma = gamma;
  call.lam = lam;
  call.last = last;
  call.advantages = advantages;
  call.returns = returns;
  kernels().scan(call);
}

void beam_step(DType dtype, const void* log_probs, const void* scores, int64_t batch, int64_t beams,
               int64_t vocabulary, int64_t width, void* best, int64_t* beam, int64_t* token) {
  kernels().beam_step({dtype, batch, beams, vocabulary, width, log_probs, scores, best, beam, token});
}

void sample(const Array& logits, const SampleOptions& options, const double* u, int64_t* ids) {
  SampleCall call;
  call.dtype = logits.dtype;
  call.temperature = options.temperature;
  const RowArray arrays[] = {{&logits, &call.in[0]}};
  make_rows(call, logits.ndim - 1, arrays, 1);
  call.top_k = options.top_k;
  call.top_p = options.top_p;
  call.min_p = options.min_p;
  call.u = u;
  call.ids = ids;
  kernels().sample(call);
}

}  // namespace npkernels
