#include "arguments.h"
#include "npkernels/grpo.h"

namespace {

using args::Array;
using npkernels::DType;

// Rewards (B,), contiguous and of float32 or float64: the Python layer sees to that.
npkernels::Rewards rewards_of(const char* function, const py::array& r) {
  const DType dtype = args::dtype_of(function, "rewards", r);
  if (r.ndim() != 1 || !(r.flags() & py::array::c_style) ||
      (dtype != DType::float32 && dtype != DType::float64))
    args::value_error(std::string(function) + ": rewards has shape " + args::shape_text(r) + " and dtype " +
                      args::dtype_text(r) + "; expected a contiguous (B,) of float32 or float64");
  return {r.data(), dtype};
}

// groups: the size of consecutive groups, or the number of each sample's group out of n.
npkernels::Groups groups_of(const char* function, const py::array& r, const py::object& groups, int64_t n) {
  const int64_t samples = r.size();
  if (!py::isinstance<py::array>(groups)) {
    const auto size = groups.cast<int64_t>();
    if (size < 1 || samples % size != 0)
      args::value_error(std::string(function) + ": groups is " + std::to_string(size) +
                        "; expected a size >= 1 that divides the " + std::to_string(samples) + " rewards");
    return {samples, samples / size, size, nullptr};
  }
  const auto index = py::reinterpret_borrow<py::array>(groups);
  if (index.ndim() != 1 || index.size() != samples ||
      args::dtype_of(function, "groups", index) != DType::int64 || !(index.flags() & py::array::c_style))
    args::value_error(std::string(function) + ": groups has shape " + args::shape_text(index) +
                      "; expected one number per reward, (" + std::to_string(samples) + ",)");
  return {samples, n, 0, static_cast<const int64_t*>(index.data())};
}

// An infinity among the rewards shows in the extremes of its group.
void check_finite(const char* function, const double* stats, int64_t n) {
  for (int64_t g = 0; g < n; ++g)
    if (stats[5 * g] > 0 &&
        !(stats[5 * g + 4] - stats[5 * g + 4] == 0 && stats[5 * g + 3] - stats[5 * g + 3] == 0))
      args::value_error(
          std::string(function) +
          ": rewards holds an infinity; expected finite numbers, or NaN where a reward does not apply");
}

void check_done(bool done) {
  if (!done) throw std::bad_alloc();
}

py::tuple group_advantages(const py::array& rewards, const py::object& groups, int64_t n, int baseline,
                           int scale, int ddof, double eps, bool lone_reward, bool over_mean) {
  const char* function = "group_advantages";
  const npkernels::Rewards r = rewards_of(function, rewards);
  const npkernels::Groups g = groups_of(function, rewards, groups, n);
  const npkernels::AdvantageOptions options{static_cast<npkernels::Baseline>(baseline),
                                            static_cast<npkernels::Scale>(scale),
                                            ddof,
                                            eps,
                                            lone_reward,
                                            over_mean};
  py::array a(args::numpy_dtype(r.dtype), rewards.size());
  py::array_t<double> stats({g.n, int64_t{5}});
  double* table = stats.mutable_data();
  void* out = a.mutable_data();
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::group_advantages(r, g, options, out, table);
  }
  check_done(done);
  check_finite(function, table, g.n);
  return py::make_tuple(a, stats);
}

// The common call (the defaults) without a look at anything else; None if the rewards are not a contiguous
// (B,) array of float32 or float64.
py::object group_advantages_plain(const py::object& rewards, const py::int_& size) {
  if (!py::isinstance<py::array>(rewards)) return py::none();
  const auto r = py::reinterpret_borrow<py::array>(rewards);
  const int num = r.dtype().num();
  constexpr int kGood = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (r.ndim() != 1 || (num != 11 && num != 12) || (r.flags() & kGood) != kGood ||
      !r.dtype().attr("isnative").cast<bool>())
    return py::none();
  return group_advantages(r, size, 0, 0, 0, 1, 1e-4, false, false);
}

py::array group_stats(const py::array& rewards, const py::object& groups, int64_t n) {
  const char* function = "group_stats";
  const npkernels::Rewards r = rewards_of(function, rewards);
  const npkernels::Groups g = groups_of(function, rewards, groups, n);
  py::array_t<double> state({g.n, int64_t{5}});
  double* table = state.mutable_data();
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::group_stats(r, g, table);
  }
  check_done(done);
  return std::move(state);
}

// Ids (B,) of int64, contiguous -> the number of each, and the ids in the order of their first appearance.
py::tuple number_groups(const py::array_t<int64_t, py::array::c_style>& ids) {
  const int64_t B = ids.size();
  py::array_t<int64_t> index(B), keys(B);
  const int64_t* in = ids.data();
  int64_t *out = index.mutable_data(), *found = keys.mutable_data(), n;
  {
    py::gil_scoped_release release;
    n = npkernels::number_groups(in, B, out, found);
  }
  check_done(n >= 0);
  return py::make_tuple(index, py::array_t<int64_t>(n, keys.data()));  // without the room of the others
}

}  // namespace

void bind_advantages(py::module_& m) {
  using py::arg;
  m.def("group_advantages_plain", &group_advantages_plain, arg("rewards"), arg("size"));
  m.def("group_advantages", &group_advantages, arg("rewards"), arg("groups"), arg("n"), arg("baseline"),
        arg("scale"), arg("ddof"), arg("eps"), arg("lone_reward"), arg("over_mean"));
  m.def("group_stats", &group_stats, arg("rewards"), arg("groups"), arg("n"));
  m.def("number_groups", &number_groups, arg("ids"));
}
