#include "arguments.h"
#include "npkernels/grpo.h"

namespace {

using args::Array;
using npkernels::DType;

// Arrays come contiguous and of one dtype: the Python layer sees to that.
const void* data_of(const py::object& a) {
  return a.is_none() ? nullptr : py::reinterpret_borrow<py::array>(a).data();
}
const uint8_t* bytes_of(const py::object& a) { return static_cast<const uint8_t*>(data_of(a)); }

npkernels::Sequences sequences_of(int64_t count, int64_t length, const py::object& ends) {
  return {count, length, static_cast<const int64_t*>(data_of(ends))};
}

// The numbers in the order in which _policy.py has them.
npkernels::PolicyOptions options_of(const py::tuple& t) {
  npkernels::PolicyOptions o;
  size_t i = 0;
  const auto next = [&] { return t[i++].cast<double>(); };
  const auto word = [&] { return t[i++].cast<int>(); };
  o.surrogate = static_cast<npkernels::Surrogate>(word());
  o.sequence_level = word() != 0;
  o.aggregate = static_cast<npkernels::Aggregate>(word());
  o.max_length = next();
  o.total_tokens = next();
  o.clip_low = next();
  o.clip_high = next();
  o.delta = next();
  o.dual_clip = next();
  o.tau_positive = next();
  o.tau_negative = next();
  o.kl = static_cast<npkernels::Kl>(word());
  o.beta = next();
  o.kl_inner = next();
  o.kl_outer = next();
  o.importance_of_sequence = word() != 0;
  o.truncates = word() != 0;
  o.importance_cap = next();
  return o;
}

py::tuple policy_loss(const py::array& logp, const py::array& old_logp, const py::array& advantages,
                      const py::object& mask, const py::object& ref_logp, const py::object& sampler_logp,
                      const py::object& entropy, int64_t count, int64_t length, const py::object& ends,
                      const py::tuple& options, const py::object& out) {
  const char* function = "policy_loss";
  const DType dtype = args::dtype_of(function, "logp", logp);
  const npkernels::PolicyTokens tokens{dtype,
                                       logp.data(),
                                       old_logp.data(),
                                       data_of(ref_logp),
                                       data_of(sampler_logp),
                                       data_of(entropy),
                                       bytes_of(mask),
                                       advantages.data(),
                                       advantages.ndim() == logp.ndim() && advantages.size() == logp.size() &&
                                           (ends.is_none() || advantages.size() != count)};
  const npkernels::Sequences sequences = sequences_of(count, length, ends);
  const npkernels::PolicyOptions o = options_of(options);
  void* grad = out.is_none() ? nullptr : py::reinterpret_borrow<py::array>(out).mutable_data();
  npkernels::PolicyTotals totals{};
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::policy_loss(tokens, sequences, o, &totals, grad);
  }
  if (!done) throw std::bad_alloc();
  return py::make_tuple(totals.loss, totals.tokens, totals.sequences, totals.ratio, totals.clip_low,
                        totals.clip_high, totals.old_kl, totals.kl, totals.importance, totals.entropy);
}

// ids are checked, and negative where the mask is false. Gives the sums (rows, 9) and dlogits or None.
py::tuple token_policy_loss(const py::array& logits, const py::array& ids, const py::array& old_logp,
                            const py::array& advantages, const py::object& ref_logp,
                            const py::object& correction, const py::array& weights, double temperature,
                            bool want_entropy, const py::tuple& options, bool want_grad,
                            const py::object& out) {
  const char* function = "token_policy_loss";
  const Array in = args::floating(function, "logits", logits);
  const DType dtype = npkernels::compute_dtype(in.dtype);
  const int axis = args::axis_of(function, logits, -1);
  const auto values = [&](const char* name, const py::object& a, DType type) -> const void* {
    return a.is_none()
               ? nullptr
               : args::row_values(function, name, py::reinterpret_borrow<py::array>(a), logits, axis, type);
  };
  npkernels::TokenPolicy tokens{};
  tokens.ids = static_cast<const int64_t*>(values("ids", ids, DType::int64));
  tokens.old_logp = values("old_logp", old_logp, dtype);
  tokens.ref_logp = values("ref_logp", ref_logp, dtype);
  tokens.advantages = values("advantages", advantages, dtype);
  tokens.correction = values("sampler_logp", correction, dtype);
  tokens.weights = static_cast<const double*>(values("mask", weights, DType::float64));
  tokens.temperature = args::temperature_of(function, temperature);
  tokens.want_entropy = want_entropy;
  const npkernels::PolicyOptions o = options_of(options);
  py::object grad = py::none();
  Array dlogits{};
  if (want_grad) {
    grad = args::output(function, out, logits, {logits});
    args::check_separate(function, out, {ids, old_logp, ref_logp, advantages, correction, weights});
    dlogits = args::view(grad.cast<py::array>(), in.dtype);
  }
  py::array_t<double> sums({static_cast<int64_t>(ids.size()), int64_t{npkernels::kPolicySums}});
  double* table = sums.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::token_policy_loss(in, tokens, o, table, want_grad ? &dlogits : nullptr);
  }
  return py::make_tuple(sums, grad);
}

}  // namespace

void bind_policy(py::module_& m) {
  using py::arg;
  m.def("policy_loss", &policy_loss, arg("logp"), arg("old_logp"), arg("advantages"), arg("mask"),
        arg("ref_logp"), arg("sampler_logp"), arg("entropy"), arg("count"), arg("length"), arg("ends"),
        arg("options"), arg("out"));
  m.def("token_policy_loss", &token_policy_loss, arg("logits"), arg("ids"), arg("old_logp"),
        arg("advantages"), arg("ref_logp"), arg("correction"), arg("weights"), arg("temperature"),
        arg("want_entropy"), arg("options"), arg("want_grad"), arg("out"));
}
