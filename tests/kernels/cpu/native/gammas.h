/* The gamma functions in double, and those of the kernels beside them. */
#ifndef GAMMAS_H
#define GAMMAS_H

#include "approximate.h"

/* From 10 on the asymptotic series (Abramowitz & Stegun 6.3.18) is off by less than 1e-12. */
static double digamma(double y) {
    double steps = 0.0;
    for (; y < 10.0; y += 1.0) steps += 1.0 / y;
    double square = 1.0 / (y * y);
    double series = square * (1.0 / 12 - square * (1.0 / 120 - square * (1.0 / 252 - square * (1.0 / 240))));
    return log(y) - 0.5 / y - series - steps;
}

/* What digamma is put together from is larger than itself near its zero. */
static double digamma_error(double y) { return FUNCTION * (fabs(log(y)) + 1.0 / y + (y < 4.0 ? 1.0 : 0.0)); }

static approximate lgamma_of(approximate y) { return function_of(y, lgamma(y.value), digamma(y.value), FUNCTION); }

/* lgamma(theta + x) - lgamma(theta) - lgamma(x + 1). */
static approximate lgamma_of_counts(double x, double theta) {
    double rise = lgamma(theta + x) - lgamma(theta), factorial = lgamma(x + 1.0);
    double size = x * (fabs(log(theta + x)) + 2.0) + factorial + (theta < 4.0 ? fabs(log(theta)) + 8.0 : 0.0);
    return (approximate){rise - factorial, 4 * ROUNDING * size};
}

/* digamma(theta + x) - digamma(theta). */
static approximate digamma_rise(double x, double theta) {
    double rise = digamma(theta + x) - digamma(theta), size = rise + 1.0 / theta + (theta < 4.0 ? 1.0 : 0.0);
    return (approximate){rise, FUNCTION * size};
}

/* Around their zeros, around where one formula takes over from another, and at the ends. */
static const double arguments_of_gammas[] = {
    0x1p-126, 1e-30,  1e-8,     0.25,     0.4999999, 0.5,       0.5000001, 0.9,  0.999999, 1.0,  1.000001, 1.4,
    1.4616,   1.4617, 1.499999, 1.5,      1.500001,  1.9,       1.999999,  2.0,  2.000001, 2.1,  2.499999, 2.5,
    2.500001, 3.0,    3.499999, 3.499999, 3.5,       3.500001,  3.999999,  4.0,  4.000001, 8.0,  100.0,    1e4,
    1e8,      1e30,   1e36,     0.0,      INFINITY,  NAN,
};

static void check_gammas_at(const double *y, int64_t n) {
    const shape s = {n, 1, 1};
    tensor at = new_tensor(s, FLOAT32, DENSE);
    tensor of_lgamma = new_tensor(s, FLOAT32, DENSE), of_digamma = new_tensor(s, FLOAT32, DENSE);
    for (int64_t i = 0; i < n; i++) set_bits(&at, i, 0, encode(y[i], FLOAT32));
    isa->gammas(at.view.data, n, of_lgamma.view.data, of_digamma.view.data);
    snprintf(subject, sizeof subject, "%s gamma functions of %lld numbers", isa->name, (long long)n);
    for (int64_t i = 0; i < n; i++) {
        double exact = get(&at, i, 0);
        expect_approximately(&of_lgamma, LGAMMA, i, 0, lgamma_of(exactly(exact)));
        expect(&of_digamma, DIGAMMA, i, 0, as_float(digamma(exact)), digamma_error(exact));
    }
    tensor *const all[] = {&at, &of_lgamma, &of_digamma};
    for (int i = 0; i < COUNT(all); i++) free_tensor(all[i]);
}

static void check_gammas(void) {
    double spread[4000];
    for (int i = 0; i < COUNT(spread); i++) spread[i] = pow(10.0, -8.0 + 16.0 * i / COUNT(spread));
    check_gammas_at(spread, COUNT(spread));
    for (int i = 0; i < COUNT(spread); i++) spread[i] = 4.5 * (i + 1) / COUNT(spread);
    check_gammas_at(spread, COUNT(spread));
    for (int64_t n = 1; n <= 40; n++) check_gammas_at(spread, n); /* every remainder of every vector length */
    check_gammas_at(arguments_of_gammas, COUNT(arguments_of_gammas));
}

#endif
