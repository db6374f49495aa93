// Opens a page of tfdde.explore in Chromium and prints what it shows at each width as JSON.
// Arguments: node_modules folder, chromium, URL, widths of the window (as 1280,375), kind of page, CSV (of a
// table, else ""), screenshot.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
const [modules, executablePath, url, widths, kind, file, screenshot] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });

/** Use the page in a window of this width; what it shows. */
async function visit(width) {
  const page = await browser.newPage({ viewport: { width, height: 800 } });
  const errors = [], outside = [], out = { errors, outside };
  // LiteRT writes what it does to stderr, which is the console of errors here.
  page.on("console", (m) => m.type() === "error" && !/^(INFO|WARNING): /.test(m.text()) && errors.push(m.text()));
  page.on("pageerror", (e) => errors.push(e.message));
  page.on("request", (r) => {
    const address = new URL(r.url());
    if (!["data:", "blob:"].includes(address.protocol) && address.hostname !== "127.0.0.1") outside.push(r.url());
  });
  const values = (selector) => page.$eval(selector, (e) => JSON.parse(e.dataset.values));
  /** Drag the mouse over the map from one place to another, shares of its width and height. */
  async function drag(from, to) {
    await page.locator("#map").scrollIntoViewIfNeeded();
    const box = await page.locator("#map").boundingBox();
    const at = ([x, y]) => [box.x + x * box.width, box.y + y * box.height];
    await page.mouse.move(...at(from));
    await page.mouse.down();
    await page.mouse.move(...at(to), { steps: 8 });
    await page.mouse.up();
    await page.mouse.move(...at(from)); // without a button it is no drag
  }
  /** Drop a file on the page, as a browser tells it; whether the page took both events. */
  const drop = (text) => page.$eval(".drop", (target, text) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([text], "rows.csv", { type: "text/csv" }));
    const options = { dataTransfer, bubbles: true, cancelable: true };
    return ["dragover", "drop"].every((type) => !target.dispatchEvent(new DragEvent(type, options)));
  }, text);
  /** What the page says of the row whose explanation it shows, once it is that of `row`, if given. */
  async function explanation(row) {
    await page.waitForFunction((row) => {
      const { row: shown } = document.querySelector("#explanation").dataset;
      return shown && (!row || shown === row);
    }, row);
    return page.$eval("#explanation", (e) => ({
      row: e.dataset.row.split(",").map(Number),
      values: JSON.parse(e.dataset.values),
      text: e.querySelector("p").textContent,
      rows: e.querySelectorAll("tr").length,
    }));
  }
  const sum = (before) => page.waitForFunction((before) => {
    const { sum } = document.querySelector("#summary").dataset;
    return sum !== before && sum;
  }, before).then((handle) => handle.jsonValue());
  try {
    await page.goto(url);
    await page.waitForSelector("body[data-ready]", { timeout: 60000 });
    if (kind === "plane") {
      await page.check("#field");
      await page.check("#samples");
      await page.fill("#y", "-0.25");
      await page.fill("#x", "0.5");
      await page.waitForSelector("#readout[data-at='0.5,-0.25']");
      out.values = await values("#readout");
      out.label = await page.textContent("#readout");
      await page.focus("#map");
      await page.keyboard.press("ArrowRight");
      out.moved = await page.inputValue("#x");
      await drag([0.25, 0.5], [0.75, 0.3]);
      const settled = () => `${document.querySelector("#x").value},${document.querySelector("#y").value}`;
      const point = (await page.evaluate(settled)).split(",").map(Number);
      await page.waitForSelector(`#readout[data-at='${Float32Array.from(point).join()}']`);
      out.dragged = [...point, ...await values("#readout")];
      out.explanation = await explanation(Float32Array.from(point).join());
    } else if (kind === "images") {
      out.latent = await page.$$eval("#sliders input", (all) => all.map((s) => s.valueAsNumber));
      out.values = await values("#image");
      out.count = await page.$$eval("#grid canvas", (all) => all.length);
    } else {
      const lines = readFileSync(file, "utf8").split("\n");
      out.taken = await drop(lines.slice(0, 52).join("\n"));
      out.dropped = await sum();
      await page.setInputFiles("#file", file);
      out.sum = await sum(out.dropped);
      out.bad = await page.$$eval("#bad li", (all) => all.map((li) => li.textContent));
      out.rows = await page.$$eval("#highest tr", (all) => all.length);
      await page.waitForFunction(() => document.querySelector("#explained").textContent !== "");
      const first = await page.textContent("#highest tr:nth-child(2) button");
      await page.waitForFunction((line) => document.querySelector("#explained").textContent === `Line ${line}`, first);
      out.explanation = await explanation();
      out.change = await page.textContent("#change");
      const fourth = page.locator("#highest tr:nth-child(5) button");
      await fourth.click();
      const line = await fourth.textContent();
      await page.waitForFunction((line) => document.querySelector("#explained").textContent === `Line ${line}`, line);
      out.chosen = await explanation();
    }
    if (screenshot) await page.screenshot({ path: screenshot });
    out.wide = await page.evaluate(() => document.documentElement.scrollWidth);
  } catch (error) {
    errors.push(`${error.message}: ${await page.textContent("#message").catch(() => "")}`);
  }
  await page.close();
  return out;
}

const shown = [];
for (const width of widths.split(",")) shown.push(await visit(Number(width)));
console.log(JSON.stringify(shown));
await browser.close();
