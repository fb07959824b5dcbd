// The thin vector type: Vec<T> is one register of the instruction set (ISA) that this file is compiled for,
// kLanes<T> its number of lanes. Vec<float> and Vec<double> are the compiler's native vector types, so + - *
// / are written as such; everything that plain operators cannot say is a small function below.
//
// Each ISA's file defines, for T = float and double:
//   splat(x) load(p) store(p, v) stream(p, v: p aligned to the register, non-temporal)
//   load_part(p, n, fill) store_part(p, v, n)     the first n < kLanes<T> lanes; memory beyond is not touched
//   held(v) = v, in a register: the compiler does not read it from memory once more
//   fma(a, b, c) = a * b + c, rounded once        (baseline x86 has no such instruction: rounded twice)
//   max_of(a, b), min_of(a, b)                    b where the two do not compare (NaN)
//   round_even(x)                                 to the nearest integer
//   square_root(x)
//   mul_pow2(x, n)                                x * 2^n for an integer-valued n, gradual underflow,
//                                                 overflow to inf
//   mul_pow2_normal(x, n)                         the same where x and the result are normal numbers; where x
//   or n is
//                                                 NaN, so is the result
//   kOnePower                                     whether mul_pow2 costs no more than mul_pow2_normal
//   kZeroPower<T>                                 an n for which mul_pow2_normal(1, n) is 0
//   sum_lanes(v)                                  all lanes, added in double in a fixed order
//   sum_each(v)                                   lane i is the sum of the lanes of v[i], i < kLanes<T>, in a
//                                                 fixed order
//   max_lane(v)                                   the largest lane; v holds no NaN
//   kTransposeSide<T>; transpose_square(from, from_pitch, to, to_pitch)   a square of that side in memory
//   Mask<T>; greater(a, b) equal(a, b) not_nan(a); select(mask, a, b); any(mask); count(mask)
//   nonzero(p, T())                               which of the next kLanes<T> bytes are not 0
// and for 16-bit storage (float lanes; Half is IEEE binary16, BFloat is the upper half of a binary32):
//   load(const Half*) store(Half*, v) load(const BFloat*) store(BFloat*, v), rounding to nearest even
//
// and for ISAs with kHasPairs, whose registers of kLanes<float> pairs are Pairs:
//   splat(Pair) load(const Pair*)
//   fma(Pairs a, Pairs b, c)                      c + a.second * b.second, then + a.first * b.first, each
//                                                 rounded once; numbers below the normal range count as 0
//
// Everything lives in the anonymous namespace of the including translation unit: code for a wide ISA must
// never be merged by the linker with code that a smaller machine runs.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef NPK_ISA
#error "NPK_ISA names the instruction set; cmake/NpkernelsIsa.cmake defines it"
#endif

// For functions of arrays of registers, which a call would send through memory.
#define NPK_INLINE inline __attribute__((always_inline))

namespace npkernels::NPK_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};
// Two bfloat16 numbers that lie side by side.
struct Pair {
  BFloat first, second;
};

}  // namespace
}  // namespace npkernels::NPK_ISA

#if defined(__AVX512F__) || defined(NPK_EMULATE_AVX512)
#include "x86_avx512.h"
#elif defined(__AVX2__)
#include "x86_avx2.h"
#elif defined(__SSE4_2__)
#include "x86_sse.h"
#elif defined(__aarch64__)
#include "neon.h"
#else
#error "no vector type for this machine; csrc/simd/ lists the supported ones"
#endif

#include "half_soft.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr float kInf = __builtin_inff();

#ifndef NPK_HAS_PAIRS
constexpr bool kHasPairs = false;
#endif

// Entries of storage type S that fill one register of its compute type.
template <class S>
constexpr int kWidth = kLanes<float>;
template <>
constexpr int kWidth<double> = kLanes<double>;

// n entries, where n may be past the register's width, or 0 or less: one loop body serves whole registers and
// the tail.
template <class S, class T>
inline Vec<T> load_upto(const S* p, int64_t n, T fill) {
  return n >= kWidth<S> ? load(p) : n > 0 ? load_part(p, static_cast<int>(n), fill) : splat(fill);
}

template <class S, class V>
inline void store_upto(S* p, V v, int64_t n) {
  if (n >= kWidth<S>)
    store(p, v);
  else
    store_part(p, v, static_cast<int>(n));
}

// Which of the next lanes exist (i < n) and have a byte other than 0; bytes may be null: all have.
template <class T>
inline Mask<T> kept_lanes(const uint8_t* bytes, int64_t n) {
  if (n >= kLanes<T>) return bytes ? nonzero(bytes, T()) : equal(splat(T(0)), splat(T(0)));
  uint8_t lanes[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i < n && (!bytes || bytes[i]);
  return nonzero(lanes, T());
}

// n bytes as numbers: 1 where a byte is not 0.
template <class T>
inline void flags_to_numbers(const char* bytes, int64_t n, T* to) {
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const auto kept = kept_lanes<T>(reinterpret_cast<const uint8_t*>(bytes) + i, n - i);
    store_upto(to + i, select(kept, splat(T(1)), splat(T(0))), n - i);
  }
}

template <class T>
constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
constexpr T larger(T a, T b) {
  return a < b ? b : a;
}

}  // namespace
}  // namespace npkernels::NPK_ISA
