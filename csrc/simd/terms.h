// exp(x) - 1 without cancellation: terms of the estimates of a KL divergence.
#pragma once

#include "math.h"

namespace npkernels::NPK_ISA {
namespace {

// x[u] becomes exp(x) - 1 - x, and expm1[u] exp(x) - 1. With x = n ln 2 + r as in exp_bounded they are
// 2^n (exp(r) - 1) + (2^n - 1), whose second part is exact, and for n = 0, where nothing cancels, r^2 P(r)
// and r + r^2 P(r). inf one unit of x before exp(x) is. Each step is done for all registers before the next.
template <class T, int U>
NPK_INLINE void exp_terms(Vec<T> (&x)[U], Vec<T> (&expm1)[U]) {
  using K = ExpConstants<T>;
  // Below the lower end 2^n counts for nothing beside 1.
  const Vec<T> most = splat(K::highest - 1), least = splat(NormalRange<T>::lowest), one = splat(T(1));
  const Vec<T> inf = splat(T(__builtin_inff()));
  Vec<T> n[U], r[U], p[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) r[u] = min_of(most, max_of(least, x[u]));
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) n[u] = round_even(r[u] * splat(K::log2e));
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) r[u] = fma(n[u], splat(-K::ln2_low), fma(n[u], splat(-K::ln2_high), r[u]));
  horner(K::p, r, p);
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) {
    const Vec<T> square = r[u] * r[u] * p[u], sum = r[u] + square, scale = mul_pow2_normal(one, n[u]);
    const Vec<T> whole = scale - one;
    const Mask<T> near = equal(n[u], splat(T(0))), large = greater(x[u], most);
    expm1[u] = select(near, sum, select(large, inf, fma(scale, sum, whole)));
    x[u] = select(near, square, select(large, inf, fma(scale, sum, whole - x[u])));
  }
}

}  // namespace
}  // namespace npkernels::NPK_ISA
