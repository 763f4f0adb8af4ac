/* lgamma, digamma and differences of them, for positive arguments, over whole vectors.

   From 4 on the asymptotic series (Abramowitz & Stegun 6.1.41 and 6.3.18) with four terms are good to 8e-9. In what is
   made of series alone, arguments below are raised by 4: Gamma(y + 4) = y (y+1) (y+2) (y+3) Gamma(y). */

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

typedef struct {
    vf y;         /* raised by 4 where it was below */
    vf by;        /* 4 or 0 */
    vf product;   /* Gamma(y) / Gamma(argument) */
    vf log_slope; /* d log product / d argument */
} raised;

ALWAYS_INLINE raised raised_of(vf y) {
    mask small = less(y, splat(4.0f));
    vf u = y * (y + 3.0f), v = u + 2.0f; /* v = (y + 1)(y + 2) */
    vf by = choose(small, splat(4.0f), splat(0.0f));
    return (raised){
        .y = y + by,
        .by = by,
        .product = choose(small, u * v, splat(1.0f)),
        .log_slope = choose(small, (y + y + 3.0f) / u + (y + y + 3.0f) / v, splat(0.0f)),
    };
}

/* lgamma(y) - ((y - 1/2) log y - y + 1/2 log 2 pi), from 1/y. */
ALWAYS_INLINE vf lgamma_series(vf inverse) {
    vf square = inverse * inverse;
    return inverse * (1.0f / 12 + square * (-1.0f / 360 + square * (1.0f / 1260 + square * (-1.0f / 1680))));
}

/* log y - digamma(y), from 1/y. */
ALWAYS_INLINE vf digamma_series(vf inverse) {
    vf square = inverse * inverse;
    vf t = 1.0f / 12 + square * (-1.0f / 120 + square * (1.0f / 252 + square * (-1.0f / 240)));
    return inverse * (0.5f + inverse * t);
}

/* lgamma(2 + d) = d L(d) for |d| < 1/2, L: relative 2.1e-8. Below 4 the argument is brought there by its factors; from
   there on it is Stirling's series. Either takes one logarithm. */
ALWAYS_INLINE vf lgamma_of(vf y) {
    const float half_log_2_pi_less_half = 0.41893853f;
    mask to_0 = less(y, splat(0.5f)), to_1 = less(y, splat(1.5f)), to_2 = less(y, splat(2.5f));
    mask to_3 = less(y, splat(3.5f)), near = less(y, splat(4.0f));
    vf factor = choose(to_3, y - 1.0f, (y - 1.0f) * (y - 2.0f)), whole = choose(to_3, splat(3.0f), splat(4.0f));
    factor = choose(to_2, splat(1.0f), factor), whole = choose(to_2, splat(2.0f), whole);
    factor = choose(to_1, y, factor), whole = choose(to_1, splat(1.0f), whole);
    factor = choose(to_0, y * (y + 1.0f), factor), whole = choose(to_0, splat(0.0f), whole);
    vf d = y - whole, d2 = d * d, log = log_of(choose(near, factor, y));
    vf low = POLY3(d, d2, 0.42278434f, 0.32246696f, -0.067353233f, 0.020583555f);
    vf high = POLY3(d, d2, -0.0073667751f, 0.0028634376f, -0.0013116208f, 0.00060551722f);
    vf near_2 = d * (low + d2 * d2 * high) + choose(to_1, -log, log);
    return choose(near, near_2, (y - 0.5f) * (log - 1.0f) + (half_log_2_pi_less_half + lgamma_series(1.0f / y)));
}

ALWAYS_INLINE vf digamma_of(vf y) {
    raised a = raised_of(y);
    return log_of(a.y) - digamma_series(1.0f / a.y) - a.log_slope;
}

/* Most counts are small. Of integers up to this one, Gamma(theta + x) / Gamma(theta) is a product of x factors, which
   needs no gamma function. theta is bounded so that the product is finite. */
#define FEW 8
#define LARGEST_THETA_OF_FEW 1e4f

ALWAYS_INLINE mask are_few(vf x, vf theta) {
    vf whole = __builtin_convertvector(__builtin_convertvector(x, vi), vf);
    return equal(x, whole) & less_or_equal(splat(0.0f), x) & less_or_equal(x, splat(FEW)) &
           less_or_equal(theta, splat(LARGEST_THETA_OF_FEW));
}

/* theta (theta + 1) .. (theta + x - 1), its derivative by theta, and x!. */
typedef struct {
    vf product, slope, factorial;
} rising;

ALWAYS_INLINE rising rising_of(vf x, vf theta) {
    rising r = {splat(1.0f), splat(0.0f), splat(1.0f)};
#pragma GCC unroll 8
    for (int k = 0; k < FEW; k++) {
        mask counts = less(splat((float)k), x);
        vf factor = theta + (float)k;
        r.slope = choose(counts, r.slope * factor + r.product, r.slope);
        r.product = choose(counts, r.product * factor, r.product);
        r.factorial = choose(counts, r.factorial * (float)(k + 1), r.factorial);
    }
    return r;
}

/* lgamma(theta + x) - lgamma(theta) - lgamma(x + 1): of theta and x nothing large is taken from something large. */
ALWAYS_INLINE vf lgamma_of_any_counts(vf x, vf theta) {
    raised a = raised_of(theta), b = raised_of(theta + x);
    vf between = x + (b.by - a.by); /* from a.y to b.y */
    vf rise = (a.y - 0.5f) * log1p_of(between / a.y) + between * (log_of(b.y) - 1.0f);
    rise += lgamma_series(1.0f / b.y) - lgamma_series(1.0f / a.y);
    return (rise - lgamma_of(x + 1.0f)) + log_of(a.product / b.product);
}

ALWAYS_INLINE vf lgamma_of_counts(vf x, vf theta) {
    mask few = are_few(x, theta);
    rising r = rising_of(x, theta);
    vf of_few = log_of(r.product / r.factorial);
    return holds_everywhere(few) ? of_few : choose(few, of_few, lgamma_of_any_counts(x, theta));
}

/* digamma(theta + x) - digamma(theta) */
ALWAYS_INLINE vf digamma_rise_of_any(vf x, vf theta) {
    raised a = raised_of(theta), b = raised_of(theta + x);
    vf rise = log1p_of((x + (b.by - a.by)) / a.y) + (digamma_series(1.0f / a.y) - digamma_series(1.0f / b.y));
    return rise + (a.log_slope - b.log_slope);
}

ALWAYS_INLINE vf digamma_rise(vf x, vf theta) {
    mask few = are_few(x, theta);
    rising r = rising_of(x, theta);
    vf of_few = r.slope / r.product;
    return holds_everywhere(few) ? of_few : choose(few, of_few, digamma_rise_of_any(x, theta));
}

/* For the tests. */
static void ISA_NAME(gammas)(const float *y, int64_t n, float *lgamma, float *digamma) {
    for (int64_t i = 0; i < n; i += LANES) {
        int64_t count = n - i < LANES ? n - i : LANES;
        vf value = load_some(y + i, count);
        store_some(lgamma + i, lgamma_of(value), count);
        store_some(digamma + i, digamma_of(value), count);
    }
}
