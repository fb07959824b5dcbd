#include <cmath>
#include <cstring>
#include <memory>

#include "arguments.h"
#include "npkernels/attention.h"

namespace {

using args::Array;
using npkernels::DType;

// Shapes, dtypes and contiguity of all arguments were checked in Python, where their names and meanings are
// at hand; what is checked here again is only what would lead outside their memory.
[[noreturn]] void misfit(const char* function, const char* name, const py::array& a) {
  args::value_error(std::string(function) + ": " + name + " has shape " + args::shape_text(a) +
                    " and dtype " + args::dtype_text(a) + ", which does not fit the other arguments");
}

bool adjacent(const py::array& a) {
  return a.size() == 0 || a.shape(a.ndim() - 1) <= 1 || a.strides(a.ndim() - 1) == a.itemsize();
}

// q, k or v, or an array of the same shape as one of them.
Array heads(const char* function, const char* name, const py::array& a) {
  if (a.ndim() != 4 || !adjacent(a)) misfit(function, name, a);
  return args::floating(function, name, a);
}

struct Shape {
  int64_t B, Hq, Hkv, S, K, D, Dv;
};

// q (B, Hq, S, D), k (B, Hkv, K, D), v (B, Hkv, K, Dv); `packed`: B is 1 and S and K are totals.
Shape shape_of(const char* function, const py::array& q, const py::array& k, const py::array& v) {
  const Shape s{q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3), v.shape(3)};
  if (k.shape(0) != s.B || k.shape(3) != s.D || (s.Hkv ? s.Hq % s.Hkv : s.Hq) != 0) misfit(function, "k", k);
  if (v.shape(0) != s.B || v.shape(1) != s.Hkv || v.shape(2) != s.K) misfit(function, "v", v);
  return s;
}

// Memory for lse (B, Hq, S) of the compute dtype and where it lies; None and null where it is not wanted.
py::object new_lse(bool wanted, DType dtype, int64_t B, int64_t Hq, int64_t S, void** data) {
  *data = nullptr;
  if (!wanted) return py::none();
  py::array lse(args::numpy_dtype(npkernels::compute_dtype(dtype)), std::vector<py::ssize_t>{B, Hq, S});
  *data = lse.mutable_data();
  return lse;
}

// A contiguous vector of n entries of a dtype, or null for None.
const void* vector(const char* function, const char* name, const py::handle& object, int64_t n, DType dtype) {
  if (object.is_none()) return nullptr;
  const auto a = object.cast<py::array>();
  if (a.ndim() != 1 || a.shape(0) != n || args::dtype_of(function, name, a) != dtype || !adjacent(a))
    misfit(function, name, a);
  return a.data();
}

// The options that all functions share, from the tuple that _attention.py makes of them; owns the strides of
// what is broadcast. The tuple keeps the arrays alive.
struct Options {
  args::Broadcast mask, bias, slopes;
  npkernels::AttentionOptions options;

  Options(const char* function, const py::tuple& given, const Shape& s, int64_t sequences,
          const py::array& q) {
    const DType dtype = args::dtype_of(function, "q", q), compute = npkernels::compute_dtype(dtype);
    if (given.size() != 13) args::value_error(std::string(function) + ": options hold 13 values");
    const std::vector<int64_t> scores{s.B, s.Hq, s.S, s.K};
    if (!given[0].is_none()) {
      const auto a = given[0].cast<py::array>();
      if (args::dtype_of(function, "mask", a) != DType::boolean) misfit(function, "mask", a);
      mask = args::broadcast(function, "mask", a, DType::boolean, scores, "(B, Hq, S, K) =");
      options.mask = &mask.array;
    }
    if (!given[1].is_none()) {
      const auto a = given[1].cast<py::array>();
      args::floating_like(function, "bias", a, "q", q, false);
      bias = args::broadcast(function, "bias", a, dtype, scores, "(B, Hq, S, K) =");
      options.bias = &bias.array;
    }
    if (!given[2].is_none()) {
      const auto a = given[2].cast<py::array>();
      if (args::dtype_of(function, "alibi_slopes", a) != compute) misfit(function, "alibi_slopes", a);
      slopes = args::broadcast(function, "alibi_slopes", a, compute, {sequences, s.Hq}, "(B, Hq) =");
      options.slopes = &slopes.array;
    }
    options.sinks = vector(function, "sinks", given[3], s.Hq, compute);
    options.causal = given[4].cast<bool>();
    options.window_left = given[5].cast<int64_t>();
    options.window_right = given[6].cast<int64_t>();
    options.softcap = given[7].cast<double>();
    options.scale = given[8].cast<double>();
    options.offset =
        static_cast<const int64_t*>(vector(function, "q_offset", given[9], sequences, DType::int64));
    options.kv_lengths =
        static_cast<const int64_t*>(vector(function, "kv_lengths", given[10], s.B, DType::int64));
    options.dropout_p = given[11].cast<double>();
    options.dropout_seed = given[12].cast<uint64_t>();
    if (options.kv_lengths)
      for (int64_t b = 0; b < s.B; ++b)
        if (options.kv_lengths[b] < 0 || options.kv_lengths[b] > s.K)
          args::value_error(std::string(function) + ": kv_lengths is out of range");
  }
};

// cu (sequences + 1,): from 0 to total, never falling.
const int64_t* cumulative(const char* function, const char* name, const py::object& object, int64_t total,
                          int64_t* sequences) {
  const auto a = object.cast<py::array>();
  const int64_t n = a.ndim() == 1 ? a.shape(0) : 0;
  if (n < 1) misfit(function, name, a);
  const auto* cu = static_cast<const int64_t*>(vector(function, name, object, n, DType::int64));
  bool fits = cu[0] == 0 && cu[n - 1] == total;
  for (int64_t i = 1; i < n; ++i) fits = fits && cu[i] >= cu[i - 1];
  if (!fits) misfit(function, name, a);
  *sequences = n - 1;
  return cu;
}

// What a call's q, k, v, options and packed sequences come to.
struct Call {
  Array q, k, v;
  Shape shape;
  int64_t sequences;
  const int64_t *cu_q = nullptr, *cu_k = nullptr;
  std::unique_ptr<Options> given;

  Call(const char* function, const py::array& q_array, const py::array& k_array, const py::array& v_array,
       const py::tuple& options, const py::object& cu_seqlens_q, const py::object& cu_seqlens_k)
      : q(heads(function, "q", q_array)),
        k(heads(function, "k", k_array)),
        v(heads(function, "v", v_array)),
        shape(shape_of(function, q_array, k_array, v_array)),
        sequences(shape.B) {
    args::floating_like(function, "k", k_array, "q", q_array, false);
    args::floating_like(function, "v", v_array, "q", q_array, false);
    if (!cu_seqlens_q.is_none()) {
      if (shape.B != 1) misfit(function, "q", q_array);
      int64_t of_k = 0;
      cu_q = cumulative(function, "cu_seqlens_q", cu_seqlens_q, shape.S, &sequences);
      cu_k = cumulative(function, "cu_seqlens_k", cu_seqlens_k, shape.K, &of_k);
      if (of_k != sequences) args::value_error(std::string(function) + ": cu_seqlens_k has another length");
    }
    given = std::make_unique<Options>(function, options, shape, sequences, q_array);
    given->options.cu_seqlens_q = cu_q;
    given->options.cu_seqlens_k = cu_k;
    given->options.sequences = sequences;
  }
  const npkernels::AttentionOptions& options() const { return given->options; }
};

void check_apart_from_options(const char* function, const py::object& out, const py::tuple& options) {
  for (const size_t i : {0, 1, 2, 3, 9, 10})
    args::check_separate(function, out, {py::reinterpret_borrow<py::object>(options[i])});
}

py::tuple attention(const py::array& q, const py::array& k, const py::array& v, const py::tuple& options,
                    bool want_lse, const py::object& cu_seqlens_q, const py::object& cu_seqlens_k,
                    const py::array& out) {
  const char* function = cu_seqlens_q.is_none() ? "attention" : "attention_varlen";
  const Call call(function, q, k, v, options, cu_seqlens_q, cu_seqlens_k);
  check_apart_from_options(function, out, options);
  args::check_separate(function, out, {cu_seqlens_q, cu_seqlens_k});
  const Array target = heads(function, "out", out);
  void* to_lse;
  const py::object lse = new_lse(want_lse, call.q.dtype, call.shape.B, call.shape.Hq, call.shape.S, &to_lse);
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention(call.q, call.k, call.v, call.options(), target, to_lse);
  }
  if (!done) throw std::bad_alloc();
  return py::make_tuple(out, lse);
}

// The ordinary small call, with no other options than these: for arrays and values that need no look from
// Python, else None.
py::object attention_quick(const py::object& q_object, const py::object& k_object, const py::object& v_object,
                           const py::object& causal, bool want_lse, const py::object& scale) {
  DType dtype, of_k, of_v;
  if (!args::is_plain(q_object, &dtype) || !args::is_plain(k_object, &of_k) ||
      !args::is_plain(v_object, &of_v) || of_k != dtype || of_v != dtype)
    return py::none();
  const auto q = py::reinterpret_borrow<py::array>(q_object), k = py::reinterpret_borrow<py::array>(k_object),
             v = py::reinterpret_borrow<py::array>(v_object);
  if (q.ndim() != 4 || k.ndim() != 4 || v.ndim() != 4) return py::none();
  const py::ssize_t B = q.shape(0), Hq = q.shape(1), S = q.shape(2), D = q.shape(3), Hkv = k.shape(1),
                    K = k.shape(2);
  if (k.shape(0) != B || v.shape(0) != B || Hkv == 0 || Hq % Hkv != 0 || v.shape(1) != Hkv ||
      k.shape(3) != D || v.shape(2) != K || D == 0)
    return py::none();
  npkernels::AttentionOptions options;
  std::vector<int64_t> offset;
  if (causal.ptr() != Py_False) {
    const bool text = PyUnicode_CheckExact(causal.ptr());
    const bool from_end = text && PyUnicode_CompareWithASCIIString(causal.ptr(), "bottom_right") == 0;
    const bool from_start = text ? PyUnicode_CompareWithASCIIString(causal.ptr(), "top_left") == 0
                                 : causal.ptr() == Py_True && S == K;
    if (!from_end && !from_start) return py::none();
    options.causal = true;
    if (from_end) offset.assign(static_cast<size_t>(B), K - S), options.offset = offset.data();
  }
  options.scale = 1 / std::sqrt(static_cast<double>(D));
  if (!scale.is_none()) {
    if (!PyFloat_CheckExact(scale.ptr()) || !std::isfinite(PyFloat_AS_DOUBLE(scale.ptr()))) return py::none();
    options.scale = PyFloat_AS_DOUBLE(scale.ptr());
  }
  py::array out(q.dtype(), std::vector<py::ssize_t>{B, Hq, S, v.shape(3)});
  void* to_lse;
  const py::object lse = new_lse(want_lse, dtype, B, Hq, S, &to_lse);
  const Array query = args::view(q, dtype), key = args::view(k, dtype), value = args::view(v, dtype),
              target = args::view(out, dtype);
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention(query, key, value, options, target, to_lse);
  }
  if (!done) throw std::bad_alloc();
  if (!want_lse) return out;
  return py::make_tuple(out, lse);
}

// Attention over a cache: k and v (B, Hkv, capacity, D), or pages (pages, Hkv, page size, D) that a table
// orders; of any dtype, int8 with a scale per row.
py::object attention_cached(const py::array& q, const py::array& k, const py::array& v,
                            const py::object& k_scale, const py::object& v_scale,
                            const py::object& block_table, const py::tuple& options, bool want_lse,
                            const py::array& out) {
  const char* function = "KVCache.attend";
  const Array query = heads(function, "q", q);
  const auto rows = [&](const char* name, const py::array& a) {
    if (a.ndim() != 4 || !adjacent(a)) misfit(function, name, a);
    const bool int8 = a.dtype().kind() == 'i' && a.itemsize() == 1;
    return int8 ? args::view(a, DType::int8) : args::floating(function, name, a);
  };
  const Array key = rows("k", k), value = rows("v", v);
  const bool paged = !block_table.is_none();
  const int64_t B = q.shape(0), capacity = k.shape(2);
  for (int i = 0; i < 3; ++i)
    if (v.shape(i) != k.shape(i)) misfit(function, "v", v);
  if (key.dtype != value.dtype || k.shape(3) != q.shape(3) || (!paged && k.shape(0) != B) ||
      (k.shape(1) ? q.shape(1) % k.shape(1) : q.shape(1)) != 0 ||
      (query.dtype == DType::float64) != (key.dtype == DType::float64))
    misfit(function, "k", k);
  Shape shape{B, q.shape(1), k.shape(1), q.shape(2), capacity, q.shape(3), v.shape(3)};
  const int64_t* table = nullptr;
  int64_t pages = 0;
  if (paged) {
    const auto t = block_table.cast<py::array>();
    if (t.ndim() != 2 || t.shape(0) != B || args::dtype_of(function, "block_table", t) != DType::int64 ||
        !(t.flags() & py::array::c_style))
      misfit(function, "block_table", t);
    table = static_cast<const int64_t*>(t.data());
    pages = t.shape(1);
    shape.K = pages * capacity;
  }
  Options given(function, options, shape, B, q);
  const int64_t* lengths = given.options.kv_lengths;
  if (!lengths) args::value_error("KVCache.attend: lengths are missing");
  for (int64_t b = 0; paged && b < B; ++b)
    for (int64_t j = 0; j * capacity < lengths[b]; ++j)
      if (table[b * pages + j] < 0 || table[b * pages + j] >= k.shape(0))
        args::value_error("KVCache.attend: block_table names a page that does not exist");
  const auto scale = [&](const char* name, const py::object& object) -> const float* {
    if (object.is_none()) return nullptr;
    const auto a = object.cast<py::array>();
    bool fits = a.ndim() == 3 && args::dtype_of(function, name, a) == DType::float32 &&
                (a.flags() & py::array::c_style);
    for (int i = 0; fits && i < 3; ++i) fits = a.shape(i) == k.shape(i);
    if (!fits) misfit(function, name, a);
    return static_cast<const float*>(a.data());
  };
  given.options.k_scale = scale("k_scale", k_scale);
  given.options.v_scale = scale("v_scale", v_scale);
  given.options.block_table = table;
  given.options.pages_per_entry = pages;
  const Array target = heads(function, "out", out);
  if (out.shape(0) != B || out.shape(1) != shape.Hq || out.shape(2) != shape.S || out.shape(3) != shape.Dv ||
      target.dtype != query.dtype)
    misfit(function, "out", out);
  void* to_lse;
  const py::object lse = new_lse(want_lse, query.dtype, B, shape.Hq, shape.S, &to_lse);
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention(query, key, value, given.options, target, to_lse);
  }
  if (!done) throw std::bad_alloc();
  return lse;
}

// Arrays of results that Python made, or the caller gave: checked against what they overlap in Python.
Array result_heads(const char* function, const char* name, const py::array& a, const py::array& like) {
  for (int i = 0; i < 4; ++i)
    if (a.ndim() != 4 || a.shape(i) != like.shape(i)) misfit(function, name, a);
  if (!a.writeable()) args::value_error(std::string(function) + ": " + name + " is read-only");
  const Array array = heads(function, name, a);
  args::floating_like(function, name, a, "q", like, false);
  return array;
}

const void* per_query(const char* function, const char* name, const py::object& object, const Call& call) {
  if (object.is_none()) return nullptr;
  const auto a = object.cast<py::array>();
  const bool fits = a.ndim() == 3 && a.shape(0) == call.shape.B && a.shape(1) == call.shape.Hq &&
                    a.shape(2) == call.shape.S && (a.flags() & py::array::c_style) &&
                    args::dtype_of(function, name, a) == npkernels::compute_dtype(call.q.dtype);
  if (!fits) misfit(function, name, a);
  return a.data();
}

py::tuple attention_vjp(const py::array& dout, const py::array& q, const py::array& k, const py::array& v,
                        const py::array& o, const py::array& lse, const py::object& dlse,
                        const py::tuple& options, const py::object& cu_seqlens_q,
                        const py::object& cu_seqlens_k, const py::array& dq, const py::array& dk,
                        const py::array& dv, bool want_dbias, bool want_dsinks) {
  const char* function = cu_seqlens_q.is_none() ? "attention_vjp" : "attention_varlen_vjp";
  const Call call(function, q, k, v, options, cu_seqlens_q, cu_seqlens_k);
  const Array cotangent = heads(function, "dout", dout), result = heads(function, "o", o);
  const py::array* const like_out[] = {&dout, &o};
  for (const py::array* a : like_out) {
    args::floating_like(function, "dout", *a, "q", q, false);
    if (a->shape(0) != call.shape.B || a->shape(1) != call.shape.Hq || a->shape(2) != call.shape.S ||
        a->shape(3) != call.shape.Dv)
      misfit(function, "dout", *a);
  }
  const void *norm = per_query(function, "lse", lse, call), *d_norm = per_query(function, "dlse", dlse, call);
  const Array to_q = result_heads(function, "dq", dq, q), to_k = result_heads(function, "dk", dk, k),
              to_v = result_heads(function, "dv", dv, v);
  npkernels::AttentionVjpOut out{&to_q, &to_k, &to_v, nullptr, nullptr};
  const py::dtype compute = args::numpy_dtype(npkernels::compute_dtype(call.q.dtype));
  py::object dbias = py::none(), dsinks = py::none();
  args::Broadcast bias_view;
  if (want_dbias) {
    const auto bias = options[1].cast<py::array>();
    py::array values(py::dtype::of<double>(),
                     std::vector<py::ssize_t>(bias.shape(), bias.shape() + bias.ndim()));
    if (values.size() > 0) std::memset(values.mutable_data(), 0, static_cast<size_t>(values.nbytes()));
    bias_view = args::broadcast(function, "bias", values, DType::float64,
                                {call.shape.B, call.shape.Hq, call.shape.S, call.shape.K}, "(B, Hq, S, K) =");
    out.dbias = &bias_view.array;
    dbias = values;
  }
  if (want_dsinks) {
    py::array values(compute, std::vector<py::ssize_t>{call.shape.Hq});
    out.dsinks = values.mutable_data();
    dsinks = values;
  }
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention_vjp(cotangent, call.q, call.k, call.v, result, norm, d_norm, call.options(),
                                    out);
  }
  if (!done) throw std::bad_alloc();
  return py::make_tuple(dbias, dsinks);
}

py::object attention_jvp(const py::array& q, const py::array& k, const py::array& v, const py::array& dq,
                         const py::array& dk, const py::array& dv, const py::tuple& options, bool want_lse,
                         const py::array& out, const py::array& dout) {
  const char* function = "attention_jvp";
  const Call call(function, q, k, v, options, py::none(), py::none());
  const auto tangent = [&](const char* name, const py::array& a, const py::array& like) {
    args::floating_like(function, name, a, name + 1, like);
    return heads(function, name, a);
  };
  const Array tq = tangent("dq", dq, q), tk = tangent("dk", dk, k), tv = tangent("dv", dv, v);
  const Array to = heads(function, "out", out), to_dout = result_heads(function, "dout", dout, out);
  if (out.shape(0) != call.shape.B || out.shape(1) != call.shape.Hq || out.shape(2) != call.shape.S ||
      out.shape(3) != call.shape.Dv)
    misfit(function, "out", out);
  void* to_lse;
  const py::object lse = new_lse(want_lse, call.q.dtype, call.shape.B, call.shape.Hq, call.shape.S, &to_lse);
  bool done;
  {
    py::gil_scoped_release release;
    done = npkernels::attention_jvp(call.q, call.k, call.v, tq, tk, tv, call.options(), to, to_dout, to_lse);
  }
  if (!done) throw std::bad_alloc();
  return lse;
}

// The memory that attention writes to: `out` after its checks, or new memory ordered as q is.
py::array attention_output(const char* function, const py::array& q, const py::array& k, const py::array& v,
                           const py::object& out) {
  std::vector<py::ssize_t> shape{q.shape(0), q.shape(1), q.shape(2), v.shape(3)};
  if (!out.is_none()) {
    py::array result = args::output_shaped(function, out, q.dtype(), shape, {q, k, v});
    if (result.size() > 0 && result.shape(3) > 1 && result.strides(3) != result.itemsize())
      args::value_error(std::string(function) + ": the last axis of out must be contiguous");
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
  m.def("attention", &attention, arg("q"), arg("k"), arg("v"), arg("options"), arg("want_lse"),
        arg("cu_seqlens_q"), arg("cu_seqlens_k"), arg("out"));
  m.def("attention_quick", &attention_quick, arg("q"), arg("k"), arg("v"), arg("causal"), arg("want_lse"),
        arg("scale"));
  m.def("attention_output", &attention_output, arg("function"), arg("q"), arg("k"), arg("v"), arg("out"));
  m.def("attention_cached", &attention_cached, arg("q"), arg("k"), arg("v"), arg("k_scale"), arg("v_scale"),
        arg("block_table"), arg("options"), arg("want_lse"), arg("out"));
  m.def("attention_vjp", &attention_vjp, arg("dout"), arg("q"), arg("k"), arg("v"), arg("o"), arg("lse"),
        arg("dlse"), arg("options"), arg("cu_seqlens_q"), arg("cu_seqlens_k"), arg("dq"), arg("dk"),
        arg("dv"), arg("want_dbias"), arg("want_dsinks"));
  m.def("attention_jvp", &attention_jvp, arg("q"), arg("k"), arg("v"), arg("dq"), arg("dk"), arg("dv"),
        arg("options"), arg("want_lse"), arg("out"), arg("dout"));
  m.def("merge_attention", &merge_attention, arg("outs"), arg("lses"), arg("out"));
  m.def("rotary", &rotary, arg("x"), arg("cos"), arg("sin"), arg("interleaved"), arg("inverse"), arg("out"));
}
