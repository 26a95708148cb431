// The parts of CUDA's header that the kernels use, on the CPU.
#pragma once

#include <cmath>
#include <cstring>

struct __half {
    unsigned short bits;
};

inline float __half2float(__half half) {
    int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp((float)(fraction | 1024), exponent - 25)
                                 : std::ldexp((float)fraction, -24);
    return half.bits & 0x8000 ? -value : value;
}

// Rounds to nearest, half to even, as the default rounding mode of nearbyint does.
inline __half __float2half_rn(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    unsigned short sign = bits >> 16 & 0x8000;
    float size = std::fabs(value);
    if (std::isnan(size)) return {(unsigned short)(sign | 0x7fff)};
    if (size >= 65520) return {(unsigned short)(sign | 0x7c00)};
    int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    // In units of the last place; a carry into the next exponent has the right bits.
    int units = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
    return {(unsigned short)(sign | (units + ((exponent + 14) << 10)))};
}
