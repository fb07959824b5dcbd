"""Kernels called without the GIL, on memoryviews of any strides."""

from libc.stdint cimport int64_t

from npkernels cimport ckernels
from npkernels.ckernels cimport BOTTOM_RIGHT, attention, attention_head, floating, logsumexp_row, softmax, softmax_row


def softmax_rows(const floating[:, :] x, floating[:, :] y, double temperature):
    with nogil:
        softmax(x, y, temperature)


def softmax_first_row(const floating[:, ::1] x, floating[::1] y):
    cdef floating lse = 0
    with nogil:
        softmax_row(&x[0, 0], x.shape[1], &y[0])
        logsumexp_row(&x[0, 0], x.shape[1], &lse)
    return lse


def every_row_function(const floating[:, :] x, const floating[:, :] dy, const int64_t[::1] ids, floating[:, :, ::1] maps,
                       floating[:, ::1] rows):
    with nogil:
        ckernels.log_softmax[floating](x, maps[0])
        ckernels.softmax[floating](x, maps[1])
        ckernels.softmax_vjp[floating](dy, maps[1], maps[1])
        ckernels.log_softmax_vjp[floating](dy, maps[0], maps[2])
        ckernels.token_log_probs[floating](x, ids, rows[0], rows[1], rows[2])
        ckernels.token_log_probs_vjp[floating](rows[0], x, ids, rows[1], maps[3])
        ckernels.logsumexp[floating](x, rows[3])
        ckernels.entropy[floating](x, rows[4])


def attend(const floating[:, :, :, :] q, const floating[:, :, :, :] k, const floating[:, :, :, :] v,
           floating[:, :, :, :] out, floating[:, :, ::1] lse):
    with nogil:
        attention(q, k, v, out, lse, BOTTOM_RIGHT)


def attend_head(const floating[:, :] q, const floating[:, :] k, const floating[:, :] v, floating[:, :] out,
                floating[::1] lse, double scale):
    with nogil:
        attention_head(q, k, v, out, lse, ckernels.NOT_CAUSAL, scale)


def rotate(const floating[:, :, :, :] x, const floating[:, :] cos, const floating[:, :] sin, floating[:, :, :, :] y):
    with nogil:
        ckernels.rotary_embedding(x, cos, sin, y, True)


def threads(int n):
    with nogil:
        ckernels.set_num_threads(n)
        n = ckernels.num_threads()
    return n
