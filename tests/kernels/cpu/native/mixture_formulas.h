/* The discretized mixture of logistics, for one pixel, as likelihood_formulas.h has the other likelihoods. */
#ifndef MIXTURE_FORMULAS_H
#define MIXTURE_FORMULAS_H

#include "likelihood_formulas.h"

#define MOST_CHANNELS 3
#define MOST_COMPONENTS 3
#define MOST_VALUES (10 * MOST_COMPONENTS) /* of one pixel */

enum { OF_MEAN, OF_LOG_SCALE, OF_COEFFICIENT };

static int parts_of(int channels) { return channels == 3 ? 3 : 2; }

static int channels_of_mixture(int channels, int components) {
    return components * (1 + parts_of(channels) * channels);
}

/* Where a component's number for a channel of the image stands among the parameter's channels. */
static int place_of(int channels, int components, int channel, int part, int m) {
    return components * (1 + channel * parts_of(channels) + part) + m;
}

/* The levels 0..255, or 0 to 1 in the data, as -1 to 1. */
static approximate level_of(double x, int x_dtype) {
    approximate twice = x_dtype >= UINT8 ? scaled(2.0 / 255, exactly(x)) : exactly(2.0 * x);
    if (x_dtype >= UINT8) twice.error += nearly(twice.value, ROUNDING); /* of 2 / 255 itself */
    return difference(twice, exactly(1.0));
}

/* A level's part of a logistic: its logarithm, and the derivatives of that. By the mean it is by_scaled inverse. */
typedef struct {
    approximate log_prob, by_scaled, inverse, by_log_scale;
} exact_bin;

static exact_bin bin_of(approximate y, approximate mean, double log_scale, double low) {
    const approximate half = with_rounding(1.0 / 255, 0.0);
    int highest = y.value > 0.999, lowest = y.value < -0.999;
    approximate inverse = exp_of(scaled(-1.0, exactly(log_scale < low ? low : log_scale)));
    approximate upper = product(sum(difference(y, mean), half), inverse);
    approximate lower = product(difference(difference(y, mean), half), inverse);
    approximate width = product(scaled(2.0, half), inverse);
    approximate below = scaled(-1.0, softplus_of(scaled(-1.0, upper))), above = scaled(-1.0, softplus_of(lower));
    approximate by_upper = highest ? exactly(0.0) : sigmoid_of(scaled(-1.0, upper));
    approximate by_lower = lowest ? exactly(0.0) : sigmoid_of(lower);
    exact_bin b = {.log_prob = highest ? above : below, .inverse = inverse};
    approximate by_log_width = exactly(0.0); /* of log(1 - exp(-width)) */
    if (!highest && !lowest) {
        double w = width.value, log_width = log(-expm1(-w)), slope = 1.0 / expm1(w);
        approximate of_width = {log_width, grown(slope, width.error) + EXPM1 + nearly(log_width, FUNCTION)};
        b.log_prob = sum(sum(of_width, below), above);
        by_log_width = (approximate){w * slope, nearly(w * slope, 2 * EXPM1) + grown(slope, width.error)};
    }
    b.by_scaled = difference(by_lower, by_upper);
    approximate by_ends = difference(product(by_lower, lower), product(by_upper, upper));
    b.by_log_scale = difference(by_ends, by_log_width);
    return b;
}

/* log sum exp */
static approximate log_of_sum(const approximate *exponents, int n) {
    double largest = -INFINITY, total = 0.0, error = 0.0;
    for (int i = 0; i < n; i++) largest = fmax(largest, exponents[i].value);
    for (int i = 0; i < n; i++) {
        double weight = exp(exponents[i].value - largest);
        total += weight;
        error += grown(weight, exponents[i].error);
    }
    double value = largest + log(total);
    return (approximate){value, error / total + nearly(value, ROUNDING) + nearly(log(total), FUNCTION) + EXP_ERROR};
}

/* One component's bins for a pixel, and the factors of the levels in its means. */
typedef struct {
    exact_bin bins[MOST_CHANNELS];
    approximate factors[MOST_CHANNELS];
} exact_component;

static exact_component component_of(const likelihood *d, int channels, const approximate *y, const double *values, int m) {
    exact_component one = {0};
    for (int channel = 0; channel < channels; channel++) {
        int n = d->components;
        approximate mean = exactly(values[place_of(channels, n, channel, OF_MEAN, m)]);
        if (channels == 3)
            one.factors[channel] = tanh_of(exactly(values[place_of(channels, n, channel, OF_COEFFICIENT, m)]));
        if (channel == 1) mean = sum(mean, product(one.factors[0], y[0]));
        if (channel == 2) mean = sum(sum(mean, product(one.factors[1], y[0])), product(one.factors[2], y[1]));
        one.bins[channel] = bin_of(y[channel], mean, values[place_of(channels, n, channel, OF_LOG_SCALE, m)], d->low);
    }
    return one;
}

/* The log-probability, and the derivatives of `given` times it: what is too small for float32 depends on the order. */
static approximate mixture_of(const likelihood *d, int channels, const approximate *y, const double *values,
                              approximate given, approximate *by) {
    int n = d->components;
    exact_component components[MOST_COMPONENTS];
    approximate logits[MOST_COMPONENTS] = {0}, joint[MOST_COMPONENTS] = {0};
    for (int m = 0; m < n; m++) {
        components[m] = component_of(d, channels, y, values, m);
        logits[m] = joint[m] = exactly(values[m]);
        for (int channel = 0; channel < channels; channel++)
            joint[m] = sum(joint[m], components[m].bins[channel].log_prob);
    }
    approximate of_logits = log_of_sum(logits, n), of_joint = log_of_sum(joint, n);
    for (int m = 0; m < n; m++) {
        const exact_component *one = &components[m];
        approximate posterior = exp_of(difference(joint[m], of_joint));
        approximate prior = exp_of(difference(logits[m], of_logits));
        approximate by_log_prob = product(given, posterior), by_mean[MOST_CHANNELS];
        by[m] = product(given, difference(posterior, prior));
        for (int channel = 0; channel < channels; channel++) {
            const exact_bin *b = &one->bins[channel];
            by_mean[channel] = product(product(by_log_prob, b->by_scaled), b->inverse);
            by[place_of(channels, n, channel, OF_MEAN, m)] = by_mean[channel];
            int of_scale = place_of(channels, n, channel, OF_LOG_SCALE, m);
            by[of_scale] = values[of_scale] < d->low ? exactly(0.0) : product(by_log_prob, b->by_log_scale);
        }
        if (channels < 3) continue;
        approximate through[] = {product(by_mean[1], y[0]), product(by_mean[2], y[0]), product(by_mean[2], y[1])};
        for (int k = 0; k < 3; k++) {
            approximate factor = one->factors[k], slope = difference(exactly(1.0), product(factor, factor));
            by[place_of(channels, n, k, OF_COEFFICIENT, m)] = product(through[k], slope);
        }
    }
    return difference(of_joint, of_logits);
}

#endif
