#include "arguments.h"
#include "npkernels/grpo.h"

namespace {

using npkernels::DType;

// Arrays come contiguous, of the dtype of the first, and `out` checked: the Python layer sees to that.
const void* data_of(const py::object& a) {
  return a.is_none() ? nullptr : py::reinterpret_borrow<py::array>(a).data();
}
void* out_of(const py::array& a) { return py::array(a).mutable_data(); }

void scan(const py::array& rewards, const py::object& values, int64_t count, int64_t length,
          const py::object& ends, const py::object& mask, const py::object& dones,
          const py::array_t<double>& gamma, const py::object& lam, const py::array_t<double>& last,
          const py::object& advantages, const py::array& returns) {
  const DType dtype = args::dtype_of("gae", "rewards", rewards);
  const npkernels::Sequences sequences{count, length, static_cast<const int64_t*>(data_of(ends))};
  const auto* kept = static_cast<const uint8_t*>(data_of(mask));
  const auto* ended = static_cast<const uint8_t*>(data_of(dones));
  const auto* lams = static_cast<const double*>(data_of(lam));
  const void *r = rewards.data(), *v = data_of(values);
  const double *g = gamma.data(), *behind = last.data();
  void *R = out_of(returns), *A = v ? out_of(py::reinterpret_borrow<py::array>(advantages)) : nullptr;
  py::gil_scoped_release release;
  if (v)
    npkernels::gae(dtype, r, v, sequences, kept, ended, g, lams, behind, A, R);
  else
    npkernels::discounted_returns(dtype, r, sequences, kept, g, behind, R);
}

// log_probs (batch, beams, V), scores (batch, beams).
py::tuple beam_step(const py::array& log_probs, const py::array& scores, int64_t width) {
  const DType dtype = args::dtype_of("beam_step", "log_probs", log_probs);
  const int64_t batch = log_probs.shape(0), beams = log_probs.shape(1), vocabulary = log_probs.shape(2);
  py::array best(log_probs.dtype(), std::vector<py::ssize_t>{batch, width});
  py::array_t<int64_t> beam({batch, width}), token({batch, width});
  const void *p = log_probs.data(), *s = scores.data();
  void* b = best.mutable_data();
  int64_t *from = beam.mutable_data(), *to = token.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::beam_step(dtype, p, s, batch, beams, vocabulary, width, b, from, to);
  }
  return py::make_tuple(best, beam, token);
}

// logits (rows, V) with adjacent entries, u (rows,).
py::array sample(const py::array& logits, double temperature, int64_t top_k, double top_p, double min_p,
                 const py::array_t<double, py::array::c_style>& u) {
  const npkernels::Array in = args::view(logits, args::dtype_of("sample", "logits", logits));
  py::array_t<int64_t> ids(logits.shape(0));
  int64_t* out = ids.mutable_data();
  const double* numbers = u.data();
  {
    py::gil_scoped_release release;
    npkernels::sample(in, {temperature, top_k, top_p, min_p}, numbers, out);
  }
  return std::move(ids);
}

}  // namespace

void bind_returns(py::module_& m) {
  using py::arg;
  m.def("scan", &scan, arg("rewards"), arg("values"), arg("count"), arg("length"), arg("ends"), arg("mask"),
        arg("dones"), arg("gamma"), arg("lam"), arg("last"), arg("advantages"), arg("returns"));
  m.def("beam_step", &beam_step, arg("log_probs"), arg("scores"), arg("width"));
  m.def("sample", &sample, arg("logits"), arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"),
        arg("u"));
}
