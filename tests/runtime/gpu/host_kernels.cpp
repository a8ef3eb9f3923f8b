// The kernels of kernels.cu on the host, with the launches that a GPU gets: where the threads of a block meet
// (__syncthreads) they are coroutines, which take turns there.

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <tuple>
#include <vector>

struct Index {
  unsigned x, y, z;
};
static Index blockIdx, threadIdx, blockDim;
static ucontext_t scheduler, *running;

static void __syncthreads() { swapcontext(running, &scheduler); }
template <class Integer>
static void atomicAdd(Integer *target, Integer value) {
  *target += value;
}
static void atomicOr(int *target, int value) { *target |= value; }
static uint64_t __umul64hi(uint64_t one, uint64_t other) {
  return (uint64_t)((unsigned __int128)one * other >> 64);
}
static float __fdiv_rn(float one, float other) { return one / other; }

#define __CUDACC__
#define __host__
#define __device__
#define __global__
#define __shared__ static
#include "kernels.cu"

static const size_t STACK = 16384;
static std::function<void()> work;
static std::vector<bool> done;
static unsigned current;

static void thread() {
  work();
  done[current] = true;
}

static void run_block(bool meets) {
  const unsigned threads = blockDim.x * blockDim.y;
  for (unsigned i = 0; !meets && i < threads; ++i) {
    threadIdx = {i % blockDim.x, i / blockDim.x, 0};
    work();
  }
  if (!meets) return;
  static std::vector<char> stacks;
  static std::vector<ucontext_t> contexts;
  stacks.resize(threads * STACK);
  contexts.resize(threads);
  done.assign(threads, false);
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&contexts[i]);
    contexts[i].uc_stack.ss_sp = &stacks[i * STACK];
    contexts[i].uc_stack.ss_size = STACK;
    contexts[i].uc_link = &scheduler;
    makecontext(&contexts[i], thread, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (current = 0; current < threads; ++current) {
      if (done[current]) continue;
      threadIdx = {current % blockDim.x, current / blockDim.x, 0};
      running = &contexts[current];
      swapcontext(&scheduler, running);
      alive = alive || !done[current];
    }
  }
}

template <class... Types>
static bool launch(void (*kernel)(Types...), const Index &grid, const char *packed, size_t size,
                   bool meets = false) {
  // Laid out as the GPU takes arguments: each aligned to its own size, in order.
  size_t at = 0;
  const auto next = [&](auto *value) {
    at = (at + sizeof *value - 1) / sizeof *value * sizeof *value;
    if (at + sizeof *value <= size) memcpy(value, packed + at, sizeof *value);
    at += sizeof *value;
  };
  std::tuple<Types...> arguments;
  std::apply([&](auto &...each) { (next(&each), ...); }, arguments);
  if (at != size) return false;
  work = [&] { std::apply(kernel, arguments); };
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) run_block(meets);
  return true;
}

// False where there is no such kernel or its arguments have another size.
extern "C" bool launch_kernel(const char *name, unsigned grid_x, unsigned grid_y, unsigned block_x,
                              unsigned block_y, const char *packed, size_t size) {
  const Index grid = {grid_x, grid_y, 1};
  blockDim = {block_x, block_y, 1};
  if (!strcmp(name, "draw_copies")) return launch(draw_copies, grid, packed, size);
  if (!strcmp(name, "find_classes")) return launch(find_classes, grid, packed, size, true);
  if (!strcmp(name, "count_tokens")) return launch(count_tokens, grid, packed, size);
  if (!strcmp(name, "add_wealth")) return launch(add_wealth, grid, packed, size);
  return false;
}

// What the kernels make of these words.
extern "C" void integers(const uint64_t *words, size_t count, const uint64_t *thresholds, uint32_t steps,
                         int32_t first, int32_t *found) {
  for (size_t i = 0; i < count; ++i) found[i] = integer(words[i], thresholds, steps, first);
}
