#include <cmath>

#include "arguments.h"
#include "npkernels/perturb.h"

namespace {

using args::Array;
using npkernels::Amount;
using npkernels::DType;

std::vector<int64_t> shape_of(const py::array& x) { return {x.shape(), x.shape() + x.ndim()}; }

// A length or radius: a number, or an array that Python made from one. With one axis it is float64,
// contiguous, and holds one number for each sample; else it is of the compute dtype and broadcasts to x. Owns
// its strides.
struct AmountArgument {
  args::Broadcast entries;
  Amount amount;

  AmountArgument(const char* function, const char* name, double value, const py::object& given,
                 const py::array& x, DType compute) {
    amount.value = value;
    if (given.is_none()) return;
    const auto a = given.cast<py::array>();
    if (a.ndim() == 1) {
      if (a.shape(0) != x.shape(0) || !(a.flags() & py::array::c_style) ||
          args::dtype_of(function, name, a) != DType::float64)
        args::value_error(std::string(function) + ": " + name + " has shape " + args::shape_text(a) +
                          "; expected one number for each sample");
      amount.per_sample = static_cast<const double*>(a.data());
    } else {
      entries = args::broadcast(function, name, a, compute, shape_of(x), "x's shape");
      if (args::dtype_of(function, name, a) != compute) args::type_error(std::string(function) + ": " + name);
      amount.entries = &entries.array;
    }
  }
};

// Numbers or arrays of the compute dtype. Owns their strides.
struct BoundsArgument {
  args::Broadcast lows, highs;
  npkernels::Bounds bounds;

  BoundsArgument(const char* function, double low, double high, const py::object& low_array,
                 const py::object& high_array, const py::array& x, DType compute) {
    bounds.low = low;
    bounds.high = high;
    bounds.lows = side(function, "bounds[0]", low_array, x, compute, lows);
    bounds.highs = side(function, "bounds[1]", high_array, x, compute, highs);
  }

  static const Array* side(const char* function, const char* name, const py::object& given,
                           const py::array& x, DType compute, args::Broadcast& target) {
    if (given.is_none()) return nullptr;
    const auto a = given.cast<py::array>();
    target = args::broadcast(function, name, a, compute, shape_of(x), "x's shape");
    if (args::dtype_of(function, name, a) != compute) args::type_error(std::string(function) + ": " + name);
    return &target.array;
  }
};

struct MaskArgument {
  args::Broadcast view;
  const Array* mask = nullptr;

  MaskArgument(const char* function, const py::object& given, const py::array& x) {
    if (given.is_none()) return;
    view =
        args::broadcast(function, "mask", given.cast<py::array>(), DType::boolean, shape_of(x), "x's shape");
    mask = &view.array;
  }
};

// An array that goes with x, or nothing.
Array companion(const char* function, const char* name, const py::object& given, const py::array& x) {
  if (given.is_none()) return {};
  return args::floating_like(function, name, py::reinterpret_borrow<py::array>(given), "x", x);
}

// One of steepest_step (no center), project (no grad) and pgd_step; gives the result and the number of NaN in
// grad. That the center is within the bounds is checked where it matters or is cheap: not for the one pass of
// pgd_step by the norm inf, which would cost a third more. The bounds hold there all the same, since they
// come last.
py::tuple step(const char* function, const py::array& x, const py::object& center, const py::object& grad,
               double length, const py::object& length_array, double radius, const py::object& radius_array,
               int norm, double low, double high, const py::object& low_array, const py::object& high_array,
               bool targeted, const py::object& mask, bool want_nans, const py::object& out) {
  const bool check_center = !center.is_none() && (norm != 0 || grad.is_none());
  const Array in = args::floating(function, "x", x);
  const DType compute = npkernels::compute_dtype(in.dtype);
  const Array center_view = companion(function, "center", center, x);
  const Array grad_view = companion(function, "grad", grad, x);
  const AmountArgument along(function, "step", length, length_array, x, compute);
  const AmountArgument around(function, "eps", radius, radius_array, x, compute);
  const BoundsArgument box(function, low, high, low_array, high_array, x, compute);
  const MaskArgument allowed(function, mask, x);
  npkernels::StepOptions options;
  options.norm = static_cast<npkernels::Norm>(norm);
  options.bounds = box.bounds;
  options.targeted = targeted;
  options.mask = allowed.mask;
  py::array y = args::output(function, out, x, {x});
  if (!out.is_none()) {
    for (const py::object& a : {center, grad})
      if (!a.is_none()) args::check_in_place(function, y, a.cast<py::array>());
    args::check_separate(function, out, {length_array, radius_array, low_array, high_array, mask});
  }
  const Array result = args::view(y, in.dtype);
  int64_t nans = 0;
  bool outside;
  {
    py::gil_scoped_release release;
    outside = check_center && box.bounds.limited() && npkernels::outside(center_view, box.bounds);
    if (!outside) {
      int64_t* counter = want_nans ? &nans : nullptr;
      if (center.is_none())
        npkernels::steepest_step(in, grad_view, along.amount, options, result, counter);
      else if (grad.is_none())
        npkernels::project(in, center_view, around.amount, options, result);
      else
        npkernels::pgd_step(in, center_view, grad_view, along.amount, around.amount, options, result,
                            counter);
    }
  }
  if (outside)
    args::value_error(
        std::string(function) +
        ": center lies outside the bounds somewhere, or is NaN; expected low <= center <= high");
  return py::make_tuple(y, nans);
}

// A number that Python holds as a float or an int.
bool plain_number(const py::handle& object, double* value) {
  if (PyFloat_CheckExact(object.ptr())) {
    *value = PyFloat_AS_DOUBLE(object.ptr());
  } else if (PyLong_CheckExact(object.ptr())) {
    *value = PyLong_AsDouble(object.ptr());
    if (PyErr_Occurred()) return PyErr_Clear(), false;
  } else {
    return false;
  }
  return true;
}

// The ordinary small call by the norm inf: steepest_step, or pgd_step if there is a radius. For arrays and
// values that need no look from Python, else None.
py::object step_quick(const py::object& x, const py::object& center, const py::object& grad,
                      const py::object& length, const py::object& radius, const py::object& bounds,
                      const py::object& targeted, const py::object& out) {
  DType dtype;
  if (!args::is_plain(x, &dtype)) return py::none();
  const auto like = py::reinterpret_borrow<py::array>(x);
  const auto same = [&](const py::object& object) {
    DType other;
    if (!args::is_plain(object, &other) || other != dtype) return false;
    const auto a = py::reinterpret_borrow<py::array>(object);
    return a.ndim() == like.ndim() && std::equal(a.shape(), a.shape() + a.ndim(), like.shape());
  };
  Amount along, around;
  npkernels::StepOptions options;
  const bool projects = !radius.is_none();
  if (like.ndim() < 2 || !same(grad) || (projects ? !same(center) : !center.is_none()) ||
      !plain_number(length, &along.value) || !(along.value >= 0 && std::isfinite(along.value)) ||
      (projects && !(plain_number(radius, &around.value) && around.value >= 0)) ||
      !PyBool_Check(targeted.ptr()))
    return py::none();
  options.targeted = targeted.ptr() == Py_True;
  if (!bounds.is_none()) {
    if (dtype == DType::float16 || !PyTuple_CheckExact(bounds.ptr()) || PyTuple_GET_SIZE(bounds.ptr()) != 2 ||
        !plain_number(PyTuple_GET_ITEM(bounds.ptr(), 0), &options.bounds.low) ||
        !plain_number(PyTuple_GET_ITEM(bounds.ptr(), 1), &options.bounds.high) ||
        !(options.bounds.low <= options.bounds.high))
      return py::none();
  }
  py::array y;
  if (out.is_none()) {
    y = py::array(like.dtype(), std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
  } else {
    if (!same(out)) return py::none();
    y = py::reinterpret_borrow<py::array>(out);
    if (!y.writeable()) return py::none();
    const auto* from = static_cast<const char*>(y.data());
    for (const py::object* input : {&x, &center, &grad}) {
      if (input->is_none()) continue;
      const auto* other = static_cast<const char*>(py::reinterpret_borrow<py::array>(*input).data());
      if (from != other && from < other + y.nbytes() && other < from + y.nbytes()) return py::none();
    }
  }
  const auto view = [&](const py::object& a) {
    return a.is_none() ? Array{} : args::view(py::reinterpret_borrow<py::array>(a), dtype);
  };
  const Array in = view(x), middle = view(center), direction = view(grad), result = args::view(y, dtype);
  {
    py::gil_scoped_release release;
    if (projects)
      npkernels::pgd_step(in, middle, direction, along, around, options, result, nullptr);
    else
      npkernels::steepest_step(in, direction, along, options, result, nullptr);
  }
  return y;
}

py::array momentum(const py::array& velocity, const py::array& grad, double decay, const py::object& mask,
                   const py::object& out) {
  const char* function = "momentum";
  const Array v = args::floating(function, "velocity", velocity);
  const Array g = args::floating_like(function, "grad", grad, "velocity", velocity);
  const MaskArgument allowed(function, mask, velocity);
  py::array y = args::output(function, out, velocity, {velocity, grad});
  args::check_separate(function, out, {mask});
  const Array result = args::view(y, v.dtype);
  {
    py::gil_scoped_release release;
    npkernels::momentum(v, g, decay, allowed.mask, result);
  }
  return y;
}

py::array random_in_ball(const py::array& center, double radius, const py::object& radius_array, int norm,
                         uint64_t key, double low, double high, const py::object& low_array,
                         const py::object& high_array, const py::object& out) {
  const char* function = "random_in_ball";
  const Array c = args::floating(function, "center", center);
  const DType compute = npkernels::compute_dtype(c.dtype);
  const AmountArgument around(function, "eps", radius, radius_array, center, compute);
  const BoundsArgument box(function, low, high, low_array, high_array, center, compute);
  py::array y = args::output(function, out, center, {center});
  args::check_separate(function, out, {radius_array, low_array, high_array});
  const Array result = args::view(y, c.dtype);
  bool outside;
  {
    py::gil_scoped_release release;
    outside = box.bounds.limited() && npkernels::outside(c, box.bounds);
    if (!outside)
      npkernels::random_in_ball(c, around.amount, static_cast<npkernels::Norm>(norm), box.bounds, key,
                                result);
  }
  if (outside)
    args::value_error(
        "random_in_ball: center lies outside the bounds somewhere, or is NaN; expected low <= center <= "
        "high");
  return y;
}

}  // namespace

void bind_perturb(py::module_& m) {
  using py::arg;
  m.def("perturb_step", &step, arg("function"), arg("x"), arg("center"), arg("grad"), arg("length"),
        arg("length_array"), arg("radius"), arg("radius_array"), arg("norm"), arg("low"), arg("high"),
        arg("low_array"), arg("high_array"), arg("targeted"), arg("mask"), arg("want_nans"), arg("out"));
  m.def("step_quick", &step_quick, arg("x"), arg("center"), arg("grad"), arg("length"), arg("radius"),
        arg("bounds"), arg("targeted"), arg("out"));
  m.def("momentum", &momentum, arg("velocity"), arg("grad"), arg("decay"), arg("mask"), arg("out"));
  m.def("random_in_ball", &random_in_ball, arg("center"), arg("radius"), arg("radius_array"), arg("norm"),
        arg("key"), arg("low"), arg("high"), arg("low_array"), arg("high_array"), arg("out"));
}
