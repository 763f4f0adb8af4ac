/* The values that tensors hold, read and written bit by bit in plain C: nothing here is shared with the kernels. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "call.h"

/* A 16-bit format: bits of the fraction, and what is added to the exponent of two. */
typedef struct {
    int fraction, bias;
} half_format;

static half_format format_of(int dtype) { return dtype == BFLOAT16 ? (half_format){7, 127} : (half_format){10, 15}; }

static int bytes_of(int dtype) {
    switch (dtype) {
    case UINT8:
    case INT8: return 1;
    case BFLOAT16:
    case FLOAT16:
    case INT16: return 2;
    case INT64: return 8;
    default: return 4;
    }
}

static double decode_half(uint32_t bits, half_format f) {
    int exponent = (int)(bits >> f.fraction) & (2 * f.bias + 1);
    double size = bits & ((1u << f.fraction) - 1);
    if (exponent == 2 * f.bias + 1)
        size = size > 0.0 ? NAN : INFINITY;
    else if (exponent == 0)
        size = ldexp(size, 1 - f.bias - f.fraction);
    else
        size = ldexp(size + (1 << f.fraction), exponent - f.bias - f.fraction);
    return bits >> 15 & 1 ? -size : size;
}

/* To nearest, ties to even. */
static uint32_t encode_half(double value, half_format f) {
    uint32_t sign = signbit(value) ? 0x8000u : 0u, infinity = (2u * (uint32_t)f.bias + 1u) << f.fraction;
    if (isnan(value)) return sign | infinity | 1u << (f.fraction - 1);
    if (isinf(value)) return sign | infinity;
    int exponent;
    frexp(value, &exponent);
    exponent--;
    if (value == 0.0 || exponent < 1 - f.bias) exponent = 1 - f.bias;
    double units = nearbyint(ldexp(fabs(value), f.fraction - exponent));
    double bits = ldexp(exponent - 1 + f.bias, f.fraction) + units;
    return sign | (bits < infinity ? (uint32_t)bits : infinity);
}

static uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The low bytes of `bits` are the element. */
static double decode(uint64_t bits, int dtype) {
    switch (dtype) {
    case FLOAT32: return (double)float_of_bits((uint32_t)bits);
    case UINT8: return (double)(uint8_t)bits;
    case INT8: return (double)(int8_t)bits;
    case INT16: return (double)(int16_t)bits;
    case INT32: return (double)(int32_t)bits;
    case INT64: return (double)(int64_t)bits;
    default: return decode_half((uint32_t)bits, format_of(dtype));
    }
}

/* What float32 makes of a double: values beyond its range become infinite (in C they may do anything). */
static double as_float(double value) {
    const double limit = 0x1.ffffffp127; /* half a step above the largest float32 */
    return fabs(value) >= limit ? copysign(INFINITY, value) : (double)(float)value;
}

static uint64_t encode(double value, int dtype) {
    if (dtype >= UINT8) return (uint64_t)(int64_t)value;
    return dtype == FLOAT32 ? bits_of_float((float)as_float(value)) : encode_half(value, format_of(dtype));
}

static double rounded(double value, int dtype) { return decode(encode(value, dtype), dtype); }

#endif
