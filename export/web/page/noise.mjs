// Noise of the sampler: the same bits as lddgan/noise.py, which has the formulas and their sources.
//
// + - * / and sqrt on doubles are exact by IEEE 754, and nothing else is used: every browser gives
// the same bits. Seeds and image indices are BigInt, 0..2^63-1.

// Philox4x32-10: multipliers and key increments
const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;
const ROUNDS = 10;

// AS 241, PPND16: numerators A, C and denominators B, D, highest power first
const A = [
  2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4,
  4.5921953931549871457e4, 1.3731693765509461125e4, 1.9715909503065514427e3,
  1.3314166789178437745e2, 3.387132872796366608,
];
const B = [
  5.226495278852854561e3, 2.8729085735721942674e4, 3.930789580009271061e4,
  2.1213794301586595867e4, 5.3941960214247511077e3, 6.871870074920579083e2,
  4.2313330701600911252e1, 1.0,
];
const C = [
  7.7454501427834140764e-4, 2.27238449892691845833e-2, 2.4178072517745061177e-1,
  1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
  4.6303378461565452959, 1.42343711074968357734,
];
const D = [
  1.05075007164441684324e-9, 5.475938084995344946e-4, 1.51986665636164571966e-2,
  1.4810397642748007459e-1, 6.8976733498510000455e-1, 1.67638483018380384940,
  2.05319162663775882187, 1.0,
];
const ATANH = Array.from({ length: 10 }, (_, k) => 1 / (19 - 2 * k)); // of s^18, s^16, ..., 1
const LN2 = 0.6931471805599453094;

const words = new Uint32Array(4);
const float = new Float64Array(1);
const bits = new Uint32Array(float.buffer); // low and high half

/** `size` standard normals for each of the images first..first+count-1: Float32Array [count,size]. */
export function normals(seed, stream, first, count, size) {
  const out = new Float32Array(count * size);
  const key = [low(seed), high(seed)];
  for (let image = 0; image < count; image++) {
    const index = first + BigInt(image);
    for (let element = 0; element < size; element += 4) {
      philox(element / 4, stream, low(index), high(index), key);
      const end = Math.min(4, size - element);
      for (let w = 0; w < end; w++) out[image * size + element + w] = normal(words[w]);
    }
  }
  return out;
}

/** All the randomness of images first..first+count-1: x_T [B,C,h,w]; of each call z and noise. */
export function draw(model, seed, first, count) {
  const size = model.latent_shape.reduce((a, b) => a * b);
  const calls = Array.from({ length: model.steps }, (_, k) => k);
  return {
    x_T: normals(seed, 0, first, count, size),
    z: calls.map((k) => normals(seed, 1 + 2 * k, first, count, model.nz)),
    noise: calls.map((k) => normals(seed, 2 + 2 * k, first, count, size)),
  };
}

const low = (big) => Number(big & 0xffffffffn);
const high = (big) => Number(big >> 32n);

function philox(c0, c1, c2, c3, [k0, k1]) {
  for (let round = 0; round < ROUNDS; round++) {
    const above0 = upperHalf(M0, c0);
    const above1 = upperHalf(M1, c2);
    const below0 = Math.imul(M0, c0) >>> 0;
    const below1 = Math.imul(M1, c2) >>> 0;
    [c0, c1, c2, c3] = [(above1 ^ c1 ^ k0) >>> 0, below1, (above0 ^ c3 ^ k1) >>> 0, below0];
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/** The upper 32 of the 64 bits of a * b, by halves of 16 bits. */
function upperHalf(a, b) {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const [across0, across1] = [a0 * b1, a1 * b0];
  const middle = ((a0 * b0) >>> 16) + (across0 & 0xffff) + (across1 & 0xffff);
  return (a1 * b1 + (across0 >>> 16) + (across1 >>> 16) + (middle >>> 16)) >>> 0;
}

/** A random word -> a standard normal, of u = (word + 1/2) / 2^32. */
function normal(word) {
  const q = (word + 0.5) * 2 ** -32 - 0.5;
  if (Math.abs(q) <= 0.425) {
    const r = 0.180625 - q * q;
    return (q * horner(A, r)) / horner(B, r);
  }
  const r = Math.sqrt(-log(0.5 - Math.abs(q))) - 1.6;
  const x = horner(C, r) / horner(D, r);
  return q < 0 ? -x : x;
}

function horner(coefficients, v) {
  let y = coefficients[0];
  for (let k = 1; k < coefficients.length; k++) y = y * v + coefficients[k];
  return y;
}

/** The logarithm of a normal double p > 0. Math.log may differ between browsers in its last bit. */
function log(p) {
  float[0] = p;
  let e = (bits[1] >>> 20) - 1022;
  bits[1] = (bits[1] & 0x000fffff) | (1022 << 20);
  let m = float[0]; // p = m * 2^e, m in [1/2, 1)
  if (m < 0.7) {
    m = 2 * m;
    e -= 1;
  }
  const s = (m - 1) / (m + 1);
  return e * LN2 + (s + s) * horner(ATANH, s * s);
}
