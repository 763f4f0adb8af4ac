/* Vectors of LANES floats, and the operations on them that C has no operator for. isa_*.c include it, each once.

   GCC and Clang give vector types the operators of C, so that formulas elsewhere read as formulas; only operations with
   no operator (masks, square root, widening product, shuffles, conversions of 16-bit floats) are written here and, where
   they need an instruction set's own intrinsics, in simd_16.h, simd_8.h and simd_4.h.
   The includer defines LANES (16, 8 or 4) and, before it, includes the intrinsics. */

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline)) /* called from several places, and large */

/* In the body of a short copying loop, which GCC would replace by a string instruction that is slow on short rows. */
#define STAYS_A_LOOP __asm__ volatile("")

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
/* Half as many 64-bit lanes: one Philox counter each, its words in the low half; what stands above is ignored. */
typedef uint64_t vw __attribute__((vector_size(4 * LANES)));
#define COUNTERS (LANES / 2)

static inline vf splat(float value) { return value - (vf){0}; }
static inline vw splat64(uint64_t value) { return value + (vw){0}; }

static inline vf load(const float *from) {
    vf value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, vf value) { memcpy(to, &value, sizeof value); }

/* The indices count the lanes of a, then those of b. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* What each of these files offers beside what its names say:
     choose(m, a, b)            lanes of a where the mask holds, else of b
     equal, less, less_or_equal masks; a NaN is none of these
     holds_everywhere(m)        whether the mask holds in all lanes
     put_lanes(m, first, to)    writes first + lane for the lanes where the mask holds, and returns how many they are;
                                no branches; writes LANES numbers, the last of which mean nothing
     at_least, at_most          the lane or the bound; a NaN stays one
     multiply_low_words(a, b)   64-bit products of the low words of a and the constant b
     high_words(a)              the high words moved down
     low_words(a, b)            low words of a and b in turns: a0 b0 a1 b1 ...
     lane_order                 which of COUNTERS neighbours stands in each lane, see interleave_* below
     sum_lanes(v)               the sum of all lanes: halves are added, and their halves, down to one
     add_down_to_fours(v)       of v[0], v[4] .. v[LANES - 4], the same down to four lanes each, one after the other
     load_first, store_first    the first `count` lanes only; nothing else is touched, and loaded lanes behind are 0
     lanes_below                LANES times all ones, LANES zeros: masks of the first lanes are windows of it */
#if LANES == 16
#include "simd_16.h"
#elif LANES == 8
#include "simd_8.h"
#else
#include "simd_4.h"
#endif

/* Within every four lanes: (a0 b0 a1 b1), and (a2 b2 a3 b3). Crossing these fours would cost processors several steps;
   counters whose lanes stand in lane_order come out in their own order. */
static inline vf interleave_lower(vf a, vf b) { return SHUFFLE(a, b, LOWER); }
static inline vf interleave_upper(vf a, vf b) { return SHUFFLE(a, b, UPPER); }

/* sum_lanes of each of LANES vectors. */
static inline vf sum_lanes_of_each(const vf *v) {
    vf a = add_down_to_fours(v), b = add_down_to_fours(v + 1), c = add_down_to_fours(v + 2), d = add_down_to_fours(v + 3);
    vf ac = interleave_lower(a, c) + interleave_upper(a, c), bd = interleave_lower(b, d) + interleave_upper(b, d);
    return interleave_lower(ac, bd) + interleave_upper(ac, bd);
}

/* x 2^n, n whole and from -252 to 254; in two steps, because 2^n alone may leave the range of float. */
#if defined(POWERS_OF_TWO_BY_PARTS)
static inline vf times_power_of_two(vf x, vf n) {
    vi whole = __builtin_convertvector(n, vi), half = whole >> 1;
    return x * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
}
#endif

/* bfloat16 is the upper half of a float32; rounded to nearest even, NaN kept a NaN. */
static inline vf from_bfloat16(vh bits) { return (vf)(__builtin_convertvector(bits, vu) << 16); }
static inline vh to_bfloat16(vf value) {
    vu bits = (vu)value;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (bits >> 16) | 0x40;
    vu is_nan = (vu)(value != value);
    return __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), vh);
}
