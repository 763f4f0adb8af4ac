/* Sums along rows and over the batch whose bits do not depend on the number of threads: each tile writes partial sums to
   slots of its own, and these are added in a fixed order, in double. */

/* The sum of n floats in LANES parts, in an order that depends on n alone; sum_lanes adds these. Reads, and ignores, up
   to LANES - 1 floats behind them. */
ALWAYS_INLINE vf parts_of_sum(const float *terms, int64_t n) {
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
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* From this many rows on, adding the parts of LANES rows at once takes fewer instructions. */
#define ROWS_WORTH_ADDING_TOGETHER (LANES / 2)

/* The sums of `rows` rows of n floats. */
ALWAYS_INLINE void sum_rows(const float *terms, int64_t rows, int64_t n, float *sums) {
    int64_t r = 0;
    for (; r + ROWS_WORTH_ADDING_TOGETHER <= rows; r += LANES) {
        int64_t many = rows - r < LANES ? rows - r : LANES;
        vf parts[LANES];
        for (int64_t k = 0; k < many; k++) parts[k] = parts_of_sum(terms + (r + k) * n, n);
        for (int64_t k = many; k < LANES; k++) parts[k] = splat(0.0f);
        store_some(sums + r, sum_lanes_of_each(parts), many);
    }
    for (; r < rows; r++) sums[r] = sum_lanes(parts_of_sum(terms + r * n, n));
}

/* The stretches of `size` coordinates that begin or end within a tile: d .. end-1, counted in the tile. `first_end` is
   where the first one ends. */
#define EACH_STRETCH(t, size, first_end, d, end)                                                 \
    for (int64_t d = 0, next = (first_end), end;                                                 \
         d < (t).count && (end = next < (t).count ? next : (t).count, 1); d = next, next += (size))

/* A tile's terms, summed over stretches of `size` coordinates: whole rows (size == event) or channels. In the order of
   rows, stretches and tiles, each sum has a slot: where a stretch goes on in the next tile of the row it has two. The
   array has room for LANES floats behind its n. */
static inline void sum_tile(const call *c, tile t, float *terms, int64_t size, float *slots) {
    int64_t slots_a_row = c->event / size + c->tiles_a_row - 1, stretch = t.start / size;
    int64_t first_end = (stretch + 1) * size - t.start;
    store(terms + t.rows * t.count, splat(0.0f)); /* parts_of_sum looks behind the last term */
    slots += t.row * slots_a_row + t.start / c->tile + stretch;
    if (first_end >= t.count) { /* usually: one stretch a row, the whole row if the tile has several */
        sum_rows(terms, t.rows, t.count, slots);
        return;
    }
    for (int64_t r = 0; r < t.rows; r++) {
        float *slot = slots + r * slots_a_row;
        EACH_STRETCH(t, size, first_end, d, end)
            *slot++ = sum_lanes(parts_of_sum(terms + r * t.count + d, end - d));
    }
}

/* The reverse: gives each coordinate the value of its stretch, divided. values->inner leads from stretch to stretch.
   The buffer has room for LANES floats behind the tile. */
static inline void spread(const strided *values, tile t, int64_t size, float divisor, float *buffer) {
    int64_t stretch = t.start / size, first_end = (stretch + 1) * size - t.start;
    for (int64_t r = 0; r < t.rows; r++) {
        const float *value = (const float *)values->data + (t.row + r) * values->row + stretch * values->inner;
        EACH_STRETCH(t, size, first_end, d, end) {
            vf divided = splat(*value / divisor);
            /* Whole vectors: what is written behind a stretch, the next one overwrites. */
            for (int64_t i = d; i < end; i += LANES) store(buffer + r * t.count + i, divided);
            value += values->inner;
        }
    }
}

/* The gradient of the KL of each coordinate. */
static inline const float *read_grad_kl(const call *c, tile t, float *buffer) {
    if (c->reduction == ELEMENTWISE) return read_tile(c, &c->grad_kl, FLOAT32, t, buffer);
    spread(&c->grad_kl, t, c->channel_size, c->reduction == BATCHMEAN ? (float)c->rows : 1.0f, buffer);
    return buffer;
}

ALWAYS_INLINE void add_vector(const float *a, const float *b, float *sum, int64_t i, int64_t count) {
    store_some(sum + i, load_some(a + i, count) + load_some(b + i, count), count);
}

/* The gradient of an input that the batch may share: written, if each row has its own, else added to the unit's sum. */
static inline float *begin_shared_gradient(const call *c, tile t, const strided *out, int dtype, float *buffer) {
    return out->data ? begin_tile(c, out, dtype, t, buffer) : buffer;
}

static inline void end_shared_gradient(const call *c, tile t, const strided *out, int dtype, const float *grad,
                                       float *buffer, float *sum) {
    if (out->data)
        write_tile(c, out, dtype, t, grad, buffer);
    else
        EACH_VECTOR(t.rows * t.count, add_vector, sum, grad, sum);
}

/* The tiles of a unit have the same coordinates and follow one another along the batch. */
static inline int64_t first_tile(const call *c, int64_t unit) {
    return unit / c->tiles_a_row * c->tiles_a_unit * c->tiles_a_row + unit % c->tiles_a_row;
}
static inline int64_t end_of_tiles(const call *c, int64_t unit) {
    int64_t end = first_tile(c, unit) + c->tiles_a_unit * c->tiles_a_row;
    return end < c->tiles ? end : c->tiles;
}

/* A unit's partial sums: its tiles have been added element by element; here the rows of that sum are added. */
static inline void leave_partial_sums(const call *c, const column_sums *s, int64_t unit, const float *tiles) {
    tile t = tile_at(c, unit % c->tiles_a_row); /* has the most rows */
    float *partial = s->partial + unit / c->tiles_a_row * c->event + t.start;
    if (t.rows == 1 && !s->single) {
        copy_array(tiles, t.count, partial);
        return;
    }
    double sum[TILE] = {0}, total = 0.0;
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t d = 0; d < t.count; d++) sum[d] += tiles[r * t.count + d];
    if (s->single) {
        for (int64_t d = 0; d < t.count; d++) total += sum[d];
        s->partial[unit] = (float)total;
        return;
    }
    for (int64_t d = 0; d < t.count; d++) partial[d] = (float)sum[d];
}

/* From partial sums to one sum for each row. */
static void ISA_NAME(finish_rows)(const call *c) {
    float buffer[TILE];
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        const row_sums *s = &c->row_gradients[i];
        for (int64_t start = 0; s->out.data && start < c->rows; start += TILE) {
            int64_t count = c->rows - start < TILE ? c->rows - start : TILE;
            for (int64_t r = 0; r < count; r++) {
                double sum = 0.0;
                for (int64_t j = 0; j < c->tiles_a_row; j++) sum += s->partial[(start + r) * c->tiles_a_row + j];
                buffer[r] = (float)sum;
            }
            write_spaced(&s->out, s->dtype, start, count, buffer);
        }
    }
}

/* From partial sums to one sum for each column, or to a single one. */
static void ISA_NAME(finish_columns)(const call *c) {
    float buffer[TILE];
    for (int i = 0; i < MOST_COLUMN_SUMS; i++) {
        const column_sums *s = &c->columns[i];
        if (!s->out.data) continue;
        int64_t width = s->single ? 1 : c->event, heights = c->units;
        if (!s->single && c->units) heights = c->units / c->tiles_a_row;
        for (int64_t start = 0; start < width; start += TILE) {
            tile t = {0, 1, start, width - start < TILE ? width - start : TILE};
            double sum[TILE] = {0};
            for (int64_t height = 0; height < heights; height++)
                for (int64_t d = 0; d < t.count; d++) sum[d] += s->partial[height * width + start + d];
            for (int64_t d = 0; d < t.count; d++) buffer[d] = (float)(sum[d] / s->divisor);
            write_tile(c, &s->out, s->dtype, t, buffer, buffer);
        }
    }
}
