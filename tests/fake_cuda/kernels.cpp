// The project's kernels for the fake driver: every thread of the grid, one after the other.

#include <stddef.h>

struct Index {
    unsigned x, y, z;
};
static Index blockIdx, blockDim, threadIdx;
#define __global__

#include "noise.cu"

extern "C" const size_t fake_sampler_noise_bytes[] = {8, 8, 8, 8, 8, 8, 8, 0};

extern "C" void fake_sampler_noise(const u32 grid[3], const u32 block[3], void **p) {
    blockDim = {block[0], 1, 1};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
                for (threadIdx.x = 0; threadIdx.x < block[0]; ++threadIdx.x)
                    sampler_noise(*(const u64 **)p[0], *(float **)p[1], *(float **)p[2],
                                  *(float **)p[3], *(u64 *)p[4], *(u64 *)p[5], *(u64 *)p[6]);
}
