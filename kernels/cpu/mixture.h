/* The discretized mixture of logistics: coordinates are pixels; the parameter is read one component at a time, a tile
   for each of its channels. */

#define MOST_CHANNELS 3 /* of an image */

/* A component is an array of arrays: its logits, then for each channel of the image means, log scales and, of three
   channels, coefficients. A number says which of these. */
#define LOGITS 0
#define MOST_NUMBERS (1 + 3 * MOST_CHANNELS)

typedef float component_buffers[MOST_NUMBERS][TILE];

enum { MEANS, LOG_SCALES, COEFFICIENTS };

static inline int number_of(int channels, int channel, int part) { return 1 + channel * (channels == 3 ? 3 : 2) + part; }

/* A running log-sum-exp: the largest exponent so far, and the sum of exp(exponent - largest). */
typedef struct {
    float largest[TILE], sum[TILE];
} growing_sum;

typedef struct {
    int channels;
    float y[MOST_CHANNELS][TILE]; /* levels in [-1, 1] */
} pixels;

/* The channel of the parameter, or of its gradient, that has a number of component m. */
static inline strided channel_of(const call *c, const strided *whole, int64_t number, int64_t m) {
    return at_draw(*whole, c->parameter_dtypes[0], c->likelihood.components * number + m);
}

static inline int64_t numbers_of(const call *c) { return number_of((int)c->image_channels, (int)c->image_channels, 0); }

static inline void read_pixels(const call *c, tile t, pixels *p) {
    float buffer[TILE];
    p->channels = (int)c->image_channels;
    float step = is_integer(c->x_dtype) ? 2.0f / 255 : 2.0f;
    for (int channel = 0; channel < p->channels; channel++) {
        strided of_channel = at_draw(c->x, c->x_dtype, channel);
        const float *x = read_tile(c, &of_channel, c->x_dtype, of_x(c, t), buffer);
        for (int64_t i = 0; i < t.rows * t.count; i++) p->y[channel][i] = x[i] * step - 1.0f;
    }
}

/* The first `count` numbers of component m. */
static inline void read_component(const call *c, tile t, int64_t m, int64_t count, component_buffers buffers,
                                  const float **one) {
    for (int64_t number = 0; number < count; number++) {
        strided channel = channel_of(c, &c->parameters[0], number, m);
        one[number] = read_tile(c, &channel, c->parameter_dtypes[0], t, buffers[number]);
    }
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
ALWAYS_INLINE vf mixed_mean(const pixels *p, const float *const *one, int channels, int channel, int64_t i,
                            int64_t count) {
    vf mean = load_some(one[number_of(channels, channel, MEANS)] + i, count);
    if (channel == 0) return mean;
    vf red = load_some(p->y[0] + i, count);
    if (channel == 1) return mean + tanh_of(load_some(one[number_of(3, 0, COEFFICIENTS)] + i, count)) * red;
    mean += tanh_of(load_some(one[number_of(3, 1, COEFFICIENTS)] + i, count)) * red;
    return mean + tanh_of(load_some(one[number_of(3, 2, COEFFICIENTS)] + i, count)) * load_some(p->y[1] + i, count);
}

ALWAYS_INLINE bin bin_at(const pixels *p, const float *const *one, int channels, int channel, float low, int64_t i,
                         int64_t count) {
    vf mean = mixed_mean(p, one, channels, channel, i, count);
    vf log_scale = load_some(one[number_of(channels, channel, LOG_SCALES)] + i, count);
    return bin_of(load_some(p->y[channel] + i, count), mean, log_scale, low);
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

ALWAYS_INLINE void add_component_vector(int channels, const pixels *p, const float *const *one, float low,
                                        growing_sum *of_logits, growing_sum *joint, int64_t i, int64_t count) {
    vf logits = load_some(one[LOGITS] + i, count) - load_some(of_logits->largest + i, count), log_prob = {0};
    for (int channel = 0; channel < channels; channel++)
        log_prob += log_prob_of_bin(bin_at(p, one, channels, channel, low, i, count));
    store_some(of_logits->sum + i, load_some(of_logits->sum + i, count) + exp_of(logits), count);
    add_exponential(joint, logits + log_prob, i, count);
}

/* Both sums over the components: of exp(logits - the largest), and of those times the probability of the levels. The
   largest logit is found first: what all logits have in common must not round the sums. */
static inline void add_components(const call *c, tile t, const pixels *p, growing_sum *of_logits, growing_sum *joint) {
    component_buffers buffers;
    const float *one[MOST_NUMBERS];
    int64_t n = t.rows * t.count;
    begin_sum(of_logits, n);
    begin_sum(joint, n);
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        read_component(c, t, m, 1, buffers, one);
        EACH_VECTOR(n, raise_vector, one[LOGITS], of_logits->largest);
    }
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        read_component(c, t, m, numbers_of(c), buffers, one);
        if (p->channels == 3)
            EACH_VECTOR(n, add_component_vector, 3, p, one, c->likelihood.low, of_logits, joint);
        else
            EACH_VECTOR(n, add_component_vector, 1, p, one, c->likelihood.low, of_logits, joint);
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

ALWAYS_INLINE void component_gradient_vector(int channels, const pixels *p, const float *const *one, float low,
                                             const growing_sum *of_logits, const growing_sum *joint, const float *grad,
                                             float *const *to, int64_t i, int64_t count) {
    vf logits = load_some(one[LOGITS] + i, count) - load_some(of_logits->largest + i, count);
    vf of_pixel = load_some(grad + i, count), log_prob = {0};
    bin bins[MOST_CHANNELS];
    for (int channel = 0; channel < channels; channel++) {
        bins[channel] = bin_at(p, one, channels, channel, low, i, count);
        log_prob += log_prob_of_bin(bins[channel]);
    }
    vf prior = exp_of(logits) / load_some(of_logits->sum + i, count);
    vf posterior = exp_of(logits + log_prob - load_some(joint->largest + i, count)) / load_some(joint->sum + i, count);
    store_some(to[LOGITS] + i, of_pixel * (posterior - prior), count);
    vf of_component = of_pixel * posterior, of_mean[MOST_CHANNELS];
    for (int channel = 0; channel < channels; channel++) {
        bin b = bins[channel];
        int of_means = number_of(channels, channel, MEANS), of_scales = number_of(channels, channel, LOG_SCALES);
        vf zero = {0}, log_scale = load_some(one[of_scales] + i, count);
        vf by_upper = choose(b.highest, zero, sigmoid_of(-b.upper)), by_lower = choose(b.lowest, zero, sigmoid_of(b.lower));
        /* d log(1 - exp(-w)) / d log w = w exp(-w) / (1 - exp(-w)) */
        vf by_log_width = -b.width * (b.expm1 + 1.0f) / b.expm1;
        by_log_width = choose(b.highest, zero, choose(b.lowest, zero, by_log_width));
        vf of_scale = of_component * (by_lower * b.lower - by_upper * b.upper - by_log_width);
        of_mean[channel] = of_component * (by_lower - by_upper) * b.inverse_scale;
        store_some(to[of_means] + i, of_mean[channel], count);
        store_some(to[of_scales] + i, choose(less(log_scale, splat(low)), zero, of_scale), count);
    }
    if (channels == 3) {
        vf red = load_some(p->y[0] + i, count), green = load_some(p->y[1] + i, count);
        vf through[MOST_CHANNELS] = {of_mean[1] * red, of_mean[2] * red, of_mean[2] * green};
        for (int k = 0; k < MOST_CHANNELS; k++) {
            vf slope = tanh_slope_of(load_some(one[number_of(3, k, COEFFICIENTS)] + i, count));
            store_some(to[number_of(3, k, COEFFICIENTS)] + i, through[k] * slope, count);
        }
    }
}

/* Every component is computed twice: for the sums, and then for its gradient. */
NEVER_INLINE void mixture_gradient(const call *c, tile t, const float *grad) {
    pixels p;
    growing_sum of_logits, joint;
    component_buffers buffers, grads;
    const float *one[MOST_NUMBERS];
    float *to[MOST_NUMBERS];
    int dtype = c->parameter_dtypes[0];
    int64_t n = t.rows * t.count;
    read_pixels(c, t, &p);
    add_components(c, t, &p, &of_logits, &joint);
    for (int64_t m = 0; m < c->likelihood.components; m++) {
        read_component(c, t, m, numbers_of(c), buffers, one);
        for (int64_t number = 0; number < numbers_of(c); number++) {
            strided channel = channel_of(c, &c->grad_parameters[0], number, m);
            to[number] = begin_tile(c, &channel, dtype, t, grads[number]);
        }
        if (p.channels == 3)
            EACH_VECTOR(n, component_gradient_vector, 3, &p, one, c->likelihood.low, &of_logits, &joint, grad, to);
        else
            EACH_VECTOR(n, component_gradient_vector, 1, &p, one, c->likelihood.low, &of_logits, &joint, grad, to);
        for (int64_t number = 0; number < numbers_of(c); number++) {
            strided channel = channel_of(c, &c->grad_parameters[0], number, m);
            write_tile(c, &channel, dtype, t, to[number], grads[number]);
        }
    }
}
