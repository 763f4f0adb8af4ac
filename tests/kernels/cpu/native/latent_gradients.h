/* The backward of latents.h. */
#ifndef LATENT_GRADIENTS_H
#define LATENT_GRADIENTS_H

#include "latents.h"

/* Gradients that come in, block NULL for those that do not, and those that are wanted. */
typedef struct {
    tensor z, kl, log_q, log_p;
    int of_prior;
} incoming;

typedef struct {
    approximate mu, scale, prior_mu, prior_scale;
} exact_gradients;

static exact_gradients gradients_at(const latent_problem *l, const incoming *g, int64_t row, int64_t d) {
    const options *o = &l->options;
    exact_latent e = latent_at(l, row, d);
    approximate of_mu = {0}, of_std = {0}, of_logvar = {0}, of_prior_mu = {0}, of_prior_logvar = {0};
    if (g->kl.block) {
        approximate of_kl = with_rounding(grad_kl_at(l->p, &g->kl, l->reduction, row, d), 0.0);
        if (o->free_bits > 0.0f) of_kl = gated(of_kl, e.kl.value - o->free_bits, e.kl.error);
        approximate of_difference = product(product(of_kl, e.difference), e.inverse);
        of_logvar = product(scaled(0.5, of_kl), expm1_of(e.ratio));
        of_mu = of_difference;
        of_prior_mu = scaled(-1.0, of_difference);
        of_prior_logvar = scaled(-1.0, sum(of_logvar, scaled(0.5, product(of_difference, e.difference))));
    }
    for (int64_t k = 0; k < draws_of(l); k++) {
        int64_t of_row = k * l->p->shape.rows + row;
        approximate eps = scaled_eps_at(l, k, row, d);
        approximate of_drawn = exactly(g->z.block ? get(&g->z, of_row, d) : 0.0);
        if (g->log_q.block) of_logvar = difference(of_logvar, exactly(0.5 * get(&g->log_q, of_row, 0)));
        if (g->log_p.block) {
            approximate weight = exactly(get(&g->log_p, of_row, 0));
            approximate distance = sum(e.difference, product(e.scale.std, eps));
            approximate toward_prior = product(product(weight, distance), e.inverse);
            of_drawn = difference(of_drawn, toward_prior);
            of_prior_mu = sum(of_prior_mu, toward_prior);
            approximate bracket = difference(product(toward_prior, distance), weight);
            of_prior_logvar = sum(of_prior_logvar, scaled(0.5, bracket));
        }
        of_mu = sum(of_mu, of_drawn);
        of_std = sum(of_std, product(of_drawn, eps));
    }
    exact_gradients found = {of_mu, parameter_gradient(&e.scale, of_std, of_logvar, o), of_prior_mu, {0.0, 0.0}};
    if (l->prior_mu == ABSENT) return found;
    found.prior_scale = parameter_gradient(&e.prior, exactly(0.0), of_prior_logvar, o);
    if (o->residual) {
        found.prior_mu = sum(found.prior_mu, found.mu);
        found.prior_scale = sum(found.prior_scale, found.scale);
    }
    return found;
}

static void check_latent_backward(const latent_problem *l) {
    const problem *p = l->p;
    const shape s = p->shape, rows_of_draws = {draws_of(l) * s.rows, 1, 1};
    incoming g = {.of_prior = l->prior_mu != ABSENT && one_of(3) > 0};
    if (l->with_z && one_of(4)) g.z = input(all_draws(s, draws_of(l)), p->dtype, 4);
    if (l->log_probs && one_of(4)) g.log_q = input(rows_of_draws, FLOAT32, 5);
    if (l->log_probs && one_of(4)) g.log_p = input(rows_of_draws, FLOAT32, 6);
    if (l->reduction != NO_KL) g.kl = gradient_of_kl(s, l->reduction);
    tensor *const given[] = {&g.z, &g.kl, &g.log_q, &g.log_p};
    for (int i = 0; i < COUNT(given); i++)
        if (given[i]->block) fill(given[i], p, 3.0, NULL, 0, 1);

    int of_z_alone = g.z.block && !g.kl.block && !g.log_q.block && !g.log_p.block;
    int without_mu = of_z_alone && draws_of(l) == 1 && !l->options.residual && one_of(2); /* its gradient is that of z */
    tensor grad_mu = {0}, grad_scale = output(s, p->dtype, 8), grad_prior_mu = {0}, grad_prior_scale = {0};
    if (!without_mu) grad_mu = output(s, p->dtype, 7);
    call c = latent_call(l);
    if (without_mu) c.mu.data = NULL;
    c.grad_z = view_of_draws(&g.z, s);
    c.grad_kl = view_of_grad_kl(&g.kl, l->reduction);
    if (g.log_q.block) c.grad_log_q = row_view_of_draws(&g.log_q, s);
    if (g.log_p.block) c.grad_log_p = row_view_of_draws(&g.log_p, s);
    c.grad_mu = grad_mu.view;
    c.grad_scale = grad_scale.view;
    if (g.of_prior) {
        grad_prior_mu = output(shape_of_shared(s, l->prior_mu), p->dtype, 9);
        grad_prior_scale = output(shape_of_shared(s, l->prior_scale), p->dtype, 10);
        place_gradient(&grad_prior_mu, l->prior_mu, s.inner, &c.grad_prior_mu, &c.columns[OF_PRIOR_MU]);
        place_gradient(&grad_prior_scale, l->prior_scale, s.inner, &c.grad_prior_scale,
                             &c.columns[OF_PRIOR_SCALE]);
    }
    describe_latent("backward", l);
    tensor *const outputs[] = {&grad_mu, &grad_scale, &grad_prior_mu, &grad_prior_scale};
    run(&c, isa->latent_backward, COUNT(outputs), outputs);

    long_sum *of_mu = new_sums(event_of(s)), *of_scale = new_sums(event_of(s));
    FOR_EACH_ELEMENT(p, row, d) {
        exact_gradients e = gradients_at(l, &g, row, d);
        if (!without_mu) expect_approximately(&grad_mu, GRAD_MU, row, d, e.mu);
        expect_approximately(&grad_scale, GRAD_LOGVAR, row, d, e.scale);
        if (!g.of_prior) continue;
        check_gradient(&grad_prior_mu, GRAD_PRIOR, l->prior_mu, row, d, e.prior_mu, of_mu);
        check_gradient(&grad_prior_scale, GRAD_PRIOR, l->prior_scale, row, d, e.prior_scale, of_scale);
    }
    if (g.of_prior) check_summed_gradient(&grad_prior_mu, GRAD_PRIOR, l->prior_mu, of_mu);
    if (g.of_prior) check_summed_gradient(&grad_prior_scale, GRAD_PRIOR, l->prior_scale, of_scale);
    for (int i = 0; i < COUNT(outputs); i++) {
        if (outputs[i]->block) expect_nothing_else(outputs[i], i < 2 ? GRAD_MU + i : GRAD_PRIOR);
        free_tensor(outputs[i]);
    }
    for (int i = 0; i < COUNT(given); i++) free_tensor(given[i]);
    free(of_mu), free(of_scale);
}

#endif
