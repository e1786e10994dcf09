// Softmax attention of queries over the columns of their row's cache that each of them sees.
//
// What a query sees is a list of columns in order of position, so that padding, holes, rejected tokens and other
// branches of a tree are never read: scores are computed in groups of W list entries, the softmax and the sum of values
// go through the list in order. A query's bits thus follow from its own keys and values, wherever they are stored.
// A list lies in parts: columns that rows share, one part for each level, then the row's own. Queries whose lists have a
// part in common are served together, part by part, in the order that a row alone has: sharing changes no bit either.
// (Scores are kept in full rather than rescaled as an online softmax does: one fixed maximum, one rounding less.)
#pragma once
#include <algorithm>
#include <cmath>

#include "vectors.h"

constexpr long KEYS = 64;       // list entries that are read for all queries of an item before the next ones
constexpr long QUERIES = 32;    // queries that go through the list together, at most
constexpr long AHEAD = 16;      // list entries between what is read and what is asked for from memory
constexpr long CHUNK = 64 / W;  // vectors of an output that are summed in registers; half of them for several queries
constexpr long MANY = W == 16 ? 8 : 2;  // queries whose outputs are summed in registers
constexpr long WIDEST = 256;            // numbers of a key that is turned

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
  Vec tops = all(scores[0]);
  long first = 0;
  for (; first + W <= count; first += W) tops = largest(load(scores + first), tops);
  float top = tops[0];
  for (int u = 1; u < W; u++) top = tops[u] > top ? tops[u] : top;
  for (; first < count; first++) top = scores[first] > top ? scores[first] : top;
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

// The same scores, bit for bit, of Q queries that see one list: `turned` holds E vectors of W keys' numbers each.
template <int Q>
static void scores(const float* const* query, long E, const Vec* turned, float scale, float* const* out, long t) {
  constexpr int HALF = W / 2;  // sums at a time, so that those of all queries stay in registers
  Vec half[2][Q];
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    Vec dots[Q][HALF];
#pragma GCC unroll 32
    for (int i = 0; i < Q * HALF; i++) dots[i / HALF][i % HALF] = Vec{};
    for (long e = h * HALF; e < E; e += W)
#pragma GCC unroll 8
      for (int u = 0; u < HALF; u++) {
        const Vec key = turned[e + u];
#pragma GCC unroll 4
        for (int n = 0; n < Q; n++) dots[n][u] = fma(all(query[n][e + u]), key, dots[n][u]);
      }
#pragma GCC unroll 4
    for (int n = 0; n < Q; n++) half[h][n] = tree<HALF>(dots[n]);
  }
  for (int n = 0; n < Q; n++) store(out[n] + t, (half[0][n] + half[1][n]) * all(scale));
}

// out += weights x values over list entries [first, last) for Q queries and C vectors of their E numbers from e on.
template <int Q, int C>
static void mix(const float* const* weights, long E, const float* values, Seen seen, long first, long last, bool cold,
                float* const* out, long e) {
  Vec total[Q][C];
  const long left = E - e;
  const bool whole = left >= C * W;
  for (int n = 0; n < Q; n++)
    for (int c = 0; c < C; c++) total[n][c] = whole ? load(out[n] + e + c * W) : load_first(out[n] + e, left);
  for (long t = first; t < last; t++) {
    const float* value = values + seen.columns[t] * E + e;
    if (cold) fetch(values + e, E, std::min(left, C * (long)W), seen, t + AHEAD, t + AHEAD + 1);
#pragma GCC unroll 16
    for (int c = 0; c < C; c++) {
      const Vec v = whole ? load(value + c * W) : load_first(value, left);
      for (int n = 0; n < Q; n++) total[n][c] = fma(all(weights[n][t]), v, total[n][c]);
    }
  }
  for (int n = 0; n < Q; n++)
    for (int c = 0; c < C; c++)
      whole ? store(out[n] + e + c * W, total[n][c]) : store_first(out[n] + e, total[n][c], left);
}

template <int Q>
static void add_values(const float* const* weights, long E, const float* values, Seen seen, long first, long last,
                       bool cold, float* const* out) {
  constexpr int C = Q > 1 ? CHUNK / 2 : CHUNK;
  long e = 0;
  for (; e + C * W <= E; e += C * W) mix<Q, C>(weights, E, values, seen, first, last, cold, out, e);
  for (; e < E; e += W) mix<Q, 1>(weights, E, values, seen, first, last, cold, out, e);
}

// The entries of a query's list that lie in one place; no keys where its row reads nothing there.
struct SeenPart {
  Seen seen;
  const float *keys, *values;
};

struct Query {
  float* q;           // the result takes its place
  const SeenPart* parts;  // in the order of the list
};

// Writes the keys of list entries [t, t + W) with one vector per number; the last one stands for those past the list.
static void turn(const float* keys, long E, Seen seen, long t, Vec* turned) {
  for (long e = 0; e < E; e += W) {
    for (long u = 0; u < W; u++) turned[e + u] = load(keys + seen.columns[std::min(t + u, seen.count - 1)] * E + e);
    transpose(turned + e);
  }
}

// The entries of the lists of some queries that lie in one place; `weights` are of these entries.
class Segment {
 public:
  Segment(float* const* query, const Seen* seen, float* const* weights, long count, long E, const float* keys,
       const float* values)
      : query(query), seen(seen), weights(weights), count(count), E(E), keys(keys), values(values) {
    for (long n = 0; n < count; n++) {
      one_list = one_list && seen[n].columns == seen[0].columns;
      longest = seen[n].count > longest.count ? seen[n] : longest;
    }
  }

  void score(float scale) const {
    // Turning a block of keys pays if enough queries read it.
    const bool turns = one_list && E % W == 0 && E <= WIDEST && count * W >= 2 * E;
    for (long t = 0; t < longest.count; t += KEYS) {
      if (turns)
        score_turned(t, scale);
      else
        for (long n = 0; n < count; n++)
          if (t < seen[n].count) scores(query[n], E, keys, seen[n], t, end(n, t), scale, !n, weights[n]);
    }
  }

  // Adds the values, by weight.
  void add() const {
    for (long t = 0; t < longest.count; t += KEYS)
      for (long n = 0, same; n < count; n += same) {  // queries that see one list to the same end are served together
        const long last = end(n, t);
        for (same = 1; one_list && n + same < count && end(n + same, t) == last;) same++;
        same = same >= MANY ? MANY : same >= 2 ? 2 : 1;
        if (t >= last) continue;
        const auto serve = same == MANY ? add_values<MANY> : same == 2 ? add_values<2> : add_values<1>;
        serve(weights + n, E, values, seen[n], t, last, !n, query + n);
      }
  }

 private:
  long end(long n, long t) const { return std::min(t + KEYS, seen[n].count); }

  void score_turned(long t, float scale) const {
    Vec turned[WIDEST];
    for (long last = std::min(t + KEYS, longest.count); t < last; t += W) {
      fetch(keys, E, E, longest, t + AHEAD, t + AHEAD + W);
      turn(keys, E, longest, t, turned);
      long n = 0;
      for (; n + 3 <= count; n += 3) scores<3>(query + n, E, turned, scale, weights + n, t);
      for (; n < count; n++) scores<1>(query + n, E, turned, scale, weights + n, t);
    }
  }

  float* const* query;
  const Seen* seen;
  float* const* weights;
  long count, E;
  const float *keys, *values;
  Seen longest{nullptr, 0};
  bool one_list = true;
};

// Attention of at most QUERIES queries, which have as many parts each; neighbours whose parts lie in one place share them.
static void attend(const Query* of, long count, long num_parts, long E, float scale, float* work, long work_stride) {
  float *query[QUERIES], *weights[QUERIES], inverse[QUERIES];
  Seen seen[QUERIES];
  const auto of_segments = [&](const auto& visit) {  // in the order of the lists
    for (long n = 0; n < count; n++) weights[n] = work + n * work_stride;
    for (long p = 0; p < num_parts; p++) {
      for (long n = 0; n < count; n++) seen[n] = of[n].parts[p].seen;
      for (long n = 0, same; n < count; n += same) {
        const SeenPart& part = of[n].parts[p];
        for (same = 1; n + same < count && of[n + same].parts[p].keys == part.keys;) same++;
        if (part.keys) visit(Segment(query + n, seen + n, weights + n, same, E, part.keys, part.values));
      }
      for (long n = 0; n < count; n++) weights[n] += seen[n].count;
    }
  };
  for (long n = 0; n < count; n++) query[n] = of[n].q;
  of_segments([&](const Segment& segment) { segment.score(scale); });
  for (long n = 0; n < count; n++) {
    float* const all_of_it = work + n * work_stride;
    const long total = weights[n] - all_of_it;
    inverse[n] = total ? softmax(all_of_it, total) : 0;
    std::memset(query[n], 0, 4 * E);
  }
  of_segments([&](const Segment& segment) { segment.add(); });
  for (long n = 0; n < count; n++)
    for (long e = 0; e < E; e++) query[n][e] *= inverse[n];
}
