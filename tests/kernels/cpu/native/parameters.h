/* Scale parameters that random values would not find: at the ends of the range, beside 1, where one formula takes over
   from another, infinite, NaN, and outside of what a standard deviation may be. */
#ifndef PARAMETERS_H
#define PARAMETERS_H

#include "latent_gradients.h"

static const double deviations[] = {
    0x1p-149, 0x1.8p-127, 0x1p-126, 1e-30,    1e-3, 0.5,  0.70710677, 0.70710683, 0x1.fffffep-1, 1.0, 0x1.000002p0,
    1.001,    1.4142135,  1.4142137, 2.0,     3.0,  1e15, 0.0,        -0.0,       -1.0,          -0x1p-140,
    INFINITY, -INFINITY,  NAN,
};
static const double logarithms[] = {
    0.0,  -0.0,  1e-40, -1e-40, 1e-4, -1e-4, 0.3,  -0.3, 0.62,  0.63, -0.62, -0.63, 0.88, 0.89,
    -0.88, -0.89, 5.0,  -5.0,   17.0, -17.0, 40.0, 43.0, -43.0, -80.0, NAN,
};
static const double unbounded[] = {INFINITY, -INFINITY, 1e30, -1e30, 3e38, NAN, 1.0, -1.0, 1.25, 0.75, 0x1.400002p0};

/* z and the KL of mu = 0, and the gradient of the KL: relative to how small they are they tell of std and logvar. */
static void check_parameter(const double *values, int how_many, options o) {
    const shape s = {how_many, 1, 1};
    problem p = new_problem(s, FLOAT32, 0, 7, 0, 0);
    tensor mu = new_tensor(s, FLOAT32, DENSE), scale = new_tensor(s, FLOAT32, DENSE);
    tensor grad_kl = new_tensor(s, FLOAT32, DENSE), z = new_tensor(s, FLOAT32, DENSE), kl = new_tensor(s, FLOAT32, DENSE);
    tensor grad_mu = new_tensor(s, FLOAT32, DENSE), grad_scale = new_tensor(s, FLOAT32, DENSE);
    FOR_EACH_ELEMENT(&p, row, d) {
        set_bits(&mu, row, d, encode(0.0, FLOAT32));
        set_bits(&scale, row, d, encode(values[row], FLOAT32));
        set_bits(&grad_kl, row, d, encode(1.0, FLOAT32));
    }
    call c = call_of(&p, &p.seed, (kind){1, ELEMENTWISE});
    c.options = o;
    c.mu = mu.view;
    c.scale = scale.view;
    call backward = c;
    c.z = z.view;
    c.kl = kl.view;
    backward.grad_kl = grad_kl.view;
    backward.grad_mu = grad_mu.view;
    backward.grad_scale = grad_scale.view;
    snprintf(subject, sizeof subject, "%s parameter %s, %s clamp", isa->name, scale_names[o.scale],
             clamp_names[o.clamp]);
    run_call(&c, isa->latent_forward, 1);
    run_call(&backward, isa->latent_backward, 1);
    FOR_EACH_ELEMENT(&p, row, d) {
        exact_parameter e = parameter_of(exactly(get(&scale, row, d)), &o);
        approximate eps = {eps_at(&p, row, d), EPS * (1.0 + fabs(eps_at(&p, row, d)))};
        expect_approximately(&z, Z, row, d, product(e.std, eps));
        expect_approximately(&kl, KL, row, d, scaled(0.5, expm1_less_of(e.logvar)));
        approximate of_logvar = scaled(0.5, expm1_of(e.logvar));
        expect_approximately(&grad_scale, GRAD_LOGVAR, row, d, parameter_gradient(&e, exactly(0.0), of_logvar, &o));
        expect(&grad_mu, GRAD_MU, row, d, 0.0, 0.0);
    }
    tensor *const all[] = {&mu, &scale, &grad_kl, &z, &kl, &grad_mu, &grad_scale};
    for (int i = 0; i < COUNT(all); i++) free_tensor(all[i]);
    free(p.eps);
}

static void check_parameters(void) {
    const options plain = {.temperature = 1.0f};
    for (int scale = SCALE_LOGVAR; scale <= SCALE_SOFTPLUS; scale++) {
        options o = plain;
        o.scale = scale;
        if (scale == SCALE_SOFTPLUS) o.floor = 0.125f;
        if (scale == SCALE_STD || scale == SCALE_VAR)
            check_parameter(deviations, COUNT(deviations), o);
        else
            check_parameter(logarithms, COUNT(logarithms), o);
        o.clamp = CLAMP_HARD;
        o.low = 0.75f;
        o.high = 1.25f;
        check_parameter(unbounded, COUNT(unbounded), o);
    }
    for (int scale = SCALE_LOGVAR; scale <= SCALE_LOGSTD; scale++) {
        options o = plain;
        o.scale = scale;
        o.clamp = CLAMP_SOFT;
        o.high = 1.0f;
        check_parameter(logarithms, COUNT(logarithms), o);
        check_parameter(unbounded, COUNT(unbounded), o);
    }
}

#endif
