// What one register of tokens adds to a policy loss, and the slopes with respect to logp.
// Letters as in policy_loss.cpp: rho ratio of new to old policy, A advantage, c correction, w weight.
#pragma once

#include <math.h>

#include "../simd/terms.h"
#include "grpo_call.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

// Sums over tokens.
enum { kLoss, kKl, kRatio, kOldKl, kClipLow, kClipHigh, kImportance, kEntropy, kSlope, kSums };
static_assert(kSums == kPolicySums, "as many as the caller has room for");

// The options, as registers of T.
template <class T>
struct PolicyConstants {
  T low, high, delta, dual, tau_up, tau_down, kl_inner, kl_outer, beta, least, most;
  Kl kl;
  bool truncates, in_logs;

  explicit PolicyConstants(const PolicyOptions& o)
      : low(T(1 - o.clip_low)),
        high(T(1 + o.clip_high)),
        delta(T(o.delta)),
        dual(T(o.dual_clip)),
        tau_up(T(o.tau_positive)),
        tau_down(T(o.tau_negative)),
        kl_inner(T(o.kl_inner)),
        kl_outer(T(o.kl_outer)),
        beta(T(o.beta)),
        least(T(-INFINITY)),
        most(T(INFINITY)),
        kl(o.kl),
        truncates(o.truncates),
        in_logs(o.surrogate == Surrogate::geometric) {
    if (o.surrogate == Surrogate::cap) {
      low = T(-INFINITY);
      high = T(o.clip_high);
    }
    if (in_logs) {
      low = T(-o.clip_low);
      high = T(o.clip_high);
    }
    if (o.surrogate != Surrogate::gate &&
        o.surrogate != Surrogate::log) {  // outside of this a token counts as clipped
      least = low;
      most = high;
    }
  }
};

// Whether the clip has more bounds than its range.
inline bool bounded(const PolicyOptions& o) { return o.delta < INFINITY || o.dual_clip < INFINITY; }

template <class T>
struct Terms {
  Vec<T> loss, slope, direct;  // slope with respect to log rho; direct with respect to logp
};

template <class T>
inline Vec<T> within(Vec<T> x, T low, T high) {
  return min_of(splat(high), max_of(splat(low), x));
}

// -min(rho A, clip(rho) A) (Schulman et al. 2017).
template <class T>
struct ClipTerms {
  static Terms<T> of(const PolicyConstants<T>& k, Vec<T> rho, Vec<T> A, Vec<T>) {
    const Vec<T> zero = splat(T(0)), free = rho * A, held = within(rho, k.low, k.high) * A;
    const Mask<T> clipped = greater(free, held);
    return {zero - select(clipped, held, free), select(clipped, zero, zero - free), zero};
  }
};

// The same with min(rho, delta) in the first place, and at most -dual A where A < 0 (Ye et al. 2020).
template <class T>
struct BoundedClipTerms {
  static Terms<T> of(const PolicyConstants<T>& k, Vec<T> rho, Vec<T> A, Vec<T> logp) {
    const Vec<T> zero = splat(T(0)), free = min_of(splat(k.delta), rho) * A,
                 held = within(rho, k.low, k.high) * A;
    const Mask<T> clipped = greater(free, held);
    const Vec<T> loss = zero - select(clipped, held, free);
    const Vec<T> slope = select(greater(rho, splat(k.delta)), zero, ClipTerms<T>::of(k, rho, A, logp).slope);
    const Vec<T> worst = select(greater(zero, A), zero - splat(k.dual) * A, splat(T(INFINITY)));
    const Mask<T> beyond = greater(loss, worst);
    return {select(beyond, worst, loss), select(beyond, zero, select(clipped, zero, slope)), zero};
  }
};

// -r A logp, r the clipped ratio held constant (CISPO, MiniMax 2025); 0 where r is, whatever logp is.
template <class T>
struct CapTerms {
  static Terms<T> of(const PolicyConstants<T>& k, Vec<T> rho, Vec<T> A, Vec<T> logp) {
    const Vec<T> zero = splat(T(0)), direct = zero - within(rho, k.low, k.high) * A;
    return {select(equal(direct, zero), zero, direct * logp), zero, direct};
  }
};

// -A 4/tau sigmoid(tau (rho - 1)) (SAPO, Gao et al. 2025).
template <class T>
struct GateTerms {
  static Terms<T> of(const PolicyConstants<T>& k, Vec<T> rho, Vec<T> A, Vec<T>) {
    const Vec<T> zero = splat(T(0)), one = splat(T(1));
    const Vec<T> tau = select(greater(A, zero), splat(k.tau_up), splat(k.tau_down));
    const Vec<T> s = one / (one + exp_any<T>(zero - tau * (rho - one))), scaled = zero - A * splat(T(4));
    const Vec<T> steep = s * (one - s);  // 0 before rho is infinite
    return {scaled / tau * s, select(equal(steep, zero), zero, scaled * steep * rho), zero};
  }
};

// -A rho, rho of the whole sequence; its clip is in log rho (GMPO, Zhao et al. 2025).
template <class T>
struct GeometricTerms {
  static Terms<T> of(const PolicyConstants<T>&, Vec<T> rho, Vec<T> A, Vec<T>) {
    const Vec<T> loss = splat(T(0)) - A * rho;
    return {loss, loss, splat(T(0))};
  }
};

// -A logp (GPG, Chu et al. 2025).
template <class T>
struct LogTerms {
  static Terms<T> of(const PolicyConstants<T>&, Vec<T>, Vec<T> A, Vec<T> logp) {
    const Vec<T> zero = splat(T(0)), direct = zero - A;
    return {direct * logp, zero, direct};
  }
};

// Calls f(Which<Terms>) with the terms that the options ask for.
template <template <class> class Chosen>
struct Which {
  template <class T>
  using Terms = Chosen<T>;
};

template <class F>
inline auto with_surrogate(const PolicyOptions& o, F f) {
  switch (o.surrogate) {
    case Surrogate::cap:
    case Surrogate::range:
      return f(Which<CapTerms>{});
    case Surrogate::gate:
      return f(Which<GateTerms>{});
    case Surrogate::geometric:
      return f(Which<GeometricTerms>{});
    case Surrogate::log:
      return f(Which<LogTerms>{});
    case Surrogate::clip:
      break;
  }
  return bounded(o) ? f(Which<BoundedClipTerms>{}) : f(Which<ClipTerms>{});
}

// The estimate of the KL divergence, in place of x = ref - logp, and its slope with respect to logp (Schulman
// 2020).
template <Kl kKind, class T, int U>
NPK_INLINE void kl_terms(const PolicyConstants<T>& k, Vec<T> (&x)[U], Vec<T> (&slope)[U]) {
  const Vec<T> zero = splat(T(0)), inner = splat(k.kl_inner), outer = splat(k.kl_outer);
  Vec<T> value[U];  // slope: with respect to y, x held within the bounds
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) value[u] = within(x[u], -k.kl_inner, k.kl_inner);
  if constexpr (kKind == Kl::k3 || kKind == Kl::k3_plus) {
    exp_terms<T>(value, slope);
  } else {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      slope[u] = kKind == Kl::k1 ? splat(T(-1)) : value[u];
      value[u] = kKind == Kl::k1 ? zero - value[u] : value[u] * value[u] * splat(T(0.5));
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    if constexpr (kKind == Kl::k3_plus) {
      slope[u] = zero - x[u];  // the gradient of k2, straight through
    } else {
      const Mask<T> outside = greater(max_of(x[u], zero - x[u]), inner),
                    large = greater(max_of(value[u], zero - value[u]), outer);
      slope[u] = zero - select(outside, zero, select(large, zero, slope[u]));
    }
    x[u] = within(value[u], -k.kl_outer, k.kl_outer);
  }
}

// Calls f(Kind) with the estimate that is asked for.
template <Kl kKind>
struct KlKind {
  static constexpr Kl value = kKind;
};

template <class F>
inline void with_kl(Kl kind, F f) {
  switch (kind) {
    case Kl::k1:
      return f(KlKind<Kl::k1>{});
    case Kl::k2:
      return f(KlKind<Kl::k2>{});
    case Kl::k3:
      return f(KlKind<Kl::k3>{});
    case Kl::k3_plus:
      return f(KlKind<Kl::k3_plus>{});
  }
}

// exp(gap), cut at `cap` or dropped beyond it.
template <class T>
inline Vec<T> correction(const PolicyConstants<T>& k, Vec<T> gap, T cap) {
  const Vec<T> ratio = exp_any<T>(gap), most = splat(cap);
  return k.truncates ? min_of(most, ratio) : select(greater(ratio, most), splat(T(0)), ratio);
}

// The log ratio of GMPO: d, held back where it helps (Zhao et al. 2025, eq. 4); 0 for A = 0.
template <class T>
inline Vec<T> held_log_ratio(const PolicyConstants<T>& k, Vec<T> d, Vec<T> A) {
  const Vec<T> zero = splat(T(0)), clipped = within(d, k.low, k.high);
  return select(greater(A, zero), min_of(clipped, d), select(greater(zero, A), max_of(clipped, d), zero));
}

}  // namespace
}  // namespace npkernels::NPK_ISA
