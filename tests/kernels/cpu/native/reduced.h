/* What becomes of the terms of all coordinates under a reduction. */
#ifndef REDUCED_H
#define REDUCED_H

#include "sharing.h"

typedef struct {
    shape shape;
    int reduction;
    long_sum *of_channels, total; /* of_channels: whole rows, but with PER_CHANNEL */
} reduced;

static reduced begin_reduced(shape s, int reduction) {
    return (reduced){s, reduction, new_sums(s.rows * s.outer), {0.0, 0.0, 0.0}};
}

static void add_term(reduced *r, tensor *out, int quantity, int64_t row, int64_t d, approximate term) {
    if (r->reduction == ELEMENTWISE) expect_approximately(out, quantity, row, d, term);
    add_to(&r->of_channels[r->reduction == PER_CHANNEL ? row * r->shape.outer + d / r->shape.inner : row], term);
    add_to(&r->total, term);
}

static void expect_reduced(reduced *r, tensor *out, int quantity) {
    if (r->reduction == PER_SAMPLE || r->reduction == PER_CHANNEL)
        for (int64_t row = 0; row < r->shape.rows; row++)
            for (int64_t i = 0; i < event_of(out->shape); i++)
                expect_approximately(out, quantity, row, i, sum_of(r->of_channels[row * event_of(out->shape) + i]));
    if (r->reduction == SUM) expect_approximately(out, quantity, 0, 0, sum_of(r->total));
    if (r->reduction == BATCHMEAN)
        expect_approximately(out, quantity, 0, 0, scaled(1.0 / (double)r->shape.rows, sum_of(r->total)));
    free(r->of_channels);
}

/* Where the terms, or their sums, are written. */
static tensor reduced_output(shape s, int reduction, int index) {
    if (reduction == NO_KL) return (tensor){0};
    if (reduction == ELEMENTWISE) return output(s, FLOAT32, index);
    return new_tensor(shape_of_kl(s, reduction), FLOAT32, DENSE);
}

static void plan_channels(call *c, shape s) {
    if (c->reduction == PER_CHANNEL) c->channels = s.outer, c->channel_size = s.inner;
}

#endif
