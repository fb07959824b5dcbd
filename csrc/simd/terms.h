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
  alignas(64) uint8_t lanes[kN];
  if (mask && n >= kN) {
    memcpy(&bytes, mask, kN);
  } else {
    for (int i = 0; i < kN; ++i) lanes[i] = i < n && (!mask || mask[i]);
    memcpy(&bytes, lanes, kN);
  }
  return greater(static_cast<Vec<T>>(__builtin_convertvector(bytes, Vec<T>)), splat(T(0)));
}

// exp(x) - 1 and exp(x) - 1 - x. With x = n ln 2 + r as in exp_bounded, n = 0 gives them as r + r^2 P(r) and
// r^2 P(r), where nothing cancels.
template <class T>
struct ExpTerms {
  Vec<T> expm1, rest;
};

template <class T>
inline ExpTerms<T> exp_terms(Vec<T> x) {
  using K = ExpConstants<T>;
  const Vec<T> bounded = min_of(splat(K::highest), max_of(splat(K::lowest), x));
  const Vec<T> n = round_even(bounded * splat(K::log2e));
  const Vec<T> r = fma(n, splat(-K::ln2_low), fma(n, splat(-K::ln2_high), bounded));
  Vec<T> p = splat(K::p[0]);
  for (unsigned i = 1; i < sizeof(K::p) / sizeof(T); ++i) p = fma(p, r, splat(K::p[i]));
  const Vec<T> square = r * r * p, one = splat(T(1)), sum = r + square;
  const Vec<T> scale = mul_pow2(one, n), low = scale - one, high = mul_pow2(fma(r * r, p, r) + one, n) - one;
  const Mask<T> near = equal(n, splat(T(0))), large = greater(n, splat(T(8)));
  return {select(near, sum, select(large, high, fma(scale, sum, low))),
          select(near, square, select(large, high - x, fma(scale, sum, low - x)))};
}

}  // namespace
}  // namespace npkernels::NPK_ISA
