// Have rows changed since training? The log-densities of new rows against those of held-out rows.

const LEAST = 8; // pairs of rows, n m / (n + m), that the test's approximation needs
const COLUMNS = "Which columns differ, export/score.py --drift tells, which has the rows that a run keeps.";

/**
 * The two-sample Kolmogorov-Smirnov test: the largest distance of the two distribution functions
 * and its p-value by the limiting distribution, corrected for few rows (Stephens 1970). Ties make
 * the p-value too large.
 */
export function kolmogorovSmirnov(first, second) {
  const [a, b] = [first, second].map((values) => Float64Array.from(values).sort());
  let i = 0, j = 0, distance = 0;
  while (i < a.length && j < b.length) {
    const value = Math.min(a[i], b[j]);
    while (a[i] === value) i++;
    while (b[j] === value) j++;
    distance = Math.max(distance, Math.abs(i / a.length - j / b.length));
  }
  const pairs = Math.sqrt(a.length * b.length / (a.length + b.length));
  const x = (pairs + 0.12 + 0.11 / pairs) * distance;
  if (x < 0.2) return { distance, p: 1 }; // to 1e-11, where the series converges slowly
  let p = 0;
  for (let k = 1; k <= 20; k++) p -= 2 * (-1) ** k * Math.exp(-2 * k * k * x * x);
  return { distance, p: Math.min(Math.max(p, 0), 1) };
}

/** Whether rows of these log-densities differ from held-out rows, in sentences; "" if none are known. */
export function change(densities, normal) {
  const known = normal?.held_out_log_density ?? [];
  const n = densities.length, m = known.length;
  if (!m) return "";
  if (n * m < LEAST * (n + m)) return `${n} rows are too few to tell whether the table has changed.`;
  const { p } = kolmogorovSmirnov(densities, known);
  const found = p < 0.01 ? "The table has changed" : "No change is seen";
  const value = p < 1e-4 ? "p < 0.0001" : `p = ${+p.toPrecision(2)}`;
  return `${found}: ${value} that log-densities of ${n} rows and of ${m} held-out rows are alike. ${COLUMNS}`;
}
