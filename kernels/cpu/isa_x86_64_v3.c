/* The kernels for x86-64-v3 processors: 8 floats a vector. */
#include "call.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#include <immintrin.h>
#define LANES 8
#define ISA_NAME(function) function##_x86_64_v3
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const instruction_set isa_x86_64_v3 = {"x86-64-v3", KERNELS};
#endif
