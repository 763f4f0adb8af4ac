/* Philox4x32-10 (Salmon et al., SC'11) over vectors of counters, several vectors side by side. */

#define ROUNDS 10
#define MULTIPLIER0 0xD2511F53u
#define MULTIPLIER1 0xCD9E8D57u
#define KEY_INCREMENT0 0x9E3779B9u
#define KEY_INCREMENT1 0xBB67AE85u

/* A round depends on the one before, so several vectors are computed side by side, as many as the registers hold. */
#if LANES == 8
#define ABREAST 2
#else
#define ABREAST 4
#endif

/* One vector of counters, or of the words that come of them. */
typedef struct {
    vw c0, c1, c2, c3;
} counters;

typedef struct {
    vw k0[ROUNDS], k1[ROUNDS];
} key_schedule;

static inline void schedule_key(key_schedule *key, uint64_t seed) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < ROUNDS; round++) {
        key->k0[round] = splat64(k0);
        key->k1[round] = splat64(k1);
        k0 += KEY_INCREMENT0;
        k1 += KEY_INCREMENT1;
    }
}

/* Rounds first..9 of ABREAST vectors. */
ALWAYS_INLINE void philox_rounds(counters *c, const key_schedule *key, int first) {
#pragma GCC unroll 10
    for (int round = first; round < ROUNDS; round++) {
        vw k0 = key->k0[round], k1 = key->k1[round];
#pragma GCC unroll 4
        for (int i = 0; i < ABREAST; i++) {
            vw product0 = multiply_low_words(c[i].c0, MULTIPLIER0);
            vw product1 = multiply_low_words(c[i].c2, MULTIPLIER1);
            c[i] = (counters){high_words(product1) ^ c[i].c1 ^ k0, product1, high_words(product0) ^ c[i].c3 ^ k1, product0};
        }
    }
}

static inline vw from_lanes(const uint64_t *lanes) {
    vw value;
    memcpy(&value, lanes, sizeof value);
    return value;
}

/* The words of n counters, four int64 each in and out: what the tests compare bit for bit. */
static void ISA_NAME(words)(const int64_t *counter, int64_t n, uint64_t seed, int64_t *word) {
    key_schedule key;
    schedule_key(&key, seed);
    for (int64_t first = 0; first < n; first += COUNTERS) {
        int64_t many = n - first < COUNTERS ? n - first : COUNTERS;
        uint64_t lanes[4][COUNTERS] = {{0}};
        for (int64_t i = 0; i < many; i++)
            for (int j = 0; j < 4; j++) lanes[j][i] = (uint64_t)counter[4 * (first + i) + j];
        counters c[ABREAST];
        for (int i = 0; i < ABREAST; i++)
            c[i] = (counters){from_lanes(lanes[0]), from_lanes(lanes[1]), from_lanes(lanes[2]), from_lanes(lanes[3])};
        philox_rounds(c, &key, 0);
        memcpy(lanes, &c[0], sizeof lanes);
        for (int64_t i = 0; i < many; i++)
            for (int j = 0; j < 4; j++) word[4 * (first + i) + j] = (int64_t)(lanes[j][i] & 0xffffffffu);
    }
}
