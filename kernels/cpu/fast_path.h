/* The loops of the latents whose values stay in registers: standard_prior.h and elementwise_prior.h have their formulas.
   All other latents: latent_forward.h, latent_backward.h. */

/* Whether these loops compute a latent. Each clamp of each scale would be one more copy of them, so there is only the
   one that VAEs of diffusers have: the hard clamp of logvar, and a prior N(0, I). */
static inline int is_fast(const call *c) {
    const options *o = &c->options;
    int one_draw = c->draws == 1 && o->free_bits == 0.0f && !c->log_q && !c->grad_log_q.data && !c->grad_log_p.data &&
                   !c->columns[KL_MEAN].out.data;
    if (!c->prior_mu.data)
        return one_draw && (o->clamp == CLAMP_NONE || (o->clamp == CLAMP_HARD && o->scale == SCALE_LOGVAR));
    return one_draw && c->prior_mu.row && c->prior_scale.row && !o->residual && o->clamp == CLAMP_NONE;
}

NEVER_INLINE void forward_fast(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], mu[TILE], scale[TILE], prior_mu[TILE], prior_scale[TILE], z[TILE], kl[TILE + LANES];
    int with_z = c->seed != NULL, with_prior = c->prior_mu.data != NULL;
    noise_stream noise;
    const options *o = &c->options;
    if (with_z) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (with_z) fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        fast_arrays a = {
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .prior_mu = with_prior ? read_tile(c, &c->prior_mu, c->dtype, t, prior_mu) : NULL,
            .prior_scale = with_prior ? read_tile(c, &c->prior_scale, c->dtype, t, prior_scale) : NULL,
            .eps = eps,
            .z = with_z ? begin_tile(c, &c->z, c->dtype, t, z) : NULL,
            .kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, kl) : kl,
            .ahead = distance_ahead(c, t),
        };
        if (with_prior && with_z) {
            EACH_VECTOR_OF_SCALE(o, n, forward_elementwise_prior_vector, 1, o, a);
        } else if (with_prior) {
            EACH_VECTOR_OF_SCALE(o, n, forward_elementwise_prior_vector, 0, o, a);
        } else if (with_z && c->reduction != NO_KL) {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 1, 1, o, a);
        } else if (with_z) {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 1, 0, o, a);
        } else {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 0, 1, o, a);
        }
        if (with_z) write_tile(c, &c->z, c->dtype, t, a.z, z);
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, a.kl, kl);
        else if (c->reduction != NO_KL)
            sum_tile(c, t, kl, c->channel_size, c->kl_slots);
    }
}

NEVER_INLINE void backward_fast(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], grad_kl[TILE + LANES], grad_z[TILE], mu[TILE], scale[TILE], prior_mu[TILE];
    float prior_scale[TILE], grad_mu[TILE], grad_scale[TILE], grad_prior_mu[TILE], grad_prior_scale[TILE];
    int with_z = c->grad_z.data != NULL, with_kl = c->grad_kl.data != NULL, with_prior = c->prior_mu.data != NULL;
    noise_stream noise;
    const options *o = &c->options;
    if (with_z) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        fast_arrays a = {
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .eps = eps,
            .grad_mu = c->grad_mu.data ? begin_tile(c, &c->grad_mu, c->dtype, t, grad_mu) : NULL,
            .grad_scale = begin_tile(c, &c->grad_scale, c->dtype, t, grad_scale),
            .ahead = distance_ahead(c, t),
        };
        if (with_z) {
            fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
            a.grad_z = read_tile(c, &c->grad_z, c->dtype, t, grad_z);
        }
        if (with_kl) {
            a.mu = read_tile(c, &c->mu, c->dtype, t, mu);
            a.grad_kl = read_grad_kl(c, t, grad_kl);
        }
        if (with_prior) {
            a.prior_mu = read_tile(c, &c->prior_mu, c->dtype, t, prior_mu);
            a.prior_scale = read_tile(c, &c->prior_scale, c->dtype, t, prior_scale);
        }
        if (c->grad_prior_mu.data) {
            a.grad_prior_mu = begin_tile(c, &c->grad_prior_mu, c->dtype, t, grad_prior_mu);
            a.grad_prior_scale = begin_tile(c, &c->grad_prior_scale, c->dtype, t, grad_prior_scale);
        }
        if (with_prior && with_z) {
            EACH_VECTOR_OF_SCALE(o, n, backward_elementwise_prior_vector, 1, o, a);
        } else if (with_prior) {
            EACH_VECTOR_OF_SCALE(o, n, backward_elementwise_prior_vector, 0, o, a);
        } else if (with_z && with_kl) {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 1, 1, o, a);
        } else if (with_z) {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 1, 0, o, a);
        } else {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 0, 1, o, a);
        }
        write_tile(c, &c->grad_scale, c->dtype, t, a.grad_scale, grad_scale);
        if (a.grad_mu) write_tile(c, &c->grad_mu, c->dtype, t, a.grad_mu, grad_mu);
        if (!a.grad_prior_mu) continue;
        write_tile(c, &c->grad_prior_mu, c->dtype, t, a.grad_prior_mu, grad_prior_mu);
        write_tile(c, &c->grad_prior_scale, c->dtype, t, a.grad_prior_scale, grad_prior_scale);
    }
}
