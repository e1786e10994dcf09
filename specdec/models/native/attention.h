// Softmax attention of queries over the columns of their row's cache that each of them sees.
//
// What a query sees is a list of columns in order of position, so that padding, holes, rejected tokens and other
// branches of a tree are never read: scores are computed in groups of W list entries, the softmax and the sum of values
// go through the list in order. A query's bits thus follow from its own keys and values, wherever they are stored.
// (Scores are kept in full rather than rescaled as an online softmax does: one fixed maximum, one rounding less.)
#pragma once
#include <algorithm>
#include <cmath>

#include "vectors.h"

constexpr long KEYS = 64;       // list entries that are read for all queries of an item before the next ones
constexpr long QUERIES = 32;    // queries of an item, at most (at least one token's)
constexpr long AHEAD = 16;      // list entries between what is read and what is asked for from memory
constexpr long CHUNK = 64 / W;  // vectors of an output that are summed in registers

struct Seen {
  const int32_t* columns;
  long count;
};

// Asks for list entries [first, last), one number per cache line.
INLINE void fetch(const float* from, long stride, long E, Seen seen, long first, long last) {
  for (long t = first; t < last && t < seen.count; t++)
    for (long e = 0; e < E; e += 16) __builtin_prefetch(from + seen.columns[t] * stride + e);
}

// Scores of list entries [first, last) for one query of E numbers; keys lie E numbers apart per column.
static void scores(const float* query, long E, const float* keys, Seen seen, long first, long last, float scale,
                   bool cold, float* out) {
  for (long t = first; t < last; t += W) {
    const float* key[W];
    for (long u = 0; u < W; u++) key[u] = keys + seen.columns[std::min(t + u, last - 1)] * E;
    if (cold) fetch(keys, E, E, seen, t + AHEAD, t + AHEAD + W);
    Vec dots[W] = {};
    long e = 0;
    for (; e + W <= E; e += W) {
      const Vec q = load(query + e);
#pragma GCC unroll 16
      for (int u = 0; u < W; u++) dots[u] = fma(q, load(key[u] + e), dots[u]);
    }
    if (e < E)
      for (int u = 0; u < W; u++) dots[u] = fma(load_first(query + e, E - e), load_first(key[u] + e, E - e), dots[u]);
    store(out + t, sums(dots) * all(scale));  // out has room for whole groups
  }
}

// Exponentials of the scores less their maximum, in place; returns one over their sum.
static float softmax(float* scores, long count) {
  float top = scores[0];
  for (long t = 1; t < count; t++) top = scores[t] > top ? scores[t] : top;
  Vec total{};
  for (long t = 0; t < count; t += W) {
    Vec e = exp(load(scores + t) - all(top));
    if (t + W > count)
      for (long u = count - t; u < W; u++) e[u] = 0;
    store(scores + t, e);
    total = total + e;
  }
  return 1.0f / sum(total);
}

// out += weights x values over list entries [first, last), for `vectors` vectors of E numbers from e on.
template <int C>
static void mix(const float* weights, long E, const float* values, Seen seen, long first, long last, bool cold,
                float* out, long e) {
  Vec total[C];
  const long left = E - e;
  const bool whole = left >= C * W;
  for (int c = 0; c < C; c++) total[c] = whole ? load(out + e + c * W) : load_first(out + e, left);
  for (long t = first; t < last; t++) {
    const float* value = values + seen.columns[t] * E + e;
    if (cold) fetch(values + e, E, std::min(left, C * (long)W), seen, t + AHEAD, t + AHEAD + 1);
    const Vec weight = all(weights[t]);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) total[c] = fma(weight, whole ? load(value + c * W) : load_first(value, left), total[c]);
  }
  for (int c = 0; c < C; c++) whole ? store(out + e + c * W, total[c]) : store_first(out + e, total[c], left);
}

static void add_values(const float* weights, long E, const float* values, Seen seen, long first, long last, bool cold,
                       float* out) {
  long e = 0;
  for (; e + CHUNK * W <= E; e += CHUNK * W) mix<CHUNK>(weights, E, values, seen, first, last, cold, out, e);
  for (; e < E; e += W) mix<1>(weights, E, values, seen, first, last, cold, out, e);
}

struct Queries {  // of one row and key head: `groups` heads of `tokens` tokens
  float* q;       // the first token's; results take their place
  long stride;    // to the next token's
  const Seen* seen;
  long tokens, groups;
};

static void attend(Queries of, long E, const float* keys, const float* values, float scale, float* work,
                   long work_stride) {
  long longest = 0;
  for (long i = 0; i < of.tokens; i++) longest = std::max(longest, of.seen[i].count);
  for (long t = 0; t < longest; t += KEYS)
    for (long i = 0; i < of.tokens; i++)
      for (long g = 0; g < of.groups && t < of.seen[i].count; g++)
        scores(of.q + i * of.stride + g * E, E, keys, of.seen[i], t, std::min(t + KEYS, of.seen[i].count), scale,
               !i && !g, work + (i * of.groups + g) * work_stride);
  for (long i = 0; i < of.tokens; i++)
    for (long g = 0; g < of.groups; g++) {
      float *weights = work + (i * of.groups + g) * work_stride, *out = of.q + i * of.stride + g * E;
      if (of.seen[i].count) weights[work_stride - 1] = softmax(weights, of.seen[i].count);
      std::memset(out, 0, 4 * E);
    }
  for (long t = 0; t < longest; t += KEYS)
    for (long i = 0; i < of.tokens; i++)
      for (long g = 0; g < of.groups && t < of.seen[i].count; g++)
        add_values(work + (i * of.groups + g) * work_stride, E, values, of.seen[i], t,
                   std::min(t + KEYS, of.seen[i].count), !i && !g, of.q + i * of.stride + g * E);
  for (long i = 0; i < of.tokens; i++)
    for (long g = 0; g < of.groups && of.seen[i].count; g++) {
      float* out = of.q + i * of.stride + g * E;
      const float scale = work[(i * of.groups + g) * work_stride + work_stride - 1];
      for (long e = 0; e < E; e++) out[e] *= scale;
    }
}
