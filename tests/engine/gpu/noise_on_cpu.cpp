// The kernel of engine/gpu/noise.cu on a CPU: every thread of the grid, one after the other.

struct Index {
    unsigned int x, y, z;
};
static Index blockIdx, blockDim, threadIdx;
#define __global__

#include "noise.cu"

extern "C" void launch(
    const u32* grid, u32 threads, const u64* request, float* x_T, float* z, float* noise,
    u64 count, u64 n, u64 nz) {
    blockDim = {threads, 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                    sampler_noise(request, x_T, z, noise, count, n, nz);
}

extern "C" void normals_from_words(const u32* words, float* normals, u64 count) {
    for (u64 i = 0; i < count; ++i) normals[i] = to_float(normal_from_word(words[i]));
}

extern "C" void unrounded_from_words(const u32* words, double* normals, u64 count) {
    for (u64 i = 0; i < count; ++i) normals[i] = normal_from_word(words[i]);
}
