// One token per row of logits x (V), drawn from p = softmax(x / temperature) after filters:
//   top_k   the k largest, and what equals the k-th
//   top_p   of these the fewest whose probabilities add up to top_p or more, equals in their order
//   min_p   what is at least min_p times as probable as the largest
// What is kept is named by a bound and by how many of the entries that equal it are in. The bound is found
// without sorting and without memory, by bisection over the floating-point numbers themselves: in order of
// size they are consecutive integers, so 32 (64) halvings find any of them.
//
//   pass 1   the largest logit, and the sum of exp(x/T - m)
//   pass 2   the bound (only with filters)
//   pass 3   cumulated probabilities up to u times their sum
#include <math.h>

#include "grpo_call.h"
#include "kernels.h"
#include "row_driver.h"

namespace npkernels::NPK_ISA {
namespace {

template <class T>
struct Bits {
  using type = int32_t;
};
template <>
struct Bits<double> {
  using type = int64_t;
};

template <class T>
class Sampler {
  using Int = typename Bits<T>::type;
  static constexpr int64_t kPiece = 256;

 public:
  Sampler(const SampleCall& call, const T* x, double u) : call_(call), x_(x), n_(call.n), u_(u) {}

  int64_t draw() {
    top_ = splat(T(-INFINITY));
    for (int64_t i = 0; i < n_; i += kLanes<T>) top_ = max_of(load_upto(x_ + i, n_ - i, T(-INFINITY)), top_);
    const T m = max_lane(top_);
    if (!(m > T(-INFINITY)) || m == T(INFINITY)) return first_largest(m);
    top_ = splat(T(m / T(call_.temperature)));
    bound_ = T(-INFINITY);  // entries of -inf have no probability
    if (call_.top_k > 0 && call_.top_k < n_)
      bound_ = lowest([&](T t) { return count_from(t) < call_.top_k; }, m);
    equals_ = n_;
    double total = mass_above(bound_) + mass_at(bound_);
    if (call_.top_p < 1) {
      const double wanted = call_.top_p * total;
      const T t = lowest([&](T candidate) { return mass_above(candidate) + mass_at(candidate) < wanted; }, m);
      bound_ = larger(t, bound_);
      const double above = mass_above(bound_), each = probability(bound_);
      if (each > 0) {
        equals_ = static_cast<int64_t>(::ceil((wanted - above) / each));
        equals_ = larger<int64_t>(equals_, 1);
        total = above + double(smaller(equals_, count_at(bound_))) * each;
      }
    }
    if (call_.min_p > 0) {
      const T t = lowest([&](T candidate) { return probability(candidate) < call_.min_p; }, m, true);
      if (t > bound_) {
        bound_ = t;
        equals_ = n_;
        total = mass_above(bound_) + mass_at(bound_);
      }
    }
    return walk(u_ * total);
  }

 private:
  // Numbers in order of size as consecutive integers, and back.
  static Int to_order(T x) {
    Int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >= 0 ? bits : static_cast<Int>(bits ^ ~(Int(1) << (8 * sizeof(Int) - 1)));
  }
  static T from_order(Int order) {
    const Int bits = order >= 0 ? order : static_cast<Int>(order ^ ~(Int(1) << (8 * sizeof(Int) - 1)));
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }

  // The largest number up to m for which too_few is false, for a condition that turns true as numbers rise;
  // or, with `rising`, the smallest for which a condition that turns false is false.
  template <class Condition>
  static T lowest(Condition too_few, T m, bool rising = false) {
    Int low = to_order(T(-INFINITY)), high = to_order(m);
    while (low < high) {
      if (rising) {
        const Int middle =
            low + static_cast<Int>((static_cast<uint64_t>(high) - static_cast<uint64_t>(low)) / 2);
        if (too_few(from_order(middle)))
          low = middle + 1;
        else
          high = middle;
      } else {
        const Int middle =
            high - static_cast<Int>((static_cast<uint64_t>(high) - static_cast<uint64_t>(low)) / 2);
        if (too_few(from_order(middle)))
          high = middle - 1;
        else
          low = middle;
      }
    }
    return from_order(low);
  }

  Vec<T> weights(Vec<T> x) const { return exp_negative<T>(x / splat(T(call_.temperature)) - top_); }
  double probability(T x) const { return weights(splat(x))[0]; }

  int64_t count_from(T t) const {
    const Vec<T> bound = splat(t);
    int64_t found = 0;
    for (int64_t i = 0; i < n_; i += kLanes<T>) {
      const Vec<T> x = load_upto(x_ + i, n_ - i, T(NAN));
      found += count(greater(x, bound)) + count(equal(x, bound));
    }
    return found;
  }
  int64_t count_at(T t) const {
    int64_t found = 0;
    for (int64_t i = 0; i < n_; i += kLanes<T>)
      found += count(equal(load_upto(x_ + i, n_ - i, T(NAN)), splat(t)));
    return found;
  }
  double mass_at(T t) const { return double(count_at(t)) * probability(t); }

  double mass_above(T t) const {
    const Vec<T> bound = splat(t), zero = splat(T(0));
    Sum mass;
    for (int64_t first = 0; first < n_; first += kPiece) {
      const int64_t end = smaller(n_, first + kPiece);
      mass.add(sum_of<T>(static_cast<int>(end - first), [&](int i, Vec<T> sum) {
        const Vec<T> x = load_upto(x_ + first + i, end - first - i, T(-INFINITY));
        return sum + select(greater(x, bound), weights(x), zero);
      }));
    }
    return mass.value();
  }

  // The first entry at which the cumulated probability of what is kept exceeds `target`; the last kept one if
  // rounding leaves none.
  int64_t walk(double target) const {
    double before = 0;
    int64_t equals = 0, last = 0;
    for (int64_t i = 0; i < n_; ++i) {
      if (!(x_[i] >= bound_)) continue;
      if (x_[i] == bound_ && ++equals > equals_) continue;
      const double p = probability(x_[i]);
      if (p == 0) continue;
      before += p;
      last = i;
      if (before > target) return i;
    }
    return last;
  }

  int64_t first_largest(T m) const {
    for (int64_t i = 0; i < n_; ++i)
      if (x_[i] == m) return i;
    return 0;
  }

  const SampleCall& call_;
  const T* x_;
  const int64_t n_;
  const double u_;
  Vec<T> top_ = splat(T(0));
  T bound_ = 0;
  int64_t equals_ = 0;
};

template <class T>
void run_sample(const SampleCall& call) {
  parallel(call.rows, [&](int64_t row) {
    const T* x = reinterpret_cast<const T*>(row_of(call, call.in[0], row));
    call.ids[row] = Sampler<T>(call, x, call.u[row]).draw();
  });
}

}  // namespace

void sample(const SampleCall& call) {
  if (call.dtype == DType::float64)
    run_sample<double>(call);
  else
    run_sample<float>(call);
}

}  // namespace npkernels::NPK_ISA
