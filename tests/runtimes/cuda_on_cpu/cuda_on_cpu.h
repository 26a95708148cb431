// CUDA C for a C++ compiler: the words of the language, and a launch that runs threads in turn.
//
// It is included before the kernels. KERNELS lists them: X(first) X(second) ...
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <tuple>

#define __global__
#define __device__

struct alignas(16) int4 {
    int x, y, z, w;
};

struct Index {
    int x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

using std::isfinite;
using std::isnan;

static int atomicAdd(int* place, int value) {
    int before = *place;
    *place += value;
    return before;
}

static float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Arguments {
    const char* bytes;
    size_t size, used;

    // Parameters are aligned to their size, as in the driver's buffer.
    template <typename T>
    T next() {
        used = (used + alignof(T) - 1) / alignof(T) * alignof(T);
        T value = {};
        if (used + sizeof(T) <= size) std::memcpy(&value, bytes + used, sizeof(T));
        used += sizeof(T);
        return value;
    }
};

// Returns 0, or 1 if the arguments do not have the size of the kernel's parameters.
template <typename... Parameters>
int run(void (*kernel)(Parameters...), const int* grid, const int* block, Arguments arguments,
        bool backwards) {
    std::tuple<Parameters...> values{arguments.next<Parameters>()...};
    if (arguments.used != arguments.size) return 1;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    long long blocks = (long long)grid[0] * grid[1] * grid[2];
    int threads = block[0] * block[1] * block[2];
    for (long long i = 0; i < blocks * threads; i++) {
        long long number = backwards ? blocks * threads - 1 - i : i;
        int b = (int)(number / threads), t = (int)(number % threads);
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        threadIdx = {t % block[0], t / block[0] % block[1], t / block[0] / block[1]};
        std::apply(kernel, values);
    }
    return 0;
}
