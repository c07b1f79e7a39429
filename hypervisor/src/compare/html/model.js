// What is in the page's data, what of it is shown, and numbers as people read them. Nothing here draws.
//
// Strings of the data may be a guest's own words: they become text nodes and attribute values, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const engines = data.engines || [data];

// The order of the field's history; what is unknown comes last.
const HISTORY = ["interpret-nocache", "interpret", "trap", "patch", "patch-adaptive", "translate",
  "translate-adaptive", "pv", "hvm-shadow", "hvm", "hvm-irqchip"];
const place = (name) => (HISTORY.indexOf(name) + HISTORY.length + 1) % (HISTORY.length + 1);

const allTechniques = [...new Set(engines.flatMap((e) => e.workloads.flatMap((w) => Object.keys(w.techniques))))]
  .sort((a, b) => place(a) - place(b));
const allWorkloads = engines.length ? engines[0].workloads : [];

const state = {
  engine: 0,
  baseline: engines.map((e) => e.baseline).find((name) => name) || allTechniques[0],
  hidden: new Set(),
  left: new Set(),
  // One that shows all that a workload can have.
  current: (allWorkloads.find((w) => Object.values(w.techniques).some((t) => t.batches.length))
    || allWorkloads[0] || { name: "" }).name,
  relative: true,
  causesBy: "count",
  causesShare: true,
  detail: null,
};

const engine = () => engines[state.engine];
const techniques = () => allTechniques.filter((name) => !state.hidden.has(name));
const workloads = () => (engine() ? engine().workloads.filter((w) => !state.left.has(w.name)) : []);
const named = (name) => engine() && engine().workloads.find((w) => w.name === name);
const colour = (name) => (HISTORY.includes(name) || name === "native" ? `var(--${name})` : "var(--text)");

const perOperation = (result, value) => value / Math.max(1, result.ops);

/// Times, in three digits.
function time(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (ns >= size) { return `${digits(ns / size)} ${unit}`; }
  }
  return `${digits(ns)} ns`;
}

function digits(value) {
  if (value === 0) { return "0"; }
  if (value >= 100) { return Math.round(value).toLocaleString("en"); }
  return value >= 0.0001 ? String(Number(value.toPrecision(value >= 1 ? 3 : 2))) : value.toExponential(1);
}

const count = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : digits(value));
const times = (value) => `${digits(value)}×`;
const percent = (value) => `${value >= 0 ? "+" : "−"}${digits(Number(Math.abs(value).toFixed(6)))} %`;

/// What a technique's bar or dot is about, in words.
function interval(result) {
  const spread = result.spread;
  if (!spread) { return "measured once"; }
  return `${time(spread.low)} to ${time(spread.high)} with ${Math.round(spread.confidence * 100)} % confidence, `
    + `${result.runs.length} runs`;
}
