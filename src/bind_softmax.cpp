#include "arguments.h"
#include "npkernels/softmax.h"

namespace {

using args::Array;
using npkernels::SoftmaxOptions;

// The options that all functions of the family share; owns the mask's strides.
struct Options {
  args::Broadcast mask;
  SoftmaxOptions options;

  Options(const char* function, const py::array& x, int axis, double temperature,
          const py::object& mask_object) {
    options.axis = args::axis_of(function, x, axis);
    options.temperature = args::temperature_of(function, temperature);
    options.mask = nullptr;
    if (mask_object.is_none()) return;
    const auto mask_array = mask_object.cast<py::array>();
    mask = args::broadcast(function, "mask", mask_array, npkernels::DType::boolean,
                           {x.shape(), x.shape() + x.ndim()}, "x's shape");
    options.mask = &mask.array;
  }
};

using Map = void (*)(const Array&, const SoftmaxOptions&, const Array&);
using Vjp = void (*)(const Array&, const Array&, const SoftmaxOptions&, const Array&);
using Jvp = void (*)(const Array&, const Array&, const SoftmaxOptions&, const Array&, const Array&);

template <Map kernel>
py::array map(const char* function, const py::array& x, int axis, double temperature, const py::object& mask,
              const py::object& out) {
  const Array in = args::floating(function, "x", x);
  const Options o(function, x, axis, temperature, mask);
  py::array y = args::output(function, out, x, {x});
  args::check_separate(function, out, {mask});
  const Array result = args::view(y, in.dtype);
  {
    py::gil_scoped_release release;
    kernel(in, o.options, result);
  }
  return y;
}

template <Vjp kernel>
py::array vjp(const char* function, const py::array& dy, const py::array& y, int axis, double temperature,
              const py::object& mask, const py::object& out) {
  const Array in = args::floating(function, "y", y);
  const Array cotangent = args::floating_like(function, "dy", dy, "y", y);
  const Options o(function, y, axis, temperature, mask);
  py::array dx = args::output(function, out, dy, {dy, y});
  args::check_separate(function, out, {mask});
  const Array result = args::view(dx, in.dtype);
  {
    py::gil_scoped_release release;
    kernel(cotangent, in, o.options, result);
  }
  return dx;
}

template <Jvp kernel>
py::tuple jvp(const char* function, const py::array& x, const py::array& dx, int axis, double temperature,
              const py::object& mask, const py::object& out_y, const py::object& out_dy) {
  const Array in = args::floating(function, "x", x);
  const Array tangent = args::floating_like(function, "dx", dx, "x", x);
  const Options o(function, x, axis, temperature, mask);
  py::array y = args::output(function, out_y, x, {x, dx});
  py::array dy = args::output(function, out_dy, x, {x, dx});
  args::check_apart(function, y, dy);
  args::check_separate(function, out_y, {mask});
  args::check_separate(function, out_dy, {mask});
  const Array result = args::view(y, in.dtype), result_tangent = args::view(dy, in.dtype);
  {
    py::gil_scoped_release release;
    kernel(in, tangent, o.options, result, result_tangent);
  }
  return py::make_tuple(y, dy);
}

// logsumexp or entropy, one value per row.
py::array reduce(const char* function, const char* name, bool entropy, const py::array& x, int axis,
                 double temperature, const py::object& mask) {
  const Array in = args::floating(function, name, x);
  const Options o(function, x, axis, temperature, mask);
  py::array result = args::per_row(x, o.options.axis, npkernels::compute_dtype(in.dtype));
  void* data = result.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::logsumexp(in, o.options, entropy ? nullptr : data, entropy ? data : nullptr);
  }
  return result;
}

py::array logsumexp_vjp(const py::array& d, const py::array& x, const py::array& lse, int axis,
                        double temperature, const py::object& mask, const py::object& out) {
  const char* function = "logsumexp_vjp";
  const Array in = args::floating(function, "x", x);
  const Options o(function, x, axis, temperature, mask);
  const npkernels::DType dtype = npkernels::compute_dtype(in.dtype);
  const void* cotangent = args::row_values(function, "d", d, x, o.options.axis, dtype);
  const void* norm = args::row_values(function, "lse", lse, x, o.options.axis, dtype);
  py::array dx = args::output(function, out, x, {x});
  args::check_separate(function, out, {d, lse, mask});
  const Array result = args::view(dx, in.dtype);
  {
    py::gil_scoped_release release;
    npkernels::logsumexp_vjp(cotangent, in, norm, o.options, result);
  }
  return dx;
}

py::tuple logsumexp_jvp(const py::array& x, const py::array& dx, int axis, double temperature,
                        const py::object& mask) {
  const char* function = "logsumexp_jvp";
  const Array in = args::floating(function, "x", x);
  const Array tangent = args::floating_like(function, "dx", dx, "x", x);
  const Options o(function, x, axis, temperature, mask);
  py::array lse = args::per_row(x, o.options.axis, npkernels::compute_dtype(in.dtype));
  py::array dlse = args::per_row(x, o.options.axis, npkernels::compute_dtype(in.dtype));
  void *to_lse = lse.mutable_data(), *to_dlse = dlse.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::logsumexp_jvp(in, tangent, o.options, to_lse, to_dlse);
  }
  return py::make_tuple(lse, dlse);
}

}  // namespace

void bind_softmax(py::module_& m) {
  using py::arg;
  const py::none none;
  const auto bind = [&](auto name, auto f, auto... names) { m.def(name, f, names...); };

  bind(
      "softmax",
      [](const py::array& x, int axis, double t, const py::object& mask, const py::object& out) {
        return map<npkernels::softmax>("softmax", x, axis, t, mask, out);
      },
      arg("x"), arg("axis"), arg("temperature"), arg("mask"), arg("out"));
  bind(
      "log_softmax",
      [](const py::array& x, int axis, double t, const py::object& mask, const py::object& out) {
        return map<npkernels::log_softmax>("log_softmax", x, axis, t, mask, out);
      },
      arg("x"), arg("axis"), arg("temperature"), arg("mask"), arg("out"));
  bind(
      "softmax_vjp",
      [](const py::array& dy, const py::array& y, int axis, double t, const py::object& mask,
         const py::object& out) {
        return vjp<npkernels::softmax_vjp>("softmax_vjp", dy, y, axis, t, mask, out);
      },
      arg("dy"), arg("y"), arg("axis"), arg("temperature"), arg("mask"), arg("out"));
  bind(
      "log_softmax_vjp",
      [](const py::array& dy, const py::array& y, int axis, double t, const py::object& mask,
         const py::object& out) {
        return vjp<npkernels::log_softmax_vjp>("log_softmax_vjp", dy, y, axis, t, mask, out);
      },
      arg("dy"), arg("y"), arg("axis"), arg("temperature"), arg("mask"), arg("out"));
  bind(
      "softmax_jvp",
      [](const py::array& x, const py::array& dx, int axis, double t, const py::object& mask,
         const py::object& out_y, const py::object& out_dy) {
        return jvp<npkernels::softmax_jvp>("softmax_jvp", x, dx, axis, t, mask, out_y, out_dy);
      },
      arg("x"), arg("dx"), arg("axis"), arg("temperature"), arg("mask"), arg("out_y"), arg("out_dy"));
  bind(
      "log_softmax_jvp",
      [](const py::array& x, const py::array& dx, int axis, double t, const py::object& mask,
         const py::object& out_y, const py::object& out_dy) {
        return jvp<npkernels::log_softmax_jvp>("log_softmax_jvp", x, dx, axis, t, mask, out_y, out_dy);
      },
      arg("x"), arg("dx"), arg("axis"), arg("temperature"), arg("mask"), arg("out_y"), arg("out_dy"));
  bind(
      "logsumexp",
      [](const py::array& x, int axis, double t, const py::object& mask) {
        return reduce("logsumexp", "x", false, x, axis, t, mask);
      },
      arg("x"), arg("axis"), arg("temperature"), arg("mask"));
  bind(
      "entropy",
      [](const py::array& logits, int axis, double t, const py::object& mask) {
        return reduce("entropy", "logits", true, logits, axis, t, mask);
      },
      arg("logits"), arg("axis"), arg("temperature"), arg("mask"));
  m.def("logsumexp_vjp", &logsumexp_vjp, arg("d"), arg("x"), arg("lse"), arg("axis"), arg("temperature"),
        arg("mask"), arg("out"));
  m.def("logsumexp_jvp", &logsumexp_jvp, arg("x"), arg("dx"), arg("axis"), arg("temperature"), arg("mask"));
}
