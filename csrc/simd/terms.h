// Small helpers that the policy losses share with nobody yet: bytes as a mask, and exp(x) - 1 without
// cancellation.
#pragma once

#include "math.h"

namespace npkernels::NPK_ISA {
namespace {

template <int N>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(N)));
};

// Which of the next lanes exist (i < n) and have a mask byte other than 0; mask may be null.
template <class T>
inline Mask<T> kept_lanes(const uint8_t* mask, int64_t n) {
  constexpr int kN = kLanes<T>;
  typename BytesOf<kN>::type bytes;
  if (n >= kN) {
    if (!mask) return equal(splat(T(0)), splat(T(0)));
    memcpy(&bytes, mask, kN);
  } else {
    uint8_t lanes[kN];
    for (int i = 0; i < kN; ++i) lanes[i] = i < n && (!mask || mask[i]);
    memcpy(&bytes, lanes, kN);
  }
  return greater(static_cast<Vec<T>>(__builtin_convertvector(bytes, Vec<T>)), splat(T(0)));
}

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
  const Vec<T> most = splat(K::highest - 1), bounded = min_of(most, max_of(splat(K::lowest), x));
  const Vec<T> n = round_even(bounded * splat(K::log2e));
  const Vec<T> r = fma(n, splat(-K::ln2_low), fma(n, splat(-K::ln2_high), bounded));
  Vec<T> p = splat(K::p[0]);
  for (unsigned i = 1; i < sizeof(K::p) / sizeof(T); ++i) p = fma(p, r, splat(K::p[i]));
  const Vec<T> square = r * r * p, sum = r + square, scale = mul_pow2(splat(T(1)), n);
  const Vec<T> whole = scale - splat(T(1)), inf = splat(T(__builtin_inff()));
  const Mask<T> near = equal(n, splat(T(0))), large = greater(x, most);
  return {select(near, sum, select(large, inf, fma(scale, sum, whole))),
          select(near, square, select(large, inf, fma(scale, sum, whole - x)))};
}

}  // namespace
}  // namespace npkernels::NPK_ISA
