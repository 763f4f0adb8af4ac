/* What likelihoods of counts are made of: logarithms near 1, and what Stirling's formula leaves of gamma functions. */

/* log(1 + r) for r > -1, without the rounding of 1 + r where it is near 1. Infinite r gives NaN. */
ALWAYS_INLINE vf log1p_of(vf r) {
    vf x = 1.0f + r;
    vi exponent = (vi)((vu)x - SQRT_HALF_BITS) >> 23; /* x = (1 + f) 2^exponent */
    vf f = (vf)((vu)x - ((vu)exponent << 23)) - 1.0f;
    f = choose(equal_integers(exponent, (vi){0}), r, f);
    vf n = __builtin_convertvector(exponent, vf);
    vf value = f + (n * -2.12194440e-4f - 0.5f * curve_of_log(f));
    return n * 0.693359375f + value + (r - r);
}

/* softplus(a) - softplus(b) = rise + log(1 + ratio): u = exp(-|a|), v = exp(-|b|), log((1 + u) / (1 + v)). */
typedef struct {
    vf rise, ratio;
} softplus_difference;

ALWAYS_INLINE softplus_difference softplus_difference_of(vf a, vf b) {
    vf u = exp_of_minus_size(a), v = exp_of_minus_size(b);
    return (softplus_difference){at_least(a, 0.0f) - at_least(b, 0.0f), (u - v) / (1.0f + v)};
}

/* g(e) = e - log(1 + e) >= 0, from e, which keeps its digits where it is small, and from ratio = 1 + e > 0, which keeps its
   own where that is near 0. */
ALWAYS_INLINE vf excess_over_log(vf excess, vf ratio) {
    logarithm l = logarithm_of_normal(ratio);
    vf f = choose(equal(l.n, splat(0.0f)), excess, l.f);
    vf curve = 0.5f * curve_of_log(f); /* f - log(1 + f) */
    return ((excess - f) - l.n * 0.693359375f) + (l.n * 2.12194440e-4f + curve);
}

/* R: lgamma(y) = (y - 1/2) log y - y + 1/2 log 2 pi + R(y), for y >= 1 from 1/y: a minimax polynomial, off by 1.1e-8. */
ALWAYS_INLINE vf stirling(vf inverse) {
    vf u = inverse * inverse, u2 = u * u;
    return inverse * (POLY3(u, u2, 0.083333217f, -0.0027737368f, 0.00075244531f, -0.00039073417f) +
                      u2 * u2 * (0.00018382764f - u * 4.3557731e-05f));
}

/* D: digamma(y) = log y - D(y), D = 1/(2y) + s / y^2. This is s, for y >= 1 from 1/y^2; D is off by 2.9e-8. */
ALWAYS_INLINE vf stirling_slope(vf square) {
    vf square2 = square * square;
    return POLY3(square, square2, 0.083331227f, -0.0082830898f, 0.0035395771f, -0.0021913035f) +
           square2 * square2 * (0.0010693232f - square * 0.00025009774f);
}

/* D(a) - D(b), b = x + a, from 1/a and 1/b: D's leading parts are subtracted in one fraction, x / (a b). */
ALWAYS_INLINE vf stirling_slope_rise(vf x, vf of_a, vf of_b) {
    vf square_a = of_a * of_a, slope_a = stirling_slope(square_a), slope_b = stirling_slope(of_b * of_b);
    return x * of_a * of_b * (0.5f + (of_a + of_b) * slope_b) + square_a * (slope_a - slope_b);
}
