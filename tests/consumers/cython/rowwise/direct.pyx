"""The C functions themselves, for what npkernels.ckernels does not wrap: here float16 rows along any axis."""

from libc.stdint cimport int32_t, int64_t

from npkernels.capi cimport (
    NPK_FLOAT16, NPK_OK, npk_array, npk_bad_argument, npk_softmax, npk_status, npk_status_text, npk_version)


def softmax_float16(const unsigned short[:, :] x, unsigned short[:, :] y, int axis):
    cdef int64_t[2] shape = [x.shape[0], x.shape[1]]
    cdef int64_t[2] x_strides = [x.strides[0], x.strides[1]], y_strides = [y.strides[0], y.strides[1]]
    cdef npk_array ax, ay
    cdef npk_status status
    ax.data, ax.shape, ax.strides, ax.ndim, ax.dtype = <void*>&x[0, 0], shape, x_strides, 2, <int32_t>NPK_FLOAT16
    ay.data, ay.shape, ay.strides, ay.ndim, ay.dtype = <void*>&y[0, 0], shape, y_strides, 2, <int32_t>NPK_FLOAT16
    with nogil:
        status = npk_softmax(&ax, axis, 1.0, NULL, &ay)
    if status != NPK_OK:
        raise ValueError(f"softmax: {npk_bad_argument().decode()} {npk_status_text(status).decode()}")


def version():
    return npk_version().decode()
