/* The negative binomial and the zero-inflated one. Most counts are zero, and a zero's log-likelihood needs no gamma
   functions: every coordinate is computed as if it were a zero; then those that are not are brought together, computed
   in full, and put back.

   What takes one logarithm after the other is cut into stages, each a loop over the tile: a processor waits less for one
   result after the other if the next vector's work is near. */

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

ALWAYS_INLINE void zeros_vector(const likelihood_inputs *in, float *log_prob, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    store_some(log_prob + i, log_prob_of_zero(mean, theta), count);
}

/* From the binomial's log-probability of 0 to the inflated one, but for the log(1 + ratio) of the next stage. */
ALWAYS_INLINE void inflate_vector(const likelihood_inputs *in, float *log_prob, float *ratio, int64_t i, int64_t count) {
    vf logits = load_ahead(in->parameters[2], i, count, in->ahead);
    softplus_difference inflated = softplus_difference_of(load_some(log_prob + i, count) - logits, -logits);
    store_some(log_prob + i, inflated.rise, count);
    store_some(ratio + i, inflated.ratio, count);
}

ALWAYS_INLINE void add_log1p_vector(const float *ratio, float *log_prob, int64_t i, int64_t count) {
    store_some(log_prob + i, load_some(log_prob + i, count) + log1p_of(load_some(ratio + i, count)), count);
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
    float ratio[TILE];
    single_out(kind, in, n, &s);
    EACH_VECTOR(n, zeros_vector, in, log_prob);
    if (kind == ZERO_INFLATED) {
        EACH_VECTOR(n, inflate_vector, in, log_prob, ratio);
        EACH_VECTOR(n, add_log1p_vector, ratio, log_prob);
        EACH_VECTOR(s.found, counts_vector, ZERO_INFLATED, &s);
    } else {
        EACH_VECTOR(s.found, counts_vector, NEGATIVE_BINOMIAL, &s);
    }
    scatter(s.first, &s, log_prob);
}

ALWAYS_INLINE vf log_ratio_of(vf mean, vf theta) { return log1p_of(mean / (theta + COUNT_EPS)); }

/* Of the negative binomial's log-probability of 0; total = theta + mean + eps. */
typedef struct {
    vf total, mean, theta;
} zero_derivatives;

ALWAYS_INLINE zero_derivatives derivatives_at_zero(vf mean, vf theta, vf log_ratio) {
    vf total = theta + mean + COUNT_EPS, shifted = theta + COUNT_EPS;
    return (zero_derivatives){total, -theta / total, theta * mean / (shifted * total) - log_ratio};
}

ALWAYS_INLINE void ratio_of_zero_vector(const likelihood_inputs *in, float *log_ratio, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    store_some(log_ratio + i, log_ratio_of(mean, theta), count);
}

/* The gradient of the logits, and of the log-probability of 0 that is the binomial's. */
ALWAYS_INLINE void deflate_vector(const likelihood_inputs *in, const float *log_ratio, float *of_logits,
                                  float *of_log_prob, int64_t i, int64_t count) {
    vf theta = load_some(in->parameters[1] + i, count), grad = load_some(in->grad + i, count);
    vf logits = load_ahead(in->parameters[2], i, count, in->ahead);
    /* The part of a zero's probability that is the binomial's. */
    vf counted = sigmoid_of(-theta * load_some(log_ratio + i, count) - logits);
    store_some(of_logits + i, grad * (sigmoid_of(-logits) - counted), count);
    store_some(of_log_prob + i, grad * counted, count);
}

ALWAYS_INLINE void zeros_gradient_vector(int with_theta, const likelihood_inputs *in, const float *log_ratio,
                                         const float *of_log_prob, float *const *to, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead), grad = load_some(of_log_prob + i, count);
    zero_derivatives at_zero =
        derivatives_at_zero(mean, theta, with_theta ? load_some(log_ratio + i, count) : splat(0.0f));
    store_some(to[0] + i, grad * at_zero.mean, count);
    if (with_theta) store_some(to[1] + i, grad * at_zero.theta, count);
}

ALWAYS_INLINE void counts_gradient_vector(int kind, int with_theta, singled_out *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf grad = load_some(s->grad + i, count);
    zero_derivatives at_zero =
        derivatives_at_zero(mean, theta, with_theta ? log_ratio_of(mean, theta) : splat(0.0f));
    vf taken = x / at_zero.total;
    store_some(s->first + i, grad * (at_zero.mean + (x / (mean + COUNT_EPS) - taken)), count);
    if (with_theta) store_some(s->second + i, grad * (at_zero.theta + (digamma_rise(x, theta) - taken)), count);
    if (kind == ZERO_INFLATED)
        store_some(s->third + i, -grad * sigmoid_of(load_some(s->logits + i, count)), count);
}

/* Of mean, theta if it is wanted, and the logits. */
NEVER_INLINE void counts_gradient(int kind, int with_theta, const likelihood_inputs *in, int64_t n, float *const *to) {
    singled_out s;
    float log_ratio[TILE], of_log_prob[TILE];
    single_out(kind, in, n, &s);
    gather(in->grad, &s, s.grad);
    if (with_theta || kind == ZERO_INFLATED) EACH_VECTOR(n, ratio_of_zero_vector, in, log_ratio);
    if (kind == ZERO_INFLATED) EACH_VECTOR(n, deflate_vector, in, log_ratio, to[2], of_log_prob);
    const float *grad = kind == ZERO_INFLATED ? of_log_prob : in->grad;
    if (with_theta) {
        EACH_VECTOR(n, zeros_gradient_vector, 1, in, log_ratio, grad, to);
        EACH_VECTOR(s.found, counts_gradient_vector, kind, 1, &s);
    } else {
        EACH_VECTOR(n, zeros_gradient_vector, 0, in, log_ratio, grad, to);
        EACH_VECTOR(s.found, counts_gradient_vector, kind, 0, &s);
    }
    scatter(s.first, &s, to[0]);
    if (with_theta) scatter(s.second, &s, to[1]);
    if (kind == ZERO_INFLATED) scatter(s.third, &s, to[2]);
}
