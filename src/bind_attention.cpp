#include "arguments.h"
#include "npkernels/attention.h"

namespace {

using args::Array;
using npkernels::DType;

// Shapes, dtypes and contiguity of q, k, v were checked in Python, where their names and meanings are at
// hand; what is checked here again is only what would lead outside their memory.
void check_4d(const char* function, const char* name, const py::array& a) {
  if (a.ndim() != 4)
    args::value_error(std::string(function) + ": " + name + " has shape " + args::shape_text(a) +
                      "; expected 4 axes");
}

py::tuple attention(const py::array& q, const py::array& k, const py::array& v, const py::object& mask,
                    const py::object& bias, bool causal, double scale, const py::object& offset,
                    bool want_lse, const py::object& out) {
  const char* function = "attention";
  check_4d(function, "q", q);
  check_4d(function, "k", k);
  check_4d(function, "v", v);
  const Array queries = args::floating(function, "q", q);
  const Array keys = args::floating_like(function, "k", k, "q", q, false);
  const Array values = args::floating_like(function, "v", v, "q", q, false);
  const int64_t B = q.shape(0), Hq = q.shape(1), S = q.shape(2), Hkv = k.shape(1), K = k.shape(2);
  if (queries.dtype != DType::float32 && queries.dtype != DType::float64)
    args::type_error("attention: q has dtype " + args::dtype_text(q) + "; expected float32 or float64");
  if (k.shape(0) != B || v.shape(0) != B || v.shape(1) != Hkv || v.shape(2) != K ||
      k.shape(3) != q.shape(3) || (Hkv ? Hq % Hkv : Hq) != 0)
    args::value_error("attention: shapes q " + args::shape_text(q) + ", k " + args::shape_text(k) + ", v " +
                      args::shape_text(v) + " do not fit together");
  const auto adjacent = [](const py::array& a) {
    return a.size() == 0 || a.shape(3) <= 1 || a.strides(3) == a.itemsize();
  };
  if (!adjacent(q) || !adjacent(k) || !adjacent(v))
    args::value_error("attention: the last axis of q, k and v must be contiguous");

  npkernels::AttentionOptions options{scale, causal, nullptr, nullptr, nullptr};
  args::Broadcast mask_view, bias_view;
  const std::vector<int64_t> scores{B, Hq, S, K};
  if (!mask.is_none()) {
    mask_view =
        args::broadcast(function, "mask", mask.cast<py::array>(), DType::boolean, scores, "(B, Hq, S, K) =");
    options.mask = &mask_view.array;
  }
  if (!bias.is_none()) {
    const auto b = bias.cast<py::array>();
    args::floating_like(function, "bias", b, "q", q, false);
    bias_view = args::broadcast(function, "bias", b, queries.dtype, scores, "(B, Hq, S, K) =");
    options.bias = &bias_view.array;
  }
  if (!offset.is_none()) {
    const auto o = offset.cast<py::array>();
    if (o.ndim() != 1 || o.shape(0) != B || args::dtype_of(function, "q_offset", o) != DType::int64 ||
        !(o.flags() & py::array::c_style))
      args::value_error("attention: q_offset has shape " + args::shape_text(o) +
                        "; expected one integer per batch");
    options.offset = static_cast<const int64_t*>(o.data());
  }

  args::check_separate(function, out, {mask, bias, offset});
  py::array result = py::reinterpret_borrow<py::array>(out);
  const Array target = args::view(result, queries.dtype);
  py::object lse = py::none();
  void* to_lse = nullptr;
  if (want_lse) {
    py::array values_of_lse(args::numpy_dtype(queries.dtype), std::vector<py::ssize_t>{B, Hq, S});
    to_lse = values_of_lse.mutable_data();
    lse = values_of_lse;
  }
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention(queries, keys, values, options, target, to_lse);
  }
  if (!done) throw std::bad_alloc();
  return py::make_tuple(result, lse);
}

// The memory that attention writes to: `out` after its checks, or new memory ordered as q is.
py::array attention_output(const py::array& q, const py::array& k, const py::array& v,
                           const py::object& out) {
  std::vector<py::ssize_t> shape{q.shape(0), q.shape(1), q.shape(2), v.shape(3)};
  if (!out.is_none()) {
    py::array result = args::output_shaped("attention", out, q.dtype(), shape, {q, k, v});
    if (result.shape(3) > 1 && result.strides(3) != result.itemsize())
      args::value_error("attention: the last axis of out must be contiguous");
    return result;
  }
  if (q.flags() & py::array::c_style) return py::array(q.dtype(), shape);
  // Axes from the widest stride of q to the narrowest; the last stays last.
  int order[3] = {0, 1, 2};
  std::stable_sort(order, order + 3,
                   [&](int a, int b) { return std::abs(q.strides(a)) > std::abs(q.strides(b)); });
  std::vector<py::ssize_t> strides(4);
  strides[3] = q.itemsize();
  py::ssize_t step = q.itemsize() * std::max<py::ssize_t>(1, shape[3]);
  for (int i = 2; i >= 0; --i) {
    strides[order[i]] = step;
    step *= std::max<py::ssize_t>(1, shape[order[i]]);
  }
  return py::array(q.dtype(), shape, strides);
}

py::tuple merge_attention(const py::list& outs, const py::list& lses, const py::object& out) {
  const char* function = "merge_attention";
  const py::array first = outs[0].cast<py::array>();
  const Array lead = args::floating(function, "outs[0]", first);
  std::vector<py::array> parts;
  std::vector<Array> arrays;
  std::vector<const void*> norms;
  const int axis = static_cast<int>(first.ndim()) - 1;
  for (size_t i = 0; i < outs.size(); ++i) {
    parts.push_back(outs[i].cast<py::array>());
    const std::string name = "outs[" + std::to_string(i) + "]", lse_name = "lses[" + std::to_string(i) + "]";
    arrays.push_back(args::floating_like(function, name.c_str(), parts.back(), "outs[0]", first));
    norms.push_back(args::row_values(function, lse_name.c_str(), lses[i].cast<py::array>(), first, axis,
                                     npkernels::compute_dtype(lead.dtype)));
  }
  py::array result = args::output(function, out, first, {});
  for (const py::array& part : parts) args::check_in_place(function, result, part);
  for (const auto& norm : lses)
    args::check_separate(function, out, {py::reinterpret_borrow<py::object>(norm)});
  if (result.shape(axis) > 1 && result.size() > 0 && result.strides(axis) != result.itemsize())
    args::value_error("merge_attention: the last axis of out must be contiguous");
  const Array target = args::view(result, lead.dtype);
  py::array lse = args::per_row(first, axis, npkernels::compute_dtype(lead.dtype));
  void* to_lse = lse.mutable_data();
  {
    py::gil_scoped_release release;
    npkernels::merge_attention(static_cast<int>(parts.size()), arrays.data(), norms.data(), target, to_lse);
  }
  return py::make_tuple(result, lse);
}

// cos and sin are views of x's shape (but for the last axis) with broadcast axes of stride 0, made in Python.
py::array rotary(const py::array& x, const py::array& cos, const py::array& sin, bool interleaved,
                 bool inverse, const py::object& out) {
  const char* function = inverse ? "rotary_embedding_vjp" : "rotary_embedding";
  const Array in = args::floating(function, "x", x);
  const DType dtype = npkernels::compute_dtype(in.dtype);
  const auto check = [&](const char* name, const py::array& a) {
    bool fits = a.ndim() == x.ndim() && args::dtype_of(function, name, a) == dtype;
    for (py::ssize_t i = 0; fits && i + 1 < x.ndim(); ++i) fits = a.shape(i) == x.shape(i);
    const py::ssize_t last = x.ndim() - 1;
    fits = fits && (a.size() == 0 || a.shape(last) <= 1 || a.strides(last) == a.itemsize()) &&
           2 * a.shape(last) <= x.shape(last);
    if (!fits)
      args::value_error(std::string(function) + ": " + name + " has shape " + args::shape_text(a) +
                        " for x of shape " + args::shape_text(x));
  };
  check("cos", cos);
  check("sin", sin);
  py::array y = args::output(function, out, x, {x});
  args::check_separate(function, out, {cos, sin});
  const py::ssize_t last = x.ndim() - 1;
  if (x.size() > 0 && x.shape(last) > 1 &&
      (x.strides(last) != x.itemsize() || y.strides(last) != y.itemsize()))
    args::value_error(std::string(function) + ": the last axis of the input and of out must be contiguous");
  const Array c = args::view(cos, dtype), s = args::view(sin, dtype), target = args::view(y, in.dtype);
  {
    py::gil_scoped_release release;
    npkernels::rotary_embedding(in, c, s, 2 * cos.shape(last), interleaved, inverse, target);
  }
  return y;
}

}  // namespace

void bind_attention(py::module_& m) {
  using py::arg;
  m.def("attention", &attention, arg("q"), arg("k"), arg("v"), arg("mask"), arg("bias"), arg("causal"),
        arg("scale"), arg("offset"), arg("want_lse"), arg("out"));
  m.def("attention_output", &attention_output, arg("q"), arg("k"), arg("v"), arg("out"));
  m.def("merge_attention", &merge_attention, arg("outs"), arg("lses"), arg("out"));
  m.def("rotary", &rotary, arg("x"), arg("cos"), arg("sin"), arg("interleaved"), arg("inverse"), arg("out"));
}
