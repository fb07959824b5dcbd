#include "c_arguments.h"

#include <math.h>
#include <stdlib.h>

#include <algorithm>

namespace npkernels::c_api {
namespace {

bool c_contiguous(const View& a) {
  int64_t step = item_size(a.dtype);
  for (int i = a.ndim - 1; i >= 0; --i) {
    if (a.shape[i] > 1 && a.strides[i] != step) return a.size == 0;
    step *= a.shape[i];
  }
  return true;
}

bool same_shape(const View& a, const View& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_memory(const View& a, const View& b) {
  if (a.data != b.data || a.dtype != b.dtype || !same_shape(a, b)) return false;
  for (int i = 0; i < a.ndim; ++i)
    if (a.shape[i] > 1 && a.strides[i] != b.strides[i]) return false;
  return true;
}

// Whether two arrays share a byte. With every step taken as positive, from the lowest byte of a upwards and
// from the highest of b downwards, that is: can `distance` be written as sum of n[i] * step[i] with 0 <= n[i]
// <= most[i]? The search takes the largest steps first, where at most a few n[i] leave a rest that smaller
// ones can reach.
class Overlap {
 public:
  Overlap(const View& a, const View& b) {
    const char *a_low = a.data, *b_high = b.data;
    add(a, [&](int64_t reach) { a_low += reach < 0 ? reach : 0; });
    add(b, [&](int64_t reach) { b_high += reach > 0 ? reach : 0; });
    b_high += item_size(b.dtype) - 1;
    terms_[count_++] = {1, item_size(a.dtype) + item_size(b.dtype) - 2, 0};
    std::sort(terms_, terms_ + count_, [](const Term& s, const Term& t) { return s.step > t.step; });
    int64_t reach = 0;
    for (int i = count_ - 1; i >= 0; --i) terms_[i].reach = reach += terms_[i].step * terms_[i].most;
    found_ = search(0, int64_t(reinterpret_cast<intptr_t>(b_high) - reinterpret_cast<intptr_t>(a_low)));
  }
  explicit operator bool() const { return found_; }

 private:
  struct Term {
    int64_t step, most, reach;  // reach: of this and all smaller steps together
  };

  template <class F>
  void add(const View& a, F extend) {
    for (int i = 0; i < a.ndim; ++i) {
      const int64_t step = a.strides[i], most = a.shape[i] - 1;
      if (most == 0 || step == 0) continue;
      extend(step * most);
      terms_[count_++] = {step < 0 ? -step : step, most, 0};
    }
  }

  bool search(int i, int64_t distance) {
    if (distance < 0 || distance > terms_[i].reach) return false;
    if (i == count_ - 1) return true;    // step 1 reaches everything
    if (++visits_ > 10000) return true;  // not decided: better refused than wrong
    const int64_t rest = terms_[i + 1].reach;
    for (int64_t n = std::min(terms_[i].most, distance / terms_[i].step); n >= 0; --n) {
      const int64_t left = distance - n * terms_[i].step;
      if (left > rest) return false;
      if (search(i + 1, left)) return true;
    }
    return false;
  }

  Term terms_[2 * kMaxDims + 1];
  int count_ = 0, visits_ = 0;
  bool found_;
};

}  // namespace

thread_local const char* bad_argument = "";

View::View(const npk_array* array, const char* argument) : name(argument) {
  require(array != nullptr, NPK_NULL_POINTER, name);
  require(array->ndim >= 0 && array->ndim <= kMaxDims, NPK_BAD_SHAPE, name);
  require(array->ndim == 0 || array->shape, NPK_NULL_POINTER, name);
  require(array->dtype >= NPK_FLOAT32 && array->dtype <= NPK_INT64, NPK_BAD_DTYPE, name);
  data = static_cast<char*>(array->data);
  ndim = array->ndim;
  dtype = static_cast<DType>(array->dtype);
  shape = array->shape;

  const int64_t item = item_size(dtype);
  int64_t bytes = item;  // as if no axis were empty
  size = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    require(shape[i] >= 0, NPK_BAD_SHAPE, name);
    strides[i] = array->strides ? array->strides[i] : bytes;
    require(!__builtin_mul_overflow(bytes, std::max<int64_t>(1, shape[i]), &bytes), NPK_BAD_SHAPE, name);
    size *= shape[i];
  }
  if (size == 0) return;
  require(data != nullptr, NPK_NULL_POINTER, name);
  int64_t span = 0, reach;
  bool aligned = reinterpret_cast<intptr_t>(data) % item == 0;
  for (int i = 0; i < ndim; ++i) {
    if (shape[i] == 1) continue;
    aligned = aligned && strides[i] % item == 0;
    require(strides[i] != INT64_MIN && !__builtin_mul_overflow(std::abs(strides[i]), shape[i] - 1, &reach) &&
                !__builtin_add_overflow(span, reach, &span),
            NPK_BAD_STRIDES, name);
  }
  require(aligned, NPK_BAD_STRIDES, name);
}

Broadcast::Broadcast(const View& view, int ndim, const int64_t* target) {
  const int extra = ndim - view.ndim;
  require(extra >= 0, NPK_BAD_SHAPE, view.name);
  for (int i = 0; i < ndim; ++i) {
    const int64_t length = i < extra ? 1 : view.shape[i - extra];
    require(length == target[i] || length == 1, NPK_BAD_SHAPE, view.name);
    shape[i] = target[i];
    strides[i] = length == 1 ? 0 : view.strides[i - extra];
  }
  array = {view.data, shape, strides, ndim, view.dtype};
}

void check_floating(const View& a) { require(a.dtype <= DType::bfloat16, NPK_BAD_DTYPE, a.name); }

void check_dtype(const View& a, DType dtype) { require(a.dtype == dtype, NPK_BAD_DTYPE, a.name); }

void check_shape(const View& a, const View& b) { require(same_shape(a, b), NPK_BAD_SHAPE, a.name); }

void check_last_axis_contiguous(const View& a) {
  const int last = a.ndim - 1;
  require(a.size == 0 || a.shape[last] == 1 || a.strides[last] == item_size(a.dtype), NPK_BAD_STRIDES,
          a.name);
}

void check_contiguous(const View& a) { require(c_contiguous(a), NPK_BAD_STRIDES, a.name); }

void check_per_row(const View& a, const View& x, int axis, DType dtype) {
  check_dtype(a, dtype);
  require(a.ndim == x.ndim - 1 && std::equal(x.shape, x.shape + axis, a.shape) &&
              std::equal(x.shape + axis + 1, x.shape + x.ndim, a.shape + axis),
          NPK_BAD_SHAPE, a.name);
  check_contiguous(a);
}

void check_ids(const View& ids, int64_t n, const int64_t* ignored) {
  const int64_t* values = reinterpret_cast<const int64_t*>(ids.data);
  for (int64_t i = 0; i < ids.size; ++i)
    require((values[i] >= 0 && values[i] < n) || (ignored && values[i] == *ignored), NPK_BAD_INDEX, ids.name);
}

void check_output(const View& out, std::initializer_list<const View*> same,
                  std::initializer_list<const View*> others) {
  if (out.size == 0) return;
  require(entries_apart(out.ndim, out.shape, out.strides, item_size(out.dtype)), NPK_BAD_STRIDES, out.name);
  for (const View* other : same)
    require(other->size == 0 || same_memory(out, *other) || !Overlap(out, *other), NPK_OVERLAP, out.name);
  for (const View* other : others)
    require(!other || other->size == 0 || !Overlap(out, *other), NPK_OVERLAP, out.name);
}

void check_temperature(double temperature) {
  require(temperature > 0 && !isinf(temperature), NPK_BAD_VALUE, "temperature");
}

int checked_axis(const View& x, int axis) {
  require(axis >= -x.ndim && axis < x.ndim, NPK_BAD_AXIS, "axis");
  return axis < 0 ? axis + x.ndim : axis;
}

}  // namespace npkernels::c_api
