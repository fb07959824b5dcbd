"""The C functions themselves, for what npkernels.ckernels does not wrap: here float16 rows along any axis."""

from libc.stdint cimport int32_t, int64_t

from npkernels.capi cimport (
    NPK_BOOL, NPK_FLOAT16, NPK_FLOAT32, NPK_NORM_INF, NPK_OK, npk_array, npk_bad_argument, npk_sign_step, npk_softmax,
    npk_status, npk_status_text, npk_step_options, npk_version)


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


def masked_sign_step(float[:, ::1] x, float[:, ::1] grad, unsigned char[:, ::1] mask, double eps):
    """In place, where the mask is 1; how many entries of grad are NaN."""
    cdef int64_t[2] shape = [x.shape[0], x.shape[1]]
    cdef int64_t nans = 0
    cdef npk_status status
    cdef npk_array ax, ag, am
    ax.data, ax.shape, ax.strides, ax.ndim, ax.dtype = <void*>&x[0, 0], shape, NULL, 2, <int32_t>NPK_FLOAT32
    ag.data, ag.shape, ag.strides, ag.ndim, ag.dtype = <void*>&grad[0, 0], shape, NULL, 2, <int32_t>NPK_FLOAT32
    am.data, am.shape, am.strides, am.ndim, am.dtype = <void*>&mask[0, 0], shape, NULL, 2, <int32_t>NPK_BOOL
    cdef npk_step_options options = npk_step_options(
        size=sizeof(npk_step_options), norm=NPK_NORM_INF, targeted=0, bounded=0, reserved=0, low=0, high=0, lows=NULL,
        highs=NULL, mask=&am, step_lengths=NULL, radii=NULL)
    with nogil:
        status = npk_sign_step(&ax, &ag, eps, &options, &ax, &nans)
    if status != NPK_OK:
        raise ValueError(f"sign_step: {npk_bad_argument().decode()} {npk_status_text(status).decode()}")
    return nans


def version():
    return npk_version().decode()
