# cython: language_level=3, freethreading_compatible=True
"""The kernels for Cython code. See ckernels.pxd; there is nothing here to call from Python."""

from npkernels.capi cimport *


cdef npk_array view(const Array* a) noexcept nogil:
    cdef npk_array described
    described.data = a.data
    described.shape = &a.shape[0]
    described.strides = &a.strides[0]
    described.ndim = a.ndim
    described.dtype = a.dtype
    return described


# Raises what a status means.
cdef int done(const char* function, npk_status status) except -1 nogil:
    if status == NPK_OK:
        return 0
    with gil:
        message = f"{function.decode()}: {npk_bad_argument().decode()} {npk_status_text(status).decode()}"
        if status == NPK_NO_MEMORY:
            raise MemoryError(message)
        if status == NPK_BAD_INDEX:
            raise IndexError(message)
        if status == NPK_BAD_DTYPE:
            raise TypeError(message)
        raise ValueError(message)


cdef int _softmax(const Array* x, double temperature, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ay = view(y)
    return done("softmax", npk_softmax(&ax, -1, temperature, NULL, &ay))


cdef int _log_softmax(const Array* x, double temperature, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ay = view(y)
    return done("log_softmax", npk_log_softmax(&ax, -1, temperature, NULL, &ay))


cdef int _logsumexp(const Array* x, double temperature, const Array* lse) except -1 nogil:
    cdef npk_array ax = view(x), alse = view(lse)
    return done("logsumexp", npk_logsumexp(&ax, -1, temperature, NULL, &alse, NULL))


cdef int _entropy(const Array* x, double temperature, const Array* entropy) except -1 nogil:
    cdef npk_array ax = view(x), ah = view(entropy)
    return done("entropy", npk_logsumexp(&ax, -1, temperature, NULL, NULL, &ah))


cdef int _softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil:
    cdef npk_array ady = view(dy), ay = view(y), adx = view(dx)
    return done("softmax_vjp", npk_softmax_vjp(&ady, &ay, -1, temperature, NULL, &adx))


cdef int _log_softmax_vjp(const Array* dy, const Array* y, double temperature, const Array* dx) except -1 nogil:
    cdef npk_array ady = view(dy), ay = view(y), adx = view(dx)
    return done("log_softmax_vjp", npk_log_softmax_vjp(&ady, &ay, -1, temperature, NULL, &adx))


cdef int _token_log_probs(const Array* logits, const Array* ids, double temperature, const Array* log_prob,
                          const Array* lse, const Array* entropy) except -1 nogil:
    cdef npk_array ax = view(logits), aids = view(ids), alogp = view(log_prob), alse = view(lse), ah = view(entropy)
    cdef npk_token_stats stats = npk_token_stats(
        size=sizeof(npk_token_stats), log_prob=&alogp, lse=&alse, entropy=&ah, sum_p2=NULL, top1=NULL, rank=NULL)
    return done("token_log_probs", npk_token_log_probs(&ax, &aids, temperature, NULL, &stats))


cdef int _token_log_probs_vjp(const Array* dlogp, const Array* logits, const Array* ids, const Array* lse,
                              double temperature, const Array* dlogits) except -1 nogil:
    cdef npk_array ad = view(dlogp), ax = view(logits), aids = view(ids), alse = view(lse), adx = view(dlogits)
    return done("token_log_probs_vjp",
                npk_token_log_probs_vjp(&ad, &ax, &aids, &alse, NULL, NULL, temperature, NULL, &adx))


cdef npk_attention_options attention_options(int causal, double scale) noexcept nogil:
    return npk_attention_options(
        size=sizeof(npk_attention_options), scale=scale, causal=causal, windowed=0, q_offset=NULL, mask=NULL, bias=NULL,
        kv_lengths=NULL, alibi_slopes=NULL, sinks=NULL, window_left=-1, window_right=-1, softcap=0, dropout_p=0, dropout_seed=0)


cdef int _attention(const Array* q, const Array* k, const Array* v, int causal, double scale, const Array* out,
                    const Array* lse) except -1 nogil:
    cdef npk_array aq = view(q), ak = view(k), av = view(v), aout = view(out), alse = view(lse)
    cdef npk_attention_options options = attention_options(causal, scale)
    return done("attention", npk_attention(&aq, &ak, &av, &options, &aout, &alse))


cdef int _rotary_embedding(const Array* x, const Array* cos, const Array* sin, bint interleaved, bint inverse,
                           const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ac = view(cos), asin = view(sin), ay = view(y)
    return done("rotary_embedding", npk_rotary_embedding(&ax, &ac, &asin, interleaved, inverse, &ay))


cdef int _attention_vjp(const Array* dout, const Array* q, const Array* k, const Array* v, const Array* out,
                        const Array* lse, int causal, double scale, const Array* dq, const Array* dk,
                        const Array* dv) except -1 nogil:
    cdef npk_array adout = view(dout), aq = view(q), ak = view(k), av = view(v), aout = view(out), alse = view(lse)
    cdef npk_array adq = view(dq), adk = view(dk), adv = view(dv)
    cdef npk_attention_options options = attention_options(causal, scale)
    return done("attention_vjp", npk_attention_vjp(&adout, &aq, &ak, &av, &aout, &alse, NULL, &options, &adq, &adk, &adv,
                                                   NULL, NULL))


cdef int _attention_jvp(const Array* q, const Array* k, const Array* v, const Array* dq, const Array* dk, const Array* dv,
                        int causal, double scale, const Array* out, const Array* dout) except -1 nogil:
    cdef npk_array aq = view(q), ak = view(k), av = view(v), adq = view(dq), adk = view(dk), adv = view(dv)
    cdef npk_array aout = view(out), adout = view(dout)
    cdef npk_attention_options options = attention_options(causal, scale)
    return done("attention_jvp", npk_attention_jvp(&aq, &ak, &av, &adq, &adk, &adv, &options, &aout, &adout, NULL))


cdef int _group_advantages(const Array* rewards, int64_t size, const Array* ids, double eps, int baseline, int scale,
                           int ddof, const Array* advantages) except -1 nogil:
    cdef npk_array ar = view(rewards), aa = view(advantages), aids
    cdef npk_advantage_options options = npk_advantage_options(
        size=sizeof(npk_advantage_options), eps=eps, baseline=baseline, scale=scale, ddof=ddof, lone_reward=0, over_mean=0,
        reserved=0)
    if ids != NULL:
        aids = view(ids)
    return done("group_advantages", npk_group_advantages(&ar, size, &aids if ids != NULL else NULL, &options, &aa, NULL,
                                                         NULL, NULL))


cdef npk_policy_options policy_options(double low, double high, int aggregate, bint sequence_level) noexcept nogil:
    return npk_policy_options(
        size=sizeof(npk_policy_options), mask=NULL, cu_seqlens=NULL, ref_logp=NULL, sampler_logp=NULL, entropy=NULL,
        surrogate=NPK_SURROGATE_CLIP, sequence_level=sequence_level, aggregate=aggregate, kl=NPK_KL_K3,
        importance=NPK_IMPORTANCE_SEQUENCE_MASK, want_entropy=0, clip_low=low, clip_high=high, delta=0, dual_clip=0,
        tau_positive=1, tau_negative=1.05, max_length=0, total_tokens=0, beta=0, kl_inner=0, kl_outer=0, importance_cap=3)


cdef int _policy_loss(const Array* logp, const Array* old_logp, const Array* advantages, double low, double high,
                      int aggregate, bint sequence_level, double* loss, const Array* dlogp) except -1 nogil:
    cdef npk_array ap = view(logp), aold = view(old_logp), aa = view(advantages), adp = view(dlogp)
    cdef npk_policy_options options = policy_options(low, high, aggregate, sequence_level)
    cdef npk_policy_metrics metrics
    metrics.size = sizeof(npk_policy_metrics)
    done("policy_loss", npk_policy_loss(&ap, &aold, &aa, &options, &metrics, &adp))
    loss[0] = metrics.loss
    return 0


cdef int _token_policy_loss(const Array* logits, const Array* ids, const Array* old_logp, const Array* advantages,
                            double temperature, double low, double high, int aggregate, bint sequence_level,
                            double* loss, const Array* dlogits) except -1 nogil:
    cdef npk_array ax = view(logits), aids = view(ids), aold = view(old_logp), aa = view(advantages), adx = view(dlogits)
    cdef npk_policy_options options = policy_options(low, high, aggregate, sequence_level)
    cdef npk_policy_metrics metrics
    metrics.size = sizeof(npk_policy_metrics)
    done("token_policy_loss", npk_token_policy_loss(&ax, &aids, &aold, &aa, temperature, &options, &metrics, &adx))
    loss[0] = metrics.loss
    return 0


cdef int _discounted_returns(const Array* rewards, double gamma, const Array* returns) except -1 nogil:
    cdef npk_array ar = view(rewards), aR = view(returns)
    return done("discounted_returns", npk_discounted_returns(&ar, gamma, NULL, &aR))


cdef int _gae(const Array* rewards, const Array* values, double gamma, double lam, const Array* advantages,
              const Array* returns) except -1 nogil:
    cdef npk_array ar = view(rewards), av = view(values), aa = view(advantages), aR = view(returns)
    return done("gae", npk_gae(&ar, &av, gamma, lam, NULL, &aa, &aR))


cdef npk_step_options step_options(int norm, bint bounded, double low, double high) noexcept nogil:
    return npk_step_options(
        size=sizeof(npk_step_options), norm=norm, targeted=0, bounded=bounded, reserved=0, low=low, high=high, lows=NULL,
        highs=NULL, mask=NULL, step_lengths=NULL, radii=NULL)


cdef int _sign_step(const Array* x, const Array* grad, double eps, bint bounded, double low, double high,
                    const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ag = view(grad), ay = view(y)
    cdef npk_step_options options = step_options(NPK_NORM_INF, bounded, low, high)
    return done("sign_step", npk_sign_step(&ax, &ag, eps, &options, &ay, NULL))


cdef int _project(const Array* x, const Array* center, double eps, int norm, bint bounded, double low,
                  double high, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ac = view(center), ay = view(y)
    cdef npk_step_options options = step_options(norm, bounded, low, high)
    return done("project", npk_project(&ax, &ac, eps, &options, &ay))


cdef int _pgd_step(const Array* x, const Array* center, const Array* grad, double step, double eps, int norm, bint bounded,
                   double low, double high, const Array* y) except -1 nogil:
    cdef npk_array ax = view(x), ac = view(center), ag = view(grad), ay = view(y)
    cdef npk_step_options options = step_options(norm, bounded, low, high)
    return done("pgd_step", npk_pgd_step(&ax, &ac, &ag, step, eps, &options, &ay, NULL))


cdef int _random_in_ball(const Array* center, double eps, uint64_t key, int norm, bint bounded, double low,
                         double high, const Array* y) except -1 nogil:
    cdef npk_array ac = view(center), ay = view(y)
    cdef npk_step_options options = step_options(norm, bounded, low, high)
    return done("random_in_ball", npk_random_in_ball(&ac, eps, key, &options, &ay))


cdef int num_threads() noexcept nogil:
    return npk_num_threads()


cdef int set_num_threads(int n) except -1 nogil:
    return done("set_num_threads", npk_set_num_threads(n, NULL))
