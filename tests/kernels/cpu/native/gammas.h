/* Gamma functions in double, and what float32 may lose of them. */
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

static approximate lgamma_of(approximate y) { return function_of(y, lgamma(y.value), digamma(y.value), FUNCTION); }

/* lgamma(theta + x) - lgamma(theta) - lgamma(x + 1). */
static approximate lgamma_of_counts(double x, double theta) {
    double rise = lgamma(theta + x) - lgamma(theta), factorial = lgamma(x + 1.0);
    double size = x * (fabs(log(theta + x)) + 2.0) + factorial + (theta < 4.0 ? fabs(log(theta)) + 8.0 : 0.0);
    if (x < 1.0) size += 1.0; /* no count; the kernel takes x + 1 for it, and terms of about 1 cancel */
    return (approximate){rise - factorial, 4 * ROUNDING * size};
}

/* digamma(theta + x) - digamma(theta). */
static approximate digamma_rise(double x, double theta) {
    double rise = digamma(theta + x) - digamma(theta), size = rise + 1.0 / theta + (theta < 4.0 ? 1.0 : 0.0);
    return (approximate){rise, FUNCTION * size};
}

#endif
