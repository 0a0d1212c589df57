// A stand-in for comparison in bench/roofline.py, never run: deformable attention by the plan that most public kernels
// share. A thread computes one channel of one query and head. For every point it reads location and weight for itself,
// for every level the 64-bit sizes, and one float at each corner. In the gradient a block is one query and head: each
// point's gradients go through shared memory, where thread 0 adds them up between two barriers, and the value's
// gradient takes one atomic per channel and corner.
#pragma once

namespace alignmask {

struct ScalarParams {
  const float *value, *locations, *weights, *grad_out;
  const long long *sizes, *starts;  // [L, 2], [L]
  float *out, *grad_value, *grad_locations, *grad_weights;
  int count, queries, heads, channels, levels, points, tokens;
};

__device__ __forceinline__ float corner(const float* level, long long h, long long w, int y, int x, int stride) {
  return y >= 0 && x >= 0 && y < h && x < w ? level[(y * w + x) * stride] : 0.f;
}

template <int kChannels>
__global__ void scalar_forward(ScalarParams p) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.count) return;
  const int c = i % p.channels, head = i / p.channels % p.heads, item = i / p.channels / p.heads;
  const int image = item / p.queries, stride = p.heads * p.channels;
  const float* value = p.value + static_cast<long long>(image) * p.tokens * stride + head * p.channels + c;
  int at = (item * p.heads + head) * p.levels * p.points;
  float sum = 0;
  for (int l = 0; l < p.levels; ++l) {
    const long long h = p.sizes[2 * l], w = p.sizes[2 * l + 1];
    const float* level = value + p.starts[l] * stride;
#pragma unroll 1
    for (int k = 0; k < p.points; ++k, ++at) {
      const float weight = p.weights[at];
      const float x = p.locations[2 * at] * w - 0.5f, y = p.locations[2 * at + 1] * h - 0.5f;
      if (!(y > -1 && x > -1 && y < h && x < w)) continue;
      const int x0 = static_cast<int>(floorf(x)), y0 = static_cast<int>(floorf(y));
      const float dx = x - x0, dy = y - y0;
      sum += weight * ((1 - dy) * ((1 - dx) * corner(level, h, w, y0, x0, stride) +
                                   dx * corner(level, h, w, y0, x0 + 1, stride)) +
                       dy * ((1 - dx) * corner(level, h, w, y0 + 1, x0, stride) +
                             dx * corner(level, h, w, y0 + 1, x0 + 1, stride)));
    }
  }
  p.out[i] = sum;
}

__device__ __forceinline__ float scatter(float* level, const float* value, long long h, long long w, int y, int x,
                                         int stride, float gradient) {
  if (!(y >= 0 && x >= 0 && y < h && x < w)) return 0.f;
  atomicAdd(level + (y * w + x) * stride, gradient);
  return value[(y * w + x) * stride];
}

template <int kChannels>
__global__ void scalar_backward(ScalarParams p) {
  __shared__ float partial[3][kChannels];
  const int c = threadIdx.x, head = blockIdx.x % p.heads, item = blockIdx.x / p.heads;
  const int image = item / p.queries, stride = p.heads * kChannels;
  const long long base = static_cast<long long>(image) * p.tokens * stride + head * kChannels + c;
  const float gradient = p.grad_out[static_cast<long long>(blockIdx.x) * kChannels + c];
  int at = static_cast<int>(blockIdx.x) * p.levels * p.points;
  for (int l = 0; l < p.levels; ++l) {
    const long long h = p.sizes[2 * l], w = p.sizes[2 * l + 1], start = base + p.starts[l] * stride;
    const float* value = p.value + start;
    float* to = p.grad_value + start;
#pragma unroll 1
    for (int k = 0; k < p.points; ++k, ++at) {
      const float weight = p.weights[at];
      const float x = p.locations[2 * at] * w - 0.5f, y = p.locations[2 * at + 1] * h - 0.5f;
      float by_x = 0, by_y = 0, by_weight = 0;
      if (y > -1 && x > -1 && y < h && x < w) {
        const int x0 = static_cast<int>(floorf(x)), y0 = static_cast<int>(floorf(y));
        const float dx = x - x0, dy = y - y0, g = gradient * weight;
        const float a = scatter(to, value, h, w, y0, x0, stride, g * (1 - dy) * (1 - dx));
        const float b = scatter(to, value, h, w, y0, x0 + 1, stride, g * (1 - dy) * dx);
        const float d = scatter(to, value, h, w, y0 + 1, x0, stride, g * dy * (1 - dx));
        const float e = scatter(to, value, h, w, y0 + 1, x0 + 1, stride, g * dy * dx);
        const float top = (1 - dx) * a + dx * b, bottom = (1 - dx) * d + dx * e;
        by_x = g * w * ((1 - dy) * (b - a) + dy * (e - d));
        by_y = g * h * (bottom - top);
        by_weight = gradient * ((1 - dy) * top + dy * bottom);
      }
      partial[0][c] = by_x, partial[1][c] = by_y, partial[2][c] = by_weight;
      __syncthreads();
      if (c == 0) {
        float sum[3] = {by_x, by_y, by_weight};
#pragma unroll 1
        for (int t = 1; t < kChannels; ++t)
          for (int j = 0; j < 3; ++j) sum[j] += partial[j][t];
        p.grad_locations[2 * at] = sum[0], p.grad_locations[2 * at + 1] = sum[1], p.grad_weights[at] = sum[2];
      }
      __syncthreads();
    }
  }
}

}  // namespace alignmask
