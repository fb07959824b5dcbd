// The intrinsics of x86 as the compiler has them, or, in a test build with -DNPKERNELS_EMULATE_AVX512=ON,
// those of AVX-512 emulated in 256-bit registers.
#pragma once

#ifdef NPK_EMULATE_AVX512
#include "x86_emulated.h"
#else
#include <immintrin.h>
#endif
