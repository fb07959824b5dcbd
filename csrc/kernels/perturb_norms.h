// Norms of samples that neither overflow nor underflow, and the direction of a step that is measured by them.
#pragma once

#include <math.h>

#include "perturb_chunks.h"

namespace npkernels::NPK_ISA {
namespace {

// Squares of numbers between these, and sums of many of them, are ordinary numbers.
template <class T>
struct SafeSquares;
template <>
struct SafeSquares<float> {
  static constexpr double least = 0x1p-40, most = 0x1p50;
  static constexpr int exponent = 126;
};
template <>
struct SafeSquares<double> {
  static constexpr double least = 0x1p-400, most = 0x1p480;
  static constexpr int exponent = 1022;
};

// The power of two that brings `top` near 1; products with it are exact but for what underflows.
template <class T>
inline T scale_to_one(double top) {
  int exponent = 0;
  ::frexp(top, &exponent);
  const int most = SafeSquares<T>::exponent;
  return static_cast<T>(::ldexp(1.0, larger(-most, smaller(most, -exponent))));
}

// The largest |value(chunk, i)| of a sample; NaN does not count.
template <class S, class Value>
inline double largest(const PerturbCall& call, Reader<S>& reader, int64_t sample, Value value) {
  using T = typename ComputeOf<S>::type;
  Vec<T> top = splat(T(0));
  each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
    for (int i = 0; i < c.n; i += kLanes<T>) top = max_of(absolute<T>(value(c, i)), top);
  });
  return max_lane(top);
}

// The Euclidean norm of scale * value(chunk, i) over a sample, and the scale that was chosen.
template <class T>
struct Length {
  double top = 0, scaled = 0;
  T scale = 1;
};

template <class S, class Value>
inline Length<typename ComputeOf<S>::type> length_of(const PerturbCall& call, Reader<S>& reader,
                                                     int64_t sample, Value value) {
  using T = typename ComputeOf<S>::type;
  Length<T> length;
  Vec<T> top = splat(T(0));
  Sum squares;
  each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
    squares.add(sum_of<T>(c.n, [&](int i, Vec<T> sum) {
      const Vec<T> v = value(c, i);
      top = max_of(absolute<T>(v), top);
      return fma(v, v, sum);
    }));
  });
  length.top = max_lane(top);
  const bool safe = length.top >= SafeSquares<T>::least && length.top <= SafeSquares<T>::most;
  if (!safe && length.top > 0 && length.top < double(INFINITY)) {
    length.scale = scale_to_one<T>(length.top);
    const Vec<T> scale = splat(length.scale);
    squares = Sum();
    each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
      squares.add(sum_of<T>(c.n, [&](int i, Vec<T> sum) {
        const Vec<T> v = value(c, i) * scale;
        return fma(v, v, sum);
      }));
    });
  }
  length.scaled = ::sqrt(squares.value());
  return length;
}

// What a sample's gradient becomes: a multiple of itself, or a share for each of its largest entries.
template <class T>
struct Direction {
  T scale = 0, factor = 0;  // (g scale) factor
  T top = -1, share = 0;    // where |g| = top, and 0 elsewhere; the other way if top < 0

  Vec<T> of(Vec<T> g) const {
    const Vec<T> zero = splat(T(0));
    if (top < 0) return (g * splat(scale)) * splat(factor);
    const Vec<T> part = select(greater(g, zero), splat(share), splat(-share));
    return select(equal(absolute<T>(g), splat(top)), part, zero);
  }
};

// The gradient of a chunk; NaN counts as nothing.
template <class S>
inline Vec<typename ComputeOf<S>::type> known_gradient(const Chunk<S>& c, int i) {
  using T = typename ComputeOf<S>::type;
  const Vec<T> g = c.grad_at(i);
  return select(not_nan(g), g, splat(T(0)));
}

// All of the length on the largest entries, in equal shares of the norm given.
template <class S>
inline Direction<typename ComputeOf<S>::type> largest_only(const PerturbCall& call, Reader<S>& reader,
                                                           int64_t sample, double top, double length,
                                                           bool euclidean) {
  using T = typename ComputeOf<S>::type;
  int64_t ties = 0;
  each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
    for (int i = 0; i < c.n; i += kLanes<T>)
      ties += count(equal(absolute<T>(known_gradient(c, i)), splat(static_cast<T>(top))));
  });
  const double n = static_cast<double>(ties);
  return {0, 0, static_cast<T>(top), static_cast<T>(length / (euclidean ? ::sqrt(n) : n))};
}

// The step of that length which gains most, by the norm 1 or 2.
template <class S>
inline Direction<typename ComputeOf<S>::type> steepest(const PerturbCall& call, Reader<S>& reader,
                                                       int64_t sample, double length) {
  using T = typename ComputeOf<S>::type;
  if (call.targeted) length = -length;
  if (call.norm == 1) {
    const double top = largest(call, reader, sample, known_gradient<S>);
    if (top == 0) return {};
    return largest_only(call, reader, sample, top, length, false);
  }
  const Length<T> size = length_of(call, reader, sample, known_gradient<S>);
  if (size.top == 0) return {};
  if (size.top == double(INFINITY)) return largest_only(call, reader, sample, size.top, length, true);
  // A factor that is too small or too large for T: of a gradient near 1 it is about as large as the length.
  const double factor = ::fabs(length) / size.scaled;
  const bool fits = factor >= SafeSquares<T>::least && factor <= SafeSquares<T>::most;
  const T scale = fits ? size.scale : scale_to_one<T>(size.top);
  return {scale, static_cast<T>(length / (size.scaled * (double(scale) / double(size.scale)))), -1, 0};
}

// The gradient over the sum of its absolute values.
template <class S>
inline Direction<typename ComputeOf<S>::type> normalised(const PerturbCall& call, Reader<S>& reader,
                                                         int64_t sample) {
  using T = typename ComputeOf<S>::type;
  const double top = largest(call, reader, sample, known_gradient<S>);
  if (top == 0) return {};
  if (top == double(INFINITY)) return largest_only(call, reader, sample, top, 1.0, false);
  const T scale = scale_to_one<T>(top);
  Sum sum;
  each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
    sum.add(sum_of<T>(
        c.n, [&](int i, Vec<T> part) { return part + absolute<T>(known_gradient(c, i) * splat(scale)); }));
  });
  return {scale, static_cast<T>(1 / sum.value()), -1, 0};
}

}  // namespace
}  // namespace npkernels::NPK_ISA
