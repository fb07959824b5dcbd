// Elementary functions on Vec<T>.
#pragma once

#include "vec.h"

namespace npkernels::NPK_ISA {
namespace {

// exp(x) = 2^n * exp(r) with n = round(x / ln 2) and r = x - n ln 2 in [-ln2/2, ln2/2]  (Cody & Waite 1980,
// ch. 6: ln 2 is subtracted in two parts, the first exact in every n). exp(r) = 1 + r + r^2 P(r); P
// interpolates (exp(r) - 1 - r) / r^2 at Chebyshev nodes. Largest error found: float 1.08 ULP (all
// arguments), double 1.2 ULP. -inf -> 0, above the range -> inf, NaN -> NaN (max_of and min_of give their
// second argument for NaN).
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -104.0f, highest = 89.0f;
  static constexpr float log2e = 0x1.715476p+0f, ln2_high = 0x1.62e400p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float p[] = {0x1.6d110ap-10f, 0x1.120b6ep-7f, 0x1.55551ap-5f, 0x1.5554dcp-3f, 0.5f};
};

template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746.0, highest = 710.0;
  static constexpr double log2e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fee00000p-1,
                          ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double p[] = {0x1.1f66df7fca49fp-29,
                                 0x1.af38a9b0ec855p-26,
                                 0x1.27e4e1f48534fp-22,
                                 0x1.71de0dae63bb3p-19,
                                 0x1.a01a01a47b054p-16,
                                 0x1.a01a01a7c41d5p-13,
                                 0x1.6c16c16c167e1p-10,
                                 0x1.11111111109b3p-7,
                                 0x1.5555555555555p-5,
                                 0x1.5555555555556p-3,
                                 0.5};
};

// Each function below takes one register, or an array of some in place: then each step is done for all of
// them before the next, since a step waits several cycles for the one before it.

// Whether 2^n, times what exp multiplies it by, may leave the normal range in some lane.
template <class T, int U>
NPK_INLINE bool beyond_normal(const Vec<T> (&n)[U]) {
  constexpr T bound = sizeof(T) == sizeof(float) ? 125 : 1021;
  Vec<T> least = splat(T(0)), most = least;
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) least = min_of(n[u], least), most = max_of(n[u], most);
  return any(greater(splat(-bound), least)) || any(greater(most, splat(bound)));
}

// y = the polynomial of x with these coefficients, that of the highest power first.
template <class T, unsigned kTerms, class V, int U>
NPK_INLINE void horner(const T (&coefficients)[kTerms], const V (&x)[U], V (&y)[U]) {
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) y[u] = splat(coefficients[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < kTerms; ++i)
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) y[u] = fma(y[u], x[u], splat(coefficients[i]));
}

// exp for lowest <= x <= highest, or NaN.
template <class T, int U>
NPK_INLINE void exp_bounded(Vec<T> (&x)[U]) {
  using K = ExpConstants<T>;
  Vec<T> n[U], p[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) n[u] = round_even(x[u] * splat(K::log2e));
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = fma(n[u], splat(-K::ln2_high), x[u]);
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = fma(n[u], splat(-K::ln2_low), x[u]);  // r
  horner(K::p, x, p);
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) p[u] = fma(x[u] * x[u], p[u], x[u]) + splat(T(1));
  if (kOnePower || beyond_normal<T>(n)) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) x[u] = mul_pow2(p[u], n[u]);
  } else {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) x[u] = mul_pow2_normal(p[u], n[u]);
  }
}

// exp for x <= 0, or NaN: what a softmax needs.
template <class T, int U>
NPK_INLINE void exp_negative(Vec<T> (&x)[U]) {
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = max_of(splat(ExpConstants<T>::lowest), x[u]);
  exp_bounded<T>(x);
}
template <class T>
inline Vec<T> exp_negative(Vec<T> x) {
  Vec<T> one[] = {x};
  exp_negative<T>(one);
  return one[0];
}

// exp for every x.
template <class T, int U>
NPK_INLINE void exp_any(Vec<T> (&x)[U]) {
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = min_of(splat(ExpConstants<T>::highest), x[u]);
  exp_negative<T>(x);
}
template <class T>
inline Vec<T> exp_any(Vec<T> x) {
  Vec<T> one[] = {x};
  exp_any<T>(one);
  return one[0];
}

// Where the result stays a normal number: exp_weight and Tanh work on its exponent bits alone.
template <class T>
struct NormalRange;
template <>
struct NormalRange<float> {
  static constexpr float lowest = -87.0f, highest = 88.0f;
};
template <>
struct NormalRange<double> {
  static constexpr double lowest = -708.0, highest = 709.0;
};

// 2^r = 1 + r P(r) for r in [-1/2, 1/2]; P interpolates (2^r - 1) / r at Chebyshev nodes, with a relative
// error of 9e-9 in float and 2e-17 in double.
template <class T>
struct Exp2Constants;

template <>
struct Exp2Constants<float> {
  static constexpr float p[] = {0x1.44138ap-13f, 0x1.5f0890p-10f, 0x1.3b2a54p-7f,
                                0x1.c6af6cp-5f,  0x1.ebfbe0p-3f,  0x1.62e430p-1f};
};

template <>
struct Exp2Constants<double> {
  static constexpr double p[] = {0x1.c4a29324a1038p-36, 0x1.e9ec1fcb69a7fp-32, 0x1.e4cf10dec0f59p-28,
                                 0x1.b524ebd13a55fp-24, 0x1.62c02242b879cp-20, 0x1.ffcbfc6da6ed1p-17,
                                 0x1.430912f86b7dbp-13, 0x1.5d87fe78a3f9cp-10, 0x1.3b2ab6fba4e79p-7,
                                 0x1.c6b08d704a0c6p-5,  0x1.ebfbdff82c58fp-3,  0x1.62e42fefa39efp-1};
};

// 2^x for x <= 127 (1023) as the weight of a sum, at half the price of exp: what is below the normal range
// may come out as any number below it, -inf as exactly 0; NaN -> NaN.
template <class T, int U>
NPK_INLINE void exp2_weight(Vec<T> (&x)[U]) {
  using K = Exp2Constants<T>;
  Vec<T> n[U], p[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = max_of(splat(kZeroPower<T>), x[u]);
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) n[u] = round_even(x[u]);
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = x[u] - n[u];  // r
  horner(K::p, x, p);
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = mul_pow2_normal(fma(p[u], x[u], splat(T(1))), n[u]);
}

// exp(x) in the same way; x log2(e) is rounded, so the relative error grows with |x|, but not that of sums:
// the smaller the weight, the more.
template <class T, int U>
NPK_INLINE void exp_weight(Vec<T> (&x)[U]) {
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) x[u] = x[u] * splat(ExpConstants<T>::log2e);
  exp2_weight<T>(x);
}

template <class T>
inline Vec<T> magnitude(Vec<T> x) {
  return max_of(x, splat(T(0)) - x);
}

// tanh(x) and its derivative, both with small relative errors: with e = exp(-2 |x|),
//   tanh |x| = (1 - e) / (1 + e),  1 - tanh^2 = 4 e / (1 + e)^2,
// and e - 1 = 2^n (exp(r) - 1) + (2^n - 1), which keeps the digits of a small x.
template <class T>
struct Tanh {
  Vec<T> value, slope;

  explicit Tanh(Vec<T> x) {
    using K = ExpConstants<T>;
    const Vec<T> one = splat(T(1)), two = splat(T(2)), zero = splat(T(0));
    const Vec<T> y = max_of(splat(NormalRange<T>::lowest), (zero - two) * magnitude<T>(x));
    const Vec<T> n = round_even(y * splat(K::log2e));
    const Vec<T> r = fma(n, splat(-K::ln2_low), fma(n, splat(-K::ln2_high), y));
    Vec<T> p[1];
    horner(K::p, {r}, p);
    const Vec<T> rest = fma(r * r, p[0], r), power = mul_pow2_normal(one, n);
    const Vec<T> least = splat(NormalRange<T>::lowest + 1);
    const Vec<T> e = select(greater(least, y), zero, fma(power, rest, power));  // NaN stays
    const Vec<T> less = fma(power, rest, power - one), whole = less + two;
    const Vec<T> t = less / whole, half = two / whole;
    value = select(greater(zero, x), t, zero - t);
    slope = e * half * half;
  }
};

}  // namespace
}  // namespace npkernels::NPK_ISA
