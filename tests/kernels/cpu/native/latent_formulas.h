/* The formulas of latent_spec.py for one coordinate, with the error that float32 may have. */
#ifndef LATENT_FORMULAS_H
#define LATENT_FORMULAS_H

#include "approximate.h"

static const char *const scale_names[] = {"logvar", "logstd", "std", "var", "softplus"};
static const char *const clamp_names[] = {"no", "hard", "soft"};

typedef struct {
    approximate raw, x, std, logvar;
} exact_parameter;

static exact_parameter parameter_of(approximate raw, const options *o) {
    approximate x = raw;
    if (o->clamp == CLAMP_HARD && x.value < o->low) x.value = o->low; /* NaN stays */
    if (o->clamp == CLAMP_HARD && x.value > o->high) x.value = o->high;
    if (o->clamp == CLAMP_SOFT) x = scaled(o->high, tanh_of(product(raw, inverse_of(exactly(o->high)))));
    switch (o->scale) {
    case SCALE_LOGVAR: return (exact_parameter){raw, x, exp_of(scaled(0.5, x)), x};
    case SCALE_LOGSTD: return (exact_parameter){raw, x, exp_of(x), scaled(2.0, x)};
    case SCALE_STD: return (exact_parameter){raw, x, x, scaled(2.0, log_of(x))};
    case SCALE_VAR: return (exact_parameter){raw, x, root_of(x), log_of(x)};
    }
    approximate std = sum(softplus_of(x), exactly(o->floor));
    return (exact_parameter){raw, x, std, scaled(2.0, log_of(std))};
}

/* What passes where it is sure that it passes, and half where float32 may decide either way; beside NaN, nothing. */
static approximate gated(approximate a, double above_bound, double error) {
    if (above_bound >= error) return a;
    if (!(above_bound >= -error)) return exactly(0.0);
    return (approximate){0.5 * a.value, 0.5 * fabs(a.value) + a.error};
}

static approximate parameter_gradient(const exact_parameter *p, approximate of_std, approximate of_logvar,
                                      const options *o) {
    approximate std_by_x = exactly(1.0), logvar_by_x;
    switch (o->scale) {
    case SCALE_LOGVAR: std_by_x = scaled(0.5, p->std), logvar_by_x = exactly(1.0); break;
    case SCALE_LOGSTD: std_by_x = p->std, logvar_by_x = exactly(2.0); break;
    case SCALE_VAR: std_by_x = scaled(0.5, inverse_of(p->std)), logvar_by_x = inverse_of(p->x); break;
    default: logvar_by_x = scaled(2.0, inverse_of(p->std));
    }
    approximate grad = product(logvar_by_x, of_logvar);
    if (of_std.value != 0.0 || of_std.error > 0.0) grad = sum(grad, product(std_by_x, of_std)); /* it takes part */
    if (o->scale == SCALE_SOFTPLUS) grad = product(grad, sigmoid_of(p->x));
    if (o->clamp == CLAMP_HARD) {
        grad = gated(grad, p->raw.value - o->low, p->raw.error);
        grad = gated(grad, o->high - p->raw.value, p->raw.error);
    }
    if (o->clamp == CLAMP_SOFT) {
        approximate part = product(p->x, inverse_of(exactly(o->high)));
        grad = product(grad, difference(exactly(1.0), product(part, part)));
    }
    return grad;
}

/* Posterior and prior of one coordinate. */
typedef struct {
    exact_parameter scale, prior;
    approximate mu, difference, ratio, inverse, kl;
} exact_latent;

static exact_latent latent_of(double mu, double raw, int with_prior, double prior_mu, double prior_raw,
                              const options *o) {
    exact_latent l = {.mu = exactly(mu), .difference = exactly(mu), .inverse = exactly(1.0)};
    approximate given = exactly(raw);
    if (with_prior) {
        l.prior = parameter_of(exactly(prior_raw), o);
        l.inverse = exp_of(scaled(-1.0, l.prior.logvar));
    }
    if (with_prior && o->residual) {
        l.mu = sum(exactly(prior_mu), exactly(mu));
        given = sum(exactly(prior_raw), exactly(raw));
    } else if (with_prior) {
        l.difference = difference(exactly(mu), exactly(prior_mu));
    }
    l.scale = parameter_of(given, o);
    l.ratio = with_prior ? difference(l.scale.logvar, l.prior.logvar) : l.scale.logvar;
    if (with_prior && o->residual && o->clamp == CLAMP_NONE)
        l.ratio = exactly(o->scale == SCALE_LOGSTD ? 2.0 * raw : raw);
    approximate squared = product(product(l.difference, l.difference), l.inverse);
    l.kl = scaled(0.5, sum(squared, expm1_less_of(l.ratio)));
    return l;
}

#endif
