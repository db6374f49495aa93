import { loadLiteRt, loadAndCompile, Tensor } from "@litertjs/core";

/** Load the model of this page. Its functions take any number of rows; the last batch is padded. */
export async function loadModel() {
  const response = await fetch("model.tflite.json");
  if (!response.ok) throw new Error("The file model.tflite.json is missing.");
  const facts = await response.json();
  await loadLiteRt("./litert/wasm/");
  const model = await loadAndCompile("./model.tflite", { accelerator: "wasm" });

  /** Run a signature on rows: a flat Float32Array of `width` values a row gives another one. */
  async function call(signature, input, output, rows, width) {
    const batch = facts.batch_size, count = rows.length / width;
    const shape = facts.signatures[signature].inputs[input].shape.slice(1);
    let all = null;
    for (let from = 0; from < count; from += batch) {
      const part = new Float32Array(batch * width);
      part.set(rows.subarray(from * width, (from + batch) * width));
      const tensor = new Tensor(part, [batch, ...shape]);
      const results = await model.run(signature, { [input]: tensor });
      const values = await results[output].data();
      const each = values.length / batch;
      all ??= new Float32Array(count * each);
      all.set(values.subarray(0, Math.min(batch, count - from) * each), from * each);
      tensor.delete();
      results[output].delete();
    }
    return all ?? new Float32Array(0);
  }
  const width = facts.input_shape.reduce((a, b) => a * b, 1);
  return {
    facts,
    width,
    logDensity: (x) => call("log_density", "x", "log_density", x, width),
    score: (x) => call("score", "x", "score", x, width),
    decode: (z) => call("decode", "z", "x", z, facts.latent_dim),
  };
}

/** `count` standard normal numbers. */
export function normal(count) {
  return Float32Array.from({ length: count }, () =>
    Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()));
}
