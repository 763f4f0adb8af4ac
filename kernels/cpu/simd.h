/* Vectors of LANES floats and what plain arithmetic on them cannot say. Included once per instruction set, by isa_*.h.

   GCC and Clang give vector types the operators of C, so that formulas elsewhere read as formulas; only operations with
   no operator (square root, widening product, interleave, conversions of 16-bit floats) are written here.
   The includer defines LANES (16, 8 or 4) and, before it, the intrinsics in use. */

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
/* Half as many 64-bit lanes: one Philox counter each. */
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));
#define COUNTERS (LANES / 2)

static inline vf splat(float value) { return value - (vf){0}; }
static inline vw splat64(uint64_t value) { return value + (vw){0}; }

/* Lanes of a where the mask is all ones, of b where it is zero. */
static inline vf select_f(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

static inline vf load(const float *from) {
    vf value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, vf value) { memcpy(to, &value, sizeof value); }

/* (a0 b0 a1 b1 ...): the lower and the upper half of a and b, interleaved. */
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif
#if defined(__clang__)
#define INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
static inline vf interleave_lower(vf a, vf b) { return INTERLEAVE(a, b, LOWER); }
static inline vf interleave_upper(vf a, vf b) { return INTERLEAVE(a, b, UPPER); }

/* Lanes rotated by half, a quarter, ... of the vector, and added: the sum of all lanes, in every lane. */
#if defined(__clang__)
#define ROTATE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define ROTATE(v, ...) __builtin_shuffle(v, (vi){__VA_ARGS__})
#endif
static inline float sum_lanes(vf v) {
#if LANES == 16
    v += ROTATE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += ROTATE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += ROTATE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += ROTATE(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LANES == 8
    v += ROTATE(v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += ROTATE(v, 2, 3, 0, 1, 6, 7, 4, 5);
    v += ROTATE(v, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    v += ROTATE(v, 2, 3, 0, 1);
    v += ROTATE(v, 1, 0, 3, 2);
#endif
    return v[0];
}

/* bfloat16 is the upper half of a float32; rounded to nearest even, NaN kept a NaN. */
static inline vf from_bfloat16(vh bits) { return (vf)(__builtin_convertvector(bits, vu) << 16); }
static inline vh to_bfloat16(vf value) {
    vu bits = (vu)value;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (bits >> 16) | 0x40;
    vu is_nan = (vu)(value != value);
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), vh);
}

#if LANES == 16
static inline vf square_root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
/* The 64-bit product of the low words of the lanes and a 32-bit constant; what stands above the low words is ignored. */
static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)b));
}
static inline vf from_float16(vh bits) { return (vf)_mm512_cvtph_ps((__m256i)bits); }
static inline vh to_float16(vf value) {
    return (vh)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif LANES == 8
static inline vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
}
static inline vf from_float16(vh bits) { return (vf)_mm256_cvtph_ps((__m128i)bits); }
static inline vh to_float16(vf value) {
    return (vh)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
static inline vf square_root(vf x) { return (vf)vsqrtq_f32((float32x4_t)x); }
static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
}
static inline vf from_float16(vh bits) { return (vf)vcvt_f32_f16((float16x4_t)bits); }
static inline vh to_float16(vf value) { return (vh)vcvt_f16_f32((float32x4_t)value); }
#endif
