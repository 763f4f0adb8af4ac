/* Sampling and KL of diagonal Gaussians against the standard normal, forward and backward, tile by tile:

     z  = mu + exp(logvar/2) eps                  kl = 1/2 (mu^2 + expm1(logvar) - logvar)
     d mu = g_z + g_kl mu                         d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar)) */

/* The noise itself. */
static void ISA_NAME(noise)(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], z[TILE];
    noise_stream noise;
    begin_noise(&noise, c->seed);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        fill_noise(eps, &noise, c->draw, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        float *out = begin_tile(c, &c->z, c->dtype, t, z);
        memcpy(out, eps, sizeof(float) * (size_t)(t.rows * t.count));
        write_tile(c, &c->z, c->dtype, t, out, z);
    }
}

typedef struct {
    const float *mu, *logvar, *eps;
    float *z, *kl;
} forward_arrays;

ALWAYS_INLINE void forward_vector(int with_z, int with_kl, forward_arrays a, int64_t i, int64_t count) {
    vf mu = load_some(a.mu + i, count), logvar = load_some(a.logvar + i, count);
    exponentials s = exponentials_of(logvar);
    if (with_z) store_some(a.z + i, mu + s.std * load_some(a.eps + i, count), count);
    if (with_kl) store_some(a.kl + i, (mu * mu + s.expm1_less) * 0.5f, count);
}

static void ISA_NAME(forward)(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], mu[TILE], logvar[TILE], z[TILE], kl[TILE + LANES];
    noise_stream noise;
    if (c->seed) begin_noise(&noise, c->seed);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (c->seed) fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        forward_arrays a = {
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .logvar = read_tile(c, &c->scale, c->dtype, t, logvar),
            .eps = eps,
            .z = c->seed ? begin_tile(c, &c->z, c->dtype, t, z) : NULL,
            .kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, kl) : kl,
        };
        if (c->seed && c->reduction != NO_KL)
            EACH_VECTOR(n, forward_vector, 1, 1, a);
        else if (c->seed)
            EACH_VECTOR(n, forward_vector, 1, 0, a);
        else
            EACH_VECTOR(n, forward_vector, 0, 1, a);
        if (c->seed) write_tile(c, &c->z, c->dtype, t, a.z, z);
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, a.kl, kl);
        else if (c->reduction != NO_KL)
            sum_tile(c, t, kl, c->channel_size, c->kl_slots);
    }
}

typedef struct {
    const float *grad_z, *grad_kl, *mu, *logvar, *eps;
    float *grad_mu, *grad_logvar;
} backward_arrays;

ALWAYS_INLINE void backward_vector(int with_z, int with_kl, backward_arrays a, int64_t i, int64_t count) {
    exponentials s = exponentials_of(load_some(a.logvar + i, count));
    vf grad_mu = {0}, grad_logvar = {0};
    if (with_z) {
        grad_mu = load_some(a.grad_z + i, count);
        grad_logvar = grad_mu * s.std * load_some(a.eps + i, count);
    }
    if (with_kl) {
        vf grad_kl = load_some(a.grad_kl + i, count);
        vf from_kl = grad_kl * load_some(a.mu + i, count);
        grad_mu = with_z ? grad_mu + from_kl : from_kl;
        grad_logvar = with_z ? grad_logvar + grad_kl * s.expm1 : grad_kl * s.expm1;
        store_some(a.grad_mu + i, grad_mu, count);
    }
    store_some(a.grad_logvar + i, grad_logvar * 0.5f, count);
}

static void ISA_NAME(backward)(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], grad_kl[TILE + LANES];
    float grad_z[TILE], mu[TILE], logvar[TILE], grad_mu[TILE], grad_logvar[TILE];
    int with_z = c->grad_z.data != NULL, with_kl = c->grad_kl.data != NULL;
    noise_stream noise;
    if (with_z) begin_noise(&noise, c->seed);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        backward_arrays a = {
            .logvar = read_tile(c, &c->scale, c->dtype, t, logvar),
            .eps = eps,
            .grad_logvar = begin_tile(c, &c->grad_scale, c->dtype, t, grad_logvar),
        };
        if (with_z) {
            fill_noise(eps, &noise, 0, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
            a.grad_z = read_tile(c, &c->grad_z, c->dtype, t, grad_z);
        }
        if (with_kl) {
            a.mu = read_tile(c, &c->mu, c->dtype, t, mu);
            a.grad_kl = read_grad_kl(c, t, grad_kl);
            a.grad_mu = begin_tile(c, &c->grad_mu, c->dtype, t, grad_mu);
        }
        if (with_z && with_kl)
            EACH_VECTOR(n, backward_vector, 1, 1, a);
        else if (with_z)
            EACH_VECTOR(n, backward_vector, 1, 0, a);
        else
            EACH_VECTOR(n, backward_vector, 0, 1, a);
        write_tile(c, &c->grad_scale, c->dtype, t, a.grad_logvar, grad_logvar);
        if (with_kl) write_tile(c, &c->grad_mu, c->dtype, t, a.grad_mu, grad_mu);
    }
}
