// Statistics of groups of rewards, and advantages within them. Letters: B samples, n groups, r reward, mu
// mean of a group.
//
//   pass 1   count, sum (compensated), min, max of each group
//   pass 2   mu = sum / count, then sums of d = r - mu and of d^2, and from them
//            m2 = sum d^2 - (sum d)^2 / count      (Chan, Golub & LeVeque 1983, the corrected two-pass
//            algorithm)
//   pass 3   a = (f r - shift) * multiplier, three numbers per group
//
// All in double. f is 1, or the power of two that brings rewards of extreme size to about 1 before they are
// squared. The samples of a group lie side by side. Groups go through all passes one after another and are
// the tasks of the threads, short ones side by side (group_lanes.h).
#include <math.h>

#include "group_lanes.h"
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

using D = Vec<double>;
constexpr int kPiece = 256;              // samples converted at a time
constexpr int64_t kTaskSamples = 16384;  // less is not worth waking a thread
constexpr int64_t kFew = 512;            // samples of the groups that go through the passes together
constexpr int kStats = 5, kTransform = 3;
enum { kCount, kMean, kSpread, kLow, kHigh };  // columns of stats; kSpread is m2, then the standard deviation
enum { kFactor, kShift, kMultiplier };         // columns of transform

// The power of two that scales rewards up to `size`; 1 for ordinary ones.
double factor_for(double size) {
  if (size == 0 || (size > 1e-100 && size < 1e100) || !(size < INFINITY)) return 1;
  int exponent;
  ::frexp(size, &exponent);
  return ::ldexp(1.0, exponent > 1000 ? -1000 : exponent < -1000 ? 1000 : -exponent);
}

// The next rewards as doubles: where they lie, or converted into the buffer.
inline const double* as_doubles(const double* r, int, double*) { return r; }
inline const double* as_doubles(const float* r, int n, double* buffer) {
  for (int i = 0; i < n; ++i) buffer[i] = r[i];
  return buffer;
}

template <class T>
class Advantages {
 public:
  explicit Advantages(const GroupCall& call)
      : call_(call), o_(call.options), r_(static_cast<const T*>(call.rewards.data)) {}

  void run() const {
    if (call_.groups.n == 0) return;
    const bool batch = call_.advantages && o_.scale == Scale::batch;
    if (call_.usual() <= GroupLanes<T>::kMost)
      short_groups(batch);
    else
      over_groups([&](int64_t g) { extremes(g); }, [&](int64_t g) { deviations(g); },
                  [&](int64_t g) { results(g, batch); });
    if (!batch) return;
    const double sigma = batch_deviation();
    over_groups([&](int64_t g) { prepare(g, sigma); }, [&](int64_t g) { apply(g); });
  }

 private:
  double* stats(int64_t g) const { return call_.stats + g * kStats; }
  double* transform(int64_t g) const { return call_.transform + g * kTransform; }

  // Pass 3, unless it needs the whole batch.
  void results(int64_t g, bool batch) const {
    if (!call_.advantages || batch) return;
    prepare(g, 0);
    apply(g);
  }

  void short_groups(bool batch) const {
    constexpr int kGroups = GroupLanes<T>::kGroups;
    const int64_t groups = call_.groups.n;
    const int64_t per_task = larger<int64_t>(1, kTaskSamples / (kGroups * call_.usual())) * kGroups;
    T* const advantages = batch ? nullptr : static_cast<T*>(call_.advantages);
    parallel((groups + per_task - 1) / per_task, [&](int64_t task) {
      GroupLanes<T> lanes(o_);
      const int64_t end = smaller(groups, (task + 1) * per_task);
      for (int64_t first = task * per_task; first < end; first += kGroups) {
        const int count = static_cast<int>(smaller<int64_t>(kGroups, end - first));
        const int64_t begin = call_.begin(first);
        const bool done = lanes.run(r_ + begin, call_, first, count, call_.advantages != nullptr,
                                    stats(first), advantages ? advantages + begin : nullptr);
        for (int64_t g = first; g < first + count; ++g) {
          if (done) {
            transform(g)[kFactor] = 1;
          } else {
            extremes(g);
            deviations(g);
            results(g, batch);
          }
        }
      }
    });
  }

  // Each step for a few groups, then the next: a step of one group waits for its sums, the next group's need
  // not.
  template <class... Steps>
  void over_groups(Steps... steps) const {
    const int64_t size = call_.usual(), few = larger<int64_t>(1, kFew / size);
    const int64_t per_task = few * larger<int64_t>(1, kTaskSamples / (few * size));
    parallel((call_.groups.n + per_task - 1) / per_task, [&](int64_t task) {
      const int64_t end = smaller(call_.groups.n, (task + 1) * per_task);
      for (int64_t first = task * per_task; first < end; first += few) {
        const int64_t last = smaller(end, first + few);
        const auto each = [&](auto step) {
          for (int64_t g = first; g < last; ++g) step(g);
        };
        (each(steps), ...);
      }
    });
  }

  // step(x, n) for the pieces of group g as doubles.
  template <class Step>
  void over_pieces(int64_t g, Step step) const {
    const int64_t size = call_.length(g);
    const T* r = r_ + call_.begin(g);
    alignas(64) double buffer[kPiece];
    for (int64_t first = 0; first < size; first += kPiece) {
      const int n = static_cast<int>(smaller<int64_t>(kPiece, size - first));
      step(as_doubles(r + first, n, buffer), n);
    }
  }

  // Pass 1; the column of the mean holds the sum.
  void extremes(int64_t g) const {
    const D zero = splat(0.0);
    LaneSum<double> sum;  // loses nothing: a mean near 0 would show it
    D low = splat(double(INFINITY)), high = splat(-double(INFINITY));
    int64_t counted = 0;
    over_pieces(g, [&](const double* x, int n) {
      for (int i = 0; i < n; i += kLanes<double>) {
        const D v = load_upto(x + i, n - i, double(NAN));
        const Mask<double> there = not_nan(v);
        sum.add(select(there, v, zero));
        low = min_of(v, low);
        high = max_of(v, high);
        counted += count(there);
      }
    });
    double* s = stats(g);
    s[kCount] = double(counted);
    s[kMean] = sum.total();
    s[kLow] = -max_lane(zero - low);
    s[kHigh] = max_lane(high);
  }

  // Pass 2.
  void deviations(int64_t g) const {
    double* s = stats(g);
    const double f = transform(g)[kFactor] = factor(g);
    double mean = f == 1 ? s[kMean] : summed(g, [&](D v) { return v * splat(f); });
    mean = s[kCount] > 0 ? mean / s[kCount] : 0;
    const D centre = splat(mean), scale = splat(f), zero = splat(0.0);
    D rest = zero;
    LaneSum<double> squares;
    over_pieces(g, [&](const double* x, int n) {
      for (int i = 0; i < n; i += kLanes<double>) {
        const D v = load_upto(x + i, n - i, double(NAN));
        const D d = select(not_nan(v), v * scale - centre, zero);
        rest = rest + d;
        squares.add(d * d);
      }
    });
    finish(g, mean, sum_lanes(rest), squares.total());
  }

  template <class Term>
  double summed(int64_t g, Term term) const {
    D sum = splat(0.0);
    over_pieces(g, [&](const double* x, int n) {
      for (int i = 0; i < n; i += kLanes<double>) {
        const D v = load_upto(x + i, n - i, double(NAN));
        sum = sum + select(not_nan(v), term(v), splat(0.0));
      }
    });
    return sum_lanes(sum);
  }

  double factor(int64_t g) const {
    const double* s = stats(g);
    return s[kCount] > 0 ? factor_for(larger(fabs(s[kLow]), fabs(s[kHigh]))) : 1;
  }

  // From sums of f r and of its deviations to mean and spread.
  void finish(int64_t g, double mean, double rest, double squares) const {
    double* s = stats(g);
    const double f = transform(g)[kFactor], count = s[kCount];
    const bool constant = !(s[kLow] < s[kHigh]);
    double m2 = 0;
    if (constant) {
      mean = count > 0 ? s[kLow] * f : 0;
    } else {
      m2 = larger(0.0, squares - rest * rest / count);
    }
    s[kMean] = mean / f;
    s[kSpread] = m2 / f / f;
    if (!call_.advantages) return;
    s[kSpread] = count > o_.ddof ? sqrt(m2 / (count - o_.ddof)) / f : 0;
    if (count == 0) s[kMean] = s[kLow] = s[kHigh] = double(NAN);
  }

  // The deviation of all rewards together, from the groups' statistics; 0 if all are equal.
  double batch_deviation() const {
    double total = 0, low = double(INFINITY), high = -double(INFINITY);
    for (int64_t g = 0; g < call_.groups.n; ++g) {
      const double* s = stats(g);
      if (!(s[kCount] > 0)) continue;
      total += s[kCount];
      low = smaller(low, s[kLow]);
      high = larger(high, s[kHigh]);
    }
    if (!(low < high) || total <= o_.ddof) return 0;
    const double f = factor_for(larger(fabs(low), fabs(high)));
    Sum centre, squares;
    for (int64_t g = 0; g < call_.groups.n; ++g)
      if (stats(g)[kCount] > 0) centre.add(stats(g)[kCount] / total * (stats(g)[kMean] * f));
    for (int64_t g = 0; g < call_.groups.n; ++g) {
      const double* s = stats(g);
      if (!(s[kCount] > 0)) continue;
      const double d = s[kMean] * f - centre.value(), deviation = s[kSpread] * f;
      squares.add((s[kCount] - o_.ddof) * deviation * deviation + s[kCount] * d * d);
    }
    return sqrt(squares.value() / (total - o_.ddof)) / f;
  }

  // What pass 3 does to group g; sigma is the batch's.
  void prepare(int64_t g, double sigma) const {
    const double *s = stats(g), n = s[kCount], mean = s[kMean], spread = s[kSpread];
    double* t = transform(g);
    const double f = t[kFactor];
    t[kShift] = o_.baseline == Baseline::none ? 0 : mean * f;
    double divisor = f;  // of f r - shift
    if (o_.scale == Scale::group) divisor = spread * f + o_.eps * f;
    if (o_.scale == Scale::batch) divisor = (sigma + o_.eps) * f;
    double numerator = o_.baseline == Baseline::leave_one_out && n > 1 ? n / (n - 1) : 1;
    if (o_.over_mean) {
      divisor = mean * f;
      if (mean == 0) numerator = 0;
    }
    const bool constant = !(s[kLow] < s[kHigh]);
    if (constant && (o_.baseline != Baseline::none || o_.scale == Scale::group || o_.over_mean))
      numerator = 0;
    if (o_.scale == Scale::batch && sigma == 0) numerator = 0;
    if (n == 1 && o_.lone_reward) {
      t[kShift] = 0;
      numerator = 1;
      divisor = o_.scale == Scale::group ? (1 + o_.eps) * f : f;
    }
    t[kMultiplier] = numerator == 0 ? 0 : numerator / divisor;
  }

  // Pass 3; the results may take the rewards' place.
  void apply(int64_t g) const {
    const double* t = transform(g);
    const D f = splat(t[kFactor]), shift = splat(t[kShift]), multiplier = splat(t[kMultiplier]),
            zero = splat(0.0);
    T* a = static_cast<T*>(call_.advantages) + call_.begin(g);
    over_pieces(g, [&](const double* x, int n) {
      alignas(64) double result[kPiece];
      for (int i = 0; i < n; i += kLanes<double>) {
        const D v = load_upto(x + i, n - i, double(NAN));
        store(result + i, select(not_nan(v), (v * f - shift) * multiplier, zero));
      }
      for (int i = 0; i < n; ++i) a[i] = static_cast<T>(result[i]);
      a += n;
    });
  }

  const GroupCall& call_;
  const AdvantageOptions& o_;
  const T* r_;
};

}  // namespace

void group_advantages(const GroupCall& call) {
  if (call.rewards.dtype == DType::float64)
    Advantages<double>(call).run();
  else
    Advantages<float>(call).run();
}

}  // namespace npkernels::NPK_ISA
