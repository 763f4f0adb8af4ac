/* Calls of likelihood_forward and likelihood_backward on fresh tensors, each with options that chance picks. */
#ifndef LIKELIHOODS_H
#define LIKELIHOODS_H

#include "likelihood_values.h"
#include "reduced.h"

#define KINDS (MIXTURE + 1)
static const char *const likelihood_names[] = {
    "bernoulli", "continuous bernoulli", "gaussian",      "laplace",          "log-normal",
    "poisson",   "negative binomial",    "zero-inflated", "scaled bernoulli", "mixture",
};
static const int parameters_of[] = {1, 1, 2, 2, 2, 1, 2, 3, 3, 1};
_Static_assert(COUNT(likelihood_names) == KINDS && COUNT(parameters_of) == KINDS, "each kind has a name and parameters");

typedef struct {
    const problem *p;
    likelihood likelihood;
    int reduction, channels; /* channels: of a mixture's image, else 1 */
    int sharing[MOST_PARAMETERS];
    tensor x, parameters[MOST_PARAMETERS];
} likelihood_problem;

/* How many events follow one another in a row of x, and of the first parameter. */
static shape with_channels(shape s, int channels) { return (shape){s.rows, channels * s.outer, s.inner}; }

static int channels_of_parameter(const likelihood_problem *l) {
    return l->likelihood.kind == MIXTURE ? channels_of_mixture(l->channels, l->likelihood.components) : 1;
}

static strided view_of_channels(const tensor *t, shape s) {
    strided view = t->view;
    view.draw = s.outer * view.outer;
    return view;
}

static likelihood random_likelihood(int kind) {
    likelihood d = {kind, -INFINITY, INFINITY, 0};
    if ((kind == GAUSSIAN || kind == LAPLACE || kind == LOG_NORMAL) && one_of(2)) d.low = -1.0f, d.high = 0.5f;
    if (kind == MIXTURE) d.low = -7.0f, d.components = 1 + one_of(MOST_COMPONENTS);
    return d;
}

static int random_dtype(int usual, int how_many) { return one_of(2) ? usual : one_of(how_many); }

static likelihood_problem new_likelihood_problem(const problem *p, int kind) {
    likelihood_problem l = {.p = p, .likelihood = random_likelihood(kind), .channels = 1};
    l.reduction = ELEMENTWISE + one_of(5);
    if (kind == MIXTURE && one_of(2)) l.channels = 3;
    l.x = input(with_channels(p->shape, l.channels), random_dtype(FLOAT32, INT64 + 1), 0);
    fill_data(&l.x, p, kind);
    if (kind == MIXTURE) {
        l.sharing[0] = FULL;
        shape of_parameter = with_channels(p->shape, channels_of_parameter(&l));
        l.parameters[0] = input(of_parameter, random_dtype(p->dtype, FLOAT16 + 1), 1);
        fill_mixture(&l.parameters[0], p, l.channels, l.likelihood.components);
        return l;
    }
    for (int i = 0; i < parameters_of[kind]; i++) {
        if (i == 0)
            l.sharing[i] = FULL;
        else /* of large problems the second by column, the third by all */
            l.sharing[i] = is_large(p) ? SHARED + i - 1 : FULL + one_of(3);
        l.parameters[i] = shared_tensor(p, random_dtype(p->dtype, FLOAT16 + 1), l.sharing[i], 1 + i);
        fill_parameter(&l.parameters[i], p, &l.likelihood, i, &l.x);
    }
    return l;
}

static void free_likelihood_problem(likelihood_problem *l) {
    free_tensor(&l->x);
    for (int i = 0; i < MOST_PARAMETERS; i++) free_tensor(&l->parameters[i]);
}

static call likelihood_call(const likelihood_problem *l) {
    const shape s = l->p->shape;
    call c = call_of(l->p, NULL, (kind){0, l->reduction});
    plan_channels(&c, s);
    c.likelihood = l->likelihood;
    c.image_channels = l->channels;
    c.x = view_of_channels(&l->x, s);
    c.x_dtype = l->x.dtype;
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        if (l->sharing[i]) c.parameters[i] = shared_view(&l->parameters[i], l->sharing[i]);
        c.parameter_dtypes[i] = l->parameters[i].dtype;
    }
    if (l->likelihood.kind == MIXTURE) {
        c.draws = channels_of_parameter(l);
        c.parameters[0] = view_of_channels(&l->parameters[0], s);
    }
    return c;
}

static void describe_likelihood(const char *direction, const likelihood_problem *l) {
    const shape s = l->p->shape;
    const likelihood *d = &l->likelihood;
    int end = snprintf(subject, sizeof subject,
                       "%s %s %s %lldx(%lldx%lld)%s, %s, bounds %g and %g, %d channels of %d components; x %s %s",
                       isa->name, likelihood_names[d->kind], direction, (long long)s.rows, (long long)s.outer,
                       (long long)s.inner, l->p->extreme ? " extreme" : "", reduction_names[l->reduction], d->low,
                       d->high, l->channels, d->components, dtype_names[l->x.dtype], layout_names[l->x.layout]);
    for (int i = 0; i < MOST_PARAMETERS; i++)
        if (l->sharing[i])
            end += snprintf(subject + end, sizeof subject - (size_t)end, ", %s %s %s", sharing_names[l->sharing[i]],
                            dtype_names[l->parameters[i].dtype], layout_names[l->parameters[i].layout]);
}

/* The log-probability, and the derivatives of `given` times it by all parameters of the coordinate. */
static approximate likelihood_at(const likelihood_problem *l, int64_t row, int64_t d, approximate given,
                                 approximate *by) {
    int64_t event = event_of(l->p->shape);
    double values[MOST_VALUES];
    if (l->likelihood.kind != MIXTURE) {
        for (int i = 0; i < parameters_of[l->likelihood.kind]; i++)
            values[i] = shared_at(&l->parameters[i], l->sharing[i], row, d);
        exact_likelihood e = likelihood_of(&l->likelihood, as_float(get(&l->x, row, d)), values);
        for (int i = 0; i < parameters_of[l->likelihood.kind]; i++)
            by[i] = gradient_of_parameter(&l->likelihood, i, values[i], given, e.by[i]);
        return e.log_prob;
    }
    approximate y[MOST_CHANNELS];
    for (int i = 0; i < l->channels; i++) y[i] = level_of(get(&l->x, row, d + i * event), l->x.dtype);
    for (int i = 0; i < channels_of_parameter(l); i++) values[i] = get(&l->parameters[0], row, d + i * event);
    return mixture_of(&l->likelihood, l->channels, y, values, given, by);
}

static void check_likelihood_forward(const likelihood_problem *l) {
    tensor log_prob = reduced_output(l->p->shape, l->reduction, 4);
    call c = likelihood_call(l);
    c.kl = log_prob.view;
    describe_likelihood("forward", l);
    run(&c, isa->likelihood_forward, 1, (tensor *const[]){&log_prob});
    reduced expected = begin_reduced(l->p->shape, l->reduction);
    approximate by[MOST_VALUES];
    FOR_EACH_ELEMENT(l->p, row, d)
        add_term(&expected, &log_prob, LIKELIHOOD, row, d, likelihood_at(l, row, d, exactly(1.0), by));
    expect_reduced(&expected, &log_prob, LIKELIHOOD_SUM);
    expect_nothing_else(&log_prob, LIKELIHOOD);
    free_tensor(&log_prob);
}

/* A mixture's gradient is one tensor of many channels, those of other likelihoods are as many as the parameters. */
static tensor new_gradient(const likelihood_problem *l, int i) {
    if (l->likelihood.kind == MIXTURE && i == 0)
        return output(with_channels(l->p->shape, channels_of_parameter(l)), l->parameters[0].dtype, 5);
    if (!l->sharing[i] || (!is_large(l->p) && one_of(4) == 0)) return (tensor){0}; /* not wanted */
    return output(shape_of_shared(l->p->shape, l->sharing[i]), l->parameters[i].dtype, 5 + i);
}

static void check_likelihood_backward(const likelihood_problem *l) {
    const shape s = l->p->shape;
    tensor grad = gradient_of_kl(s, l->reduction), grads[MOST_PARAMETERS];
    long_sum *sums[MOST_PARAMETERS];
    fill(&grad, l->p, 3.0, (const double[]){NAN, 1e3, -1e3, 0.0}, 4, 11);
    call c = likelihood_call(l);
    c.grad_kl = view_of_grad_kl(&grad, l->reduction);
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        grads[i] = new_gradient(l, i);
        sums[i] = new_sums(event_of(s));
    }
    c.grad_parameters[0] = view_of_channels(&grads[0], s); /* never shared */
    for (int i = 1; i < MOST_PARAMETERS; i++)
        if (grads[i].block)
            place_gradient(&grads[i], l->sharing[i], s.inner, &c.grad_parameters[i], &c.columns[OF_PARAMETER(i)]);
    describe_likelihood("backward", l);
    tensor *const outputs[] = {&grads[0], &grads[1], &grads[2]};
    approximate by[MOST_VALUES];
    run(&c, isa->likelihood_backward, COUNT(outputs), outputs);
    FOR_EACH_ELEMENT(l->p, row, d) {
        approximate given = with_rounding(grad_kl_at(l->p, &grad, l->reduction, row, d), 0.0);
        likelihood_at(l, row, d, given, by);
        for (int i = 0; l->likelihood.kind == MIXTURE && i < channels_of_parameter(l); i++)
            expect_approximately(&grads[0], GRAD_PARAMETER, row, d + i * event_of(s), by[i]);
        for (int i = 0; l->likelihood.kind != MIXTURE && i < MOST_PARAMETERS; i++)
            if (grads[i].block)
                check_gradient(&grads[i], GRAD_PARAMETER, l->sharing[i], row, d, by[i], sums[i]);
    }
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        if (grads[i].block) {
            check_summed_gradient(&grads[i], GRAD_SHARED, l->sharing[i], sums[i]);
            expect_nothing_else(&grads[i], GRAD_PARAMETER);
        }
        free_tensor(&grads[i]);
        free(sums[i]);
    }
    free_tensor(&grad);
}

/* With random numbers of their own: what latents are tried with does not depend on what likelihoods are. */
static void check_likelihood(const problem *p, int kind) {
    static uint64_t own_state = 2;
    uint64_t state = random_state;
    random_state = own_state;
    likelihood_problem l = new_likelihood_problem(p, kind);
    check_likelihood_forward(&l);
    check_likelihood_backward(&l);
    free_likelihood_problem(&l);
    own_state = random_state;
    random_state = state;
}

/* Every kind, or of larger problems, where that would take long, the next one or two; of the largest the one that has
   parameters enough to share them in both ways. */
static void check_likelihoods(const problem *p) {
    static int next;
    int64_t elements = p->shape.rows * event_of(p->shape);
    int how_many = elements < 1000 ? KINDS : elements < 10000 ? 2 : 1;
    for (int i = 0; i < how_many; i++, next++) check_likelihood(p, is_large(p) ? ZERO_INFLATED : next % KINDS);
}

/* For so many channels the tiles of small problems are small. */
static void check_mixture_of_whole_tiles(void) {
    problem p = new_problem((shape){9, 1, 1023}, FLOAT32, 0, 0, 0, 0);
    check_likelihood(&p, MIXTURE);
    free(p.eps);
}

/* Tiles that are full of counts other than zero, which chance gives some of these. */
static void check_counts_of_whole_tiles(void) {
    problem p = new_problem((shape){2, 1, 1024}, FLOAT32, 0, 0, 0, 0);
    for (int i = 0; i < 32; i++) check_likelihood(&p, i % 2 ? ZERO_INFLATED : NEGATIVE_BINOMIAL);
    free(p.eps);
}

#endif
