/* The negative binomial and the zero-inflated one. Most counts are zero, and a zero's log-likelihood needs no gamma
   functions: every coordinate is computed as if it were a zero; then the nonzero ones are gathered, computed in full,
   and scattered back.

   Chains of logarithms are cut into stages, each a loop over the tile, so that the processor can work on several vectors
   at once instead of waiting for one. */

#define COUNT_EPS 1e-8f

typedef struct {
    const float *x, *parameters[MOST_PARAMETERS], *grad;
    int64_t ahead;
} likelihood_inputs;

typedef struct {
    int64_t found;
    uint16_t index[TILE + LANES];
    float x[TILE], mean[TILE], theta[TILE], logits[TILE], grad[TILE];
    float first[TILE], second[TILE], third[TILE]; /* their results */
} nonzero_counts;

/* The log-probability of 0 under the negative binomial is -theta log(1 + ratio). */
ALWAYS_INLINE vf ratio_of(vf mean, vf theta) { return mean / (theta + COUNT_EPS); }

ALWAYS_INLINE void zeros_vector(const likelihood_inputs *in, float *log_prob, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    store_some(log_prob + i, -theta * log1p_of(ratio_of(mean, theta)), count);
}

/* From the binomial's log-probability of 0 to the inflated one, but for the log(1 + ratio) of the next stage. */
ALWAYS_INLINE void inflate_vector(const likelihood_inputs *in, const float *of_zero, float *log_prob, float *ratio,
                                  int64_t i, int64_t count) {
    vf logits = load_ahead(in->parameters[2], i, count, in->ahead);
    softplus_difference inflated = softplus_difference_of(load_some(of_zero + i, count) - logits, -logits);
    store_some(log_prob + i, inflated.rise, count);
    store_some(ratio + i, inflated.ratio, count);
}

ALWAYS_INLINE void add_log1p_vector(const float *ratio, float *log_prob, int64_t i, int64_t count) {
    store_some(log_prob + i, load_some(log_prob + i, count) + log1p_of(load_some(ratio + i, count)), count);
}

/* s->first comes in as the binomial's log-probability of 0. */
ALWAYS_INLINE void counts_vector(int kind, nonzero_counts *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf log_power = x * log_of((mean + COUNT_EPS) / (theta + mean + COUNT_EPS));
    vf log_prob = load_some(s->first + i, count) + (log_power + lgamma_of_counts(x, theta));
    if (kind == ZERO_INFLATED) log_prob -= softplus_of(load_some(s->logits + i, count));
    store_some(s->first + i, log_prob, count);
}

/* NaN does not count as zero. */
ALWAYS_INLINE void find_vector(const likelihood_inputs *in, uint16_t *index, int64_t *found, int64_t i, int64_t count) {
    mask zeros = less(absolute(load_ahead(in->x, i, count, in->ahead)), splat(COUNT_EPS)); /* lanes behind the last are */
    *found += put_lanes(~zeros, i, index + *found);
}

/* Notes the indices of the nonzero counts. */
static inline void find_counts(const likelihood_inputs *in, int64_t n, nonzero_counts *s) {
    int64_t found = 0;
    EACH_VECTOR(n, find_vector, in, s->index, &found);
    s->found = found;
}

/* Gathers what nonzero counts are computed from; of_zero, if given: their results as zeros. */
ALWAYS_INLINE void gather(int kind, int with_grad, const likelihood_inputs *in, const float *of_zero, float *to_of_zero,
                          nonzero_counts *s) {
    for (int64_t i = 0; i < s->found; i++) {
        int64_t from = s->index[i];
        s->x[i] = in->x[from], s->mean[i] = in->parameters[0][from], s->theta[i] = in->parameters[1][from];
        if (kind == ZERO_INFLATED) s->logits[i] = in->parameters[2][from];
        if (with_grad) s->grad[i] = in->grad[from];
        if (of_zero) to_of_zero[i] = of_zero[from];
        STAYS_A_LOOP;
    }
}

ALWAYS_INLINE void scatter(const nonzero_counts *s, float *first, float *second, float *third) {
    for (int64_t i = 0; i < s->found; i++) {
        int64_t to = s->index[i];
        first[to] = s->first[i];
        if (second) second[to] = s->second[i];
        if (third) third[to] = s->third[i];
        STAYS_A_LOOP;
    }
}

NEVER_INLINE void counts_log_prob(int kind, const likelihood_inputs *in, int64_t n, float *log_prob) {
    nonzero_counts s;
    float of_zero[TILE], ratio[TILE];
    find_counts(in, n, &s);
    if (kind == ZERO_INFLATED) {
        EACH_VECTOR(n, zeros_vector, in, of_zero);
        EACH_VECTOR(n, inflate_vector, in, of_zero, log_prob, ratio);
        EACH_VECTOR(n, add_log1p_vector, ratio, log_prob);
        gather(ZERO_INFLATED, 0, in, of_zero, s.first, &s);
        EACH_VECTOR(s.found, counts_vector, ZERO_INFLATED, &s);
    } else {
        EACH_VECTOR(n, zeros_vector, in, log_prob);
        gather(NEGATIVE_BINOMIAL, 0, in, log_prob, s.first, &s);
        EACH_VECTOR(s.found, counts_vector, NEGATIVE_BINOMIAL, &s);
    }
    scatter(&s, log_prob, NULL, NULL);
}

/* The derivatives of the binomial's log-probability of 0 are, with `whole` = theta + mean + eps,
     d mean = -theta / whole,  d theta = theta / whole ratio - log(1 + ratio). */

ALWAYS_INLINE void ratio_vector(const likelihood_inputs *in, float *ratio, float *log_ratio, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf of_zero = ratio_of(mean, load_ahead(in->parameters[1], i, count, in->ahead));
    store_some(ratio + i, of_zero, count);
    store_some(log_ratio + i, log1p_of(of_zero), count);
}

ALWAYS_INLINE void zeros_gradient_vector(int with_theta, const likelihood_inputs *in, const float *ratio,
                                         const float *log_ratio, float *const *to, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead), grad = load_some(in->grad + i, count);
    vf share = theta / (theta + mean + COUNT_EPS);
    store_some(to[0] + i, -(grad * share), count);
    if (with_theta)
        store_some(to[1] + i, grad * (share * load_some(ratio + i, count) - load_some(log_ratio + i, count)), count);
}

/* The same for the zero-inflated binomial. One division serves three quotients. */
ALWAYS_INLINE void deflated_gradient_vector(int with_theta, const likelihood_inputs *in, const float *ratio,
                                            const float *log_ratio, float *const *to, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead), grad = load_some(in->grad + i, count);
    vf logits = load_ahead(in->parameters[2], i, count, in->ahead), log_of_ratio = load_some(log_ratio + i, count);
    /* The part of a zero's probability that is the binomial's is sigmoid(difference). */
    vf difference = -theta * log_of_ratio - logits, one = splat(1.0f), zero = splat(0.0f);
    vf u = exp_of_minus_size(difference), v = exp_of_minus_size(logits);
    vf below_u = 1.0f + u, below_v = 1.0f + v, below = below_u * below_v, whole = theta + mean + COUNT_EPS;
    vf inverse = 1.0f / (below * whole), of_below = inverse * whole;
    vf counted = choose(less(difference, zero), u, one) * below_v * of_below;
    vf inflated = choose(less(zero, logits), v, one) * below_u * of_below;
    vf share = theta * (below * inverse), of_zero = grad * counted;
    store_some(to[0] + i, -(of_zero * share), count);
    if (with_theta) store_some(to[1] + i, of_zero * (share * load_some(ratio + i, count) - log_of_ratio), count);
    store_some(to[2] + i, grad * (inflated - counted), count);
}

/* s->second comes in as log(1 + ratio), if it is wanted. */
ALWAYS_INLINE void counts_gradient_vector(int kind, int with_theta, nonzero_counts *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf grad = load_some(s->grad + i, count), of_whole = 1.0f / (theta + mean + COUNT_EPS);
    vf share = theta * of_whole, taken = x * of_whole;
    store_some(s->first + i, grad * ((x / (mean + COUNT_EPS) - taken) - share), count);
    if (with_theta) {
        vf at_zero = share * ratio_of(mean, theta) - load_some(s->second + i, count);
        store_some(s->second + i, grad * (at_zero + (digamma_rise(x, theta) - taken)), count);
    }
    if (kind == ZERO_INFLATED)
        store_some(s->third + i, -grad * sigmoid_of(load_some(s->logits + i, count)), count);
}

ALWAYS_INLINE void gradient_of(int kind, int with_theta, const likelihood_inputs *in, int64_t n, nonzero_counts *s,
                               float *const *to) {
    float ratio[TILE], log_ratio[TILE];
    if (with_theta || kind == ZERO_INFLATED) EACH_VECTOR(n, ratio_vector, in, ratio, log_ratio);
    if (kind == ZERO_INFLATED)
        EACH_VECTOR(n, deflated_gradient_vector, with_theta, in, ratio, log_ratio, to);
    else
        EACH_VECTOR(n, zeros_gradient_vector, with_theta, in, ratio, log_ratio, to);
    gather(kind, 1, in, with_theta ? log_ratio : NULL, s->second, s);
    EACH_VECTOR(s->found, counts_gradient_vector, kind, with_theta, s);
    scatter(s, to[0], with_theta ? to[1] : NULL, kind == ZERO_INFLATED ? to[2] : NULL);
}

/* Of mean, theta if it is wanted, and the logits. */
NEVER_INLINE void counts_gradient(int kind, int with_theta, const likelihood_inputs *in, int64_t n, float *const *to) {
    nonzero_counts s;
    find_counts(in, n, &s);
    if (kind == ZERO_INFLATED && with_theta)
        gradient_of(ZERO_INFLATED, 1, in, n, &s, to);
    else if (kind == ZERO_INFLATED)
        gradient_of(ZERO_INFLATED, 0, in, n, &s, to);
    else if (with_theta)
        gradient_of(NEGATIVE_BINOMIAL, 1, in, n, &s, to);
    else
        gradient_of(NEGATIVE_BINOMIAL, 0, in, n, &s, to);
}
