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
    KeptStats<T, What> stats;
    T chosen = 0;
    T g = 0, rest = 0;  // 1 - p of the chosen one
    int64_t id = -1;
  };
  static constexpr int inputs = 1, outputs = 1;
  static constexpr bool reduces = true, chooses = true, keeps = true;
  static constexpr T fill[] = {-INFINITY}, blank[] = {0};
  static constexpr bool scaled[] = {true};
  const TokenPolicyCall& call;
  const PolicyConstants<double> k;  // the few numbers of a token are worked out in double

  explicit TokenPolicy(const TokenPolicyCall& c) : call(c), k(c.options) {}
  int64_t choice(int64_t row) const { return call.ids[row]; }
  bool emits() const { return call.out[0].data != nullptr; }

  State begin(int64_t row) const {
    State s;
    s.stats = KeptStats<T, What>(call.n);
    s.id = call.ids[row];
    return s;
  }

  void reduce(State& s, int64_t first, const T* const* x, int n, T* kept) const {
    if (s.id >= 0) s.stats.read(first, x[0], n, kept);
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
    const bool idle = A == 0 || c == 0;  // no loss, whatever rho and logp are
    double g = idle ? 0 : c * (l.slope[0] + l.direct[0]);
    sums[kLoss] = idle ? 0 : c * l.loss[0];
    sums[kRatio] = rho;
    sums[kOldKl] = d;
    sums[kClipLow] = rho < k.least && A < 0;
    sums[kClipHigh] = rho > k.most && A > 0;
    sums[kImportance] = c;
    sums[kSlope] = logp;
    if (call.ref_logp) {
      Vec<double> kl[] = {splat(at(call.ref_logp) - logp)}, slope[1];
      with_kl(k.kl, [&](auto kind) { kl_terms<decltype(kind)::value>(k, kl, slope); });
      sums[kKl] = kl[0][0];
      g += call.options.beta != 0 ? call.options.beta * slope[0][0] : 0;
    }
    if constexpr (What::entropy) sums[kEntropy] = s.stats.entropy();
    g *= call.weights[row] / call.temperature;
    s.g = T(g);
    s.rest = T(-::expm1(logp));
    const bool infinite = s.stats.lse() == double(INFINITY);  // then exp(x - m) is 0, or NaN, already
    s.stats.scale = infinite ? -g : -g / s.stats.sum();
  }

  void emit(const State& s, int64_t first, const T* const* x, const T* kept, T* const* dx, int n) const {
    if (s.id < 0) return fill_chunk(dx[0], n, T(0));
    s.stats.emit(first, x[0], kept, dx[0], n);
    if (s.id < first || s.id >= first + n) return;
    T& chosen = dx[0][s.id - first];
    chosen = isinf(s.g) ? s.g * s.rest : chosen + s.g;  // not inf - inf
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
