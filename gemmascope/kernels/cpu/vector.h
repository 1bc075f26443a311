// Sixteen float32 numbers as one value, in the vector extension of GCC and Clang, which both lower to what the processor has.
//
// Every function works on whole vectors. The rest of a row that is no multiple of sixteen goes through a padded copy, so that
// each number is computed by the same instructions wherever it stands, whatever stands beside it, and at whatever address.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr int64_t LANES = 16;

typedef float Vec __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));
typedef float Quarter __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));

struct BFloat16 {
    uint16_t bits;
};

inline Vec all(float value) { return Vec{} + value; }

inline Vec load(const float* at) {
    Vec value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline Vec load(const BFloat16* at) {
    Shorts shorts;
    std::memcpy(&shorts, at, sizeof shorts);
    return (Vec)(__builtin_convertvector(shorts, Bits) << 16);
}

inline Vec load(const int8_t* at) {
    Bytes bytes;
    std::memcpy(&bytes, at, sizeof bytes);
    Ints numbers;
    for (int i = 0; i < LANES; ++i) numbers[i] = bytes[i];  // one instruction, which GCC's convertvector does not find
    return __builtin_convertvector(numbers, Vec);
}

inline void store(float* at, Vec value) { std::memcpy(at, &value, sizeof value); }

// Rounded to the nearest bfloat16, to even ones between two, as torch rounds.
inline Shorts rounded(Vec value) {
    Bits bits = (Bits)value;
    Bits nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    Bits nan = (Bits)(value != value);
    return __builtin_convertvector((nearest & ~nan) | (nan & 0x7fc0u), Shorts);
}

inline void store(BFloat16* at, Vec value) {
    Shorts shorts = rounded(value);
    std::memcpy(at, &shorts, sizeof shorts);
}

// A value as it is once it has been stored as T.
template <typename T>
inline Vec as_stored(Vec value);
template <>
inline Vec as_stored<float>(Vec value) { return value; }
template <>
inline Vec as_stored<BFloat16>(Vec value) { return (Vec)(__builtin_convertvector(rounded(value), Bits) << 16); }

template <typename T>
inline Vec load_some(const T* at, int64_t count) {
    T padded[LANES] = {};
    std::memcpy(padded, at, count * sizeof(T));
    return load(padded);
}

template <typename T>
inline void store_some(T* at, Vec value, int64_t count) {
    T padded[LANES];
    store(padded, value);
    std::memcpy(at, padded, count * sizeof(T));
}

// The first `count` numbers of `out`: what `compute` makes of each place's vectors. compute(load) gets a function that loads.
template <typename T, typename Compute>
inline void each(T* out, int64_t count, Compute compute) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        store(out + i, compute([i](const auto* from) { return load(from + i); }));
    if (i < count)
        store_some(out + i, compute([i, count](const auto* from) { return load_some(from + i, count - i); }), count - i);
}

// The sum of the sixteen: the upper half is added to the lower one, again and again.
inline float sum(Vec value) {
    Half half[2];
    std::memcpy(half, &value, sizeof half);
    const Half eight = half[0] + half[1];
    Quarter quarter[2];
    std::memcpy(quarter, &eight, sizeof quarter);
    const Quarter four = quarter[0] + quarter[1];
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// e to the power x, to 2 units in the last place for -86 <= x <= 88, beyond which it stays as at those ends. NaN gives NaN.
inline Vec exp(Vec x) {
    x = x > 88.0f ? all(88.0f) : x;
    x = x < -86.0f ? all(-86.0f) : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which is then in the lowest bits
    Vec shifted = x * 1.44269504088896341f + shift;
    Vec whole = shifted - shift;
    Vec rest = x - whole * 0.693359375f;
    rest = rest - whole * -2.12194440e-4f;
    Vec series = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * (rest * rest) + rest + 1.0f;
    return (Vec)((Ints)series + ((Ints)shifted << 23));
}

// tanh, to 3 units in the last place. NaN gives NaN.
inline Vec tanh(Vec x) {
    Vec size = (Vec)((Bits)x & 0x7fffffffu);
    Vec square = x * x;
    Vec near = square * -5.70498872745e-3f + 2.06390887954e-2f;
    near = near * square - 5.37397155531e-2f;
    near = near * square + 1.33314422036e-1f;
    near = near * square - 3.33332819422e-1f;
    near = near * square * x + x;  // since 1 - 2 / (exp(2x) + 1) cancels for small x
    Vec far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    far = (Vec)((Bits)far | ((Bits)x & 0x80000000u));
    return size < 0.625f ? near : far;
}

// sqrt(2 / pi) (x + 0.044715 x^3) is GELU's argument of tanh, and (1 + tanh(y)) / 2 is 1 / (1 + exp(-2y)).
inline Vec gelu(Vec x) {
    Vec twice = x * (x * x * 0.0713548162726f + 1.59576912160573f);
    return x / (1.0f + exp(-twice));
}
