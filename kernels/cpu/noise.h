/* The noise stream of a tile: counters (quad, row, row's high word, draw), quad = coordinate / 4, and Box-Muller. */

#define GROUP (ABREAST * COUNTERS) /* counters computed at a time */
#define NOISE_SLACK (4 * GROUP)    /* floats that fill_noise may write behind its tile */

static inline int64_t rounded_up_to_groups(int64_t counters) { return (counters + GROUP - 1) / GROUP * GROUP; }

/* Products of the first two rounds that depend on quad and draw alone, computed once for all rows. */
typedef struct {
    int64_t start, count; /* the coordinates it is for; none yet if count is 0 */
    uint32_t draw;
    vw product0[TILE / 4 / COUNTERS], product1[TILE / 4 / COUNTERS];
} columns;

/* Products of the first three rounds that do not depend on the draw, kept for further draws of the same rows. */
typedef struct {
    vw of_quad, of_high_row, of_row, of_both;
} early_rounds;

typedef struct {
    int wanted; /* whether there are other draws */
    uint64_t row;
    int64_t rows; /* they are for; none yet if 0 */
    early_rounds early[TILE / COUNTERS];
} short_rows;

typedef struct {
    key_schedule key;
    columns column;
    short_rows kept;
} noise_stream;

static inline void begin_noise(noise_stream *noise, const int64_t *seed, int64_t draws) {
    schedule_key(&noise->key, (uint64_t)*seed);
    noise->column.count = 0;
    noise->kept.rows = 0;
    noise->kept.wanted = draws > 1;
}

/* The normals of ABREAST vectors of counters after rounds first..9: 4 * GROUP floats, in order. */
ALWAYS_INLINE void normals_of(counters *c, const key_schedule *key, int first, float *eps) {
    philox_rounds(c, key, first);
#pragma GCC unroll 4
    for (int i = 0; i < ABREAST; i++) {
        vf radius = radius_of(low_words(c[i].c0, c[i].c2)), cosine, sine;
        cos_sin_of(low_words(c[i].c1, c[i].c3), &cosine, &sine);
        vf first_of_pair = radius * cosine, second_of_pair = radius * sine;
        store(eps + 2 * i * LANES, interleave_lower(first_of_pair, second_of_pair));
        store(eps + (2 * i + 1) * LANES, interleave_upper(first_of_pair, second_of_pair));
    }
}

static inline void prepare_columns(noise_stream *noise, uint32_t draw, int64_t start, int64_t count) {
    columns *column = &noise->column;
    if (column->count == count && column->start == start && column->draw == draw) return;
    column->start = start;
    column->count = count;
    column->draw = draw;
    vw k1 = noise->key.k1[0] ^ splat64(draw);
    for (int64_t q = 0; 4 * q < count; q += GROUP)
        for (int64_t i = q / COUNTERS; i < q / COUNTERS + ABREAST; i++) {
            vw quad = splat64((uint64_t)(start / 4 + i * COUNTERS)) + from_lanes(lane_order);
            column->product0[i] = multiply_low_words(quad, MULTIPLIER0);
            column->product1[i] = multiply_low_words(high_words(column->product0[i]) ^ k1, MULTIPLIER1);
        }
}

/* One row. Rounds 0 and 1 are computed here, where the row enters as one number for all its counters. */
static inline void fill_row(float *eps, noise_stream *noise, uint32_t draw, uint64_t row, int64_t start,
                            int64_t count) {
    const key_schedule *key = &noise->key;
    prepare_columns(noise, draw, start, count);
    uint64_t product1 = (row >> 32) * MULTIPLIER1;
    uint64_t product0 = (uint64_t)(uint32_t)(product1 >> 32 ^ row ^ key->k0[0][0]) * MULTIPLIER0;
    vw c1 = splat64(product1) ^ key->k0[1], c3 = splat64(product0), c3_high = splat64(product0 >> 32) ^ key->k1[1];
    for (int64_t q = 0; 4 * q < count; q += GROUP) {
        const vw *column0 = noise->column.product0 + q / COUNTERS, *column1 = noise->column.product1 + q / COUNTERS;
        counters c[ABREAST];
#pragma GCC unroll 4
        for (int i = 0; i < ABREAST; i++)
            c[i] = (counters){high_words(column1[i]) ^ c1, column1[i], column0[i] ^ c3_high, c3};
        normals_of(c, key, 2, eps + 4 * q);
    }
}

/* Counters in the order of the coordinates, rows one behind the other: the quad and row of each lane. */
typedef struct {
    vw quad, row, quads, quad_step, row_step;
} sequence;

static inline sequence begin_sequence(uint64_t row, uint64_t quads) {
    uint64_t quad_of_lane[COUNTERS], row_of_lane[COUNTERS];
    for (int lane = 0; lane < COUNTERS; lane++) {
        quad_of_lane[lane] = lane_order[lane] % quads;
        row_of_lane[lane] = row + lane_order[lane] / quads;
    }
    return (sequence){from_lanes(quad_of_lane), from_lanes(row_of_lane), splat64(quads), splat64(COUNTERS % quads),
                      splat64(COUNTERS / quads)};
}

ALWAYS_INLINE void advance(sequence *s) {
    s->quad += s->quad_step;
    vw over = (vw)(s->quad >= s->quads); /* all ones where the next row begins */
    s->quad -= over & s->quads;
    s->row += s->row_step - over;
}

/* The products of rounds 0 to 2 that do not depend on the draw. */
static inline void prepare_short_rows(noise_stream *noise, uint64_t row, int64_t rows, int64_t count) {
    short_rows *kept = &noise->kept;
    if (kept->rows == rows && kept->row == row) return;
    kept->row = row;
    kept->rows = rows;
    const key_schedule *key = &noise->key;
    int64_t quads = (count + 3) / 4;
    sequence s = begin_sequence(row, (uint64_t)quads);
    for (int64_t done = 0; done < rounded_up_to_groups(rows * quads); done += COUNTERS) {
        vw of_quad = multiply_low_words(s.quad, MULTIPLIER0), of_high_row = multiply_low_words(s.row >> 32, MULTIPLIER1);
        vw of_row = multiply_low_words(high_words(of_high_row) ^ s.row ^ key->k0[0], MULTIPLIER0);
        vw of_both = multiply_low_words(high_words(of_row) ^ of_quad ^ key->k1[1], MULTIPLIER1);
        kept->early[done / COUNTERS] =
            (early_rounds){high_words(of_quad) ^ key->k1[0], of_high_row ^ key->k0[1], of_row, of_both};
        advance(&s);
    }
}

/* The counters before round 3, of this draw. */
ALWAYS_INLINE counters with_draw(const early_rounds *early, const key_schedule *key, uint32_t draw) {
    vw product1 = multiply_low_words(early->of_quad ^ splat64(draw), MULTIPLIER1);
    vw product0 = multiply_low_words(high_words(product1) ^ early->of_high_row, MULTIPLIER0);
    return (counters){high_words(early->of_both) ^ product1 ^ key->k0[2], early->of_both,
                      high_words(product0) ^ early->of_row ^ key->k1[2], product0};
}

/* Short rows: the quads of all rows in one sequence, then the padding of each row is removed. */
static inline void fill_short_rows(float *eps, noise_stream *noise, uint32_t draw, uint64_t row, int64_t rows,
                                   int64_t count) {
    float padded[4 * TILE + NOISE_SLACK];
    int64_t quads = (count + 3) / 4, end = rounded_up_to_groups(rows * quads);
    counters c[ABREAST];
    if (noise->kept.wanted) {
        prepare_short_rows(noise, row, rows, count);
        for (int64_t done = 0; done < end; done += GROUP) {
#pragma GCC unroll 4
            for (int i = 0; i < ABREAST; i++)
                c[i] = with_draw(&noise->kept.early[done / COUNTERS + i], &noise->key, draw);
            normals_of(c, &noise->key, 3, padded + 4 * done);
        }
    } else {
        sequence s = begin_sequence(row, (uint64_t)quads);
        for (int64_t done = 0; done < end; done += GROUP) {
#pragma GCC unroll 4
            for (int i = 0; i < ABREAST; i++) {
                c[i] = (counters){s.quad, s.row, s.row >> 32, splat64(draw)};
                advance(&s);
            }
            normals_of(c, &noise->key, 0, padded + 4 * done);
        }
    }
    store(padded + 4 * end, splat(0.0f)); /* the last row's last vector may look here */
    for (int64_t r = 0; r < rows; r++) /* whole vectors: what is written behind a row, the next one overwrites */
        for (int64_t d = 0; d < count; d += LANES) {
            store(eps + r * count + d, load(padded + r * 4 * quads + d));
            STAYS_A_LOOP;
        }
}

/* From this many groups on, computing a whole number of groups for each row costs less than removing the padding. */
#define GROUPS_WORTH_A_ROW 4

/* eps of a draw and of rows row..row+rows-1 of the stream, coordinates start..start+count-1 (start a multiple of 4), row
   after row. */
NEVER_INLINE void fill_noise(float *eps, noise_stream *noise, uint32_t draw, uint64_t row, int64_t rows, int64_t start,
                             int64_t count) {
    if (rows > 1 && count % (4 * GROUP) != 0 && count < GROUPS_WORTH_A_ROW * 4 * GROUP)
        fill_short_rows(eps, noise, draw, row, rows, count);
    else
        for (int64_t r = 0; r < rows; r++) fill_row(eps + r * count, noise, draw, row + (uint64_t)r, start, count);
}

/* The kernel of bare noise. */
static void ISA_NAME(noise)(const call *c, int64_t first, int64_t last) {
    float eps[TILE + NOISE_SLACK], z[TILE];
    noise_stream noise;
    begin_noise(&noise, c->seed, c->draws);
    for (int64_t index = first; index < last; index++) {
        tile t = tile_at(c, index);
        fill_noise(eps, &noise, c->draw, c->row_offset + (uint64_t)t.row, t.rows, t.start, t.count);
        float *out = begin_tile(c, &c->z, c->dtype, t, z);
        memcpy(out, eps, sizeof(float) * (size_t)(t.rows * t.count));
        write_tile(c, &c->z, c->dtype, t, out, z);
    }
}
