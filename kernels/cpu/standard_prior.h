/* Fast path of latents: prior N(0, I), one draw, no options but a scale, a temperature and a clamp of logvar.

     z  = mu + std eps                            kl = 1/2 (mu^2 + expm1(logvar) - logvar)
     d mu = g_z + g_kl mu                         d std = g_z eps,  d logvar = 1/2 g_kl expm1(logvar)

   Everything between load and store stays in registers. All other latents: latent_forward.h, latent_backward.h. */

/* Whether these kernels compute a latent. Each clamp of each scale would be one more copy of the loop, so there is only
   the one that VAEs of diffusers have: the hard clamp of logvar. */
static inline int is_standard(const call *c) {
    const options *o = &c->options;
    int standard_clamp = o->clamp == CLAMP_NONE || (o->clamp == CLAMP_HARD && o->scale == SCALE_LOGVAR);
    return standard_clamp && !c->prior_mu.data && c->draws == 1 && o->free_bits == 0.0f && !c->log_q &&
           !c->grad_log_q.data && !c->grad_log_p.data && !c->columns[KL_MEAN].out.data;
}

/* function(scale, clamp, ...) for each vector of n elements, scale and clamp as constants. */
#define EACH_STANDARD_VECTOR(o, n, function, ...)                      \
    if ((o)->clamp == CLAMP_NONE)                                      \
        EACH_VECTOR_OF_SCALE(o, n, function, CLAMP_NONE, __VA_ARGS__)  \
    else                                                               \
        EACH_VECTOR(n, function, SCALE_LOGVAR, CLAMP_HARD, __VA_ARGS__)

/* A scale as it was given, clamped, and what the ops need of it. */
typedef struct {
    vf raw, x;
    exponentials of;
} resolved;

ALWAYS_INLINE resolved resolve_vector(int scale, int clamp, const options *o, vf raw) {
    vf x = clamp == CLAMP_NONE ? raw : clamped(raw, clamp, o);
    exponentials e = of_scale(x, scale, o);
    return (resolved){raw, x, e};
}

typedef struct {
    const float *mu, *scale, *eps;
    float *z, *kl;
} forward_arrays;

ALWAYS_INLINE void forward_vector(int scale, int clamp, int with_z, int with_kl, const options *o, forward_arrays a,
                                  int64_t i, int64_t count) {
    vf mu = load_some(a.mu + i, count);
    resolved r = resolve_vector(scale, clamp, o, load_some(a.scale + i, count));
    if (with_z) store_some(a.z + i, mu + r.of.std * (load_some(a.eps + i, count) * o->temperature), count);
    if (with_kl) store_some(a.kl + i, (mu * mu + r.of.expm1_less) * 0.5f, count);
}

NEVER_INLINE void forward_standard_prior(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], mu[TILE], scale[TILE], z[TILE], kl[TILE + LANES];
    noise_stream noise;
    const options *o = &c->options;
    if (c->seed) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (c->seed) fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        forward_arrays a = {
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .eps = eps,
            .z = c->seed ? begin_tile(c, &c->z, c->dtype, t, z) : NULL,
            .kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, kl) : kl,
        };
        if (c->seed && c->reduction != NO_KL) {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 1, 1, o, a);
        } else if (c->seed) {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 1, 0, o, a);
        } else {
            EACH_STANDARD_VECTOR(o, n, forward_vector, 0, 1, o, a);
        }
        if (c->seed) write_tile(c, &c->z, c->dtype, t, a.z, z);
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, a.kl, kl);
        else if (c->reduction != NO_KL)
            sum_tile(c, t, kl, c->channel_size, c->kl_slots);
    }
}

typedef struct {
    const float *grad_z, *grad_kl, *mu, *scale, *eps;
    float *grad_mu, *grad_scale;
} backward_arrays;

ALWAYS_INLINE void backward_vector(int scale, int clamp, int with_z, int with_kl, const options *o, backward_arrays a,
                                   int64_t i, int64_t count) {
    resolved r = resolve_vector(scale, clamp, o, load_some(a.scale + i, count));
    vf grad_mu = {0}, grad_scale = {0};
    if (with_z) {
        grad_mu = load_some(a.grad_z + i, count);
        grad_scale = through_std(grad_mu, r.x, r.of.std, scale) * (load_some(a.eps + i, count) * o->temperature);
    }
    if (with_kl) {
        vf grad_kl = load_some(a.grad_kl + i, count);
        grad_mu += grad_kl * load_some(a.mu + i, count);
        grad_scale += through_logvar(0.5f * grad_kl * r.of.expm1, r.x, r.of.std, scale, o);
    }
    if (clamp != CLAMP_NONE) grad_scale = clamp_gradient_of(grad_scale, r.raw, clamp, o);
    if (a.grad_mu) store_some(a.grad_mu + i, grad_mu, count);
    store_some(a.grad_scale + i, grad_scale, count);
}

NEVER_INLINE void backward_standard_prior(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], grad_kl[TILE + LANES];
    float grad_z[TILE], mu[TILE], scale[TILE], grad_mu[TILE], grad_scale[TILE];
    int with_z = c->grad_z.data != NULL, with_kl = c->grad_kl.data != NULL;
    noise_stream noise;
    const options *o = &c->options;
    if (with_z) begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        backward_arrays a = {
            .scale = read_tile(c, &c->scale, c->dtype, t, scale),
            .eps = eps,
            .grad_mu = c->grad_mu.data ? begin_tile(c, &c->grad_mu, c->dtype, t, grad_mu) : NULL,
            .grad_scale = begin_tile(c, &c->grad_scale, c->dtype, t, grad_scale),
        };
        if (with_z) {
            fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
            a.grad_z = read_tile(c, &c->grad_z, c->dtype, t, grad_z);
        }
        if (with_kl) {
            a.mu = read_tile(c, &c->mu, c->dtype, t, mu);
            a.grad_kl = read_grad_kl(c, t, grad_kl);
        }
        if (with_z && with_kl) {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 1, 1, o, a);
        } else if (with_z) {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 1, 0, o, a);
        } else {
            EACH_STANDARD_VECTOR(o, n, backward_vector, 0, 1, o, a);
        }
        write_tile(c, &c->grad_scale, c->dtype, t, a.grad_scale, grad_scale);
        if (a.grad_mu) write_tile(c, &c->grad_mu, c->dtype, t, a.grad_mu, grad_mu);
    }
}
