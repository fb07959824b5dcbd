// npkernels._core: the table of contents. Arguments are checked in arguments.h, before the GIL is released.
#include "bind.h"

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() =
      "The compiled kernels of npkernels. Use the functions of npkernels itself; these take NumPy arrays "
      "only.";
  m.attr("__version__") = NPKERNELS_VERSION;
  bind_config(m);
  bind_softmax(m);
  bind_tokens(m);
  bind_attention(m);

  bind_advantages(m);
  bind_policy(m);
  bind_returns(m);
  bind_perturb(m);
}
