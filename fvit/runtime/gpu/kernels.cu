// Noise and reductions of noisy copies. nvcc or NVRTC makes the kernels; for the tests, a C++ compiler
// makes the same for the host. Compile without contraction into fused multiply-adds (-fmad=false, -ffp-contract=off):
// noise.py rounds after every operation.

#ifdef __CUDACC_RTC__  // NVRTC knows mathematics by itself, and has no headers
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <math.h>
#include <stdint.h>
#endif

typedef unsigned long long Count;

// Philox4x32-10 (Salmon et al., SC 2011); the words of `c` are counter first and random words after.
__device__ static void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
    c[0] = n0;
    c[1] = (uint32_t)p1;
    c[2] = n2;
    c[3] = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// Four standard normals: elements 4·block … 4·block+3 of one copy (noise.py says the same in NumPy).
__device__ static void normals(uint32_t block, uint64_t copy, uint64_t seed, float z[4]) {
  uint32_t words[4] = {block, 0u, (uint32_t)copy, (uint32_t)(copy >> 32)};
  philox(words, (uint32_t)seed, (uint32_t)(seed >> 32));
  for (int pair = 0; pair < 4; pair += 2) {
    const float uniform = (float)words[pair] * 0x1p-32f + 0x1p-33f;
    const float radius = sqrtf(-2.0f * logf(uniform));
    const float angle = (float)(words[pair + 1] >> 8) * 0x1p-24f * 6.2831855f;
    z[pair] = radius * cosf(angle);
    z[pair + 1] = radius * sinf(angle);
  }
}

// x + σz for one block of four elements of one copy.
__device__ static void draw_block(float *noisy, const float *pixels, float sigma, uint64_t seed, uint64_t copy,
                                  uint32_t block, uint32_t size) {
  float z[4];
  normals(block, copy, seed, z);
  for (uint32_t i = 0, element = 4 * block; i < 4 && element < size; ++i, ++element)
    noisy[element] = pixels[element] + sigma * z[i];
}

// The first of the largest values: ties go to the lower index.
__device__ static uint32_t largest(const float *values, uint32_t count) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < count; ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

// How many tokens come before this one when a copy's attributions are sorted, ties by index.
__device__ static uint32_t rank_of(const float *attribution, uint32_t token, uint32_t tokens) {
  uint32_t before = 0;
  const float own = attribution[token];
  for (uint32_t other = 0; other < tokens; ++other)
    before += attribution[other] > own || (attribution[other] == own && other < token);
  return before;
}

// What one copy adds to Σ ln(1 + bet·x) (bounds.LogWealth).
__device__ static double logarithm(double value, double bet) {
  return log1p(bet * (value < 1.0 ? value : 1.0));
}

// Grid (blocks of elements, rows).
extern "C" __global__ void draw_copies(float *noisy, const float *pixels, float sigma, uint64_t seed,
                                       uint64_t first, uint32_t size) {
  const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
  if (4 * block < size)
    draw_block(noisy + (uint64_t)blockIdx.y * size, pixels, sigma, seed, first + blockIdx.y, block, size);
}

// Grid (blocks of tokens, rows). Integer atomics: the sums do not depend on their order.
extern "C" __global__ void count_votes(const float *attributions, uint32_t tokens, const uint32_t *sizes,
                                       uint32_t kinds, Count *votes, int *unfit) {
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  const float *attribution = attributions + (uint64_t)blockIdx.y * tokens;
  if (!isfinite(attribution[token])) atomicExch(unfit, 1);
  const uint32_t rank = rank_of(attribution, token, tokens);
  for (uint32_t kind = 0; kind < kinds; ++kind)
    if (rank < sizes[kind]) atomicAdd(votes + (uint64_t)kind * tokens + token, 1ull);
}

// One thread a row.
extern "C" __global__ void count_classes(const float *logits, uint32_t rows, uint32_t classes, Count *counts,
                                         int *unfit) {
  const uint32_t row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const float *values = logits + (uint64_t)row * classes;
  for (uint32_t i = 0; i < classes; ++i)
    if (!isfinite(values[i])) atomicExch(unfit, 1);
  atomicAdd(counts + largest(values, classes), 1ull);
}

// Grid (blocks of 32 tokens, 1 + bets), blocks of (32 tokens, 32 rows): row 0 of the grid adds moments, the
// others one bet each. Logarithms take long and are taken side by side; they are added copy after copy, as
// Tally adds them.
extern "C" __global__ void add_attributions(const float *attributions, uint32_t rows, uint32_t tokens,
                                            double *sums, double *squares, const double *bets,
                                            double *wealth) {
  __shared__ double terms[32][32];
  const uint32_t token = blockIdx.x * 32 + threadIdx.x, bet = blockIdx.y - 1;
  const bool moments = blockIdx.y == 0, adds = threadIdx.y == 0 && token < tokens;
  double *target = moments ? sums + token : wealth + (uint64_t)bet * tokens + token;
  double sum = adds ? *target : 0.0, square = adds && moments ? squares[token] : 0.0;
  for (uint32_t first = 0; first < rows; first += 32) {
    const uint32_t row = first + threadIdx.y;
    if (row < rows && token < tokens) {
      const double value = attributions[(uint64_t)row * tokens + token];
      terms[threadIdx.y][threadIdx.x] = moments ? value : logarithm(value, bets[bet]);
    }
    __syncthreads();
    for (uint32_t i = 0; adds && i < 32 && first + i < rows; ++i) {
      const double term = terms[i][threadIdx.x];
      sum += term;
      square += term * term;
    }
    __syncthreads();
  }
  if (adds) *target = sum;
  if (adds && moments) squares[token] = square;
}
