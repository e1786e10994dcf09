// The forward of a decoder of the Llama family over ragged rows, and the functions that Python calls.
//
// Rows have their own numbers of tokens, slots and columns; nothing is padded. Threads share the panels of a product
// and the (row, key head) pairs of attention: every number is computed whole by one thread, so their number changes no
// bit.
#include <new>

#include "barrier.h"
#include "product.h"
#include "tokens.h"
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

struct Layer {
  const Matrix *qkv, *out, *gate_up, *down;
  const float *norm_in, *norm_mlp, *norm_q, *norm_k;  // the last two may be null
  float eps_in, eps_mlp, eps_q, eps_k, scale;
  int64_t window;  // 0: none
};

struct Model {
  int64_t vocab, hidden, heads, key_heads, head_size, intermediate, num_layers;
  const Layer* layers;
  const float *embedding, *norm;  // (vocab, hidden), and the last norm's weight
  float eps;                      // of the last norm
  const Matrix* head;
};

// Memory that grows and is kept, so that its pages are not asked for at every forward.
struct Workspace {
  std::unique_ptr<float, void (*)(void*)> data{nullptr, std::free};
  size_t size = 0;
  float* of(size_t count) {
    if (count > size) {
      size = (count + count / 4 + 15) / 16 * 16;
      data.reset((float*)std::aligned_alloc(64, 4 * size));
      if (!data) {
        size = 0;
        throw std::bad_alloc();
      }
    }
#ifdef SPECDEC_POISON  // tests show that nothing is read before it is written
    std::fill_n(data.get(), size, std::nanf(""));
#endif
    return data.get();
  }
};

static void rms_norm(const float* x, const float* weight, long size, float eps, float* y) {
  Vec squares{};
  for (long d = 0; d < size; d += W) {
    const Vec v = load_first(x + d, size - d);
    squares = fma(v, v, squares);
  }
  const Vec scale = all(1.0f / std::sqrt(sum(squares) / (float)size + eps));
  for (long d = 0; d < size; d += W)
    store_first(y + d, load_first(x + d, size - d) * scale * load_first(weight + d, size - d), size - d);
}

// Halves (a, b) of a head become (a cos + b sin, b cos + a sin), where the sines of the first half are negative.
static void rotate(float* head, long E, const float* cosines, const float* sines) {
  for (long e = 0, half = E / 2; e < half; e++) {
    const float a = head[e], b = head[e + half];
    head[e] = std::fma(a, cosines[e], b * sines[e]);
    head[e + half] = std::fma(b, cosines[e + half], a * sines[e + half]);
  }
}

static void silu_product(float* gate, const float* up, long size) {
  for (long i = 0; i < size; i += W) {
    const Vec g = load_first(gate + i, size - i), u = load_first(up + i, size - i);
    store_first(gate + i, g / (all(1.0f) + exp(-g)) * u, size - i);
  }
}

// Rows are a multiple of the cache line apart, plus one line: strides of 4 KiB would share few sets of the L1 cache.
static long stride_of(long size) { return (size + 15) / 16 * 16 + 16; }

// What a forward gives for the last `count` tokens of each row: `stride` numbers each, zeros for padding.
struct Wanted {
  float *logits, *hidden;  // of the first token; null logits: not wanted
  const int64_t* numbers;  // whose inputs are the hidden states that are wanted, one after the other
  int64_t num_hidden, count, stride;  // the number of layers stands for what the last norm gives
};

class Forward {
 public:
  Forward(const Model& model, const Batch& batch, const Tokens& listed, int threads)
      : model(model), batch(batch), listed(listed), tokens(listed.all), longest(listed.longest), threads(threads) {}

  // Layers [first, last), then the last norm and the head; `states` (rows, width, hidden) gets what the layers give.
  void run(long first, long last, float* states, const Wanted& wanted) {
    const long M = tokens.size(), E = model.head_size;
    const long group = model.heads / model.key_heads, chunk = std::min<long>(M, 2 * ROWS_AT_ONCE);
    const long qkv = model.num_layers ? model.layers[0].qkv->outputs : 0, two = model.layers[0].gate_up->outputs;
    std::vector<const Token*> ends;
    for (const Token& token : tokens)
      if ((wanted.logits || wanted.num_hidden) && token.place % batch.width >= batch.width - wanted.count)
        ends.push_back(&token);
    const long num_ends = ends.size();
    // Nothing reads what the last layer makes of the other tokens: of a prompt it only stores keys and values.
    const bool ends_only = !states && first < last && last == model.num_layers && num_ends < M;
    tokens_per_item = std::max<long>(1, QUERIES / group);
    work_stride = (longest + W - 1) / W * W + 16;
    item_parts.resize(threads * tokens_per_item * num_parts);
    const long item_work = std::min<long>(tokens_per_item, M) * group * work_stride;
    static thread_local Workspace space;
    x_stride = stride_of(model.hidden);
    float* at = space.of(M * (x_stride + stride_of(model.heads * E)) + num_ends * x_stride +
                         chunk * (x_stride + stride_of(qkv) + stride_of(two)) + threads * item_work);
    float *x = at, *final = at += M * x_stride;
    at += num_ends * x_stride;
    q = at, q_stride = stride_of(model.heads * E), at += M * q_stride;
    normed = at, normed_stride = stride_of(model.hidden), at += chunk * normed_stride;
    joined = at, joined_stride = stride_of(qkv), at += chunk * joined_stride;
    gates = at, gates_stride = stride_of(two), at += chunk * gates_stride;
    for (const Token& token : tokens) add_item(token, all_items);
    for (const Token* token : ends) add_item(*token, end_items);
    std::vector<std::atomic<long>> next_item(last - first);  // of each layer, for whichever thread is free
    for (long m = 0; m < M; m++)
      std::memcpy(x + m * x_stride,
                  batch.ids ? model.embedding + batch.ids[tokens[m].place] * model.hidden
                            : batch.embedded + tokens[m].place * model.hidden,
                  4 * model.hidden);
#pragma omp parallel num_threads(threads)
    {
      const int thread = omp_get_thread_num();
#pragma omp single
      threads = omp_get_num_threads();  // there may be fewer than were asked for
      for (long l = first; l < last; l++) {
        for (long i = thread; i < num_ends; i += threads)
          give(l, *ends[i], x + (ends[i] - tokens.data()) * x_stride, wanted);
        for (long m = 0; m < M; m += chunk) project(l, x + m * x_stride, m, std::min(chunk, M - m), thread);
        const bool some = ends_only && l == last - 1;
        const std::vector<Item>& items = some ? end_items : all_items;
        for (long i; (i = next_item[l - first].fetch_add(1)) < (long)items.size();)
          attend_item(l, items[i], at + thread * item_work, item_parts.data() + thread * tokens_per_item * num_parts);
        barrier.wait(threads);
        if (some && thread == 0) gather_ends(ends, x);
        if (some) barrier.wait(threads);
        const long count = some ? num_ends : M;
        for (long m = 0; m < count; m += chunk) finish(l, x + m * x_stride, m, std::min(chunk, count - m), thread);
      }
      for (long i = thread; i < num_ends; i += threads)
        rms_norm(x + (ends_only ? i : ends[i] - tokens.data()) * x_stride, model.norm, model.hidden, model.eps,
                 final + i * x_stride);
      for (long i = thread; i < num_ends; i += threads)
        give(model.num_layers, *ends[i], final + i * x_stride, wanted);
      barrier.wait(threads);
      if (wanted.logits) head(final, ends, wanted, thread);
      barrier.wait(threads);
    }
    if (states)
      for (long m = 0; m < M; m++)
        std::memcpy(states + tokens[m].place * model.hidden, x + m * x_stride, 4 * model.hidden);
  }

 private:
  long output_of(const Token& token, const Wanted& wanted) const {
    return token.row * wanted.count + token.place % batch.width - (batch.width - wanted.count);
  }

  // Copy a token's hidden states to where those of this number are wanted.
  void give(long number, const Token& token, const float* x, const Wanted& wanted) const {
    for (long k = 0; k < wanted.num_hidden; k++)
      if (wanted.numbers[k] == number)
        std::memcpy(wanted.hidden + output_of(token, wanted) * wanted.stride + k * model.hidden, x, 4 * model.hidden);
  }

  // Logits of the tokens at the ends of rows; those that are consecutive in the output are one product.
  void head(const float* x, const std::vector<const Token*>& ends, const Wanted& wanted, int thread) {
    for (size_t i = 0, next; i < ends.size(); i = next) {
      const long place = output_of(*ends[i], wanted);
      for (next = i + 1; next < ends.size() && output_of(*ends[next], wanted) == place + (long)(next - i);) next++;
      product(*model.head, x + i * x_stride, x_stride, wanted.logits + place * wanted.stride, wanted.stride, next - i,
              model.vocab, false, thread, threads);
    }
  }

  struct Item {
    long token, count, key_head;
  };

  long first_prefix(const Token& token) const { return Tokens::prefix_of(batch, token.row, 0); }

  // An item is a few consecutive tokens of one row, or of rows that share their first prefix, for one key head: the
  // token joins the last items, or begins others.
  void add_item(const Token& token, std::vector<Item>& items) const {
    const long m = &token - tokens.data(), J = model.key_heads;
    if (!items.empty() && items.back().token + items.back().count == m && items.back().count < tokens_per_item &&
        (tokens[m - 1].row == token.row ||
         (first_prefix(token) >= 0 && first_prefix(tokens[m - 1]) == first_prefix(token)))) {
      for (long j = 0; j < J; j++) items[items.size() - J + j].count++;
    } else {
      for (long j = 0; j < J; j++) items.push_back({m, 1, j});
    }
  }

  // Move the hidden states and attention outputs of the ends to the front, in order.
  void gather_ends(const std::vector<const Token*>& ends, float* x) const {
    for (size_t i = 0; i < ends.size(); i++) {
      const long m = ends[i] - tokens.data();
      std::memmove(x + i * x_stride, x + m * x_stride, 4 * model.hidden);
      std::memmove(q + i * q_stride, q + m * q_stride, 4 * model.heads * model.head_size);
    }
  }

  float* cached(long part, long row, long head) const {
    const long place = (part * batch.num_slots + batch.slots[row]) * model.key_heads + head;
    return batch.cache + place * batch.capacity * model.head_size;
  }

  // Queries, keys and values of `count` tokens from m on: rotated, the latter two stored.
  void project(long l, const float* x, long m, long count, int thread) {
    const Layer& layer = model.layers[l];
    const long E = model.head_size;
    norm_rows(x, layer.norm_in, layer.eps_in, count, thread);
    product(*layer.qkv, normed, normed_stride, joined, joined_stride, count, layer.qkv->outputs, false, thread,
            threads);
    barrier.wait(threads);
    for (long i = thread; i < count; i += threads) {
      const Token& token = tokens[m + i];
      const float *cosines = batch.cosines + token.position * E, *sines = batch.sines + token.position * E;
      float *own = joined + i * joined_stride, *keys = own + layer.qkv->starts[1], *values = own + layer.qkv->starts[2];
      for (long h = 0; h < model.heads; h++) {
        if (layer.norm_q) rms_norm(own + h * E, layer.norm_q, E, layer.eps_q, own + h * E);
        rotate(own + h * E, E, cosines, sines);
      }
      std::memcpy(q + (m + i) * q_stride, own, 4 * model.heads * E);
      for (long j = 0; j < model.key_heads; j++) {
        if (layer.norm_k) rms_norm(keys + j * E, layer.norm_k, E, layer.eps_k, keys + j * E);
        rotate(keys + j * E, E, cosines, sines);
        std::memcpy(cached(2 * l, token.row, j) + token.column * E, keys + j * E, 4 * E);
        std::memcpy(cached(2 * l + 1, token.row, j) + token.column * E, values + j * E, 4 * E);
      }
    }
    barrier.wait(threads);
  }

  // What a token's queries of one key head see, within the window, in the order of their lists.
  void see(long l, const Token& token, long key_head, SeenPart* parts) const {
    const long E = model.head_size, J = model.key_heads, window = model.layers[l].window;
    long seen = token.seen.count;
    for (long level = 0; level < num_parts - 1; level++) {
      const long prefix = Tokens::prefix_of(batch, token.row, level);
      parts[level] = {listed.before(batch, token.row, level), nullptr, nullptr};
      if (prefix < 0) continue;
      const Prefix& from = batch.prefixes[prefix];
      parts[level].keys = from.cache + (2 * l * J + key_head) * from.capacity * E;
      parts[level].values = from.cache + ((2 * l + 1) * J + key_head) * from.capacity * E;
      seen += parts[level].seen.count;
    }
    parts[num_parts - 1] = {token.seen, cached(2 * l, token.row, key_head), cached(2 * l + 1, token.row, key_head)};
    long outside = window ? std::max<long>(seen - window, 0) : 0;
    for (long p = 0; outside; p++) {
      const long first = std::min(outside, parts[p].seen.count);
      parts[p].seen = {parts[p].seen.columns + first, parts[p].seen.count - first};
      outside -= first;
    }
  }

  void attend_item(long l, const Item& item, float* work, SeenPart* parts) {
    const long E = model.head_size, group = model.heads / model.key_heads;
    Query queries[QUERIES];
    long n = 0;
    for (long i = 0; i < item.count; i++) {
      see(l, tokens[item.token + i], item.key_head, parts + i * num_parts);
      for (long g = 0; g < group; g++) {
        queries[n++] = {q + (item.token + i) * q_stride + (item.key_head * group + g) * E, parts + i * num_parts};
        if (n < QUERIES && (i < item.count - 1 || g < group - 1)) continue;
        attend(queries, n, num_parts, E, model.layers[l].scale, work, work_stride);
        n = 0;
      }
    }
  }

  // Output projection and gated MLP of `count` tokens from m on, added to their hidden states.
  void finish(long l, float* x, long m, long count, int thread) {
    const Layer& layer = model.layers[l];
    const long D = model.hidden, up = layer.gate_up->starts[1];
    product(*layer.out, q + m * q_stride, q_stride, x, x_stride, count, D, true, thread, threads);
    barrier.wait(threads);
    norm_rows(x, layer.norm_mlp, layer.eps_mlp, count, thread);
    product(*layer.gate_up, normed, normed_stride, gates, gates_stride, count, layer.gate_up->outputs, false, thread,
            threads);
    barrier.wait(threads);
    for (long i = thread; i < count; i += threads)
      silu_product(gates + i * gates_stride, gates + i * gates_stride + up, model.intermediate);
    barrier.wait(threads);
    product(*layer.down, gates, gates_stride, x, x_stride, count, D, true, thread, threads);
    barrier.wait(threads);
  }

  void norm_rows(const float* x, const float* weight, float eps, long count, int thread) {
    for (long i = thread; i < count; i += threads)
      rms_norm(x + i * x_stride, weight, model.hidden, eps, normed + i * normed_stride);
    barrier.wait(threads);
  }

  const Model& model;
  const Batch& batch;
  const Tokens& listed;
  const std::vector<Token>& tokens;
  const long longest;
  int threads;
  Barrier barrier;
  std::vector<Item> all_items, end_items;
  const long num_parts = Tokens::levels_of(batch) + 1;  // of what a query sees: each level, and its row's own columns
  std::vector<SeenPart> item_parts;                         // of each thread
  long tokens_per_item = 1, work_stride = 0;
  float *q = nullptr, *normed = nullptr, *joined = nullptr, *gates = nullptr;
  long x_stride = 0, q_stride = 0, normed_stride = 0, joined_stride = 0, gates_stride = 0;
};

extern "C" {

// What the last refused call was refused for.
const char* specdec_message() { return message; }

// The lanes that this library was built for, which decide its bits.
int specdec_lanes() { return W; }

Matrix* specdec_pack(const Part* parts, int64_t count, int64_t inputs) {
  try {
    return new Matrix(parts, count, inputs);
  } catch (const std::bad_alloc&) {
    refuse("no memory for a packed matrix of %ld inputs", (long)inputs);
    return nullptr;
  }
}
void specdec_free(Matrix* matrix) { delete matrix; }
int64_t specdec_bytes(const Matrix* matrix) { return matrix->size; }
int specdec_format(const Matrix* matrix) { return matrix->format; }

// y (rows, outputs) = x (rows, inputs) W^T + bias, for one part that starts at output 0.
int specdec_product(const Matrix* w, const float* x, float* y, int64_t rows, int64_t outputs,
                    [[maybe_unused]] int threads) {
  if (outputs > w->outputs) return refuse("a product of %ld outputs gives %ld", (long)w->outputs, (long)outputs);
#pragma omp parallel num_threads(threads)
  product(*w, x, w->inputs, y, outputs, rows, outputs, false, omp_get_thread_num(), omp_get_num_threads());
  return 0;
}

void specdec_norm(const float* x, const float* weight, int64_t rows, int64_t size, float eps, float* y) {
  for (long m = 0; m < rows; m++) rms_norm(x + m * size, weight, size, eps, y + m * size);
}

// Layers [first, last); `states` (rows, width, hidden) or null gets their outputs, `wanted` what the head makes of
// them.
int specdec_forward(const Model* model, const Batch* batch, int64_t first, int64_t last, float* states,
                    const Wanted* wanted, int threads) {
  try {
    if (first < 0 || last > model->num_layers) return refuse("there are no layers %ld to %ld", (long)first, (long)last);
    if (wanted->count < 0 || wanted->count > batch->width)
      return refuse("%ld of %ld tokens are wanted", (long)wanted->count, (long)batch->width);
    for (long k = 0; k < wanted->num_hidden; k++)
      if (wanted->numbers[k] < 0 || wanted->numbers[k] > model->num_layers)
        return refuse("there is no layer %ld, whose input is wanted", (long)wanted->numbers[k]);
    Tokens tokens;
    if (int refused = tokens.list(*batch, model->vocab)) return refused;
    Forward(*model, *batch, tokens, threads).run(first, last, states, *wanted);
    return 0;
  } catch (const std::bad_alloc&) {
    return refuse("no memory for a forward of %ld rows of %ld tokens", (long)batch->rows, (long)batch->width);
  }
}
}
