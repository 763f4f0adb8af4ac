/* AVX-512: 16 floats a vector, masks in registers of their own. */

typedef __mmask16 mask;
static inline mask equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
static inline mask less(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
static inline mask less_or_equal(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
static inline mask equal_integers(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
static inline mask sign_of(vu a) { return _mm512_movepi32_mask((__m512i)a); }
static inline vf choose(mask m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
static inline int holds_everywhere(mask m) { return m == 0xffff; }

static inline vf at_least(vf x, float bound) { return (vf)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x); }
static inline vf at_most(vf x, float bound) { return (vf)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x); }
static inline vf square_root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
static inline vf multiply_add(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static inline vf times_power_of_two(vf x, vf n) { return (vf)_mm512_scalef_ps((__m512)x, (__m512)n); }

static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)b));
}
static inline vw high_words(vw a) { return (vw)_mm512_movehdup_ps((__m512)a); }
static inline vu low_words(vw a, vw b) { return (vu)_mm512_mask_moveldup_ps((__m512)a, 0xaaaa, (__m512)b); }

static inline vf from_float16(vh bits) { return (vf)_mm512_cvtph_ps((__m256i)bits); }
static inline vh to_float16(vf value) {
    return (vh)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline __mmask16 first_lanes(int64_t count) { return (__mmask16)((1u << count) - 1); }
static inline vf load_first(const float *from, int64_t count) {
    return (vf)_mm512_maskz_loadu_ps(first_lanes(count), from);
}
static inline void store_first(float *to, vf value, int64_t count) {
    _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)value);
}

/* Lanes of the counters such that what interleave_* gives is in the order of the coordinates. */
static const uint64_t lane_order[COUNTERS] = {0, 4, 1, 5, 2, 6, 3, 7};
#define LOWER 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define UPPER 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31

static inline float sum_lanes(vf v) {
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}

static inline vf add_down_to_fours(const vf *v) {
#define LOWER_HALVES 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define UPPER_HALVES 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOWER_FOURS 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define UPPER_FOURS 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
    vf a = SHUFFLE(v[0], v[4], LOWER_HALVES) + SHUFFLE(v[0], v[4], UPPER_HALVES);
    vf b = SHUFFLE(v[8], v[12], LOWER_HALVES) + SHUFFLE(v[8], v[12], UPPER_HALVES);
    return SHUFFLE(a, b, LOWER_FOURS) + SHUFFLE(a, b, UPPER_FOURS);
}

static inline int64_t put_lanes(mask m, int64_t first, uint16_t *to) {
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i kept = _mm512_maskz_compress_epi32(m, _mm512_add_epi32(lane, _mm512_set1_epi32((int)first)));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(kept));
    return __builtin_popcount(m);
}

static const int32_t lanes_below[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
