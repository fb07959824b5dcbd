#include "arguments.h"
#include "npkernels/isa.h"
#include "npkernels/probe.h"
#include "npkernels/threads.h"

void bind_config(py::module_& m) {
  using py::arg;
  m.attr("compiler") = NPKERNELS_COMPILER;
  m.attr("build_type") = NPKERNELS_BUILD_TYPE;
  m.def("compiled_isas", [] {
    py::list names;
    for (const char* const* name = npkernels::compiled_isas(); *name; ++name) names.append(*name);
    return names;
  });
  m.def("isa_supported", &npkernels::isa_supported, arg("name"));
  m.def("isa", &npkernels::isa);
  m.def("isa_source", &npkernels::isa_source);
  m.def("set_isa", &npkernels::set_isa, arg("name"));
  m.def("reset_isa", &npkernels::reset_isa);
  m.def("num_threads", &npkernels::num_threads);
  m.def("num_threads_source", &npkernels::num_threads_source);
  m.def("set_num_threads", &npkernels::set_num_threads, arg("n"));
  m.def("set_thread_limit", &npkernels::set_thread_limit, arg("n"));
  m.def("peak_flops", &npkernels::peak_flops, arg("repeats"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "peak_bandwidth",
      [](int64_t bytes, int repeats) {
        npkernels::Bandwidth best{};
        bool done;
        {
          py::gil_scoped_release release;
          done = npkernels::peak_bandwidth(bytes, repeats, &best);
        }
        if (!done) throw std::bad_alloc();
        return py::make_tuple(best.read, best.copy, best.stream_copy);
      },
      arg("bytes"), arg("repeats"));
}
