// Keeps the sampler away from the page's thread. Messages in: {open} and {id, seed, to, first, num};
// out: {loaded, total}, {ready}, {failed}, and for each image {id, index, pixels, ms}.

import { draw } from "./noise.mjs";
import { between, Sampler } from "./sampler.mjs";

const BINARIES = { wasm: "ort-wasm-simd-threaded", webgpu: "ort-wasm-simd-threaded.asyncify" };

let sampler;
let latest; // id of the newest request: older ones stop

onmessage = async ({ data }) => {
  try {
    if (data.open) await open(data.open);
    else await sample(data);
  } catch (error) {
    postMessage({ failed: error.message });
  }
};

async function open(provider) {
  const model = await (await found("model.json")).json();
  const names = ["generator.onnx", "decoder.onnx", `ort/${BINARIES[provider]}.wasm`];
  const total = names.reduce((sum, name) => sum + model.bytes[name], 0);
  let loaded = 0;
  const files = [];
  for (const name of names) {
    const file = new Uint8Array(model.bytes[name]);
    let end = 0;
    const reader = (await found(name)).body.getReader(); // in Safari no stream can be iterated
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      file.set(part.value, end);
      end += part.value.length;
      loaded += part.value.length;
      postMessage({ loaded, total });
    }
    files.push(file);
  }
  const [generator, decoder, binary] = files;
  const ort = await import(`./ort/ort.${provider}.bundle.min.mjs`);
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  Object.assign(ort.env.wasm, { wasmBinary: binary, numThreads: threads });
  ort.env.logLevel = "error"; // its warnings are for those who export graphs
  const session = (graph) => ort.InferenceSession.create(graph, { executionProviders: [provider] });
  sampler = new Sampler(ort, model, await session(generator), await session(decoder));
  postMessage({ ready: { threads } });
}

async function sample({ id, seed, to, first, num }) {
  latest = id;
  for (let index = 0; index < num; index++) {
    await new Promise((resume) => setTimeout(resume)); // lets a newer request arrive
    if (id !== latest) return;
    const start = performance.now();
    const pixels = await sampler.run(noiseOf(index, { seed, to, first, num }), 1);
    postMessage({ id, index, pixels, ms: performance.now() - start });
  }
}

/** The noise of image first+index of a seed; with `to`, of step `index` of the walk to that seed. */
function noiseOf(index, { seed, to, first, num }) {
  const { model } = sampler;
  if (to === undefined) return draw(model, seed, first + BigInt(index), 1);
  const ends = [draw(model, seed, first, 1), draw(model, to, first, 1)];
  return between(...ends, num > 1 ? index / (num - 1) : 0);
}

async function found(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} cannot be loaded (${answer.status})`);
  return answer;
}
