// Opens a page of tfdde.explore in Chromium and prints what it shows as JSON.
// Arguments: node_modules folder, chromium, URL, width, kind, input file (table) or screenshot.
import { createRequire } from "node:module";
const [modules, executablePath, url, width, kind, file] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: Number(width), height: 800 } });
const errors = [], outside = [], out = { errors, outside };
// LiteRT writes what it does to stderr, which is the console of errors here.
page.on("console", (m) => m.type() === "error" && !/^(INFO|WARNING): /.test(m.text()) && errors.push(m.text()));
page.on("pageerror", (e) => errors.push(e.message));
page.on("request", (r) => {
  const address = new URL(r.url());
  if (!["data:", "blob:"].includes(address.protocol) && address.hostname !== "127.0.0.1") outside.push(r.url());
});
const values = (selector) => page.$eval(selector, (e) => JSON.parse(e.dataset.values));
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
    if (file) await page.screenshot({ path: file });
  } else if (kind === "images") {
    out.latent = await page.$$eval("#sliders input", (all) => all.map((s) => s.valueAsNumber));
    out.values = await values("#image");
    out.count = await page.$$eval("#grid canvas", (all) => all.length);
  } else {
    await page.setInputFiles("#file", file);
    await page.waitForSelector("#summary[data-sum]");
    out.sum = Number(await page.getAttribute("#summary", "data-sum"));
    out.bad = await page.$$eval("#bad li", (all) => all.map((li) => li.textContent));
    out.rows = await page.$$eval("#highest tr", (all) => all.length);
  }
  out.wide = await page.evaluate(() => document.documentElement.scrollWidth);
} catch (error) {
  errors.push(`${error.message}: ${await page.textContent("#message").catch(() => "")}`);
}
console.log(JSON.stringify(out));
await browser.close();
