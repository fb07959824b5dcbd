// x86-64-v4: 512-bit registers with mask registers.
#pragma once

#include "x86_256.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using type = __m512;
  using mask = __mmask16;
  static constexpr int lanes = 16;
};
template <>
struct VecOf<double> {
  using type = __m512d;
  using mask = __mmask8;
  static constexpr int lanes = 8;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;
template <class T>
constexpr int kLanes = VecOf<T>::lanes;

constexpr int kRegisters = 32;
constexpr bool kHasFma = true;

inline __m512 splat(float x) { return _mm512_set1_ps(x); }
inline __m512d splat(double x) { return _mm512_set1_pd(x); }
inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512d load(const double* p) { return _mm512_loadu_pd(p); }
inline void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
inline void store(double* p, __m512d v) { _mm512_storeu_pd(p, v); }
inline void stream(float* p, __m512 v) { _mm512_stream_ps(p, v); }
inline void stream(double* p, __m512d v) { _mm512_stream_pd(p, v); }
inline void stream_fence() { _mm_sfence(); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline __mmask16 first16(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline __mmask8 first8(int n) { return static_cast<__mmask8>((1u << n) - 1u); }
inline __m512 load_part(const float* p, int n, float fill) {
  return _mm512_mask_loadu_ps(splat(fill), first16(n), p);
}
inline __m512d load_part(const double* p, int n, double fill) {
  return _mm512_mask_loadu_pd(splat(fill), first8(n), p);
}
inline void store_part(float* p, __m512 v, int n) { _mm512_mask_storeu_ps(p, first16(n), v); }
inline void store_part(double* p, __m512d v, int n) { _mm512_mask_storeu_pd(p, first8(n), v); }

template <class V>
inline V held(V v) {
#if defined(NPK_EMULATE_AVX512)
  asm("" : "+m"(v));
#else
  asm("" : "+v"(v));
#endif
  return v;
}
inline __m512 fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512d fma(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
inline __m512 max_of(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
inline __m512d max_of(__m512d a, __m512d b) { return _mm512_max_pd(a, b); }
inline __m512 min_of(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
inline __m512d min_of(__m512d a, __m512d b) { return _mm512_min_pd(a, b); }
inline __m512 round_even(__m512 x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m512d round_even(__m512d x) {
  return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m512 square_root(__m512 x) { return _mm512_sqrt_ps(x); }
inline __m512d square_root(__m512d x) { return _mm512_sqrt_pd(x); }
inline __m512 mul_pow2(__m512 x, __m512 n) { return _mm512_scalef_ps(x, n); }
inline __m512d mul_pow2(__m512d x, __m512d n) { return _mm512_scalef_pd(x, n); }

constexpr bool kOnePower = true;
template <class T>
constexpr T kZeroPower = sizeof(T) == sizeof(float) ? -200 : -1200;
inline __m512 mul_pow2_normal(__m512 x, __m512 n) { return _mm512_scalef_ps(x, n); }
inline __m512d mul_pow2_normal(__m512d x, __m512d n) { return _mm512_scalef_pd(x, n); }

inline __mmask16 greater(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline __mmask8 greater(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
inline __mmask16 equal(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline __mmask8 equal(__m512d a, __m512d b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
inline __mmask16 not_nan(__m512 a) { return _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q); }
inline __mmask8 not_nan(__m512d a) { return _mm512_cmp_pd_mask(a, a, _CMP_ORD_Q); }
inline __m512 select(__mmask16 m, __m512 a, __m512 b) { return _mm512_mask_blend_ps(m, b, a); }
inline __m512d select(__mmask8 m, __m512d a, __m512d b) { return _mm512_mask_blend_pd(m, b, a); }
inline bool any(__mmask16 m) { return m != 0; }
inline bool any(__mmask8 m) { return m != 0; }
inline int count(__mmask16 m) { return __builtin_popcount(m); }
inline int count(__mmask8 m) { return __builtin_popcount(m); }

inline __mmask16 nonzero(const uint8_t* p, float) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm_test_epi8_mask(bytes, bytes);
}
inline __mmask8 nonzero(const uint8_t* p, double) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return static_cast<__mmask8>(_mm_test_epi8_mask(bytes, bytes));
}

inline double sum_lanes(__m512d v) { return _mm512_reduce_add_pd(v); }
inline double sum_lanes(__m512 v) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  return sum_lanes(low + _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}
inline __m512 sum_each(const __m512 (&v)[16]) {
  __m256 half[2][8];
  for (int i = 0; i < 16; ++i)
    half[i / 8][i % 8] = _mm512_castps512_ps256(v[i]) + _mm512_extractf32x8_ps(v[i], 1);
  return _mm512_insertf32x8(_mm512_castps256_ps512(sum_each(half[0])), sum_each(half[1]), 1);
}
inline __m512d sum_each(const __m512d (&v)[8]) {
  __m256d half[2][4];
  for (int i = 0; i < 8; ++i)
    half[i / 4][i % 4] = _mm512_castpd512_pd256(v[i]) + _mm512_extractf64x4_pd(v[i], 1);
  return _mm512_insertf64x4(_mm512_castpd256_pd512(sum_each(half[0])), sum_each(half[1]), 1);
}
inline float max_lane(__m512 v) { return _mm512_reduce_max_ps(v); }
inline double max_lane(__m512d v) { return _mm512_reduce_max_pd(v); }

inline __m512 load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(Half* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline __m512 load(const BFloat* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// Round to nearest even by adding 0x7fff + the lowest kept bit; a NaN keeps its upper bits and is made quiet.
inline void store(BFloat* p, __m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i kept = _mm512_mask_blend_epi32(not_nan(v), quiet, rounded);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

#if defined(__AVX512BF16__) || defined(NPK_EMULATE_AVX512BF16)
#define NPK_HAS_PAIRS
constexpr bool kHasPairs = true;
struct Pairs {
  __m512i bits;
};
inline Pairs splat(Pair x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return {_mm512_set1_epi32(bits)};
}
inline Pairs load(const Pair* p) { return {_mm512_loadu_si512(p)}; }
inline __m512 fma(Pairs a, Pairs b, __m512 c) {
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a.bits), reinterpret_cast<__m512bh>(b.bits));
}
#endif

}  // namespace
}  // namespace npkernels::NPK_ISA
