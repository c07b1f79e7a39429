// The page: its controls, what it says of itself, and when it is drawn.

function drawControls() {
  const again = () => { drawControls(); drawAll(); };
  const wasOpen = Boolean(document.querySelector("#controls details[open]"));
  const toggle = (set, value) => { if (!set.delete(value)) { set.add(value); } again(); };
  const group = (name, ...controls) => el("div", { class: "group", role: "group", "aria-label": name },
    el("span", { class: "name", "aria-hidden": "true" }, name), ...controls);
  const shown = engines.length > 1 ? group("Engine", segments("Engine",
    engines.map((one, index) => [index, one.asked]), state.engine, (value) => { state.engine = value; again(); })) : null;
  const about = (name) => ((engines[0] || {}).abouts || {})[name];
  const marks = group("Techniques", ...allTechniques.map((name) => el("button", { class: "technique", type: "button",
    "aria-pressed": String(!state.hidden.has(name)), title: about(name), onclick: () => toggle(state.hidden, name) },
  sample(name), name)));
  const choice = el("select", { "aria-label": "Baseline: the technique that others are compared with",
    onchange: (event) => { state.baseline = event.target.value; again(); } },
  ...allTechniques.map((name) => el("option", { value: name, selected: name === state.baseline }, name)));
  const all = (left) => { state.left = new Set(left ? allWorkloads.map((w) => w.name) : []); again(); };
  const checks = el("details", { open: wasOpen },
    el("summary", null, `Workloads: ${allWorkloads.length - state.left.size} of ${allWorkloads.length} shown`),
    el("div", { class: "checks" }, ...allWorkloads.map((workload) => el("label", { title: workload.about },
      el("input", { type: "checkbox", checked: !state.left.has(workload.name), onchange: () => toggle(state.left, workload.name) }),
      ` ${workload.name}`))),
    el("button", { type: "button", onclick: () => all(false) }, "All"), " ",
    el("button", { type: "button", onclick: () => all(true) }, "None"));
  const theme = document.documentElement.dataset.theme || "";
  const page = group("Page",
    segments("Colours", [["", "as the system"], ["light", "light"], ["dark", "dark"]], theme, (value) => {
      if (value) { document.documentElement.dataset.theme = value; } else { delete document.documentElement.dataset.theme; }
      drawControls();
    }),
    el("button", { type: "button", onclick: () => window.print() }, "Print"));
  put("controls", ...[shown, marks, group("Baseline", choice), checks, page].filter(Boolean));
}

function drawAll() {
  if (!workloads().some((workload) => workload.name === state.current)) {
    state.current = workloads().length ? workloads()[0].name : "";
  }
  drawOverview();
  drawWorkload();
}

function introduce() {
  const host = data.host || {};
  const repeat = data.repeat > 1 ? `each ${data.repeat} times, of which the median is shown` : "each once";
  put("lead", `The same kernel did the same work by ${allTechniques.length} techniques of virtualization, ${repeat}, on one machine: `
    + `${host.cpu || "an unknown processor"}. What differs is how the hypervisor learns what the kernel wants.`);
  const problems = [
    ...engines.flatMap((one) => one.workloads.flatMap((w) => (w.problems || []).map((why) => `NOT OK: ${w.name} on ${one.asked}: ${why}`))),
    ...(data.debug_build ? ["The program was built without optimization: its times mean little."] : []),
  ];
  put("problems", ...problems.map((why) => el("p", { class: "problem" }, why)));
  const facts = [
    ["Program", `paravane ${data.version}`],
    ["Processor", `${host.cpu || "unknown"}, ${host.cpus} CPUs${host.virtualized ? ", itself a virtual machine" : ""}`],
    ["Kernel", `Linux ${host.kernel || "unknown"}, clock ${host.clocksource || "unknown"}${host.kvm_module ? `, KVM module ${host.kvm_module}` : ""}`],
    ...engines.map((one) => ["Engine", one.engine ? `${one.engine.name}, transport ${one.engine.transport}: ${one.engine.detail}` : `${one.asked}: no guest ran to its end`]),
    ["Guests", engines.length ? `${engines[0].mem_bytes / 2 ** 20} MiB each, polling for ${engines[0].busy_poll_us} µs at most` : "none"],
    ["Order", engines.length && engines[0].seed !== undefined
      ? `by chance, --seed ${engines[0].seed}; ${engines[0].warm_up} uncounted runs of each before` : "unknown"],
    ...(engines.length ? engines[0].unavailable || [] : []).map((lack) => ["Not here", `${lack.technique}: ${lack.why}`]),
    ...[...new Set(allWorkloads.flatMap((w) => [...(w.skipped || []),
      ...(w.native_missing ? [`natively: ${w.native_missing}`] : [])]))].map((why) => ["Not done", why]),
  ];
  put("host", ...facts.flatMap(([name, value]) => [el("dt", null, name), el("dd", null, value)]));
  // What stands between back quotes is a name.
  const marked = (note) => note.split("`").map((text, index) => (index % 2 ? el("code", null, text) : text));
  put("notes", ...(data.notes || []).map((note) => el("li", null, ...marked(note))));
  const abouts = Object.entries((engines[0] || {}).abouts || {}).filter(([name]) => allTechniques.includes(name))
    .sort(([a], [b]) => place(a) - place(b));
  put("techniques", ...abouts.flatMap(([name, about]) => [el("dt", null, sample(name), ` ${name}`), el("dd", null, about)]));
  put("raw", el("button", { type: "button", id: "download", onclick: download }, "Download the JSON"));
}

function download() {
  const text = JSON.stringify(data, null, 2);
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "paravane-compare.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

introduce();
drawControls();
drawAll();
let resized = 0;
let drawnAt = window.innerWidth;
window.addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(() => {
    if (window.innerWidth !== drawnAt) { drawnAt = window.innerWidth; drawAll(); }
  });
});
for (const [event, paper] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => { onPaper = paper; drawAll(); });
}
document.documentElement.dataset.drawn = "true";
