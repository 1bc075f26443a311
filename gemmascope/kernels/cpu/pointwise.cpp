// The pointwise functions of model/maths.py, each in one pass over memory. Numbers are computed with in float32 and rounded to
// their dtype wherever the plain functions round. What stands in one row never changes another row's numbers.

#include "vector.h"

constexpr int64_t WORTH_THREADS = 1 << 15;  // numbers for which starting a second thread pays
constexpr int64_t PART = 4096;  // numbers of a task

// Writes what compute(load) makes of every place, whatever stands beside it: load gives the sixteen numbers of a tensor there.
template <typename T, typename Compute>
static void everywhere(T* out, int64_t n, int threads, Compute compute) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && n > WORTH_THREADS)
    for (int64_t first = 0; first < n; first += PART)
        each(out + first, n - first < PART ? n - first : PART, [&](auto at) {
            return compute([&](const auto* from) { return at(from + first); });
        });
}

template <typename T, typename W>
static void rms_norm(T* out, const T* x, const W* weight, int64_t rows, int64_t width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * width > WORTH_THREADS)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = x + row * width;
        Vec total[4] = {};
        int64_t i = 0;
        for (; i + 4 * LANES <= width; i += 4 * LANES)
            for (int part = 0; part < 4; ++part) {
                Vec value = load(from + i + part * LANES);
                total[part] += value * value;
            }
        for (; i < width; i += LANES) {
            Vec value = width - i < LANES ? load_some(from + i, width - i) : load(from + i);
            total[0] += value * value;
        }
        const float mean = sum((total[0] + total[1]) + (total[2] + total[3])) / width + eps;
        // A mean square that overflows must give NaN, as in rms_scale, and not zeros.
        const float scale = std::isinf(mean) ? std::numeric_limits<float>::quiet_NaN() : 1.0f / std::sqrt(mean);
        each(out + row * width, width, [&](auto at) {
            Vec scaled = at(from) * scale;
            return scaled + scaled * at(weight);
        });
    }
}

template <typename T>
static void gelu_gate(T* out, const T* gate, const T* up, int64_t n, int threads) {
    everywhere(out, n, threads, [=](auto at) { return as_stored<T>(gelu(at(gate))) * at(up); });
}

template <typename T>
static void soft_cap(T* out, const T* x, int64_t n, float cap, int threads) {
    everywhere(out, n, threads, [=](auto at) { return as_stored<T>(tanh(as_stored<T>(at(x) / cap))) * cap; });
}

template <typename T>
static void rotate(
    T* out, const T* x, const float* cosines, const float* sines, int64_t cos_stride, int64_t sin_stride,
    int64_t rows, int64_t heads, int64_t d_head, int threads
) {
    const int64_t half = d_head / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows * heads * d_head > WORTH_THREADS)
    for (int64_t row = 0; row < rows; ++row) {
        const float *cos = cosines + row * cos_stride, *sin = sines + row * sin_stride;
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t start = (row * heads + head) * d_head;
            const T *left = x + start, *right = left + half;
            each(out + start, half, [&](auto at) {
                return as_stored<T>(at(left) * as_stored<T>(at(cos))) - at(right) * as_stored<T>(at(sin));
            });
            each(out + start + half, half, [&](auto at) {
                return as_stored<T>(at(right) * as_stored<T>(at(cos))) + at(left) * as_stored<T>(at(sin));
            });
        }
    }
}

#define FOR_TYPE(name, T)                                                                                                    \
    EXPORT void gelu_gate_##name(T* out, const T* gate, const T* up, int64_t n, int threads) {                         \
        gelu_gate(out, gate, up, n, threads);                                                                                \
    }                                                                                                                        \
    EXPORT void soft_cap_##name(T* out, const T* x, int64_t n, float cap, int threads) {                               \
        soft_cap(out, x, n, cap, threads);                                                                                   \
    }                                                                                                                        \
    EXPORT void rotate_##name(                                                                                           \
        T* out, const T* x, const float* cos, const float* sin, int64_t cos_stride, int64_t sin_stride, int64_t rows,        \
        int64_t heads, int64_t d_head, int threads                                                                           \
    ) {                                                                                                                      \
        rotate(out, x, cos, sin, cos_stride, sin_stride, rows, heads, d_head, threads);                                      \
    }

#define FOR_TYPES(name, T, W)                                                                                                \
    EXPORT void rms_norm_##name(                                                                                         \
        T* out, const T* x, const W* weight, int64_t rows, int64_t width, float eps, int threads                            \
    ) {                                                                                                                      \
        rms_norm(out, x, weight, rows, width, eps, threads);                                                                 \
    }

FOR_TYPE(float32, float)
FOR_TYPE(bfloat16, BFloat16)
FOR_TYPES(float32_float32, float, float)
FOR_TYPES(float32_bfloat16, float, BFloat16)
FOR_TYPES(bfloat16_float32, BFloat16, float)
FOR_TYPES(bfloat16_bfloat16, BFloat16, BFloat16)
