/* Tiles between memory and float32 arrays: which rows and coordinates a tile has, and reading and writing them for any
   dtype and strides. An array that already is float32 and in one piece is used where it stands. */

typedef struct {
    int64_t row, rows, start, count; /* several rows only if each is whole: count == event */
} tile;

static inline tile tile_at(const call *c, int64_t index) {
    if (c->tiles_a_row > 1) {
        int64_t start = index % c->tiles_a_row * c->tile;
        int64_t rest = c->event - start;
        return (tile){index / c->tiles_a_row, 1, start, rest < c->tile ? rest : c->tile};
    }
    int64_t row = index * c->rows_a_tile, rest = c->rows - row;
    return (tile){row, rest < c->rows_a_tile ? rest : c->rows_a_tile, 0, c->event};
}

static inline int event_is_contiguous(const call *c, const strided *t) {
    return (t->inner == 1 || c->inner == 1) && (c->event == c->inner || t->outer == c->inner);
}

/* A tile of t as pieces of equal length without gaps: the whole tile, or its rows. None if the event has gaps. */
typedef struct {
    int64_t count, length;
} pieces;

static inline pieces pieces_of(const call *c, const strided *t, tile tl) {
    if (!event_is_contiguous(c, t)) return (pieces){0, 0};
    if (tl.rows == 1 || t->row == c->event) return (pieces){1, tl.rows * tl.count};
    return (pieces){tl.rows, tl.count};
}

/* `count` elements, LANES or fewer, as a vector; further lanes are 0. */
ALWAYS_INLINE vf load_some(const float *from, int64_t count) {
    return __builtin_constant_p(count) && count == LANES ? load(from) : load_first(from, count);
}

/* The same, and prefetches the vector `ahead` elements further on, which the next tile needs. A prefetch behind the
   end of an array does no harm. */
ALWAYS_INLINE vf load_ahead(const float *from, int64_t i, int64_t count, int64_t ahead) {
    __builtin_prefetch((const void *)((uintptr_t)from + sizeof(float) * (uintptr_t)(i + ahead)));
    return load_some(from + i, count);
}

ALWAYS_INLINE void store_some(float *to, vf value, int64_t count) {
    if (__builtin_constant_p(count) && count == LANES)
        store(to, value);
    else
        store_first(to, value, count);
}

/* function(..., i, count) for each vector of n elements: the one of `count` elements from the i-th on. */
#define EACH_VECTOR(n, function, ...)                                                                       \
    do {                                                                                                    \
        int64_t vector_start = 0;                                                                           \
        _Pragma("GCC unroll 2") for (; vector_start + LANES <= (n); vector_start += LANES)                  \
            function(__VA_ARGS__, vector_start, LANES);                                                     \
        if (vector_start < (n)) function(__VA_ARGS__, vector_start, (n) - vector_start);                    \
    } while (0)

static inline vf widen(vh bits, int dtype) { return dtype == BFLOAT16 ? from_bfloat16(bits) : from_float16(bits); }
static inline vh narrow(vf value, int dtype) { return dtype == BFLOAT16 ? to_bfloat16(value) : to_float16(value); }

static inline int is_integer(int dtype) { return dtype >= UINT8; }

static inline int64_t element_size(int dtype) {
    static const int8_t sizes[] = {4, 2, 2, 1, 1, 2, 4, 8};
    return sizes[dtype];
}

/* The tensor from its k-th draw on. */
static inline strided at_draw(strided t, int dtype, int64_t k) {
    if (t.data) t.data = (char *)t.data + k * t.draw * element_size(dtype);
    return t;
}

/* Instead of memcpy, whose call takes longer than a short row. */
static inline void copy_array(const float *from, int64_t n, float *to) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        store(to + i, load(from + i));
        STAYS_A_LOOP;
    }
    for (; i < n; i++) {
        to[i] = from[i];
        STAYS_A_LOOP;
    }
}

static inline void widen_array(const uint16_t *from, int dtype, int64_t n, float *to) {
    int64_t i = 0;
    vh bits;
    for (; i + LANES <= n; i += LANES) {
        memcpy(&bits, from + i, sizeof bits);
        store(to + i, widen(bits, dtype));
    }
    if (i < n) {
        bits = (vh){0};
        memcpy(&bits, from + i, sizeof(uint16_t) * (size_t)(n - i));
        store_some(to + i, widen(bits, dtype), n - i);
    }
}

static inline void narrow_array(const float *from, int dtype, int64_t n, uint16_t *to) {
    int64_t i = 0;
    vh bits;
    for (; i + LANES <= n; i += LANES) {
        bits = narrow(load(from + i), dtype);
        memcpy(to + i, &bits, sizeof bits);
    }
    if (i < n) {
        bits = narrow(load_some(from + i, n - i), dtype);
        memcpy(to + i, &bits, sizeof(uint16_t) * (size_t)(n - i));
    }
}

#define CONVERT_INTEGERS(type)                                                       \
    for (int64_t i = 0; i < n; i++) to[i] = (float)((const type *)from)[i * stride]; \
    break

/* n integers, `stride` apart. */
static inline void convert_integers(const void *from, int dtype, int64_t stride, int64_t n, float *to) {
    switch (dtype) {
    case UINT8: CONVERT_INTEGERS(uint8_t);
    case INT8: CONVERT_INTEGERS(int8_t);
    case INT16: CONVERT_INTEGERS(int16_t);
    case INT32: CONVERT_INTEGERS(int32_t);
    default: CONVERT_INTEGERS(int64_t);
    }
}

/* Runs of a tile: pieces of a row within one inner index range, evenly spaced in memory. */
#define FOR_EACH_RUN(c, t, tl, r, done, length, base)                                                            \
    for (int64_t r = 0; r < (tl).rows; r++)                                                                      \
        for (int64_t done = 0, d, length, base;                                                                  \
             done < (tl).count &&                                                                                \
             (d = (tl).start + done, length = (c)->inner - d % (c)->inner,                                       \
             length = length < (tl).count - done ? length : (tl).count - done,                                   \
             base = ((tl).row + r) * (t)->row + d / (c)->inner * (t)->outer + d % (c)->inner * (t)->inner, 1);    \
             done += length)

/* From a tile to the next one of the same unit, or of the next unit, in a tensor without gaps. */
static inline int64_t distance_ahead(const call *c, tile tl) {
    return tl.rows * (c->tiles_a_unit > 1 ? c->event : tl.count);
}

/* The hardware prefetches contiguous memory, but not rows with gaps between them: prefetch the same piece of the next
   tile. A prefetch behind the end of a tensor does no harm. */
static inline void fetch_ahead(const strided *t, int dtype, tile tl, int64_t base, int64_t length) {
    int64_t bytes = element_size(dtype);
    uintptr_t ahead = (uintptr_t)t->data + (uintptr_t)((base + tl.rows * t->row) * bytes);
    for (int64_t i = 0; i < length * bytes; i += 64) __builtin_prefetch((const void *)(ahead + (uintptr_t)i));
}

/* The tile of x: of a head's draws it is the same for each. */
static inline tile of_x(const call *c, tile t) {
    if (c->head.x_rows) t.row %= c->head.x_rows;
    return t;
}

/* The tile of tensor t as a float32 array, row after row: in place where possible, else copied into the buffer. */
NEVER_INLINE const float *read_tile(const call *c, const strided *t, int dtype, tile tl, float *buffer) {
    pieces piece = pieces_of(c, t, tl);
    if (piece.count == 1 && dtype == FLOAT32) {
        int64_t base = tl.row * t->row + tl.start;
        if (t->row != c->event && tl.count == c->event) fetch_ahead(t, dtype, tl, base, tl.count);
        return (const float *)t->data + base;
    }
    if (piece.count) {
        for (int64_t r = 0; r < piece.count; r++) {
            int64_t base = (tl.row + r) * t->row + tl.start;
            float *to = buffer + r * piece.length;
            fetch_ahead(t, dtype, tl, base, piece.length);
            if (dtype == FLOAT32)
                copy_array((const float *)t->data + base, piece.length, to);
            else if (is_integer(dtype))
                convert_integers((const char *)t->data + base * element_size(dtype), dtype, 1, piece.length, to);
            else
                widen_array((const uint16_t *)t->data + base, dtype, piece.length, to);
        }
        return buffer;
    }
    uint16_t gathered[TILE];
    FOR_EACH_RUN(c, t, tl, r, done, length, base) {
        float *to = buffer + r * tl.count + done;
        if (dtype == FLOAT32 && t->inner == 1) {
            copy_array((const float *)t->data + base, length, to);
        } else if (dtype == FLOAT32 && t->inner == 0) { /* expanded: one number */
            const float value = *((const float *)t->data + base);
            for (int64_t i = 0; i < length; i++) to[i] = value;
        } else if (dtype == FLOAT32) {
            const float *from = (const float *)t->data + base;
            for (int64_t i = 0; i < length; i++) to[i] = from[i * t->inner];
        } else if (is_integer(dtype)) {
            convert_integers((const char *)t->data + base * element_size(dtype), dtype, t->inner, length, to);
        } else {
            const uint16_t *from = (const uint16_t *)t->data + base;
            for (int64_t i = 0; i < length; i++) gathered[i] = from[i * t->inner];
            widen_array(gathered, dtype, length, to);
        }
    }
    return buffer;
}

/* Where to compute the tile of an output: in place where possible, else in the buffer, which write_tile copies. */
static inline float *begin_tile(const call *c, const strided *t, int dtype, tile tl, float *buffer) {
    if (dtype == FLOAT32 && pieces_of(c, t, tl).count == 1) {
        int64_t base = tl.row * t->row + tl.start;
        if (t->row != c->event && tl.count == c->event) fetch_ahead(t, dtype, tl, base, tl.count);
        return (float *)t->data + base;
    }
    return buffer;
}

/* One number a row, from the row `first` on. */
static inline void write_spaced(const strided *t, int dtype, int64_t first, int64_t count, const float *from) {
    uint16_t narrowed[TILE];
    if (dtype != FLOAT32) narrow_array(from, dtype, count, narrowed);
    for (int64_t r = 0; r < count; r++) {
        int64_t at = (first + r) * t->row;
        if (dtype == FLOAT32)
            ((float *)t->data)[at] = from[r];
        else
            ((uint16_t *)t->data)[at] = narrowed[r];
    }
}

NEVER_INLINE void write_tile(const call *c, const strided *t, int dtype, tile tl, const float *computed, float *buffer) {
    if (computed != buffer) return; /* it was computed in place */
    pieces piece = pieces_of(c, t, tl);
    if (piece.count) {
        for (int64_t r = 0; r < piece.count; r++) {
            int64_t base = (tl.row + r) * t->row + tl.start;
            const float *from = buffer + r * piece.length;
            fetch_ahead(t, dtype, tl, base, piece.length);
            if (dtype == FLOAT32)
                copy_array(from, piece.length, (float *)t->data + base);
            else
                narrow_array(from, dtype, piece.length, (uint16_t *)t->data + base);
        }
        return;
    }
    uint16_t narrowed[TILE];
    FOR_EACH_RUN(c, t, tl, r, done, length, base) {
        const float *from = buffer + r * tl.count + done;
        if (dtype == FLOAT32) {
            float *to = (float *)t->data + base;
            for (int64_t i = 0; i < length; i++) to[i * t->inner] = from[i];
        } else {
            uint16_t *to = (uint16_t *)t->data + base;
            narrow_array(from, dtype, length, narrowed);
            for (int64_t i = 0; i < length; i++) to[i * t->inner] = narrowed[i];
        }
    }
}
