// A weight matrix packed for products, in the smallest format that gives back its numbers bit for bit.
//
// Outputs are cut into panels of WIDTH and inputs into chunks of DEPTH. Within a chunk and panel, numbers are stored
// input by input, so that a product reads everything in order. Formats: float32; bfloat16 and float16, if every number
// of the matrix is one; and GGUF's blocks of 32 inputs, q8_0 (d q) and q4_1 (d q + m), if every block is found to be
// the dequantised form of one. Products widen the numbers in registers, so that their bits do not depend on the format.
#pragma once
#include <cstdlib>
#include <memory>
#include <vector>

#include "vectors.h"

constexpr long WIDTH = VECTORS * W, BLOCK = 32, DEPTH = 256;
static_assert(DEPTH % BLOCK == 0);

template <class To, class From>
INLINE To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// float16 (the low half of each word) to float32: exponents are moved; subnormals get a leading bit, and lose it again.
INLINE Vec widen(Ints h) {
  const Ints magnitude = (h & 0x7fff) << 13;
  const Vec normal = as_floats(magnitude + (112 << 23)), small = as_floats(magnitude + (113 << 23)) - 0x1p-14f;
  return as_floats(as_ints((h & 0x7c00) ? normal : small) | (h & 0x8000) << 16);
}
static float widened(uint16_t h) { return widen(Ints{h})[0]; }

// The float16 that equals x, if there is one; otherwise one near it.
static uint16_t narrow(float x) {
  const uint32_t b = same_bits<uint32_t>(x), sign = b >> 16 & 0x8000;
  const int exponent = (int)(b >> 23 & 255) - 112;
  if (exponent > 30) return sign | 0x7bff;
  if (exponent > 0) return sign | exponent << 10 | (b >> 13 & 0x3ff);
  return sign | (uint16_t)(std::fabs(x) * 0x1p24f);
}

// A block is BLOCK inputs of a panel: maybe words of scales, then words of numbers, each row of words one per output. A
// word holds PACKED consecutive inputs, the first in its low bits. Each format reads a block (`enter`; then `at` of an
// input's word and its place in it) and packs one output's numbers as column `at`; `pack` returns whether they are
// given back bit for bit.
struct Float32 {
  static constexpr long PACKED = 1, SCALES = 0;
  FORCED void enter(const uint32_t*) {}
  FORCED Vec at(Ints word, int, int) const { return as_floats(word); }
  static bool pack(const float* w, long count, uint32_t* column) {
    for (long k = 0; k < count; k++) column[k * WIDTH] = same_bits<uint32_t>(w[k]);
    return true;
  }
};

struct BFloat16 {
  static constexpr long PACKED = 2, SCALES = 0;
  FORCED void enter(const uint32_t*) {}
  FORCED Vec at(Ints word, int place, int) const { return as_floats(place ? word & (int)0xffff0000 : word << 16); }
  static bool pack(const float* w, long count, uint32_t* column) {
    uint32_t lost = count % PACKED;
    for (long k = 0; k + 1 < count; k += 2) {
      const uint32_t low = same_bits<uint32_t>(w[k]), high = same_bits<uint32_t>(w[k + 1]);
      column[k / 2 * WIDTH] = low >> 16 | (high & 0xffff0000);
      lost |= (low | high) & 0xffff;
    }
    return !lost;
  }
};

struct Float16 {
  static constexpr long PACKED = 2, SCALES = 0;
  FORCED void enter(const uint32_t*) {}
  FORCED Vec at(Ints word, int place, int) const { return widen(place ? word >> 16 & 0xffff : word); }
  static bool pack(const float* w, long count, uint32_t* column) {
    bool same = count % PACKED == 0;
    for (long k = 0; k < count && same; k++) {
      const uint16_t h = narrow(w[k]);
      column[k / 2 * WIDTH] |= (uint32_t)h << k % 2 * 16;
      same = same_bits<uint32_t>(widened(h)) == same_bits<uint32_t>(w[k]);
    }
    return same;
  }
};

struct Q80 {  // a scale d per output, then signed bytes q
  static constexpr long PACKED = 4, SCALES = 1;
  Vec d[VECTORS];
  FORCED void enter(const uint32_t* block) {
    for (int v = 0; v < VECTORS; v++) d[v] = load(block + v * W);
  }
  FORCED Vec at(Ints word, int place, int v) const {
    return d[v] * __builtin_convertvector(word << (24 - 8 * place) >> 24, Vec);
  }
  static bool pack(const float* w, long count, uint32_t* column) {
    float top = 0;
    for (long k = 0; k < count; k++) top = std::fmax(top, std::fabs(w[k]));
    const float d = widened(narrow(top / 127));  // the largest |q| of a block is 127
    column[0] = same_bits<uint32_t>(d);
    bool same = count == BLOCK;
    for (long k = 0; k < count && same; k++) {
      const float q = d ? std::nearbyint(w[k] / d) : 0;
      same = std::fabs(q) <= 127 && same_bits<uint32_t>(d * q) == same_bits<uint32_t>(w[k]);
      column[(1 + k / 4) * WIDTH] |= (uint32_t)(uint8_t)(int8_t)(same ? q : 0) << k % 4 * 8;
    }
    return same;
  }
};

struct Q41 {  // float16 scale d (low) and minimum m (high) per output, then half bytes q
  static constexpr long PACKED = 8, SCALES = 1;
  Vec d[VECTORS], m[VECTORS];
  FORCED void enter(const uint32_t* block) {
    for (int v = 0; v < VECTORS; v++) {
      const Ints both = load<Ints>(block + v * W);
      d[v] = widen(both), m[v] = widen(both >> 16 & 0xffff);
    }
  }
  FORCED Vec at(Ints word, int place, int v) const {
    return fma(d[v], __builtin_convertvector(word >> 4 * place & 15, Vec),
               m[v]);  // d q is exact: rounded once, as d * q + m
  }
  static bool pack(const float* w, long count, uint32_t* column) {
    if (count < BLOCK) return false;
    float low = w[0], high = w[0];
    for (long k = 0; k < BLOCK; k++) low = std::fmin(low, w[k]), high = std::fmax(high, w[k]);
    const uint16_t near = narrow((high - low) / 15);  // a block's q reach from 0 to 15
    for (int step : {0, 1, -1, 2, -2})                // high - low was rounded
      if (near + step >= 0 && near + step <= 0x7bff && try_scale(w, near + step, narrow(low), column)) return true;
    return false;
  }
  static bool try_scale(const float* w, uint16_t scale, uint16_t minimum, uint32_t* column) {
    const float d = widened(scale), m = widened(minimum);
    column[0] = scale | (uint32_t)minimum << 16;
    for (long k = 0; k < BLOCK; k++) {
      const float q = d ? std::nearbyint((w[k] - m) / d) : 0;
      if (!(q >= 0 && q <= 15) || same_bits<uint32_t>(d * q + m) != same_bits<uint32_t>(w[k])) return false;
      uint32_t& word = column[(1 + k / 8) * WIDTH];
      word = (k % 8 ? word : 0) | (uint32_t)q << k % 8 * 4;
    }
    return true;
  }
};

// Words of a block per output.
template <class F>
constexpr long WORDS = F::SCALES + BLOCK / F::PACKED;

enum Format { FLOAT32, BFLOAT16, FLOAT16, Q8_0, Q4_1 };

struct Part {  // rows of a joined matrix, as torch stores them, and their biases or null
  const float *weight, *bias;
  int64_t rows;
};

struct Matrix {
  long inputs, outputs = 0;  // each part's outputs are padded to whole panels
  std::vector<long> starts;  // the first output of each part
  std::vector<float> bias;   // empty if no part has one
  std::unique_ptr<uint32_t, void (*)(void*)> data{nullptr, std::free};
  Format format = FLOAT32;
  long block_words = 0, size = 0;  // words of a block, and bytes of all

  Matrix(const Part* parts, long count, long inputs) : inputs(inputs) {
    bool biased = false;
    for (long i = 0; i < count; i++) {
      starts.push_back(outputs);
      outputs += (parts[i].rows + WIDTH - 1) / WIDTH * WIDTH;
      biased |= parts[i].bias != nullptr;
    }
    if (biased) {
      bias.assign(outputs, 0);
      for (long i = 0; i < count; i++)
        if (parts[i].bias) std::memcpy(&bias[starts[i]], parts[i].bias, 4 * parts[i].rows);
    }
    if (!(pack<Q41>(parts, Q4_1) || pack<Q80>(parts, Q8_0) || pack<BFloat16>(parts, BFLOAT16) ||
          pack<Float16>(parts, FLOAT16)))
      pack<Float32>(parts, FLOAT32);
  }

  static long blocks(long inputs) { return (inputs + BLOCK - 1) / BLOCK; }

  // The panel n of the chunk that begins at input k0, a multiple of DEPTH.
  const uint32_t* panel(long k0, long n) const {
    const long depth = inputs - k0 < DEPTH ? inputs - k0 : DEPTH;
    return data.get() + (k0 / BLOCK * (outputs / WIDTH) + n * blocks(depth)) * block_words;
  }

  template <class F>
  bool pack(const Part* parts, Format as) {
    format = as, block_words = WORDS<F> * WIDTH;
    size = 4 * blocks(inputs) * (outputs / WIDTH) * block_words;
    data.reset((uint32_t*)std::aligned_alloc(64, (size + 63) / 64 * 64));
    if (!data) throw std::bad_alloc();
    std::memset(data.get(), 0, size);
    for (size_t i = 0; i < starts.size(); i++)
      for (long row = 0; row < parts[i].rows; row++)
        for (long k = 0; k < inputs; k += BLOCK) {
          const long output = starts[i] + row, count = inputs - k < BLOCK ? inputs - k : BLOCK;
          const uint32_t* block = panel(k / DEPTH * DEPTH, output / WIDTH) + k % DEPTH / BLOCK * block_words;
          if (!F::pack(parts[i].weight + row * inputs + k, count, (uint32_t*)block + output % WIDTH)) return false;
        }
    return true;
  }
};
