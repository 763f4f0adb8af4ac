/* The gradients of Gaussian latents, see latent_forward.h. The noise is computed again, not kept. */

/* Gradients of a tile, summed over the draws; those of the prior only where they are wanted. */
typedef struct {
    float *mu, *std, *logvar, *prior_mu, *prior_logvar;
} gradient_arrays;

ALWAYS_INLINE void gate_vector(const gaussians *g, float free_bits, const float *grad_kl, float *gated, int64_t i,
                               int64_t count) {
    exponentials ratio = exponentials_of(load_some(g->ratio + i, count));
    vf kl = kl_of(load_some(g->difference + i, count), load_some(g->prior_inverse + i, count), ratio);
    vf grad = load_some(grad_kl + i, count);
    store_some(gated + i, choose(less_or_equal(splat(free_bits), kl), grad, splat(0.0f)), count);
}

ALWAYS_INLINE void grad_of_kl_vector(int with_prior, const gaussians *g, const float *grad_kl, gradient_arrays to,
                                     int64_t i, int64_t count) {
    vf of_kl = load_some(grad_kl + i, count), difference = load_some(g->difference + i, count);
    exponentials ratio = exponentials_of(load_some(g->ratio + i, count));
    vf of_difference = of_kl * difference * load_some(g->prior_inverse + i, count);
    vf of_ratio = 0.5f * of_kl * ratio.expm1;
    store_some(to.mu + i, of_difference, count);
    store_some(to.logvar + i, of_ratio, count);
    if (with_prior) {
        store_some(to.prior_mu + i, -of_difference, count);
        store_some(to.prior_logvar + i, -(of_ratio + 0.5f * of_difference * difference), count);
    }
}

/* The KL's part of every gradient, to which the draws add theirs. */
static inline void begin_gradients(const call *c, tile t, const gaussians *g, int with_prior, gradient_arrays to) {
    float buffer[TILE + LANES];
    int64_t n = t.rows * t.count;
    size_t bytes = sizeof(float) * (size_t)n;
    if (!c->grad_kl.data) {
        memset(to.mu, 0, bytes);
        memset(to.logvar, 0, bytes);
        if (with_prior) {
            memset(to.prior_mu, 0, bytes);
            memset(to.prior_logvar, 0, bytes);
        }
        return;
    }
    const float *grad_kl = read_grad_kl(c, t, buffer);
    if (c->options.free_bits > 0.0f) {
        EACH_VECTOR(n, gate_vector, g, c->options.free_bits, grad_kl, buffer);
        grad_kl = buffer;
    }
    if (with_prior)
        EACH_VECTOR(n, grad_of_kl_vector, 1, g, grad_kl, to);
    else
        EACH_VECTOR(n, grad_of_kl_vector, 0, g, grad_kl, to);
}

typedef struct {
    const float *grad_z, *grad_log_p, *std, *difference, *prior_inverse, *eps;
    float temperature;
} grad_of_draw_arrays;

ALWAYS_INLINE void grad_of_draw_vector(int with_log_p, int with_prior, grad_of_draw_arrays a, gradient_arrays to,
                                       int64_t i, int64_t count) {
    vf eps = load(a.eps + i) * a.temperature;
    vf of_drawn = load_some(a.grad_z + i, count);
    if (with_log_p) {
        vf distance = load_some(a.difference + i, count) + load_some(a.std + i, count) * eps;
        vf toward_prior = load_some(a.grad_log_p + i, count) * distance * load_some(a.prior_inverse + i, count);
        of_drawn -= toward_prior;
        if (with_prior) {
            store_some(to.prior_mu + i, load_some(to.prior_mu + i, count) + toward_prior, count);
            vf of_logvar = load_some(to.prior_logvar + i, count) + 0.5f * (toward_prior * distance);
            store_some(to.prior_logvar + i, of_logvar, count);
        }
    }
    store_some(to.mu + i, load_some(to.mu + i, count) + of_drawn, count);
    store_some(to.std + i, load_some(to.std + i, count) + of_drawn * eps, count);
}

static inline void add_gradients_of_draws(const call *c, tile t, const gaussians *g, int with_prior,
                                          noise_stream *noise, gradient_arrays to) {
    float eps[TILE + NOISE_SLACK], grad_z[TILE], grad_log_p[TILE + LANES];
    int64_t n = t.rows * t.count;
    grad_of_draw_arrays a = {
        .grad_z = grad_z,
        .grad_log_p = grad_log_p,
        .std = g->scale.std,
        .difference = g->difference,
        .prior_inverse = g->prior_inverse,
        .eps = eps,
        .temperature = c->options.temperature,
    };
    memset(to.std, 0, sizeof(float) * (size_t)n);
    if (!c->grad_z.data) memset(grad_z, 0, sizeof grad_z);
    for (int64_t k = 0; k < c->draws; k++) {
        fill_noise(eps, noise, (uint32_t)k, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        if (c->grad_z.data) {
            strided from = at_draw(c->grad_z, c->dtype, k);
            a.grad_z = read_tile(c, &from, c->dtype, t, grad_z);
        }
        if (c->grad_log_p.data) {
            strided from = at_draw(c->grad_log_p, FLOAT32, k);
            spread(&from, t, c->event, 1.0f, grad_log_p);
        }
        if (!c->grad_log_p.data)
            EACH_VECTOR(n, grad_of_draw_vector, 0, 0, a, to);
        else if (!with_prior)
            EACH_VECTOR(n, grad_of_draw_vector, 1, 0, a, to);
        else
            EACH_VECTOR(n, grad_of_draw_vector, 1, 1, a, to);
    }
}

/* The derivative of a log-probability by its logvar has one term that is the same for all draws: -1/2. */
static inline void subtract_half_of_rows(const call *c, tile t, const strided *values, float *of_logvar) {
    const float *data = values->data;
    for (int64_t r = 0; r < t.rows; r++) {
        double sum = 0.0;
        for (int64_t k = 0; k < c->draws; k++) sum += data[k * values->draw + (t.row + r) * values->row];
        float half = (float)(0.5 * sum);
        for (int64_t d = 0; d < t.count; d++) of_logvar[r * t.count + d] -= half;
    }
}

static void ISA_NAME(latent_backward)(const call *c, int64_t first, int64_t last) {
    if (is_fast(c) && (c->grad_kl.data || (c->grad_z.data && !c->prior_mu.data))) {
        backward_fast(c, first, last);
        return;
    }
    gaussian_buffers buffers;
    gaussians g;
    noise_stream noise;
    float mu[TILE], std[TILE], logvar[TILE], scale[TILE], prior_mu[TILE], prior_logvar[TILE], prior_scale[TILE];
    float sums[MOST_COLUMN_SUMS][TILE];
    int with_draws = c->grad_z.data || c->grad_log_p.data;
    int with_logvar = c->grad_kl.data || c->grad_log_q.data || !with_draws;
    int with_prior = c->grad_prior_mu.data || c->columns[OF_PRIOR_MU].out.data;
    begin_gaussians(c, &g, &buffers);
    if (with_draws) begin_noise(&noise, c->seed, c->draws);
    for (int64_t unit = first; unit < last; unit++) {
        for (int i = 0; i < MOST_COLUMN_SUMS; i++)
            if (c->columns[i].out.data) memset(sums[i], 0, sizeof sums[i]);
        for (int64_t index = first_tile(c, unit); index < end_of_tiles(c, unit); index += c->tiles_a_row) {
            tile t = tile_at(c, index);
            int64_t n = t.rows * t.count;
            resolve(c, t, with_draws, &g, &buffers);
            float *of_prior_mu = begin_shared_gradient(c, t, &c->grad_prior_mu, c->dtype, prior_mu);
            float *of_mu = c->grad_mu.data ? begin_tile(c, &c->grad_mu, c->dtype, t, mu) : mu;
            gradient_arrays to = {of_mu, std, logvar, of_prior_mu, prior_logvar};
            begin_gradients(c, t, &g, with_prior, to);
            if (with_draws) add_gradients_of_draws(c, t, &g, with_prior, &noise, to);
            if (c->grad_log_q.data) subtract_half_of_rows(c, t, &c->grad_log_q, logvar);

            float *grad_scale = begin_tile(c, &c->grad_scale, c->dtype, t, scale);
            scale_gradient(&c->options, &g.scale, with_draws ? std : NULL, with_logvar ? logvar : NULL, n, grad_scale);
            if (with_prior) {
                if (c->grad_log_p.data) subtract_half_of_rows(c, t, &c->grad_log_p, prior_logvar);
                float *of_prior_scale = begin_shared_gradient(c, t, &c->grad_prior_scale, c->dtype, prior_scale);
                scale_gradient(&c->options, &g.prior, NULL, prior_logvar, n, of_prior_scale);
                if (c->options.residual) {
                    EACH_VECTOR(n, add_vector, of_prior_mu, to.mu, of_prior_mu);
                    EACH_VECTOR(n, add_vector, of_prior_scale, grad_scale, of_prior_scale);
                }
                end_shared_gradient(c, t, &c->grad_prior_mu, c->dtype, of_prior_mu, prior_mu, sums[OF_PRIOR_MU]);
                end_shared_gradient(c, t, &c->grad_prior_scale, c->dtype, of_prior_scale, prior_scale,
                                    sums[OF_PRIOR_SCALE]);
            }
            if (c->grad_mu.data) write_tile(c, &c->grad_mu, c->dtype, t, of_mu, mu);
            write_tile(c, &c->grad_scale, c->dtype, t, grad_scale, scale);
        }
        for (int i = 0; i < MOST_COLUMN_SUMS; i++)
            if (c->columns[i].out.data) leave_partial_sums(c, &c->columns[i], unit, sums[i]);
    }
}
