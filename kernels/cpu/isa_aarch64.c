/* The kernels for 64-bit ARM processors (NEON): 4 floats a vector. */
#include "call.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#define ISA_NAME(function) function##_aarch64
#include "simd.h"
#include "vector_math.h"
#include "philox.h"
#include "noise.h"
#include "tiles.h"
#include "gaussian.h"

const instruction_set isa_aarch64 = {"aarch64", forward_aarch64, backward_aarch64, words_aarch64};
#endif
