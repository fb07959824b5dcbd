// x86-64-v3: 256-bit registers, FMA, F16C. A mask is a register of all-ones or all-zero lanes.
#pragma once

#include "x86_256.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = __m256;
  static constexpr int lanes = 8;
};
template <>
struct VecOf<double> {
  using type = __m256d;
  static constexpr int lanes = 4;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = Vec<T>;
template <class T>
constexpr int kLanes = VecOf<T>::lanes;

constexpr int kRegisters = 16;
constexpr bool kHasFma = true;

inline __m256 splat(float x) { return _mm256_set1_ps(x); }
inline __m256d splat(double x) { return _mm256_set1_pd(x); }
inline __m256 load(const float* p) { return _mm256_loadu_ps(p); }
inline __m256d load(const double* p) { return _mm256_loadu_pd(p); }
inline void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
inline void store(double* p, __m256d v) { _mm256_storeu_pd(p, v); }
inline void stream(float* p, __m256 v) { _mm256_stream_ps(p, v); }
inline void stream(double* p, __m256d v) { _mm256_stream_pd(p, v); }
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline __m256i first(int n, float) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first(int n, double) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline __m256 load_part(const float* p, int n, float fill) {
  const __m256i lanes = first(n, 0.0f);
  return _mm256_blendv_ps(splat(fill), _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
}
inline __m256d load_part(const double* p, int n, double fill) {
  const __m256i lanes = first(n, 0.0);
  return _mm256_blendv_pd(splat(fill), _mm256_maskload_pd(p, lanes), _mm256_castsi256_pd(lanes));
}
inline void store_part(float* p, __m256 v, int n) { _mm256_maskstore_ps(p, first(n, 0.0f), v); }
inline void store_part(double* p, __m256d v, int n) { _mm256_maskstore_pd(p, first(n, 0.0), v); }

template <class V>
inline V held(V v) {
  asm("" : "+x"(v));
  return v;
}
inline __m256 fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
inline __m256d fma(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
inline __m256 max_of(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256d max_of(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
inline __m256 min_of(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
inline __m256d min_of(__m256d a, __m256d b) { return _mm256_min_pd(a, b); }
inline __m256 round_even(__m256 x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256d round_even(__m256d x) {
  return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256 square_root(__m256 x) { return _mm256_sqrt_ps(x); }
inline __m256d square_root(__m256d x) { return _mm256_sqrt_pd(x); }

// 2^n by the exponent bits, in two factors so that each is a normal number.
inline __m256 pow2(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline __m256d pow2(__m128i n) {
  const __m256i exponent = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
  return _mm256_castsi256_pd(_mm256_slli_epi64(exponent, 52));
}
inline __m256 mul_pow2(__m256 x, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return x * pow2(half) * pow2(_mm256_sub_epi32(whole, half));
}
inline __m256d mul_pow2(__m256d x, __m256d n) {
  const __m128i whole = _mm256_cvtpd_epi32(n);
  const __m128i half = _mm_srai_epi32(whole, 1);
  return x * pow2(half) * pow2(_mm_sub_epi32(whole, half));
}

// By adding to the exponent bits.
constexpr bool kOnePower = false;
template <class T>
constexpr T kZeroPower = sizeof(T) == sizeof(float) ? -127 : -1023;
inline __m256 mul_pow2_normal(__m256 x, __m256 n) {
  const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shift));
}
inline __m256d mul_pow2_normal(__m256d x, __m256d n) {
  const __m256i shift = _mm256_slli_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n)), 52);
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x), shift));
}

inline __m256 greater(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
inline __m256d greater(__m256d a, __m256d b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
inline __m256 equal(__m256 a, __m256 b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
inline __m256d equal(__m256d a, __m256d b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
inline __m256 not_nan(__m256 a) { return _mm256_cmp_ps(a, a, _CMP_ORD_Q); }
inline __m256d not_nan(__m256d a) { return _mm256_cmp_pd(a, a, _CMP_ORD_Q); }
inline __m256 select(__m256 m, __m256 a, __m256 b) { return _mm256_blendv_ps(b, a, m); }
inline __m256d select(__m256d m, __m256d a, __m256d b) { return _mm256_blendv_pd(b, a, m); }
inline bool any(__m256 m) { return _mm256_movemask_ps(m) != 0; }
inline bool any(__m256d m) { return _mm256_movemask_pd(m) != 0; }
inline int count(__m256 m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(m))); }
inline int count(__m256d m) { return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_pd(m))); }

inline __m256 nonzero(const uint8_t* p, float) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_setzero_si256()));
}
inline __m256d nonzero(const uint8_t* p, double) {
  int32_t bytes;
  memcpy(&bytes, p, sizeof bytes);
  const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes));
  return _mm256_castsi256_pd(_mm256_cmpgt_epi64(wide, _mm256_setzero_si256()));
}

inline double sum_lanes(__m256d v) {
  const __m128d half = _mm256_castpd256_pd128(v) + _mm256_extractf128_pd(v, 1);
  return half[0] + half[1];
}
inline double sum_lanes(__m256 v) {
  return sum_lanes(_mm256_cvtps_pd(_mm256_castps256_ps128(v)) + _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
inline float max_lane(__m256 v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_max_ss(half, _mm_movehdup_ps(half))[0];
}
inline double max_lane(__m256d v) {
  const __m128d half = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return half[0] > half[1] ? half[0] : half[1];
}

inline __m256 load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(Half* p, __m256 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline __m256 load(const BFloat* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// Round to nearest even by adding 0x7fff + the lowest kept bit; a NaN keeps its upper bits and is made quiet.
inline void store(BFloat* p, __m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 kept = select(not_nan(v), _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet));
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

}  // namespace
}  // namespace npkernels::NPK_ISA
