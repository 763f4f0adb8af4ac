/* Outputs of linear layers as parameters of a likelihood: log p of each row and, in the same pass, its gradients, which
   take the place of the outputs. head_spec.py has the formulas.

   A unit is a block of rows, and one row is done before the next, as a softmax is over a whole row. Short rows without a
   softmax share a tile. */

typedef struct {
    likelihood_buffers read;
    float values[MOST_PARAMETERS][TILE], grads[MOST_PARAMETERS][TILE], terms[TILE + LANES];
} head_buffers;

/* The softmax of a row. */
typedef struct {
    float log_sum, to_log_mean; /* log sum exp(outputs); log library - log_sum */
    double slope;               /* sum of the derivatives by the log means, times the row's gradient */
    float *slopes;              /* these derivatives, an event's worth */
} softmax_row;

static inline float largest_of(const float *values, int64_t n) {
    vf largest = splat(-__builtin_inff());
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

/* The logarithm of the sum of exp(outputs), tile by tile beside the largest so far. */
static inline void begin_softmax(const call *c, int64_t row, head_buffers *b, softmax_row *s) {
    float largest = -__builtin_inff();
    double sum = 0.0;
    for (int64_t start = 0; start < c->event; start += TILE) {
        tile t = {row, 1, start, c->event - start < TILE ? c->event - start : TILE};
        const float *raw = read_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->read.parameters[0]);
        float in_tile = largest_of(raw, t.count), before = largest;
        if (in_tile > largest) largest = in_tile;
        EACH_VECTOR(t.count, exp_less_vector, raw, largest, b->terms);
        if (before != largest) sum *= exp_of(splat(before - largest))[0];
        sum += sum_lanes(parts_of_sum(b->terms, t.count));
    }
    s->log_sum = largest + log_of(splat((float)sum))[0];
    s->to_log_mean = log_of(splat(c->head.library[row]))[0] - s->log_sum;
    s->slope = 0.0;
}

/* Parameters from outputs; `shift` is a softmax's. The log rate of Poisson counts is the log mean itself. */
ALWAYS_INLINE void activate_vector(int activation, int kind, const float *raw, float shift, float *to, int64_t i,
                                   int64_t count) {
    vf value = load_some(raw + i, count);
    if (activation == SOFTPLUS) value = softplus_of(value);
    if (activation == SOFTMAX) value = value + shift;
    if (activation == EXP || (activation == SOFTMAX && kind != POISSON)) value = exp_of(value);
    store_some(to + i, value, count);
}

/* The gradient of an output from that of the parameter; of a softmax, that of the log mean. */
ALWAYS_INLINE void chain_vector(int activation, const float *raw, const float *value, float *grad, int64_t i, int64_t count) {
    vf by = activation == SOFTPLUS ? sigmoid_of(load_some(raw + i, count)) : load_some(value + i, count);
    store_some(grad + i, load_some(grad + i, count) * by, count);
}

ALWAYS_INLINE void end_softmax_vector(const float *raw, const float *slopes, const softmax_row *s, float *to, int64_t i,
                                      int64_t count) {
    vf share = exp_of(load_some(raw + i, count) - s->log_sum);
    store_some(to + i, load_some(slopes + i, count) - share * (float)s->slope, count);
}

static inline void end_softmax(const call *c, int64_t row, head_buffers *b, softmax_row *s) {
    for (int64_t start = 0; start < c->event; start += TILE) {
        tile t = {row, 1, start, c->event - start < TILE ? c->event - start : TILE};
        const float *raw = read_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->read.parameters[0]);
        float *to = begin_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, b->grads[0]);
        EACH_VECTOR(t.count, end_softmax_vector, raw, s->slopes + start, s, to);
        write_tile(c, &c->parameters[0], c->parameter_dtypes[0], t, to, b->grads[0]);
    }
    if (c->head.of_library) c->head.of_library[row] = (float)(s->slope / c->head.library[row]);
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
        counts_log_prob(kind, in, n, log_prob);
        counts_gradient(kind, is_wanted(c, 1), in, n, to);
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
            if (c->likelihood.kind != POISSON) EACH_VECTOR(n, chain_vector, EXP, raw[i], in->parameters[i], grad);
            s->slope += sum_lanes(parts_of_sum(grad, n));
            copy_array(grad, n, s->slopes + t.start);
        } else {
            if (activation == EXP)
                EACH_VECTOR(n, chain_vector, EXP, raw[i], in->parameters[i], grad);
            else if (activation == SOFTPLUS)
                EACH_VECTOR(n, chain_vector, SOFTPLUS, raw[i], in->parameters[i], grad);
            write_tile(c, &c->parameters[i], c->parameter_dtypes[i], t, grad, grad);
        }
    }
}

static inline void activate(const call *c, int i, int64_t n, const float *raw, float shift, float *to) {
    int kind = c->likelihood.kind;
    switch (c->head.activations[i]) {
    case EXP: EACH_VECTOR(n, activate_vector, EXP, GAUSSIAN, raw, 0.0f, to); break;
    case SOFTPLUS: EACH_VECTOR(n, activate_vector, SOFTPLUS, GAUSSIAN, raw, 0.0f, to); break;
    default:
        if (kind == POISSON)
            EACH_VECTOR(n, activate_vector, SOFTMAX, POISSON, raw, shift, to);
        else
            EACH_VECTOR(n, activate_vector, SOFTMAX, NEGATIVE_BINOMIAL, raw, shift, to);
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
            if (!raw[i] || c->head.activations[i] == IDENTITY || c->head.activations[i] == GIVEN) continue;
            activate(c, i, n, raw[i], s->to_log_mean, b->values[i]);
            in.parameters[i] = b->values[i];
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
    softmax_row s = {.slopes = c->head.scratch ? c->head.scratch + first * c->event : NULL};
    for (int64_t unit = first; unit < last; unit++) {
        for (int i = 0; i < MOST_COLUMN_SUMS; i++) {
            const column_sums *sums = &c->columns[i];
            int64_t width = sums->single ? 1 : c->event;
            if (sums->out.data) memset(sums->partial + unit * width, 0, sizeof(float) * (size_t)width);
        }
        int64_t end = (unit + 1) * c->head.rows_a_unit < c->rows ? (unit + 1) * c->head.rows_a_unit : c->rows;
        for (int64_t row = unit * c->head.rows_a_unit, rows; row < end; row += rows) {
            rows = end - row < c->rows_a_tile ? end - row : c->rows_a_tile;
            for (int64_t r = 0; r < rows; r++) log_prob[r] = 0.0;
            if (has_softmax) begin_softmax(c, row, &b, &s);
            for (int64_t start = 0; start < c->event; start += TILE)
                do_tile(c, (tile){row, rows, start, c->event - start < TILE ? c->event - start : TILE}, unit, &b, &s, log_prob);
            if (has_softmax && c->head.with_gradients) end_softmax(c, row, &b, &s);
            for (int64_t r = 0; r < rows; r++) c->head.log_prob[row + r] = (float)log_prob[r];
        }
    }
}
