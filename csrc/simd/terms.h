// exp(x) - 1 without cancellation: terms of the estimates of a KL divergence.
#pragma once

#include "math.h"

namespace npkernels::NPK_ISA {
namespace {

// exp(x) - 1 and exp(x) - 1 - x. With x = n ln 2 + r as in exp_bounded they are 2^n (exp(r) - 1) + (2^n - 1),
// whose second part is exact, and for n = 0, where nothing cancels, r + r^2 P(r) and r^2 P(r). inf one unit
// of x before exp(x) is.
template <class T>
struct ExpTerms {
  Vec<T> expm1, rest;
};

template <class T>
inline ExpTerms<T> exp_terms(Vec<T> x) {
  using K = ExpConstants<T>;
  // Below the lower end 2^n counts for nothing beside 1.
  const Vec<T> most = splat(K::highest - 1), least = splat(NormalRange<T>::lowest);
  const Vec<T> bounded = min_of(most, max_of(least, x));
  const Vec<T> n = round_even(bounded * splat(K::log2e));
  const Vec<T> r = fma(n, splat(-K::ln2_low), fma(n, splat(-K::ln2_high), bounded));
  Vec<T> p = splat(K::p[0]);
  for (unsigned i = 1; i < sizeof(K::p) / sizeof(T); ++i) p = fma(p, r, splat(K::p[i]));
  const Vec<T> square = r * r * p, sum = r + square, scale = mul_pow2_normal(splat(T(1)), n);
  const Vec<T> whole = scale - splat(T(1)), inf = splat(T(__builtin_inff()));
  const Mask<T> near = equal(n, splat(T(0))), large = greater(x, most);
  return {select(near, sum, select(large, inf, fma(scale, sum, whole))),
          select(near, square, select(large, inf, fma(scale, sum, whole - x)))};
}

}  // namespace
}  // namespace npkernels::NPK_ISA
