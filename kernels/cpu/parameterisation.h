/* How a scale parameter becomes std and logvar, and a gradient of these one of the parameter. A new parameterisation is
   a case in scale_of, of_scale, through_std and through_logvar; a new clamp is one in clamped and in clamp_gradient_of.

   x is the clamped parameter. `scale` and `clamp` are constants where these are called, so each loop has one formula. */

typedef struct {
    vf std, logvar;
} scale_values;

ALWAYS_INLINE scale_values scale_of(vf x, int scale, const options *o) {
    switch (scale) {
    case SCALE_LOGVAR: return (scale_values){exp_of(0.5f * x), x};
    case SCALE_LOGSTD: return (scale_values){exp_of(x), x + x};
    case SCALE_STD: return (scale_values){x, 2.0f * log_of(x)};
    case SCALE_VAR: return (scale_values){square_root(x), log_of(x)};
    default: break;
    }
    vf std = softplus_of(x) + o->floor;
    return (scale_values){std, 2.0f * log_of(std)};
}

/* What sampling and the KL to N(0, I) need, without computing logvar on the way. */
ALWAYS_INLINE exponentials of_scale(vf x, int scale, const options *o) {
    switch (scale) {
    case SCALE_LOGVAR: return exponentials_of(x);
    case SCALE_LOGSTD: return exponentials_of(x + x);
    case SCALE_STD: return exponentials_of_std(x);
    case SCALE_VAR: return exponentials_of_variance(x);
    default: return exponentials_of_std(softplus_of(x) + o->floor);
    }
}

/* The gradient of x from that of std, or of logvar; not every case uses std. */
ALWAYS_INLINE vf through_std(vf grad, vf x, vf std, int scale) {
    switch (scale) {
    case SCALE_LOGVAR: return 0.5f * std * grad;
    case SCALE_LOGSTD: return std * grad;
    case SCALE_STD: return grad;
    case SCALE_VAR: return 0.5f / std * grad;
    default: return sigmoid_of(x) * grad;
    }
}

/* A gradient of 0 takes no part, also where std is 0 and its factor infinite. */
ALWAYS_INLINE vf through_logvar(vf grad, vf x, vf std, int scale, const options *o) {
    mask absent = equal(grad, splat(0.0f));
    switch (scale) {
    case SCALE_LOGVAR: return grad;
    case SCALE_LOGSTD: return 2.0f * grad;
    case SCALE_STD: return choose(absent, grad, 2.0f / x * grad);
    case SCALE_VAR: return choose(absent, grad, grad / x);
    default: break;
    }
    /* Without a floor the quotient goes to 1 where both are too small for float32. */
    float smallest = o->floor > 0.0f ? 0.0f : 0x1p-126f;
    return 2.0f * grad * ((sigmoid_of(x) + smallest) / (std + smallest));
}

ALWAYS_INLINE vf clamped(vf raw, int clamp, const options *o) {
    if (clamp == CLAMP_HARD) return at_most(at_least(raw, o->low), o->high);
    return o->high * tanh_of(raw * (1.0f / o->high));
}

ALWAYS_INLINE vf clamp_gradient_of(vf grad, vf raw, int clamp, const options *o) {
    if (clamp == CLAMP_HARD)
        return choose(less_or_equal(splat(o->low), raw) & less_or_equal(raw, splat(o->high)), grad, splat(0.0f));
    return grad * tanh_slope_of(raw * (1.0f / o->high));
}

/* The same over arrays. */

typedef struct {
    const float *raw, *x, *std, *logvar; /* std: if with_std, and always of softplus */
} scale_arrays;

typedef struct {
    float raw[TILE], x[TILE], std[TILE], logvar[TILE];
} scale_buffers;

#define STORES_STD(scale, with_std) ((with_std) || (scale) == SCALE_SOFTPLUS)

ALWAYS_INLINE void scale_vector(int scale, int with_std, const options *o, const float *x, scale_buffers *to, int64_t i,
                                int64_t count) {
    scale_values s = scale_of(load_some(x + i, count), scale, o);
    if (STORES_STD(scale, with_std)) store_some(to->std + i, s.std, count);
    if (scale != SCALE_LOGVAR) store_some(to->logvar + i, s.logvar, count);
}

ALWAYS_INLINE void clamp_vector(int clamp, const options *o, const float *raw, float *x, int64_t i, int64_t count) {
    store_some(x + i, clamped(load_some(raw + i, count), clamp, o), count);
}

ALWAYS_INLINE void scale_gradient_vector(int scale, int with_std, int with_logvar, const options *o, const scale_arrays *s,
                                         const float *grad_std, const float *grad_logvar, float *grad, int64_t i,
                                         int64_t count) {
    vf std = STORES_STD(scale, with_std) ? load_some(s->std + i, count) : splat(0.0f);
    vf x = load_some(s->x + i, count), of_x = splat(0.0f);
    if (with_logvar) of_x = through_logvar(load_some(grad_logvar + i, count), x, std, scale, o);
    if (with_std) of_x += through_std(load_some(grad_std + i, count), x, std, scale);
    store_some(grad + i, of_x, count);
}

ALWAYS_INLINE void clamp_gradient_vector(int clamp, const options *o, const scale_arrays *s, float *grad, int64_t i,
                                         int64_t count) {
    vf raw = load_some(s->raw + i, count);
    store_some(grad + i, clamp_gradient_of(load_some(grad + i, count), raw, clamp, o), count);
}

#define EACH_VECTOR_OF_SCALE(o, n, function, ...)                                                   \
    switch ((o)->scale) {                                                                           \
    case SCALE_LOGVAR: EACH_VECTOR(n, function, SCALE_LOGVAR, __VA_ARGS__); break;                  \
    case SCALE_LOGSTD: EACH_VECTOR(n, function, SCALE_LOGSTD, __VA_ARGS__); break;                  \
    case SCALE_STD: EACH_VECTOR(n, function, SCALE_STD, __VA_ARGS__); break;                        \
    case SCALE_VAR: EACH_VECTOR(n, function, SCALE_VAR, __VA_ARGS__); break;                        \
    case SCALE_SOFTPLUS: EACH_VECTOR(n, function, SCALE_SOFTPLUS, __VA_ARGS__); break;              \
    }

#define EACH_VECTOR_OF_CLAMP(o, n, function, ...)                                                   \
    switch ((o)->clamp) {                                                                           \
    case CLAMP_HARD: EACH_VECTOR(n, function, CLAMP_HARD, __VA_ARGS__); break;                      \
    case CLAMP_SOFT: EACH_VECTOR(n, function, CLAMP_SOFT, __VA_ARGS__); break;                      \
    }

/* n parameters, with or without std. */
NEVER_INLINE scale_arrays resolve_scale(const options *o, const float *raw, int64_t n, int with_std,
                                        scale_buffers *to) {
    const float *x = o->clamp == CLAMP_NONE ? raw : to->x;
    EACH_VECTOR_OF_CLAMP(o, n, clamp_vector, o, raw, to->x);
    if (with_std)
        EACH_VECTOR_OF_SCALE(o, n, scale_vector, 1, o, x, to)
    else
        EACH_VECTOR_OF_SCALE(o, n, scale_vector, 0, o, x, to)
    return (scale_arrays){raw, x, to->std, o->scale == SCALE_LOGVAR ? x : to->logvar};
}

/* The gradient of n parameters. grad_std, grad_logvar NULL: it took no part; at std = 0 the factor of a gradient may be
   infinite, so that one of 0 would give NaN. */
NEVER_INLINE void scale_gradient(const options *o, const scale_arrays *s, const float *grad_std,
                                 const float *grad_logvar, int64_t n, float *grad) {
    if (grad_std && grad_logvar)
        EACH_VECTOR_OF_SCALE(o, n, scale_gradient_vector, 1, 1, o, s, grad_std, grad_logvar, grad)
    else if (grad_std)
        EACH_VECTOR_OF_SCALE(o, n, scale_gradient_vector, 1, 0, o, s, grad_std, grad_logvar, grad)
    else
        EACH_VECTOR_OF_SCALE(o, n, scale_gradient_vector, 0, 1, o, s, grad_std, grad_logvar, grad)
    EACH_VECTOR_OF_CLAMP(o, n, clamp_gradient_vector, o, s, grad);
}
