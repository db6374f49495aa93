import { showExplanation } from "./explanation.js";
import { normal } from "./model.js";

const SIDE = 96, ARROWS = 16;

/** The label of a log-density: normalised with log Z's error, or unnormalised. */
export function label(facts) {
  if (!facts.normalized) return "unnormalised";
  const error = facts.log_partition?.standard_error;
  return `normalised, log Z ${error === undefined ? "known" : `± ${error.toPrecision(2)}`}`;
}

function grid(side, low, high) {
  const points = new Float32Array(side * side * 2);
  for (let i = 0; i < side * side; i++) {
    points[2 * i] = low[0] + ((i % side) + 0.5) * (high[0] - low[0]) / side;
    points[2 * i + 1] = high[1] - (Math.floor(i / side) + 0.5) * (high[1] - low[1]) / side;
  }
  return points;
}

/** Heat map, score field, samples and a query point that mouse, finger and arrow keys move. */
export async function show(model, view, say) {
  const { facts } = model, size = 480;
  view.innerHTML = `<canvas id="map" width="${size}" height="${size}" tabindex="0" role="application"
    aria-label="Density; arrow keys move the query point"></canvas>
    <div class="controls"><label><input type="checkbox" id="field"> score field</label>
    <label hidden><input type="checkbox" id="samples"> samples</label>
    <label>x <input id="x" type="number" step="any" value="0"></label>
    <label>y <input id="y" type="number" step="any" value="0"></label></div>
    <p id="readout" aria-live="polite"></p><div class="scroll" id="explanation"></div>`;
  const find = (id) => view.querySelector(`#${id}`);
  const canvas = find("map"), context = canvas.getContext("2d");
  find("samples").parentElement.hidden = !facts.latent_dim;
  const { mean, standard_deviation: scale, range } = facts.preprocessing;
  const at = (i) => mean?.[mean.length === 2 ? i : 0] ?? 0;
  const spread = (i) => 3 * (scale?.[scale.length === 2 ? i : 0] ?? 4 / 3);
  const [low, high] = range ?? [-1, 1].map((side) => [0, 1].map((i) => at(i) + side * spread(i)));
  const values = await model.logDensity(grid(SIDE, low, high));
  const arrows = grid(ARROWS, low, high), field = await model.score(arrows);
  const longest = field.reduce((a, b) => Math.max(a, Math.abs(b)), 1e-9);
  const drawn = facts.latent_dim ? await model.decode(normal(1000 * facts.latent_dim)) : null;
  const top = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const heat = new OffscreenCanvas(SIDE, SIDE), pixels = new ImageData(SIDE, SIDE);
  values.forEach((value, i) => {
    const p = Math.exp(value - top);
    pixels.data.set([255 * (1 - p), 255 * (1 - p * 0.7), 255 * (1 - p * 0.3), 255], 4 * i);
  });
  heat.getContext("2d").putImageData(pixels, 0, 0);

  const toX = (x) => (x - low[0]) / (high[0] - low[0]) * size;
  const toY = (y) => (high[1] - y) / (high[1] - low[1]) * size;
  function arrow(x, y, dx, dy, colour) {
    const angle = Math.atan2(dy, dx);
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + dx, y + dy);
    for (const turn of [2.6, -2.6]) {
      context.moveTo(x + dx, y + dy);
      context.lineTo(x + dx + 5 * Math.cos(angle + turn), y + dy + 5 * Math.sin(angle + turn));
    }
    context.stroke();
  }

  let asked = 0;
  async function update() {
    const mine = ++asked;
    const query = Float32Array.of(find("x").valueAsNumber, find("y").valueAsNumber);
    if (!query.every(Number.isFinite)) return say("The query point must be two finite numbers.", true);
    const density = (await model.logDensity(query))[0], score = await model.score(query);
    if (mine !== asked) return;
    context.imageSmoothingEnabled = false;
    context.drawImage(heat, 0, 0, size, size);
    context.lineWidth = 1;
    if (find("field").checked) {
      for (let i = 0; i < field.length; i += 2) {
        const by = 1.5 * size / ARROWS / longest;
        arrow(toX(arrows[i]), toY(arrows[i + 1]), field[i] * by, -field[i + 1] * by, "#555");
      }
    }
    context.fillStyle = "#c40";
    if (drawn && find("samples").checked) {
      for (let i = 0; i < drawn.length; i += 2) {
        context.fillRect(toX(drawn[i]) - 1, toY(drawn[i + 1]) - 1, 2, 2);
      }
    }
    const [x, y] = [toX(query[0]), toY(query[1])], norm = Math.hypot(...score) || 1;
    const length = 60 * norm / (norm + longest / 4);
    context.lineWidth = 3;
    arrow(x, y, score[0] / norm * length, -score[1] / norm * length, "#d00");
    context.beginPath();
    context.arc(x, y, 6, 0, 7);
    context.fill();
    const readout = find("readout");
    readout.textContent = `log-density ${density.toPrecision(6)} nats (${label(facts)}); ` +
      `score (${Array.from(score, (v) => v.toPrecision(5)).join(", ")})`;
    readout.dataset.at = query.join();
    readout.dataset.values = JSON.stringify([density, ...score]);
    say("Drag the point, or move it with the arrow keys.");
    await showExplanation(find("explanation"), model, query, density, () => mine === asked);
  }
  function move(x, y) {
    find("x").value = x;
    find("y").value = y;
    return update();
  }
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = canvas.getBoundingClientRect();
    move(low[0] + (event.clientX - box.left) / box.width * (high[0] - low[0]),
      high[1] - (event.clientY - box.top) / box.height * (high[1] - low[1]));
  };
  canvas.addEventListener("pointerdown", drag);
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(find("x").valueAsNumber + step[0] * (high[0] - low[0]) / 100,
      find("y").valueAsNumber + step[1] * (high[1] - low[1]) / 100);
  });
  view.querySelectorAll("input").forEach((input) => input.addEventListener("input", update));
  await move(at(0), at(1));
}
