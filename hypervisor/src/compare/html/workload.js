// One workload: what its time and its exits are made of, and how sure the numbers are.

// Causes have no colours of their own: each gets one by its rank in this workload.
const CAUSE_HUES = [211, 25, 140, 330, 50, 265, 180, 0, 95, 300];
const REST = "everything else";
const causeColour = (rank) => (rank < 0 ? "var(--strong)"
  : `light-dark(hsl(${CAUSE_HUES[rank]} 62% 42%), hsl(${CAUSE_HUES[rank]} 65% 66%))`);

const results = () => {
  const workload = named(state.current);
  return workload ? techniques().filter((name) => workload.techniques[name])
    .map((name) => ({ name, result: workload.techniques[name] })) : [];
};

/// Horizontal bars, a row for each technique; `parts(result)` are [name, amount, colour].
function bars(id, title, sentence, { parts, controls = [], share, label, legend, head }) {
  const all = results().map(({ name, result }) => ({ name, parts: parts(result) }));
  const sum = (row) => row.parts.reduce((total, [, amount]) => total + amount, 0);
  const room = roomFor(id, 132);
  const most = share ? 100 : Math.max(...all.map(sum), 0);
  const scale = linearScale(0, most || 1, room.width, 6, 84);
  const draw = (row, top, height) => {
    const total = sum(all[row]);
    let from = 0;
    const drawn = all[row].parts.filter(([, amount]) => amount > 0).map(([name, amount, paint]) => {
      const part = share ? amount / total * 100 : amount;
      const [a, b] = [scale.place(from), scale.place(from + part)];
      from += part;
      return svg("rect", { x: a, y: top + 4, width: Math.max(.75, b - a - .75), height: height - 8, fill: paint },
        svg("title", null, `${all[row].name}: ${name} ${label(amount)} of ${label(total)}`));
    });
    return [...drawn, svg("text", { class: "value", x: scale.place(from) + 6, y: top + height / 2 + 4 },
      total ? label(total) : "none")];
  };
  const names = all.map((row) => ({ text: row.name }));
  const picture = all.length ? rowsPicture({ names, heights: all.map(() => 28), scale, draw, room,
    label: (tick) => (share ? `${digits(tick)} %` : label(tick)),
    said: `${title}: a bar for each technique; the button Numbers shows them as a table` }) : el("p", { class: "soft" }, "Nothing was measured.");
  chart(id, title, sentence, { controls, picture, legend: legend(), rows: () => [["technique", ...head, "all"],
    all.map((row) => [row.name, ...head.map((name) => {
      const part = row.parts.find(([other]) => other === name);
      return part ? label(part[1]) : "–";
    }), label(sum(row))])] });
}

const legendOf = (entries) => el("ul", { class: "legend" }, ...entries.map(([name, paint]) => el("li", null,
  svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, rx: 2, fill: paint })), name)));

function partsChart() {
  const guest = "light-dark(#9cc3ee, #355f8f)", host = "light-dark(#c4572a, #e58a5e)";
  bars("parts", "Where the time goes", "How long the whole workload took: the part in which the hypervisor worked on "
    + "exits, and the rest, in which the guest ran, slept, or was on its way in and out.", {
    parts: (result) => {
      const worked = Math.min(result.host_ns, result.ns);
      return [["hypervisor", worked, host], ["guest, and the ways in and out", result.ns - worked, guest]];
    },
    label: time,
    legend: () => legendOf([["hypervisor", host], ["guest, and the ways in and out", guest]]),
    head: ["hypervisor", "guest, and the ways in and out"],
  });
}

function causesChart() {
  const by = state.causesBy;
  const sums = new Map();
  for (const row of results().flatMap(({ result }) => result.exits)) {
    sums.set(row.cause, (sums.get(row.cause) || 0) + row[by]);
  }
  const ranked = [...sums].sort((a, b) => b[1] - a[1]).map(([cause]) => cause);
  const top = ranked.slice(0, CAUSE_HUES.length);
  const rest = ranked.length > top.length;
  bars("causes", "Why the guest was left", "Each colour is one cause of exits. Compare a cause between techniques: what "
    + "one of them does not need to ask is missing in its bar.", {
    parts: (result) => {
      const parts = top.map((cause, rank) => {
        const row = result.exits.find((exit) => exit.cause === cause);
        return [cause, row ? row[by] : 0, causeColour(rank)];
      });
      const others = result.exits.filter((exit) => !top.includes(exit.cause)).reduce((sum, exit) => sum + exit[by], 0);
      return rest ? [...parts, [REST, others, causeColour(-1)]] : parts;
    },
    controls: [
      segments("Amount", [["count", "exits"], ["ns", "hypervisor's time"]], by, (value) => { state.causesBy = value; causesChart(); }),
      segments("Length of bars", [[true, "shares"], [false, "amounts"]], state.causesShare,
        (value) => { state.causesShare = value; causesChart(); }),
    ],
    share: state.causesShare,
    label: by === "ns" ? time : count,
    legend: () => legendOf([...top.map((cause, rank) => [cause, causeColour(rank)]), ...(rest ? [[REST, causeColour(-1)]] : [])]),
    head: rest ? [...top, REST] : top,
  });
}

/// Histograms one below the other on a common scale; entries are {name, buckets: [[upper end, count]], marks}.
function histograms(id, title, sentence, { entries, label, controls, rows, none }) {
  const ends = entries.flatMap((entry) => entry.buckets.map(([end]) => Math.max(end, 1)));
  const room = roomFor(id, 260);
  const scale = logScale(ends, room.width, 20);
  const draw = (row, top, height) => {
    const entry = entries[row];
    const most = Math.max(...entry.buckets.map(([, n]) => n));
    const total = entry.buckets.reduce((sum, [, n]) => sum + n, 0);
    const bars = entry.buckets.map(([end, n]) => {
      const x = scale.place(Math.max(end, 1)), tall = Math.max(1.5, n / most * (height - 14));
      return svg("rect", { x: x - 3, y: top + height - 4 - tall, width: 6, height: tall, fill: entry.paint },
        svg("title", null, `${entry.name}: ${count(n)} of ${count(total)} up to ${label(end)}`));
    });
    const ticks = (entry.marks || []).map(([at, said]) => {
      const x = scale.place(Math.max(at, 1));
      return svg("line", { class: "tick", x1: x, x2: x, y1: top + 2, y2: top + 9 }, svg("title", null, `${said}: ${label(at)}`));
    });
    return [...bars, ...ticks];
  };
  const names = entries.map((entry) => ({ text: entry.text }));
  const picture = entries.length ? rowsPicture({ names, heights: entries.map(() => 46), scale, label, draw, room,
    said: `${title}: a histogram for each of ${entries.length} rows; the button Numbers shows them as a table` }) : el("p", { class: "soft" }, none);
  chart(id, title, sentence, { controls, picture, rows: entries.length ? rows : null });
}

function detail() {
  const there = results();
  const found = there.find(({ name }) => name === state.detail)
    || there.find(({ name }) => name === state.baseline) || there[0];
  return found || { name: "", result: { exits: [], batches: [] } };
}

function latencyChart() {
  const { name, result } = detail();
  const choose = select("Technique", results().map((row) => [row.name, row.name]), name,
    (value) => { state.detail = value; latencyChart(); });
  const entries = result.exits.map((row) => ({ name: row.cause, text: `${row.cause} (${count(row.count)})`,
    buckets: row.histogram, paint: colour(name),
    marks: [[row.p50_ns, "half of them took at most"], [row.p90_ns, "9 of 10"], [row.p99_ns, "99 of 100"]] }));
  histograms("latency", "How long the hypervisor worked on an exit", "One row for each cause, most time first: the higher "
    + "a bar, the more exits took that long. The three ticks at the top of a row are the times that 50, 90 and 99 of 100 "
    + "exits did not exceed.", {
    entries, label: (ns) => (ns === 0 ? "0" : time(ns)), controls: [choose], none: `By ${name || "none"} there was no exit.`,
    rows: () => [["cause", "kind", "exits", "in all", "mean", "50 %", "90 %", "99 %", "longest"], result.exits.map((row) =>
      [row.cause, row.group, count(row.count), ...[row.ns, row.avg_ns, row.p50_ns, row.p90_ns, row.p99_ns, row.max_ns].map(time)])],
  });
}

function batchesChart() {
  const all = results().flatMap(({ name, result }) => (result.batches || []).map((batch) => ({ name, batch })));
  const entries = all.map(({ name, batch }) => ({ name: `${name}: ${batch.kind}`,
    text: `${name}: ${batch.kind} (${count(batch.batches)})`, buckets: batch.histogram, paint: colour(name),
    marks: [[batch.median, "half of them had at most"], [batch.max, "the largest had"]] }));
  histograms("batches", "How much is asked for at once", "One row for each kind of batch that crossed between guest and "
    + "hypervisor: the further right its bars are, the more one exit did. The ticks are the median and the largest.", {
    entries, label: (size) => count(size), controls: [],
    none: "Nothing crossed in batches: each request was an exit of its own, or there was none.",
    rows: () => [["technique", "what", "batches", "in all", "mean", "median", "largest"], all.map(({ name, batch }) =>
      [name, batch.kind, count(batch.batches), count(batch.requests), digits(batch.requests / Math.max(1, batch.batches)),
        count(batch.median), count(batch.max)])],
  });
}

function besideTable() {
  const there = results().filter(({ result }) => (result.work || []).length || Object.keys(result.flushes || {}).length);
  const rows = there.flatMap(({ name, result }) => [
    ...(result.work || []).map((work) => [name, work.kind, count(work.count)]),
    ...Object.entries(result.flushes || {}).map(([why, n]) => [name, `queue of hypercalls sent: ${why} (the guest says so)`, count(n)]),
  ]);
  const title = "Work that is no exit";
  chart("beside", title, "What a technique does instead of leaving the guest has its price, too: instructions interpreted, "
    + "code translated, sites patched.", {
    picture: rows.length ? el("div", { class: "table" }, table(title, ["technique", "what", "how much"], rows))
      : el("p", { class: "soft" }, "None of the techniques shown has any."),
  });
}

function runsChart() {
  // Against a median of nothing, or next to it, no time has a place.
  const rows = results().filter(({ result }) => result.spread
    && [...result.runs.map((run) => run.ns), result.spread.low, result.spread.high]
      .every((ns) => Number.isFinite(ns / result.spread.median)));
  const relative = (result, ns) => ns / result.spread.median;
  const values = rows.flatMap(({ result }) => [...result.runs.map((run) => relative(result, run.ns)), 1]);
  const room = roomFor("runs", 132);
  // Where runs differ by more than half, a scale of percents would hide all others.
  const wild = values.some((value) => value < 0.5 || value > 1.5);
  const scale = wild ? logScale(values, room.width, 14)
    : linearScale(Math.min(0.99, ...values), Math.max(1.01, ...values), room.width, 14);
  const label = (tick) => (Math.abs(tick - 1) < 1e-9 ? "median" : wild ? times(tick) : percent(100 * (tick - 1)));
  const draw = (row, top, height) => {
    const { name, result } = rows[row];
    const [a, b] = [result.spread.low, result.spread.high].map((ns) => scale.place(relative(result, ns)));
    const band = svg("rect", { class: "band", x: a, y: top + 3, width: Math.max(1, b - a), height: height - 6, fill: colour(name) });
    const marks = result.runs.flatMap((run, number) => {
      const x = scale.place(relative(result, run.ns)), y = top + height / 2;
      const far = result.spread.outliers.includes(number);
      return [far ? svg("circle", { class: "far", cx: x, cy: y, r: 7.5 }) : null,
        marker(name, x, y, 3.6, `run ${number + 1}: ${time(run.ns)}, ${count(run.traps)} exits${far ? " (far from the others)" : ""}`)].filter(Boolean);
    });
    return [band, ...marks];
  };
  const picture = rows.length ? rowsPicture({ names: rows.map(({ name }) => ({ text: name })), heights: rows.map(() => 28), scale,
    label, draw, room, marks: [1],
    said: "Each run's time against the technique's median" }) : el("p", { class: "soft" },
    "Each was measured once. With --repeat 10 there would be intervals here.");
  chart("runs", "How much the runs differ", "Each mark is one run, against the median of its technique. The band is where "
    + "the true median lies with the confidence that the numbers state; a ring is a run far from the others, which counts "
    + "all the same.", {
    picture, rows: rows.length ? () => [["technique", "median", "interval", "confidence", "fastest", "slowest", "far from the others"],
      rows.map(({ name, result: { spread } }) => [name, time(spread.median), `${time(spread.low)} to ${time(spread.high)}`,
        `${digits(spread.confidence * 100)} %`, time(spread.min), time(spread.max),
        spread.outliers.map((run) => `run ${run + 1}`).join(", ") || "none"])] : null,
  });
}

/// What a teacher would say first.
function told() {
  const workload = named(state.current);
  const there = results();
  if (!workload || !there.length) { return "No technique that is shown did this workload."; }
  const by = (value) => there.reduce((best, row) => (value(row.result) < value(best.result) ? row : best));
  const fastest = by((result) => perOperation(result, result.ns));
  const base = workload.techniques[state.baseline];
  const cost = base && base.exits.length
    ? ` By ${state.baseline} it takes ${time(base.ns)} and ${count(base.traps)} exits, for which “${base.exits[0].cause}” takes the most time.`
    : base ? ` By ${state.baseline} it takes ${time(base.ns)} and no exit.` : "";
  const faster = base && fastest.name !== state.baseline
    ? `, ${times(perOperation(fastest.result, fastest.result.ns) / perOperation(base, base.ns))} of that` : "";
  const fewest = by((result) => perOperation(result, result.traps));
  return `${workload.name}: ${workload.about}.${cost} Of those shown ${fastest.name} is the fastest, with ${time(fastest.result.ns)}${faster}; `
    + `the fewest exits has ${fewest.name}: ${count(fewest.result.traps)}.`;
}

function drawWorkload() {
  const list = workloads();
  const at = list.findIndex((workload) => workload.name === state.current);
  const go = (by) => { state.current = list[(at + by + list.length) % list.length].name; drawOverview(); drawWorkload(); };
  put("choose", el("div", { class: "group" },
    select("Workload", list.map((workload) => [workload.name, workload.name]), state.current, (value) => goTo(value, false)),
    el("button", { type: "button", onclick: () => go(-1) }, "Previous"),
    el("button", { type: "button", onclick: () => go(1) }, "Next")));
  put("told", told());
  partsChart();
  causesChart();
  latencyChart();
  batchesChart();
  besideTable();
  runsChart();
}

/// Shows a workload in detail, and goes there.
function goTo(name, move = true) {
  state.current = name;
  drawOverview();
  drawWorkload();
  if (move) {
    const title = document.getElementById("one-title");
    title.scrollIntoView();
    title.focus({ preventScroll: true });
  }
}
