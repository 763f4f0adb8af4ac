/* Numbers that know how far off float32 may be: exact values with a bound on what float32, operation by operation, may
   have lost. Formulas in them are formulas and error analysis at once. */
#ifndef APPROXIMATE_H
#define APPROXIMATE_H

#include "problems.h"

typedef struct {
    double value, error;
} approximate;

static approximate exactly(double value) { return (approximate){value, 0.0}; }

static approximate with_rounding(double value, double error) {
    return (approximate){value, error + nearly(value, ROUNDING)};
}

/* What an error grows to under a factor, infinite ones too. */
static double grown(double factor, double error) { return error > 0.0 && factor != 0.0 ? fabs(factor) * error : 0.0; }

static approximate sum(approximate a, approximate b) { return with_rounding(a.value + b.value, a.error + b.error); }

static approximate product(approximate a, approximate b) {
    double error = grown(a.value, b.error) + grown(b.value, a.error) + grown(a.error, b.error);
    return with_rounding(a.value * b.value, error);
}

static approximate scaled(double factor, approximate a) { return product(exactly(factor), a); }
static approximate difference(approximate a, approximate b) { return sum(a, scaled(-1.0, b)); }

/* A function of x: its value and slope there, and the relative error of how it is computed. */
static approximate function_of(approximate x, double value, double slope, double relative) {
    return (approximate){value, grown(slope, x.error) + nearly(value, relative)};
}

#define FUNCTION (8 * ROUNDING) /* of log, tanh, softplus, sigmoid and division */

static approximate exp_of(approximate x) {
    double value = exp(x.value);
    return function_of(x, value, value * exp(x.error), EXP_ERROR);
}

static approximate log_of(approximate x) { return function_of(x, log(x.value), 1.0 / x.value, FUNCTION); }
static approximate root_of(approximate x) { return function_of(x, sqrt(x.value), 0.5 / sqrt(x.value), ROUNDING); }
static approximate inverse_of(approximate x) {
    return function_of(x, 1.0 / x.value, 1.0 / (x.value * x.value), ROUNDING);
}

static approximate sigmoid_of(approximate x) {
    double value = x.value < 0.0 ? exp(x.value) / (1.0 + exp(x.value)) : 1.0 / (1.0 + exp(-x.value));
    return function_of(x, value, value, FUNCTION);
}

static approximate softplus_of(approximate x) {
    double value = fmax(x.value, 0.0) + log1p(exp(-fabs(x.value)));
    return function_of(x, value, 1.0, FUNCTION);
}

static approximate tanh_of(approximate x) {
    double steepest = tanh(fmax(fabs(x.value) - x.error, 0.0));
    return function_of(x, tanh(x.value), 1.0 - steepest * steepest, FUNCTION);
}

static approximate expm1_of(approximate x) { return function_of(x, expm1(x.value), exp(x.value + x.error), EXPM1); }

/* expm1(x) - x, whose slope at 0 is 0: there the error of x counts squared. */
static approximate expm1_less_of(approximate x) {
    double steepest = fabs(expm1(x.value)) + x.error * exp(x.value + x.error);
    return function_of(x, exact_scale_of(x.value).expm1_less, steepest, EXPM1);
}

/* A sum of many, added one at a time; finished, it is off by what they are and by the rounding of a row. */
typedef struct {
    double value, error, size;
} long_sum;

static void add_to(long_sum *s, approximate a) {
    s->value += a.value;
    s->error += a.error;
    s->size += fabs(a.value);
}

static approximate sum_of(long_sum s) { return (approximate){s.value, s.error + nearly(s.size, ROW_SUM)}; }

static void expect_approximately(tensor *t, int quantity, int64_t row, int64_t d, approximate a) {
    double in_range = isinf(as_float(a.value)) ? as_float(a.value) : a.value; /* not rounded otherwise */
    expect(t, quantity, row, d, in_range, a.error);
}

#endif
