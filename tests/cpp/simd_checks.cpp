// Checks of csrc/simd, compiled for one instruction set. Returns what failed, as text; test_simd.cpp runs
// them.
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "simd/math.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int W = kLanes<float>, WD = kLanes<double>;

// The error of y in units in the last place of its exact value (at least the smallest subnormal).
template <class T>
double ulp_error(T y, long double exact, int digits, int lowest) {
  int exponent;
  frexpl(exact, &exponent);
  return static_cast<double>(fabsl(y - exact) /
                             ldexpl(1, exponent - digits > lowest ? exponent - digits : lowest));
}

const char* check_exp() {
  double worst = 0;
  for (uint32_t i = 0; i < 0x42d00000u; i += 257 * W) {
    alignas(64) float x[W], y[W];
    for (int k = 0; k < W; ++k) {
      const uint32_t bits = i + 257u * k;
      memcpy(&x[k], &bits, 4);
      if (k % 2) x[k] = -x[k];
    }
    store(y, exp_any<float>(load(x)));
    for (int k = 0; k < W; ++k) {
      const long double exact = expl(x[k]);
      if (exact > 3.402823e38L) {
        if (!isinf(y[k])) return "exp: above the range of float is not inf";
      } else {
        const double error = ulp_error(y[k], exact, 24, -149);
        worst = error > worst ? error : worst;
      }
    }
  }
  if (worst > 1.5) return "exp: more than 1.5 ULP in float";
  worst = 0;
  for (int i = 0; i < 200000; ++i) {
    alignas(64) double x[WD], y[WD];
    for (int k = 0; k < WD; ++k) x[k] = -745.0 + (i * WD + k) * (1454.0 / (200000.0 * WD));
    store(y, exp_any<double>(load(x)));
    for (int k = 0; k < WD; ++k) {
      const double error = x[k] < 709.7 ? ulp_error(y[k], expl(x[k]), 53, -1074) : 0;
      worst = error > worst ? error : worst;
    }
  }
  if (worst > 1.5) return "exp: more than 1.5 ULP in double";
  const float special[] = {-INFINITY, -1e30f, INFINITY, 1e30f};
  const float expected[] = {0, 0, INFINITY, INFINITY};
  for (int i = 0; i < 4; ++i)
    if (exp_any<float>(splat(special[i]))[0] != expected[i]) return "exp: wrong at an infinity";
  const float of_nan = exp_any<float>(splat(NAN))[0], negative = exp_negative<float>(splat(NAN))[0];
  return isnan(of_nan) && isnan(negative) ? nullptr : "exp: NaN is lost";
}

// Weights: 2 ULP where the result is a normal number, next to nothing below, exactly 0 for -inf.
template <class T>
const char* check_weights() {
  constexpr int N = kLanes<T>, digits = sizeof(T) == sizeof(float) ? 24 : 53,
                lowest = sizeof(T) == sizeof(float) ? -126 : -1022;
  double worst = 0;
  for (int i = 0; i < 40000; ++i) {
    Vec<T> x[2];
    for (Vec<T>& part : x)
      for (int k = 0; k < N; ++k) part[k] = T(1.01 * lowest * ((i * N + k) / (40000.0 * N)));
    x[1] = x[1] + splat(T(1));
    const Vec<T> given[] = {x[0], x[1]};
    exp2_weight<T>(x);
    for (int u = 0; u < 2; ++u)
      for (int k = 0; k < N; ++k) {
        if (given[u][k] < lowest) {
          if (!(x[u][k] >= 0 && x[u][k] <= ldexp(1.0, lowest))) return "exp2_weight: large below the range";
          continue;
        }
        const double error = ulp_error(x[u][k], exp2l(given[u][k]), digits, lowest - digits);
        worst = error > worst ? error : worst;
      }
  }
  if (worst > 2) return "exp2_weight: more than 2 ULP";
  Vec<T> x[] = {splat(T(-INFINITY)), splat(T(NAN)), splat(T(0)), splat(T(-3e4))};
  exp_weight<T>(x);
  for (int k = 0; k < N; ++k)
    if (x[0][k] != 0 || !isnan(x[1][k]) || x[2][k] != 1 || x[3][k] != 0) return "exp_weight: special values";
  return nullptr;
}

float half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude = exponent ? ldexpf(1024.0f + fraction, exponent - 25) : ldexpf(fraction, -24);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -magnitude : magnitude;
}

float bfloat_value(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// All 65536 patterns are read exactly, and halfway between neighbours the even one is stored.
template <class Narrow>
const char* check_narrow(float (*value)(uint16_t)) {
  for (uint32_t first = 0; first < 0x10000; first += W) {
    Narrow in[W], out[W];
    float wide[W];
    for (int k = 0; k < W; ++k) in[k].bits = static_cast<uint16_t>(first + k);
    store(wide, load(in));
    store(out, load(wide));
    for (int k = 0; k < W; ++k) {
      const float exact = value(in[k].bits);
      if (isnan(exact) ? !isnan(wide[k]) : wide[k] != exact || signbit(wide[k]) != signbit(exact))
        return "16 bits: read wrongly";
      if (isnan(exact) ? !isnan(value(out[k].bits)) : out[k].bits != in[k].bits)
        return "16 bits: do not come back";
    }
  }
  for (uint32_t bits = 1; bits < 0x7c00u; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits - 1), high = static_cast<uint16_t>(bits);
    if (isinf(value(high))) break;
    const float middle = static_cast<float>((static_cast<double>(value(low)) + value(high)) / 2);
    Narrow out[W];
    store(out, splat(middle));
    if (out[0].bits != (low % 2 ? high : low)) return "16 bits: a tie does not go to the even neighbour";
    store(out, splat(nextafterf(middle, INFINITY)));
    if (out[0].bits != high) return "16 bits: just above the middle is not rounded up";
  }
  return nullptr;
}

// The first n lanes at the end of a page that is followed by one nobody may touch.
template <class S, class T>
const char* check_parts() {
  const long page = sysconf(_SC_PAGESIZE);
  char* memory =
      static_cast<char*>(mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED || mprotect(memory + page, page, PROT_NONE)) return "no guarded page";
  const char* wrong = nullptr;
  for (int n = 0; n <= kWidth<S>; ++n) {
    S* end = reinterpret_cast<S*>(memory + page);
    S* p = end - n;
    store_upto(p - kWidth<S>, splat(T(7)), kWidth<S>);
    store_upto(p, splat(T(3)), n);
    const Vec<T> back = load_upto(p, n, T(-5)), before = load_upto(p - kWidth<S>, kWidth<S>, T(0));
    for (int k = 0; k < kWidth<S>; ++k) {
      if (back[k] != (k < n ? T(3) : T(-5))) wrong = "load_upto: wrong lanes";
      if (before[k] != T(7)) wrong = "store_upto: wrote before its place";
    }
  }
  munmap(memory, 2 * page);
  return wrong;
}

template <class T>
const char* check_lanes() {
  constexpr int N = kLanes<T>;
  T up[N], nan[N];
  for (int k = 0; k < N; ++k) up[k] = T(k + 1), nan[k] = k % 2 ? T(NAN) : T(1);
  const Vec<T> v = load(up), with_nan = load(nan), two = splat(T(2));
  if (sum_lanes(v) != N * (N + 1) / 2) return "sum_lanes";
  Vec<T> rows[N];
  for (int k = 0; k < N; ++k) rows[k] = v * splat(T(k + 1)) + splat(T(k % 3));
  const Vec<T> sums = sum_each(rows);
  for (int k = 0; k < N; ++k)
    if (sums[k] != T((k + 1) * (N * (N + 1) / 2) + k % 3 * N)) return "sum_each";
  if (max_lane(v) != T(N) || max_lane(splat(T(0)) - v) != T(-1)) return "max_lane";
  if (count(greater(v, two)) != N - 2 || count(equal(v, two)) != 1 || count(not_nan(with_nan)) != N / 2)
    return "count";
  if (any(greater(two, splat(T(2)))) || !any(equal(v, two))) return "any";
  const Vec<T> chosen = select(greater(v, two), v, two);
  for (int k = 0; k < N; ++k)
    if (chosen[k] != (up[k] > 2 ? up[k] : T(2))) return "select";
  if (max_of(with_nan, two)[1] != T(2) || !isnan(max_of(two, with_nan)[1]))
    return "max_of: not its second for NaN";
  if (min_of(with_nan, two)[1] != T(2) || !isnan(min_of(two, with_nan)[1]))
    return "min_of: not its second for NaN";
  const T halves[] = {T(0.5), T(1.5), T(2.5), T(-0.5), T(-2.5)}, even[] = {0, 2, 2, 0, -2};
  for (int i = 0; i < 5; ++i)
    if (round_even(splat(halves[i]))[0] != even[i]) return "round_even";
  if (fma(v, two, v)[N - 1] != T(3 * N)) return "fma";
  if (square_root(v * v)[N - 1] != T(N)) return "square_root";
  uint8_t bytes[N];
  for (int k = 0; k < N; ++k) bytes[k] = static_cast<uint8_t>(k % 3 == 1 ? 0 : k % 3 == 2 ? 255 : 1);
  const Vec<T> flags = select(nonzero(bytes, T()), splat(T(1)), splat(T(0)));
  for (int k = 0; k < N; ++k)
    if (flags[k] != (bytes[k] ? T(1) : T(0))) return "nonzero";
  for (int n = -140; n <= 127; ++n)
    if (mul_pow2(splat(T(1)), splat(T(n)))[0] != static_cast<T>(ldexp(1.0, n))) return "mul_pow2";
  return nullptr;
}

// Products of pairs are exact; each sum is rounded.
const char* check_pairs() {
#ifdef NPK_HAS_PAIRS
  Pair row[W];
  for (int k = 0; k < W; ++k)
    row[k] = {{static_cast<uint16_t>(0x3f80 + k)}, {static_cast<uint16_t>(0xc000 + 3 * k)}};
  const Pair one = {{0x4040}, {0x3f01}};  // 3 and 0.50390625
  const Vec<float> sum = fma(splat(one), load(row), splat(0.1f));
  for (int k = 0; k < W; ++k) {
    const double first = bfloat_value(row[k].first.bits), second = bfloat_value(row[k].second.bits);
    if (fabs(sum[k] - (double(0.1f) + 0.50390625 * second + 3 * first)) > 4e-7) return "fma of pairs";
  }
  const Pair tiny = {{0x0001}, {0x8001}}, huge = {{0x7f00}, {0x7f00}};
  if (fma(splat(tiny), splat(huge), splat(1.0f))[0] != 1.0f) return "fma of pairs: a subnormal is not 0";
#endif
  return nullptr;
}

}  // namespace

extern const char* simd_failure();
const char* simd_failure() {
  const char* const failures[] = {check_exp(),
                                  check_weights<float>(),
                                  check_weights<double>(),
                                  check_narrow<Half>(half_value),
                                  check_narrow<BFloat>(bfloat_value),
                                  check_parts<float, float>(),
                                  check_parts<double, double>(),
                                  check_parts<Half, float>(),
                                  check_parts<BFloat, float>(),
                                  check_lanes<float>(),
                                  check_lanes<double>(),
                                  check_pairs()};
  for (const char* failure : failures)
    if (failure) return failure;
  return nullptr;
}

}  // namespace npkernels::NPK_ISA
