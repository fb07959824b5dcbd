// The perturbation family of npkernels.h: arguments checked, then the functions of perturb.h.
#include <math.h>

#include <algorithm>

#include "c_arguments.h"
#include "npkernels/perturb.h"

using namespace npkernels::c_api;
using npkernels::Amount;
using npkernels::Array;
using npkernels::DType;
using npkernels::Norm;

namespace {

constexpr size_t kFirstStepOptions = offsetof(npk_step_options, radii) + sizeof(npk_array*);

double number(const char* p, DType dtype) {
  return dtype == DType::float64 ? *reinterpret_cast<const double*>(p)
                                 : double(*reinterpret_cast<const float*>(p));
}

// Whether fits(a, b) holds for every entry of two arrays of one shape (b may be null: 0), each place of
// memory looked at once where both repeat.
template <class Fits>
bool every(const Array& a, const Array* b, Fits fits) {
  int64_t count = 1, length[npkernels::kMaxDims];
  for (int i = 0; i < a.ndim; ++i) {
    const bool repeats = a.shape[i] > 0 && a.strides[i] == 0 && (!b || b->strides[i] == 0);
    count *= length[i] = repeats ? 1 : a.shape[i];
  }
  for (int64_t n = 0; n < count; ++n) {
    int64_t rest = n, at_a = 0, at_b = 0;
    for (int i = a.ndim - 1; i >= 0; --i) {
      const int64_t place = rest % length[i];
      rest /= length[i];
      at_a += place * a.strides[i];
      if (b) at_b += place * b->strides[i];
    }
    const double x = number(static_cast<const char*>(a.data) + at_a, a.dtype);
    if (!fits(x, b ? number(static_cast<const char*>(b->data) + at_b, b->dtype) : 0.0)) return false;
  }
  return true;
}

// The samples of a call and its options, as perturb.h takes them.
class Step {
 public:
  const View x;
  npkernels::StepOptions options;

  Step(const npk_array* array, const char* name, const npk_step_options* given)
      : x(array, name), asked_(known(given)), compute_(npkernels::compute_dtype(x.dtype)) {
    check_floating(x);
    const npk_step_options& o = asked_;
    require(o.norm >= NPK_NORM_INF && o.norm <= NPK_NORM_TWO, NPK_BAD_VALUE, "norm");
    require(o.targeted == 0 || o.targeted == 1, NPK_BAD_VALUE, "targeted");
    require(o.bounded == 0 || o.bounded == 1, NPK_BAD_VALUE, "bounded");
    require(o.reserved == 0, NPK_BAD_VALUE, "reserved");
    require(x.ndim >= (o.norm == NPK_NORM_INF ? 1 : 2), NPK_BAD_SHAPE, name);
    options.norm = static_cast<Norm>(o.norm);
    options.targeted = o.targeted != 0;
    mask_ = optional_view(o.mask, "mask");
    if (mask_) {
      check_dtype(*mask_, DType::boolean);
      options.mask = &wide_mask_.emplace(*mask_, x.ndim, x.shape).array;
    }
    set_bounds();
  }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  const npk_step_options& asked() const { return asked_; }

  View like(const npk_array* array, const char* name) const {
    View view(array, name);
    check_dtype(view, x.dtype);
    check_shape(view, x);
    return view;
  }

  // The lengths of the steps and the radii of the balls; refused where the function has none.
  Amount length(double value, const char* name) {
    return amount(value, name, asked_.step_lengths, "step_lengths", true, lengths_, wide_lengths_);
  }
  Amount radius(double value, const char* name, bool finite) {
    return amount(value, name, asked_.radii, "radii", finite, radii_, wide_radii_);
  }
  void no_lengths() const { require(!asked_.step_lengths, NPK_BAD_VALUE, "step_lengths"); }
  void no_radii() const { require(!asked_.radii, NPK_BAD_VALUE, "radii"); }

  // c lies within the bounds.
  void check_center(const View& c) const {
    require(!options.bounds.limited() || !npkernels::outside(c, options.bounds), NPK_BAD_VALUE, c.name);
  }
  // The result may be the very same memory as x and the others.
  void check_result(const View& y, std::initializer_list<const View*> inputs) const {
    check_output(y, {&x},
                 {pointer(mask_), pointer(lows_), pointer(highs_), pointer(lengths_), pointer(radii_)});
    check_output(y, inputs, {});
  }

 private:
  static npk_step_options known(const npk_step_options* options) {
    const npk_step_options defaults = NPK_STEP_OPTIONS_INIT;
    return known_options(options ? options : &defaults, kFirstStepOptions, "options");
  }

  void set_bounds() {
    npkernels::Bounds& b = options.bounds;
    if (asked_.bounded) {
      b.low = asked_.low;
      b.high = asked_.high;
      require(b.low <= b.high, NPK_BAD_VALUE, "low");
    }
    b.lows = side(asked_.lows, "lows", lows_, wide_lows_);
    b.highs = side(asked_.highs, "highs", highs_, wide_highs_);
    const double low = b.low, high = b.high;
    const auto ordered = [](double l, double h) { return l <= h; };
    if (b.lows && b.highs)
      require(every(*b.lows, b.highs, ordered), NPK_BAD_VALUE, "highs");
    else if (b.lows)
      require(every(*b.lows, nullptr, [&](double l, double) { return l <= high; }), NPK_BAD_VALUE, "lows");
    else if (b.highs)
      require(every(*b.highs, nullptr, [&](double h, double) { return low <= h; }), NPK_BAD_VALUE, "highs");
  }

  const Array* side(const npk_array* array, const char* name, std::optional<View>& view,
                    std::optional<Broadcast>& wide) const {
    if (!array) return nullptr;
    view.emplace(array, name);
    check_dtype(*view, compute_);
    return &wide.emplace(*view, x.ndim, x.shape).array;
  }

  Amount amount(double value, const char* name, const npk_array* array, const char* array_name, bool finite,
                std::optional<View>& view, std::optional<Broadcast>& wide) const {
    const auto fits = [&](double n, double) { return n >= 0 && (!finite || n < double(INFINITY)); };
    Amount result;
    if (!array) {
      require(fits(value, 0), NPK_BAD_VALUE, name);
      result.value = value;
      return result;
    }
    view.emplace(array, array_name);
    if (view->ndim == 1) {
      check_dtype(*view, DType::float64);
      require(view->shape[0] == x.shape[0], NPK_BAD_SHAPE, array_name);
      check_contiguous(*view);
      require(every(*view, nullptr, fits), NPK_BAD_VALUE, array_name);
      result.per_sample = reinterpret_cast<const double*>(view->data);
      return result;
    }
    require(asked_.norm == NPK_NORM_INF && view->ndim == x.ndim, NPK_BAD_SHAPE, array_name);
    check_dtype(*view, compute_);
    result.entries = &wide.emplace(*view, x.ndim, x.shape).array;
    require(every(*result.entries, nullptr, fits), NPK_BAD_VALUE, array_name);
    return result;
  }

  const npk_step_options asked_;
  const DType compute_;
  std::optional<View> mask_, lows_, highs_, lengths_, radii_;
  std::optional<Broadcast> wide_mask_, wide_lows_, wide_highs_, wide_lengths_, wide_radii_;
};

npk_status steepest(const npk_array* x, const npk_array* grad, double length, const char* name,
                    const npk_step_options* options, const npk_array* y, int64_t* nans, bool sign) {
  return guarded([&] {
    Step step(x, "x", options);
    require(!sign || step.asked().norm == NPK_NORM_INF, NPK_BAD_VALUE, "norm");
    step.no_radii();
    const View g = step.like(grad, "grad"), out = step.like(y, "y");
    const Amount along = step.length(length, name);
    step.check_result(out, {&g});
    npkernels::steepest_step(step.x, g, along, step.options, out, nans);
  });
}

}  // namespace

extern "C" {

npk_status npk_sign_step(const npk_array* x, const npk_array* grad, double eps,
                         const npk_step_options* options, const npk_array* y, int64_t* nans) {
  return steepest(x, grad, eps, "eps", options, y, nans, true);
}

npk_status npk_steepest_step(const npk_array* x, const npk_array* grad, double step,
                             const npk_step_options* options, const npk_array* y, int64_t* nans) {
  return steepest(x, grad, step, "step", options, y, nans, false);
}

npk_status npk_project(const npk_array* x, const npk_array* center, double eps,
                       const npk_step_options* options, const npk_array* y) {
  return guarded([&] {
    Step step(x, "x", options);
    require(step.asked().targeted == 0, NPK_BAD_VALUE, "targeted");
    step.no_lengths();
    const View c = step.like(center, "center"), out = step.like(y, "y");
    const Amount around = step.radius(eps, "eps", false);
    step.check_result(out, {&c});
    step.check_center(c);
    npkernels::project(step.x, c, around, step.options, out);
  });
}

npk_status npk_pgd_step(const npk_array* x, const npk_array* center, const npk_array* grad, double step,
                        double eps, const npk_step_options* options, const npk_array* y, int64_t* nans) {
  return guarded([&] {
    Step given(x, "x", options);
    const View c = given.like(center, "center"), g = given.like(grad, "grad"), out = given.like(y, "y");
    const Amount along = given.length(step, "step"), around = given.radius(eps, "eps", false);
    given.check_result(out, {&c, &g});
    if (given.options.norm != Norm::inf) given.check_center(c);
    npkernels::pgd_step(given.x, c, g, along, around, given.options, out, nans);
  });
}

npk_status npk_random_in_ball(const npk_array* center, double eps, uint64_t key,
                              const npk_step_options* options, const npk_array* y) {
  return guarded([&] {
    Step step(center, "center", options);
    require(step.asked().targeted == 0, NPK_BAD_VALUE, "targeted");
    require(!step.options.mask, NPK_BAD_VALUE, "mask");
    step.no_lengths();
    const View out = step.like(y, "y");
    const Amount around = step.radius(eps, "eps", true);
    step.check_result(out, {});
    step.check_center(step.x);
    npkernels::random_in_ball(step.x, around, step.options.norm, step.options.bounds, key, out);
  });
}

}  // extern "C"
