/* The scaled Bernoulli: x > 0 with probability q = p d f, as the accessibility of a region in a cell (likelihood_spec.py). */

typedef struct {
    vf p, d, f, q;
} scaled_probability;

ALWAYS_INLINE scaled_probability scaled_probability_of(const likelihood_inputs *in, int64_t i, int64_t count) {
    vf p = load_ahead(in->parameters[0], i, count, in->ahead), d = load_some(in->parameters[1] + i, count);
    vf f = load_some(in->parameters[2] + i, count);
    return (scaled_probability){p, d, f, p * d * f};
}

/* log x from x and x - 1, of which the one that is exact counts. */
ALWAYS_INLINE vf log_of_probability(vf x, vf excess) {
    logarithm l = logarithm_of(x);
    vf f = choose(equal(l.n, splat(0.0f)), excess, l.f);
    return value_of_log(x, (logarithm){l.n, f, curve_of_log(f)});
}

ALWAYS_INLINE void scaled_bernoulli_vector(const likelihood_inputs *in, float *log_prob, int64_t i, int64_t count) {
    vf x = load_ahead(in->x, i, count, in->ahead), q = scaled_probability_of(in, i, count).q;
    mask came = less(splat(0.0f), x);
    vf log = log_of_probability(choose(came, q, 1.0f - q), choose(came, q - 1.0f, -q));
    store_some(log_prob + i, choose(equal(x, x), at_least(log, -100.0f), x), count);
}

ALWAYS_INLINE void scaled_bernoulli_gradient_vector(const likelihood_inputs *in, float *const *to, int64_t i,
                                                    int64_t count) {
    vf x = load_ahead(in->x, i, count, in->ahead), grad = load_some(in->grad + i, count);
    scaled_probability s = scaled_probability_of(in, i, count);
    vf came = choose(equal(x, x), choose(less(splat(0.0f), x), splat(1.0f), splat(0.0f)), x);
    vf of_q = grad * ((came - s.q) / at_least((1.0f - s.q) * s.q, 1e-12f));
    store_some(to[0] + i, of_q * s.d * s.f, count);
    store_some(to[1] + i, of_q * s.p * s.f, count);
    store_some(to[2] + i, of_q * s.p * s.d, count);
}
