// x86-64-v2: 128-bit registers, no FMA, no 16-bit conversions (half_soft.h has them).
#pragma once

#include "x86_intrinsics.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = __m128;
  static constexpr int lanes = 4;
};
template <>
struct VecOf<double> {
  using type = __m128d;
  static constexpr int lanes = 2;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = Vec<T>;
template <class T>
constexpr int kLanes = VecOf<T>::lanes;

constexpr int kRegisters = 16;
constexpr bool kHasFma = false;
#define NPK_SOFT_HALF 1

inline __m128 splat(float x) { return _mm_set1_ps(x); }
inline __m128d splat(double x) { return _mm_set1_pd(x); }
inline __m128 load(const float* p) { return _mm_loadu_ps(p); }
inline __m128d load(const double* p) { return _mm_loadu_pd(p); }
inline void store(float* p, __m128 v) { _mm_storeu_ps(p, v); }
inline void store(double* p, __m128d v) { _mm_storeu_pd(p, v); }
inline void stream(float* p, __m128 v) { _mm_stream_ps(p, v); }
inline void stream(double* p, __m128d v) { _mm_stream_pd(p, v); }
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline __m128 load_part(const float* p, int n, float fill) {
  __m128 v = splat(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline __m128d load_part(const double* p, int n, double fill) {
  __m128d v = splat(fill);
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
inline void store_part(float* p, __m128 v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
inline void store_part(double* p, __m128d v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

template <class V>
inline V held(V v) {
  asm("" : "+x"(v));
  return v;
}
inline __m128 fma(__m128 a, __m128 b, __m128 c) { return a * b + c; }
inline __m128d fma(__m128d a, __m128d b, __m128d c) { return a * b + c; }
inline __m128 max_of(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
inline __m128d max_of(__m128d a, __m128d b) { return _mm_max_pd(a, b); }
inline __m128 min_of(__m128 a, __m128 b) { return _mm_min_ps(a, b); }
inline __m128d min_of(__m128d a, __m128d b) { return _mm_min_pd(a, b); }
inline __m128 round_even(__m128 x) { return _mm_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline __m128d round_even(__m128d x) {
  return _mm_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m128 square_root(__m128 x) { return _mm_sqrt_ps(x); }
inline __m128d square_root(__m128d x) { return _mm_sqrt_pd(x); }

// 2^n by the exponent bits, in two factors so that each is a normal number.
inline __m128 pow2(__m128i n, float) {
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(n, _mm_set1_epi32(127)), 23));
}
inline __m128d pow2(__m128i n, double) {
  const __m128i exponent = _mm_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
  return _mm_castsi128_pd(_mm_slli_epi64(exponent, 52));
}
inline __m128 mul_pow2(__m128 x, __m128 n) {
  const __m128i whole = _mm_cvtps_epi32(n);
  const __m128i half = _mm_srai_epi32(whole, 1);
  return x * pow2(half, 0.0f) * pow2(_mm_sub_epi32(whole, half), 0.0f);
}
inline __m128d mul_pow2(__m128d x, __m128d n) {
  const __m128i whole = _mm_cvtpd_epi32(n);
  const __m128i half = _mm_srai_epi32(whole, 1);
  return x * pow2(half, 0.0) * pow2(_mm_sub_epi32(whole, half), 0.0);
}

// By adding to the exponent bits.
constexpr bool kOnePower = false;
template <class T>
constexpr T kZeroPower = sizeof(T) == sizeof(float) ? -127 : -1023;
inline __m128 mul_pow2_normal(__m128 x, __m128 n) {
  return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(x), _mm_slli_epi32(_mm_cvtps_epi32(n), 23)));
}
inline __m128d mul_pow2_normal(__m128d x, __m128d n) {
  const __m128i shift = _mm_slli_epi64(_mm_cvtepi32_epi64(_mm_cvtpd_epi32(n)), 52);
  return _mm_castsi128_pd(_mm_add_epi64(_mm_castpd_si128(x), shift));
}

inline __m128 greater(__m128 a, __m128 b) { return _mm_cmpgt_ps(a, b); }
inline __m128d greater(__m128d a, __m128d b) { return _mm_cmpgt_pd(a, b); }
inline __m128 equal(__m128 a, __m128 b) { return _mm_cmpeq_ps(a, b); }
inline __m128d equal(__m128d a, __m128d b) { return _mm_cmpeq_pd(a, b); }
inline __m128 not_nan(__m128 a) { return _mm_cmpord_ps(a, a); }
inline __m128d not_nan(__m128d a) { return _mm_cmpord_pd(a, a); }
inline __m128 select(__m128 m, __m128 a, __m128 b) { return _mm_blendv_ps(b, a, m); }
inline __m128d select(__m128d m, __m128d a, __m128d b) { return _mm_blendv_pd(b, a, m); }
inline bool any(__m128 m) { return _mm_movemask_ps(m) != 0; }
inline bool any(__m128d m) { return _mm_movemask_pd(m) != 0; }
inline int count(__m128 m) { return __builtin_popcount(static_cast<unsigned>(_mm_movemask_ps(m))); }

inline __m128 nonzero(const uint8_t* p, float) {
  int32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  const __m128i wide = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(bytes));
  return _mm_castsi128_ps(_mm_cmpgt_epi32(wide, _mm_setzero_si128()));
}
inline __m128d nonzero(const uint8_t* p, double) {
  return _mm_castsi128_pd(_mm_set_epi64x(p[1] ? -1 : 0, p[0] ? -1 : 0));
}

template <class T>
constexpr int kTransposeSide = 16 / sizeof(T);

// to[j][i] = from[i][j]
inline void transpose_square(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  __m128 r[4];
  for (int i = 0; i < 4; ++i) r[i] = load(from + i * from_pitch);
  _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
  for (int i = 0; i < 4; ++i) store(to + i * to_pitch, r[i]);
}
inline void transpose_square(const double* from, int64_t from_pitch, double* to, int64_t to_pitch) {
  const __m128d a = load(from), b = load(from + from_pitch);
  store(to, _mm_unpacklo_pd(a, b));
  store(to + to_pitch, _mm_unpackhi_pd(a, b));
}

inline double sum_lanes(__m128d v) { return v[0] + v[1]; }
inline double sum_lanes(__m128 v) { return sum_lanes(_mm_cvtps_pd(v) + _mm_cvtps_pd(_mm_movehl_ps(v, v))); }
inline __m128 sum_each(const __m128 (&v)[4]) {
  const __m128 a = _mm_unpacklo_ps(v[0], v[1]) + _mm_unpackhi_ps(v[0], v[1]);
  const __m128 b = _mm_unpacklo_ps(v[2], v[3]) + _mm_unpackhi_ps(v[2], v[3]);
  return _mm_movelh_ps(a, b) + _mm_movehl_ps(b, a);
}
inline __m128d sum_each(const __m128d (&v)[2]) {
  return _mm_unpacklo_pd(v[0], v[1]) + _mm_unpackhi_pd(v[0], v[1]);
}
inline float max_lane(__m128 v) {
  const __m128 half = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_max_ss(half, _mm_movehdup_ps(half))[0];
}
inline double max_lane(__m128d v) { return v[0] > v[1] ? v[0] : v[1]; }
inline int count(__m128d m) { return __builtin_popcount(static_cast<unsigned>(_mm_movemask_pd(m))); }

}  // namespace
}  // namespace npkernels::NPK_ISA
