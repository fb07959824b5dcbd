// From the arguments of npkernels.h to npkernels::Array: the checks that the C functions share. A check that
// fails throws a Refusal, which `guarded` turns into the status at the boundary.
#pragma once

#include <string.h>

#include <exception>
#include <initializer_list>
#include <optional>

#include "npkernels/array.h"
#include "npkernels/npkernels.h"

namespace npkernels::c_api {

struct Refusal {
  npk_status status;
  const char* argument;
};

inline void require(bool condition, npk_status status, const char* argument) {
  if (!condition) throw Refusal{status, argument};
}

// What npk_bad_argument returns on this thread.
extern thread_local const char* bad_argument;

template <class F>
npk_status guarded(F f) {
  bad_argument = "";
  try {
    f();
    return NPK_OK;
  } catch (const Refusal& refusal) {
    bad_argument = refusal.argument;
    return refusal.status;
  } catch (const std::exception&) {  // bad_alloc, or length_error of a size that no memory holds
    return NPK_NO_MEMORY;
  }
}

// An npk_array that can be read: pointers, shape, dtype and alignment are sound, strides are in hand.
struct View {
  const char* name;
  char* data;
  int ndim;
  DType dtype;
  int64_t size;  // entries
  const int64_t* shape;
  int64_t strides[kMaxDims];

  View(const npk_array* array, const char* argument);
  operator Array() const { return {data, shape, strides, ndim, dtype}; }
};

// NULL = not given.
inline std::optional<View> optional_view(const npk_array* array, const char* argument) {
  return array ? std::optional<View>(std::in_place, array, argument) : std::nullopt;
}
inline const View* pointer(const std::optional<View>& view) { return view ? &*view : nullptr; }

// A view with the shape of another array: stride 0 where it is broadcast.
struct Broadcast {
  int64_t shape[kMaxDims], strides[kMaxDims];
  Array array;

  Broadcast(const View& view, int ndim, const int64_t* target);
  Broadcast(const Broadcast&) = delete;
  Broadcast& operator=(const Broadcast&) = delete;
};

// Each refuses what does not fit, by the name of the array that it is called with first.
void check_floating(const View& a);
void check_dtype(const View& a, DType dtype);
void check_shape(const View& a, const View& b);
void check_last_axis_contiguous(const View& a);
// In C order.
void check_contiguous(const View& a);
// One entry for each row of x along `axis`, contiguous.
void check_per_row(const View& a, const View& x, int axis, DType dtype);
// Each in [0, n), or equal to `ignored` where that is given.
void check_ids(const View& ids, int64_t n, const int64_t* ignored = nullptr);
// Every entry has memory of its own, and none of the others' (null = none): `same` may be the very same
// memory, though.
void check_output(const View& out, std::initializer_list<const View*> same,
                  std::initializer_list<const View*> others);
void check_temperature(double temperature);
// 0 <= axis < x.ndim
int checked_axis(const View& x, int axis);

// The caller's struct of options as this version knows it: fields past the caller's end are zero. Refused if
// the caller sets fields that only a later version knows. first_size: of the struct in the version that
// brought it.
template <class Options>
Options known_options(const Options* options, size_t first_size, const char* argument) {
  require(options != nullptr, NPK_NULL_POINTER, argument);
  require(options->size >= first_size && options->size <= size_t(1) << 16, NPK_BAD_VALUE, argument);
  for (size_t i = sizeof(Options); i < options->size; ++i)
    require(reinterpret_cast<const char*>(options)[i] == 0, NPK_BAD_VALUE, argument);
  Options known{};
  memcpy(&known, options, options->size < sizeof(Options) ? options->size : sizeof(Options));
  return known;
}

}  // namespace npkernels::c_api
