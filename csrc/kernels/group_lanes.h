// Neighbouring short groups, one in each lane of a register, through all passes at once: what a group waits
// for (its sums, its quotients) is done for all of them together. Letters and passes as in
// group_advantages.cpp.
#pragma once

#include "grpo_call.h"
#include "row_driver.h"
#include "transpose.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
class GroupLanes {
  using D = Vec<double>;

 public:
  static constexpr int kGroups = kLanes<double>;  // side by side
  static constexpr int kMost = 32;                // samples of a group

  explicit GroupLanes(const AdvantageOptions& options) : o_(options) {}

  // `count` groups of a call from `first` on, whose samples are r and whose results a. a null: their
  // statistics only; `deviation`: with the standard deviation in place of the sum of squares. False, with
  // nothing written, if a group is longer than kMost, or a reward is so large or small that its square is not
  // a normal number, or infinite.
  bool run(const T* r, const GroupCall& call, int64_t first, int count, bool deviation, double* stats, T* a) {
    const D zero = splat(0.0), one = splat(1.0);
    equal_ = true;
    size_ = 0;
    for (int g = 0; g < count; ++g) {
      length_[g] = call.length(first + g);
      equal_ = equal_ && length_[g] == length_[0];
      size_ = larger(size_, length_[g]);
    }
    if (size_ > kMost) return false;
    gather(r, count);
    D n = zero, sum = zero, low = splat(double(INFINITY)), high = zero - low;
    each([&](D v, int64_t) {
      const Mask<double> there = not_nan(v);
      n = n + select(there, one, zero);
      sum = sum + select(there, v, zero);
      low = min_of(v, low);
      high = max_of(v, high);
    });
    const Mask<double> some = greater(n, zero), varied = greater(high, low);
    const D largest = select(some, max_of(zero - low, max_of(high, zero - high)), one);
    const D size = select(equal(largest, zero), one, largest);
    if (any(greater(splat(1e-100), size)) || any(greater(size, splat(1e100)))) return false;

    D mean = select(some, sum / n, zero), rest = zero, squares = zero;
    each([&](D v, int64_t) {
      const D d = select(not_nan(v), v - mean, zero);
      rest = rest + d;
      squares = squares + d * d;
    });
    mean = select(varied, mean, select(some, low, zero));
    D spread = select(varied, max_of(zero, squares - rest * rest / n), zero);
    if (deviation) {
      const D freedom = n - splat(double(o_.ddof));
      const D none = splat(double(NAN));
      spread = select(greater(freedom, zero), square_root(spread / freedom), zero);
      mean = select(some, mean, none);
      low = select(some, low, none);
      high = select(some, high, none);
    }
    put(stats, count, n, mean, spread, low, high);
    if (!a) return true;

    D shift = o_.baseline == Baseline::none ? zero : mean, divisor = one, numerator = one;
    if (o_.scale == Scale::group) divisor = spread + splat(o_.eps);
    if (o_.baseline == Baseline::leave_one_out) numerator = select(greater(n, one), n / (n - one), one);
    if (o_.over_mean) {
      divisor = mean;
      numerator = select(equal(mean, zero), zero, numerator);
    }
    if (o_.baseline != Baseline::none || o_.scale == Scale::group || o_.over_mean)
      numerator = select(varied, numerator, zero);
    if (o_.lone_reward) {
      const Mask<double> lone = equal(n, one);
      shift = select(lone, zero, shift);
      numerator = select(lone, one, numerator);
      divisor = select(lone, splat(o_.scale == Scale::group ? 1 + o_.eps : 1.0), divisor);
    }
    const D multiplier = select(equal(numerator, zero), zero, numerator / divisor);
    each([&](D v, int64_t i) {
      store(tile_ + i * kGroups, select(not_nan(v), (v - shift) * multiplier, zero));
    });
    scatter(a, count);
    return true;
  }

 private:
  template <class Step>
  void each(Step step) {
    for (int64_t i = 0; i < size_; ++i) step(load(tile_ + i * kGroups), i);
  }

  // tile[i][g] = r[g][i], NaN past the end of a group; lanes without a group repeat the first.
  void gather(const T* r, int count) {
    if (equal_)
      transpose(as_doubles(r, count * size_), size_, tile_, int64_t(kGroups), int64_t(count), size_);
    else
      for (int g = 0; g < count; r += length_[g], ++g)
        for (int64_t i = 0; i < size_; ++i) tile_[i * kGroups + g] = i < length_[g] ? double(r[i]) : NAN;
    for (int64_t i = 0; i < size_; ++i)
      for (int g = count; g < kGroups; ++g) tile_[i * kGroups + g] = tile_[i * kGroups];
  }
  const double* as_doubles(const double* r, int64_t) { return r; }
  const double* as_doubles(const float* r, int64_t n) {
    for (int64_t i = 0; i < n; ++i) rows_[i] = r[i];
    return rows_;
  }

  void scatter(double* a, int count) {
    if (equal_) return transpose(tile_, int64_t(kGroups), a, size_, size_, int64_t(count));
    for (int g = 0; g < count; a += length_[g], ++g)
      for (int64_t i = 0; i < length_[g]; ++i) a[i] = tile_[i * kGroups + g];
  }
  void scatter(float* a, int count) {
    int64_t n = 0;
    for (int g = 0; g < count; ++g) n += length_[g];
    scatter(rows_, count);
    for (int64_t i = 0; i < n; ++i) a[i] = static_cast<float>(rows_[i]);
  }

  template <class... Columns>
  static void put(double* stats, int count, Columns... columns) {
    int column = 0;
    const auto one = [&](D values) {
      alignas(64) double lanes[kGroups];
      store(lanes, values);
      for (int g = 0; g < count; ++g) stats[g * int(sizeof...(Columns)) + column] = lanes[g];
      ++column;
    };
    (one(columns), ...);
  }

  const AdvantageOptions& o_;
  int64_t size_ = 0, length_[kGroups];  // of the longest; of each
  bool equal_ = true;
  alignas(64) double tile_[kMost * kGroups], rows_[kMost * kGroups];
};

}  // namespace
}  // namespace npkernels::NPK_ISA
