#include "arguments.h"
#include "npkernels/softmax.h"

namespace {

using args::Array;
using npkernels::DType;

py::dict token_log_probs(const py::array& logits, const py::array& ids, double temperature,
                         const py::object& mask, bool want_lse, bool want_entropy, bool want_sum_p2,
                         bool want_top1, bool want_rank) {
  const char* function = "token_log_probs";
  const Array in = args::floating(function, "logits", logits);
  npkernels::SoftmaxOptions options{args::axis_of(function, logits, -1),
                                    args::temperature_of(function, temperature), nullptr};
  args::Broadcast mask_view;
  if (!mask.is_none()) {
    mask_view = args::broadcast(function, "mask", mask.cast<py::array>(), DType::boolean,
                                {logits.shape(), logits.shape() + logits.ndim()}, "the shape of logits");
    options.mask = &mask_view.array;
  }
  const int64_t* chosen = args::ids_of(function, "ids", ids, logits, options.axis);

  py::dict result;
  npkernels::TokenStatsOut out{};
  const auto make = [&](bool wanted, const char* name, DType dtype) -> void* {
    if (!wanted) {
      result[name] = py::none();
      return nullptr;
    }
    py::array values = args::per_row(logits, options.axis, dtype);
    result[name] = values;
    return values.mutable_data();
  };
  const DType dtype = npkernels::compute_dtype(in.dtype);
  out.log_prob = make(true, "log_prob", dtype);
  out.entropy = make(want_entropy, "entropy", dtype);
  out.lse = make(want_lse, "lse", dtype);
  out.sum_p2 = make(want_sum_p2, "sum_p2", dtype);
  out.top1 = static_cast<int64_t*>(make(want_top1, "top1", DType::int64));
  out.rank = static_cast<int64_t*>(make(want_rank, "rank", DType::int64));
  {
    py::gil_scoped_release release;
    npkernels::token_log_probs(in, chosen, options, out);
  }
  return result;
}

py::array token_log_probs_vjp(const py::array& dlogp, const py::array& logits, const py::array& ids,
                              const py::array& lse, const py::object& dentropy, const py::object& entropy,
                              double temperature, const py::object& mask, const py::object& out) {
  const char* function = "token_log_probs_vjp";
  const Array in = args::floating(function, "logits", logits);
  npkernels::SoftmaxOptions options{args::axis_of(function, logits, -1),
                                    args::temperature_of(function, temperature), nullptr};
  args::Broadcast mask_view;
  if (!mask.is_none()) {
    mask_view = args::broadcast(function, "mask", mask.cast<py::array>(), DType::boolean,
                                {logits.shape(), logits.shape() + logits.ndim()}, "the shape of logits");
    options.mask = &mask_view.array;
  }
  const DType dtype = npkernels::compute_dtype(in.dtype);
  const auto values = [&](const char* name, const py::array& a) {
    return args::row_values(function, name, a, logits, options.axis, dtype);
  };
  const void* d = values("dlogp", dlogp);
  const int64_t* chosen = args::ids_of(function, "ids", ids, logits, options.axis);
  const void* norm = values("lse", lse);
  const void* d_entropy = dentropy.is_none() ? nullptr : values("dentropy", dentropy.cast<py::array>());
  const void* h = dentropy.is_none() ? nullptr : values("entropy", entropy.cast<py::array>());
  py::array dlogits = args::output(function, out, logits, {logits});
  args::check_separate(function, out, {dlogp, ids, lse, dentropy, entropy, mask});
  const Array result = args::view(dlogits, in.dtype);
  {
    py::gil_scoped_release release;
    npkernels::token_log_probs_vjp(d, in, chosen, norm, d_entropy, h, options, result);
  }
  return dlogits;
}

// Losses per row and, if asked, the gradient of grad_scale * their sum. ids are checked and negative where
// ignored.
py::tuple cross_entropy(const py::array& logits, const py::array& ids, int axis, const py::object& weight,
                        double weight_sum, double label_smoothing, double grad_scale, bool want_grad,
                        const py::object& out) {
  const char* function = "cross_entropy";
  const Array in = args::floating(function, "logits", logits);
  const DType dtype = npkernels::compute_dtype(in.dtype);
  npkernels::CrossEntropyOptions options{args::axis_of(function, logits, axis), label_smoothing, nullptr,
                                         weight_sum, grad_scale};
  const auto* targets = static_cast<const int64_t*>(
      args::row_values(function, "targets", ids, logits, options.axis, DType::int64));
  if (!weight.is_none()) {
    const auto w = weight.cast<py::array>();
    if (w.ndim() != 1 || w.shape(0) != logits.shape(options.axis) ||
        args::dtype_of(function, "weight", w) != dtype || !(w.flags() & py::array::c_style))
      args::value_error("cross_entropy: weight must be a contiguous array of one entry per class");
    options.weight = w.data();
  }
  py::array loss = args::per_row(logits, options.axis, dtype);
  py::object grad = py::none();
  Array dx{};
  if (want_grad) {
    grad = args::output(function, out, logits, {logits});
    args::check_separate(function, out, {ids, weight});
    dx = args::view(grad.cast<py::array>(), in.dtype);
  }
  void* losses = loss.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::cross_entropy(in, targets, options, losses, want_grad ? &dx : nullptr);
  }
  return py::make_tuple(loss, grad);
}

}  // namespace

void bind_tokens(py::module_& m) {
  using py::arg;
  m.def("token_log_probs", &token_log_probs, arg("logits"), arg("ids"), arg("temperature"), arg("mask"),
        arg("want_lse"), arg("want_entropy"), arg("want_sum_p2"), arg("want_top1"), arg("want_rank"));
  m.def("token_log_probs_vjp", &token_log_probs_vjp, arg("dlogp"), arg("logits"), arg("ids"), arg("lse"),
        arg("dentropy"), arg("entropy"), arg("temperature"), arg("mask"), arg("out"));
  m.def("cross_entropy", &cross_entropy, arg("logits"), arg("ids"), arg("axis"), arg("weight"),
        arg("weight_sum"), arg("label_smoothing"), arg("grad_scale"), arg("want_grad"), arg("out"));
}
