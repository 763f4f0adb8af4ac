/* The discretized mixture of logistics: coordinates are pixels; the parameter is read one component at a time, a tile
   for each of its channels. */

#define MOST_CHANNELS 3 /* of an image */

/* One component's channels of the parameter, or of its gradient. */
typedef struct {
    const float *logits, *mean[MOST_CHANNELS], *log_scale[MOST_CHANNELS], *coefficient[MOST_CHANNELS];
} component;

typedef struct {
    float *logits, *mean[MOST_CHANNELS], *log_scale[MOST_CHANNELS], *coefficient[MOST_CHANNELS];
} component_gradient;

typedef struct {
    float logits[TILE], mean[MOST_CHANNELS][TILE], log_scale[MOST_CHANNELS][TILE], coefficient[MOST_CHANNELS][TILE];
} component_buffers;

/* A running log-sum-exp: the largest exponent so far, and the sum of exp(exponent - largest). */
typedef struct {
    float largest[TILE], sum[TILE];
} growing_sum;

typedef struct {
    int channels;
    float y[MOST_CHANNELS][TILE]; /* levels in [-1, 1] */
} pixels;

/* Where channel `part` (0: means, 1: log scales, 2: coefficients) of image channel `channel` stands. */
static inline int64_t channel_of(const call *c, int64_t channel, int64_t part, int64_t m) {
    int64_t parts = c->image_channels == 3 ? 3 : 2;
    return c->likelihood.components * (1 + channel * parts + part) + m;
}

static inline void read_pixels(const call *c, tile t, pixels *p) {
    float buffer[TILE];
    p->channels = (int)c->image_channels;
    float step = is_integer(c->x_dtype) ? 2.0f / 255 : 2.0f;
    for (int channel = 0; channel < p->channels; channel++) {
        strided of_channel = at_draw(c->x, c->x_dtype, channel);
        const float *x = read_tile(c, &of_channel, c->x_dtype, t, buffer);
        for (int64_t i = 0; i < t.rows * t.count; i++) p->y[channel][i] = x[i] * step - 1.0f;
    }
}

static inline const float *read_channel(const call *c, tile t, int64_t channel, float *buffer) {
    strided of_channel = at_draw(c->parameters[0], c->parameter_dtypes[0], channel);
    return read_tile(c, &of_channel, c->parameter_dtypes[0], t, buffer);
}

static inline component read_component(const call *c, tile t, int64_t m, component_buffers *to) {
    component one = {.logits = read_channel(c, t, m, to->logits)};
    for (int i = 0; i < c->image_channels; i++) {
        one.mean[i] = read_channel(c, t, channel_of(c, i, 0, m), to->mean[i]);
        one.log_scale[i] = read_channel(c, t, channel_of(c, i, 1, m), to->log_scale[i]);
        if (c->image_channels == 3) one.coefficient[i] = read_channel(c, t, channel_of(c, i, 2, m), to->coefficient[i]);
    }
    return one;
}

/* The bin of one level: log(sigmoid(upper) - sigmoid(lower)), and what its gradient is made of. */
typedef struct {
    vf upper, lower, inverse_scale, width, expm1; /* expm1: exp(-width) - 1 */
    mask highest, lowest;
} bin;

ALWAYS_INLINE bin bin_of(vf y, vf mean, vf log_scale, float low) {
    const float half_a_level = 1.0f / 255;
    vf inverse_scale = exp_of(-at_least(log_scale, low)), centred = y - mean;
    vf width = 2.0f * half_a_level * inverse_scale;
    return (bin){
        .upper = (centred + half_a_level) * inverse_scale,
        .lower = (centred - half_a_level) * inverse_scale,
        .inverse_scale = inverse_scale,
        .width = width,
        .expm1 = exponentials_of(-width).expm1,
        .highest = less(splat(1.0f - half_a_level), y),
        .lowest = less(y, splat(half_a_level - 1.0f)),
    };
}

ALWAYS_INLINE vf log_prob_of_bin(bin b) {
    vf below = -softplus_of(-b.upper), above = -softplus_of(b.lower);
    return choose(b.highest, above, choose(b.lowest, below, log_of(-b.expm1) + below + above));
}

/* The mean of a channel, given the levels of those before it. */
ALWAYS_INLINE vf mixed_mean(const pixels *p, const component *one, int channel, int64_t i, int64_t count) {
    vf mean = load_some(one->mean[channel] + i, count);
    if (channel == 0) return mean;
    vf red = load_some(p->y[0] + i, count);
    if (channel == 1) return mean + tanh_of(load_some(one->coefficient[0] + i, count)) * red;
    mean += tanh_of(load_some(one->coefficient[1] + i, count)) * red;
    return mean + tanh_of(load_some(one->coefficient[2] + i, count)) * load_some(p->y[1] + i, count);
}

ALWAYS_INLINE bin bin_at(const pixels *p, const component *one, int channel, float low, int64_t i, int64_t count) {
    vf mean = mixed_mean(p, one, channel, i, count);
    return bin_of(load_some(p->y[channel] + i, count), mean, load_some(one->log_scale[channel] + i, count), low);
}

ALWAYS_INLINE void add_exponential(growing_sum *s, vf exponent, int64_t i, int64_t count) {
    vf largest = load_some(s->largest + i, count), sum = load_some(s->sum + i, count);
    vf larger = choose(less(largest, exponent), exponent, largest);
    store_some(s->sum + i, sum * exp_of(largest - larger) + exp_of(exponent - larger), count);
    store_some(s->largest + i, larger, count);
}

static inline void begin_sum(growing_sum *s, int64_t n) {
    for (int64_t i = 0; i < n; i++) s->largest[i] = -0x1p127f, s->sum[i] = 0.0f;
}

ALWAYS_INLINE void raise_vector(const float *logits, float *largest, int64_t i, int64_t count) {
    vf one = load_some(logits + i, count), before = load_some(largest + i, count);
    store_some(largest + i, choose(less(before, one), one, before), count);
}

ALWAYS_INLINE void add_component_vector(int channels, const pixels *p, const component *one, float low,
                                        growing_sum *of_logits, growing_sum *joint, int64_t i, int64_t count) {
    vf logits = load_some(one->logits + i, count) - load_some(of_logits->largest + i, count), log_prob = {0};
    for (int channel = 0; channel < channels; channel++)
        log_prob += log_prob_of_bin(bin_at(p, one, channel, low, i, count));
    store_some(of_logits->sum + i, load_some(of_logits->sum + i, count) + exp_of(logits), count);
    add_exponential(joint, logits + log_prob, i, count);
}

/* Both sums over the components: of exp(logits - the largest), and of those times the probability of the levels. The
   largest logit is found first: what all logits have in common must not round the sums. */
static inline void add_components(const call *c, tile t, const pixels *p, growing_sum *of_logits, growing_sum *joint) {
    component_buffers buffers;
    int64_t n = t.rows * t.count;
    begin_sum(of_logits, n);
    begin_sum(joint, n);
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        const float *logits = read_channel(c, t, m, buffers.logits);
        EACH_VECTOR(n, raise_vector, logits, of_logits->largest);
    }
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        component one = read_component(c, t, m, &buffers);
        if (p->channels == 3)
            EACH_VECTOR(n, add_component_vector, 3, p, &one, c->likelihood.low, of_logits, joint);
        else
            EACH_VECTOR(n, add_component_vector, 1, p, &one, c->likelihood.low, of_logits, joint);
    }
}

ALWAYS_INLINE void log_ratio_vector(const growing_sum *joint, const growing_sum *of_logits, float *log_prob, int64_t i,
                                    int64_t count) {
    vf ratio = load_some(joint->sum + i, count) / load_some(of_logits->sum + i, count);
    store_some(log_prob + i, load_some(joint->largest + i, count) + log_of(ratio), count);
}

NEVER_INLINE void mixture_log_prob(const call *c, tile t, float *log_prob) {
    pixels p;
    growing_sum of_logits, joint;
    read_pixels(c, t, &p);
    add_components(c, t, &p, &of_logits, &joint);
    EACH_VECTOR(t.rows * t.count, log_ratio_vector, &joint, &of_logits, log_prob);
}

ALWAYS_INLINE void component_gradient_vector(int channels, const pixels *p, const component *one, float low,
                                             const growing_sum *of_logits, const growing_sum *joint, const float *grad,
                                             component_gradient *to, int64_t i, int64_t count) {
    vf logits = load_some(one->logits + i, count) - load_some(of_logits->largest + i, count);
    vf of_pixel = load_some(grad + i, count), log_prob = {0};
    bin bins[MOST_CHANNELS];
    for (int channel = 0; channel < channels; channel++) {
        bins[channel] = bin_at(p, one, channel, low, i, count);
        log_prob += log_prob_of_bin(bins[channel]);
    }
    vf prior = exp_of(logits) / load_some(of_logits->sum + i, count);
    vf posterior = exp_of(logits + log_prob - load_some(joint->largest + i, count)) / load_some(joint->sum + i, count);
    store_some(to->logits + i, of_pixel * (posterior - prior), count);
    vf of_component = of_pixel * posterior, of_mean[MOST_CHANNELS];
    for (int channel = 0; channel < channels; channel++) {
        bin b = bins[channel];
        vf zero = {0}, log_scale = load_some(one->log_scale[channel] + i, count);
        vf by_upper = choose(b.highest, zero, sigmoid_of(-b.upper)), by_lower = choose(b.lowest, zero, sigmoid_of(b.lower));
        /* d log(1 - exp(-w)) / d log w = w exp(-w) / (1 - exp(-w)) */
        vf by_log_width = -b.width * (b.expm1 + 1.0f) / b.expm1;
        by_log_width = choose(b.highest, zero, choose(b.lowest, zero, by_log_width));
        vf of_scale = of_component * (by_lower * b.lower - by_upper * b.upper - by_log_width);
        of_mean[channel] = of_component * (by_lower - by_upper) * b.inverse_scale;
        store_some(to->mean[channel] + i, of_mean[channel], count);
        store_some(to->log_scale[channel] + i, choose(less(log_scale, splat(low)), zero, of_scale), count);
    }
    if (channels == 3) {
        vf red = load_some(p->y[0] + i, count), green = load_some(p->y[1] + i, count);
        vf through[MOST_CHANNELS] = {of_mean[1] * red, of_mean[2] * red, of_mean[2] * green};
        for (int k = 0; k < MOST_CHANNELS; k++) {
            vf slope = tanh_slope_of(load_some(one->coefficient[k] + i, count));
            store_some(to->coefficient[k] + i, through[k] * slope, count);
        }
    }
}

/* function(c, t, channel, array, buffer) for every channel of a component. */
#define EACH_CHANNEL(c, m, function, to, buffers)                                                                   \
    do {                                                                                                            \
        function(c, t, m, &(to)->logits, (buffers)->logits);                                                        \
        for (int image_channel = 0; image_channel < (c)->image_channels; image_channel++) {                         \
            function(c, t, channel_of(c, image_channel, 0, m), &(to)->mean[image_channel],                          \
                     (buffers)->mean[image_channel]);                                                               \
            function(c, t, channel_of(c, image_channel, 1, m), &(to)->log_scale[image_channel],                     \
                     (buffers)->log_scale[image_channel]);                                                          \
            if ((c)->image_channels == 3)                                                                           \
                function(c, t, channel_of(c, image_channel, 2, m), &(to)->coefficient[image_channel],               \
                         (buffers)->coefficient[image_channel]);                                                    \
        }                                                                                                           \
    } while (0)

static inline void begin_channel(const call *c, tile t, int64_t channel, float **to, float *buffer) {
    strided of_channel = at_draw(c->grad_parameters[0], c->parameter_dtypes[0], channel);
    *to = begin_tile(c, &of_channel, c->parameter_dtypes[0], t, buffer);
}

static inline void end_channel(const call *c, tile t, int64_t channel, float *const *computed, float *buffer) {
    strided of_channel = at_draw(c->grad_parameters[0], c->parameter_dtypes[0], channel);
    write_tile(c, &of_channel, c->parameter_dtypes[0], t, *computed, buffer);
}

/* Every component is computed twice: for the sums, and then for its gradient. */
NEVER_INLINE void mixture_gradient(const call *c, tile t, const float *grad) {
    pixels p;
    growing_sum of_logits, joint;
    component_buffers buffers, grads;
    int64_t n = t.rows * t.count;
    read_pixels(c, t, &p);
    add_components(c, t, &p, &of_logits, &joint);
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        component one = read_component(c, t, m, &buffers);
        component_gradient to;
        EACH_CHANNEL(c, m, begin_channel, &to, &grads);
        if (p.channels == 3)
            EACH_VECTOR(n, component_gradient_vector, 3, &p, &one, c->likelihood.low, &of_logits, &joint, grad, &to);
        else
            EACH_VECTOR(n, component_gradient_vector, 1, &p, &one, c->likelihood.low, &of_logits, &joint, grad, &to);
        EACH_CHANNEL(c, m, end_channel, &to, &grads);
    }
}
