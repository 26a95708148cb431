// Kernels around the network: letterbox a frame into its input, select candidates from its heads.
//
// `_cuda_kernels.py` has the parameters and launch sizes of all kernels. It loads
// `_cuda_kernels.ptx`, which `examples/research/cuda_kernels.py` compiles from this file.
// Arithmetic follows y7edge/detect/preprocess.py and postprocess.py operation by operation, and is
// compiled without contraction to fused multiply-add (--fmad=false).

#include <cuda_fp16.h>

typedef unsigned char byte;

// Candidates of all images in one buffer: the header, then `capacity` records in any order.
struct alignas(16) Header {
    int count;  // of candidates found; records are complete only if it is at most `capacity`
    int not_a_number;  // objectness values that are NaN
    int unused[6];
};

struct alignas(16) Candidate {
    float x0, y0, x1, y1;  // pixels of the network's input
    float score;
    int class_id;
    int image;  // in the batch
    int order;  // by level, anchor, row and column
};

// One axis of a bilinear resize: pixels `x, y` with weights `z, w`, which are fractions of 2048.
typedef int4 Taps;

// --- Letterbox ---------------------------------------------------------------------------------

struct Pixel {
    int channel[3];  // in the order of the network's input
};

// Interleaved channels: grey, BGR, RGB, or with a fourth byte, which is ignored.
struct Interleaved {
    const byte* pixels;
    long long stride;  // bytes from row to row
    int bytes;  // per pixel
    int first, step;  // byte of the network's first channel, and from channel to channel

    __device__ Pixel at(int x, int y) const {
        const byte* place = pixels + y * stride + (long long)x * bytes + first;
        Pixel pixel;
        for (int c = 0; c < 3; c++) pixel.channel[c] = place[c * step];
        return pixel;
    }
};

__device__ inline int saturated(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

// NV12: a plane of luma, and one of Cb and Cr at half the resolution, interleaved. The conversion
// is ITU-R BT.601 with limited range (luma 16..235), with OpenCV's coefficients, which are
// 1.164, 1.596, 0.813, 0.391 and 2.018 as multiples of 2^-20.
struct Nv12 {
    const byte* luma;
    const byte* chroma;
    long long luma_stride, chroma_stride;  // bytes from row to row
    int rgb;  // whether the network's first channel is red

    __device__ Pixel at(int x, int y) const {
        const byte* colours = chroma + (y / 2) * chroma_stride + (x / 2) * 2;
        int level = luma[y * luma_stride + x] - 16;
        int cb = colours[0] - 128, cr = colours[1] - 128;
        int grey = (level < 0 ? 0 : level) * 1220542 + (1 << 19);
        int blue = saturated((grey + 2116026 * cb) >> 20);
        int green = saturated((grey - 409993 * cb - 852492 * cr) >> 20);
        int red = saturated((grey + 1673527 * cr) >> 20);
        return {{rgb ? red : blue, green, rgb ? blue : red}};
    }
};

__device__ inline void store(float* place, int level, float divisor) {
    *place = (float)level / divisor;
}

__device__ inline void store(__half* place, int level, float divisor) {
    *place = __float2half_rn((float)level / divisor);
}

__device__ inline void store(byte* place, int level, float) { *place = (byte)level; }

// The resize is that of OpenCV for 8 bits: weights of 11 bits, and the sum of a row loses 4 bits
// before it is multiplied by the weight of the row.
__device__ inline int blended(int top, int bottom, int top_weight, int bottom_weight) {
    int sum = ((top_weight * (top >> 4)) >> 16) + ((bottom_weight * (bottom >> 4)) >> 16);
    return (sum + 2) >> 2;
}

// One thread writes the three channels of one pixel of the network's input.
template <typename Source, typename Value>
__device__ inline void letterbox(const Source& source, const Taps* columns, const Taps* rows,
                                 int left, int top, int resized_width, int resized_height,
                                 int pad, float divisor, Value* target, int width, int height,
                                 int pixel_step, int channel_step) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    Value* place = target + ((long long)y * width + x) * pixel_step;
    int column = x - left, row = y - top;
    if (column < 0 || column >= resized_width || row < 0 || row >= resized_height) {
        for (int c = 0; c < 3; c++) store(place + c * (long long)channel_step, pad, divisor);
        return;
    }
    Taps across = columns[column], down = rows[row];
    Pixel a = source.at(across.x, down.x), b = source.at(across.y, down.x);
    Pixel c = source.at(across.x, down.y), d = source.at(across.y, down.y);
    for (int i = 0; i < 3; i++) {
        int upper = a.channel[i] * across.z + b.channel[i] * across.w;
        int lower = c.channel[i] * across.z + d.channel[i] * across.w;
        int level = blended(upper, lower, down.z, down.w);
        store(place + i * (long long)channel_step, level, divisor);
    }
}

#define LETTERBOX(NAME, VALUE)                                                                    \
    extern "C" __global__ void letterbox_##NAME(                                                  \
        const byte* pixels, long long stride, int bytes, int first, int step,                     \
        const Taps* columns, const Taps* rows, int left, int top, int resized_width,              \
        int resized_height, int pad, float divisor, VALUE* target, int width, int height,         \
        int pixel_step, int channel_step) {                                                       \
        Interleaved source = {pixels, stride, bytes, first, step};                                \
        letterbox(source, columns, rows, left, top, resized_width, resized_height, pad, divisor,  \
                  target, width, height, pixel_step, channel_step);                               \
    }                                                                                             \
    extern "C" __global__ void letterbox_nv12_##NAME(                                             \
        const byte* luma, const byte* chroma, long long luma_stride, long long chroma_stride,     \
        int rgb, const Taps* columns, const Taps* rows, int left, int top, int resized_width,     \
        int resized_height, int pad, float divisor, VALUE* target, int width, int height,         \
        int pixel_step, int channel_step) {                                                       \
        Nv12 source = {luma, chroma, luma_stride, chroma_stride, rgb};                            \
        letterbox(source, columns, rows, left, top, resized_width, resized_height, pad, divisor,  \
                  target, width, height, pixel_step, channel_step);                               \
    }

LETTERBOX(float32, float)
LETTERBOX(float16, __half)
LETTERBOX(uint8, byte)

// --- Candidates --------------------------------------------------------------------------------

extern "C" __global__ void clear_candidates(Header* header) {
    Header zero = {};
    if (threadIdx.x == 0 && blockIdx.x == 0) *header = zero;
}

__device__ inline float real(float value, float, float) { return value; }

__device__ inline float real(__half value, float, float) { return __half2float(value); }

__device__ inline float real(signed char value, float scale, float zero_point) {
    return ((float)value - zero_point) * scale;
}

__device__ inline float real(byte value, float scale, float zero_point) {
    return ((float)value - zero_point) * scale;
}

// The outputs of one anchor in one cell, as logits or probabilities.
template <typename Value>
struct Fields {
    const Value* values;
    long long step;  // from field to field
    bool logits;
    float scale, zero_point;

    __device__ float raw(int field) const {
        return real(values[field * step], scale, zero_point);
    }
    __device__ float activated(float value) const {
        return logits ? 1.0f / (1.0f + expf(-value)) : value;
    }
    __device__ float at(int field) const { return activated(raw(field)); }
};

// Returns the score, and sets `class_id` to the best class: of equal ones, the first. NaN is never
// the best.
template <typename Value>
__device__ inline float scored(const Fields<Value>& fields, float objectness, int classes,
                               int* class_id) {
    *class_id = 0;
    if (classes == 1) return objectness;
    float best = __int_as_float((int)0xff800000);  // -infinity
    for (int c = 0; c < classes; c++) {
        float value = fields.raw(5 + c);
        if (value > best) {
            best = value;
            *class_id = c;
        }
    }
    return objectness * fields.activated(best);
}

// One thread examines one cell of one anchor (blockIdx.y) of one image (blockIdx.z).
template <typename Value>
__device__ inline void select(const Value* head, long long image_step, long long anchor_step,
                              long long field_step, long long cell_step, int width, int cells,
                              int classes, int logits, float scale, float zero_point,
                              const float* anchors, int first_order, float conf, float scan,
                              int capacity, Header* header) {
    int cell = blockIdx.x * blockDim.x + threadIdx.x;
    int anchor = blockIdx.y, image = blockIdx.z;
    if (cell >= cells) return;
    const Value* values = head + image * image_step + anchor * anchor_step + cell * cell_step;
    Fields<Value> fields = {values, field_step, logits != 0, scale, zero_point};
    float raw = fields.raw(4);
    if (isnan(raw)) atomicAdd(&header->not_a_number, 1);
    float objectness = fields.activated(raw);
    if (!(objectness >= scan)) return;
    int class_id;
    float score = scored(fields, objectness, classes, &class_id);
    if (!(score > conf)) return;

    const float* known = anchors + 3 * anchor;  // stride, width, height
    float x = (2.0f * fields.at(0) - 0.5f + (float)(cell % width)) * known[0];
    float y = (2.0f * fields.at(1) - 0.5f + (float)(cell / width)) * known[0];
    float across = 2.0f * fields.at(2), down = 2.0f * fields.at(3);
    float half_width = across * across * known[1] / 2.0f;
    float half_height = down * down * known[2] / 2.0f;
    Candidate found = {x - half_width, y - half_height, x + half_width, y + half_height,
                       score, class_id, image, first_order + anchor * cells + cell};
    if (!(isfinite(found.x0) && isfinite(found.y0) && isfinite(found.x1) && isfinite(found.y1)))
        return;
    int slot = atomicAdd(&header->count, 1);
    if (slot < capacity) ((Candidate*)(header + 1))[slot] = found;
}

#define SELECT(NAME, VALUE)                                                                       \
    extern "C" __global__ void select_##NAME(                                                     \
        const VALUE* head, long long image_step, long long anchor_step, long long field_step,     \
        long long cell_step, int width, int cells, int classes, int logits, float scale,          \
        float zero_point, const float* anchors, int first_order, float conf, float scan,          \
        int capacity, Header* header) {                                                           \
        select(head, image_step, anchor_step, field_step, cell_step, width, cells, classes,       \
               logits, scale, zero_point, anchors, first_order, conf, scan, capacity, header);    \
    }

SELECT(float32, float)
SELECT(float16, __half)
SELECT(int8, signed char)
SELECT(uint8, byte)
