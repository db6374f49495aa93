import { normal } from "./model.js";

function paint(canvas, values, [height, width, channels = 1]) {
  canvas.width = width;
  canvas.height = height;
  const pixels = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = [0, 1, 2].map((c) => 255 * values[i * channels + Math.min(c, channels - 1)]);
    pixels.data.set([r, g, b, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Sample grid, latent sliders and interpolation between two latents. */
export async function show(model, view, say) {
  const { input_shape: shape, latent_dim: dim } = model.facts;
  if (!dim) return say("This run has no generator, so there are no images to show.");
  view.innerHTML = `<h2>Samples</h2><button id="again">New samples</button><div id="grid"></div>
    <h2>One image</h2><canvas id="image" class="big"></canvas>
    <div class="controls"><label>between two latents
    <input id="between" type="range" min="0" max="1" step="0.01" value="0"></label>
    <button id="ends">New latents</button></div><div class="controls" id="sliders"></div>`;
  const find = (id) => view.querySelector(`#${id}`);
  let ends = [normal(dim), normal(dim)];
  const sliders = Array.from({ length: dim }, (_, i) => {
    const label = document.createElement("label"), slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: -4, max: 4, step: "any" });
    slider.setAttribute("aria-label", `latent ${i + 1}`);
    label.append(`z${i + 1} `, slider);
    find("sliders").append(label);
    slider.addEventListener("input", draw);
    return slider;
  });
  async function draw() {
    const image = await model.decode(Float32Array.from(sliders, (s) => s.valueAsNumber));
    paint(find("image"), image, shape);
    find("image").dataset.values = JSON.stringify([...image]);
  }
  function mix() {
    const t = find("between").valueAsNumber;
    sliders.forEach((slider, i) => { slider.value = (1 - t) * ends[0][i] + t * ends[1][i]; });
    return draw();
  }
  async function sample() {
    const images = await model.decode(normal(24 * dim));
    find("grid").replaceChildren(...Array.from({ length: 24 }, (_, i) => {
      const canvas = document.createElement("canvas");
      paint(canvas, images.subarray(i * model.width, (i + 1) * model.width), shape);
      return canvas;
    }));
  }
  find("again").addEventListener("click", sample);
  find("between").addEventListener("input", mix);
  find("ends").addEventListener("click", () => { ends = [normal(dim), normal(dim)]; return mix(); });
  await sample();
  await mix();
  say("Move a slider to change the image. Images are not explained column by column.");
}
