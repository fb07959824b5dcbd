// Which instruction set (ISA) the kernels use. One choice per process; it may be changed between calls.
#pragma once

#include "array.h"

namespace npkernels {

// Names of the ISAs compiled into this library, slowest first; nullptr ends the list.
NPK_API const char* const* compiled_isas();
// Whether this CPU (and its operating system) runs the compiled ISA of that name; false for unknown names.
NPK_API bool isa_supported(const char* name);
// The ISA in use. The first use picks NPKERNELS_ISA if it is set and supported, else the best supported one.
NPK_API const char* isa();
// Forces one; false (and no change) if the name is unknown or not supported here.
NPK_API bool set_isa(const char* name);
// Takes a set_isa back: the choice is again that of the first use.
NPK_API void reset_isa();
// How the current one was chosen: "best supported", "NPKERNELS_ISA", "set_isa".
NPK_API const char* isa_source();

}  // namespace npkernels
