/* What there is to compute: shapes, values, seeds; the exact results; how far from them float32 may end. */
#ifndef PROBLEMS_H
#define PROBLEMS_H

#include "expect.h"
#include "stream.h"

/* One rounding of float32, and the smallest float32 there is. */
#define ROUNDING 0x1p-24
#define SMALLEST 0x1p-149

/* Error of eps, relative to 1 + |eps|. The contract grants every backend 1e-5, and 2e-4 to rare draws; these kernels
   take the logarithm near u = 1 from the word itself and need neither. */
#define EPS 5e-7

/* Relative errors: of exp(logvar/2), of expm1(logvar) and expm1(logvar) - logvar, and of a sum of one row. */
#define EXP_ERROR (8 * ROUNDING)
#define EXPM1 (32 * ROUNDING)
#define ROW_SUM (24 * ROUNDING)

typedef struct {
    shape shape;
    int dtype, extreme; /* extreme: with infinities, NaN, and logvar at the ends of its range */
    int64_t seed;
    uint64_t row_offset;
    uint32_t draw;
    double *eps; /* exact, row after row */
} problem;

static problem new_problem(shape s, int dtype, int extreme, int64_t seed, uint64_t row_offset,
                           uint32_t draw) {
    problem p = {s, dtype, extreme, seed, row_offset, draw, NULL};
    int64_t event = event_of(s);
    p.eps = malloc(sizeof(double) * (size_t)(s.rows * event + 1));
    for (int64_t row = 0; row < s.rows; row++)
        for (int64_t d = 0; d < event; d++)
            p.eps[row * event + d] = normal_at((uint64_t)seed, row_offset + (uint64_t)row, d, draw);
    return p;
}

static uint64_t random_state = 1;

/* Uniform in [-1, 1), another one at each call. */
static double next_uniform(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) * 0x1p-52 - 1.0;
}

/* No finite product of these that is added to another leaves the range of float32: whether the sum is infinite then
   would depend on which of the two the compiler fuses with it. (mu^2 does; what is added to it is not negative.) */
static const double extreme_logvars[] = {
    1e4,  -1e4, INFINITY, -INFINITY, NAN,    1e-40,  -1e-40, 6e-8,  -6e-8, 1e-30, 0.0,  -0.0,  80.0,
    89.0, -87.0, 160.0,    179.0,     -200.0, -208.0, 0.69,   -0.69, 20.0,  -30.0, 3e38, -1e30,
};
static const double extreme_mus[] = {INFINITY, 1e20, -INFINITY, NAN, -1e20, 1e-40, 1e30, -0.0};
static const double extreme_gradients[] = {INFINITY, 1e3, -INFINITY, NAN, -1e3, 1e-40, -0.0};

/* Gives every element of t a value; magnitude bounds the ordinary ones. */
static void fill(tensor *t, const problem *p, double magnitude, const double *extremes, int how_many, int every) {
    int64_t count = 0;
    for (int64_t row = 0; row < t->shape.rows; row++)
        for (int64_t d = 0; d < event_of(t->shape); d++, count++) {
            double value = magnitude * next_uniform();
            if (count % 5 == 3) value *= 1e-3; /* near 0 the KL is small and must be right relative to that */
            if (p->extreme && count % every == 1) value = extremes[count / every % how_many];
            set_bits(t, row, d, encode(value, t->dtype));
        }
}

#define COUNT(list) ((int)(sizeof(list) / sizeof *(list)))

static void fill_mu(tensor *t, const problem *p) { fill(t, p, 2.0, extreme_mus, COUNT(extreme_mus), 7); }
static void fill_logvar(tensor *t, const problem *p) { fill(t, p, 4.0, extreme_logvars, COUNT(extreme_logvars), 3); }
static void fill_gradient(tensor *t, const problem *p) {
    fill(t, p, 3.0, extreme_gradients, COUNT(extreme_gradients), 11);
}

/* A relative tolerance, where float32 has the digits for it. */
static double nearly(double value, double relative) { return relative * fabs(value) + 4 * SMALLEST; }

/* What one coordinate's logvar, exactly, comes to; what float32 cannot hold is infinite in the kernels, too. */
typedef struct {
    double std, expm1, expm1_less;
} exact_scale;

static exact_scale exact_scale_of(double logvar) {
    double expm1_less = expm1(logvar) - logvar;
    if (fabs(logvar) < 1e-3) /* where double itself loses digits, the series */
        expm1_less = logvar * logvar * (0.5 + logvar * (1.0 / 6 + logvar / 24));
    return (exact_scale){as_float(exp(0.5 * logvar)), as_float(expm1(logvar)), as_float(expm1_less)};
}

/* std * eps, the part of z that is drawn, and how far off it may be. */
typedef struct {
    double value, tolerance;
} drawn;

static drawn drawn_part(double std, double eps) {
    double of_eps = std * EPS * (1.0 + fabs(eps)), of_std = nearly(std, EXP_ERROR) * fabs(eps);
    return (drawn){as_float(std * eps), of_eps + of_std + nearly(std * eps, ROUNDING)};
}

#endif
