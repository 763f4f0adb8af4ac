/* Log-likelihoods log p(x|z), forward and backward, tile by tile; likelihood_spec.py has the formulas. Here are those of
   one parameter, or of a location and a scale; counts.h has the negative binomials, mixture.h the mixture. */

typedef struct {
    float x[TILE], parameters[MOST_PARAMETERS][TILE], grad[TILE + LANES];
} likelihood_buffers;

/* log(l / tanh(l/2)), from its series where l is small: off by less than 1e-8 below 1/2. */
ALWAYS_INLINE vf log_normalizer_of(vf logits) {
    vf size = absolute(logits), square = logits * logits;
    vf series = 1.0f / 12 + square * (-7.0f / 1440 + square * (31.0f / 90720 + square * (-127.0f / 4838400)));
    mask near_0 = less(size, splat(0.5f));
    return choose(near_0, 0.69314718f + square * series, log_of(size / tanh_of(0.5f * size)));
}

/* Its derivative, 1/l - 1/sinh l: with u = exp(-|l|), 1/sinh |l| = 2u / (1 - u^2). */
ALWAYS_INLINE vf normalizer_gradient_of(vf logits) {
    vf square = logits * logits, u = exp_of_minus_size(logits);
    vf series = 1.0f / 6 + square * (-7.0f / 360 + square * (31.0f / 15120 + square * (-127.0f / 604800)));
    vf size = 1.0f / absolute(logits) - (u + u) / (1.0f - u * u);
    vf signed_size = choose(less(logits, splat(0.0f)), -size, size);
    return choose(less(absolute(logits), splat(0.5f)), logits * series, signed_size);
}

/* log p of a Poisson is -c (exp d - 1 - d) - 1/2 log(2 pi c) - R(c), c = x and d = r - log c, where nothing large is
   subtracted from something large. R needs a c of 1 or more: below 1 it is x + 1, and x d - c (exp d - 1) the first part. */
ALWAYS_INLINE vf poisson_of(vf x, vf r) {
    const float half_log_2_pi = 0.91893853f;
    mask below_1 = less(x, splat(1.0f));
    vf c = choose(below_1, x + 1.0f, x);
    logarithm l = logarithm_of_normal(c);
    vf high = l.n * 0.693359375f, low = l.f + (l.n * -2.12194440e-4f - 0.5f * l.curve); /* of log c */
    vf d = (r - high) - low;
    exponentials e = exponentials_of(d);
    vf from_mode = choose(below_1, x * d - c * e.expm1, -c * e.expm1_less);
    vf at_mode = 0.5f * (high + low) + (half_log_2_pi + stirling(1.0f / c));
    return choose(equal(x, splat(0.0f)), -(e.std * e.std), from_mode - at_mode);
}

ALWAYS_INLINE vf bounded(vf scale, const likelihood *d) { return at_most(at_least(scale, d->low), d->high); }

/* log p of a Gaussian, from its distance to the mean. */
ALWAYS_INLINE vf gaussian_of(vf difference, vf logvar) {
    const float log_2_pi = 1.83787707f;
    return -0.5f * (difference * difference * exp_of(-logvar) + logvar + log_2_pi);
}

/* x as the location is compared with it. */
ALWAYS_INLINE vf data_of(int kind, vf x) { return kind == LOG_NORMAL ? log_of(x) : x; }

ALWAYS_INLINE vf log_prob_of(int kind, vf x, vf first, vf second, const likelihood *d) {
    const float log_2 = 0.69314718f, least_log = -745.0f; /* likelihood_spec.py says what the last is for */
    vf scale = bounded(second, d), data = data_of(kind, x), difference = data - first;
    switch (kind) {
    case BERNOULLI: return x * first - softplus_of(first);
    case CONTINUOUS_BERNOULLI: return x * first - softplus_of(first) + log_normalizer_of(first);
    case GAUSSIAN: return gaussian_of(difference, scale);
    case LAPLACE: return -(absolute(difference) * exp_of(-scale) + scale + log_2);
    case LOG_NORMAL: return gaussian_of(difference, scale) - at_least(data, least_log);
    case POISSON: return poisson_of(x, first);
    default: __builtin_unreachable(); /* counts.h, scaled_bernoulli.h and mixture.h have the others */
    }
}

/* The gradients of the parameters from that of log p. */
typedef struct {
    vf first, second;
} gradients;

ALWAYS_INLINE gradients gradients_of(int kind, vf grad, vf x, vf first, vf second, const likelihood *d) {
    vf zero = {0};
    if (kind == BERNOULLI) return (gradients){grad * (x - sigmoid_of(first)), zero};
    if (kind == CONTINUOUS_BERNOULLI)
        return (gradients){grad * (x - sigmoid_of(first) + normalizer_gradient_of(first)), zero};
    if (kind == POISSON) return (gradients){grad * (x - exp_of(first)), zero};
    vf scale = bounded(second, d), difference = data_of(kind, x) - first, inverse = exp_of(-scale), of_mean, of_scale;
    if (kind != LAPLACE) {
        of_mean = difference * inverse;
        of_scale = 0.5f * (difference * of_mean - 1.0f);
    } else {
        of_mean = choose(less(difference, zero), -inverse, inverse);
        of_mean = choose(equal(difference, zero), zero, of_mean);
        of_mean = choose(equal(difference, difference), of_mean, difference); /* NaN stays NaN */
        of_scale = absolute(difference) * inverse - 1.0f;
    }
    mask clamped = less(second, splat(d->low)) | less(splat(d->high), second); /* then 0, whatever grad is */
    return (gradients){grad * of_mean, choose(clamped, zero, grad * of_scale)};
}

ALWAYS_INLINE int has_scale(int kind) { return kind == GAUSSIAN || kind == LAPLACE || kind == LOG_NORMAL; }

ALWAYS_INLINE void log_prob_vector(int kind, const likelihood *d, likelihood_inputs in, float *log_prob, int64_t i,
                                   int64_t count) {
    vf second = has_scale(kind) ? load_ahead(in.parameters[1], i, count, in.ahead) : splat(0.0f);
    vf x = load_ahead(in.x, i, count, in.ahead), first = load_ahead(in.parameters[0], i, count, in.ahead);
    store_some(log_prob + i, log_prob_of(kind, x, first, second, d), count);
}

ALWAYS_INLINE void gradients_vector(int kind, const likelihood *d, likelihood_inputs in, float *const *grads, int64_t i,
                                    int64_t count) {
    vf second = has_scale(kind) ? load_ahead(in.parameters[1], i, count, in.ahead) : splat(0.0f);
    vf x = load_ahead(in.x, i, count, in.ahead), first = load_ahead(in.parameters[0], i, count, in.ahead);
    gradients of = gradients_of(kind, load_some(in.grad + i, count), x, first, second, d);
    store_some(grads[0] + i, of.first, count);
    if (has_scale(kind)) store_some(grads[1] + i, of.second, count);
}

#define EACH_VECTOR_OF_KIND(kind, n, function, ...)                                                    \
    switch (kind) {                                                                                    \
    case BERNOULLI: EACH_VECTOR(n, function, BERNOULLI, __VA_ARGS__); break;                           \
    case CONTINUOUS_BERNOULLI: EACH_VECTOR(n, function, CONTINUOUS_BERNOULLI, __VA_ARGS__); break;     \
    case GAUSSIAN: EACH_VECTOR(n, function, GAUSSIAN, __VA_ARGS__); break;                             \
    case LAPLACE: EACH_VECTOR(n, function, LAPLACE, __VA_ARGS__); break;                               \
    case LOG_NORMAL: EACH_VECTOR(n, function, LOG_NORMAL, __VA_ARGS__); break;                         \
    case POISSON: EACH_VECTOR(n, function, POISSON, __VA_ARGS__); break;                               \
    }

static inline likelihood_inputs read_inputs(const call *c, tile t, likelihood_buffers *buffers) {
    likelihood_inputs in = {.x = read_tile(c, &c->x, c->x_dtype, of_x(c, t), buffers->x), .ahead = distance_ahead(c, t)};
    for (int i = 0; i < MOST_PARAMETERS; i++)
        if (c->parameters[i].data)
            in.parameters[i] = read_tile(c, &c->parameters[i], c->parameter_dtypes[i], t, buffers->parameters[i]);
    return in;
}

static void ISA_NAME(likelihood_forward)(const call *c, int64_t first, int64_t last) {
    likelihood_buffers buffers;
    float terms[TILE + LANES];
    int kind = c->likelihood.kind;
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        float *log_prob = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, terms) : terms;
        if (kind == MIXTURE) {
            mixture_log_prob(c, t, log_prob);
        } else {
            likelihood_inputs in = read_inputs(c, t, &buffers);
            int64_t n = t.rows * t.count;
            if (c->noticed) notice(c, &in, n);
            if (kind == SCALED_BERNOULLI)
                EACH_VECTOR(n, scaled_bernoulli_vector, &in, log_prob);
            else if (kind >= NEGATIVE_BINOMIAL)
                counts_log_prob(kind, &in, n, log_prob);
            else
                EACH_VECTOR_OF_KIND(kind, n, log_prob_vector, &c->likelihood, in, log_prob);
        }
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, log_prob, terms);
        else
            sum_tile(c, t, terms, c->channel_size, c->kl_slots);
    }
}

/* Whether the gradient of a parameter is wanted. */
static inline int is_wanted(const call *c, int i) {
    return c->grad_parameters[i].data ||
           (i > 0 && (c->columns[OF_PARAMETER(i)].out.data || c->row_gradients[i].out.data));
}

static void ISA_NAME(likelihood_backward)(const call *c, int64_t first, int64_t last) {
    likelihood_buffers buffers;
    float grads[MOST_PARAMETERS][TILE + LANES], sums[MOST_COLUMN_SUMS][TILE];
    int kind = c->likelihood.kind;
    for (int64_t unit = first; unit < last; unit++) {
        for (int i = 0; i < MOST_COLUMN_SUMS; i++)
            if (c->columns[i].out.data) memset(sums[i], 0, sizeof sums[i]);
        for (int64_t index = first_tile(c, unit); index < end_of_tiles(c, unit); index += c->tiles_a_row) {
            tile t = tile_at(c, index);
            const float *grad = read_grad_kl(c, t, buffers.grad);
            if (kind == MIXTURE) {
                mixture_gradient(c, t, grad);
                continue;
            }
            likelihood_inputs in = read_inputs(c, t, &buffers);
            in.grad = grad;
            float *to[MOST_PARAMETERS];
            for (int i = 0; i < MOST_PARAMETERS; i++)
                to[i] = begin_shared_gradient(c, t, &c->grad_parameters[i], c->parameter_dtypes[i], grads[i]);
            int64_t n = t.rows * t.count;
            if (kind == SCALED_BERNOULLI)
                EACH_VECTOR(n, scaled_bernoulli_gradient_vector, &in, to);
            else if (kind >= NEGATIVE_BINOMIAL)
                counts_gradient(kind, is_wanted(c, 1), &in, n, to);
            else
                EACH_VECTOR_OF_KIND(kind, n, gradients_vector, &c->likelihood, in, to);
            for (int i = 0; i < MOST_PARAMETERS; i++)
                if (c->row_gradients[i].out.data)
                    sum_tile(c, t, to[i], c->event, c->row_gradients[i].partial);
                else if (is_wanted(c, i))
                    end_shared_gradient(c, t, &c->grad_parameters[i], c->parameter_dtypes[i], to[i], grads[i],
                                        i ? sums[OF_PARAMETER(i)] : NULL);
        }
        for (int i = 0; i < MOST_COLUMN_SUMS; i++)
            if (c->columns[i].out.data) leave_partial_sums(c, &c->columns[i], unit, sums[i]);
    }
}
