/* Calls of latent_forward and latent_backward on fresh tensors, each with options that chance picks. */
#ifndef LATENTS_H
#define LATENTS_H

#include "latent_formulas.h"
#include "reduced.h"

typedef struct {
    const problem *p;
    options options;
    int64_t draws; /* 0: one, and no dimension for it */
    int prior_mu, prior_scale, reduction, with_z, kl_mean, log_probs;
    tensor mu, scale, prior_mu_tensor, prior_scale_tensor;
    int64_t *seed;
    double *eps; /* of all draws, times the temperature */
} latent_problem;

static int64_t draws_of(const latent_problem *l) { return l->draws ? l->draws : 1; }

static void fill_scale(tensor *t, const options *o) {
    int positive = o->scale == SCALE_STD || o->scale == SCALE_VAR;
    for (int64_t row = 0; row < t->shape.rows; row++)
        for (int64_t d = 0; d < event_of(t->shape); d++) {
            double value = 2.0 * next_uniform();
            set_bits(t, row, d, encode(positive ? 0.1 + fabs(value) : value, t->dtype));
        }
}

static exact_latent latent_at(const latent_problem *l, int64_t row, int64_t d) {
    double prior_mu = shared_at(&l->prior_mu_tensor, l->prior_mu, row, d);
    double prior_scale = shared_at(&l->prior_scale_tensor, l->prior_scale, row, d);
    return latent_of(get(&l->mu, row, d), get(&l->scale, row, d), l->prior_mu != ABSENT, prior_mu, prior_scale,
                     &l->options);
}

static approximate scaled_eps_at(const latent_problem *l, int64_t k, int64_t row, int64_t d) {
    double eps = l->eps[(k * l->p->shape.rows + row) * event_of(l->p->shape) + d], temperature = l->options.temperature;
    return with_rounding(temperature * eps, temperature * EPS * (1.0 + fabs(eps)));
}

static options random_options(int with_prior) {
    options o = {.scale = one_of(5), .clamp = one_of(3), .temperature = one_of(2) ? 1.0f : 0.7f};
    int of_logarithm = o.scale == SCALE_LOGVAR || o.scale == SCALE_LOGSTD;
    if (o.clamp == CLAMP_HARD) o.low = of_logarithm ? -1.0f : 0.25f;
    if (o.clamp == CLAMP_HARD) o.high = 1.25f;
    if (o.clamp == CLAMP_SOFT) o.high = 1.5f;
    if (o.clamp == CLAMP_SOFT && !of_logarithm) o.clamp = CLAMP_NONE;
    if (o.scale == SCALE_SOFTPLUS && one_of(2)) o.floor = 0.125f;
    o.residual = with_prior && of_logarithm && one_of(2);
    if (one_of(3) == 0) o.free_bits = 0.5f;
    return o;
}

/* A latent of standard_prior.h, but for its clamp. */
static void make_standard(latent_problem *l) {
    l->draws = one_of(2);
    l->prior_mu = l->prior_scale = ABSENT;
    l->kl_mean = l->log_probs = 0;
    l->options.residual = 0;
    l->options.free_bits = 0.0f;
}

/* A latent of elementwise_prior.h, or one that differs from those in one thing. */
static void make_elementwise_prior(latent_problem *l) {
    make_standard(l);
    l->prior_mu = l->prior_scale = FULL;
    if (one_of(4)) l->options.clamp = CLAMP_NONE;
    switch (one_of(12)) {
    case 0: l->kl_mean = 1; break;
    case 1:
    case 2: l->log_probs = l->with_z; break;
    case 7: l->draws = 3; break;
    case 3: l->options.free_bits = 0.5f; break;
    case 4: l->options.residual = l->options.scale == SCALE_LOGVAR || l->options.scale == SCALE_LOGSTD; break;
    case 5: l->prior_mu = SHARED; break;
    case 6: l->prior_scale = SHARED; break;
    }
}

static latent_problem new_latent_problem(const problem *p) {
    latent_problem l = {.p = p, .draws = one_of(4), .reduction = one_of(6), .with_z = one_of(4) > 0};
    l.kl_mean = is_large(p) || one_of(2);
    if (one_of(3)) l.prior_mu = 1 + one_of(3), l.prior_scale = 1 + one_of(3);
    l.log_probs = l.with_z && one_of(2);
    l.options = random_options(l.prior_mu != ABSENT);
    if (!is_large(p) && one_of(2)) one_of(2) ? make_standard(&l) : make_elementwise_prior(&l);
    l.mu = input(p->shape, p->dtype, 0);
    l.scale = input(p->shape, p->dtype, 1);
    l.prior_mu_tensor = shared_tensor(p, p->dtype, l.prior_mu, 2);
    l.prior_scale_tensor = shared_tensor(p, p->dtype, l.prior_scale, 3);
    fill(&l.mu, p, 2.0, NULL, 0, 1);
    fill_scale(&l.scale, &l.options);
    if (l.prior_mu) fill(&l.prior_mu_tensor, p, 2.0, NULL, 0, 1);
    if (l.prior_scale) fill_scale(&l.prior_scale_tensor, &l.options);
    int64_t event = event_of(p->shape);
    l.eps = malloc(sizeof(double) * (size_t)(draws_of(&l) * p->shape.rows * event + 1));
    for (int64_t k = 0; k < draws_of(&l); k++)
        for (int64_t row = 0; row < p->shape.rows; row++)
            for (int64_t d = 0; d < event; d++)
                l.eps[(k * p->shape.rows + row) * event + d] =
                    normal_at((uint64_t)p->seed, p->row_offset + (uint64_t)row, d, (uint32_t)k);
    l.seed = malloc(sizeof *l.seed);
    *l.seed = p->seed;
    return l;
}

static void free_latent_problem(latent_problem *l) {
    tensor *const all[] = {&l->mu, &l->scale, &l->prior_mu_tensor, &l->prior_scale_tensor};
    for (int i = 0; i < COUNT(all); i++) free_tensor(all[i]);
    free(l->seed);
    free(l->eps);
}

static call latent_call(const latent_problem *l) {
    call c = call_of(l->p, l->with_z ? l->seed : NULL, (kind){l->with_z, l->reduction});
    c.options = l->options;
    c.draws = draws_of(l);
    c.mu = l->mu.view;
    c.scale = l->scale.view;
    c.prior_mu = shared_view(&l->prior_mu_tensor, l->prior_mu);
    c.prior_scale = shared_view(&l->prior_scale_tensor, l->prior_scale);
    plan_channels(&c, l->p->shape);
    return c;
}

static void describe_latent(const char *direction, const latent_problem *l) {
    const shape s = l->p->shape;
    const options *o = &l->options;
    snprintf(subject, sizeof subject,
             "%s latent %s %lldx(%lldx%lld) %s, scale %s, %s clamp, floor %g,%s temperature %g, free bits %g, %lld draws,"
             " %s z, kl %s, priors %s and %s; turn %lld",
             isa->name, direction, (long long)s.rows, (long long)s.outer, (long long)s.inner, dtype_names[l->p->dtype],
             scale_names[o->scale], clamp_names[o->clamp], o->floor, o->residual ? " residual," : "", o->temperature,
             o->free_bits, (long long)l->draws, l->with_z ? "with" : "without", reduction_names[l->reduction],
             sharing_names[l->prior_mu], sharing_names[l->prior_scale], (long long)turn);
}

/* All draws of a tensor, as one with as many times the rows. */
static shape all_draws(shape s, int64_t draws) { return (shape){draws * s.rows, s.outer, s.inner}; }

static strided view_of_draws(const tensor *t, shape s) {
    strided view = t->view;
    view.draw = s.rows * view.row;
    return view;
}

static strided row_view_of_draws(const tensor *t, shape s) {
    return (strided){.data = t->view.data, .draw = s.rows * t->view.row, .row = t->view.row};
}

static void check_latent_forward(const latent_problem *l) {
    const problem *p = l->p;
    const shape s = p->shape;
    int64_t event = event_of(s), draws = draws_of(l);
    tensor z = {0}, kl = reduced_output(s, l->reduction, 5), mean = {0}, log_q = {0}, log_p = {0};
    call c = latent_call(l);
    if (l->with_z) z = output(all_draws(s, draws), p->dtype, 4);
    if (l->kl_mean) mean = new_tensor((shape){1, s.outer, s.inner}, FLOAT32, DENSE);
    if (l->log_probs) log_q = new_tensor((shape){draws * s.rows, 1, 1}, FLOAT32, DENSE);
    if (l->log_probs) log_p = new_tensor((shape){draws * s.rows, 1, 1}, FLOAT32, DENSE);
    c.z = view_of_draws(&z, s);
    c.kl = kl.view;
    c.log_q = (float *)log_q.view.data;
    c.log_p = (float *)log_p.view.data;
    if (event > 0) c.columns[KL_MEAN] = view_of_sums(&mean, SHARED, s.inner, (double)s.rows);
    describe_latent("forward", l);
    run(&c, isa->latent_forward, 5, (tensor *const[]){&z, &kl, &mean, &log_q, &log_p});

    reduced of_kl = begin_reduced(s, l->reduction);
    long_sum *of_columns = new_sums(event), *of_log_q = new_sums(draws * s.rows), *of_log_p = new_sums(draws * s.rows);
    FOR_EACH_ELEMENT(p, row, d) {
        exact_latent e = latent_at(l, row, d);
        approximate counted = e.kl;
        counted.value = fmax(counted.value, l->options.free_bits);
        add_to(&of_columns[d], e.kl);
        add_term(&of_kl, &kl, KL, row, d, counted);
        for (int64_t k = 0; l->with_z && k < draws; k++) {
            approximate eps = scaled_eps_at(l, k, row, d), step = product(e.scale.std, eps);
            approximate distance = sum(e.difference, step), weighted = product(product(distance, distance), e.inverse);
            expect_approximately(&z, Z, k * s.rows + row, d, sum(e.mu, step));
            add_to(&of_log_q[k * s.rows + row], sum(product(eps, eps), e.scale.logvar));
            add_to(&of_log_p[k * s.rows + row], sum(weighted, e.prior.logvar));
        }
    }
    expect_reduced(&of_kl, &kl, KL_SUM);
    for (int64_t d = 0; l->kl_mean && d < event; d++)
        expect_approximately(&mean, MEAN_KL, 0, d, scaled(1.0 / (double)s.rows, sum_of(of_columns[d])));
    approximate constant = exactly((double)event * log(2.0 * acos(-1.0)));
    for (int64_t i = 0; l->log_probs && i < draws * s.rows; i++) {
        expect_approximately(&log_q, LOG_PROBABILITY, i, 0, scaled(-0.5, sum(sum_of(of_log_q[i]), constant)));
        expect_approximately(&log_p, LOG_PROBABILITY, i, 0, scaled(-0.5, sum(sum_of(of_log_p[i]), constant)));
    }
    tensor *const all[] = {&z, &kl, &mean, &log_q, &log_p};
    const int quantities[] = {Z, KL, MEAN_KL, LOG_PROBABILITY, LOG_PROBABILITY};
    for (int i = 0; i < COUNT(all); i++) {
        if (all[i]->block) expect_nothing_else(all[i], quantities[i]);
        free_tensor(all[i]);
    }
    free(of_columns), free(of_log_q), free(of_log_p);
}

#endif
