// Times a model of benchmarks/browser.py in Chromium, by LiteRT.js and by ONNX Runtime Web.
// Arguments: node_modules folder, chromium, a JSON with the address, the calls and the rounds.
import { createRequire } from "node:module";
const [modules, executablePath, job] = process.argv.slice(2);
const { url, calls, rounds } = JSON.parse(job);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath,
  args: ["--no-sandbox", "--disable-renderer-backgrounding", "--disable-background-timer-throttling"],
});

/** Open a page; the seconds until it has its first value. */
async function open(path, start) {
  const page = await browser.newPage();
  await page.goto(url + path);
  const begun = performance.now();
  await page.evaluate(start);
  return [page, (performance.now() - begun) / 1000];
}

const [litert, litertStart] = await open("onnx.html", async () => {
  // The page's own code, on a page without its pictures.
  const map = document.createElement("script");
  map.type = "importmap";
  map.textContent = JSON.stringify({ imports: {
    "@litertjs/core": "./litert/core/index.js", "@litertjs/wasm-utils": "./litert/wasm-utils/index.js" } });
  document.head.append(map);
  const { loadModel } = await import("/model.js");
  const model = await loadModel();
  globalThis.facts = model.facts;
  globalThis.call = { log_density: model.logDensity, score: model.score, decode: model.decode };
  await model.logDensity(new Float32Array(model.width));
});

const [onnx, onnxStart] = await open("onnx.html", async () => {
  const ort = await import("/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/";
  globalThis.facts = await (await fetch("model.tflite.json")).json();
  globalThis.call = {};
  const names = { log_density: ["x", "log_density"], score: ["x", "score"], decode: ["z", "x"] };
  for (const [name, [input, output]] of Object.entries(names)) {
    if (!facts.signatures[name]) continue;
    const session = await ort.InferenceSession.create(`/onnx/${name}/1/model.onnx`, { executionProviders: ["wasm"] });
    const shape = facts.signatures[name].inputs[input].shape.slice(1);
    const width = shape.reduce((a, b) => a * b, 1);
    call[name] = async (rows) => {
      const tensor = new ort.Tensor("float32", rows, [rows.length / width, ...shape]);
      return (await session.run({ [input]: tensor }))[output].data;
    };
  }
  await call.log_density(new Float32Array(facts.input_shape.reduce((a, b) => a * b, 1)));
});

/** In a page: milliseconds of a call with so many rows, over a fifth of a second, and its values. */
async function time([name, count]) {
  const input = name === "decode" ? "z" : "x";
  const width = facts.signatures[name].inputs[input].shape.slice(1).reduce((a, b) => a * b, 1);
  const rows = Float32Array.from({ length: count * width }, (_, i) => 0.5 + 0.4 * Math.sin(i * 0.7));
  const values = await call[name](rows);
  let times = 0;
  const start = performance.now();
  while (performance.now() - start < 200 || times < 3) {
    await call[name](rows);
    times++;
  }
  return [(performance.now() - start) / times, Array.from(values)];
}

const pages = { litert, onnx }, results = [];
for (const [name, sizes] of Object.entries(calls)) {
  for (const rows of sizes) {
    const taken = { litert: [], onnx: [] }, values = {};
    // WebAssembly is compiled a second time, to faster code, while it runs.
    for (const page of [litert, onnx, litert, onnx, litert, onnx]) await page.evaluate(time, [name, rows]);
    for (let round = 0; round < rounds; round++) {
      for (const [runtime, page] of Object.entries(pages)) {
        const [ms, got] = await page.evaluate(time, [name, rows]);
        taken[runtime].push(ms);
        values[runtime] = got;
      }
    }
    const largest = values.litert.reduce((a, v) => Math.max(a, Math.abs(v)), 0);
    const off = values.litert.reduce((a, v, i) => Math.max(a, Math.abs(v - values.onnx[i])), 0);
    if (values.litert.length !== values.onnx.length || !(off <= 1e-4 * largest)) {
      throw new Error(`${name} of ${rows} rows differs by ${off} of ${largest}`);
    }
    const row = { signature: name, rows };
    for (const [runtime, ms] of Object.entries(taken)) {
      ms.sort((a, b) => a - b);
      row[`${runtime}_ms`] = [ms[ms.length >> 1], ms[0], ms.at(-1)].map((v) => Number(v.toPrecision(3)));
    }
    results.push(row);
  }
}
const seconds = { litert_start_seconds: litertStart, onnx_start_seconds: onnxStart };
for (const key of Object.keys(seconds)) seconds[key] = Number(seconds[key].toPrecision(2));
console.log(JSON.stringify({ ...seconds, calls: results }));
await browser.close();
