#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>

#include "npkernels/isa.h"

#define CHECK_ISA(name)                                    \
  namespace npkernels::name {                              \
  extern const char* simd_failure();                       \
  }                                                        \
  TEST_CASE("vector type, " #name) {                       \
    if (!npkernels::isa_supported(#name)) {                \
      MESSAGE("this CPU does not run " #name);             \
      return;                                              \
    }                                                      \
    const char* failure = npkernels::name::simd_failure(); \
    CHECK(std::string(failure ? failure : "") == "");      \
  }

#ifdef HAVE_baseline
CHECK_ISA(baseline)
#endif
#ifdef HAVE_avx2
CHECK_ISA(avx2)
#endif
#ifdef HAVE_avx512
CHECK_ISA(avx512)
#endif
#ifdef HAVE_avx512bf16
CHECK_ISA(avx512bf16)
#endif
#ifdef HAVE_neon
CHECK_ISA(neon)
#endif
