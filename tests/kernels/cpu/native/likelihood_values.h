/* Data and parameters of likelihoods: ordinary ones, and those where formulas meet or end. */
#ifndef LIKELIHOOD_VALUES_H
#define LIKELIHOOD_VALUES_H

#include "mixture_formulas.h"
#include "sharing.h"

static const double extreme_data[] = {NAN, 1e-9}; /* a count of 1e-9 is a zero */
static const double extreme_logits[] = {
    0.0, -0.0, NAN, 1e-30, 0.4999999, 0.5, -0.5, 20.0, -20.0, 104.0, -104.0, 1e4, -1e4, INFINITY, -INFINITY,
};
static const double extreme_locations[] = {NAN, 0.0, 1e4, -1e4, 1e-40, INFINITY, -INFINITY};
static const double extreme_scales[] = {NAN, 40.0, -40.0, 0.0, -0.0};
static const double extreme_rates[] = {NAN, 80.0, -80.0, 89.0, -200.0, 0.0, -INFINITY};
static const double extreme_probabilities[] = {0.0, 1.0, NAN, 1e-3, 1e-6};
static const double extreme_positives[] = {0.0, 1e-30, NAN, 1e-8, 3.9999998, 4.0, 6e4};

static double chance(void) { return 0.5 * (next_uniform() + 1.0); }

/* The largest number worth trying: what a narrower integer could not hold. */
static double largest_of(int dtype) {
    switch (dtype) {
    case UINT8: return 255.0;
    case INT8: return 127.0;
    case INT16: return 30000.0;
    case INT32: return 70000.0;
    case INT64: return 1e10;
    default: return 3000.0;
    }
}

/* Counts are mostly small; zeros: how many of them are 0. */
static double random_count(int dtype, double zeros) {
    if (chance() < zeros) return 0.0;
    if (one_of(16) == 0) return floor(fmin(largest_of(dtype), 70000.0) * chance());
    return dtype < UINT8 && one_of(8) == 0 ? 5.0 * chance() : 1.0 + one_of(10);
}

static double random_real(int dtype) {
    if (dtype < UINT8) return 2.0 * next_uniform();
    return floor(largest_of(dtype) * (dtype == UINT8 ? chance() : next_uniform()));
}

static double random_level(int dtype) {
    double highest = dtype == INT8 ? 127.0 : 255.0, level = floor((highest + 1.0) * chance());
    if (one_of(4) == 0) level = one_of(2) ? highest : 0.0;
    return dtype >= UINT8 ? level : level / 255.0;
}

static double random_data(int kind, int dtype, double zeros) {
    switch (kind) {
    case BERNOULLI:
    case CONTINUOUS_BERNOULLI: return dtype >= UINT8 ? one_of(2) : chance();
    case GAUSSIAN:
    case LAPLACE: return random_real(dtype);
    case LOG_NORMAL: return dtype < UINT8 ? (one_of(32) ? exp(3.0 * next_uniform()) : 0.0) : one_of(100);
    case MIXTURE: return random_level(dtype);
    default: return random_count(dtype, zeros);
    }
}

static void fill_data(tensor *t, const problem *p, int kind) {
    static const double shares[] = {0.0, 0.5, 0.9, 1.0};
    double zeros = shares[one_of(COUNT(shares))];
    int64_t count = 0;
    FOR_EACH_ELEMENT(t, row, d) {
        double value = random_data(kind, t->dtype, zeros);
        if (p->extreme && t->dtype < UINT8 && one_of(32) == 0) value = extreme_data[count++ % COUNT(extreme_data)];
        set_bits(t, row, d, encode(value, t->dtype));
    }
}

/* Where every ninth element is the data itself, or its bound, the slope of a likelihood jumps. */
static void fill_location(tensor *t, const problem *p, const tensor *x) {
    fill(t, p, 2.0, extreme_locations, COUNT(extreme_locations), 7);
    int64_t count = 0;
    FOR_EACH_ELEMENT(t, row, d)
        if (count++ % 9 == 4) set_bits(t, row, d, encode(fmax(fmin(get(x, row, d), 60000.0), -60000.0), t->dtype));
}

static void fill_bounded(tensor *t, const problem *p, const likelihood *likelihood) {
    fill(t, p, 3.0, extreme_scales, COUNT(extreme_scales), 7);
    int64_t count = 0;
    FOR_EACH_ELEMENT(t, row, d)
        if (isfinite(likelihood->low) && count++ % 9 == 4)
            set_bits(t, row, d, encode(one_of(2) ? likelihood->low : likelihood->high, t->dtype));
}

static void fill_positive(tensor *t, const problem *p) {
    int64_t count = 0;
    FOR_EACH_ELEMENT(t, row, d) {
        double value = exp(4.0 * next_uniform());
        if (p->extreme && ++count % 5 == 1) value = extreme_positives[count / 5 % COUNT(extreme_positives)];
        set_bits(t, row, d, encode(value, t->dtype));
    }
}

static void fill_probability(tensor *t, const problem *p) {
    int64_t count = 0;
    FOR_EACH_ELEMENT(t, row, d) {
        double value = 0.05 + 0.9 * chance();
        if (p->extreme && ++count % 5 == 1) value = extreme_probabilities[count / 5 % COUNT(extreme_probabilities)];
        set_bits(t, row, d, encode(value, t->dtype));
    }
}

static double random_mixture_value(int channels, int components, int place, int extreme) {
    if (extreme && one_of(64) == 0) return NAN;
    if (extreme && place == 0 && components > 1 && one_of(8) == 0) return -INFINITY;
    if (place < components) return 3.0 * next_uniform();
    switch ((place / components - 1) % parts_of(channels)) {
    case OF_MEAN: return extreme && one_of(16) == 0 ? 100.0 * next_uniform() : 1.2 * next_uniform();
    case OF_LOG_SCALE: return one_of(8) == 0 ? -7.0 - one_of(2) : 3.0 * next_uniform() - 2.0;
    default: return 2.0 * next_uniform();
    }
}

/* t has the channels of a mixture, one event after the other. */
static void fill_mixture(tensor *t, const problem *p, int channels, int components) {
    int64_t event = event_of(p->shape);
    FOR_EACH_ELEMENT(t, row, d) {
        double value = random_mixture_value(channels, components, (int)(d / event), p->extreme);
        set_bits(t, row, d, encode(value, t->dtype));
    }
}

static void fill_parameter(tensor *t, const problem *p, const likelihood *d, int i, const tensor *x) {
    switch (d->kind) {
    case GAUSSIAN:
    case LAPLACE:
    case LOG_NORMAL:
        if (i == 0)
            fill_location(t, p, x);
        else
            fill_bounded(t, p, d);
        break;
    case SCALED_BERNOULLI: fill_probability(t, p); break;
    case POISSON: fill(t, p, 3.0, extreme_rates, COUNT(extreme_rates), 5); break;
    default:
        if (i < 2 && (d->kind == NEGATIVE_BINOMIAL || d->kind == ZERO_INFLATED))
            fill_positive(t, p);
        else
            fill(t, p, 6.0, extreme_logits, COUNT(extreme_logits), 3);
    }
}

#endif
