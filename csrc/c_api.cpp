// The functions of npkernels.h that are about the library itself; the other c_api_*.cpp hold a family each.
#include <algorithm>

#include "c_arguments.h"
#include "npkernels/isa.h"
#include "npkernels/threads.h"

using namespace npkernels::c_api;

namespace {

constexpr int kMostThreads = 4096;

npk_status set_threads(int n, int* before, int (*set)(int)) {
  return guarded([&] {
    require(n >= 0, NPK_BAD_VALUE, "n");
    const int previous = set(std::min(n, kMostThreads));
    if (before) *before = previous;
  });
}

}  // namespace

extern "C" {

const char* npk_status_text(npk_status status) {
  switch (status) {
    case NPK_OK:
      return "done";
    case NPK_NULL_POINTER:
      return "is NULL";
    case NPK_BAD_SHAPE:
      return "has a shape that does not fit";
    case NPK_BAD_DTYPE:
      return "has a dtype that does not fit";
    case NPK_BAD_STRIDES:
      return "has strides that cannot be served: not contiguous where it must be, not aligned, or an output "
             "with stride 0";
    case NPK_BAD_AXIS:
      return "is out of bounds";
    case NPK_BAD_VALUE:
      return "is out of range";
    case NPK_BAD_INDEX:
      return "holds an index that is out of range";
    case NPK_OVERLAP:
      return "shares memory with another argument";
    case NPK_NO_MEMORY:
      return "no memory for the scratch space";
  }
  return "unknown status";
}

const char* npk_bad_argument(void) { return bad_argument; }

const char* const* npk_compiled_isas(void) { return npkernels::compiled_isas(); }

int npk_isa_supported(const char* name) { return name && npkernels::isa_supported(name); }

const char* npk_isa(void) { return npkernels::isa(); }

npk_status npk_set_isa(const char* name) {
  return guarded([&] {
    require(name != nullptr, NPK_NULL_POINTER, "name");
    require(npkernels::set_isa(name), NPK_BAD_VALUE, "name");
  });
}

int npk_num_threads(void) { return npkernels::num_threads(); }

npk_status npk_set_num_threads(int n, int* before) {
  return set_threads(n, before, npkernels::set_num_threads);
}

npk_status npk_set_thread_limit(int n, int* before) {
  return set_threads(n, before, npkernels::set_thread_limit);
}

const char* npk_version(void) { return NPKERNELS_VERSION; }

}  // extern "C"
