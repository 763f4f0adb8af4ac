/* Posterior and prior of a tile, as arrays: what of them enters z, the KL and the log-probabilities. */

typedef struct {
    const float *mu;
    scale_arrays scale;
    const float *prior_mu, *prior_inverse; /* inverse: exp(-logvar) */
    scale_arrays prior;
    const float *difference, *ratio; /* mu - prior_mu, logvar - prior's logvar */
    tile prior_tile;                 /* the one that the prior's arrays are of */
    int64_t ahead;                   /* from this tile to the next */
} gaussians;

typedef struct {
    float mu[TILE], prior_mu[TILE], prior_inverse[TILE], difference[TILE], ratio[TILE], given_scale[TILE];
    scale_buffers scale, prior;
} gaussian_buffers;

/* Without a prior it is N(0, I), and its arrays the same for every tile. */
static inline void begin_gaussians(const call *c, gaussians *g, gaussian_buffers *b) {
    g->prior_tile = (tile){0, 0, 0, 0};
    g->prior_inverse = b->prior_inverse;
    if (c->prior_mu.data) return;
    for (int64_t i = 0; i < TILE; i++) b->prior_inverse[i] = 1.0f;
    memset(b->prior.logvar, 0, sizeof b->prior.logvar);
    g->prior.logvar = b->prior.logvar;
}

ALWAYS_INLINE void subtract_vector(const float *a, const float *b, float *difference, int64_t i, int64_t count) {
    store_some(difference + i, load_some(a + i, count) - load_some(b + i, count), count);
}

ALWAYS_INLINE void inverse_vector(const float *logvar, float *inverse, int64_t i, int64_t count) {
    store_some(inverse + i, exp_of(-load_some(logvar + i, count)), count);
}

/* All that compares posterior and prior, in one pass, which also prefetches the next tile. */
ALWAYS_INLINE void compare_vector(int with_inverse, const gaussians *g, gaussian_buffers *b, int64_t i, int64_t count) {
    vf prior_logvar = load_ahead(g->prior.logvar, i, count, g->ahead);
    vf difference = load_ahead(g->mu, i, count, g->ahead) - load_ahead(g->prior_mu, i, count, g->ahead);
    store_some(b->difference + i, difference, count);
    store_some(b->ratio + i, load_ahead(g->scale.logvar, i, count, g->ahead) - prior_logvar, count);
    if (with_inverse) store_some(b->prior_inverse + i, exp_of(-prior_logvar), count);
}

/* A prior that all rows share is resolved once for all tiles of the same coordinates. Whether it was resolved now. */
static inline int resolve_prior(const call *c, tile t, gaussians *g, gaussian_buffers *b) {
    tile last = g->prior_tile;
    int shared = c->prior_mu.row == 0 && c->prior_scale.row == 0;
    if (shared && last.rows >= t.rows && last.start == t.start) return 0;
    int64_t n = t.rows * t.count;
    g->prior_tile = t;
    g->prior_mu = read_tile(c, &c->prior_mu, c->dtype, t, b->prior_mu);
    g->prior = resolve_scale(&c->options, read_tile(c, &c->prior_scale, c->dtype, t, b->prior.raw), n, 0, &b->prior);
    return 1;
}

static inline void resolve(const call *c, tile t, int with_std, gaussians *g, gaussian_buffers *b) {
    const options *o = &c->options;
    int64_t n = t.rows * t.count;
    const float *raw = read_tile(c, &c->scale, c->dtype, t, o->residual ? b->given_scale : b->scale.raw);
    /* Where mu is missing, no wanted result depends on it: any numbers do. */
    const float *mu = c->mu.data ? read_tile(c, &c->mu, c->dtype, t, o->residual ? b->difference : b->mu) : raw;
    g->mu = g->difference = mu;
    g->ahead = distance_ahead(c, t);
    if (!c->prior_mu.data) {
        g->scale = resolve_scale(o, raw, n, with_std, &b->scale);
        g->ratio = g->scale.logvar;
        return;
    }
    int is_new = resolve_prior(c, t, g, b);
    g->ratio = b->ratio;
    if (!o->residual) {
        g->difference = b->difference;
        g->scale = resolve_scale(o, raw, n, with_std, &b->scale);
        if (is_new)
            EACH_VECTOR(n, compare_vector, 1, g, b);
        else
            EACH_VECTOR(n, compare_vector, 0, g, b);
        return;
    }
    /* The given mu is mu - prior_mu, and without a clamp the given scale leads to the ratio directly. */
    if (is_new) EACH_VECTOR(n, inverse_vector, g->prior.logvar, b->prior_inverse);
    EACH_VECTOR(n, add_vector, mu, g->prior_mu, b->mu);
    EACH_VECTOR(n, add_vector, raw, g->prior.raw, b->scale.raw);
    g->mu = b->mu;
    g->scale = resolve_scale(o, b->scale.raw, n, with_std, &b->scale);
    if (o->clamp != CLAMP_NONE)
        EACH_VECTOR(n, subtract_vector, g->scale.logvar, g->prior.logvar, b->ratio);
    else if (o->scale == SCALE_LOGSTD)
        EACH_VECTOR(n, add_vector, raw, raw, b->ratio);
    else
        g->ratio = raw;
}
