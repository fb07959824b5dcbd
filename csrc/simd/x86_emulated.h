// For tests only: AVX-512 on a machine that has no more than AVX2. SIMDe (github.com/simd-everywhere/simde)
// emulates most of the intrinsics; those that its release 0.7.4 lacks are written here, by halves, and are
// found before the compiler's own of the same names.
#pragma once

#include <stdint.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#undef _mm512_cvtps_ph
#undef _mm512_dpbf16_ps
#undef _mm512_extractf32x8_ps
#undef _mm_test_epi8_mask

namespace npkernels::NPK_ISA {
namespace {

struct Halves {
  __m256 low, high;
};
struct HalvesD {
  __m256d low, high;
};
inline Halves halves(__m512 v) {
  Halves h;
  memcpy(&h, &v, sizeof h);
  return h;
}
inline HalvesD halves(__m512d v) {
  HalvesD h;
  memcpy(&h, &v, sizeof h);
  return h;
}
template <class Whole, class Part>
inline Whole join(Part low, Part high) {
  Whole v;
  memcpy(&v, &low, sizeof low);
  memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
  return v;
}

inline __m256 _mm512_extractf32x8_ps(__m512 v, int half) { return half ? halves(v).high : halves(v).low; }
inline __m512d _mm512_cvtps_pd(__m256 v) {
  return join<__m512d>(_mm256_cvtps_pd(_mm256_castps256_ps128(v)),
                       _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
}
inline __m512 _mm512_cvtph_ps(__m256i v) {
  return join<__m512>(_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                      _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
}
inline __m256i _mm512_cvtps_ph(__m512 v, int) {
  return join<__m256i>(_mm256_cvtps_ph(halves(v).low, _MM_FROUND_TO_NEAREST_INT),
                       _mm256_cvtps_ph(halves(v).high, _MM_FROUND_TO_NEAREST_INT));
}
inline __m512i _mm512_cvtepu16_epi32(__m256i v) {
  return join<__m512i>(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                       _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}
inline __m256i _mm512_cvtepi32_epi16(__m512i v) {
  uint32_t wide[16];
  uint16_t narrow[16];
  memcpy(wide, &v, sizeof v);
  for (int i = 0; i < 16; ++i) narrow[i] = static_cast<uint16_t>(wide[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(narrow));
}

inline __mmask16 _mm_test_epi8_mask(__m128i a, __m128i b) {
  const __m128i zero = _mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128());
  return static_cast<__mmask16>(~_mm_movemask_epi8(zero));
}

inline double _mm512_reduce_add_pd(__m512d v) {
  const __m256d four = halves(v).low + halves(v).high;
  const __m128d two = _mm256_castpd256_pd128(four) + _mm256_extractf128_pd(four, 1);
  return two[0] + two[1];
}
template <class V>
inline auto largest(V v, int lanes) {
  auto top = v[0];
  for (int i = 1; i < lanes; ++i) top = v[i] > top ? v[i] : top;
  return top;
}
inline float _mm512_reduce_max_ps(__m512 v) { return largest(v, 16); }
inline double _mm512_reduce_max_pd(__m512d v) { return largest(v, 8); }

// Lanes that are masked out are neither read nor written.
template <class T, class V>
inline V load_masked(V fill, unsigned mask, const T* p) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (mask >> i & 1u) fill[i] = p[i];
  return fill;
}
template <class T, class V>
inline void store_masked(T* p, unsigned mask, V v) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (mask >> i & 1u) p[i] = v[i];
}
inline __m512 _mm512_mask_loadu_ps(__m512 fill, __mmask16 m, const float* p) {
  return load_masked(fill, m, p);
}
inline __m512d _mm512_mask_loadu_pd(__m512d fill, __mmask8 m, const double* p) {
  return load_masked(fill, m, p);
}
inline void _mm512_mask_storeu_ps(float* p, __mmask16 m, __m512 v) { store_masked(p, m, v); }
inline void _mm512_mask_storeu_pd(double* p, __mmask8 m, __m512d v) { store_masked(p, m, v); }

// As the instruction does it: the second numbers first, what is below the normal range taken and left as 0.
inline float flush(float x) { return __builtin_fabsf(x) < __FLT_MIN__ ? __builtin_copysignf(0.0f, x) : x; }
inline __m512 _mm512_dpbf16_ps(__m512 c, __m512bh a, __m512bh b) {
  uint32_t x[16], y[16];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  const auto number = [](uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return flush(value);
  };
  for (int i = 0; i < 16; ++i) {
    const float second =
        flush(__builtin_fmaf(number(x[i] & 0xffff0000u), number(y[i] & 0xffff0000u), flush(c[i])));
    c[i] = flush(__builtin_fmaf(number(x[i] << 16), number(y[i] << 16), second));
  }
  return c;
}

// The address must be that of a whole register, as for the instruction.
inline void _mm512_stream_ps(float* p, __m512 v) { *static_cast<__m512*>(static_cast<void*>(p)) = v; }
inline void _mm512_stream_pd(double* p, __m512d v) { *static_cast<__m512d*>(static_cast<void*>(p)) = v; }

}  // namespace
}  // namespace npkernels::NPK_ISA
