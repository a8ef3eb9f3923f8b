// Noise and reductions of noisy copies. nvcc or NVRTC makes the kernels; for the tests, a C++ compiler makes
// the same for the host. Everything that is counted is an integer, so that no order of threads shows.

#ifdef __CUDACC_RTC__  // NVRTC knows mathematics by itself, and has no headers
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <math.h>
#include <stdint.h>
#endif

typedef unsigned long long Count;  // what atomicAdd takes; sums that are signed wrap to the right result

// One row of a batch: a noisy copy (run.py, ROW).
struct Row {
  uint64_t copy, key[2];
  uint32_t picture;  // which of the batch's pictures
  uint32_t thresholds, steps;  // where the thresholds of its σ begin, and how many words are compared with
  int32_t first;  // the integer that lies below all of them
  float sigma, timestep;
  uint32_t part;  // where it is counted
};

// What is counted together (run.py, PART).
struct Part {
  uint32_t votes, kinds;  // first row of votes, and how many
  uint32_t wealth, bets;  // first row of wealth, and how many
};

// Philox4x64-10 (Salmon et al., SC 2011); the words of `c` are counter first and random words after.
__device__ static void philox(uint64_t c[4], uint64_t k0, uint64_t k1) {
  const uint64_t m0 = 0xD2E7470EE14C6C93ull, m1 = 0xCA5A826395121157ull;
  for (int round = 0; round < 10; ++round) {
    const uint64_t high0 = __umul64hi(m0, c[0]), low0 = m0 * c[0];
    const uint64_t high1 = __umul64hi(m1, c[2]), low1 = m1 * c[2];
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B97F4A7C15ull;
    k1 += 0xBB67AE8584CAA73Bull;
  }
}

// The noise of one word (noise.py says the same in NumPy): one more for each threshold that it reaches.
__device__ static int32_t integer(uint64_t word, const uint64_t *thresholds, uint32_t steps, int32_t first) {
  uint32_t low = 0, high = steps;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (thresholds[middle] <= word)
      low = middle + 1;
    else
      high = middle;
  }
  return first + (int32_t)low;
}

// How many tokens come before this one when a copy's attributions are sorted, ties by index.
__device__ static uint32_t rank_of(const float *attribution, uint32_t token, uint32_t tokens) {
  uint32_t before = 0;
  const float own = attribution[token];
  for (uint32_t other = 0; other < tokens; ++other)
    before += attribution[other] > own || (attribution[other] == own && other < token);
  return before;
}

// The networks' inputs. Grid (blocks of four elements, rows).
extern "C" __global__ void draw_copies(float *noisy, float *sigmas, float *timesteps, const Row *rows,
                                       const uint8_t *pictures, const uint64_t *thresholds, uint32_t size) {
  const Row row = rows[blockIdx.y];
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
  if (block == 0) {
    sigmas[blockIdx.y] = row.sigma;
    timesteps[blockIdx.y] = row.timestep;
  }
  if (4 * block >= size) return;
  const uint8_t *pixels = pictures + (uint64_t)row.picture * size;
  float *target = noisy + (uint64_t)blockIdx.y * size;
  uint64_t words[4] = {block + 1ull, 0, row.copy, 0};
  philox(words, row.key[0], row.key[1]);
  for (uint32_t i = 0, element = 4 * block; i < 4 && element < size; ++i, ++element) {
    const int32_t noise = integer(words[i], thresholds + row.thresholds, row.steps, row.first);
    target[element] = __fdiv_rn((float)(pixels[element] + noise), 255.0f);
  }
}

// The first of each row's largest logits. Grid (1, rows), blocks of 128 threads.
extern "C" __global__ void find_classes(const float *logits, uint32_t classes, int32_t *found, int *unfit) {
  __shared__ uint32_t best[128];
  const uint32_t own = threadIdx.x;
  const float *values = logits + (uint64_t)blockIdx.y * classes;
  uint32_t largest = own < classes ? own : 0;
  for (uint32_t i = own; i < classes; i += 128) {
    if (!isfinite(values[i])) atomicOr(unfit + blockIdx.y, 1);
    if (values[i] > values[largest]) largest = i;
  }
  best[own] = largest;
  __syncthreads();
  for (uint32_t half = 64; half > 0; half /= 2) {
    if (own < half) {
      const uint32_t one = best[own], other = best[own + half];
      if (values[other] > values[one] || (values[other] == values[one] && other < one)) best[own] = other;
    }
    __syncthreads();
  }
  if (own == 0) found[blockIdx.y] = (int32_t)best[0];
}

// Votes, and sums in units of 1/unit. A row is unfit by 1 where a value is not finite; by 2 where it is no attribution,
// with a value below 0 or above `total`, or a sum of 0, or above `total` where it is bet on. Grid (blocks of tokens, rows).
extern "C" __global__ void count_tokens(const float *attributions, uint32_t tokens, const Row *rows,
                                        const Part *parts, const uint32_t *sizes, uint32_t *votes, Count *sums,
                                        int *unfit, double unit, double total) {
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  const float *attribution = attributions + (uint64_t)blockIdx.y * tokens;
  const float value = attribution[token];
  if (!isfinite(value))
    atomicOr(unfit + blockIdx.y, 1);
  else if (value < 0 || value > total)
    atomicOr(unfit + blockIdx.y, 2);
  const uint32_t number = rows[blockIdx.y].part;
  const Part part = parts[number];
  if (token == 0) {
    double sum = 0;
    for (uint32_t other = 0; other < tokens; ++other) sum += attribution[other];
    if (!(sum > 0) || (part.bets && sum > total)) atomicOr(unfit + blockIdx.y, 2);
  }
  const uint32_t rank = part.kinds ? rank_of(attribution, token, tokens) : 0;
  for (uint32_t kind = part.votes; kind < part.votes + part.kinds; ++kind)
    if (rank < sizes[kind]) atomicAdd(votes + (uint64_t)kind * tokens + token, 1u);
  const long long share = (long long)rint(value * unit);
  atomicAdd(sums + (uint64_t)number * tokens + token, (Count)share);
}

// Σ ln(1 + bet·x), each rounded down to units of 1/unit. Grid (blocks of tokens, rows).
extern "C" __global__ void add_wealth(const float *attributions, uint32_t tokens, const Row *rows,
                                      const Part *parts, const double *bets, Count *wealth,
                                      double unit) {
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  const Part part = parts[rows[blockIdx.y].part];
  const double value = attributions[(uint64_t)blockIdx.y * tokens + token];
  for (uint32_t bet = 0; bet < part.bets; ++bet) {
    const double logarithm = log1p(bets[bet] * (value < 1.0 ? value : 1.0));
    const long long term = (long long)floor(logarithm * unit);
    atomicAdd(wealth + (uint64_t)(part.wealth + bet) * tokens + token, (Count)term);
  }
}
