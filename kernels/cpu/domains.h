/* Whether all values are in the density's domain (likelihood_spec.py), found in the tile that is computed anyway. */

ALWAYS_INLINE void domain_vector(int kind, const likelihood_inputs *in, int *outside, int64_t i, int64_t count) {
    vf value = kind == SCALED_BERNOULLI ? scaled_probability_of(in, i, count).q : load_some(in->x + i, count);
    mask holds = less_or_equal(splat(0.0f), value);
    if (kind == SCALED_BERNOULLI) {
        holds &= less_or_equal(value, splat(1.0f));
    } else { /* from 2^23 on every float is whole */
        vf small = at_most(value, 0x1p23f), whole = __builtin_convertvector(__builtin_convertvector(small, vi), vf);
        holds &= equal(small, whole) & less(value, splat(__builtin_inff()));
    }
    *outside |= !holds_everywhere(holds);
}

NEVER_INLINE void notice(const call *c, const likelihood_inputs *in, int64_t n) {
    int kind = c->likelihood.kind, outside = 0;
    if (kind == SCALED_BERNOULLI)
        EACH_VECTOR(n, domain_vector, SCALED_BERNOULLI, in, &outside);
    else if (kind == POISSON || kind == NEGATIVE_BINOMIAL || kind == ZERO_INFLATED)
        EACH_VECTOR(n, domain_vector, POISSON, in, &outside);
    if (outside) __atomic_store_n(c->noticed, 1, __ATOMIC_RELAXED); /* by several threads, all the same */
}
