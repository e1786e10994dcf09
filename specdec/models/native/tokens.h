// The tokens of a forward, and the columns that each of them sees, from what Python gave; every index is checked here.
#pragma once
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "attention.h"

struct Prefix {         // columns that rows read before their own
  const float* cache;  // (2 x layers, 1, key heads, capacity, head size)
  int64_t capacity, start;  // start: the position of its first column
};

struct Batch {
  int64_t rows, width, columns;   // width: tokens of a row; columns: the queries read these of the storage
  const int64_t* ids;             // (rows, width), or null where there are
  const float* embedded;          // (rows, width, hidden)
  const uint8_t* real;            // (rows, width): the others are padding; null: all are real
  const int64_t *slots, *starts;  // a row's token t is stored in column starts[b] + t of its slot
  const int64_t* positions;       // (rows, width), or null: the token's column, counted from the first shared one
  const uint8_t* mask;            // (rows, width, shared + columns), or null: a token sees all columns up to its own
  float* cache;                   // (2 x layers, slots, key heads, capacity, head size)
  int64_t num_slots, capacity;
  const float *cosines, *sines;  // (num_positions, head size)
  int64_t num_positions;
  const Prefix* prefixes;  // null: rows share nothing
  int64_t num_prefixes, levels, shared;  // shared: the most columns that a row reads of prefixes
  const int64_t* paths;           // (rows, levels): the prefixes that a row reads, in order; -1: no more
  const int64_t* prefix_lengths;  // (rows): how many columns it reads of them all
};

static thread_local char message[160];
template <class... A>
static int refuse(const char* format, A... values) {
  std::snprintf(message, sizeof message, format, values...);
  return 1;
}

struct Token {
  long row, place, column, position;  // place: among the rows x width tokens
  Seen seen;                          // of its row's own columns
};

class Tokens {
 public:
  std::vector<Token> all;
  long longest = 0;  // columns that any token sees

  // Lists the tokens, after checking every index that Python gave.
  int list(const Batch& b, long vocab) {
    for (long row = 0; row < b.rows; row++) {
      const long start = b.starts[row], slot = b.slots[row];
      if (slot < 0 || slot >= b.num_slots) return refuse("row %ld is in slot %ld of %ld", row, slot, (long)b.num_slots);
      if (start < 0 || start > b.columns - b.width || b.columns > b.capacity)
        return refuse("row %ld writes columns %ld to %ld of %ld", row, start, start + (long)b.width,
                      (long)std::min(b.columns, b.capacity));
      if (int refused = check_path(b, row)) return refused;
    }
    shared.resize(b.prefixes ? b.shared : 0);
    std::iota(shared.begin(), shared.end(), 0);
    std::vector<long> rows(b.rows);  // those that share prefixes follow each other
    std::iota(rows.begin(), rows.end(), 0);
    std::stable_sort(rows.begin(), rows.end(), [&](long i, long j) {
      long l = 0;
      while (l < levels_of(b) - 1 && prefix_of(b, i, l) == prefix_of(b, j, l)) l++;
      return l < levels_of(b) && prefix_of(b, i, l) < prefix_of(b, j, l);
    });
    if (!b.mask) {
      columns.resize(b.columns);
      for (long s = 0; s < b.columns; s++) columns[s] = s;
    }
    std::vector<size_t> offsets;
    for (long row : rows)
      for (long t = 0; t < b.width; t++) {
        if (b.real && !b.real[row * b.width + t]) continue;
        const long place = row * b.width + t, column = b.starts[row] + t, before = before_of(b, row),
                   position = b.positions ? b.positions[place] : before + column;
        if (b.ids && (b.ids[place] < 0 || b.ids[place] >= vocab))
          return refuse("token %ld is not among %ld", (long)b.ids[place], (long)vocab);
        if (position < 0 || position >= b.num_positions)
          return refuse("position %ld is not below %ld", position, (long)b.num_positions);
        const bool follows = !all.empty() && all.back().row == row;
        all.push_back({row, place, column, position, {nullptr, column + 1}});
        offsets.push_back(b.mask ? see(b, place, all.back().seen.count, follows ? offsets.back() : columns.size()) : 0);
      }
    for (size_t m = 0; m < all.size(); m++) {
      all[m].seen.columns = columns.data() + offsets[m];
      longest = std::max(longest, before_of(b, all[m].row) + all[m].seen.count);
    }
    return 0;
  }

  static long levels_of(const Batch& b) { return b.prefixes ? b.levels : 0; }

  // The prefix that a row reads at a level, or -1.
  static long prefix_of(const Batch& b, long row, long level) {
    return level < levels_of(b) && before_of(b, row) ? b.paths[row * b.levels + level] : -1;
  }

  // The columns that a row sees of the prefix at a level: up to where the next one starts.
  Seen before(const Batch& b, long row, long level) const {
    const long prefix = prefix_of(b, row, level);
    return {shared.data(), prefix < 0 ? 0 : end_of(b, row, level) - (long)b.prefixes[prefix].start};
  }

 private:
  static long before_of(const Batch& b, long row) { return b.prefixes ? b.prefix_lengths[row] : 0; }

  static long end_of(const Batch& b, long row, long level) {
    const long next = prefix_of(b, row, level + 1);
    return next < 0 ? before_of(b, row) : (long)b.prefixes[next].start;
  }

  // Rows read a prefix after the same number of columns, because that is its own: work space is made for that.
  static int check_path(const Batch& b, long row) {
    const long total = before_of(b, row);
    if (total < 0 || total > b.shared) return refuse("row %ld shares %ld of %ld columns", row, total, (long)b.shared);
    for (long level = 0; total && (!level || prefix_of(b, row, level) >= 0); level++) {
      const long prefix = prefix_of(b, row, level), next = prefix_of(b, row, level + 1);
      if (prefix < 0 || prefix >= b.num_prefixes || next >= b.num_prefixes)
        return refuse("row %ld shares %ld columns of prefix %ld", row, total, prefix < 0 ? prefix : std::max(prefix, next));
      const Prefix& from = b.prefixes[prefix];
      const long count = end_of(b, row, level) - from.start;
      if ((!level && from.start) || from.start < 0 || count < 1 || count > from.capacity)
        return refuse("row %ld shares %ld columns of prefix %ld", row, count, prefix);
    }
    return 0;
  }

  // Appends the columns that a query sees; if they continue the list of its row's query before it, only what is new.
  size_t see(const Batch& b, long place, long& count, size_t before) {
    const uint8_t* mask = b.mask + place * (b.shared + b.columns) + b.shared;
    std::vector<int32_t> seen;
    for (long s = 0; s < b.columns; s++)
      if (mask[s]) seen.push_back(s);
    count = seen.size();
    const size_t known = columns.size() - before;
    if (known && known <= seen.size() && std::equal(columns.begin() + before, columns.end(), seen.begin())) {
      columns.insert(columns.end(), seen.begin() + known, seen.end());
      return before;
    }
    columns.insert(columns.end(), seen.begin(), seen.end());
    return columns.size() - seen.size();
  }

  std::vector<int32_t> columns, shared;
};
