/* Fast path of latents against a prior of mu's shape: one draw, no options but a scale and a temperature. Everything
   between load and store stays in registers; fast_path.h has the loops.

     kl = 1/2 (d^2 exp(-logvar_p) + expm1(r) - r)        d = mu - mu_p,  r = logvar - logvar_p
     d mu = g d exp(-logvar_p),  d logvar = 1/2 g expm1(r)
     d mu_p = -d mu,             d logvar_p = -(d logvar + 1/2 d mu d)

   A prior that the batch shares is left to latent_forward.h, which takes its exponential once. */

/* The KL of each coordinate. */
ALWAYS_INLINE vf kl_of(vf difference, vf inverse, exponentials ratio) {
    return (difference * difference * inverse + ratio.expm1_less) * 0.5f;
}

ALWAYS_INLINE void forward_elementwise_prior_vector(int scale, int with_z, const options *o, fast_arrays a, int64_t i,
                                                    int64_t count) {
    vf mu = load_ahead(a.mu, i, count, a.ahead);
    scale_values q = scale_of(load_ahead(a.scale, i, count, a.ahead), scale, o);
    vf difference = mu - load_ahead(a.prior_mu, i, count, a.ahead);
    vf prior_logvar = scale_of(load_ahead(a.prior_scale, i, count, a.ahead), scale, o).logvar;
    if (with_z) store_some(a.z + i, mu + q.std * (load_some(a.eps + i, count) * o->temperature), count);
    vf kl = kl_of(difference, exp_of(-prior_logvar), exponentials_of(q.logvar - prior_logvar));
    store_some(a.kl + i, kl, count);
}

ALWAYS_INLINE void backward_elementwise_prior_vector(int scale, int with_z, const options *o, fast_arrays a, int64_t i,
                                                     int64_t count) {
    vf x = load_ahead(a.scale, i, count, a.ahead), prior_x = load_ahead(a.prior_scale, i, count, a.ahead);
    scale_values q = scale_of(x, scale, o), p = scale_of(prior_x, scale, o);
    vf difference = load_ahead(a.mu, i, count, a.ahead) - load_ahead(a.prior_mu, i, count, a.ahead);
    vf grad_kl = load_some(a.grad_kl + i, count);
    vf of_difference = grad_kl * difference * exp_of(-p.logvar);
    vf of_ratio = 0.5f * grad_kl * exponentials_of(q.logvar - p.logvar).expm1;
    vf grad_mu = of_difference, grad_scale = through_logvar(of_ratio, x, q.std, scale, o);
    if (with_z) {
        vf grad_z = load_ahead(a.grad_z, i, count, a.ahead);
        grad_mu += grad_z;
        grad_scale += through_std(grad_z, x, q.std, scale) * (load_some(a.eps + i, count) * o->temperature);
    }
    store_some(a.grad_mu + i, grad_mu, count);
    store_some(a.grad_scale + i, grad_scale, count);
    if (a.grad_prior_mu) {
        vf of_prior_logvar = -(of_ratio + 0.5f * of_difference * difference);
        store_some(a.grad_prior_mu + i, -of_difference, count);
        store_some(a.grad_prior_scale + i, through_logvar(of_prior_logvar, prior_x, p.std, scale, o), count);
    }
}
