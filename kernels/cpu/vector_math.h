/* exp, log and sincos for the ranges that the latents need, over whole vectors, without branches.

   Polynomials are minimax fits (Lawson's iteration in 40-digit arithmetic); the bound beside each is its own error,
   before float32 rounding. */

#define POLY3(x, a, b, c, d) (a + x * (b + x * (c + x * d)))
#define POLY4(x, a, b, c, d, e) (a + x * POLY3(x, b, c, d, e))
#define POLY5(x, a, b, c, d, e, f) (a + x * POLY4(x, b, c, d, e, f))
#define POLY6(x, a, b, c, d, e, f, g) (a + x * POLY5(x, b, c, d, e, f, g))

/* What the ops need of logvar, all from one exponential of logvar / 2. */
typedef struct {
    vf std;       /* exp(logvar/2) */
    vf expm1;     /* exp(logvar) - 1 */
    vf expm1_less; /* exp(logvar) - 1 - logvar, exact near 0, never negative */
} scale;

static inline vf power_of_two(vi n) { return (vf)((n + 127) << 23); }

/* With half = logvar/2 = n ln 2 + r and m = exp(r) - 1 = r + r^2 Q(r):  std = 2^n (1 + m), and for n = 0
   exp(logvar) - 1 = 2m + m^2,  exp(logvar) - 1 - logvar = 2 r^2 Q(r) + m^2, where nothing cancels. Q: relative 6.3e-8. */
static inline scale scale_of(vf logvar) {
    vf half = logvar * 0.5f;
    /* Beyond these bounds exp is 0 or infinite anyway; a NaN compares false and passes. */
    half = select_f(half < -104.0f, splat(-104.0f), half);
    half = select_f(half > 89.0f, splat(89.0f), half);
    const float round_to_integer = 12582912.0f; /* 1.5 * 2^23 */
    vf shifted = half * 1.44269504f + round_to_integer;
    vi n = (vi)shifted - (vi)splat(round_to_integer);
    vf n_float = shifted - round_to_integer;
    vf r = half - n_float * 0.693359375f; /* ln 2 in two parts */
    r = r - n_float * -2.12194440e-4f;
    vf r2q = r * r * POLY4(r, 0.5f, 0.16666576f, 0.041666374f, 0.0083631817f, 0.0013941124f);
    vf m = r + r2q;
    vi n_half = n >> 1;
    vf std = (1.0f + m) * power_of_two(n_half) * power_of_two(n - n_half);
    vf variance = std * std;
    vi small = n == 0;
    return (scale){
        .std = std,
        .expm1 = select_f(small, m * (2.0f + m), variance - 1.0f),
        .expm1_less = select_f(small, r2q + r2q + m * m, variance - 1.0f - logvar),
    };
}

/* sqrt(-2 ln u), u = (word + 0.5) 2^-32. log(1 + f) = f - f^2/2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)): 3.2e-8. */
static inline vf radius_of(vu word) {
    vf x = __builtin_convertvector(word, vf) + 0.5f;
    vi exponent = ((vi)x - 0x3f3504f3) >> 23; /* x = (1 + f) 2^exponent */
    vf f = (vf)((vi)x - (exponent << 23)) - 1.0f;
    /* For u above sqrt(1/2), f = u - 1 comes from the complement, which keeps the bits that rounding x has lost. */
    vf above = (__builtin_convertvector(~word, vf) + 0.5f) * -0x1p-32f;
    f = select_f(exponent == 32, above, f);
    vf f2 = f * f;
    vf p = POLY6(f, 0.33333910f, -0.25001338f, 0.19963063f, -0.16577584f, 0.14914769f, -0.14267492f, 0.08700438f);
    vf log1p = f - f2 * (0.5f - f * p);
    vf log_u = log1p + __builtin_convertvector(exponent - 32, vf) * 0.693147181f;
    return square_root(log_u * -2.0f);
}

/* cos and sin of t = 2 pi word 2^-32: the nearest quarter turn is taken off in integers, so the rest x is within
   [-pi/4, pi/4) and exact. sin x = x + x^3 S(x^2): 3.8e-9; cos x = 1 - x^2/2 + x^4 C(x^2): 1.2e-10. */
static inline void cos_sin_of(vu word, vf *cosine, vf *sine) {
    vu quarter = (word + 0x20000000u) >> 30;
    vf x = __builtin_convertvector((vi)(word << 2), vf) * (1.57079633f * 0x1p-32f);
    vf x2 = x * x;
    vf s = x + x * x2 * (-0.16666655f + x2 * (0.0083321603f + x2 * -0.00019515282f));
    vf c = 1.0f + x2 * (-0.5f + x2 * (0.041666646f + x2 * (-0.0013887316f + x2 * 2.4433157e-05f)));
    vi odd = (vi)(0 - (quarter & 1));
    vu negative_cosine = ((quarter + 1) & 2) << 30, negative_sine = (quarter & 2) << 30;
    *cosine = (vf)((vu)select_f(odd, s, c) ^ negative_cosine);
    *sine = (vf)((vu)select_f(odd, c, s) ^ negative_sine);
}
