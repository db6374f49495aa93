import { loadModel } from "./model.js";

const message = document.querySelector("#message");

/** Show one sentence in the page; an error stays until the next success. */
export function say(text, error = false) {
  message.textContent = text;
  message.className = error ? "error" : "";
}

function showFacts(facts) {
  const z = facts.log_partition, held = facts.held_out;
  const entries = {
    "σ": `${facts.sigma} (unit: ${facts.sigma_unit})`,
    "log-density": facts.normalized ? "normalised" : "unnormalised",
    "log Z": z ? JSON.stringify(z) : "not known",
    "held-out log-likelihood": held
      ? `${held.log_likelihood} ± ${held.standard_error} nats (${held.rows} rows)` : "not known",
    "versions": Object.entries(facts.versions).map((pair) => pair.join(" ")).join(", "),
  };
  const list = document.querySelector("#facts");
  for (const [name, value] of Object.entries(entries)) {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    list.append(dt, dd);
  }
}

window.addEventListener("unhandledrejection", (event) => say(`${event.reason.message}`, true));

try {
  const model = await loadModel();
  showFacts(model.facts);
  const { input_shape: shape } = model.facts;
  const file = shape.length > 1 ? "./images.js" : shape[0] === 2 ? "./plane.js" : "./table.js";
  const { show } = await import(file);
  await show(model, document.querySelector("#view"), say);
  window.explore = model;
  document.body.dataset.ready = "yes";
} catch (error) {
  say(`The page can't run the model: ${error.message}`, true);
}
