/** The number in a cell, as Python's float() reads it, or NaN: no hexadecimal, no empty text. */
function number(cell) {
  const text = cell.trim();
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN;
}

/**
 * Where a header has the columns of the model, or null if the line is no header. Without names of
 * columns, a line without numbers is one.
 * A header that has not each column once is an Error, as in Python.
 */
export function order(cells, columns) {
  const names = cells.map((cell) => cell.trim());
  const missing = (columns ?? []).filter((name) => !names.includes(name));
  const isHeader = cells.map(number).every(Number.isNaN) || (columns && !missing.length);
  if (!isHeader) return null;
  if (!columns) return names.map((_, i) => i);
  if (missing.length) throw new Error(`the header lacks ${missing.join(", ")}`);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new Error(`the header has ${twice} twice`);
  return columns.map((name) => names.indexOf(name));
}

/**
 * The rows of a CSV text, with the columns in the model's order: those of the header if there is
 * one and the model's columns have names. PapaParse splits the cells.
 * Returns the rows as one flat array, their line numbers, and a sentence for each bad line.
 */
export function parse(text, width, columns) {
  const rows = [], lines = [], bad = [], content = text.replace(/^\uFEFF/, "").split(/\r?\n/);
  let places = [...Array(width).keys()], expected = width;
  for (const [i, line] of content.entries()) {
    if (!line.trim()) continue;
    // Line by line, so that an open quote spoils its own line only.
    const { data: [cells], errors } = Papa.parse(line, { delimiter: ",", newline: "\n" });
    if (i === 0) {
      let found;
      try {
        found = order(cells, columns);
      } catch (error) {
        return { rows: new Float32Array(0), lines, bad: [`line 1: ${error.message}`] };
      }
      if (found) {
        if (columns) [places, expected] = [found, cells.length];
        continue;
      }
    }
    const numbers = places.map((place) => number(cells[place] ?? ""));
    if (errors.length) bad.push(`line ${i + 1}: ${errors[0].message}`);
    else if (cells.length !== expected) {
      bad.push(`line ${i + 1}: ${cells.length} cells, not ${expected}`);
    } else if (!numbers.every((v) => Number.isFinite(Math.fround(v)))) {
      bad.push(`line ${i + 1}: not all cells are finite numbers`);
    } else {
      rows.push(...numbers);
      lines.push(i + 1);
    }
  }
  return { rows: Float32Array.from(rows), lines, bad };
}

/** Anomaly scores (-log-density) of a CSV: their range, their histogram and the highest rows. */
export async function show(model, view, say) {
  view.innerHTML = `<div class="drop"><label>A CSV of ${model.width} columns:
    <input id="file" type="file" accept=".csv,text/csv"></label> or drop it here.</div>
    <p id="summary" aria-live="polite"></p><p id="change"></p>
    <canvas id="histogram" width="640" height="200" role="img" aria-label="Histogram of anomaly scores"></canvas>
    <div class="scroll"><table id="highest"></table></div><h2 id="explained"></h2>
    <div class="scroll" id="explanation"></div><ul id="bad"></ul>`;
  const find = (id) => view.querySelector(`#${id}`);
  // Only when it is needed: the tests run this file alone.
  const { showExplanation } = await import("./explanation.js");
  const { change } = await import("./change.js");
  let asked = 0;
  async function choose(line, row, score) {
    const mine = ++asked;
    await showExplanation(find("explanation"), model, row, -score, () => mine === asked);
    if (mine === asked) find("explained").textContent = `Line ${line}`;
  }
  async function read(file) {
    if (!file) return;
    asked++; // what is said of a line of an earlier file is not true of this one
    for (const id of ["explained", "change"]) find(id).textContent = "";
    find("explanation").replaceChildren();
    const { rows, lines, bad } = parse(await file.text(), model.width, model.facts.columns);
    const entries = bad.slice(0, 20).map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    });
    find("bad").replaceChildren(...entries);
    if (!lines.length) return say(`${file.name} has no row of ${model.width} finite numbers${bad.length ? `; ${bad[0]}` : ""}.`, true);
    const densities = await model.logDensity(rows), scores = densities.map((v) => -v);
    const sum = scores.reduce((a, b) => a + b, 0);
    const low = scores.reduce((a, b) => Math.min(a, b)), high = scores.reduce((a, b) => Math.max(a, b));
    find("summary").textContent = `${lines.length} rows scored, ${bad.length} bad; ` +
      `anomaly scores ${low.toPrecision(5)} to ${high.toPrecision(5)}` +
      `${model.facts.normalized ? "" : " (unnormalised)"}`;
    find("summary").dataset.sum = sum;
    find("change").textContent = change(densities, model.facts.normal);
    const bins = new Array(40).fill(0);
    for (const s of scores) bins[Math.min(39, Math.floor(40 * (s - low) / (high - low || 1)))]++;
    const most = Math.max(...bins), context = find("histogram").getContext("2d");
    context.clearRect(0, 0, 640, 200);
    context.fillStyle = "#06c";
    bins.forEach((n, i) => context.fillRect(i * 16, 200 - 195 * n / most, 15, 195 * n / most));
    const table = find("highest");
    table.innerHTML = "<tr><th>line</th><th>score</th><th>row</th></tr>";
    const highest = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 10);
    const rowOf = (i) => rows.slice(i * model.width, (i + 1) * model.width);
    for (const i of highest) {
      const tr = table.insertRow(), button = document.createElement("button");
      button.textContent = lines[i];
      button.setAttribute("aria-label", `Explain line ${lines[i]}`);
      button.addEventListener("click", () => choose(lines[i], rowOf(i), scores[i]));
      tr.insertCell().append(button);
      for (const cell of [scores[i].toPrecision(5), [...rowOf(i)].map((v) => +v.toPrecision(5)).join(", ")]) {
        tr.insertCell().textContent = cell;
      }
    }
    await choose(lines[highest[0]], rowOf(highest[0]), scores[highest[0]]);
    say("The rows with the highest scores are the least likely. Choose a line to see what is strange about it.");
  }
  find("file").addEventListener("change", (event) => read(event.target.files[0]));
  view.addEventListener("dragover", (event) => event.preventDefault());
  view.addEventListener("drop", (event) => { event.preventDefault(); return read(event.dataTransfer.files[0]); });
  const columns = model.facts.columns;
  say(columns ? `Choose a CSV with the columns ${columns.join(", ")}, in any order if a header names them.`
    : `Choose a CSV with ${model.width} columns of numbers.`);
}
