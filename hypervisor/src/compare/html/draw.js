// Elements, scales and the parts that all charts are made of.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) { node.addEventListener(name.slice(2), value); }
    else if (value === true) { node.setAttribute(name, ""); }
    else if (value !== false && value !== null && value !== undefined) { node.setAttribute(name, value); }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/// Replaces what is in a box. Whoever pressed a key in it stays where they were.
function put(id, ...children) {
  const box = document.getElementById(id);
  const controls = () => [...box.querySelectorAll("button, select, input, summary")];
  const at = controls().indexOf(document.activeElement);
  box.replaceChildren(...children);
  const same = at >= 0 ? controls()[at] : null;
  if (same) { same.focus({ preventScroll: true }); }
}

// Techniques are told apart by shape as well as by colour.
const SHAPES = ["circle", "square", "diamond", "up", "down", "plus", "bar", "ring"];
const shapeOf = (name) => SHAPES[Math.max(0, allTechniques.indexOf(name)) % SHAPES.length];

function marker(name, x, y, size, title) {
  const points = (...pairs) => pairs.map(([dx, dy]) => `${x + dx * size},${y + dy * size}`).join(" ");
  const shape = name === "native" ? "tall" : shapeOf(name);
  const paint = { fill: colour(name) };
  const said = title ? svg("title", null, title) : null;
  const polygon = (...pairs) => svg("polygon", { points: points(...pairs), ...paint }, said);
  switch (shape) {
    case "square": return polygon([-.85, -.85], [.85, -.85], [.85, .85], [-.85, .85]);
    case "diamond": return polygon([0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]);
    case "up": return polygon([0, -1.15], [1.15, .9], [-1.15, .9]);
    case "down": return polygon([0, 1.15], [1.15, -.9], [-1.15, -.9]);
    case "plus": return polygon([-.4, -1.1], [.4, -1.1], [.4, -.4], [1.1, -.4], [1.1, .4], [.4, .4], [.4, 1.1],
      [-.4, 1.1], [-.4, .4], [-1.1, .4], [-1.1, -.4], [-.4, -.4]);
    case "bar": return polygon([-1.3, -.5], [1.3, -.5], [1.3, .5], [-1.3, .5]);
    case "tall": return polygon([-.3, -1.6], [.3, -1.6], [.3, 1.6], [-.3, 1.6]);
    case "ring": return svg("circle", { cx: x, cy: y, r: size * .8, fill: "none", stroke: colour(name), "stroke-width": 2.5 }, said);
    default: return svg("circle", { cx: x, cy: y, r: size, ...paint }, said);
  }
}

const sample = (name) =>
  svg("svg", { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" }, marker(name, 7, 7, 4.5));

/// Decades from below the least to above the greatest; zeroes have a place of their own at the left. What is no number,
/// or beyond all of them, has no place: a scale up to it would have no end.
function logScale(values, width, left = 6, right = 22) {
  const positive = values.filter((value) => value > 0 && Number.isFinite(value));
  const zero = values.some((value) => value === 0);
  const low = Math.floor(Math.log10(Math.min(...positive, ...(positive.length ? [] : [1]))) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive, ...(positive.length ? [] : [1]))) - 1e-9));
  const start = left + (zero ? 52 : 0);
  const place = (value) => (value > 0
    ? start + (Math.log10(value) - low) / (high - low) * (width - right - start) : left + 8);
  const room = Math.max(1, Math.floor((width - start) / 62));
  const step = Math.ceil((high - low + 1) / room);
  const ticks = zero ? [0] : [];
  for (let power = low; power <= high; power += step) { ticks.push(10 ** power); }
  return { place, ticks: ticks.filter(Number.isFinite) };
}

function linearScale(low, high, width, left = 6, right = 22) {
  const span = high - low || 1;
  const rough = span / Math.max(2, Math.floor(width / 90));
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((by) => by * power).find((by) => by >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + span * 1e-9; at += step) { ticks.push(at); }
  return { place: (value) => left + (value - low) / span * (width - left - right), ticks };
}

const TOP = 22;

/// A picture of rows below an axis: `heights` of the rows, `draw(row, top, height)` gives what is in one.
function rowsPicture({ names, heights, scale, label, draw, room: { width, beside }, said, marks = [] }) {
  const bottom = heights.reduce((sum, height) => sum + height, TOP);
  const picture = svg("svg", { width, height: bottom + 4, viewBox: `0 0 ${width} ${bottom + 4}`, role: "img", "aria-label": said });
  let top = TOP;
  const tops = heights.map((height, row) => {
    picture.append(svg("rect", { class: row % 2 ? "row" : "row odd", x: 0, y: top, width, height }));
    top += height;
    return top - height;
  });
  for (const tick of scale.ticks) {
    const x = scale.place(tick);
    picture.append(svg("line", { class: "grid", x1: x, x2: x, y1: TOP - 4, y2: bottom }),
      svg("text", { x, y: 13, "text-anchor": x < 20 ? "start" : "middle" }, label(tick)));
  }
  for (const mark of marks) {
    const x = scale.place(mark);
    picture.append(svg("line", { class: "one", x1: x, x2: x, y1: TOP - 4, y2: bottom }));
  }
  names.forEach((_, row) => picture.append(...draw(row, tops[row], heights[row])));
  const column = el("div", { class: "names", style: `padding-top:${TOP}px` }, ...names.map((name, row) => {
    const height = `height:${heights[row]}px`;
    if (!name.act) { return el("span", { style: height }, name.text); }
    return el("button", { style: height, type: "button", title: name.title, onclick: name.act,
      "aria-current": name.current ? "true" : null, "aria-label": `${name.text}: show in detail` }, name.text);
  }));
  return el("div", { class: "rows", style: `grid-template-columns:${beside}px 1fr` }, column, el("div", { class: "picture" }, picture));
}

// What is printed has the width of paper, whatever the window's.
const PAPER = 690;
let onPaper = false;

/// How much room a picture has, and its rows' names beside it.
function roomFor(id, wanted) {
  const whole = onPaper ? PAPER : document.getElementById(id).clientWidth || PAPER;
  const narrow = !onPaper && window.innerWidth <= 640;
  const [beside, around] = narrow ? [Math.min(wanted, 104), 28] : [wanted, 44];
  return { beside, width: Math.max(170, whole - around - beside) };
}

function table(caption, head, rows) {
  return el("table", null, el("caption", null, caption),
    el("thead", null, el("tr", null, ...head.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", null, ...rows.map((row) => el("tr", null, ...row.map((cell, column) =>
      (column ? el("td", null, String(cell)) : el("th", { scope: "row" }, String(cell))))))));
}

// Which charts are shown as tables, so that drawing them again leaves them so.
const asTable = new Set();

/// A chart with its title, one sentence about how it is read, its controls, and its numbers as a table on request.
function chart(id, title, sentence, { controls = [], picture, legend, rows }) {
  const box = el("div", { class: "table", id: `${id}-table`, hidden: !asTable.has(id),
    tabindex: 0, role: "region", "aria-label": `${title}, as a table` });
  const show = () => box.replaceChildren(...(asTable.has(id) ? [table(title, ...rows())] : []));
  const button = el("button", { type: "button", "aria-expanded": String(asTable.has(id)), "aria-controls": box.id,
    onclick: () => {
      if (!asTable.delete(id)) { asTable.add(id); }
      box.hidden = !asTable.has(id);
      button.setAttribute("aria-expanded", String(!box.hidden));
      show();
    } }, "Numbers");
  show();
  put(id, el("figure", { "aria-labelledby": `${id}-title` },
    el("figcaption", null, el("h3", { id: `${id}-title` }, title), el("p", null, sentence)),
    el("div", { class: "bar" }, ...controls, el("span", { class: "spring" }), rows ? button : null),
    picture, legend, box));
}

/// Buttons of which one is pressed.
function segments(label, options, current, choose) {
  return el("span", { class: "segments", role: "group", "aria-label": label }, ...options.map(([value, text]) =>
    el("button", { type: "button", "data-value": String(value), "aria-pressed": String(value === current),
      onclick: () => choose(value) }, text)));
}

function select(label, options, current, choose) {
  return el("label", null, `${label} `, el("select", { onchange: (event) => choose(event.target.value) },
    ...options.map(([value, text]) => el("option", { value, selected: value === current }, text))));
}
