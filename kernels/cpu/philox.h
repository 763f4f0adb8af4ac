/* The noise stream: Philox4x32-10 (Salmon et al., SC'11) over vectors of counters, and Box-Muller. */

/* Counter words, one counter a 64-bit lane, each word in the low half of its lane; what stands above is ignored. */
typedef struct {
    vw c0, c1, c2, c3;
} counters;

static inline counters philox4x32(counters c, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        vw product0 = multiply_low_words(c.c0, 0xD2511F53u);
        vw product1 = multiply_low_words(c.c2, 0xCD9E8D57u);
        c.c0 = (product1 >> 32) ^ c.c1 ^ splat64(k0);
        c.c2 = (product0 >> 32) ^ c.c3 ^ splat64(k1);
        c.c1 = product1;
        c.c3 = product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

/* The four normals of each counter, 4 * COUNTERS floats, counter after counter. */
static inline void normals_of(counters c, uint32_t k0, uint32_t k1, float *out) {
    counters w = philox4x32(c, k0, k1);
    /* Words 0 and 2 of a counter side by side, and 1 and 3: lane p of the two vectors is pair p. */
    vu even = (vu)((w.c0 & 0xffffffffu) | (w.c2 << 32));
    vu odd = (vu)((w.c1 & 0xffffffffu) | (w.c3 << 32));
    vf radius = radius_of(even), cosine, sine;
    cos_sin_of(odd, &cosine, &sine);
    vf first = radius * cosine, second = radius * sine;
    store(out, interleave_lower(first, second));
    store(out + LANES, interleave_upper(first, second));
}

/* Floats past the end of its range that fill_noise may overwrite. */
#define NOISE_SLACK (4 * COUNTERS)

static const uint64_t lane_index[8] = {0, 1, 2, 3, 4, 5, 6, 7};

static inline vw from_lanes(const uint64_t *lanes) {
    vw value;
    memcpy(&value, lanes, sizeof value);
    return value;
}

/* eps of rows row..row+rows-1 of the stream, coordinates start..start+count-1 (start a multiple of 4), row after row. */
static inline void fill_noise(float *eps, uint64_t seed, uint64_t row, int64_t rows, int64_t start, int64_t count) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    int64_t quads = (count + 3) / 4, first_quad = start / 4;
    if (quads % COUNTERS == 0 || quads >= 8 * COUNTERS || rows == 1) {
        /* Vectors along the row; what the last one writes past the row's end, the next row overwrites. */
        for (int64_t r = 0; r < rows; r++) {
            uint64_t index = row + (uint64_t)r;
            vw low = splat64(index & 0xffffffffu), high = splat64(index >> 32);
            for (int64_t q = 0; q < quads; q += COUNTERS) {
                vw quad = splat64((uint64_t)(first_quad + q)) + from_lanes(lane_index);
                normals_of((counters){quad, low, high, splat64(0)}, k0, k1, eps + r * count + 4 * q);
            }
        }
        return;
    }
    /* Short rows: the counters of all rows in one sequence, then the rows moved together. */
    float padded[4 * TILE + NOISE_SLACK];
    uint64_t low[COUNTERS], high[COUNTERS], quad[COUNTERS];
    int64_t r = 0, q = 0;
    for (int64_t done = 0; done < rows * quads; done += COUNTERS) {
        for (int lane = 0; lane < COUNTERS; lane++) {
            uint64_t index = row + (uint64_t)r;
            low[lane] = index & 0xffffffffu;
            high[lane] = index >> 32;
            quad[lane] = (uint64_t)(first_quad + q);
            if (++q == quads) q = 0, r++;
        }
        normals_of((counters){from_lanes(quad), from_lanes(low), from_lanes(high), splat64(0)}, k0, k1, padded + 4 * done);
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t d = 0; d < count; d += LANES) store(eps + i * count + d, load(padded + i * 4 * quads + d));
}

/* The words of n counters, four int64 each in and out: what the tests compare bit for bit. */
static void ISA_NAME(words)(const int64_t *counter, int64_t n, uint32_t k0, uint32_t k1, int64_t *word) {
    for (int64_t first = 0; first < n; first += COUNTERS) {
        int64_t many = n - first < COUNTERS ? n - first : COUNTERS;
        uint64_t lanes[4][COUNTERS] = {{0}};
        for (int64_t i = 0; i < many; i++)
            for (int j = 0; j < 4; j++) lanes[j][i] = (uint64_t)counter[4 * (first + i) + j];
        counters w = {from_lanes(lanes[0]), from_lanes(lanes[1]), from_lanes(lanes[2]), from_lanes(lanes[3])};
        w = philox4x32(w, k0, k1);
        memcpy(lanes, &w, sizeof lanes);
        for (int64_t i = 0; i < many; i++)
            for (int j = 0; j < 4; j++) word[4 * (first + i) + j] = (int64_t)(lanes[j][i] & 0xffffffffu);
    }
}
