/* Runs a call, without Python: chooses the instruction set, cuts the call into tiles, shares these among threads and
   finishes the sums. */
#ifndef FASTVAE_RUN_H
#define FASTVAE_RUN_H

#include <stdlib.h>

#include "call.h"
#include "pages.h"
#include "threads.h"

static const instruction_set *isa; /* NULL: this processor has none that there are kernels for */

static void choose_instruction_set(void) {
    /* FASTVAE_CPU_ISA names one, so that each can be tested on one machine. */
    const char *asked = getenv("FASTVAE_CPU_ISA");
#define CONSIDER(candidate, supported) \
    if (!isa && (supported) && (!asked || !*asked || !strcmp(asked, (candidate).name))) isa = &(candidate)
#if defined(__x86_64__)
    int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#if !defined(__clang__) && __GNUC__ >= 11
    v3 = v3 && __builtin_cpu_supports("f16c"); /* other compilers may not know the name; every processor with AVX2 has it */
#endif
    int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    CONSIDER(isa_x86_64_v4, v4);
    CONSIDER(isa_x86_64_v3, v3);
#elif defined(__aarch64__)
    CONSIDER(isa_aarch64, 1);
#endif
}

/* Several draws of a small batch: smaller tiles, so that there is work for several threads. */
#define FEWEST_TILES 8
#define SMALLEST_TILE 256

/* Units of several tiles need less memory for the partial sums of columns. There must be units enough for the threads,
   and no float32 sum too long. */
#define ENOUGH_UNITS 64
#define LONGEST_UNIT 64

static int64_t rounded_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t at_most_of(int64_t a, int64_t bound) { return a < bound ? a : bound; }
static int64_t at_least_of(int64_t a, int64_t bound) { return a > bound ? a : bound; }

/* Each of several draws of a small batch is a few KB. If threads shared out its rows, they would write next to each other,
   and hardware prefetching would move cache lines to and fro between the cores: below this size threads share out the
   draws instead. No result depends on it. */
#define ELEMENTS_WORTH_SHARING_ROWS 32768

static int shares_draws_out(const call *c) {
    return c->z.data && c->draws > 1 && c->rows * c->event < ELEMENTS_WORTH_SHARING_ROWS;
}

/* Rows of this length with gaps between them are read in place, one row a tile; shorter ones are copied into one array. */
#define ROW_WORTH_A_TILE 128

/* Noise of short rows is computed in groups of this many counters, of the widest vectors, across rows (noise.h). */
#define COUNTERS_AT_A_TIME 32
#define TILES_TO_CHOOSE_FROM 16

/* A number of rows, `most` or a little less, that leaves few counters of the last group unused. */
static int64_t rows_that_fill_groups(int64_t most, int64_t event) {
    int64_t best = most, least = INT64_MAX, quads = rounded_up(event, 4);
    for (int64_t rows = most; 2 * rows > most && rows > most - TILES_TO_CHOOSE_FROM; rows--) {
        int64_t unused = (rounded_up(rows * quads, COUNTERS_AT_A_TIME) * COUNTERS_AT_A_TIME - rows * quads) * most / rows;
        if (unused < least) best = rows, least = unused;
        if (32 * unused < rows * quads) break;
    }
    return best;
}

static int has_gaps(const call *c, const strided *t) { return t->data && t->row != c->event; }

static void cut_into_tiles(call *c) {
    if (c->draws < 1) c->draws = 1;
    c->tile = TILE;
    int by_draws = shares_draws_out(c), cut_smaller = c->draws > 1 && !by_draws;
    if (cut_smaller && c->event > SMALLEST_TILE)
        while (c->tile > SMALLEST_TILE && c->rows * c->event < FEWEST_TILES * c->tile) c->tile /= 2;
    c->tiles_a_row = rounded_up(c->event, c->tile);
    c->rows_a_tile = c->event > 0 && c->event < c->tile ? c->tile / c->event : 1;
    if (cut_smaller && c->event > 0 && c->event <= SMALLEST_TILE)
        c->rows_a_tile = at_most_of(c->rows_a_tile, at_least_of(c->rows / FEWEST_TILES, SMALLEST_TILE / c->event));
    if (c->rows_a_tile > 1 && (by_draws || c->rows >= FEWEST_TILES * c->rows_a_tile))
        c->rows_a_tile = rows_that_fill_groups(c->rows_a_tile, c->event);
    if (c->event >= ROW_WORTH_A_TILE && (has_gaps(c, &c->mu) || has_gaps(c, &c->scale))) c->rows_a_tile = 1;
    c->tiles = c->tiles_a_row * rounded_up(c->rows, c->rows_a_tile);
    c->tiles_a_unit = 1;
    for (int i = 0; i < MOST_COLUMN_SUMS; i++)
        if (c->columns[i].out.data && c->tiles > ENOUGH_UNITS)
            c->tiles_a_unit = at_most_of(c->tiles / ENOUGH_UNITS, LONGEST_UNIT);
    c->units = c->tiles ? c->tiles_a_row * rounded_up(c->tiles / c->tiles_a_row, c->tiles_a_unit) : 0;
}

/* Bytes from the first to the last element of an output, with all its draws (or channels). */
static int64_t extent(const call *c, const strided *t, int dtype) {
    if (c->rows == 0 || c->event == 0) return 0;
    int64_t last = (c->rows - 1) * t->row + (c->event / c->inner - 1) * t->outer + (c->inner - 1) * t->inner;
    return (last + (c->draws - 1) * t->draw + 1) * (dtype == FLOAT32 ? 4 : 2);
}

static int has_summed_kl(const call *c) { return c->kl.data && c->reduction != ELEMENTWISE; }

/* Where each sum of a tile is an element of the result, it is written there. */
static float *slots_for(float *result, int64_t slots) {
    return result ? result : malloc(sizeof(float) * (size_t)slots + 1);
}

/* Memory for the partial sums; 0 if there is none. end_sums frees it. */
static int begin_sums(call *c) {
    int whole_rows = c->tiles_a_row == 1, enough_memory = 1;
    if (has_summed_kl(c)) {
        int direct = whole_rows && (c->reduction == PER_SAMPLE || c->reduction == PER_CHANNEL);
        int64_t slots = c->tiles ? c->rows * (c->channels + c->tiles_a_row - 1) : 0;
        c->kl_slots = slots_for(direct ? c->kl.data : NULL, slots);
        enough_memory = c->kl_slots != NULL;
    }
    if (c->log_q) {
        int64_t slots = c->draws * c->rows * c->tiles_a_row;
        c->log_q_slots = slots_for(whole_rows ? c->log_q : NULL, slots);
        c->log_p_slots = slots_for(whole_rows ? c->log_p : NULL, slots);
        enough_memory = enough_memory && c->log_q_slots && c->log_p_slots;
    }
    for (int i = 0; i < MOST_COLUMN_SUMS; i++) {
        column_sums *s = &c->columns[i];
        if (!s->out.data) continue;
        int64_t sums = s->single ? c->units : c->tiles ? c->units / c->tiles_a_row * c->event : 0;
        s->partial = malloc(sizeof(float) * (size_t)sums + 1);
        enough_memory = enough_memory && s->partial;
    }
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        row_sums *s = &c->row_gradients[i];
        if (!s->out.data) continue;
        s->partial = malloc(sizeof(float) * (size_t)(c->rows * c->tiles_a_row) + 1);
        enough_memory = enough_memory && s->partial;
    }
    return enough_memory;
}

static void end_sums(call *c) {
    if (c->kl_slots != c->kl.data) free(c->kl_slots);
    if (c->log_q_slots != c->log_q) free(c->log_q_slots);
    if (c->log_p_slots != c->log_p) free(c->log_p_slots);
    for (int i = 0; i < MOST_COLUMN_SUMS; i++) free(c->columns[i].partial);
    for (int i = 0; i < MOST_PARAMETERS; i++) free(c->row_gradients[i].partial);
}

/* From partial sums to the KL: always in the same order, and in double, so that long rows lose nothing. */
static void finish_kl(const call *c) {
    float *kl = c->kl.data;
    if (c->kl_slots == kl) return;
    double total = 0.0;
    for (int64_t row = 0; row < c->rows; row++) {
        const float *slots = c->kl_slots + row * (c->channels + c->tiles_a_row - 1);
        for (int64_t channel = 0; channel < c->channels; channel++) {
            double sum = 0.0;
            int64_t start = channel * c->channel_size, end = start + c->channel_size;
            for (int64_t i = start / c->tile; i * c->tile < end; i++) sum += slots[channel + i];
            if (c->reduction == PER_SAMPLE || c->reduction == PER_CHANNEL) kl[row * c->channels + channel] = (float)sum;
            total += sum;
        }
    }
    if (c->reduction == SUM) *kl = (float)total;
    if (c->reduction == BATCHMEAN) *kl = (float)(total / (double)c->rows);
}

/* -1/2 (sum + event log 2 pi) */
static void finish_log_probability(const call *c, const float *slots, float *log_probability) {
    const double log_2_pi = 1.837877066409345483560659472811;
    for (int64_t i = 0; i < c->draws * c->rows; i++) {
        double sum = (double)c->event * log_2_pi;
        for (int64_t j = 0; j < c->tiles_a_row; j++) sum += slots[i * c->tiles_a_row + j];
        log_probability[i] = (float)(-0.5 * sum);
    }
}

/* Runs a kernel of `isa` on a call; 0 if there is no memory for the sums. */
static int run_call(call *c, unit_range *work, int threads) {
    cut_into_tiles(c);
    c->shares_of_draws = shares_draws_out(c) ? at_most_of(threads, c->draws) : 1;
    const strided *outputs[] = {&c->z, &c->grad_mu, &c->grad_scale, &c->grad_prior_mu, &c->grad_prior_scale};
    for (int i = 0; i < 5; i++) advise_huge_pages(outputs[i]->data, extent(c, outputs[i], c->dtype));
    for (int i = 0; i < MOST_PARAMETERS; i++)
        advise_huge_pages(c->grad_parameters[i].data, extent(c, &c->grad_parameters[i], c->parameter_dtypes[i]));
    int enough_memory = begin_sums(c);
    if (enough_memory) {
        run_units(work, c, threads);
        if (has_summed_kl(c)) finish_kl(c);
        if (c->log_q) {
            finish_log_probability(c, c->log_q_slots, c->log_q);
            finish_log_probability(c, c->log_p_slots, c->log_p);
        }
        isa->finish_columns(c);
        isa->finish_rows(c);
    }
    end_sums(c);
    return enough_memory;
}

/* Rows of a head that one thread computes at a time where there are sums over the batch. */
#define ROWS_TO_SUM 4

/* Sums read so many floats, or fewer, behind their last term. */
#define BEHIND_A_SUM 16

/* The same for a head, whose units are blocks of rows. */
static int run_head(call *c, int threads) {
    int has_columns = 0, has_softmax = c->head.activations[0] == SOFTMAX;
    for (int i = 0; i < MOST_COLUMN_SUMS; i++) has_columns |= c->columns[i].out.data != NULL;
    if (c->draws < 1) c->draws = 1;
    c->shares_of_draws = c->tiles_a_row = 1;
    c->rows_a_tile = has_softmax || c->event == 0 || c->likelihood.kind == MIXTURE ? 1 : at_least_of(TILE / c->event, 1);
    c->head.rows_a_unit = at_least_of(rounded_up(c->rows, ENOUGH_UNITS), has_columns ? ROWS_TO_SUM : 1);
    c->head.rows_a_unit = at_least_of(c->head.rows_a_unit, c->rows_a_tile);
    c->tiles = c->units = rounded_up(c->rows, c->head.rows_a_unit);
    if (has_softmax) c->head.scratch = malloc(sizeof(float) * (size_t)(2 * c->units * c->event + BEHIND_A_SUM));
    int enough_memory = begin_sums(c) && (!has_softmax || c->head.scratch);
    if (enough_memory) {
        run_units(isa->head, c, threads);
        isa->finish_columns(c);
    }
    end_sums(c);
    free(c->head.scratch);
    return enough_memory;
}

#endif
