// From Python objects to npkernels::Array: the checks that every function shares, with their messages.
// A message reads  "function: argument ... what came ... what was expected".
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "bind.h"
#include "npkernels/array.h"

namespace args {

using npkernels::Array;
using npkernels::DType;

[[noreturn]] void value_error(const std::string& message);
[[noreturn]] void type_error(const std::string& message);

std::string shape_text(const py::array& a);
std::string dtype_text(const py::array& a);

// The dtype of a, or TypeError if the kernels have none for it.
DType dtype_of(const char* function, const char* name, const py::array& a);

// a as the kernels see it. a must outlive the result.
Array view(const py::array& a, DType dtype);
// a, of a floating dtype; of the dtype (and shape) of `like` if that is given.
Array floating(const char* function, const char* name, const py::array& a);
Array floating_like(const char* function, const char* name, const py::array& a, const char* like_name,
                    const py::array& like, bool same_shape = true);

// A boolean or floating array broadcast to `shape`; owns the strides that its Array points to.
struct Broadcast {
  Array array{};
  std::vector<int64_t> shape, strides;
};
Broadcast broadcast(const char* function, const char* name, const py::array& a, DType dtype,
                    const std::vector<int64_t>& shape, const char* target);

// 0 <= axis < ndim, or ValueError.
int axis_of(const char* function, const py::array& x, int axis);
double temperature_of(const char* function, double temperature);

// `out` if it was given and can be written, else a new array with the layout of `like`.
// `inputs` may be the very same memory as out, entry by entry, and must not overlap it otherwise.
py::array output(const char* function, const py::object& out, const py::array& like,
                 std::initializer_list<py::array> inputs);
// As above for a shape and dtype of its own; no overlap with the inputs at all.
py::array output_shaped(const char* function, const py::object& out, const py::dtype& dtype,
                        const std::vector<py::ssize_t>& shape, std::initializer_list<py::array> inputs);

// For calls that need no look from Python: whether this is an ndarray of float32, float64 or float16 in
// native byte order, contiguous and aligned, and which.
bool is_plain(const py::handle& object, DType* dtype);

// ValueError if out shares memory with an input other than entry by entry.
void check_in_place(const char* function, const py::array& out, const py::array& input);
// ValueError if two outputs share memory.
void check_apart(const char* function, const py::array& a, const py::array& b);

// Raise if `out` (unless it is None) overlaps an input that it may not replace; inputs may be None.
void check_separate(const char* function, const py::object& out, std::initializer_list<py::object> inputs);

// A new array in C order: the shape of x without `axis`, of the compute dtype (or int64).
py::array per_row(const py::array& x, int axis, DType dtype);
// A contiguous array of one entry per row of x, of the given dtype; ValueError if its shape is another.
const void* row_values(const char* function, const char* name, const py::array& a, const py::array& x,
                       int axis, DType dtype);
// The same for ids, and IndexError if one is not in [0, n) (nor equal to `ignored`, where that is given).
const int64_t* ids_of(const char* function, const char* name, const py::array& ids, const py::array& x,
                      int axis, const int64_t* ignored = nullptr);

py::dtype numpy_dtype(DType dtype);

}  // namespace args
