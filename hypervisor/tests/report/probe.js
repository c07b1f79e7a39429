// Run in the page by the test, after the page's own script: uses it as a reader would, and writes what it found.
"use strict";
const found = [];
const check = (what, holds, more = "") => found.push(`${holds ? "ok" : "FAILED"} ${what} ${holds ? "" : more}`.trim());
const all = (selector) => [...document.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
const button = (within, text) => all(`${within} button`).find((node) => node.textContent.trim().startsWith(text));
const titles = (id) => all(`#${id} svg[role=img] title`).map((node) => node.textContent);

try {
  check("the page is drawn", document.documentElement.dataset.drawn === "true");
  for (const id of ["time", "exits", "cycles", "parts", "causes", "latency", "batches", "runs"]) {
    const picture = one(`#${id} svg[role=img]`);
    check(`chart ${id} has marks`, picture && titles(id).length > 0);
    check(`chart ${id} says what it shows`, picture && picture.getAttribute("aria-label").length > 20);
    check(`chart ${id} has a sentence beside it`, one(`#${id} figcaption p`).textContent.length > 40);
    const numbers = button(`#${id}`, "Numbers");
    numbers.click();
    check(`chart ${id} is shown as a table`, all(`#${id} tbody tr`).length > 0 && numbers.getAttribute("aria-expanded") === "true");
    numbers.click();
    check(`chart ${id}: the table goes away`, one(`#${id}-table`).hidden);
  }
  check("the scale is logarithmic", all("#time svg text").some((node) => node.textContent === "1×"));

  const marks = () => titles("time").filter((text) => text.includes(" by pv")).length;
  const before = marks();
  button("#controls", "pv").focus();
  button("#controls", "pv").click();
  check("a technique is hidden", before > 0 && marks() === 0 && button("#controls", "pv").getAttribute("aria-pressed") === "false");
  check("whoever pressed a key stays there", document.activeElement === button("#controls", "pv"));
  button("#controls", "pv").click();
  check("and shown again", marks() === before);

  const baseline = one("#controls select");
  baseline.value = "pv";
  baseline.dispatchEvent(new Event("change"));
  check("the baseline is another one", button("#time", "against pv") !== undefined);
  button("#time", "as measured").focus();
  button("#time", "as measured").click();
  check("a chart that is drawn anew keeps the focus", document.activeElement === button("#time", "as measured"));
  check("times are shown as measured", all("#time svg text").some((node) => node.textContent.endsWith("s")));

  const rows = () => all("#time .names button").map((node) => node.textContent);
  const box = all("#controls input").find((node) => node.parentNode.textContent.trim() === "console-4k");
  box.click();
  check("a workload is left out", !rows().includes("console-4k") && rows().includes("map-512"));
  button("#controls", "None").click();
  check("all are left out, and nothing breaks", rows().length === 0);
  button("#controls", "All").click();
  check("all are there", rows().includes("console-4k"));

  button("#time", "map-512").click();
  check("a row leads to its workload", one("#choose select").value === "map-512" && one("#told").textContent.startsWith("map-512"));
  check("and the focus goes there", document.activeElement.id === "one-title");
  check("causes are stacked", titles("causes").some((text) => text.includes("hypercall")));
  button("#causes", "hypervisor's time").click();
  button("#causes", "amounts").click();
  check("causes by time and amount", titles("causes").some((text) => /[mµn]?s of /.test(text)));
  button("#choose", "Next").click();
  check("the next workload", one("#choose select").value !== "map-512");
  check("batches have sizes", (() => {
    const choose = one("#choose select");
    choose.value = "map-512";
    choose.dispatchEvent(new Event("change"));
    return titles("batches").some((text) => text.includes("mmu_update"));
  })());

  const colour = () => getComputedStyle(document.body).backgroundColor;
  button("#controls", "light").click();
  const light = colour();
  button("#controls", "dark").click();
  check("dark is another colour than light", light !== colour(), `${light} ${colour()}`);

  window.dispatchEvent(new Event("beforeprint"));
  check("what is printed fits paper", all("main svg[role=img]").every((node) => node.getAttribute("width") < 690));
  window.dispatchEvent(new Event("afterprint"));

  const named = (node) => (node.getAttribute("aria-label") || node.textContent || "").trim()
    || (node.labels && node.labels.length && node.labels[0].textContent.trim());
  const controls = all("button, select, input, a[href], summary, [tabindex='0']");
  check("every control has a name", controls.every(named), controls.filter((node) => !named(node)).map((node) => node.outerHTML).join());
  check("every control is reached by Tab", controls.every((node) => node.tabIndex >= 0));
  check("a focus is seen", (() => {
    const node = one("#controls select");
    node.focus({ focusVisible: true });
    return getComputedStyle(node).outlineStyle === "solid";
  })());
  check("the page is not wider than its window", document.documentElement.scrollWidth <= window.innerWidth,
    `${document.documentElement.scrollWidth} > ${window.innerWidth}`);
  check("nothing of the guest became markup", !one("main img, header img") && !window.pwned);
  let saved = null;
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { saved = blob; return make.call(URL, blob); };
  one("#download").click();
  check("the data can be saved", saved !== null && saved.size > 1000);
} catch (error) {
  check("no exception", false, `${error} ${error.stack}`);
}
document.body.replaceChildren(Object.assign(document.createElement("pre"), { id: "probe", textContent: found.join("\n") }));
