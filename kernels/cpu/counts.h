/* The negative binomial and the zero-inflated one. Most counts are zero, and a zero's log-likelihood needs no gamma
   functions: every coordinate is computed as if it were a zero; then those that are not are brought together, computed
   in full, and put back. */

#define COUNT_EPS 1e-8f

typedef struct {
    const float *x, *parameters[MOST_PARAMETERS], *grad;
    int64_t ahead;
} likelihood_inputs;

typedef struct {
    int64_t found;
    uint16_t index[TILE + LANES];
    float x[TILE], mean[TILE], theta[TILE], logits[TILE], grad[TILE];
    float first[TILE], second[TILE], third[TILE]; /* what comes of them */
} singled_out;

/* Puts down where the counts are not zero. NaN is not. */
ALWAYS_INLINE void find_vector(const likelihood_inputs *in, singled_out *s, int64_t i, int64_t count) {
    mask zeros = less(absolute(load_ahead(in->x, i, count, in->ahead)), splat(COUNT_EPS)); /* lanes behind the last count are */
    s->found += put_lanes(~zeros, i, s->index + s->found);
}

static inline void gather(const float *from, const singled_out *s, float *to) {
    for (int64_t i = 0; i < s->found; i++) to[i] = from[s->index[i]];
}

static inline void scatter(const float *from, const singled_out *s, float *to) {
    for (int64_t i = 0; i < s->found; i++) to[s->index[i]] = from[i];
}

/* The negative binomial's log-probability of 0. */
ALWAYS_INLINE vf log_prob_of_zero(vf mean, vf theta) { return -theta * log1p_of(mean / (theta + COUNT_EPS)); }

ALWAYS_INLINE void zeros_vector(int kind, const likelihood_inputs *in, float *log_prob, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    vf at_zero = log_prob_of_zero(mean, theta);
    if (kind == ZERO_INFLATED) {
        vf logits = load_ahead(in->parameters[2], i, count, in->ahead);
        at_zero = softplus_difference(at_zero - logits, -logits);
    }
    store_some(log_prob + i, at_zero, count);
}

ALWAYS_INLINE void counts_vector(int kind, singled_out *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf log_power = x * log_of((mean + COUNT_EPS) / (theta + mean + COUNT_EPS));
    vf log_prob = log_prob_of_zero(mean, theta) + (log_power + lgamma_of_counts(x, theta));
    if (kind == ZERO_INFLATED) log_prob -= softplus_of(load_some(s->logits + i, count));
    store_some(s->first + i, log_prob, count);
}

static inline void single_out(int kind, const likelihood_inputs *in, int64_t n, singled_out *s) {
    s->found = 0;
    EACH_VECTOR(n, find_vector, in, s);
    gather(in->x, s, s->x);
    gather(in->parameters[0], s, s->mean);
    gather(in->parameters[1], s, s->theta);
    if (kind == ZERO_INFLATED) gather(in->parameters[2], s, s->logits);
}

NEVER_INLINE void counts_log_prob(int kind, const likelihood_inputs *in, int64_t n, float *log_prob) {
    singled_out s;
    single_out(kind, in, n, &s);
    if (kind == ZERO_INFLATED) {
        EACH_VECTOR(n, zeros_vector, ZERO_INFLATED, in, log_prob);
        EACH_VECTOR(s.found, counts_vector, ZERO_INFLATED, &s);
    } else {
        EACH_VECTOR(n, zeros_vector, NEGATIVE_BINOMIAL, in, log_prob);
        EACH_VECTOR(s.found, counts_vector, NEGATIVE_BINOMIAL, &s);
    }
    scatter(s.first, &s, log_prob);
}

/* Of the negative binomial's log-probability of 0; total = theta + mean + eps. */
typedef struct {
    vf total, log_ratio, mean, theta;
} zero_derivatives;

ALWAYS_INLINE zero_derivatives derivatives_at_zero(vf mean, vf theta, int with_log_ratio) {
    vf total = theta + mean + COUNT_EPS, shifted = theta + COUNT_EPS;
    vf log_ratio = with_log_ratio ? log1p_of(mean / shifted) : splat(0.0f);
    return (zero_derivatives){total, log_ratio, -theta / total, theta * mean / (shifted * total) - log_ratio};
}

ALWAYS_INLINE void zeros_gradient_vector(int kind, int with_theta, const likelihood_inputs *in, float *const *to,
                                         int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    vf of_log_prob = load_some(in->grad + i, count);
    zero_derivatives at_zero = derivatives_at_zero(mean, theta, with_theta || kind == ZERO_INFLATED);
    if (kind == ZERO_INFLATED) {
        vf logits = load_ahead(in->parameters[2], i, count, in->ahead);
        /* The part of a zero's probability that is the binomial's. */
        vf counted = sigmoid_of(-theta * at_zero.log_ratio - logits);
        store_some(to[2] + i, of_log_prob * (sigmoid_of(-logits) - counted), count);
        of_log_prob *= counted;
    }
    store_some(to[0] + i, of_log_prob * at_zero.mean, count);
    if (with_theta) store_some(to[1] + i, of_log_prob * at_zero.theta, count);
}

ALWAYS_INLINE void counts_gradient_vector(int kind, int with_theta, singled_out *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf grad = load_some(s->grad + i, count);
    zero_derivatives at_zero = derivatives_at_zero(mean, theta, with_theta);
    vf taken = x / at_zero.total;
    store_some(s->first + i, grad * (at_zero.mean + (x / (mean + COUNT_EPS) - taken)), count);
    if (with_theta) store_some(s->second + i, grad * (at_zero.theta + (digamma_rise(x, theta) - taken)), count);
    if (kind == ZERO_INFLATED)
        store_some(s->third + i, -grad * sigmoid_of(load_some(s->logits + i, count)), count);
}

#define GRADIENTS_OF(kind, with_theta)                                                             \
    do {                                                                                           \
        EACH_VECTOR(n, zeros_gradient_vector, kind, with_theta, in, to);                           \
        EACH_VECTOR(s.found, counts_gradient_vector, kind, with_theta, &s);                          \
    } while (0)

/* Of mean, theta if it is wanted, and the logits. */
NEVER_INLINE void counts_gradient(int kind, int with_theta, const likelihood_inputs *in, int64_t n, float *const *to) {
    singled_out s;
    single_out(kind, in, n, &s);
    gather(in->grad, &s, s.grad);
    if (kind == ZERO_INFLATED && with_theta)
        GRADIENTS_OF(ZERO_INFLATED, 1);
    else if (kind == ZERO_INFLATED)
        GRADIENTS_OF(ZERO_INFLATED, 0);
    else if (with_theta)
        GRADIENTS_OF(NEGATIVE_BINOMIAL, 1);
    else
        GRADIENTS_OF(NEGATIVE_BINOMIAL, 0);
    scatter(s.first, &s, to[0]);
    if (with_theta) scatter(s.second, &s, to[1]);
    if (kind == ZERO_INFLATED) scatter(s.third, &s, to[2]);
}
