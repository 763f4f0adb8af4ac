/* Parameters that the rows of a batch may share, and their gradients, which are sums then. */
#ifndef SHARING_H
#define SHARING_H

#include "approximate.h"
#include "calls.h"

enum { ABSENT, FULL, SHARED, SINGLE }; /* of the shape of all that is computed, of one row, of one element */
static const char *const sharing_names[] = {"no", "full", "shared", "one"};

static int one_of(int n) { return (int)((next_uniform() + 1.0) / 2.0 * n); }

/* Where units have several tiles there is always a sum that they are for. */
#define LARGE 50000

static int is_large(const problem *p) { return p->shape.rows * event_of(p->shape) > LARGE; }

static shape shape_of_shared(shape s, int sharing) {
    if (sharing == FULL) return s;
    return sharing == SHARED ? (shape){1, s.outer, s.inner} : (shape){1, 1, 1};
}

static tensor shared_tensor(const problem *p, int dtype, int sharing, int index) {
    if (sharing == ABSENT) return (tensor){0};
    return input(shape_of_shared(p->shape, sharing), dtype, index);
}

/* Rows and, of one element, coordinates share what there is. */
static strided shared_view(const tensor *t, int sharing) {
    strided view = t->view;
    if (sharing != FULL) view.row = 0;
    if (sharing == SINGLE) view.outer = view.inner = 0;
    return view;
}

static double shared_at(const tensor *t, int sharing, int64_t row, int64_t d) {
    if (sharing == ABSENT) return 0.0;
    return get(t, sharing == FULL ? row : 0, sharing == SINGLE ? 0 : d);
}

static column_sums view_of_sums(const tensor *t, int sharing, int64_t inner, double divisor) {
    column_sums s = {.out = t->view, .dtype = t->dtype, .single = sharing == SINGLE, .divisor = divisor};
    s.out.row = 0;
    if (s.single) s.out.outer = inner, s.out.inner = 1;
    return s;
}

/* Tells the call where a gradient belongs. */
static void place_gradient(const tensor *grad, int sharing, int64_t inner, strided *of_all, column_sums *sums) {
    if (sharing == FULL)
        *of_all = grad->view;
    else
        *sums = view_of_sums(grad, sharing, inner, 1.0);
}

/* One coordinate's part of a gradient: the element itself, or part of a sum. */
static void check_gradient(tensor *grad, int quantity, int sharing, int64_t row, int64_t d, approximate exact,
                           long_sum *of_columns) {
    if (sharing == FULL)
        expect_approximately(grad, quantity, row, d, exact);
    else
        add_to(&of_columns[sharing == SINGLE ? 0 : d], exact);
}

static void check_summed_gradient(tensor *grad, int quantity, int sharing, const long_sum *of_columns) {
    for (int64_t d = 0; sharing != FULL && d < event_of(grad->shape); d++)
        expect_approximately(grad, quantity, 0, d, sum_of(of_columns[d]));
}

/* Room for the sums of every column; one, where there are none. */
static long_sum *new_sums(int64_t how_many) { return calloc((size_t)how_many + 1, sizeof(long_sum)); }

#endif
