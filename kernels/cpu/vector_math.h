/* exp, log, sincos, tanh, softplus and sigmoid over whole vectors, without branches.

   Polynomials are minimax fits (Lawson's iteration in 40-digit arithmetic); the bound beside each is its own error,
   before float32 rounding. They are summed in pairs (Estrin), which halves the wait of each step for the one before. */

#define POLY3(x, x2, a, b, c, d) ((a + x * b) + x2 * (c + x * d))
#define POLY4(x, x2, a, b, c, d, e) ((a + x * b) + x2 * ((c + x * d) + x2 * e))
#define POLY6(x, x2, a, b, c, d, e, f, g) ((a + x * b) + x2 * ((c + x * d) + x2 * ((e + x * f) + x2 * g)))

/* What the ops need of logvar, all from one exponential of logvar / 2. */
typedef struct {
    vf std;        /* exp(logvar/2) */
    vf expm1;      /* exp(logvar) - 1 */
    vf expm1_less; /* exp(logvar) - 1 - logvar, exact near 0, never negative */
} exponentials;

/* x = n ln 2 + r:  exp x = 2^n (1 + m), m = exp(r) - 1 = r + r^2 Q(r). Q: relative 6.3e-8. */
typedef struct {
    vf n, m, r2q;
} power;

/* Beyond these bounds exp is 0 or infinite anyway. */
#define LOWEST_POWER -104.0f
#define HIGHEST_POWER 89.0f

ALWAYS_INLINE power power_of(vf x) {
    const float round_to_integer = 12582912.0f; /* 1.5 * 2^23 */
    vf n = x * 1.44269504f + round_to_integer - round_to_integer;
    vf r = x - n * 0.693359375f; /* ln 2 in two parts */
    r = r - n * -2.12194440e-4f;
    vf r2 = r * r;
    vf q = POLY4(r, r2, 0.5f, 0.16666576f, 0.041666374f, 0.0083631817f, 0.0013941124f);
    /* An explicit fused multiply-add: left to the compiler, the rounding of std would depend on the code around it.
       */
    return (power){n, multiply_add(r2, q, r), r2 * q};
}

ALWAYS_INLINE vf value_of(power p) { return times_power_of_two(1.0f + p.m, p.n); }

/* For n = 0, exp(logvar) - 1 = 2m + m^2 and exp(logvar) - 1 - logvar = 2 r^2 Q(r) + m^2, where nothing cancels. */
ALWAYS_INLINE exponentials exponentials_of(vf logvar) {
    power p = power_of(at_most(at_least(logvar * 0.5f, LOWEST_POWER), HIGHEST_POWER));
    vf std = value_of(p), variance_less_1 = std * std - 1.0f;
    mask small = equal(p.n, splat(0.0f));
    return (exponentials){
        .std = std,
        .expm1 = choose(small, p.m * p.m + (p.m + p.m), variance_less_1),
        .expm1_less = choose(small, p.m * p.m + (p.r2q + p.r2q), variance_less_1 - logvar),
    };
}

ALWAYS_INLINE vf exp_of(vf x) { return value_of(power_of(at_most(at_least(x, LOWEST_POWER), HIGHEST_POWER))); }

ALWAYS_INLINE vf absolute(vf x) { return (vf)((vu)x & 0x7fffffffu); }

/* exp(-|x|) */
ALWAYS_INLINE vf exp_of_minus_size(vf x) {
    return value_of(power_of(at_least((vf)((vu)x | 0x80000000u), LOWEST_POWER)));
}

/* -2 log(1 + f) = f^2 (1 - f P(f)) - 2f for 1 + f in [sqrt(1/2), sqrt(2)): 3.2e-8. This is what stands before - 2f. */
ALWAYS_INLINE vf curve_of_log(vf f) {
    vf f2 = f * f;
    vf p = POLY6(f, f2, 0.66667820f, -0.50002676f, 0.39926126f, -0.33155168f, 0.29829538f, -0.28534984f, 0.17400876f);
    return f2 * (1.0f - f * p);
}

#define SQRT_HALF_BITS 0x3f3504f3

/* x = (1 + f) 2^n, for x > 0 and finite; the curve is that of f. */
typedef struct {
    vf n, f, curve;
} logarithm;

ALWAYS_INLINE logarithm logarithm_of_normal(vf x) {
    vi exponent = (vi)((vu)x - SQRT_HALF_BITS) >> 23;
    vf f = (vf)((vu)x - ((vu)exponent << 23)) - 1.0f;
    return (logarithm){__builtin_convertvector(exponent, vf), f, curve_of_log(f)};
}

ALWAYS_INLINE logarithm logarithm_of(vf x) {
    mask subnormal = less(x, splat(0x1p-126f));
    logarithm l = logarithm_of_normal(choose(subnormal, x * 0x1p23f, x));
    l.n -= choose(subnormal, splat(23.0f), splat(0.0f));
    return l;
}

/* log x: -inf at 0, NaN below. */
ALWAYS_INLINE vf value_of_log(vf x, logarithm l) {
    const float infinity = __builtin_inff();
    vf value = l.f + (l.n * -2.12194440e-4f - 0.5f * l.curve); /* ln 2 in two parts */
    value = choose(equal(x, splat(infinity)), x, l.n * 0.693359375f + value);
    vf not_positive = choose(equal(x, splat(0.0f)), splat(-infinity), splat(__builtin_nanf("")));
    return choose(less(splat(0.0f), x), value, not_positive);
}

ALWAYS_INLINE vf log_of(vf x) { return value_of_log(x, logarithm_of(x)); }

ALWAYS_INLINE vf nan_if_negative(vf x, vf value) {
    return choose(less(x, splat(0.0f)), splat(__builtin_nanf("")), value);
}

/* The same as exponentials_of, of std and of the variance themselves. For n = 0, std - 1 = f and
   std^2 - 1 - 2 log std = f^2 + (2f - 2 log(1 + f)), where nothing cancels. */
ALWAYS_INLINE exponentials exponentials_of_std(vf std) {
    logarithm l = logarithm_of(std);
    vf expm1 = nan_if_negative(std, (std - 1.0f) * (std + 1.0f)), far = expm1 - 2.0f * value_of_log(std, l);
    return (exponentials){std, expm1, choose(equal(l.n, splat(0.0f)), l.f * l.f + l.curve, far)};
}

ALWAYS_INLINE exponentials exponentials_of_variance(vf variance) {
    logarithm l = logarithm_of(variance);
    vf expm1 = nan_if_negative(variance, variance - 1.0f), far = expm1 - value_of_log(variance, l);
    return (exponentials){square_root(variance), expm1, choose(equal(l.n, splat(0.0f)), 0.5f * l.curve, far)};
}

/* tanh x = x + x^3 T(x^2) for |x| < 0.625: relative 4.4e-9; beyond, 1 - 2 / (exp(2|x|) + 1) with the sign of x. */
ALWAYS_INLINE vf tanh_of(vf x) {
    vf x2 = x * x, size = absolute(x);
    vf t = POLY4(x2, x2 * x2, -0.33333282f, 0.13331442f, -0.053739716f, 0.020639087f, -0.0057049858f);
    vf large = 1.0f - 2.0f / (exp_of(size + size) + 1.0f);
    vf signed_large = (vf)((vu)large | ((vu)x & 0x80000000u));
    return choose(less(size, splat(0.625f)), x + x * x2 * t, signed_large);
}

/* 1 - tanh^2 x, which would cancel: 4u / (1 + u)^2, u = exp(-2|x|). */
ALWAYS_INLINE vf tanh_slope_of(vf x) {
    vf u = exp_of_minus_size(x + x), below = 1.0f + u;
    return 4.0f * u / (below * below);
}

/* log(1 + exp x) = max(x, 0) + log(1 + u), u = exp(-|x|) and log(1 + u) = u L(u). L: relative 3.0e-8. */
ALWAYS_INLINE vf softplus_of(vf x) {
    vf u = exp_of_minus_size(x), u2 = u * u, u4 = u2 * u2;
    vf low = POLY3(u, u2, 0.99999997f, -0.49999493f, 0.33319097f, -0.24842982f);
    vf high = POLY3(u, u2, 0.19106006f, -0.13663245f, 0.078225942f, -0.029505232f) + u4 * 0.0052326927f;
    return at_least(x, 0.0f) + u * (low + u4 * high);
}

/* 1 / (1 + exp(-x)). */
ALWAYS_INLINE vf sigmoid_of(vf x) {
    vf u = exp_of_minus_size(x);
    return choose(less(x, splat(0.0f)), u, splat(1.0f)) / (1.0f + u);
}

/* sqrt(-2 ln u), u = (word + 0.5) 2^-32. */
ALWAYS_INLINE vf radius_of(vu word) {
    vf x = __builtin_convertvector(word, vf) + 0.5f;
    vi exponent = ((vi)x - SQRT_HALF_BITS) >> 23; /* x = (1 + f) 2^exponent */
    vf f = (vf)((vi)x - (exponent << 23)) - 1.0f;
    /* For u above sqrt(1/2), f = u - 1 is the word as a signed one, which keeps the bits that rounding x has lost. */
    vf below_1 = __builtin_convertvector((vi)word, vf) * 0x1p-32f + 0x1p-33f;
    f = choose(equal_integers(exponent, (vi){0} + 32), below_1, f);
    vf minus_2_ln_power = __builtin_convertvector(exponent, vf) * -1.38629436f + 32 * 1.38629436f;
    return square_root((minus_2_ln_power - 2.0f * f) + curve_of_log(f));
}

/* cos and sin of t = 2 pi word 2^-32: the nearest quarter turn is taken off in integers, so the rest x is within
   [-pi/4, pi/4) and exact. sin x = x + x^3 S(x^2): 3.8e-9; cos x = 1 - x^2/2 + x^4 C(x^2): 1.2e-10. */
ALWAYS_INLINE void cos_sin_of(vu word, vf *cosine, vf *sine) {
    vf x = __builtin_convertvector((vi)(word << 2), vf) * (1.57079633f * 0x1p-32f);
    vf x2 = x * x;
    vf s = x + x * x2 * (-0.16666655f + x2 * (0.0083321603f + x2 * -0.00019515282f));
    vf c = 1.0f + x2 * (-0.5f + x2 * (0.041666646f + x2 * (-0.0013887316f + x2 * 2.4433157e-05f)));
    /* Bits 31 and 30 of `quarters` count the quarter turns: after an odd number sine and cosine change places, after
       two or three the sine is negative, after one or two the cosine. */
    const uint32_t sign = 0x80000000u;
    vu quarters = word + 0x20000000u, odd = quarters << 1;
    mask change = sign_of(odd);
    *cosine = (vf)((vu)choose(change, s, c) ^ ((quarters ^ odd) & sign));
    *sine = (vf)((vu)choose(change, c, s) ^ (quarters & sign));
}
