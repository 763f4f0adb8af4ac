/* The noise stream as its contract words it: one coordinate at a time, in double, slowly. */
#ifndef STREAM_H
#define STREAM_H

#include <math.h>
#include <stdint.h>

/* Philox4x32-10 (Salmon et al., SC'11). */
static void philox(const uint32_t counter[4], uint64_t seed, uint32_t word[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 4; i++) word[i] = counter[i];
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = 0xD2511F53ull * word[0], product1 = 0xCD9E8D57ull * word[2];
        word[0] = (uint32_t)(product1 >> 32) ^ word[1] ^ k0;
        word[1] = (uint32_t)product1;
        word[2] = (uint32_t)(product0 >> 32) ^ word[3] ^ k1;
        word[3] = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* eps of coordinate d of a row: Box-Muller of the words of counter (d div 4, row's low word, row's high word, draw). */
static double normal_at(uint64_t seed, uint64_t row, int64_t d, uint32_t draw) {
    uint32_t counter[4] = {(uint32_t)(d / 4), (uint32_t)row, (uint32_t)(row >> 32), draw}, word[4];
    philox(counter, seed, word);
    const uint32_t *pair = word + (d % 4 < 2 ? 0 : 2);
    double u = (pair[0] + 0.5) * 0x1p-32, t = 6.283185307179586476925 * pair[1] * 0x1p-32;
    return sqrt(-2.0 * log(u)) * (d % 2 == 0 ? cos(t) : sin(t));
}

#endif
