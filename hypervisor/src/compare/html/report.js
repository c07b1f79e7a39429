// The page: its controls, what it says of itself, and when it is drawn.

function drawControls() {
  const again = () => { drawControls(); drawAll(); };
  const keep = (node, key) => fill(node, { "data-key": key }, []);
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
  const wasOpen = Boolean(document.querySelector("#controls details[open]"));
  const toggle = (set, value) => { if (!set.delete(value)) { set.add(value); } again(); };
  const shown = engines.length > 1 ? el("div", { class: "group" }, el("span", { class: "name" }, "Engine"),
    segments("Engine", engines.map((one, index) => [index, one.asked]), state.engine, (value) => { state.engine = value; again(); })) : null;
  const marks = el("div", { class: "group", role: "group", "aria-label": "Techniques shown" }, el("span", { class: "name" }, "Techniques"),
    ...allTechniques.map((name) => keep(el("button", { class: "technique", type: "button", "aria-pressed": String(!state.hidden.has(name)),
      onclick: () => toggle(state.hidden, name) }, sample(name), name), `technique ${name}`)));
  const choice = select("", allTechniques.map((name) => [name, name]), state.baseline, (value) => { state.baseline = value; again(); });
  const baseline = el("div", { class: "group" }, el("span", { class: "name" }, "Baseline"), choice);
  choice.querySelector("select").setAttribute("aria-label", "Baseline: the technique that others are compared with");
  keep(choice.querySelector("select"), "baseline");
  const all = (left) => { state.left = new Set(left ? allWorkloads.map((w) => w.name) : []); again(); };
  const checks = el("details", { open: wasOpen }, el("summary", null, `Workloads: ${allWorkloads.length - state.left.size} of ${allWorkloads.length} shown`),
    el("div", { class: "checks" }, ...allWorkloads.map((workload) => el("label", { title: workload.about },
      keep(el("input", { type: "checkbox", checked: !state.left.has(workload.name), onchange: () => toggle(state.left, workload.name) }),
        `workload ${workload.name}`), ` ${workload.name}`))),
    keep(el("button", { type: "button", onclick: () => all(false) }, "All"), "all"), " ",
    keep(el("button", { type: "button", onclick: () => all(true) }, "None"), "none"));
  const theme = document.documentElement.dataset.theme || "";
  const page = el("div", { class: "group" }, el("span", { class: "name" }, "Page"),
    segments("Colours", [["", "as the system"], ["light", "light"], ["dark", "dark"]], theme, (value) => {
      if (value) { document.documentElement.dataset.theme = value; } else { delete document.documentElement.dataset.theme; }
      drawControls();
    }),
    el("button", { type: "button", onclick: () => window.print() }, "Print"));
  put("controls", ...[shown, marks, baseline, checks, page].filter(Boolean));
  // Whoever pressed a key stays where they were.
  const same = focused && [...document.querySelectorAll("#controls [data-key]")].find((node) => node.dataset.key === focused);
  if (same) { same.focus({ preventScroll: true }); }
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
    ...[...new Set(allWorkloads.flatMap((w) => w.skipped || []))].map((why) => ["Not done", why]),
  ];
  put("host", ...facts.flatMap(([name, value]) => [el("dt", null, name), el("dd", null, value)]));
  // What stands between back quotes is a name.
  const marked = (note) => note.split("`").map((text, index) => (index % 2 ? el("code", null, text) : text));
  put("notes", ...(data.notes || []).map((note) => el("li", null, ...marked(note))));
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
document.documentElement.dataset.drawn = "true";
