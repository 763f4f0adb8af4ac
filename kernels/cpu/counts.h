/* The negative binomial and the zero-inflated one. Most counts are zero, and a zero's log-likelihood needs no gamma
   functions: every coordinate is computed as if it were a zero; then the nonzero ones are gathered, computed in full,
   and scattered back.

   Of a nonzero count nothing large is subtracted from something large. With R and D of special.h, g(e) = e - log(1 + e),
   s = theta + eps, whole = s + mean, b = x + theta:

     log p   = -x g(u) - theta g(v) + 1/2 log(theta / (2 pi b x)) + R(b) - R(theta) - R(x)
     d theta = -g(v) + D(theta) - D(b)
     u = theta (mean + eps - x) / (whole x),  v = (x - mean) / whole

   R and D need arguments of 1 or more. Where theta is less than 1, a = theta + 1 stands for it, and b = x + a; where x
   is, c = x + 1 for x. Then x u + theta v is added, which otherwise is 0.

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
    float log_prob[TILE], first[TILE], second[TILE], third[TILE]; /* their results */
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

/* From here on the likelihood is a Poisson's: a is bounded so that products of a, b and c are finite. */
#define LARGEST_THETA 1e14f

typedef struct {
    mask few; /* theta < 1 */
    vf theta, s, a, b, of_whole;
} count_parts;

ALWAYS_INLINE count_parts parts_of(vf x, vf mean, vf given) {
    vf theta = at_most(given, LARGEST_THETA), s = theta + COUNT_EPS;
    mask few = less(theta, splat(1.0f));
    vf a = theta + choose(few, splat(1.0f), splat(0.0f));
    return (count_parts){few, theta, s, a, x + a, 1.0f / (s + mean)};
}

/* v, and 1 + v */
ALWAYS_INLINE vf of_theta_of(count_parts p, vf x, vf mean, vf of_a, vf *ratio) {
    vf part = choose(p.few, p.s * of_a, splat(1.0f));
    *ratio = part * (p.b * p.of_whole);
    return (x * part - mean) * p.of_whole;
}

/* Also gives 1/a and 1/b. */
ALWAYS_INLINE vf count_log_prob(vf x, vf mean, count_parts p, vf *inverse_of_a, vf *inverse_of_b) {
    const float half_log_2_pi = 0.91893853f;
    mask below_1 = less(x, splat(1.0f)), linear = p.few | below_1;
    vf zero = {0}, one = splat(1.0f), c = x + choose(below_1, one, zero);
    vf raised = choose(p.few, x + p.theta, one), ab = p.a * p.b, cr = c * raised;
    vf of_all = 1.0f / (ab * cr), of_ab = of_all * cr, of_cr = of_all * ab; /* one division for four */
    vf of_a = p.b * of_ab, of_b = p.a * of_ab, of_c = raised * of_cr;
    vf v_ratio, v = of_theta_of(p, x, mean, of_a, &v_ratio);
    vf part = (mean + COUNT_EPS) * p.of_whole;
    vf u = (p.theta * p.of_whole * ((mean - x) + COUNT_EPS) + choose(p.few, part, zero)) * of_c;
    u -= choose(below_1, of_c, zero);
    vf of_means = x * excess_over_log(u, part * (p.b * of_c)) + p.theta * excess_over_log(v, v_ratio);
    of_means -= choose(linear, x * u + p.theta * v + choose(below_1, one, zero), zero);
    /* Gamma(theta) = Gamma(a) / theta, Gamma(x + theta) = Gamma(b) / (x + theta) */
    vf shift = choose(p.few, p.theta * of_a * p.b * (c * of_cr), one);
    vf gammas = log_of(square_root(p.a * of_b * of_c) * shift) - half_log_2_pi;
    *inverse_of_a = of_a, *inverse_of_b = of_b;
    return nan_if_negative(part, gammas + (stirling(of_b) - stirling(of_a) - stirling(of_c)) - of_means);
}

ALWAYS_INLINE void counts_vector(int kind, nonzero_counts *s, int64_t i, int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf of_a, of_b, log_prob = count_log_prob(x, mean, parts_of(x, mean, theta), &of_a, &of_b);
    if (kind == ZERO_INFLATED) log_prob -= softplus_of(load_some(s->logits + i, count));
    store_some(s->log_prob + i, log_prob, count);
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

/* Gathers what nonzero counts are computed from. */
ALWAYS_INLINE void gather(int kind, int with_grad, const likelihood_inputs *in, nonzero_counts *s) {
    for (int64_t i = 0; i < s->found; i++) {
        int64_t from = s->index[i];
        s->x[i] = in->x[from], s->mean[i] = in->parameters[0][from], s->theta[i] = in->parameters[1][from];
        if (kind == ZERO_INFLATED) s->logits[i] = in->parameters[2][from];
        if (with_grad) s->grad[i] = in->grad[from];
        STAYS_A_LOOP;
    }
}

ALWAYS_INLINE void scatter(const nonzero_counts *s, const float *from, float *to) {
    for (int64_t i = 0; i < s->found; i++) {
        to[s->index[i]] = from[i];
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
        gather(ZERO_INFLATED, 0, in, &s);
        EACH_VECTOR(s.found, counts_vector, ZERO_INFLATED, &s);
    } else {
        EACH_VECTOR(n, zeros_vector, in, log_prob);
        gather(NEGATIVE_BINOMIAL, 0, in, &s);
        EACH_VECTOR(s.found, counts_vector, NEGATIVE_BINOMIAL, &s);
    }
    scatter(&s, s.log_prob, log_prob);
}

/* The derivatives of the binomial's log-probability of 0 are, with part = mean / whole and log(1 + ratio) = part + g(-part),
     d mean = -theta / whole,  d theta = -g(-part) - part eps / s.
   A head wants log p as well (`with_value`), and logarithms, exponentials and divisions are shared with it. */

/* Bounded so that a product of it stays finite; a zero's log-probability is -mean long before. */
ALWAYS_INLINE vf load_theta(const likelihood_inputs *in, int64_t i, int64_t count) {
    return at_most(load_ahead(in->parameters[1], i, count, in->ahead), 1e30f);
}

ALWAYS_INLINE void ratio_vector(const likelihood_inputs *in, float *share, float *log_ratio, float *of_theta, int64_t i,
                                int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_theta(in, i, count), s = theta + COUNT_EPS, whole = s + mean;
    vf bounded_s = at_most(s, 1e4f), of_both = 1.0f / (bounded_s * whole), of_whole = bounded_s * of_both;
    vf part = mean * of_whole, excess = excess_over_log(-part, s * of_whole);
    vf of_eps = choose(less(s, splat(1e4f)), part * (whole * of_both) * COUNT_EPS, splat(0.0f));
    store_some(share + i, theta * of_whole, count);
    store_some(log_ratio + i, excess + part, count);
    store_some(of_theta + i, -(excess + of_eps), count);
}

ALWAYS_INLINE void zeros_gradient_vector(int with_value, const likelihood_inputs *in, const float *share,
                                         const float *log_ratio, const float *of_theta, float *const *to, float *log_prob,
                                         int64_t i, int64_t count) {
    vf grad = load_some(in->grad + i, count);
    store_some(to[0] + i, -(grad * load_some(share + i, count)), count);
    store_some(to[1] + i, grad * load_some(of_theta + i, count), count);
    if (with_value) store_some(log_prob + i, -load_theta(in, i, count) * load_some(log_ratio + i, count), count);
}

ALWAYS_INLINE void zeros_mean_gradient_vector(const likelihood_inputs *in, float *to, int64_t i, int64_t count) {
    vf mean = load_ahead(in->parameters[0], i, count, in->ahead);
    vf theta = load_ahead(in->parameters[1], i, count, in->ahead);
    store_some(to + i, -(load_some(in->grad + i, count) * (theta / (theta + mean + COUNT_EPS))), count);
}

/* The same for the zero-inflated binomial. One division serves all quotients. Of the value, the logarithm of
   1 + `ratio`, which may take the place of log_ratio, is left to the next stage. */
ALWAYS_INLINE void deflated_gradient_vector(int with_theta, int with_value, const likelihood_inputs *in, const float *share,
                                            const float *log_ratio, const float *of_theta, float *const *to,
                                            float *log_prob, float *ratio, int64_t i, int64_t count) {
    vf theta = load_theta(in, i, count), grad = load_some(in->grad + i, count);
    vf logits = load_ahead(in->parameters[2], i, count, in->ahead), one = splat(1.0f), zero = splat(0.0f);
    /* The part of a zero's probability that is the binomial's is sigmoid(difference). */
    vf difference = -theta * load_some(log_ratio + i, count) - logits;
    vf u = exp_of_minus_size(difference), v = exp_of_minus_size(logits);
    vf below_u = 1.0f + u, below_v = 1.0f + v, of_below = 1.0f / (below_u * below_v);
    vf counted = choose(less(difference, zero), u, one) * below_v * of_below;
    vf inflated = choose(less(zero, logits), v, one) * below_u * of_below;
    vf of_zero = grad * counted;
    store_some(to[0] + i, -(of_zero * load_some(share + i, count)), count);
    if (with_theta) store_some(to[1] + i, of_zero * load_some(of_theta + i, count), count);
    store_some(to[2] + i, grad * (inflated - counted), count);
    if (with_value) { /* softplus(difference) - softplus(-logits) */
        store_some(log_prob + i, at_least(difference, 0.0f) - at_least(-logits, 0.0f), count);
        store_some(ratio + i, (u - v) * (below_u * of_below), count);
    }
}

ALWAYS_INLINE void counts_gradient_vector(int kind, int with_theta, int with_value, nonzero_counts *s, int64_t i,
                                          int64_t count) {
    vf x = load_some(s->x + i, count), mean = load_some(s->mean + i, count), theta = load_some(s->theta + i, count);
    vf grad = load_some(s->grad + i, count), shifted = mean + COUNT_EPS, of_shifted, of_a, of_b;
    count_parts p = parts_of(x, mean, theta);
    vf logits = kind == ZERO_INFLATED ? load_some(s->logits + i, count) : splat(0.0f);
    if (with_value) {
        vf log_prob = count_log_prob(x, mean, p, &of_a, &of_b);
        if (kind == ZERO_INFLATED) log_prob -= softplus_of(logits);
        store_some(s->log_prob + i, log_prob, count);
        of_shifted = 1.0f / shifted;
    } else if (with_theta) { /* one division for three */
        vf ab = p.a * p.b, of_all = 1.0f / (ab * shifted), of_ab = shifted * of_all;
        of_a = p.b * of_ab, of_b = p.a * of_ab, of_shifted = ab * of_all;
    } else {
        of_shifted = 1.0f / shifted;
    }
    store_some(s->first + i, grad * (p.theta * p.of_whole * (((x - mean) - COUNT_EPS) * of_shifted)), count);
    if (with_theta) {
        vf ratio, v = of_theta_of(p, x, mean, of_a, &ratio), zero = {0};
        /* (x - theta mean / s) / whole - v, of x + theta instead of b */
        vf linear = (x * of_a + mean * (COUNT_EPS / p.s)) * p.of_whole - x / (theta * (x + theta));
        vf of_theta = stirling_slope_rise(x, of_a, of_b) - excess_over_log(v, ratio) - choose(p.few, linear, zero);
        store_some(s->second + i, grad * of_theta, count);
    }
    if (kind == ZERO_INFLATED) store_some(s->third + i, -grad * sigmoid_of(logits), count);
}

ALWAYS_INLINE void gradient_of(int kind, int with_theta, int with_value, const likelihood_inputs *in, int64_t n,
                               float *const *to, float *log_prob) {
    nonzero_counts s;
    float share[TILE], log_ratio[TILE], of_theta[TILE];
    find_counts(in, n, &s);
    if (with_theta || with_value || kind == ZERO_INFLATED) EACH_VECTOR(n, ratio_vector, in, share, log_ratio, of_theta);
    if (kind == ZERO_INFLATED) {
        EACH_VECTOR(n, deflated_gradient_vector, with_theta, with_value, in, share, log_ratio, of_theta, to, log_prob,
                    log_ratio);
        if (with_value) EACH_VECTOR(n, add_log1p_vector, log_ratio, log_prob);
    } else if (with_theta || with_value) {
        EACH_VECTOR(n, zeros_gradient_vector, with_value, in, share, log_ratio, of_theta, to, log_prob);
    } else {
        EACH_VECTOR(n, zeros_mean_gradient_vector, in, to[0]);
    }
    gather(kind, 1, in, &s);
    EACH_VECTOR(s.found, counts_gradient_vector, kind, with_theta, with_value, &s);
    scatter(&s, s.first, to[0]);
    if (with_theta) scatter(&s, s.second, to[1]);
    if (kind == ZERO_INFLATED) scatter(&s, s.third, to[2]);
    if (with_value) scatter(&s, s.log_prob, log_prob);
}

/* Of mean, theta if it is wanted, and the logits. */
NEVER_INLINE void counts_gradient(int kind, int with_theta, const likelihood_inputs *in, int64_t n, float *const *to) {
    if (kind == ZERO_INFLATED && with_theta)
        gradient_of(ZERO_INFLATED, 1, 0, in, n, to, NULL);
    else if (kind == ZERO_INFLATED)
        gradient_of(ZERO_INFLATED, 0, 0, in, n, to, NULL);
    else if (with_theta)
        gradient_of(NEGATIVE_BINOMIAL, 1, 0, in, n, to, NULL);
    else
        gradient_of(NEGATIVE_BINOMIAL, 0, 0, in, n, to, NULL);
}

/* log p and all its gradients, which need room for those of theta too. */
NEVER_INLINE void counts_with_gradient(int kind, const likelihood_inputs *in, int64_t n, float *const *to,
                                       float *log_prob) {
    if (kind == ZERO_INFLATED)
        gradient_of(ZERO_INFLATED, 1, 1, in, n, to, log_prob);
    else
        gradient_of(NEGATIVE_BINOMIAL, 1, 1, in, n, to, log_prob);
}
