// The charts of all workloads: a row each, a mark for each technique.

/// How far the marks of a row are apart.
const laneFor = (lanes) => (lanes > 7 ? 5.5 : 7);

/// What a line through a mark means, as far as all of them keep it.
function intervals(list) {
  const spreads = list.flatMap((workload) => Object.values(workload.techniques)).map((result) => result.spread);
  const sure = spreads.filter(Boolean).map((spread) => spread.confidence);
  if (!sure.length) { return ""; }
  return ` A line through a mark is where the true median lies, with ${Math.floor(100 * Math.min(...sure))} % confidence or more.`;
}

/// The rows of these workloads, with what `value` says of each technique's result.
function dots(id, list, { value, spread, label, title, sentence, controls, zero, extra, columns, baselineMark }) {
  const shown = techniques();
  const points = list.map((workload) => [
    ...shown.filter((name) => workload.techniques[name])
      .map((name) => ({ name, value: value(workload, workload.techniques[name]), result: workload.techniques[name] }))
      .filter((point) => point.value !== null && Number.isFinite(point.value)),
    ...(extra ? extra(workload) : []),
  ]);
  const everything = points.flat().map((point) => point.value);
  const room = roomFor(id, 132);
  const scale = logScale(zero ? everything : everything.filter((v) => v > 0), room.width);
  const names = list.map((workload) => ({
    text: workload.name, title: workload.about, current: workload.name === state.current,
    act: () => goTo(workload.name),
  }));
  const lanes = Math.max(1, shown.length + (extra ? 1 : 0));
  const apart = laneFor(lanes);
  const draw = (row, top, height) => points[row].flatMap((point) => {
    const lane = point.name === "native" ? lanes - 1 : shown.indexOf(point.name);
    const y = top + height / 2 + (lane - (lanes - 1) / 2) * apart;
    const x = scale.place(point.value);
    const ends = point.result && spread ? spread(list[row], point.result) : null;
    const said = `${list[row].name} by ${point.name}: ${label(point.value)}`
      + (point.result ? `\n${time(point.result.ns)}, ${count(point.result.traps)} exits; ${interval(point.result)}` : "");
    return [
      ends ? svg("line", { class: "interval", x1: scale.place(ends[0]), x2: scale.place(ends[1]), y1: y, y2: y,
        stroke: colour(point.name) }) : null,
      marker(point.name, x, y, 4.2, said),
    ].filter(Boolean);
  });
  const heights = list.map(() => lanes * apart + 12);
  const picture = everything.length ? rowsPicture({ names, heights, scale, label, draw, room,
    said: `${title}, a row for each of ${list.length} workloads; the button Numbers shows them as a table`,
    marks: baselineMark ? [1] : [] }) : el("p", { class: "soft" }, "Nothing of it was measured.");
  const marks = [...shown, ...(extra ? ["native"] : [])];
  const legend = el("ul", { class: "legend" }, ...marks.map((name) => el("li", null, sample(name), name)));
  chart(id, title, sentence, { controls, picture, legend, rows: () => columns(list, shown) });
}

const jobs = () => workloads().filter((workload) => workload.kind !== "nano");

function measureSwitch() {
  return segments("Measure", [[true, `against ${state.baseline}`], [false, "as measured"]], state.relative,
    (value) => { state.relative = value; drawOverview(); });
}

function timeChart() {
  const ratio = (workload, ns, ops) => {
    const base = workload.techniques[state.baseline];
    return base && base.ns ? (ns / Math.max(1, ops)) / perOperation(base, base.ns) : null;
  };
  const value = (workload, result) => (state.relative ? ratio(workload, result.ns, result.ops) : result.ns);
  const how = state.relative
    ? `Each mark is one technique's time, as a multiple of ${state.baseline}'s (the dashed line): left of it is faster.`
    : "Each mark is one technique's time for the whole workload: further left is faster.";
  const native = jobs().some((workload) => workload.native_program);
  const natively = (workload) => workload.native_program
    && (state.relative ? ratio(workload, workload.native_program.ns, workload.native_program.ops)
      : workload.native_program.ns);
  dots("time", jobs(), {
    value,
    spread: (workload, result) => (result.spread
      ? [result.spread.low, result.spread.high].map((ns) => value(workload, { ...result, ns })) : null),
    label: state.relative ? times : time,
    title: "Time",
    sentence: `${how} Each step of the scale is ten times the one before.${intervals(jobs())} Choose a workload to see `
      + "what it is made of.",
    controls: [measureSwitch()],
    baselineMark: state.relative,
    extra: native ? (workload) => (natively(workload) ? [{ name: "native", value: natively(workload) }] : []) : null,
    columns: (list, shown) => [["workload", ...(native ? ["native"] : []), ...shown], list.map((workload) => [workload.name,
      ...(native ? [workload.native_program ? time(workload.native_program.ns) : "–"] : []), ...shown.map((name) => {
      const result = workload.techniques[name];
      if (!result) { return "–"; }
      const against = ratio(workload, result.ns, result.ops);
      return time(result.ns) + (against === null || name === state.baseline ? "" : ` (${times(against)})`);
    })])],
  });
}

function exitsChart() {
  const value = (workload, result) => result.traps;
  dots("exits", jobs(), {
    value,
    label: (number) => (number === 0 ? "none" : count(number)),
    title: "Exits",
    sentence: "Each mark is how often one technique left the guest for the hypervisor in the whole workload: further "
      + "left is less often, and “none” is a place of its own, because no logarithmic scale has one. Exits are what "
      + "most of the time above pays for, except by interpretation, which pays for every instruction instead.",
    zero: true,
    controls: [],
    columns: (list, shown) => [["workload", ...shown], list.map((workload) => [workload.name, ...shown.map((name) => {
      const result = workload.techniques[name];
      return result ? count(result.traps) : "–";
    })])],
  });
}

function cyclesChart() {
  const list = workloads().filter((workload) => Object.values(workload.techniques).some((result) => result.cycles));
  document.getElementById("operations").hidden = list.length === 0;
  if (!list.length) { return; }
  const native = list.some((workload) => workload.native);
  dots("cycles", list, {
    value: (workload, result) => (result.cycles ? Math.max(result.cycles.median, 0.1) : null),
    spread: (workload, result) => (result.cycles ? [Math.max(result.cycles.min, 0.1), Math.max(result.cycles.median, 0.1)] : null),
    label: (number) => `${count(number)}`,
    title: "Cycles of one operation",
    sentence: "Each mark is the median of what one operation takes, in cycles of the processor's time-stamp counter; the "
      + "line reaches to the fastest round." + (native ? " “native” is the same code without any guest." : ""),
    controls: [],
    extra: native ? (workload) => (workload.native ? [{ name: "native", value: workload.native.median }] : []) : null,
    columns: (all, shown) => [["operation", ...(native ? ["native"] : []), ...shown],
      all.map((workload) => [workload.name, ...(native ? [workload.native ? digits(workload.native.median) : "–"] : []),
        ...shown.map((name) => {
          const result = workload.techniques[name];
          if (!result || !result.cycles) { return "–"; }
          return `${digits(result.cycles.median)}, ${digits(perOperation(result, result.traps))} exits`;
        })])],
  });
}

function drawOverview() {
  timeChart();
  exitsChart();
  cyclesChart();
}
