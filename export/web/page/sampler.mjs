// noise -> T x generator -> decoder -> pixels, in ONNX Runtime. Browsers and Node run it alike.

import { draw } from "./noise.mjs";

export class Sampler {
  /** `model` is model.json; generator and decoder are sessions of the runtime `ort`. */
  constructor(ort, model, generator, decoder) {
    Object.assign(this, { ort, model, generator, decoder });
  }

  /** Images first..first+count-1 of a seed (BigInt): Uint8Array [count,H,W,3]. */
  sample(seed, first, count) {
    return this.run(draw(this.model, seed, first, count), count);
  }

  /** Images of the noise that `draw` gives for `count` images: Uint8Array [count,H,W,3]. */
  async run({ x_T, z, noise }, count) {
    const { model, ort } = this;
    const latent = [count, ...model.latent_shape];
    const tensor = (data, shape) => new ort.Tensor("float32", data, shape);
    let x = tensor(x_T, latent);
    for (let call = 0; call < model.steps; call++) {
      const t = new ort.Tensor("int32", Int32Array.of(model.steps - 1 - call), [1]);
      const inputs = { x, t, z: tensor(z[call], [count, model.nz]), noise: tensor(noise[call], latent) };
      x = (await this.generator.run(inputs)).x_next;
    }
    return (await this.decoder.run({ x_0: x })).image.data;
  }
}

/** One image on the way from noise a (share 0) to noise b (share 1), still of variance 1. */
export function between(a, b, share) {
  const length = Math.sqrt((1 - share) ** 2 + share ** 2);
  const [of_a, of_b] = [(1 - share) / length, share / length];
  const mix = (x, y) => x.map((value, i) => value * of_a + y[i] * of_b);
  return {
    x_T: mix(a.x_T, b.x_T),
    z: a.z.map((z, call) => mix(z, b.z[call])),
    noise: a.noise.map((noise, call) => mix(noise, b.noise[call])),
  };
}
