// int8 matrices (streaming/int8.py): products of a few rows with the numbers as they are stored, and dequantisation.

#include <algorithm>
#include <vector>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "vector.h"

constexpr int64_t GROUP = 128;
constexpr int64_t OUTS = 32;  // outputs of a task: a multiple of every COUNT below
constexpr int64_t WORTH_THREADS = 1 << 16;  // numbers of a matrix for which starting a second thread pays

static inline float from_float16(uint16_t half) {
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    const uint32_t rest = half & 0x7fffu;
    float value;
    if (rest < 0x0400u) {
        value = float(rest) * 5.9604644775390625e-08f;  // 2^-24, the step of the numbers below the smallest normal one
    } else {
        const uint32_t bits = (rest << 13) + 0x38000000u;  // never infinite: quantise refuses such a weight
        std::memcpy(&value, &bits, sizeof value);
    }
    return half & 0x8000u ? -value : value;
#endif
}

// A matrix [out, in]. A scale times a number has at most 18 binary digits: it is exact in float32.
struct Matrix {
    const int8_t* numbers;
    const uint16_t* scale;
    int64_t n_out, n_in;

    float step(int64_t out, int64_t in) const {
        return from_float16(scale[out * ((n_in + GROUP - 1) / GROUP) + in / GROUP]);
    }
};

// ROWS x COUNT products. The sum over a group is that of two vectors, over its even and its odd vectors of inputs, in their
// order: the same bits whatever ROWS and COUNT are. x [row, stride] is float32, and 0 beyond n_in.
template <int ROWS, int COUNT, typename T>
static void tile(T* out, const float* x, int64_t stride, const Matrix& matrix, int64_t first) {
    const int64_t n_in = matrix.n_in;
    Vec total[ROWS][COUNT] = {};
    for (int64_t group = 0; group < n_in; group += GROUP) {
        const int64_t stop = std::min(group + GROUP, n_in);
        Vec sums[2][ROWS][COUNT] = {};
        int64_t in = group;
        for (; in + 2 * LANES <= stop; in += 2 * LANES)
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                const int64_t at = in + part * LANES;
                Vec values[ROWS];
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; ++row) values[row] = load(x + row * stride + at);
#pragma GCC unroll 8
                for (int o = 0; o < COUNT; ++o) {
                    const Vec numbers = load(matrix.numbers + (first + o) * n_in + at);
#pragma GCC unroll 8
                    for (int row = 0; row < ROWS; ++row) sums[part][row][o] += values[row] * numbers;
                }
            }
        for (int part = 0; in < stop; in += LANES, ++part)
            for (int o = 0; o < COUNT; ++o) {
                const int8_t* at = matrix.numbers + (first + o) * n_in + in;
                const Vec numbers = stop - in < LANES ? load_some(at, stop - in) : load(at);
                for (int row = 0; row < ROWS; ++row) sums[part][row][o] += load(x + row * stride + in) * numbers;
            }
#pragma GCC unroll 8
        for (int o = 0; o < COUNT; ++o) {
            const float step = matrix.step(first + o, group);
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row) total[row][o] += (sums[0][row][o] + sums[1][row][o]) * step;
        }
    }
    for (int row = 0; row < ROWS; ++row)
        for (int o = 0; o < COUNT; ++o)
            store_some(out + row * matrix.n_out + first + o, all(sum(total[row][o])), 1);
}

// The products of all rows with `count` outputs from `first` on.
template <int ROWS, int COUNT, typename T>
static void some_rows(
    T* out, const float* x, int64_t stride, int64_t rows, const Matrix& matrix, int64_t first, int64_t count
) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) {
        int64_t o = 0;
        for (; o + COUNT <= count; o += COUNT)
            tile<ROWS, COUNT>(out + row * matrix.n_out, x + row * stride, stride, matrix, first + o);
        for (; o < count; ++o) tile<ROWS, 1>(out + row * matrix.n_out, x + row * stride, stride, matrix, first + o);
    }
    if constexpr (ROWS > 1)
        if (row < rows)
            some_rows<ROWS / 2, 8 / ROWS>(
                out + row * matrix.n_out, x + row * stride, stride, rows - row, matrix, first, count
            );
}

template <typename T>
static void product(T* out, const T* x, int64_t rows, const Matrix& matrix, int threads) {
    const int64_t n_in = matrix.n_in, n_out = matrix.n_out, stride = (n_in + LANES - 1) / LANES * LANES;
    std::vector<float> values(rows * stride);
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * n_in;
        each(values.data() + row * stride, n_in, [from](auto at) { return at(from); });
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && n_out * n_in > WORTH_THREADS)
    for (int64_t first = 0; first < n_out; first += OUTS)
        some_rows<4, 2>(out, values.data(), stride, rows, matrix, first, std::min(OUTS, n_out - first));
}

template <typename T>
static void dequantise(T* out, const Matrix& matrix, int threads) {
    const int64_t n_in = matrix.n_in;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && matrix.n_out * n_in > WORTH_THREADS)
    for (int64_t row = 0; row < matrix.n_out; ++row)
        for (int64_t group = 0; group < n_in; group += GROUP) {
            const float step = matrix.step(row, group);
            const int8_t* from = matrix.numbers + row * n_in + group;
            each(out + row * n_in + group, std::min(GROUP, n_in - group), [&](auto at) { return at(from) * step; });
        }
}

#define FOR_TYPE(name, T)                                                                                                    \
    EXPORT void product_##name(                                                                                              \
        T* out, const T* x, const int8_t* numbers, const uint16_t* scale, int64_t rows, int64_t n_out, int64_t n_in,         \
        int threads                                                                                                          \
    ) {                                                                                                                      \
        product(out, x, rows, Matrix{numbers, scale, n_out, n_in}, threads);                                                 \
    }                                                                                                                        \
    EXPORT void dequantise_##name(                                                                                           \
        T* out, const int8_t* numbers, const uint16_t* scale, int64_t n_out, int64_t n_in, int threads                       \
    ) {                                                                                                                      \
        dequantise(out, Matrix{numbers, scale, n_out, n_in}, threads);                                                       \
    }

FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, BFloat16)
