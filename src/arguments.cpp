#include "arguments.h"

#include <cmath>

namespace args {

void value_error(const std::string& message) { throw py::value_error(message); }
void type_error(const std::string& message) { throw py::type_error(message); }

std::string shape_text(const py::array& a) { return py::str(a.attr("shape")).cast<std::string>(); }
std::string dtype_text(const py::array& a) { return py::str(a.dtype()).cast<std::string>(); }

namespace {

std::string text(const std::vector<int64_t>& shape) {
  py::tuple t(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) t[i] = py::int_(shape[i]);
  return py::str(t).cast<std::string>();
}

bool bfloat16(const py::dtype& dtype) {
  return dtype.num() >= 256 && dtype.itemsize() == 2 && dtype.attr("name").cast<std::string>() == "bfloat16";
}

bool same_shape(const py::array& a, const py::array& b) {
  if (a.ndim() != b.ndim()) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    if (a.shape(i) != b.shape(i)) return false;
  return true;
}

bool same_memory(const py::array& a, const py::array& b) {
  if (a.data() != b.data() || !same_shape(a, b)) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    if (a.strides(i) != b.strides(i) && a.shape(i) > 1) return false;
  return true;
}

// The bytes between the lowest and the highest address of a.
void bounds(const py::array& a, const char** low, const char** high) {
  *low = *high = static_cast<const char*>(a.data());
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    const py::ssize_t reach = (a.shape(i) - 1) * a.strides(i);
    (reach < 0 ? *low : *high) += reach;
  }
  *high += a.itemsize();
}

bool overlap(const py::array& a, const py::array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const char *a_low, *a_high, *b_low, *b_high;
  bounds(a, &a_low, &a_high);
  bounds(b, &b_low, &b_high);
  if (a_high <= b_low || b_high <= a_low) return false;
  return py::module_::import("numpy").attr("shares_memory")(a, b).cast<bool>();
}

void check_out(const char* function, const py::array& out) {
  if (!out.writeable()) value_error(std::string(function) + ": out is read-only; pass a writeable array");
  if (!(out.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))  // streaming stores need it
    value_error(std::string(function) + ": out is not aligned to its dtype; pass an ordinary array");
  const Array a = view(out, DType::boolean);  // the dtype is checked elsewhere
  if (!npkernels::entries_apart(a.ndim, a.shape, a.strides, out.itemsize()))
    value_error(std::string(function) + ": out has strides " +
                py::str(out.attr("strides")).cast<std::string>() + " for shape " + shape_text(out) +
                ", so its entries may share memory; pass an ordinary array");
}

py::array as_out(const char* function, const py::object& out) {
  if (!py::isinstance<py::array>(out))
    type_error(std::string(function) + ": out is a " +
               py::str(py::type::of(out).attr("__name__")).cast<std::string>() + "; expected a NumPy array");
  return py::reinterpret_borrow<py::array>(out);
}

[[noreturn]] void shape_error(const char* function, const py::array& out, const std::string& expected) {
  value_error(std::string(function) + ": out has shape " + shape_text(out) + "; expected " + expected);
}

void check_dtype(const char* function, const py::array& out, const py::dtype& dtype) {
  if (!out.dtype().is(dtype) && !out.dtype().equal(dtype))
    type_error(std::string(function) + ": out has dtype " + dtype_text(out) + "; expected " +
               py::str(dtype).cast<std::string>());
}

}  // namespace

DType dtype_of(const char* function, const char* name, const py::array& a) {
  const py::dtype dtype = a.dtype();
  switch (dtype.num()) {
    case 11:
      return DType::float32;
    case 12:
      return DType::float64;
    case 23:
      return DType::float16;
    case 0:
      return DType::boolean;
  }
  if (dtype.kind() == 'i' && dtype.itemsize() == 8) return DType::int64;
  if (bfloat16(dtype)) return DType::bfloat16;
  type_error(std::string(function) + ": " + name + " has dtype " + dtype_text(a) +
             "; expected float32, float64, float16 or bfloat16");
}

Array view(const py::array& a, DType dtype) {
  static_assert(sizeof(py::ssize_t) == sizeof(int64_t), "shapes and strides are handed on as they are");
  return {const_cast<void*>(a.data()), reinterpret_cast<const int64_t*>(a.shape()),
          reinterpret_cast<const int64_t*>(a.strides()), static_cast<int32_t>(a.ndim()), dtype};
}

Array floating(const char* function, const char* name, const py::array& a) {
  const DType dtype = dtype_of(function, name, a);
  if (dtype == DType::boolean || dtype == DType::int64)
    type_error(std::string(function) + ": " + name + " has dtype " + dtype_text(a) +
               "; expected float32, float64, float16 or bfloat16");
  return view(a, dtype);
}

Array floating_like(const char* function, const char* name, const py::array& a, const char* like_name,
                    const py::array& like, bool shape_too) {
  const Array array = floating(function, name, a);
  if (array.dtype != dtype_of(function, like_name, like))
    type_error(std::string(function) + ": " + name + " has dtype " + dtype_text(a) + ", " + like_name +
               " has " + dtype_text(like) + "; expected the same dtype");
  if (shape_too && !same_shape(a, like))
    value_error(std::string(function) + ": " + name + " has shape " + shape_text(a) + ", " + like_name +
                " has " + shape_text(like) + "; expected the same shape");
  return array;
}

Broadcast broadcast(const char* function, const char* name, const py::array& a, DType dtype,
                    const std::vector<int64_t>& shape, const char* target) {
  Broadcast result;
  const int ndim = static_cast<int>(shape.size()), extra = ndim - static_cast<int>(a.ndim());
  bool fits = extra >= 0;
  result.shape = shape;
  result.strides.assign(shape.size(), 0);
  for (int i = 0; fits && i < a.ndim(); ++i) {
    if (a.shape(i) == shape[i + extra])
      result.strides[i + extra] = a.shape(i) == 1 ? 0 : a.strides(i);
    else
      fits = a.shape(i) == 1;
  }
  if (!fits)
    value_error(std::string(function) + ": " + name + " has shape " + shape_text(a) +
                ", which does not broadcast to " + target + " " + text(shape));
  result.array = {const_cast<void*>(a.data()), result.shape.data(), result.strides.data(), ndim, dtype};
  return result;
}

int axis_of(const char* function, const py::array& x, int axis) {
  const int ndim = static_cast<int>(x.ndim());
  if (axis < -ndim || axis >= ndim)
    value_error(std::string(function) + ": axis " + std::to_string(axis) +
                " is out of bounds for an array with " + std::to_string(ndim) + " axes");
  return axis < 0 ? axis + ndim : axis;
}

double temperature_of(const char* function, double temperature) {
  if (!(temperature > 0) || std::isinf(temperature))
    value_error(std::string(function) + ": temperature is " +
                py::repr(py::float_(temperature)).cast<std::string>() +
                "; expected a positive finite number");
  return temperature;
}

py::array output(const char* function, const py::object& out, const py::array& like,
                 std::initializer_list<py::array> inputs) {
  if (out.is_none()) {
    if (like.flags() & py::array::c_style)
      return py::array(like.dtype(), std::vector<py::ssize_t>(like.shape(), like.shape() + like.ndim()));
    return py::module_::import("numpy").attr("empty_like")(like);
  }
  py::array result = as_out(function, out);
  if (!same_shape(result, like)) shape_error(function, result, shape_text(like));
  check_dtype(function, result, like.dtype());
  check_out(function, result);
  for (const py::array& input : inputs) check_in_place(function, result, input);
  return result;
}

py::array output_shaped(const char* function, const py::object& out, const py::dtype& dtype,
                        const std::vector<py::ssize_t>& shape, std::initializer_list<py::array> inputs) {
  if (out.is_none()) return py::array(dtype, shape);
  py::array result = as_out(function, out);
  const bool fits = static_cast<size_t>(result.ndim()) == shape.size() &&
                    std::equal(shape.begin(), shape.end(), result.shape());
  if (!fits) shape_error(function, result, text({shape.begin(), shape.end()}));
  check_dtype(function, result, dtype);
  check_out(function, result);
  for (const py::array& input : inputs)
    if (overlap(result, input))
      value_error(std::string(function) + ": out overlaps an input; pass separate memory");
  return result;
}

bool is_plain(const py::handle& object, DType* dtype) {
  if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return false;
  const auto a = py::reinterpret_borrow<py::array>(object);
  const int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((a.flags() & wanted) != wanted || a.dtype().byteorder() != '=') return false;
  switch (a.dtype().num()) {
    case 11:
      *dtype = DType::float32;
      return true;
    case 12:
      *dtype = DType::float64;
      return true;
    case 23:
      *dtype = DType::float16;
      return true;
    default:
      return false;
  }
}

void check_in_place(const char* function, const py::array& out, const py::array& input) {
  if (!same_memory(out, input) && overlap(out, input))
    value_error(
        std::string(function) +
        ": out overlaps an input but is not the same view of it; pass the input itself or separate memory");
}

void check_apart(const char* function, const py::array& a, const py::array& b) {
  if (overlap(a, b))
    value_error(std::string(function) + ": the two arrays of out overlap; pass separate memory");
}

void check_separate(const char* function, const py::object& out, std::initializer_list<py::object> inputs) {
  if (out.is_none()) return;
  const py::array result = as_out(function, out);
  for (const py::object& input : inputs)
    if (!input.is_none() && overlap(result, input.cast<py::array>()))
      value_error(std::string(function) + ": out overlaps an input; pass separate memory");
}

py::dtype numpy_dtype(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return py::dtype::of<double>();
    case DType::int64:
      return py::dtype::of<int64_t>();
    case DType::boolean:
      return py::dtype::of<bool>();
    default:
      return py::dtype::of<float>();
  }
}

py::array per_row(const py::array& x, int axis, DType dtype) {
  std::vector<py::ssize_t> shape;
  for (py::ssize_t i = 0; i < x.ndim(); ++i)
    if (i != axis) shape.push_back(x.shape(i));
  return py::array(numpy_dtype(dtype), shape);
}

const void* row_values(const char* function, const char* name, const py::array& a, const py::array& x,
                       int axis, DType dtype) {
  bool fits = a.ndim() == x.ndim() - 1;
  std::vector<int64_t> expected;
  for (py::ssize_t i = 0; i < x.ndim(); ++i)
    if (i != axis) expected.push_back(x.shape(i));
  for (py::ssize_t i = 0; fits && i < a.ndim(); ++i) fits = a.shape(i) == expected[static_cast<size_t>(i)];
  if (!fits)
    value_error(std::string(function) + ": " + name + " has shape " + shape_text(a) +
                "; expected one entry per row, " + text(expected));
  if (dtype_of(function, name, a) != dtype || !(a.flags() & py::array::c_style))
    type_error(std::string(function) + ": " + name + " must be a C-contiguous array of " +
               py::str(numpy_dtype(dtype)).cast<std::string>());
  return a.data();
}

const int64_t* ids_of(const char* function, const char* name, const py::array& ids, const py::array& x,
                      int axis, const int64_t* ignored) {
  const int64_t* values = static_cast<const int64_t*>(row_values(function, name, ids, x, axis, DType::int64));
  const int64_t n = x.shape(axis);
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    if (values[i] >= 0 && values[i] < n) continue;
    if (ignored && values[i] == *ignored) continue;
    throw py::index_error(std::string(function) + ": " + name + " holds " + std::to_string(values[i]) +
                          " at position " + std::to_string(i) + "; expected 0 <= id < " + std::to_string(n) +
                          (ignored ? " or ignore_index " + std::to_string(*ignored) : ""));
  }
  return values;
}

}  // namespace args
