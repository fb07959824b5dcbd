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


def attention_gradients(const floating[:, :, :, :] dout, const floating[:, :, :, :] q, const floating[:, :, :, :] k,
                        const floating[:, :, :, :] v, const floating[:, :, :, :] out, const floating[:, :, ::1] lse,
                        floating[:, :, :, :] dq, floating[:, :, :, :] dk, floating[:, :, :, :] dv, floating[:, :, :, :] y,
                        floating[:, :, :, :] dy):
    with nogil:
        ckernels.attention_vjp[floating](dout, q, k, v, out, lse, dq, dk, dv, BOTTOM_RIGHT)
        ckernels.attention_jvp[floating](q, k, v, dq, dk, dv, y, dy, BOTTOM_RIGHT)


def advantages(const floating[::1] rewards, const int64_t[::1] ids, floating[:, ::1] a):
    with nogil:
        ckernels.group_advantages[floating](rewards, 4, a[0])
        ckernels.group_advantages_by_id[floating](rewards, ids, a[1], 1e-6, ckernels.LEAVE_ONE_OUT, ckernels.NO_SCALE, 0)


def losses(const floating[:, :] logp, const floating[:, :] old_logp, const floating[::1] a, floating[:, :] dlogp,
           const floating[:, :, ::1] logits, const int64_t[:, ::1] ids, floating[:, :, ::1] dlogits):
    cdef double first, second
    with nogil:
        ckernels.policy_loss[floating](logp, old_logp, a, dlogp, &first, 0.1, 0.3, ckernels.TOKEN_MEAN)
        ckernels.token_policy_loss[floating](logits, ids, old_logp, a, dlogits, &second, 0.2, 0.2, ckernels.SEQ_MEAN_TOKEN_MEAN,
                                             True)
    return first, second


def along_time(const floating[:, :] rewards, const floating[:, :] values, double gamma, double lam,
               floating[:, :, ::1] results):
    with nogil:
        ckernels.discounted_returns[floating](rewards, gamma, results[0])
        ckernels.gae[floating](rewards, values, gamma, lam, results[1], results[2])


def steps(const floating[:, :] x, const floating[:, :] center, const floating[:, :] grad, floating[:, :, ::1] results):
    with nogil:
        ckernels.sign_step[floating](x, grad, 0.1, results[0])
        ckernels.project[floating](x, center, 0.3, results[1], ckernels.NORM_ONE)
        ckernels.pgd_step[floating](x, center, grad, 0.1, 0.3, results[2], ckernels.NORM_TWO, True, -5, 5)
        ckernels.random_in_ball[floating](center, 0.3, 7, results[3], ckernels.NORM_TWO)


def threads(int n):
    with nogil:
        ckernels.set_num_threads(n)
        n = ckernels.num_threads()
    return n
