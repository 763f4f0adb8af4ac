/* A call from beginning to end, nothing of Python in it: the instruction set, the tiles, the threads, the KL's sums. */
#ifndef FASTVAE_RUN_H
#define FASTVAE_RUN_H

#include <stdlib.h>

#include "call.h"
#include "pages.h"
#include "threads.h"

static const instruction_set *isa; /* NULL: none of ours runs on this processor */

static void choose_instruction_set(void) {
    /* FASTVAE_CPU_ISA asks for a lesser one, by name: the tests of each run on one machine. */
    const char *asked = getenv("FASTVAE_CPU_ISA");
#define CONSIDER(candidate, supported) \
    if (!isa && (supported) && (!asked || !*asked || !strcmp(asked, (candidate).name))) isa = &(candidate)
#if defined(__x86_64__)
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#if !defined(__clang__) && __GNUC__ >= 11
    v3 = v3 && __builtin_cpu_supports("f16c"); /* others may not know the name; no processor has AVX2 without */
#endif
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    CONSIDER(isa_x86_64_v4, v4);
    CONSIDER(isa_x86_64_v3, v3);
#elif defined(__aarch64__)
    CONSIDER(isa_aarch64, 1);
#endif
}

static void cut_into_tiles(call *c) {
    c->tiles_a_row = (c->event + TILE - 1) / TILE;
    c->rows_a_tile = c->event > 0 && c->event < TILE ? TILE / c->event : 1;
    c->tiles = c->tiles_a_row > 1 ? c->rows * c->tiles_a_row
               : c->event > 0     ? (c->rows + c->rows_a_tile - 1) / c->rows_a_tile
                                  : 0;
}

/* Bytes from the first to the last element of an output. */
static int64_t extent(const call *c, const strided *t) {
    if (c->rows == 0 || c->event == 0) return 0;
    int64_t last = (c->rows - 1) * t->row + (c->event / c->inner - 1) * t->outer + (c->inner - 1) * t->inner;
    return (last + 1) * (c->dtype == FLOAT32 ? 4 : 2);
}

/* From one sum a tile to the KL: always in the same order, and in double, so that long rows lose nothing. */
static void finish_kl(const call *c) {
    float *kl = c->kl.data;
    double total = 0.0;
    for (int64_t row = 0; row < c->rows; row++) {
        double sum = 0.0;
        for (int64_t i = 0; i < c->tiles_a_row; i++) sum += c->tile_kl[row * c->tiles_a_row + i];
        if (c->reduction == PER_SAMPLE) kl[row] = (float)sum;
        total += sum;
    }
    if (c->reduction == SUM) *kl = (float)total;
    if (c->reduction == BATCHMEAN) *kl = (float)(total / (double)c->rows);
}

/* z and KL; 0 if there is no memory for the sums. */
static int run_forward(call *c, int threads) {
    cut_into_tiles(c);
    int sums = c->reduction == PER_SAMPLE || c->reduction == SUM || c->reduction == BATCHMEAN;
    int direct = c->reduction == PER_SAMPLE && c->tiles_a_row == 1; /* a tile's sums are the KL */
    if (direct) {
        c->tile_kl = c->kl.data;
    } else if (sums) {
        c->tile_kl = malloc(sizeof(float) * (size_t)(c->rows * c->tiles_a_row) + 1);
        if (!c->tile_kl) return 0;
    }
    advise_huge_pages(c->z.data, extent(c, &c->z));
    run_tiles(isa->forward, c, threads);
    if (sums && !direct) {
        finish_kl(c);
        free(c->tile_kl);
    }
    return 1;
}

/* The gradients of mu and logvar. */
static void run_backward(call *c, int threads) {
    cut_into_tiles(c);
    advise_huge_pages(c->grad_mu.data, extent(c, &c->grad_mu));
    advise_huge_pages(c->grad_logvar.data, extent(c, &c->grad_logvar));
    run_tiles(isa->backward, c, threads);
}

#endif
