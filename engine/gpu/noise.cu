// The noise of lddgan/noise.py, whose docstring is the specification, bit for bit.
//
// Philox4x32-10 (Salmon et al. 2011) makes words; AS 241, PPND16 (Wichura 1988) makes of a word w
// the normal deviate of u = (w + 1/2)/2^32, in double, rounded once to float.
//
// NVRTC compiles this file for the GPU.  So that its formulas can be tested where there is none, it
// is plain C++ too, given __global__, blockIdx, blockDim, threadIdx and -ffp-contract=off.

typedef unsigned int u32;
typedef unsigned long long u64;

// ---- arithmetic: every operation rounded by itself, to nearest even ----

#ifdef __CUDACC__
// the _rn functions are never contracted into a fused multiply-add, whatever the compiler's options
#define DEVICE static __device__ __forceinline__
#define CONSTANT static __device__ constexpr
DEVICE double add(double a, double b) { return __dadd_rn(a, b); }
DEVICE double sub(double a, double b) { return __dsub_rn(a, b); }
DEVICE double mul(double a, double b) { return __dmul_rn(a, b); }
DEVICE double div(double a, double b) { return __ddiv_rn(a, b); }
DEVICE double root(double a) { return __dsqrt_rn(a); }
DEVICE float to_float(double a) { return __double2float_rn(a); }
DEVICE u64 to_bits(double a) { return (u64)__double_as_longlong(a); }
DEVICE double from_bits(u64 bits) { return __longlong_as_double((long long)bits); }
#else
#include <math.h>
#include <string.h>
#define DEVICE static inline
#define CONSTANT static constexpr
DEVICE double add(double a, double b) { return a + b; }
DEVICE double sub(double a, double b) { return a - b; }
DEVICE double mul(double a, double b) { return a * b; }
DEVICE double div(double a, double b) { return a / b; }
DEVICE double root(double a) { return sqrt(a); }
DEVICE float to_float(double a) { return (float)a; }
DEVICE u64 to_bits(double a) { u64 bits; memcpy(&bits, &a, sizeof bits); return bits; }
DEVICE double from_bits(u64 bits) { double a; memcpy(&a, &bits, sizeof a); return a; }
#endif

// (..((c[0]*v + c[1])*v + c[2])..)*v + c[N-1]
template <int N>
DEVICE double horner(const double (&c)[N], double v) {
    double y = c[0];
    for (int i = 1; i < N; ++i) y = add(mul(y, v), c[i]);
    return y;
}

// ---- Philox4x32-10: multipliers M and key increments W (Weyl sequence), section 4.3 ----

CONSTANT u32 M0 = 0xD2511F53, M1 = 0xCD9E8D57;
CONSTANT u32 W0 = 0x9E3779B9, W1 = 0xBB67AE85;
CONSTANT int ROUNDS = 10;

struct Words {
    u32 w[4];
};

DEVICE u32 low(u64 a) { return (u32)a; }
DEVICE u32 high(u64 a) { return (u32)(a >> 32); }

DEVICE Words philox4x32(Words c, u64 key) {
    u32 k0 = low(key), k1 = high(key);
    for (int round = 0; round < ROUNDS; ++round) {
        const u64 product0 = (u64)M0 * c.w[0], product1 = (u64)M1 * c.w[2];
        c = {{high(product1) ^ c.w[1] ^ k0, low(product1),
              high(product0) ^ c.w[3] ^ k1, low(product0)}};
        k0 += W0;
        k1 += W1;
    }
    return c;
}

// ---- AS 241, PPND16: numerators A, C and denominators B, D, highest power first ----

CONSTANT double A[] = {
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
    4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
    1.3314166789178437745e2, 3.3871328727963666080e0,
};
CONSTANT double B[] = {
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4,
    2.1213794301586595867e4, 5.3941960214247511077e3, 6.8718700749205790830e2,
    4.2313330701600911252e1, 1.0,
};
CONSTANT double C[] = {
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
    1.27045825245236838258e0,  3.64784832476320460504e0,  5.76949722146069140550e0,
    4.63033784615654529590e0,  1.42343711074968357734e0,
};
CONSTANT double D[] = {
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
    1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
    2.05319162663775882187e0,  1.0,
};

// log m = 2 atanh(s) = 2s (1 + s^2/3 + s^4/5 + ...)
CONSTANT double ATANH[] = {
    1.0 / 19.0, 1.0 / 17.0, 1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0,
    1.0 / 9.0,  1.0 / 7.0,  1.0 / 5.0,  1.0 / 3.0,  1.0,
};
CONSTANT double LN2 = 0.69314718055994530942;
CONSTANT double TWO_TO_MINUS_32 = 1.0 / 4294967296.0;

// p = m * 2^e with 1/2 <= m < 1, for a normal p > 0
DEVICE double split(double p, int* e) {
    const u64 bits = to_bits(p);
    *e = (int)(bits >> 52) - 1022;
    return from_bits((bits & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull);
}

DEVICE double log_of(double p) {
    int e;
    double m = split(p, &e);
    if (m < 0.7) {
        m = mul(2.0, m);
        e = e - 1;
    }
    const double s = div(sub(m, 1.0), add(m, 1.0));
    return add(mul((double)e, LN2), mul(add(s, s), horner(ATANH, mul(s, s))));
}

// The inverse normal CDF of u = q + 1/2 = (w + 1/2)/2^32.
DEVICE double normal_from_word(u32 w) {
    const double q = sub(mul(add((double)w, 0.5), TWO_TO_MINUS_32), 0.5);
    const double distance = fabs(q);
    if (distance <= 0.425) {
        const double r = sub(0.180625, mul(q, q));
        return div(mul(q, horner(A, r)), horner(B, r));
    }
    const double r = sub(root(-log_of(sub(0.5, distance))), 1.6);
    return copysign(div(horner(C, r), horner(D, r)), q);
}

// ---- the kernel: all the noise of one batch ----

// A thread makes one Philox block: elements 4*block .. 4*block+3 of one image in one stream.
// Grid: x covers the blocks of the longest row, y is the image (count), z the stream (1 + 2T).
// The request lies in memory, so that a captured graph can be replayed with another one.
extern "C" __global__ void sampler_noise(
    const u64* request,  // [count, 2]: seed and index of each image
    float* x_T,          // [count, n]: stream 0
    float* z,            // [T, count, nz]: stream 1+2k for call k
    float* noise,        // [T, count, n]: stream 2+2k for call k
    u64 count, u64 n, u64 nz) {
    const u64 block = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u64 i = blockIdx.y;
    const u32 stream = blockIdx.z;

    // The row of this image in this stream.
    float* row = x_T + i * n;
    u64 size = n;
    if (stream > 0) {
        const u64 k = (stream - 1) / 2;
        const bool is_z = stream % 2 == 1;
        size = is_z ? nz : n;
        row = (is_z ? z : noise) + (k * count + i) * size;
    }
    if (4 * block >= size) return;

    // Four words, four normals; a row need not end with a block.
    const u64 seed = request[2 * i], image = request[2 * i + 1];
    const Words counter = {{(u32)block, stream, low(image), high(image)}};
    const Words words = philox4x32(counter, seed);
    for (u64 lane = 0; lane < 4; ++lane) {
        const u64 element = 4 * block + lane;
        if (element < size) row[element] = to_float(normal_from_word(words.w[lane]));
    }
}
