// Vectors of W floats, written with the compiler's vector extensions so that one source serves AVX2, AVX-512 and Arm.
//
// Every rounding is spelled out: a multiply-add is `fma` or it is two operations (the build sets -ffp-contract=off),
// and sums over the lanes have one fixed tree. So the bits of a result follow from this source and W, not from the
// compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// W lanes; a product keeps ROWS rows times VECTORS vectors of sums in the processor's 16 or 32 registers.
#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 8, VECTORS = 3;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int W = 8, ROWS = 6, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int W = 4, ROWS = 8, VECTORS = 3;
#else
#error "the native execution needs AVX2 with FMA, AVX-512 or Arm NEON"
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));

#define FORCED __attribute__((always_inline)) inline
#define INLINE static FORCED

INLINE Vec all(float x) { return x - Vec{}; }  // x in every lane
INLINE Ints as_ints(Vec v) { return (Ints)v; }
INLINE Vec as_floats(Ints v) { return (Vec)v; }

template <class V = Vec>
INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// The first n floats; the other lanes are zero, and memory past them is not touched.
INLINE Vec load_first(const float* from, long n) {
  if (n >= W) return load(from);
  Vec v{};
  std::memcpy(&v, from, 4 * n);
  return v;
}
INLINE void store_first(float* to, Vec v, long n) {
  if (n >= W) return store(to, v);
  std::memcpy(to, &v, 4 * n);
}

// a * b + c, rounded once.
INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

template <int... I>
INLINE Vec pick(Vec a, Vec b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Ints{I...});
#endif
}

// Lane l: a[l] + a[l ^ H], or the same of b where l has the bit H.
template <int H, int... I>
INLINE Vec paired(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return pick<((I & H) ? W + I : I)...>(a, b) + pick<((I & H) ? W + (I ^ H) : (I ^ H))...>(a, b);
}

// The sums over the lanes of W vectors, as one vector. The tree of a sum is the same for each of them.
template <int H = 1>
INLINE Vec sums(Vec* a) {
  for (int i = 0; i < W / H / 2; i++) a[i] = paired<H>(a[2 * i], a[2 * i + 1], std::make_integer_sequence<int, W>{});
  if constexpr (2 * H < W) return sums<2 * H>(a);
  return a[0];
}

// The sum of N vectors, lane by lane, by the tree of `sums`.
template <int N>
INLINE Vec tree(Vec* a) {
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; i++) a[i] = a[2 * i] + a[2 * i + 1];
  if constexpr (N > 2) return tree<N / 2>(a);
  return a[0];
}

template <int H, int... I>
INLINE void swap_halves(Vec& a, Vec& b, std::integer_sequence<int, I...>) {
  const Vec first = pick<((I & H) ? W + (I ^ H) : I)...>(a, b);
  b = pick<((I & H) ? W + I : (I ^ H))...>(a, b);
  a = first;
}

// Vector i takes what lane i of each of the W vectors held.
template <int H = 1>
INLINE void transpose(Vec* a) {
  for (int i = 0; i < W; i++)
    if (!(i & H)) swap_halves<H>(a[i], a[i + H], std::make_integer_sequence<int, W>{});
  if constexpr (2 * H < W) transpose<2 * H>(a);
}

INLINE float sum(Vec v) {
  float lanes[W];
  store(lanes, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

INLINE Vec least(Vec a, Vec b) { return a < b ? a : b; }
INLINE Vec largest(Vec a, Vec b) { return a > b ? a : b; }

// e^x to about 1e-7 relative: 2^n times a polynomial of degree 7 on [-ln 2 / 2, ln 2 / 2] (coefficients of Cephes'
// expf).
INLINE Vec exp(Vec x) {
  x = largest(least(x, all(88.0f)), all(-87.0f));
  const Vec shift = all(12582912.0f);  // 1.5 x 2^23: adding it rounds to an integer
  Vec n = fma(x, all(1.44269504f), shift) - shift;
  Vec r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Vec y = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = fma(y, r, all(c));
  y = fma(y, r * r, r + all(1.0f));
  return y * as_floats((__builtin_convertvector(n, Ints) + 127) << 23);
}
