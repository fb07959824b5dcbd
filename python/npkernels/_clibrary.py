"""The C functions of npkernels.h from Python: for ctypes, and by address for whatever compiles code at run time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from npkernels._build import _INSTALLED

if TYPE_CHECKING:
    import ctypes

# What each function of npkernels.h takes: p pointer, i int, l int64_t, u uint64_t, d double.
PARAMETERS = {
    "npk_softmax": "pidpp",
    "npk_log_softmax": "pidpp",
    "npk_logsumexp": "pidppp",
    "npk_softmax_vjp": "ppidpp",
    "npk_log_softmax_vjp": "ppidpp",
    "npk_logsumexp_vjp": "pppidpp",
    "npk_softmax_jvp": "ppidppp",
    "npk_log_softmax_jvp": "ppidppp",
    "npk_logsumexp_jvp": "ppidppp",
    "npk_token_log_probs": "ppdpp",
    "npk_token_log_probs_vjp": "ppppppdpp",
    "npk_cross_entropy": "ppippp",
    "npk_attention": "pppppp",
    "npk_attention_vjp": "ppppppppppppp",
    "npk_attention_jvp": "pppppppppp",
    "npk_merge_attention": "ipppp",
    "npk_rotary_embedding": "pppiip",
    "npk_group_advantages": "plpppppp",
    "npk_policy_loss": "pppppp",
    "npk_token_policy_loss": "ppppdppp",
    "npk_discounted_returns": "pdpp",
    "npk_gae": "ppddppp",
    "npk_sign_step": "ppdppp",
    "npk_steepest_step": "ppdppp",
    "npk_project": "ppdpp",
    "npk_pgd_step": "pppddppp",
    "npk_random_in_ball": "pdupp",
    "npk_status_text": "i",
    "npk_bad_argument": "",
    "npk_compiled_isas": "",
    "npk_isa_supported": "p",
    "npk_isa": "",
    "npk_set_isa": "p",
    "npk_num_threads": "",
    "npk_set_num_threads": "ip",
    "npk_set_thread_limit": "ip",
    "npk_version": "",
}
TEXTS = ("npk_status_text", "npk_bad_argument", "npk_isa", "npk_version")  # what returns const char*


@functools.cache
def c_library() -> ctypes.CDLL:
    """Return the library of the C functions, loaded by ctypes, with the types of all functions set.

    It is the library that Python uses: one instruction set and one thread setting. Pointers are declared as
    ``ctypes.c_void_p``, which takes ``ctypes.byref(structure)``, ``array.ctypes.data`` and None. ctypes releases the
    GIL for a call.

    Returns
    -------
    ctypes.CDLL
        With ``npk_softmax`` and all the others of `npkernels.h`; docs/c-api.md says what they take.

    Examples
    --------
    >>> import npkernels
    >>> library = npkernels.c_library()
    >>> library.npk_version().decode() == npkernels.__version__
    True
    >>> library.npk_softmax(None, -1, 1.0, None, None), library.npk_bad_argument()
    (1, b'x')
    """
    import ctypes

    kinds = {
        "p": ctypes.c_void_p,
        "i": ctypes.c_int,
        "l": ctypes.c_int64,
        "u": ctypes.c_uint64,
        "d": ctypes.c_double,
    }
    library = ctypes.CDLL(str(_INSTALLED / "libnpkernels.so"))
    for name, parameters in PARAMETERS.items():
        function = getattr(library, name)
        function.argtypes = [kinds[p] for p in parameters]
        function.restype = ctypes.c_char_p if name in TEXTS else ctypes.c_int
    library.npk_compiled_isas.restype = ctypes.POINTER(ctypes.c_char_p)
    return library


def get_address(name: str) -> int:
    """Return the address of a C function of `npkernels.h`, for compilers that run inside the process.

    Parameters
    ----------
    name : str
        The name in `npkernels.h`: "npk_softmax". `npkernels.numba` has the functions ready for Numba.

    Returns
    -------
    int
        Valid for the life of the process.

    Raises
    ------
    ValueError
        If there is no function of that name.

    Examples
    --------
    >>> import ctypes, npkernels
    >>> threads = ctypes.CFUNCTYPE(ctypes.c_int)(npkernels.get_address("npk_num_threads"))
    >>> threads() == npkernels.get_num_threads()
    True
    """
    if name not in PARAMETERS:
        close = ", ".join(n for n in PARAMETERS if isinstance(name, str) and name.strip("_") in n)
        raise ValueError(
            f"get_address: name is {name!r}; expected a function of npkernels.h"
            + (f", perhaps {close}" if close else ', such as "npk_softmax"')
        )
    import ctypes

    address = ctypes.cast(getattr(c_library(), name), ctypes.c_void_p).value
    assert address is not None
    return address
