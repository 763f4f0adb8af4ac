/* Outputs of linear layers as parameters of a likelihood: log p of each row and, in the same pass, its gradients, which
   take the place of the outputs. head_spec.py has the formulas.

   A unit is a block of rows, and one row is done before the next, as a softmax is over a whole row. Short rows without a
   softmax share a tile. */

typedef struct {
    likelihood_buffers read;
    float values[MOST_PARAMETERS][TILE], grads[MOST_PARAMETERS][TILE], terms[TILE + LANES];
} head_buffers;

/* The softmax of a row; two arrays of an event. */
typedef struct {
    float sum, to_log_mean; /* of exp(outputs - the largest); log library - log sum exp(outputs) */
    double slope;           /* sum of the derivatives by the log means, times the row's gradient */
    float *slopes;          /* these derivatives */
    float *shares;          /* exp(outputs - the largest); then, but of Poisson counts, the means, in their place */
} softmax_row;

static inline float largest_of(const float *values, int64_t n, float before) {
    vf largest = splat(before);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) largest = choose(less(largest, load(values + i)), load(values + i), largest);
    float found = largest[0];
    for (int lane = 1; lane < LANES; lane++)
        if (largest[lane] > found) found = largest[lane];
    for (; i < n; i++)
        if (values[i] > found) found = values[i];
    return found;
}

ALWAYS_INLINE void exp_less_vector(const float *raw, float by, float *to, int64_t i, int64_t count) {
    store_some(to + i, exp_of(load_some(raw + i, count) - by), count);
}

/* The tiles of one row, or of several short ones. */
#define EACH_TILE(c, first_row, row_count, t)                                                        \
    for (tile t = {first_row, row_count, 0, 0};                                                      \
         t.start < (c)->event &&                                                                     \
         (t.count = (c)->event - t.start < TILE ? (c)->event - t.start : TILE, 1);                   \
         t.start += TILE)

static inline void begin_softmax(const call *c, int64_t row, head_buffers *b, softmax_row *s) {
    float largest = -__builtin_inff();
    double sum = 0.0;
    EACH_TILE(c, row, 1, t) {
        const float *raw = read_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->read.parameters[0]);
        largest = largest_of(raw, t.count, largest);
    }
    EACH_TILE(c, row, 1, t) {
        const float *raw = read_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->read.parameters[0]);
        EACH_VECTOR(t.count, exp_less_vector, raw, largest, s->shares + t.start);
        sum += sum_lanes(parts_of_sum(s->shares + t.start, t.count));
    }
    s->sum = (float)sum;
    s->to_log_mean = log_of(splat(c->head.library[row]))[0] - (largest + log_of(splat(s->sum))[0]);
    s->slope = 0.0;
}

ALWAYS_INLINE void times_number_vector(float *values, float by, int64_t i, int64_t count) {
    store_some(values + i, load_some(values + i, count) * by, count);
}

/* Parameters from outputs; of a softmax the log means of Poisson counts, by `shift`. */
ALWAYS_INLINE void activate_vector(int activation, const float *raw, float shift, float *to, int64_t i, int64_t count) {
    vf value = load_some(raw + i, count);
    value = activation == SOFTPLUS ? softplus_of(value) : activation == EXP ? exp_of(value) : value + shift;
    store_some(to + i, value, count);
}

/* The gradient of an output from that of the parameter; of a softmax, that of the log mean. */
ALWAYS_INLINE void chain_vector(int activation, const float *raw, const float *value, const float *grad, float *to,
                                int64_t i, int64_t count) {
    vf by = activation == SOFTPLUS ? sigmoid_of(load_some(raw + i, count)) : load_some(value + i, count);
    store_some(to + i, load_some(grad + i, count) * by, count);
}

ALWAYS_INLINE void end_softmax_vector(const float *slopes, const float *shares, float by, float *to, int64_t i,
                                      int64_t count) {
    store_some(to + i, load_some(slopes + i, count) - load_some(shares + i, count) * by, count);
}

static inline void end_softmax(const call *c, int64_t row, head_buffers *b, softmax_row *s) {
    float of_library = (float)(s->slope / c->head.library[row]);
    float by = c->likelihood.kind == POISSON ? (float)(s->slope / s->sum) : of_library;
    EACH_TILE(c, row, 1, t) {
        float *to = begin_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->grads[0]);
        EACH_VECTOR(t.count, end_softmax_vector, s->slopes + t.start, s->shares + t.start, by, to);
        write_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, to, b->grads[0]);
    }
    if (c->head.of_library) c->head.of_library[row] = of_library;
}

/* Value and derivatives share their exponentials and logarithms. */
ALWAYS_INLINE void joint_vector(int kind, const likelihood *d, likelihood_inputs in, float *log_prob, float *const *to,
                                int64_t i, int64_t count) {
    vf second = has_scale(kind) ? load_some(in.parameters[1] + i, count) : splat(0.0f), grad = load_some(in.grad + i, count);
    vf x = load_ahead(in.x, i, count, in.ahead), first = load_some(in.parameters[0] + i, count);
    gradients of = gradients_of(kind, grad, x, first, second, d);
    store_some(log_prob + i, log_prob_of(kind, x, first, second, d), count);
    store_some(to[0] + i, of.first, count);
    if (has_scale(kind)) store_some(to[1] + i, of.second, count);
}

/* log p of a tile's coordinates and, if wanted, the gradients of its parameters. */
static inline void tile_of_head(const call *c, int64_t n, likelihood_inputs *in, float *log_prob, float *const *to) {
    int kind = c->likelihood.kind;
    if (!c->head.with_gradients) {
        if (kind >= NEGATIVE_BINOMIAL)
            counts_log_prob(kind, in, n, log_prob);
        else
            EACH_VECTOR_OF_KIND(kind, n, log_prob_vector, &c->likelihood, *in, log_prob);
    } else if (kind >= NEGATIVE_BINOMIAL) {
        counts_with_gradient(kind, in, n, to, log_prob);
    } else {
        EACH_VECTOR_OF_KIND(kind, n, joint_vector, &c->likelihood, *in, log_prob, to);
    }
}

/* Adds a tile's gradients to the sums over the batch: one a coordinate, or a single one. */
static inline void add_to_columns(const column_sums *s, tile t, const float *grad, float *partial) {
    for (int64_t r = 0; r < t.rows; r++, grad += t.count) {
        if (s->single)
            *partial += sum_lanes(parts_of_sum(grad, t.count));
        else
            EACH_VECTOR(t.count, add_vector, partial + t.start, grad, partial + t.start);
    }
}

static inline void write_gradients(const call *c, tile t, int64_t unit, const float *const *raw,
                                   const likelihood_inputs *in, head_buffers *b, softmax_row *s) {
    int64_t n = t.rows * t.count;
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        int activation = c->head.activations[i];
        float *grad = b->grads[i];
        if (!is_wanted(c, i)) continue;
        if (activation == GIVEN) {
            const column_sums *sums = &c->columns[OF_PARAMETER(i)];
            add_to_columns(sums, t, grad, sums->partial + unit * (sums->single ? 1 : c->event));
        } else if (activation == SOFTMAX) {
            float *slopes = s->slopes + t.start;
            if (c->likelihood.kind == POISSON)
                copy_array(grad, n, slopes);
            else
                EACH_VECTOR(n, chain_vector, EXP, raw[i], in->parameters[i], grad, slopes);
            s->slope += sum_lanes(parts_of_sum(slopes, n));
        } else {
            if (activation == EXP)
                EACH_VECTOR(n, chain_vector, EXP, raw[i], in->parameters[i], grad, grad);
            else if (activation == SOFTPLUS)
                EACH_VECTOR(n, chain_vector, SOFTPLUS, raw[i], in->parameters[i], grad, grad);
            write_tile(c, &c->parameters[i], c->parameter_dtypes[i], t, grad, grad);
        }
    }
}

/* The values of a parameter of a tile, in the buffer or in the place of a softmax's shares. */
static inline const float *activate(const call *c, int i, tile t, const float *raw, const softmax_row *s, float *buffer) {
    int64_t n = t.rows * t.count;
    int activation = c->head.activations[i];
    if (activation == SOFTMAX && c->likelihood.kind != POISSON) {
        EACH_VECTOR(n, times_number_vector, s->shares + t.start, c->head.library[t.row] / s->sum);
        return s->shares + t.start;
    }
    switch (activation) {
    case EXP: EACH_VECTOR(n, activate_vector, EXP, raw, 0.0f, buffer); return buffer;
    case SOFTPLUS: EACH_VECTOR(n, activate_vector, SOFTPLUS, raw, 0.0f, buffer); return buffer;
    case SOFTMAX: EACH_VECTOR(n, activate_vector, SOFTMAX, raw, s->to_log_mean, buffer); return buffer;
    default: return raw;
    }
}

static inline void spread_over_tile(const float *of_rows, tile t, float *to) {
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t d = 0; d < t.count; d++) to[r * t.count + d] = of_rows ? of_rows[t.row + r] : 1.0f;
}

/* One tile of a head; adds log p to that of its rows. */
static inline void do_tile(const call *c, tile t, int64_t unit, head_buffers *b, softmax_row *s, double *log_prob) {
    int64_t n = t.rows * t.count;
    const float *raw[MOST_PARAMETERS];
    float *to[MOST_PARAMETERS];
    if (c->head.with_gradients) spread_over_tile(c->head.grad, t, b->read.grad);
    if (c->likelihood.kind == MIXTURE) {
        mixture_log_prob(c, t, b->terms);
        if (c->head.with_gradients) mixture_gradient(c, t, b->read.grad);
    } else {
        likelihood_inputs in = read_inputs(c, t, &b->read);
        in.grad = b->read.grad;
        for (int i = 0; i < MOST_PARAMETERS; i++) {
            raw[i] = in.parameters[i], to[i] = b->grads[i];
            if (raw[i]) in.parameters[i] = activate(c, i, t, raw[i], s, b->values[i]);
        }
        tile_of_head(c, n, &in, b->terms, to);
        if (c->head.with_gradients) write_gradients(c, t, unit, raw, &in, b, s);
    }
    for (int64_t r = 0; r < t.rows; r++) log_prob[r] += sum_lanes(parts_of_sum(b->terms + r * t.count, t.count));
}

static void ISA_NAME(head)(const call *c, int64_t first, int64_t last) {
    head_buffers b;
    double log_prob[TILE];
    int has_softmax = c->head.activations[0] == SOFTMAX;
    softmax_row s = {0};
    if (has_softmax) s.slopes = c->head.scratch + 2 * first * c->event, s.shares = s.slopes + c->event;
    for (int64_t unit = first; unit < last; unit++) {
        for (int i = 0; i < MOST_COLUMN_SUMS; i++) {
            const column_sums *sums = &c->columns[i];
            int64_t width = sums->single ? 1 : c->event;
            if (sums->out.data) memset(sums->partial + unit * width, 0, sizeof(float) * (size_t)width);
        }
        int64_t end = (unit + 1) * c->head.rows_a_unit < c->rows ? (unit + 1) * c->head.rows_a_unit : c->rows;
        for (int64_t row = unit * c->head.rows_a_unit, rows; row < end; row += rows) {
            int64_t left = c->head.x_rows - row % c->head.x_rows; /* a tile has rows of one draw */
            rows = end - row < c->rows_a_tile ? end - row : c->rows_a_tile;
            rows = left < rows ? left : rows;
            for (int64_t r = 0; r < rows; r++) log_prob[r] = 0.0;
            if (has_softmax) begin_softmax(c, row, &b, &s);
            EACH_TILE(c, row, rows, t) do_tile(c, t, unit, &b, &s, log_prob);
            if (has_softmax && c->head.with_gradients) end_softmax(c, row, &b, &s);
            for (int64_t r = 0; r < rows; r++) c->head.log_prob[row + r] = (float)log_prob[r];
        }
    }
}
