// Entry points of the kernels, for ctypes: grid, block, packed arguments and their size.
#include "cuda_on_cpu.h"
#include CUDA_SOURCE

#define X(NAME)                                                                            \
    extern "C" int cpu_##NAME(const int* grid, const int* block, const char* bytes,        \
                              size_t size, int backwards) {                                \
        return run(NAME, grid, block, Arguments{bytes, size, 0}, backwards != 0);          \
    }
KERNELS
