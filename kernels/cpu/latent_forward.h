/* z, KL and log-probabilities of Gaussian latents, with any prior, options and number of draws; latent_spec.py has the
   formulas. What fast_path.h can compute is handed over to it. */

typedef struct {
    const float *mu, *std, *logvar, *difference, *prior_inverse, *prior_logvar, *eps;
    float temperature;
    float *z, *log_q, *log_p;
} draw_arrays;

/* z, and the terms of the log-probabilities that depend on the coordinate, times -2. */
ALWAYS_INLINE void draw_vector(int with_log_probs, int with_prior, draw_arrays a, int64_t i, int64_t count) {
    vf eps = load(a.eps + i) * a.temperature;
    vf step = load_some(a.std + i, count) * eps, drawn = load_some(a.mu + i, count) + step;
    store_some(a.z + i, drawn, count);
    if (!with_log_probs) return;
    vf log_p = drawn * drawn;
    if (with_prior) {
        vf distance = load_some(a.difference + i, count) + step;
        log_p = distance * distance * load_some(a.prior_inverse + i, count) + load_some(a.prior_logvar + i, count);
    }
    store_some(a.log_q + i, eps * eps + load_some(a.logvar + i, count), count);
    store_some(a.log_p + i, log_p, count);
}

/* One share of the draws of a tile. */
static inline void draw_tile(const call *c, tile t, int64_t share, const gaussians *g, noise_stream *noise) {
    float eps[TILE + NOISE_SLACK], z[TILE], log_q[TILE + LANES], log_p[TILE + LANES];
    int64_t n = t.rows * t.count, sums = c->rows * c->tiles_a_row;
    int64_t end = c->draws * (share + 1) / c->shares_of_draws;
    for (int64_t k = c->draws * share / c->shares_of_draws; k < end; k++) {
        strided to = at_draw(c->z, c->dtype, k);
        fill_noise(eps, noise, (uint32_t)k, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        draw_arrays a = {
            .mu = g->mu,
            .std = g->scale.std,
            .logvar = g->scale.logvar,
            .difference = g->difference,
            .prior_inverse = g->prior_inverse,
            .prior_logvar = g->prior.logvar,
            .eps = eps,
            .temperature = c->options.temperature,
            .z = begin_tile(c, &to, c->dtype, t, z),
            .log_q = log_q,
            .log_p = log_p,
        };
        if (!c->log_q)
            EACH_VECTOR(n, draw_vector, 0, 0, a);
        else if (c->prior_mu.data)
            EACH_VECTOR(n, draw_vector, 1, 1, a);
        else
            EACH_VECTOR(n, draw_vector, 1, 0, a);
        if (c->log_q) {
            sum_tile(c, t, log_q, c->event, c->log_q_slots + k * sums);
            sum_tile(c, t, log_p, c->event, c->log_p_slots + k * sums);
        }
        write_tile(c, &to, c->dtype, t, a.z, z);
    }
}

ALWAYS_INLINE void kl_vector(const gaussians *g, float *kl, int64_t i, int64_t count) {
    exponentials ratio = exponentials_of(load_some(g->ratio + i, count));
    vf value = kl_of(load_some(g->difference + i, count), load_some(g->prior_inverse + i, count), ratio);
    store_some(kl + i, value, count);
}

ALWAYS_INLINE void free_bits_vector(float free_bits, float *kl, int64_t i, int64_t count) {
    store_some(kl + i, at_least(load_some(kl + i, count), free_bits), count);
}

/* The KL of a tile; kl_mean, where that is wanted, is summed before free bits are counted. */
static inline void kl_tile(const call *c, tile t, const gaussians *g, float *kl_mean) {
    float buffer[TILE + LANES];
    int64_t n = t.rows * t.count;
    float *kl = c->reduction == ELEMENTWISE ? begin_tile(c, &c->kl, FLOAT32, t, buffer) : buffer;
    EACH_VECTOR(n, kl_vector, g, kl);
    if (kl_mean) EACH_VECTOR(n, add_vector, kl_mean, kl, kl_mean);
    if (c->options.free_bits > 0.0f) EACH_VECTOR(n, free_bits_vector, c->options.free_bits, kl);
    if (c->reduction == ELEMENTWISE)
        write_tile(c, &c->kl, FLOAT32, t, kl, buffer);
    else if (c->reduction != NO_KL)
        sum_tile(c, t, kl, c->channel_size, c->kl_slots);
}

static void ISA_NAME(latent_forward)(const call *c, int64_t first, int64_t last) {
    if (is_fast(c)) {
        forward_fast(c, first, last);
        return;
    }
    gaussian_buffers buffers;
    gaussians g;
    noise_stream noise;
    float kl_mean[TILE];
    begin_gaussians(c, &g, &buffers);
    if (c->seed) begin_noise(&noise, c->seed, c->draws);
    for (int64_t i = first; i < last; i++) {
        int64_t unit = i % c->units, share = i / c->units;
        int with_kl_mean = share == 0 && c->columns[KL_MEAN].out.data, with_kl = share == 0 && c->reduction != NO_KL;
        if (with_kl_mean) memset(kl_mean, 0, sizeof kl_mean);
        for (int64_t index = first_tile(c, unit); index < end_of_tiles(c, unit); index += c->tiles_a_row) {
            tile t = tile_at(c, index);
            resolve(c, t, c->seed != NULL, &g, &buffers);
            if (with_kl || with_kl_mean) kl_tile(c, t, &g, with_kl_mean ? kl_mean : NULL);
            if (c->seed) draw_tile(c, t, share, &g, &noise);
        }
        if (with_kl_mean) leave_partial_sums(c, &c->columns[KL_MEAN], unit, kl_mean);
    }
}
