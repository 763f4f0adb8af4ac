/* Corner cases: the words of Philox bit for bit, the largest and smallest normals, and every 16-bit float read and
   written. */
#ifndef CORNER_CASES_H
#define CORNER_CASES_H

#include "calls.h"

/* Random123's known answers for philox4x32-10: counter, key, words. */
static const struct {
    uint32_t counter[4];
    uint64_t seed;
    uint32_t word[4];
} known_answers[] = {
    {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{~0u, ~0u, ~0u, ~0u}, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     0x299f31d0a4093822,
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void check_words(void) {
    for (int i = 0; i < COUNT(known_answers); i++) {
        uint32_t word[4];
        philox(known_answers[i].counter, known_answers[i].seed, word);
        snprintf(subject, sizeof subject, "the Philox that the kernels are compared with");
        if (memcmp(word, known_answers[i].word, sizeof word) != 0) fail("known answer %d is wrong", i);
    }
    const uint64_t seed = 0x0123456789abcdef;
    for (int64_t n = 1; n <= 40; n++) { /* every remainder of every vector length */
        int64_t *counter = malloc(sizeof *counter * 4 * (size_t)n), *word = malloc(sizeof *word * 4 * (size_t)n);
        for (int64_t i = 0; i < 4 * n; i++) counter[i] = (uint32_t)(int64_t)(next_uniform() * 0x1p31);
        memset(word, 0xff, sizeof *word * 4 * (size_t)n);
        isa->words(counter, n, seed, word);
        snprintf(subject, sizeof subject, "%s words of %lld counters", isa->name, (long long)n);
        for (int64_t i = 0; i < n; i++) {
            uint32_t low[4], expected[4];
            for (int j = 0; j < 4; j++) low[j] = (uint32_t)counter[4 * i + j];
            philox(low, seed, expected);
            for (int j = 0; j < 4; j++, comparisons++)
                if (word[4 * i + j] != expected[j]) fail("word %d of counter %lld is wrong", j, (long long)i);
        }
        free(counter);
        free(word);
    }
}

/* Rows of the stream of seed 0 where the first quad has one of the four words nearest to 2^32 (u nearly 1: a radius of
   1e-5) or to 0 (u nearly 0: 6.6). */
static const uint64_t rows_of_rare_draws[] = {
    105672652, 1318863918, 137126399, 651041080, 1477427040, 920591648, 3146517951, 1440189408,
};

static void check_rare_draws(void) {
    for (int i = 0; i < COUNT(rows_of_rare_draws); i++) {
        problem p = new_problem((shape){1, 1, 4}, FLOAT32, 0, 0, rows_of_rare_draws[i], 0);
        tensor z = new_tensor(p.shape, FLOAT32, DENSE);
        call c = call_of(&p, &p.seed, (kind){1, NO_KL});
        c.z = z.view;
        run_call(&c, isa->noise, 1);
        snprintf(subject, sizeof subject, "%s rare draw of row %llu", isa->name, (unsigned long long)p.row_offset);
        for (int64_t d = 0; d < 4; d++) {
            double radius = hypot(p.eps[d / 2 * 2], p.eps[d / 2 * 2 + 1]);
            expect(&z, NOISE, 0, d, p.eps[d], radius * 1e-6);
        }
        free_tensor(&z);
        free(p.eps);
    }
}

/* The bits of the float32 that is `step` float32 steps from the value of a 16-bit float, towards the next one. */
static uint32_t single_near(uint32_t half, int dtype, uint32_t step) {
    return bits_of_float((float)decode(half, dtype)) + step;
}

/* The gradient of mu from the KL alone is grad_kl * mu: with mu = 1 it takes any float32 to the dtype. Every 16-bit
   value is asked for, the float32 values next to it, and the ties to the next value with their neighbours. */
static void check_rounding(int dtype) {
    const shape s = {64, 1, 1024}; /* 65,536 values */
    problem p = {.shape = s, .dtype = dtype};
    const uint32_t tie = dtype == BFLOAT16 ? 0x8000 : 0x1000;
    const uint32_t steps[] = {0, 1, tie - 1, tie, tie + 1, 2 * tie - 1};
    for (int i = 0; i < COUNT(steps); i++) {
        tensor mu = new_tensor(s, dtype, DENSE), logvar = new_tensor(s, dtype, DENSE);
        tensor grad_kl = new_tensor(s, FLOAT32, DENSE);
        tensor grad_mu = new_tensor(s, dtype, DENSE), grad_logvar = new_tensor(s, dtype, DENSE);
        FOR_EACH_ELEMENT(&p, row, d) {
            set_bits(&mu, row, d, encode(1.0, dtype));
            set_bits(&logvar, row, d, encode(0.0, dtype));
            set_bits(&grad_kl, row, d, single_near((uint32_t)(row * 1024 + d), dtype, steps[i]));
        }
        call c = call_of(&p, NULL, (kind){0, ELEMENTWISE});
        c.mu = mu.view;
        c.scale = logvar.view;
        c.grad_kl = grad_kl.view;
        c.grad_mu = grad_mu.view;
        c.grad_scale = grad_logvar.view;
        run_call(&c, isa->latent_backward, 1);
        snprintf(subject, sizeof subject, "%s rounding to %s", isa->name, dtype_names[dtype]);
        FOR_EACH_ELEMENT(&p, row, d) expect(&grad_mu, GRAD_MU, row, d, get(&grad_kl, row, d), 0.0);
        tensor *const all[] = {&mu, &logvar, &grad_kl, &grad_mu, &grad_logvar};
        for (int j = 0; j < COUNT(all); j++) free_tensor(all[j]);
    }
}

/* With a variance of 0, z is mu: every 16-bit value must come through. */
static void check_values_are_kept(int dtype) {
    const shape s = {64, 1, 1024};
    problem p = {.shape = s, .dtype = dtype};
    tensor mu = new_tensor(s, dtype, DENSE), logvar = new_tensor(s, dtype, DENSE), z = new_tensor(s, dtype, DENSE);
    FOR_EACH_ELEMENT(&p, row, d) {
        double value = decode((uint32_t)(row * 1024 + d), dtype);
        set_bits(&mu, row, d, encode(value, dtype)); /* of all NaNs the usual one: one of the others is poison */
        set_bits(&logvar, row, d, encode(-1e4, dtype));
    }
    call c = call_of(&p, &p.seed, (kind){1, NO_KL});
    c.mu = mu.view;
    c.scale = logvar.view;
    c.z = z.view;
    run_call(&c, isa->latent_forward, 1);
    snprintf(subject, sizeof subject, "%s values of %s", isa->name, dtype_names[dtype]);
    FOR_EACH_ELEMENT(&p, row, d) expect(&z, Z, row, d, get(&mu, row, d), 0.0);
    tensor *const all[] = {&mu, &logvar, &z};
    for (int i = 0; i < COUNT(all); i++) free_tensor(all[i]);
}

#endif
