/* Fast path of latents against a prior of mu's shape: one draw, no options but a scale and a temperature. Everything
   between load and store stays in registers.

     kl = 1/2 (d^2 exp(-logvar_p) + expm1(r) - r)        d = mu - mu_p,  r = logvar - logvar_p
     d mu = g d exp(-logvar_p),  d logvar = 1/2 g expm1(r)
     d mu_p = -d mu,             d logvar_p = -(d logvar + 1/2 d mu d)

   A prior that the batch shares is left to latent_forward.h, which takes its exponential once. */

/* Whether these kernels compute a latent. Each clamp would be one more copy of the loop. */
static inline int has_elementwise_prior(const call *c) {
    const options *o = &c->options;
    int for_each = c->prior_mu.data && c->prior_mu.row && c->prior_scale.row;
    return for_each && !o->residual && o->clamp == CLAMP_NONE && c->draws == 1 && o->free_bits == 0.0f && !c->log_q &&
           !c->grad_log_q.data && !c->grad_log_p.data && !c->columns[KL_MEAN].out.data;
}

/* The KL of each coordinate. */
ALWAYS_INLINE vf kl_of(vf difference, vf inverse, exponentials ratio) {
    return (difference * difference * inverse + ratio.expm1_less) * 0.5f;
}

typedef struct {
    const float *grad_z, *grad_kl, *mu, *scale, *prior_mu, *prior_scale, *eps;
    float *z, *kl, *grad_mu, *grad_scale, *grad_prior_mu, *grad_prior_scale;
    int64_t ahead;
} elementwise_prior_arrays;

ALWAYS_INLINE void forward_elementwise_prior_vector(int scale, int with_z, const options *o,
                                                    elementwise_prior_arrays a, int64_t i, int64_t count) {
    vf mu = load_ahead(a.mu, i, count, a.ahead);
    scale_values q = scale_of(load_ahead(a.scale, i, count, a.ahead), scale, o);
    vf difference = mu - load_ahead(a.prior_mu, i, count, a.ahead);
    vf prior_logvar = scale_of(load_ahead(a.prior_scale, i, count, a.ahead), scale, o).logvar;
    if (with_z) store_some(a.z + i, mu + q.std * (load_some(a.eps + i, count) * o->temperature), count);
    vf kl = kl_of(difference, exp_of(-prior_logvar), exponentials_of(q.logvar - prior_logvar));
    store_some(a.kl + i, kl, count);
}

NEVER_INLINE void forward_elementwise_prior(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], mu[TILE], scale[TILE], prior_mu[TILE], prior_scale[TILE], z[TILE], kl[TILE + LANES];
    noise_stream noise;
    const options *o = &c->options;
    if (c->seed) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (c->seed) fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        elementwise_prior_arrays a = {
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .prior_mu = read_tile(c, &c->prior_mu, c->dtype, t, prior_mu),
            .prior_scale = read_tile(c, &c->prior_scale, c->dtype, t, prior_scale),
            .eps = eps,
            .z = c->seed ? begin_tile(c, &c->z, c->dtype, t, z) : NULL,
            .kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, kl) : kl,
            .ahead = distance_ahead(c, t),
        };
        if (c->seed)
            EACH_VECTOR_OF_SCALE(o, n, forward_elementwise_prior_vector, 1, o, a)
        else
            EACH_VECTOR_OF_SCALE(o, n, forward_elementwise_prior_vector, 0, o, a)
        if (c->seed) write_tile(c, &c->z, c->dtype, t, a.z, z);
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, a.kl, kl);
        else
            sum_tile(c, t, kl, c->channel_size, c->kl_slots);
    }
}

ALWAYS_INLINE void backward_elementwise_prior_vector(int scale, int with_z, const options *o,
                                                     elementwise_prior_arrays a, int64_t i, int64_t count) {
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

NEVER_INLINE void backward_elementwise_prior(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], grad_kl[TILE + LANES], grad_z[TILE], mu[TILE], scale[TILE], prior_mu[TILE];
    float prior_scale[TILE], grad_mu[TILE], grad_scale[TILE], grad_prior_mu[TILE], grad_prior_scale[TILE];
    int with_z = c->grad_z.data != NULL, with_prior = c->grad_prior_mu.data != NULL;
    noise_stream noise;
    const options *o = &c->options;
    if (with_z) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (with_z) fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        elementwise_prior_arrays a = {
            .grad_z = with_z ? read_tile(c, &c->grad_z, c->dtype, t, grad_z) : NULL,
            .grad_kl = read_grad_kl(c, t, grad_kl),
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .prior_mu = read_tile(c, &c->prior_mu, c->dtype, t, prior_mu),
            .prior_scale = read_tile(c, &c->prior_scale, c->dtype, t, prior_scale),
            .eps = eps,
            .grad_mu = begin_tile(c, &c->grad_mu, c->dtype, t, grad_mu),
            .grad_scale = begin_tile(c, &c->grad_scale, c->dtype, t, grad_scale),
            .grad_prior_mu = with_prior ? begin_tile(c, &c->grad_prior_mu, c->dtype, t, grad_prior_mu) : NULL,
            .grad_prior_scale = with_prior ? begin_tile(c, &c->grad_prior_scale, c->dtype, t, grad_prior_scale) : NULL,
            .ahead = distance_ahead(c, t),
        };
        if (with_z)
            EACH_VECTOR_OF_SCALE(o, n, backward_elementwise_prior_vector, 1, o, a)
        else
            EACH_VECTOR_OF_SCALE(o, n, backward_elementwise_prior_vector, 0, o, a)
        write_tile(c, &c->grad_mu, c->dtype, t, a.grad_mu, grad_mu);
        write_tile(c, &c->grad_scale, c->dtype, t, a.grad_scale, grad_scale);
        if (!with_prior) continue;
        write_tile(c, &c->grad_prior_mu, c->dtype, t, a.grad_prior_mu, grad_prior_mu);
        write_tile(c, &c->grad_prior_scale, c->dtype, t, a.grad_prior_scale, grad_prior_scale);
    }
}
