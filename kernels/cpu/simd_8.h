/* AVX2, FMA and F16C: 8 floats a vector, masks as vectors of all ones and zeros. */

typedef vi mask;
static inline mask equal(vf a, vf b) { return a == b; }
static inline mask less(vf a, vf b) { return a < b; }
static inline mask less_or_equal(vf a, vf b) { return a <= b; }
static inline mask equal_integers(vi a, vi b) { return a == b; }
static inline mask sign_of(vu a) { return (vi)a; /* choose looks at the sign alone */ }
static inline vf choose(mask m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
static inline int holds_everywhere(mask m) { return _mm256_movemask_ps((__m256)m) == 0xff; }

static inline vf at_least(vf x, float bound) { return (vf)_mm256_max_ps(_mm256_set1_ps(bound), (__m256)x); }
static inline vf at_most(vf x, float bound) { return (vf)_mm256_min_ps(_mm256_set1_ps(bound), (__m256)x); }
static inline vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
static inline vf multiply_add(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#define POWERS_OF_TWO_BY_PARTS

static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
}
static inline vw high_words(vw a) { return (vw)_mm256_movehdup_ps((__m256)a); }
static inline vu low_words(vw a, vw b) { return (vu)_mm256_blend_ps((__m256)a, _mm256_moveldup_ps((__m256)b), 0xaa); }

static inline vf from_float16(vh bits) { return (vf)_mm256_cvtph_ps((__m128i)bits); }
static inline vh to_float16(vf value) {
    return (vh)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static const uint64_t lane_order[COUNTERS] = {0, 2, 1, 3};
#define LOWER 0, 8, 1, 9, 4, 12, 5, 13
#define UPPER 2, 10, 3, 11, 6, 14, 7, 15

static inline float sum_lanes(vf v) {
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v += SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
    return v[0];
}

static inline vf add_down_to_fours(const vf *v) {
    return SHUFFLE(v[0], v[4], 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(v[0], v[4], 4, 5, 6, 7, 12, 13, 14, 15);
}

static inline int64_t put_lanes(mask m, int64_t first, uint16_t *to) {
    unsigned bits = (unsigned)_mm256_movemask_ps((__m256)m);
    uint64_t kept = _pext_u64(0x0706050403020100, _pdep_u64(bits, 0x0101010101010101) * 0xff);
    __m128i lanes = _mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)kept));
    _mm_storeu_si128((__m128i *)to, _mm_add_epi16(lanes, _mm_set1_epi16((short)first)));
    return __builtin_popcount(bits);
}

static const int32_t lanes_below[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};

static inline __m256i first_lanes(int64_t count) {
    return _mm256_loadu_si256((const __m256i *)(lanes_below + LANES - count));
}
static inline vf load_first(const float *from, int64_t count) { return (vf)_mm256_maskload_ps(from, first_lanes(count)); }
static inline void store_first(float *to, vf value, int64_t count) {
    _mm256_maskstore_ps(to, first_lanes(count), (__m256)value);
}
