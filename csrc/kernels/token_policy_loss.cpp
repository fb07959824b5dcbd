// A policy loss of tokens, from their rows of logits to the gradient of these in one read and one write: the
// row's normaliser, the token's log-probability, its loss and slope g = dloss/dlogp (policy_terms.h), and
// while the row is still in cache
//   dlogits = g (onehot - p) / temperature.
// For losses at token level; the others need a whole sequence before the first gradient.
#include "policy_terms.h"

#include "kernels.h"
#include "row_stats.h"

namespace npkernels::NPK_ISA {
namespace {

template <class Type, class What>
struct TokenPolicy {
  using T = Type;
  struct State {
    RowStats<T, What> stats;
    T chosen = 0;
    T lse = 0, g = 0;
    int64_t id = -1;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = true, chooses = true;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const TokenPolicyCall& call;
  const PolicyConstants<double> k;  // the few numbers of a token are worked out in double

  explicit TokenPolicy(const TokenPolicyCall& c) : call(c), k(c.options) {}
  int64_t choice(int64_t row) const { return call.ids[row]; }
  bool emits() const { return call.out[0].data != nullptr; }

  State begin(int64_t row) const {
    State s;
    s.id = call.ids[row];
    return s;
  }

  void reduce(State& s, int64_t, const T* const* x, int n) const {
    if (s.id >= 0) s.stats.add(x[0], n);
  }

  void finish(State& s, int64_t row) const {
    double* sums = call.sums + row * kSums;
    for (int i = 0; i < kSums; ++i) sums[i] = 0;
    if (s.id < 0) return;
    const auto at = [row](const void* p) { return double(static_cast<const T*>(p)[row]); };
    const double logp = (double(s.chosen) - double(s.stats.m)) - s.stats.log_sum(),
                 d = logp - at(call.old_logp);
    const double A = at(call.advantages), c = call.correction ? at(call.correction) : 1, rho = ::exp(d);
    const Terms<double> l = with_surrogate(call.options, [&](auto which) {
      return decltype(which)::template Terms<double>::of(k, splat(rho), splat(A), splat(logp));
    });
    double g = A == 0 ? 0 : c * (l.slope[0] + l.direct[0]);
    sums[kLoss] = A == 0 ? 0 : c * l.loss[0];
    sums[kRatio] = rho;
    sums[kOldKl] = d;
    sums[kClipLow] = rho < k.least && A < 0;
    sums[kClipHigh] = rho > k.most && A > 0;
    sums[kImportance] = c;
    sums[kSlope] = logp;
    if (call.ref_logp) {
      const KlTerms<double> kl = kl_terms<double>(k, splat(at(call.ref_logp) - logp));
      sums[kKl] = kl.value[0];
      g += call.options.beta != 0 ? call.options.beta * kl.slope[0] : 0;
    }
    if constexpr (What::entropy) sums[kEntropy] = s.stats.entropy();
    s.lse = T(s.stats.lse());
    s.g = T(g * call.weights[row] / call.temperature);
  }

  void emit(const State& s, int64_t first, const T* const* x, T* const* dx, int n) const {
    const Vec<T> lse = splat(s.lse), g = splat(-s.g), zero = splat(T(0));
    if (s.id < 0) {
      for (int i = 0; i < n; i += kLanes<T>) store_upto(dx[0] + i, zero, n - i);
      return;
    }
    transform_chunk(x[0], dx[0], n, [&](auto& v) {
      for (Vec<T>& vi : v) vi = vi - lse;
      exp_any<T>(v);
      for (Vec<T>& vi : v) vi = vi * g;
    });
    if (s.id >= first && s.id < first + n) dx[0][s.id - first] += s.g;
  }
};

template <class T>
using Plain = TokenPolicy<T, Normaliser>;
template <class T>
using WithEntropy = TokenPolicy<T, NormaliserEntropy>;

}  // namespace

void token_policy_loss(const TokenPolicyCall& call) {
  if (call.want_entropy)
    run_rows<WithEntropy>(call);
  else
    run_rows<Plain>(call);
}

}  // namespace npkernels::NPK_ISA
