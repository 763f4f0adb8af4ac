/* Sampling and KL of diagonal Gaussians against the standard normal, forward and backward, tile by tile:

     z  = mu + exp(logvar/2) eps                  kl = 1/2 (mu^2 + expm1(logvar) - logvar)
     d mu = g_z + g_kl mu                         d logvar = 1/2 (g_z exp(logvar/2) eps + g_kl expm1(logvar)) */

/* Sum of n floats, in an order that depends on n alone. Reads, and ignores, up to LANES - 1 floats behind them. */
ALWAYS_INLINE float sum_of(const float *terms, int64_t n) {
    if (n < 2 * LANES) { /* many short rows: one float after the other, but many rows at a time */
        float sum = 0.0f;
        for (int64_t i = 0; i < n; i++) sum += terms[i];
        return sum;
    }
    vf sum[4] = {{0}}; /* four, so that long rows lose less to rounding, and no addition waits for the one before */
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) sum[k] += load(terms + i + k * LANES);
    for (; i + LANES <= n; i += LANES) sum[0] += load(terms + i);
    if (i < n) {
        vi inside;
        memcpy(&inside, lanes_below + LANES - (n - i), sizeof inside);
        sum[1] += (vf)((vi)load(terms + i) & inside);
    }
    return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

typedef struct {
    const float *mu, *logvar, *eps;
    float *z, *kl;
} forward_arrays;

ALWAYS_INLINE void forward_vector(forward_arrays a, int64_t i, int64_t count, int with_z, int with_kl) {
    vf mu = load_some(a.mu + i, count), logvar = load_some(a.logvar + i, count);
    scale s = scale_of(logvar);
    if (with_z) store_some(a.z + i, mu + s.std * load_some(a.eps + i, count), count);
    if (with_kl) store_some(a.kl + i, (mu * mu + s.expm1_less) * 0.5f, count);
}

ALWAYS_INLINE void forward_arrays_of(forward_arrays a, int64_t n, int with_z, int with_kl) {
    int64_t i = 0;
#pragma GCC unroll 2
    for (; i + LANES <= n; i += LANES) forward_vector(a, i, LANES, with_z, with_kl);
    if (i < n) forward_vector(a, i, n - i, with_z, with_kl);
}

static void ISA_NAME(forward)(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], mu[TILE], logvar[TILE], z[TILE], kl[TILE + LANES];
    noise_stream noise;
    if (c->seed) begin_noise(&noise, c->seed);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        int64_t n = t.rows * t.count;
        if (c->seed) fill_noise(eps, &noise, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        if (!c->mu.data) { /* the noise itself */
            float *out = begin_tile(c, &c->z, c->dtype, t, z);
            memcpy(out, eps, sizeof(float) * (size_t)n);
            write_tile(c, &c->z, c->dtype, t, out, z);
            continue;
        }
        forward_arrays a = {
            .mu = read_tile(c, &c->mu, c->dtype, t, mu),
            .logvar = read_tile(c, &c->logvar, c->dtype, t, logvar),
            .eps = eps,
            .z = c->seed ? begin_tile(c, &c->z, c->dtype, t, z) : NULL,
            .kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, kl) : kl,
        };
        if (c->seed && c->reduction != NO_KL)
            forward_arrays_of(a, n, 1, 1);
        else if (c->seed)
            forward_arrays_of(a, n, 1, 0);
        else
            forward_arrays_of(a, n, 0, 1);
        if (c->seed) write_tile(c, &c->z, c->dtype, t, a.z, z);
        if (c->reduction == ELEMENTWISE)
            write_tile(c, &c->kl, FLOAT32, t, a.kl, kl);
        else if (c->reduction != NO_KL) {
            store(kl + n, splat(0.0f)); /* sum_of looks behind the last term */
            for (int64_t r = 0; r < t.rows; r++)
                c->tile_kl[c->tiles_a_row > 1 ? index : t.row + r] = sum_of(kl + r * t.count, t.count);
        }
    }
}

typedef struct {
    const float *grad_z, *grad_kl, *mu, *logvar, *eps;
    float *grad_mu, *grad_logvar;
} backward_arrays;

ALWAYS_INLINE void backward_vector(backward_arrays a, int64_t i, int64_t count, int with_z, int with_kl) {
    scale s = scale_of(load_some(a.logvar + i, count));
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

ALWAYS_INLINE void backward_arrays_of(backward_arrays a, int64_t n, int with_z, int with_kl) {
    int64_t i = 0;
#pragma GCC unroll 2
    for (; i + LANES <= n; i += LANES) backward_vector(a, i, LANES, with_z, with_kl);
    if (i < n) backward_vector(a, i, n - i, with_z, with_kl);
}

/* The gradient of the KL of each coordinate: one value a row, unless the KL was element-wise. The buffer has room for
   LANES floats behind the tile. */
static inline const float *read_grad_kl(const call *c, tile t, float *buffer) {
    if (c->reduction == ELEMENTWISE) return read_tile(c, &c->grad_kl, FLOAT32, t, buffer);
    const float *of_row = (const float *)c->grad_kl.data + t.row * c->grad_kl.row;
    for (int64_t r = 0; r < t.rows; r++) {
        vf value = splat(of_row[r * c->grad_kl.row]);
        if (c->reduction == BATCHMEAN) value /= (float)c->rows;
        /* Whole vectors: what is written behind a row, the next one overwrites. */
        for (int64_t d = 0; d < t.count; d += LANES) store(buffer + r * t.count + d, value);
    }
    return buffer;
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
            .logvar = read_tile(c, &c->logvar, c->dtype, t, logvar),
            .eps = eps,
            .grad_logvar = begin_tile(c, &c->grad_logvar, c->dtype, t, grad_logvar),
        };
        if (with_z) {
            fill_noise(eps, &noise, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
            a.grad_z = read_tile(c, &c->grad_z, c->dtype, t, grad_z);
        }
        if (with_kl) {
            a.mu = read_tile(c, &c->mu, c->dtype, t, mu);
            a.grad_kl = read_grad_kl(c, t, grad_kl);
            a.grad_mu = begin_tile(c, &c->grad_mu, c->dtype, t, grad_mu);
        }
        if (with_z && with_kl)
            backward_arrays_of(a, n, 1, 1);
        else if (with_z)
            backward_arrays_of(a, n, 1, 0);
        else
            backward_arrays_of(a, n, 0, 1);
        write_tile(c, &c->grad_logvar, c->dtype, t, a.grad_logvar, grad_logvar);
        if (with_kl) write_tile(c, &c->grad_mu, c->dtype, t, a.grad_mu, grad_mu);
    }
}
