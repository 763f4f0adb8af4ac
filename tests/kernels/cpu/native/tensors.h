/* Tensors in memory: each in a block of its own that ends with its last element, so that a sanitizer sees an access one
   element too far; everything that nobody has written is poison. */
#ifndef TENSORS_H
#define TENSORS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "call.h"
#include "numbers.h"

typedef struct {
    int64_t rows, outer, inner;
} shape;

static int64_t event_of(shape s) { return s.outer * s.inner; }

/* How a tensor lies in memory. Outputs have the layouts before EXPANDED_ROWS, inputs have them all. */
enum {
    DENSE,
    ONE_ELEMENT_OFF, /* dense, from the second element of an aligned block */
    HALVES,          /* a half of a packed (rows, 2 event) tensor */
    ROW_GAP,
    CHANNELS_LAST,
    CHANNELS_LAST_HALVES,
    GAPS, /* between elements, too */
    ROWS_LAST,
    FAR_ROWS, /* more than 2^31 elements apart */
    EXPANDED_ROWS,
    EXPANDED_OUTER,
    EXPANDED_INNER,
    EXPANDED,
    LAYOUTS,
};

static const char *const layout_names[LAYOUTS] = {
    "dense", "one element off", "halves", "row gap", "channels last", "channels last halves", "gaps",
    "rows last", "far rows", "expanded rows", "expanded outer", "expanded inner", "expanded",
};

static strided strides_of(int layout, shape s) {
    int64_t event = event_of(s);
    strided found = {NULL, event, s.inner, 1, 0};
    switch (layout) {
    case HALVES: found.row = 2 * event; break;
    case ROW_GAP: found.row = event + 1; break;
    case CHANNELS_LAST: found = (strided){NULL, event, 1, s.outer, 0}; break;
    case CHANNELS_LAST_HALVES: found = (strided){NULL, 2 * event, 1, 2 * s.outer, 0}; break;
    case GAPS: found = (strided){NULL, s.outer * (2 * s.inner + 1), 2 * s.inner + 1, 2, 0}; break;
    case ROWS_LAST: found = (strided){NULL, 1, s.rows * s.inner, s.rows, 0}; break;
    case FAR_ROWS: found.row = ((int64_t)1 << 31) + 3; break;
    case EXPANDED_ROWS: found.row = 0; break;
    case EXPANDED_OUTER: found = (strided){NULL, s.inner, 0, 1, 0}; break;
    case EXPANDED_INNER: found = (strided){NULL, s.outer, 1, 0, 0}; break;
    case EXPANDED: found = (strided){NULL, 0, 0, 0, 0}; break;
    }
    if (s.outer == 1) found.outer = 0;
    return found;
}

typedef struct {
    shape shape;
    int dtype, layout;
    int64_t elements; /* of the block */
    unsigned char *block;
    strided view; /* what the kernels are given; its data is NULL for a tensor that takes no part */
} tensor;

static size_t bytes_of_block(const tensor *t) { return (size_t)(t->elements * bytes_of(t->dtype)); }

static int is_far(const tensor *t) { return t->layout == FAR_ROWS; }

static void *element(const tensor *t, int64_t row, int64_t d) {
    int64_t inner = t->shape.inner;
    int64_t index = row * t->view.row + d / inner * t->view.outer + d % inner * t->view.inner;
    return (unsigned char *)t->view.data + index * bytes_of(t->dtype);
}

/* Poison is a NaN of every floating dtype that no arithmetic gives: all bits set. */
static uint32_t poison_of(int dtype) { return dtype == FLOAT32 ? 0xffffffffu : 0xffffu; }

static void set_bits(tensor *t, int64_t row, int64_t d, uint64_t bits) {
    memcpy(element(t, row, d), &bits, (size_t)bytes_of(t->dtype)); /* the low bytes: all targets are little-endian */
}

static uint64_t get_bits(const tensor *t, int64_t row, int64_t d) {
    uint64_t bits = 0;
    memcpy(&bits, element(t, row, d), (size_t)bytes_of(t->dtype));
    return bits;
}

static double get(const tensor *t, int64_t row, int64_t d) { return decode(get_bits(t, row, d), t->dtype); }

static void poison(tensor *t) {
    if (!is_far(t)) {
        memset(t->block, 0xff, bytes_of_block(t));
        return;
    }
    for (int64_t row = 0; row < t->shape.rows; row++)
        for (int64_t d = 0; d < event_of(t->shape); d++) set_bits(t, row, d, poison_of(t->dtype));
}

/* Whether the block holds nothing but poison. Of far rows the memory between them is not looked at. */
static int is_all_poison(const tensor *t) {
    if (is_far(t)) return 1;
    for (size_t i = 0; i < bytes_of_block(t); i++)
        if (t->block[i] != 0xff) return 0;
    return 1;
}

/* Memory for far rows is only promised: of gigabytes, the pages that are touched exist. */
static void *promised_memory(size_t bytes) {
    void *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return found == MAP_FAILED ? NULL : found;
}

static int far_rows_are_possible(void) {
    size_t bytes = (size_t)80 << 30; /* all tensors of a call together */
    void *found = promised_memory(bytes);
    if (found) munmap(found, bytes);
    return found != NULL;
}

/* A tensor full of poison. */
static tensor new_tensor(shape s, int dtype, int layout) {
    tensor t = {.shape = s, .dtype = dtype, .layout = layout, .view = strides_of(layout, s)};
    int64_t first = layout == ONE_ELEMENT_OFF;
    t.elements = first;
    if (s.rows > 0 && event_of(s) > 0)
        t.elements += (s.rows - 1) * t.view.row + (s.outer - 1) * t.view.outer + (s.inner - 1) * t.view.inner + 1;
    size_t bytes = bytes_of_block(&t);
    /* Nothing gets one byte: less than any element, but an address. */
    t.block = is_far(&t) ? promised_memory(bytes) : malloc(bytes > 0 ? bytes : 1);
    if (!t.block) {
        fprintf(stderr, "no memory for a tensor of %lld elements\n", (long long)t.elements);
        exit(2);
    }
    t.view.data = t.block + first * bytes_of(dtype);
    poison(&t);
    return t;
}

static void free_tensor(tensor *t) {
    if (!t->block) return;
    if (is_far(t))
        munmap(t->block, bytes_of_block(t));
    else
        free(t->block);
}

#endif
