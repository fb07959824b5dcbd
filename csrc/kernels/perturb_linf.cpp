// A step along the sign of the gradient, and what keeps it near its centre and within its bounds, in one
// pass:
//   y = clamp(clamp(x + step sign(g), c - radius, c + radius), low, high)
// An entry whose gradient is NaN does not move. Every entry stands for itself: rows are cut into pieces.
#include "kernels.h"
#include "perturb_chunks.h"

namespace npkernels::NPK_ISA {
namespace {

template <class S>
struct Linf {
  using T = typename ComputeOf<S>::type;

  // kPlain: no mask, and lengths and bounds that are the same for all entries.
  template <bool kStepped, bool kCentered, bool kPlain>
  static void emit(const Chunk<S>& c, T sign) {
    const Vec<T> zero = splat(T(0)), signs = splat(sign), all_steps = splat(c.step.one),
                 all_radii = splat(c.radius.one), all_lows = splat(c.low.one), all_highs = splat(c.high.one);
    for (int i = 0; i < c.n; i += kLanes<T>) {
      const auto at = [&](const Entries<T>& e, Vec<T> all) { return kPlain ? all : e.at(i, c.n); };
      Vec<T> v = c.x_at(i);
      if constexpr (kStepped) {
        const Vec<T> g = load_upto(c.grad + i, c.n - i, T(0)), step = at(c.step, all_steps) * signs;
        v = v + select(greater(g, zero), step, select(greater(zero, g), zero - step, zero));
      }
      if constexpr (kCentered) {
        const Vec<T> center = c.center_at(i), radius = at(c.radius, all_radii);
        v = select(not_nan(center), clamp<T>(v, center - radius, center + radius), center);
      }
      v = clamp<T>(v, at(c.low, all_lows), at(c.high, all_highs));
      if constexpr (kPlain)
        store_upto(c.y + i, v, c.n - i);
      else
        c.put(i, v);
    }
  }

  template <bool kStepped, bool kCentered>
  static void emit(const Chunk<S>& c, T sign) {
    if (c.mask || c.step.p || c.radius.p || c.low.p || c.high.p)
      emit<kStepped, kCentered, false>(c, sign);
    else
      emit<kStepped, kCentered, true>(c, sign);
  }

  static void emit(const PerturbCall& call, const Chunk<S>& c) {
    const T sign = call.targeted ? T(-1) : T(1);
    if (!call.centered)
      emit<true, false>(c, sign);
    else if (call.stepped)
      emit<true, true>(c, sign);
    else
      emit<false, true>(c, sign);
  }

  static void run(const PerturbCall& call) {
    const int64_t pieces = (call.n + kTaskEntries - 1) / kTaskEntries;
    const int64_t per_task =
        larger<int64_t>(1, kTaskEntries / call.n);  // rows of one piece that share a task
    const int64_t tasks = (call.rows * pieces + per_task - 1) / per_task;
    parallel(tasks, [&](int64_t task) {
      Reader<S> reader(call);
      int64_t nans = 0;
      const int64_t last = smaller(call.rows * pieces, (task + 1) * per_task);
      for (int64_t piece = task * per_task; piece < last; ++piece) {
        reader.go_to(piece / pieces);
        int64_t first = piece % pieces * kTaskEntries;
        const int64_t end = smaller(call.n, first + kTaskEntries);
        for (int64_t n; first < end; first += n) {
          n = reader.length(first, end);
          const Chunk<S>& chunk = reader.read(first, static_cast<int>(n));
          if (call.nans) nans += count_nans(chunk);
          emit(call, chunk);
          reader.write();
        }
      }
      reader.finish();
      if (call.nans) add_nans(call, nans);
    });
  }
};

// Whether the centre leaves the bounds somewhere, or is NaN.
template <class S>
struct Outside {
  using T = typename ComputeOf<S>::type;

  static void run(const PerturbCall& call) {
    each_sample<S>(call, [&](Reader<S>& reader, int64_t sample) {
      each_chunk(call, reader, sample, [&](const Chunk<S>& c) {
        // beyond the end stands the first entry, as it does for the bounds
        const T first = static_cast<T>(load_upto(c.center, 1, T(0))[0]);
        int64_t outside = 0;
        for (int i = 0; i < c.n; i += kLanes<T>) {
          const Vec<T> v = load_upto(c.center + i, c.n - i, first);
          outside += kLanes<T> - count(equal(clamp<T>(v, c.low.at(i, c.n), c.high.at(i, c.n)), v));
        }
        add_nans(call, outside);
      });
    });
  }
};

}  // namespace

void step_linf(const PerturbCall& call) { run_samples<Linf>(call); }
void outside_bounds(const PerturbCall& call) { run_samples<Outside>(call); }

}  // namespace npkernels::NPK_ISA
