// How partial softmax results over disjoint keys make the whole: with m the largest lse_i,
//   Z = sum exp(lse_i - m),  lse = m + log Z,  part i counts exp(lse_i - m) / Z.
// (exp(lse_i - lse) is the same, but has the rounding error of lse, which is large far from zero.)
#pragma once

#include <math.h>
#include <stdint.h>

namespace npkernels::NPK_ISA {
namespace {

// lse(i) for i < parts; -inf: a part that saw no key, whose result is not to be read.
template <class Lse>
class Shares {
 public:
  Shares(int64_t parts, Lse lse) : lse_(lse) {
    for (int64_t i = 0; i < parts; ++i) {
      const double x = lse_(i);
      if (x > top_ || x != x) top_ = x;
    }
    shift_ = top_ == -double(INFINITY) ? 0 : top_;
    for (int64_t i = 0; i < parts; ++i) sum_ += ::exp(double(lse_(i)) - shift_);
  }
  double total() const { return isinf(top_) ? top_ : top_ + ::log(sum_); }
  bool empty(int64_t i) const { return lse_(i) == -INFINITY; }
  double of(int64_t i) const { return ::exp(double(lse_(i)) - shift_) / sum_; }

 private:
  Lse lse_;
  double top_ = -INFINITY, shift_ = 0, sum_ = 0;
};

}  // namespace
}  // namespace npkernels::NPK_ISA
