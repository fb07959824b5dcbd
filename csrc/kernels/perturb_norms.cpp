// Steps and projections that are measured by the norm 1 or 2 of a sample, and the momentum of gradients.
//   z = x + step d               d the direction of norm 1 that gains most
//   y = clamp(P(z), low, high)   P the projection onto the ball around c; with norm 1 onto the ball in the
//   box
// A sample is read once for each number that is needed of it, and then written; it is in cache meanwhile.
#include "perturb_norms.h"

#include "kernels.h"

namespace npkernels::NPK_ISA {
namespace {

constexpr int kMostSteps = 400;  // of a search that ends by itself

// The sum of min(max(a - t, 0), room), a = |z - c|, and how many entries it rises with.
struct Level {
  double sum = 0;
  int64_t rising = 0;
};

template <class S>
struct Norms {
  using T = typename ComputeOf<S>::type;

  static void run(const PerturbCall& call) {
    each_sample<S>(call, [&](Reader<S>& reader, int64_t sample) { one(call, reader, sample); });
  }

  static void one(const PerturbCall& call, Reader<S>& reader, int64_t sample) {
    Direction<T> d;
    if (call.stepped) {
      if (call.nans)
        each_chunk(call, reader, sample, [&](const Chunk<S>& c) { add_nans(call, count_nans(c)); });
      d = steepest(call, reader, sample, amount(call.step, sample));
    }
    // An entry that does not take part stays, and has no distance: its gradient reads as 0.
    if (call.stepped)
      onto(call, reader, sample,
           [d](const Chunk<S>& c, int i) { return c.x_at(i) + d.of(known_gradient(c, i)); });
    else
      onto(call, reader, sample, [](const Chunk<S>& c, int i) { return c.x_at(i); });
  }

  // moved(chunk, i) is z.
  template <class Moved>
  static void onto(const PerturbCall& call, Reader<S>& reader, int64_t sample, Moved moved) {
    if (!call.centered)
      emit_chunks(call, reader, sample, [&](const Chunk<S>& c) {
        for (int i = 0; i < c.n; i += kLanes<T>)
          c.put(i, clamp<T>(moved(c, i), c.low.at(i, c.n), c.high.at(i, c.n)));
      });
    else if (call.norm == 2)
      onto_l2(call, reader, sample, moved);
    else if (call.bounded)
      onto_l1<true>(call, reader, sample, moved);
    else
      onto_l1<false>(call, reader, sample, moved);
  }

  static double amount(const RowAmount& a, int64_t sample) {
    return a.per_sample ? a.per_sample[sample] : a.value;
  }

  // y = c + (z - c) min(1, radius / |z - c|)
  template <class Moved>
  static void onto_l2(const PerturbCall& call, Reader<S>& reader, int64_t sample, Moved moved) {
    const double radius = amount(call.radius, sample);
    const auto distance = [&](const Chunk<S>& c, int i) { return c.only(i, moved(c, i) - c.center_at(i)); };
    const Length<T> length = length_of(call, reader, sample, distance);
    const bool inside = length.scaled <= radius * double(length.scale);
    const bool known = length.scaled < double(INFINITY);
    // A factor that is too small for T becomes two: a power of two that brings the distance near 1, and the
    // rest.
    const bool tiny = known && radius * double(length.scale) < SafeSquares<T>::least * length.scaled;
    const T first = tiny ? scale_to_one<T>(length.top) : T(1);
    const double rest = tiny ? radius / (length.scaled * (double(first) / double(length.scale)))
                             : radius * double(length.scale) / length.scaled;
    const Vec<T> scale = splat(first), factor = splat(static_cast<T>(known ? rest : double(NAN)));
    emit_chunks(call, reader, sample, [&](const Chunk<S>& c) {
      for (int i = 0; i < c.n; i += kLanes<T>) {
        const Vec<T> z = moved(c, i), center = c.center_at(i);
        const Vec<T> y = inside ? z : center + ((z - center) * scale) * factor;
        c.put(i, clamp<T>(y, c.low.at(i, c.n), c.high.at(i, c.n)));
      }
    });
  }

  // y = c + sign(z - c) min(max(a - t, 0), room) with the t at which the sum of these is the radius.
  // a and room are multiplied by a power of two where their sums would overflow.
  template <bool kBounded, class Moved>
  static void onto_l1(const PerturbCall& call, Reader<S>& reader, int64_t sample, Moved moved) {
    const T infinity = static_cast<T>(INFINITY);
    const Vec<T> zero = splat(T(0));
    const auto distance = [&](const Chunk<S>& c, int i) { return c.only(i, moved(c, i) - c.center_at(i)); };
    const double top = largest(call, reader, sample, distance);
    const bool huge = top > SafeSquares<T>::most * SafeSquares<T>::most;
    const T scale = huge ? T(0x1p-30) : T(1), back = huge ? T(0x1p30) : T(1);
    const double radius = amount(call.radius, sample) * double(scale);

    // max(a - t, 0), with t in two parts: the first difference is exact where it is small. NaN stays.
    const auto shrunk = [&](const Chunk<S>& c, int i, double t) {
      const T most = static_cast<T>(t);
      const T rest = most < infinity ? static_cast<T>(t - double(most)) : T(0);
      return max_of(zero, (absolute<T>(distance(c, i)) * splat(scale) - splat(most)) - splat(rest));
    };
    const auto room = [&](const Chunk<S>& c, int i) {
      if (!kBounded) return splat(infinity);
      const Vec<T> center = c.center_at(i);
      const Vec<T> up = c.high.at(i, c.n) - center, down = center - c.low.at(i, c.n);
      return max_of(zero,
                    select(greater(distance(c, i), zero), up, down) * splat(scale));  // 0 beyond the end
    };
    const auto level = [&](double t) {
      Level result;
      Sum sum;
      each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
        sum.add(sum_of<T>(c.n, [&](int i, Vec<T> part) {
          const Vec<T> r = shrunk(c, i, t);
          if constexpr (!kBounded) {
            result.rising += count(greater(r, zero));
            return part + r;
          }
          const Vec<T> most = room(c, i);
          result.rising += count(greater(select(greater(most, r), r, zero), zero));
          return part + min_of(most, r);
        }));
      });
      result.sum = sum.value();
      return result;
    };

    const Level all = level(0);
    const bool inside = all.sum <= radius;
    double t = 0;
    if (!inside) t = all.sum < double(INFINITY) ? root(call, level, all, radius, top * double(scale)) : NAN;
    emit_chunks(call, reader, sample, [&](const Chunk<S>& c) {
      for (int i = 0; i < c.n; i += kLanes<T>) {
        const Vec<T> z = moved(c, i), center = c.center_at(i);
        Vec<T> y = z;
        if (!inside) {
          const Vec<T> r = min_of(room(c, i), shrunk(c, i, t)) * splat(back);
          y = center + select(greater(z, center), r, zero - r);
        }
        c.put(i, clamp<T>(y, c.low.at(i, c.n), c.high.at(i, c.n)));
      }
    });
  }

  // The t with level(t) = radius < level(0), by Newton's method. Without a box the level is convex in t: from
  // the left the steps go no further than rounding makes them, and slope times residual falls by 4 each time,
  // which makes less than 50. In a box a step that leaves the bracket, and every fourth, halves the bracket
  // instead. Where no number is left between the ends, the upper one stays in the ball.
  template <class LevelAt>
  static double root(const PerturbCall& call, LevelAt level, Level at, double radius, double top) {
    if (radius <= 0) return double(INFINITY);
    const double tolerance = radius * (sizeof(T) == sizeof(double) ? 0x1p-51 : 0x1p-22);
    double low = 0, high = top, t = 0;
    for (int step = 0; step < kMostSteps; ++step) {
      const double excess = at.sum - radius;
      double next = at.rising ? t + excess / static_cast<double>(at.rising) : high;
      if (step == 0 && !call.bounded) next = larger(next, top - radius);  // one entry alone would be left
      const bool leaves = !(next > low && next < high);
      if (at.rising && (next == t || ::fabs(excess) <= tolerance)) return next;
      if (leaves && !call.bounded) return high;
      if (call.bounded && (leaves || step % 4 == 3)) {
        next = low + (high - low) / 2;
        if (!(next > low && next < high)) return high;
      }
      at = level(t = next);
      (at.sum > radius ? low : high) = t;
    }
    return t;
  }
};

// v = decay v + g / |g|_1
template <class S>
struct Momentum {
  using T = typename ComputeOf<S>::type;

  static void run(const PerturbCall& call) {
    each_sample<S>(call, [&](Reader<S>& reader, int64_t sample) {
      const Direction<T> d = normalised(call, reader, sample);
      const Vec<T> decay = splat(static_cast<T>(call.decay));
      emit_chunks(call, reader, sample, [&](const Chunk<S>& c) {
        for (int i = 0; i < c.n; i += kLanes<T>) c.put(i, fma(decay, c.x_at(i), d.of(known_gradient(c, i))));
      });
    });
  }
};

}  // namespace

void step_norms(const PerturbCall& call) { run_samples<Norms>(call); }
void momentum(const PerturbCall& call) { run_samples<Momentum>(call); }

}  // namespace npkernels::NPK_ISA
