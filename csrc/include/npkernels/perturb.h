// Steps along gradients, projections onto balls, points of balls: what attacks on a model are made of.
//
// Letters: x input, g gradient, c centre of the ball, B samples. The first axis of every array counts
// samples, and norms are taken over all that is behind it. Arrays of one call have one shape; bounds and the
// amounts of single entries have stride 0 where they repeat. Preconditions (shapes agree, dtypes equal,
// numbers in range) are the caller's: the Python layer and the C functions of npkernels.h check them. `y` may
// be the very same memory as an input of the same dtype.
#pragma once

#include "array.h"

namespace npkernels {

enum class Norm : int32_t { inf = 0, one = 1, two = 2 };

// How long, or how far: for every entry (of the compute dtype; norm inf only), or for each sample, or for
// all.
struct Amount {
  double value = 0;
  const double* per_sample = nullptr;
  const Array* entries = nullptr;
};

// Arrays are of the compute dtype and stand before the numbers.
struct Bounds {
  double low = -__builtin_inf(), high = __builtin_inf();
  const Array* lows = nullptr;
  const Array* highs = nullptr;
  bool limited() const { return lows || highs || low > -__builtin_inf() || high < __builtin_inf(); }
};

struct StepOptions {
  Norm norm = Norm::inf;
  Bounds bounds;
  bool targeted = false;        // against the gradient
  const Array* mask = nullptr;  // boolean: what is false keeps its value and counts nowhere
};

// y = clamp(x +- step d, low, high), d of norm 1 with the largest <g, d>: sign(g), g / |g|, or all of it on
// the largest |g|. Where g is NaN nothing moves; `nans` (may be null) is how many these are.
NPK_API void steepest_step(const Array& x, const Array& g, const Amount& step, const StepOptions&,
                           const Array& y, int64_t* nans);
// y = the nearest point of the ball, then clamped; with norm 1 the nearest of the ball in the box.
NPK_API void project(const Array& x, const Array& c, const Amount& radius, const StepOptions&,
                     const Array& y);
// The one after the other, without bounds between them.
NPK_API void pgd_step(const Array& x, const Array& c, const Array& g, const Amount& step,
                      const Amount& radius, const StepOptions&, const Array& y, int64_t* nans);
// y = decay v + g / |g|_1
NPK_API void momentum(const Array& v, const Array& g, double decay, const Array* mask, const Array& y);
// y = clamp(c + radius d, low, high), d uniform in the unit ball; the same for the same key, whatever else.
NPK_API void random_in_ball(const Array& c, const Amount& radius, Norm norm, const Bounds&, uint64_t key,
                            const Array& y);
// Whether an entry of c is outside the bounds, or NaN.
NPK_API bool outside(const Array& c, const Bounds&);

}  // namespace npkernels
