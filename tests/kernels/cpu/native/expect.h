/* Comparing what a kernel wrote with the exact value, and keeping count. */
#ifndef EXPECT_H
#define EXPECT_H

#include <stdarg.h>

#include "tensors.h"

#define MOST_FAILURES 10 /* then it gives up */

static char subject[600]; /* what is being checked, for messages */
static int64_t comparisons, failures;

enum {
    Z, KL, KL_SUM, GRAD_MU, GRAD_LOGVAR, NOISE, MEAN_KL, LOG_PROBABILITY, GRAD_PRIOR, LIKELIHOOD, LIKELIHOOD_SUM,
    GRAD_PARAMETER, GRAD_SHARED, QUANTITIES
};
static const char *const quantity_names[QUANTITIES] = {
    "z", "kl", "sum of kl", "gradient of mu", "gradient of logvar", "eps", "mean kl", "log-probability",
    "gradient of a prior", "log-likelihood", "sum of log-likelihoods", "gradient of a parameter",
    "gradient of a shared parameter",
};
static double worst[QUANTITIES]; /* largest error in float32, as a part of what is allowed */

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s: ", subject);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    if (++failures == MOST_FAILURES) exit(1);
}

/* Reads an output's element and leaves poison in its place: so an element that was not written is noticed, and at the
   end whatever is not poison is something that a kernel wrote where it must not. Returns whether there was a value. */
static int take_element(tensor *t, int quantity, int64_t row, int64_t d, uint64_t *bits) {
    *bits = get_bits(t, row, d);
    comparisons++;
    if (*bits == poison_of(t->dtype)) {
        fail("row %lld coordinate %lld: %s was not written", (long long)row, (long long)d, quantity_names[quantity]);
        return 0;
    }
    set_bits(t, row, d, poison_of(t->dtype));
    return 1;
}

/* The element is the exact value up to the tolerance, and then rounded to its dtype once. */
static void expect(tensor *t, int quantity, int64_t row, int64_t d, double exact, double tolerance) {
    uint64_t bits;
    if (!take_element(t, quantity, row, d, &bits)) return;
    double got = decode(bits, t->dtype);
    int right;
    if (isnan(exact))
        right = isnan(got);
    else if (isinf(exact))
        right = got == exact;
    else
        right = rounded(exact - tolerance, t->dtype) <= got && got <= rounded(exact + tolerance, t->dtype);
    if (!right)
        fail("row %lld coordinate %lld: %s is %.9g, expected %.9g within %.2g", (long long)row, (long long)d,
             quantity_names[quantity], got, exact, tolerance);
    else if (t->dtype == FLOAT32 && isfinite(got) && tolerance > 0.0)
        worst[quantity] = fmax(worst[quantity], fabs(got - exact) / tolerance);
}

static void expect_nothing_else(const tensor *t, int quantity) {
    if (!is_all_poison(t)) fail("something was written between the elements of %s", quantity_names[quantity]);
}

#endif
