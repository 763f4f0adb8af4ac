/* NEON of 64-bit ARM: 4 floats a vector, masks as vectors of all ones and zeros. */

typedef vi mask;
static inline mask equal(vf a, vf b) { return a == b; }
static inline mask less(vf a, vf b) { return a < b; }
static inline mask less_or_equal(vf a, vf b) { return a <= b; }
static inline mask equal_integers(vi a, vi b) { return a == b; }
static inline mask sign_of(vu a) { return (vi)a >> 31; }
static inline vf choose(mask m, vf a, vf b) { return (vf)vbslq_f32((uint32x4_t)m, (float32x4_t)a, (float32x4_t)b); }
static inline int holds_everywhere(mask m) { return vminvq_u32((uint32x4_t)m) == 0xffffffffu; }

static inline vf at_least(vf x, float bound) { return (vf)vmaxq_f32((float32x4_t)x, vdupq_n_f32(bound)); }
static inline vf at_most(vf x, float bound) { return (vf)vminq_f32((float32x4_t)x, vdupq_n_f32(bound)); }
static inline vf square_root(vf x) { return (vf)vsqrtq_f32((float32x4_t)x); }
static inline vf multiply_add(vf a, vf b, vf c) {
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#define POWERS_OF_TWO_BY_PARTS

static inline vw multiply_low_words(vw a, uint32_t b) {
    return (vw)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
}
static inline vw high_words(vw a) { return a >> 32; }
static inline vu low_words(vw a, vw b) { return (vu)vtrn1q_u32((uint32x4_t)a, (uint32x4_t)b); }

static inline vf from_float16(vh bits) { return (vf)vcvt_f32_f16((float16x4_t)bits); }
static inline vh to_float16(vf value) { return (vh)vcvt_f16_f32((float32x4_t)value); }

static const uint64_t lane_order[COUNTERS] = {0, 1};
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7

static inline float sum_lanes(vf v) {
    v += SHUFFLE(v, v, 2, 3, 0, 1);
    v += SHUFFLE(v, v, 1, 0, 3, 2);
    return v[0];
}

static inline vf add_down_to_fours(const vf *v) { return v[0]; }

static inline int64_t put_lanes(mask m, int64_t first, uint16_t *to) {
    int64_t kept = 0;
    for (int lane = 0; lane < 4; lane++) {
        to[kept] = (uint16_t)(first + lane);
        kept -= m[lane];
    }
    return kept;
}

static const int32_t lanes_below[2 * LANES] = {-1, -1, -1, -1};

static inline vf load_first(const float *from, int64_t count) {
    vf value = {0};
    memcpy(&value, from, sizeof(float) * (size_t)count);
    return value;
}
static inline void store_first(float *to, vf value, int64_t count) {
    memcpy(to, &value, sizeof(float) * (size_t)count);
}
