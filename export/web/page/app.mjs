// The page: what is asked for stands in the address (#seed=7&first=0&num=16&to=8), whatever is shown
// follows from it.

const LAST = 2n ** 63n - 1n; // seed and index
const DEFAULTS = { seed: "0", first: "0", num: "16", to: "" };
const FIELDS = Object.keys(DEFAULTS);

const $ = (id) => document.getElementById(id);
const canvas = $("images");
const model = await (await fetch("model.json")).json();

let worker;
let ready = false;
let request = 0; // id of the newest
let times = []; // ms of each image of it
let runs = ""; // what runs the model, in words
let notice = ""; // why that is not what was asked for

$("model").textContent = `${model.name}, ${model.image_size}x${model.image_size}, ${model.precision}`;
$("random").hidden = !model.random_weights;
if (model.precision === "int8") $("how").textContent = "The same images, but for what 8 bits round";
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go(Object.fromEntries(FIELDS.map((name) => [name, $(name).value])));
});
$("next").addEventListener("click", () => {
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  go({ ...asked(), seed: String(seed), first: "0" });
});
$("link").addEventListener("click", async () => {
  // Only a page of https or of this machine may write there.
  await navigator.clipboard?.writeText(location.href);
  say(`The ${navigator.clipboard ? "copied link" : "address"} shows the same images anywhere.`);
});
$("png").addEventListener("click", () => canvas.toBlob(download));
$("provider").addEventListener("change", () => open($("provider").value));
addEventListener("hashchange", sample);
open("wasm");

/** What the address asks for, as text by name. */
function asked() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(FIELDS.map((name) => [name, given.get(name) ?? DEFAULTS[name]]));
}

/** Ask for other images; the address remembers it. */
function go(values) {
  const given = Object.entries(values).filter(([name, value]) => value !== "" || name !== "to");
  const hash = `#${new URLSearchParams(given)}`;
  if (hash !== location.hash) history.pushState(null, "", hash);
  sample();
}

/** Start a worker with a provider of ONNX Runtime, "wasm" or "webgpu"; `why` not with the other. */
function open(provider, why = "") {
  worker?.terminate();
  ready = false;
  notice = why;
  worker = new Worker("worker.mjs", { type: "module" });
  worker.onmessage = ({ data }) => heard(data, provider);
  worker.onerror = (event) => failed(event.message ?? "worker.mjs cannot be loaded", provider);
  say("Loading the model.");
  if (provider === "webgpu" && !navigator.gpu) failed("there is none here", provider);
  else worker.postMessage({ open: provider });
}

function heard(data, provider) {
  if (data.failed !== undefined) failed(data.failed, provider);
  else if (data.ready) {
    const { threads } = data.ready;
    runs = provider === "wasm" ? `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}` : "WebGPU";
    ready = true;
    sample();
  } else if (data.total) $("progress").value = data.loaded / data.total;
  else if (data.id === request) show(data);
}

/** Say why nothing runs. Where WebGPU does not, WebAssembly does. */
function failed(why, provider) {
  if (provider === "wasm") {
    say(`The model does not run in this browser: ${why}`, true);
    return;
  }
  $("provider").value = "wasm";
  open("wasm", `WebGPU failed (${why}); WebAssembly runs instead. `);
}

/** Ask the worker for what the address says. */
function sample() {
  const values = asked();
  for (const name of FIELDS) $(name).value = values[name];
  if (!ready) return;
  const numbers = read(values);
  if (numbers === undefined) return;
  request += 1;
  times = [];
  const columns = Math.ceil(Math.sqrt(numbers.num));
  canvas.width = columns * model.image_size;
  canvas.height = Math.ceil(numbers.num / columns) * model.image_size;
  canvas.ariaLabel = `${numbers.num} images of ${model.name}, seed ${values.seed}`;
  Object.assign(canvas.dataset, { columns, num: numbers.num });
  $("progress").value = 0;
  say(`${notice}0 of ${numbers.num} images.`);
  const { seed, first, num } = values;
  $("same").hidden = numbers.to !== undefined; // walks are of this page only
  $("command").textContent =
    `lddgan sample --dataset ${model.name} --seed ${seed} --first ${first} --num ${num}`;
  worker.postMessage({ id: request, ...numbers });
}

/** Text of the fields -> numbers; undefined, and said, if they are none. */
function read({ seed, first, num, to }) {
  const whole = /^[0-9]{1,19}$/;
  for (const [name, text] of Object.entries({ seed, first, ...(to && { to }) })) {
    if (!whole.test(text) || BigInt(text) > LAST) {
      say(`${name} is ${text}, and must be in 0..2^63-1.`, true);
      return undefined;
    }
  }
  if (!/^[0-9]{1,3}$/.test(num) || +num < 1 || +num > 256) {
    say(`num is ${num}, and must be in 1..256.`, true);
    return undefined;
  }
  if (BigInt(first) + BigInt(num) - 1n > LAST) {
    say("first + num passes 2^63.", true);
    return undefined;
  }
  return { seed: BigInt(seed), first: BigInt(first), num: +num, ...(to && { to: BigInt(to) }) };
}

/** Draw one image: pixels [1,H,W,3]. */
function show({ index, pixels, ms }) {
  const side = model.image_size;
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) {
    image.data.set(pixels.subarray(3 * i, 3 * i + 3), 4 * i);
    image.data[4 * i + 3] = 255;
  }
  const columns = +canvas.dataset.columns;
  const [x, y] = [(index % columns) * side, Math.floor(index / columns) * side];
  canvas.getContext("2d").putImageData(image, x, y);
  times.push(ms);
  const num = +canvas.dataset.num;
  $("progress").value = times.length / num;
  const middle = times.toSorted((a, b) => a - b)[times.length >> 1];
  say(`${notice}${times.length} of ${num} images, ${middle.toFixed(0)} ms each, by ${runs}.`);
}

function say(text, isFailure = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", isFailure);
}

function download(blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  const { seed, first } = asked();
  link.download = `${model.name}-seed${seed}-first${first}.png`;
  link.click();
  URL.revokeObjectURL(link.href);
}
