/* The formulas of likelihood_spec.py for one coordinate, with the error that float32 may have: the
   log-probability, and its derivative by each parameter. */
#ifndef LIKELIHOOD_FORMULAS_H
#define LIKELIHOOD_FORMULAS_H

#include "gammas.h"

typedef struct {
    approximate log_prob, by[MOST_PARAMETERS];
} exact_likelihood;

static approximate log1p_of(approximate x) { return function_of(x, log1p(x.value), 1.0 / (1.0 + x.value), FUNCTION); }

/* log(l / tanh(l/2)), and its derivative 1/l - 1/sinh l; near 0 their series, where double itself loses digits. */
static approximate log_normalizer_of(double l) {
    double value = fabs(l) < 1e-4 ? log(2.0) + l * l / 12 : log(l / tanh(0.5 * l));
    return (approximate){value, nearly(value, FUNCTION) + 4 * ROUNDING};
}

static approximate normalizer_gradient_of(double l) {
    if (fabs(l) < 0.01) return with_rounding(l / 6 - l * l * l * 7 / 360, FUNCTION * fabs(l) / 6);
    return (approximate){1.0 / l - 1.0 / sinh(l), fabs(l) < 0.5 ? FUNCTION * fabs(l) / 6 : FUNCTION / fabs(l)};
}

static approximate bounded(double raw, const likelihood *d) {
    return exactly(raw < d->low ? d->low : raw > d->high ? d->high : raw); /* NaN stays */
}

/* The gradient of a parameter from the derivative: 0 where the parameter is clamped, whatever the gradient of log p is. */
static approximate gradient_of_parameter(const likelihood *d, int i, double raw, approximate given, approximate by) {
    int is_scale = i == 1 && (d->kind == GAUSSIAN || d->kind == LAPLACE || d->kind == LOG_NORMAL);
    return is_scale && (raw < d->low || raw > d->high) ? exactly(0.0) : product(given, by);
}

static exact_likelihood of_bernoulli(int kind, double x, double l) {
    approximate at = exactly(l), data = exactly(x);
    exact_likelihood e = {difference(product(data, at), softplus_of(at)), {difference(data, sigmoid_of(at))}};
    if (kind == CONTINUOUS_BERNOULLI) {
        e.log_prob = sum(e.log_prob, log_normalizer_of(l));
        e.by[0] = sum(e.by[0], normalizer_gradient_of(l));
    }
    return e;
}

static exact_likelihood of_gaussian(approximate x, const double *values, const likelihood *d) {
    approximate logvar = bounded(values[1], d), distance = difference(x, exactly(values[0]));
    approximate by_mean = product(distance, exp_of(scaled(-1.0, logvar))), squared = product(distance, by_mean);
    approximate constant = with_rounding(log(2.0 * acos(-1.0)), 0.0);
    return (exact_likelihood){
        scaled(-0.5, sum(sum(squared, logvar), constant)),
        {by_mean, scaled(0.5, difference(squared, exactly(1.0)))},
    };
}

static exact_likelihood of_laplace(double x, const double *values, const likelihood *d) {
    approximate logscale = bounded(values[1], d), distance = difference(exactly(x), exactly(values[0]));
    approximate inverse = exp_of(scaled(-1.0, logscale));
    double sign = isnan(distance.value) ? NAN : (distance.value > 0.0) - (distance.value < 0.0);
    approximate size = product((approximate){fabs(distance.value), distance.error}, inverse);
    return (exact_likelihood){
        scaled(-1.0, sum(sum(size, logscale), with_rounding(log(2.0), 0.0))),
        {
            sign == 0.0 ? exactly(0.0) : scaled(sign, inverse),
            difference(size, exactly(1.0)),
        },
    };
}

static exact_likelihood of_log_normal(double x, const double *values, const likelihood *d) {
    approximate log_x = log_of(exactly(x));
    exact_likelihood e = of_gaussian(log_x, values, d);
    e.log_prob = difference(e.log_prob, x == 0.0 ? exactly(-745.0) : log_x);
    return e;
}

static exact_likelihood of_poisson(double x, double r) {
    approximate data = exactly(x), rate = exp_of((approximate){r, isfinite(r) ? nearly(r, ROUNDING) : 0.0}); /* of r - log x */
    rate.value = as_float(rate.value);
    approximate fixed = lgamma_of(sum(data, exactly(1.0)));
    approximate power = x == 0.0 ? exactly(0.0) : product(data, exactly(r)); /* also of a rate of 0 */
    return (exact_likelihood){difference(difference(power, rate), fixed), {difference(data, rate)}};
}

static int is_zero(double x) { return fabs(x) < 1e-8; }

/* What does not depend on the count: the negative binomial's log-probability of 0. */
static exact_likelihood binomial_zero(double mean, double theta) {
    const approximate eps = exactly(1e-8f), m = exactly(mean), t = exactly(theta);
    approximate shifted = inverse_of(sum(t, eps)), total = inverse_of(sum(sum(t, m), eps));
    approximate log_ratio = log1p_of(product(m, shifted)), by_theta = product(product(t, m), product(shifted, total));
    return (exact_likelihood){
        scaled(-theta, log_ratio),
        {scaled(-theta, total), difference(by_theta, log_ratio)},
    };
}

static exact_likelihood of_negative_binomial(double x, double mean, double theta) {
    const approximate eps = exactly(1e-8f), data = exactly(x), m = exactly(mean), t = exactly(theta);
    exact_likelihood e = binomial_zero(mean, theta);
    if (is_zero(x)) return e;
    approximate total = inverse_of(sum(sum(t, m), eps)), taken = product(data, total);
    approximate log_power = product(data, log_of(product(sum(m, eps), total)));
    e.log_prob = sum(e.log_prob, sum(log_power, lgamma_of_counts(x, theta)));
    e.by[0] = sum(e.by[0], difference(product(data, inverse_of(sum(m, eps))), taken));
    e.by[1] = sum(e.by[1], difference(digamma_rise(x, theta), taken));
    return e;
}

/* softplus(a) - softplus(b) */
static approximate softplus_difference(approximate a, approximate b) {
    double size = fmax(a.value, 0.0) + fmax(b.value, 0.0) + exp(-fabs(a.value)) + exp(-fabs(b.value));
    double value = softplus_of(a).value - softplus_of(b).value;
    return (approximate){value, nearly(size, FUNCTION) + a.error + b.error};
}

static exact_likelihood of_zero_inflated(double x, double mean, double theta, double l) {
    approximate logits = exactly(l);
    exact_likelihood e = of_negative_binomial(x, mean, theta);
    if (!is_zero(x)) {
        e.log_prob = difference(e.log_prob, softplus_of(logits));
        e.by[2] = scaled(-1.0, sigmoid_of(logits));
        return e;
    }
    approximate binomial = difference(e.log_prob, logits), minus_logits = scaled(-1.0, logits);
    approximate counted = sigmoid_of(binomial);
    e.log_prob = softplus_difference(binomial, minus_logits);
    e.by[0] = product(counted, e.by[0]);
    e.by[1] = product(counted, e.by[1]);
    e.by[2] = difference(sigmoid_of(minus_logits), counted);
    return e;
}

/* The parts' derivatives are that by q times the other two; the kernel's q may be rounded to 0 or 1 where this is not. */
static exact_likelihood of_scaled_bernoulli(double x, const double *values) {
    double q = as_float(as_float(values[0] * values[1]) * values[2]), came = isnan(x) ? NAN : x > 0.0;
    approximate log = came > 0.0 ? log_of(exactly(q)) : log1p_of(exactly(-q));
    if (isnan(x)) log = exactly(x);
    if (log.value < -100.0) log = exactly(-100.0);
    approximate by = product(exactly(came - q), inverse_of(exactly(fmax((1.0 - q) * q, 1e-12))));
    if (isnan(q)) by = exactly(q);
    exact_likelihood e = {log, {by, by, by}};
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            if (i != j) e.by[i] = product(e.by[i], exactly(values[j]));
    return e;
}

static exact_likelihood likelihood_of(const likelihood *d, double x, const double *values) {
    switch (d->kind) {
    case GAUSSIAN: return of_gaussian(exactly(x), values, d);
    case LAPLACE: return of_laplace(x, values, d);
    case LOG_NORMAL: return of_log_normal(x, values, d);
    case POISSON: return of_poisson(x, values[0]);
    case NEGATIVE_BINOMIAL: return of_negative_binomial(x, values[0], values[1]);
    case SCALED_BERNOULLI: return of_scaled_bernoulli(x, values);
    case ZERO_INFLATED: return of_zero_inflated(x, values[0], values[1], values[2]);
    default: return of_bernoulli(d->kind, x, values[0]);
    }
}

#endif
