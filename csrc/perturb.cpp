// The public functions of perturb.h: each describes its arrays as samples of rows and hands them to the
// kernel in use.
#include "npkernels/perturb.h"

#include "kernels/table.h"

namespace npkernels {
namespace {

// An array of a call and the operand it becomes.
struct Part {
  const Array* array;
  RowOperand* operand;
};

class Description {
 public:
  explicit Description(const Array& lead) : lead_(lead) { call.dtype = lead.dtype; }

  PerturbCall call;

  void add(const Array* array, RowOperand& operand) {
    if (array) parts_[count_++] = {array, &operand};
  }
  void add(const Amount& amount, RowAmount& target) {
    target.value = amount.value;
    target.per_sample = amount.per_sample;
    target.each = amount.entries != nullptr;
    add(amount.entries, target.entries);
  }
  void add(const Bounds& bounds) {
    call.low.value = bounds.low;
    call.high.value = bounds.high;
    call.low.each = bounds.lows != nullptr;
    call.high.each = bounds.highs != nullptr;
    call.bounded = bounds.limited();
    add(bounds.lows, call.low.entries);
    add(bounds.highs, call.high.entries);
  }
  void add_options(const StepOptions& options) {
    call.norm = static_cast<int>(options.norm);
    call.targeted = options.targeted;
    call.masked = options.mask != nullptr;
    add(options.mask, call.mask);
    add(options.bounds);
  }

  // Axes that lie behind one another in every array become one; the last is the row. The first stays apart
  // where samples have to be told apart.
  void finish(bool samples_apart) {
    const int first = samples_apart ? 1 : 0;
    call.samples = samples_apart ? lead_.shape[0] : 1;
    int axis = lead_.ndim - 1;
    call.n = 1;
    for (int i = 0; i < count_; ++i) {
      parts_[i].operand->data = static_cast<char*>(parts_[i].array->data);
      parts_[i].operand->inner = 0;
      parts_[i].operand->outer[0] = 0;
    }
    for (; axis >= first && joins(axis); --axis) {
      const int64_t length = lead_.shape[axis];
      if (call.n == 1)
        for (int i = 0; i < count_; ++i) parts_[i].operand->inner = parts_[i].array->strides[axis];
      call.n *= length;
    }
    if (call.n == 1)  // one entry: any step will do, and this one needs no tile
      for (int i = 0; i < count_; ++i) parts_[i].operand->inner = item_size(parts_[i].array->dtype);
    call.rows = 1;
    call.outer_dims = 0;
    for (int d = 0; d <= axis; ++d) {
      call.rows *= lead_.shape[d];
      call.shape[call.outer_dims] = lead_.shape[d];
      for (int i = 0; i < count_; ++i)
        parts_[i].operand->outer[call.outer_dims] = parts_[i].array->strides[d];
      ++call.outer_dims;
    }
  }

 private:
  // Whether the axis continues the row that the axes behind it make.
  bool joins(int axis) const {
    if (call.n == 1 || lead_.shape[axis] == 1) return true;
    for (int i = 0; i < count_; ++i)
      if (parts_[i].array->strides[axis] != parts_[i].operand->inner * call.n) return false;
    return true;
  }

  const Array& lead_;
  Part parts_[10];
  int count_ = 0;
};

void step(const Array& x, const Array* g, const Array* c, const Amount& length, const Amount& radius,
          const StepOptions& options, const Array& y, int64_t* nans) {
  Description d(x);
  d.call.stepped = g != nullptr;
  d.call.centered = c != nullptr;
  d.call.nans = nans;
  if (nans) *nans = 0;
  d.add(&x, d.call.in[0]);
  d.add(g, d.call.in[1]);
  d.add(c, d.call.center);
  d.add(&y, d.call.out[0]);
  d.add(length, d.call.step);
  d.add(radius, d.call.radius);
  d.add_options(options);
  const bool norms = options.norm != Norm::inf;
  d.finish(norms || length.per_sample || radius.per_sample);
  (norms ? kernels().step_norms : kernels().step_linf)(d.call);
}

}  // namespace

void steepest_step(const Array& x, const Array& g, const Amount& length, const StepOptions& options,
                   const Array& y, int64_t* nans) {
  step(x, &g, nullptr, length, {}, options, y, nans);
}

void project(const Array& x, const Array& c, const Amount& radius, const StepOptions& options,
             const Array& y) {
  step(x, nullptr, &c, {}, radius, options, y, nullptr);
}

void pgd_step(const Array& x, const Array& c, const Array& g, const Amount& length, const Amount& radius,
              const StepOptions& options, const Array& y, int64_t* nans) {
  step(x, &g, &c, length, radius, options, y, nans);
}

void momentum(const Array& v, const Array& g, double decay, const Array* mask, const Array& y) {
  Description d(v);
  d.call.stepped = true;
  d.call.decay = decay;
  d.call.masked = mask != nullptr;
  d.add(&v, d.call.in[0]);
  d.add(&g, d.call.in[1]);
  d.add(&y, d.call.out[0]);
  d.add(mask, d.call.mask);
  d.finish(true);
  kernels().momentum(d.call);
}

void random_in_ball(const Array& c, const Amount& radius, Norm norm, const Bounds& bounds, uint64_t key,
                    const Array& y) {
  Description d(c);
  d.call.centered = true;
  d.call.norm = static_cast<int>(norm);
  d.call.key = key;
  d.add(&c, d.call.center);
  d.add(&y, d.call.out[0]);
  d.add(radius, d.call.radius);
  d.add(bounds);
  d.finish(true);
  kernels().random_in_ball(d.call);
}

bool outside(const Array& c, const Bounds& bounds) {
  int64_t count = 0;
  Description d(c);
  d.call.centered = true;
  d.call.nans = &count;
  d.add(&c, d.call.center);
  d.add(bounds);
  d.finish(false);
  kernels().outside_bounds(d.call);
  return count != 0;
}

}  // namespace npkernels
