// Products of rows of activations with a packed matrix: y = x W^T + b, or y += x W^T + b.
//
// A tile of up to ROWS rows and one panel of outputs stays in registers while a chunk of inputs is summed, in order;
// the sums of the chunks are added in order. So every output of a row is the same sequence of operations whatever the
// other rows are and however many: that is what makes the bits of a row independent of its batch.
#pragma once
#include <algorithm>
#include <array>

#include "weights.h"

constexpr long ROWS_AT_ONCE = 96;             // rows that share a panel while it is in the cache
constexpr long PANELS_AT_ONCE = 512 / WIDTH;  // panels whose sums stay in the cache from chunk to chunk

struct Output {
  float* y;
  long stride, width;  // numbers of a row, and how many of the panel's outputs are wanted
  const float* bias;   // null: none
  bool add;            // to what y holds
};

// What a tile asks for from memory while it computes: `words` of every block of the next panel, `stride` words apart.
struct Ahead {
  const uint32_t* panel;
  long words, stride;
};

template <class F, int R>
static void tile(const float* x, long stride, long depth, const uint32_t* panel, Ahead ahead, const Output& out) {
  Vec sums[R][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) sums[r][v] = Vec{};
  F weights;
  for (long k0 = 0; k0 < depth; k0 += BLOCK, x += BLOCK) {
    weights.enter(panel);
    panel += F::SCALES * WIDTH;
    for (long word = 0; word < ahead.words; word += 16) __builtin_prefetch(ahead.panel + word, 0, 2);
    ahead.panel += ahead.stride;
    const long count = std::min(BLOCK, depth - k0);
    for (long k = 0; k < count; k += F::PACKED, panel += WIDTH) {
      Ints words[VECTORS];
      for (int v = 0; v < VECTORS; v++) words[v] = load<Ints>(panel + v * W);
#pragma GCC unroll 8
      for (int place = 0; place < F::PACKED; place++) {
        Vec w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = weights.at(words[v], place, v);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
          for (int v = 0; v < VECTORS; v++) sums[r][v] = fma(all(x[r * stride + k + place]), w[v], sums[r][v]);
      }
    }
    panel += (BLOCK - count) / F::PACKED * WIDTH;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      float* y = out.y + r * out.stride + v * W;
      Vec sum = sums[r][v];
      if (out.width >= WIDTH) {
        if (out.add) sum = load(y) + sum;
        if (out.bias) sum = sum + load(out.bias + v * W);
        store(y, sum);
      } else if (const long left = out.width - v * W; left > 0) {
        if (out.add) sum = load_first(y, left) + sum;
        if (out.bias) sum = sum + load(out.bias + v * W);
        store_first(y, sum, left);
      }
    }
}

typedef void (*Tile)(const float*, long, long, const uint32_t*, Ahead, const Output&);
template <class F, int... R>
constexpr std::array<Tile, ROWS + 1> tiles(std::integer_sequence<int, R...>) {
  return {nullptr, &tile<F, R + 1>...};
}
template <class F>
static const std::array<Tile, ROWS + 1> TILES = tiles<F>(std::make_integer_sequence<int, ROWS>{});

// A panel's chunk as float32, once for all tiles that read it.
template <class F>
static void widen_panel(const uint32_t* panel, long depth, float* to) {
  F weights;
  for (long k0 = 0; k0 < depth; k0 += BLOCK) {
    weights.enter(panel);
    panel += F::SCALES * WIDTH;
    for (long k = 0; k < BLOCK; k += F::PACKED, panel += WIDTH)
#pragma GCC unroll 8
      for (int place = 0; place < F::PACKED; place++, to += WIDTH)
        for (int v = 0; v < VECTORS; v++) store(to + v * W, weights.at(load<Ints>(panel + v * W), place, v));
  }
}

// One chunk of one panel, for all rows that share it.
template <class F>
static void panel_product(const float* x, long stride, long rows, long depth, const uint32_t* panel,
                          const uint32_t* next, Output out) {
  alignas(64) static thread_local float widened[DEPTH * WIDTH];
  const long passes = (rows + ROWS - 1) / ROWS;
  auto run = &TILES<F>;
  if (passes > 2 && !std::is_same_v<F, Float32>) {
    widen_panel<F>(panel, depth, widened);
    panel = (const uint32_t*)widened;
    run = &TILES<Float32>;
  }
  // A single pass reads in order, which the processor foresees; asking as well would only get in its way.
  const long share = passes == 1 ? 0 : (WORDS<F> * WIDTH / 16 + passes - 1) / passes * 16;
  for (long pass = passes; pass; pass--) {
    const long count = (rows + pass - 1) / pass;
    (*run)[count](x, stride, depth, panel, {next + (passes - pass) * share, share, WORDS<F> * WIDTH}, out);
    x += count * stride, out.y += count * out.stride, rows -= count;
  }
}

// The share of `thread` in y (rows, width of W's outputs); panels are independent, so any split gives the same bits.
static void product(const Matrix& w, const float* x, long x_stride, float* y, long y_stride, long rows, long width,
                    bool add, int thread, int threads) {
  const long panels = w.outputs / WIDTH, from = panels * thread / threads, to = panels * (thread + 1) / threads;
  for (long m = 0; m < rows; m += ROWS_AT_ONCE)
    for (long group = from; group < to; group += PANELS_AT_ONCE)
      for (long k = 0; k < w.inputs; k += DEPTH)
        for (long n = group; n < std::min(group + PANELS_AT_ONCE, to); n++) {
          const long count = std::min(ROWS_AT_ONCE, rows - m), depth = std::min(DEPTH, w.inputs - k);
          const float* bias = w.bias.empty() || k ? nullptr : &w.bias[n * WIDTH];
          const Output out{y + m * y_stride + n * WIDTH, y_stride, width - n * WIDTH, bias, add || k};
          const uint32_t *panel = w.panel(k, n), *next = panel + Matrix::blocks(depth) * w.block_words;
          const float* from_x = x + m * x_stride + k;
          switch (w.format) {
            case FLOAT32:
              panel_product<Float32>(from_x, x_stride, count, depth, panel, next, out);
              break;
            case BFLOAT16:
              panel_product<BFloat16>(from_x, x_stride, count, depth, panel, next, out);
              break;
            case FLOAT16:
              panel_product<Float16>(from_x, x_stride, count, depth, panel, next, out);
              break;
            case Q8_0:
              panel_product<Q80>(from_x, x_stride, count, depth, panel, next, out);
              break;
            case Q4_1:
              panel_product<Q41>(from_x, x_stride, count, depth, panel, next, out);
              break;
          }
        }
}
