// What makes a row strange, as tfdde.anomalies.explain finds it, and where the row stands.

const POINTS = 33, ROUNDS = 4, MARGIN = 0.1; // as in tfdde/anomalies/explanation.py
const MISSING = "The run keeps no normal rows, so there is neither a threshold nor a usual value.";

/** The points of a grid around a middle. */
function grid(middle, step) {
  return Array.from({ length: POINTS }, (_, i) => middle + (i / (POINTS - 1) - 0.5) * step * (POINTS - 1));
}

/**
 * Each column's share (by how many nats the log-density would rise if this entry alone took its
 * likeliest value) and that value. All columns are searched at once, on finer and finer grids.
 * `logDensity` maps rows, a flat Float32Array, to a promise of their log-densities; `ranges` are
 * those of the model's facts: {low, high, values}.
 */
export async function explain(logDensity, x, ranges) {
  const [now] = await logDensity(Float32Array.from(x));
  const best = ranges.map(() => null);
  let searched = ranges.map(({ low, high, values }, column) => {
    const step = (1 + 2 * MARGIN) * (high - low) / (POINTS - 1);
    return { column, step, few: values !== null, points: values ?? grid((low + high) / 2, step) };
  });
  for (let round = 0; round < ROUNDS && searched.length; round++) {
    const moved = searched.flatMap(({ column, points }) => points.flatMap((value) => x.with(column, value)));
    const found = await logDensity(Float32Array.from(moved));
    let from = 0;
    for (const search of searched) {
      const part = found.subarray(from, from += search.points.length);
      const place = part.reduce((top, value, i) => (value > part[top] ? i : top), 0);
      best[search.column] = { usual: search.points[place], value: part[place] };
      search.step *= 2 / (POINTS - 1); // the next grid reaches one step to both sides
      search.points = grid(search.points[place], search.step);
    }
    searched = searched.filter(({ few }) => !few);
  }
  return best.map(({ usual, value }, column) => ({
    share: Math.max(value - now, 0),
    usual: value > now ? usual : x[column],
  }));
}

/** Where a log-density stands among those of held-out rows, in one sentence. */
export function standing(density, normal) {
  if (!normal) return MISSING;
  const { threshold, held_out_log_density: known } = normal;
  const percent = (share) => `${+(100 * share).toPrecision(2)} %`;
  const side = density < threshold.log_density ? "Alarm: below" : "No alarm: not below";
  const fewer = known.filter((value) => value < density).length;
  return `${side} the threshold of ${threshold.log_density.toPrecision(4)} nats, which ` +
    `${percent(threshold.rate)} of normal rows are below (95 %: ${percent(threshold.low)} to ` +
    `${percent(threshold.high)}); ${fewer} of ${known.length} held-out rows are lower.`;
}

/** Fill an element with the standing of a row and a table of its columns, the largest share first. */
export async function showExplanation(element, model, row, density, current = () => true) {
  const { normal, columns } = model.facts, x = [...row];
  const shares = normal ? await explain(model.logDensity, x, normal.ranges) : [];
  if (!current()) return;
  const sentence = document.createElement("p"), table = document.createElement("table");
  sentence.textContent = standing(density, normal);
  if (normal) table.innerHTML = "<tr><th>column</th><th>value</th><th>share in nats</th><th>usual value</th></tr>";
  const order = [...shares.keys()].sort((a, b) => shares[b].share - shares[a].share);
  for (const i of order) {
    const { share, usual } = shares[i], tr = table.insertRow();
    const cells = [columns?.[i] ?? `${i + 1}`, +x[i].toPrecision(6), +share.toPrecision(3), +usual.toPrecision(6)];
    for (const cell of cells) tr.insertCell().textContent = cell;
  }
  element.replaceChildren(sentence, table);
  element.dataset.values = JSON.stringify(shares);
  element.dataset.row = x.join();
}
