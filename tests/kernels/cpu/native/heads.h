/* Calls of a head on fresh tensors: log p of each row, and the gradients that take the place of the layers' outputs.
   Values are ordinary ones: those at the ends of their ranges are tried with likelihoods. */
#ifndef HEADS_H
#define HEADS_H

#include "likelihoods.h"

typedef struct {
    problem p;
    likelihood_problem l; /* its parameters are outputs of layers, or given */
    int activations[MOST_PARAMETERS], with_gradients, with_grad;
    tensor raw[MOST_PARAMETERS]; /* the outputs as they came */
    tensor shared_x;             /* what the call gets as x, if draws share it: fewer rows */
    tensor library, grad;        /* one number for each row */
} head_problem;

static const char *const activation_names[] = {"identity", "exp", "softplus", "softmax", "given"};

static int random_activation(int kind, int i) {
    static const int of_positive[] = {EXP, SOFTPLUS, SOFTMAX};
    int is_count = kind == NEGATIVE_BINOMIAL || kind == ZERO_INFLATED;
    if (is_count && i < 2) return i == 1 && one_of(3) == 0 ? GIVEN : of_positive[one_of(i == 0 ? 3 : 2)];
    if (i > 0) return one_of(2) ? GIVEN : IDENTITY;
    return kind == POISSON && one_of(2) ? SOFTMAX : IDENTITY;
}

static tensor copy_of(const tensor *t) {
    tensor copy = new_tensor(t->shape, t->dtype, t->layout);
    memcpy(copy.block, t->block, bytes_of_block(t));
    return copy;
}

static tensor numbers_of_rows(int64_t rows, double lowest, double highest) {
    tensor t = new_tensor((shape){rows, 1, 1}, FLOAT32, DENSE);
    FOR_EACH_ELEMENT(&t, row, d) set_bits(&t, row, d, encode(lowest + (highest - lowest) * chance(), FLOAT32));
    return t;
}

static void fill_outputs(const head_problem *h, int i) {
    const likelihood_problem *l = &h->l;
    tensor *t = (tensor *)&l->parameters[i];
    if (l->likelihood.kind == MIXTURE)
        fill_mixture(t, l->p, l->channels, l->likelihood.components);
    else if (h->activations[i] == IDENTITY || h->activations[i] == GIVEN)
        fill_parameter(t, l->p, &l->likelihood, i, &l->x);
    else
        fill(t, l->p, 3.0, NULL, 1, 1);
}

/* Sometimes x has fewer rows, which repeat for each draw. */
static void new_data(head_problem *h, int kind) {
    likelihood_problem *l = &h->l;
    shape s = with_channels(h->p.shape, l->channels);
    int dtype = random_dtype(FLOAT32, INT64 + 1), draws = 1 + one_of(3);
    if (s.rows % draws || is_large(&h->p)) draws = 1;
    if (draws == 1) {
        l->x = input(s, dtype, 0);
        fill_data(&l->x, &h->p, kind);
        return;
    }
    int64_t rows = s.rows / draws;
    h->shared_x = input((shape){rows, s.outer, s.inner}, dtype, 0);
    fill_data(&h->shared_x, &h->p, kind);
    l->x = new_tensor(s, dtype, DENSE);
    FOR_EACH_ELEMENT(&l->x, row, d) set_bits(&l->x, row, d, get_bits(&h->shared_x, row % rows, d));
}

static void new_head_problem(const problem *p, int kind, head_problem *h) {
    *h = (head_problem){.p = *p, .with_gradients = one_of(4) > 0, .with_grad = one_of(3) > 0};
    h->p.extreme = 0;
    h->l = (likelihood_problem){.p = &h->p, .likelihood = random_likelihood(kind), .reduction = NO_KL, .channels = 1};
    if (kind == MIXTURE && one_of(2)) h->l.channels = 3;
    new_data(h, kind);
    for (int i = 0; i < parameters_of[kind]; i++) {
        int dtype = random_dtype(p->dtype, FLOAT16 + 1), activation = random_activation(kind, i);
        h->activations[i] = activation;
        h->l.sharing[i] = activation != GIVEN ? FULL : one_of(2) ? SHARED : SINGLE;
        if (activation == GIVEN)
            h->l.parameters[i] = shared_tensor(p, dtype, h->l.sharing[i], 1 + i);
        else /* in place, of gigabytes there would be two copies */
            h->l.parameters[i] = new_tensor(with_channels(p->shape, channels_of_parameter(&h->l)), dtype,
                                            layout_in_turn(p->shape, 1 + i, FAR_ROWS));
        fill_outputs(h, i);
        if (activation != GIVEN) h->raw[i] = copy_of(&h->l.parameters[i]);
    }
    h->library = numbers_of_rows(p->shape.rows, 50.0, 2000.0);
    h->grad = numbers_of_rows(p->shape.rows, -3.0, 3.0);
}

static void free_head_problem(head_problem *h) {
    for (int i = 0; i < MOST_PARAMETERS; i++) free_tensor(&h->raw[i]);
    free_tensor(&h->shared_x);
    free_tensor(&h->library);
    free_tensor(&h->grad);
    free_likelihood_problem(&h->l);
}

/* log sum exp of a row's outputs. */
static approximate log_sum_of(const head_problem *h, int64_t row) {
    double largest = -INFINITY, total = 0.0;
    for (int64_t d = 0; d < event_of(h->p.shape); d++) largest = fmax(largest, get(&h->raw[0], row, d));
    for (int64_t d = 0; d < event_of(h->p.shape); d++) total += exp(get(&h->raw[0], row, d) - largest);
    double value = largest + log(total);
    return (approximate){value, 2 * ROW_SUM + nearly(fabs(value) + fabs(largest), 4 * ROUNDING)};
}

static approximate log_mean_of(const head_problem *h, int64_t row, int64_t d, approximate log_sum) {
    approximate shift = difference(log_of(exactly(get(&h->library, row, 0))), log_sum);
    return sum(exactly(get(&h->raw[0], row, d)), shift);
}

static approximate head_parameter(const head_problem *h, int i, int64_t row, int64_t d, approximate log_sum) {
    if (h->activations[i] == GIVEN) return exactly(shared_at(&h->l.parameters[i], h->l.sharing[i], row, d));
    approximate raw = exactly(get(&h->raw[i], row, d));
    switch (h->activations[i]) {
    case EXP: return exp_of(raw);
    case SOFTPLUS: return softplus_of(raw);
    case SOFTMAX: {
        approximate log_mean = log_mean_of(h, row, d, log_sum);
        return h->l.likelihood.kind == POISSON ? log_mean : exp_of(log_mean);
    }
    default: return raw;
    }
}

/* The likelihood of parameters that are not known exactly: what changes when each of them is as far off as it may be. */
static exact_likelihood likelihood_near(const likelihood *l, double x, const approximate *parameters) {
    double values[MOST_PARAMETERS];
    for (int i = 0; i < MOST_PARAMETERS; i++) values[i] = parameters[i].value;
    exact_likelihood e = likelihood_of(l, x, values);
    for (int i = 0; i < parameters_of[l->kind]; i++)
        for (int sign = -1; sign <= 1 && parameters[i].error > 0.0; sign += 2) {
            double moved[MOST_PARAMETERS];
            memcpy(moved, values, sizeof moved);
            moved[i] += sign * parameters[i].error;
            exact_likelihood other = likelihood_of(l, x, moved);
            e.log_prob.error += fabs(other.log_prob.value - e.log_prob.value);
            for (int j = 0; j < parameters_of[l->kind]; j++)
                e.by[j].error += fabs(other.by[j].value - e.by[j].value);
        }
    return e;
}

/* By an output; of a softmax, by the logarithm of the mean. */
static approximate through_activation(const head_problem *h, int i, int64_t row, int64_t d, approximate parameter,
                                      approximate by) {
    int activation = h->activations[i];
    if (activation == SOFTPLUS) return product(by, sigmoid_of(exactly(get(&h->raw[i], row, d))));
    if (activation == EXP || (activation == SOFTMAX && h->l.likelihood.kind != POISSON)) return product(by, parameter);
    return by;
}

typedef struct {
    tensor log_prob, of_library, given[MOST_PARAMETERS];
    long_sum *sums[MOST_PARAMETERS];
} head_outputs;

static approximate expect_coordinate(head_problem *h, head_outputs *out, int64_t row, int64_t d, approximate log_sum,
                                     approximate *by_log_mean) {
    likelihood_problem *l = &h->l;
    approximate given = with_rounding(h->with_grad ? get(&h->grad, row, 0) : 1.0, 0.0);
    approximate by[MOST_VALUES], parameters[MOST_PARAMETERS] = {{0}};
    if (l->likelihood.kind == MIXTURE) {
        tensor current = l->parameters[0];
        l->parameters[0] = h->raw[0];
        approximate log_prob = likelihood_at(l, row, d, given, by);
        l->parameters[0] = current;
        for (int i = 0; h->with_gradients && i < channels_of_parameter(l); i++)
            expect_approximately(&l->parameters[0], GRAD_PARAMETER, row, d + i * event_of(h->p.shape), by[i]);
        return log_prob;
    }
    for (int i = 0; i < parameters_of[l->likelihood.kind]; i++)
        parameters[i] = head_parameter(h, i, row, d, log_sum);
    exact_likelihood e = likelihood_near(&l->likelihood, as_float(get(&l->x, row, d)), parameters);
    for (int i = 0; h->with_gradients && i < parameters_of[l->likelihood.kind]; i++) {
        approximate of_parameter = gradient_of_parameter(&l->likelihood, i, parameters[i].value, given, e.by[i]);
        approximate of_output = through_activation(h, i, row, d, parameters[i], of_parameter);
        if (h->activations[i] == GIVEN)
            check_gradient(&out->given[i], GRAD_SHARED, l->sharing[i], row, d, of_output, out->sums[i]);
        else if (h->activations[i] == SOFTMAX)
            *by_log_mean = of_output;
        else
            expect_approximately(&l->parameters[i], GRAD_PARAMETER, row, d, of_output);
    }
    return e.log_prob;
}

static void expect_softmax(head_problem *h, head_outputs *out, int64_t row, approximate log_sum,
                           const approximate *by_log_means) {
    long_sum slope = {0.0, 0.0, 0.0};
    for (int64_t d = 0; d < event_of(h->p.shape); d++) add_to(&slope, by_log_means[d]);
    for (int64_t d = 0; d < event_of(h->p.shape); d++) {
        approximate share = exp_of(difference(exactly(get(&h->raw[0], row, d)), log_sum));
        approximate exact = difference(by_log_means[d], product(share, sum_of(slope)));
        expect_approximately(&h->l.parameters[0], GRAD_PARAMETER, row, d, exact);
    }
    approximate of_library = product(sum_of(slope), inverse_of(exactly(get(&h->library, row, 0))));
    expect_approximately(&out->of_library, GRAD_SHARED, row, 0, of_library);
}

/* Every number of threads gives the same bits. The outputs of the layers are written over: they are laid out anew. */
static void run_as_head(head_problem *h, call *c, head_outputs *out) {
    tensor *const written[] = {&h->l.parameters[0], &h->l.parameters[1], &h->l.parameters[2], &out->log_prob,
                               &out->of_library,    &out->given[1],      &out->given[2]};
    int large = have_threads() && c->rows * c->event >= ELEMENTS_WORTH_THREADS;
    unsigned char *alone[COUNT(written)] = {NULL};
    for (int threads = 1; threads <= (large ? most_threads : 1); threads++) {
        for (int i = 0; i < COUNT(written); i++) {
            if (i < MOST_PARAMETERS && h->raw[i].block)
                memcpy(written[i]->block, h->raw[i].block, bytes_of_block(written[i]));
            else if (i >= MOST_PARAMETERS && written[i]->block)
                poison(written[i]);
        }
        scribble_on_stacks(threads);
        if (!run_head(c, threads)) fail("no memory for the sums");
        calls_on_threads += threads > 1;
        for (int i = 0; large && i < COUNT(written); i++) {
            size_t bytes = written[i]->block && !is_far(written[i]) ? bytes_of_block(written[i]) : 0;
            if (threads == 1 && bytes > 0) {
                alone[i] = malloc(bytes);
                memcpy(alone[i], written[i]->block, bytes);
            } else if (bytes > 0 && memcmp(alone[i], written[i]->block, bytes) != 0) {
                fail("%d threads give other bits than one", threads);
            }
        }
    }
    for (int i = 0; i < COUNT(written); i++) free(alone[i]);
}

static call head_call(head_problem *h, head_outputs *out) {
    int has_softmax = h->activations[0] == SOFTMAX;
    call c = likelihood_call(&h->l);
    c.head.x_rows = h->p.shape.rows;
    if (h->shared_x.block) {
        shape s = h->p.shape;
        c.head.x_rows = s.rows = h->shared_x.shape.rows;
        c.x = view_of_channels(&h->shared_x, s);
    }
    c.head.with_gradients = h->with_gradients;
    c.head.library = has_softmax ? h->library.view.data : NULL;
    c.head.grad = h->with_grad ? h->grad.view.data : NULL;
    c.head.log_prob = out->log_prob.view.data;
    c.head.of_library = has_softmax && h->with_gradients ? out->of_library.view.data : NULL;
    for (int i = 0; i < parameters_of[h->l.likelihood.kind]; i++) {
        c.head.activations[i] = h->activations[i];
        if (!h->with_gradients) continue;
        if (h->activations[i] == GIVEN)
            place_gradient(&out->given[i], h->l.sharing[i], h->p.shape.inner, NULL, &c.columns[OF_PARAMETER(i)]);
        else
            c.grad_parameters[i] = c.parameters[i];
    }
    return c;
}

static void check_head(const problem *p, int kind) {
    head_problem h;
    new_head_problem(p, kind, &h);
    const shape s = p->shape;
    head_outputs out = {.log_prob = new_tensor((shape){s.rows, 1, 1}, FLOAT32, DENSE),
                        .of_library = new_tensor((shape){s.rows, 1, 1}, FLOAT32, DENSE)};
    for (int i = 1; i < MOST_PARAMETERS; i++) {
        out.sums[i] = new_sums(event_of(s));
        if (h.with_gradients && h.activations[i] == GIVEN && h.l.sharing[i])
            out.given[i] = output(shape_of_shared(s, h.l.sharing[i]), FLOAT32, 5 + i);
    }
    call c = head_call(&h, &out);
    describe_likelihood("head", &h.l);
    size_t end = strlen(subject);
    snprintf(subject + end, sizeof subject - end, "; %s, %s, %s, %s gradients", activation_names[h.activations[0]],
             activation_names[h.activations[1]], activation_names[h.activations[2]], h.with_gradients ? "with" : "without");
    run_as_head(&h, &c, &out);
    approximate log_sum = exactly(0.0), *by_log_means = calloc((size_t)event_of(s) + 1, sizeof *by_log_means);
    for (int64_t row = 0; row < s.rows; row++) {
        long_sum log_prob = {0.0, 0.0, 0.0};
        if (h.activations[0] == SOFTMAX) log_sum = log_sum_of(&h, row);
        for (int64_t d = 0; d < event_of(s); d++)
            add_to(&log_prob, expect_coordinate(&h, &out, row, d, log_sum, &by_log_means[d]));
        expect_approximately(&out.log_prob, LIKELIHOOD_SUM, row, 0, sum_of(log_prob));
        if (h.activations[0] == SOFTMAX && h.with_gradients && event_of(s) > 0)
            expect_softmax(&h, &out, row, log_sum, by_log_means);
    }
    for (int i = 0; i < parameters_of[kind]; i++) {
        tensor *t = h.activations[i] == GIVEN ? &out.given[i] : &h.l.parameters[i];
        if (h.with_gradients && h.activations[i] == GIVEN)
            check_summed_gradient(t, GRAD_SHARED, h.l.sharing[i], out.sums[i]);
        if (h.with_gradients)
            expect_nothing_else(t, GRAD_PARAMETER);
        else if (h.raw[i].block && memcmp(h.raw[i].block, t->block, bytes_of_block(t)) != 0)
            fail("outputs were written over where no gradient was asked for");
    }
    for (int i = 1; i < MOST_PARAMETERS; i++) {
        free_tensor(&out.given[i]);
        free(out.sums[i]);
    }
    free(by_log_means);
    free_tensor(&out.log_prob);
    free_tensor(&out.of_library);
    free_head_problem(&h);
}

/* Scaled Bernoullis have no head: their parameters are probabilities. */
static const int kinds_of_heads[] = {
    NEGATIVE_BINOMIAL, ZERO_INFLATED, POISSON, BERNOULLI, GAUSSIAN, LAPLACE, CONTINUOUS_BERNOULLI, MIXTURE,
};

/* With random numbers of their own, as likelihoods have them; of small problems a few kinds, else the next one. */
static void check_heads(const problem *p) {
    static uint64_t own_state = 3;
    static int next;
    uint64_t state = random_state;
    random_state = own_state;
    int how_many = p->shape.rows * event_of(p->shape) < 1000 ? 3 : 1;
    for (int i = 0; i < how_many; i++, next++)
        check_head(p, is_large(p) ? ZERO_INFLATED : kinds_of_heads[next % COUNT(kinds_of_heads)]);
    own_state = random_state;
    random_state = state;
}

/* Rows of whole tiles, of several, and short ones that share a tile: every kind with what chance picks for it. */
static void check_heads_of_each_kind(void) {
    const shape shapes[] = {{5, 1, 1024}, {9, 1, 1100}, {70, 1, 33}};
    for (int i = 0; i < COUNT(shapes); i++) {
        problem p = new_problem(shapes[i], FLOAT32, 0, 0, 0, 0);
        for (int j = 0; j < 24; j++) {
            turn = 0; /* all dense */
            check_heads(&p);
        }
        free(p.eps);
    }
}

#endif
