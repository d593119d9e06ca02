// The interactive parts of the page: values under the pointer, sorting, searching, light and dark.
"use strict";

const tip = document.getElementById("tip");

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const x = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
  const y = event.clientY + 14 + height > innerHeight ? event.clientY - 14 - height : event.clientY + 14;
  tip.style.transform = `translate(${Math.max(x, 4)}px, ${Math.max(y, 4)}px)`;
}
const hideTip = () => { tip.hidden = true; };

document.addEventListener("pointermove", (event) => {
  const target = event.target.closest("[data-tip]");
  if (target) showTip(event, target.dataset.tip);
  else if (!event.target.closest("[data-chart], .heat")) hideTip();
});
document.addEventListener("scroll", hideTip, { passive: true });

// Curves: the nearest point of each line under the pointer.
function formatted(form, y) {
  if (form === "fraction") return `${(100 * y).toFixed(2)} %`;
  if (form === "loss") return y.toFixed(4);
  return Math.abs(y) >= 1000 ? Math.round(y).toLocaleString("en") : String(Number(y.toPrecision(4)));
}

// As `epochs` in wording.py.
const epochs = (x) => x < 0.1 ? Number(x.toPrecision(2)) : Math.floor(10 * x + 1e-6) / 10;

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}

for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const area = figure.querySelector(".area");
  const [x0, x1] = chart.x, [y0, y1] = chart.y;
  const marks = [];
  const clear = () => { while (marks.length) marks.pop().remove(); hideTip(); };
  const mark = (name, left, bottom) => {
    const element = document.createElement("div");
    element.className = name;
    element.style.left = `${100 * left}%`;
    if (bottom !== undefined) element.style.top = `${100 * (1 - bottom)}%`;
    area.append(element);
    marks.push(element);
  };
  area.addEventListener("pointerleave", clear);
  area.addEventListener("pointermove", (event) => {
    clear();
    const box = area.getBoundingClientRect();
    const pointed = x0 + (event.clientX - box.left) / box.width * (x1 - x0);
    // The point nearest to the pointer determines the step. Other lines are shown if they have a point there.
    const candidates = chart.lines.map((line) => line.x[nearest(line.x, pointed)]);
    const step = candidates.reduce((a, b) => Math.abs(b - pointed) < Math.abs(a - pointed) ? b : a);
    const text = [`${chart.axis} ${step.toLocaleString("en")}` + (chart.epochs ? ` · epoch ${epochs(step * chart.epochs)}` : "")];
    mark("cross", (step - x0) / (x1 - x0));
    for (const line of chart.lines) {
      const i = nearest(line.x, step), y = line.y[i];
      if (y === null || Math.abs(line.x[i] - step) > 0.02 * (x1 - x0)) continue;
      const height = (y - y0) / (y1 - y0);
      if (height >= 0 && height <= 1) mark(`spot c${line.color}`, (line.x[i] - x0) / (x1 - x0), height);
      text.push(`${line.name}  ${formatted(chart.form, y)}`);
    }
    showTip(event, text.join("\n"));
  });
}

// The image of a large confusion matrix: the count of the nonzero cell nearest to the pointer.
for (const figure of document.querySelectorAll(".matrix")) {
  const { names, totals, cells, pool } = JSON.parse(figure.querySelector(".cells").textContent);
  const heat = figure.querySelector(".heat"), image = heat.querySelector("img"), target = heat.querySelector(".target");
  const reach = Math.ceil(names.length / 60);
  heat.addEventListener("pointerleave", () => { target.style.display = "none"; hideTip(); });
  heat.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    // The image may be padded by a few classes to a multiple of the pooling.
    const padded = image.naturalWidth * pool;
    const row = (event.clientY - box.top) / box.height * padded - 0.5;
    const column = (event.clientX - box.left) / box.width * padded - 0.5;
    let best = null;
    for (let i = Math.max(0, Math.ceil(row - reach)); i <= Math.min(names.length - 1, row + reach); i++) {
      for (let at = 0; at < cells[i].length; at += 2) {
        const distance = Math.hypot(i - row, cells[i][at] - column);
        if (distance <= reach && (!best || distance < best.distance)) best = { i, j: cells[i][at], n: cells[i][at + 1], distance };
      }
    }
    if (!best) { target.style.display = "none"; hideTip(); return; }
    const { i, j, n } = best;
    target.style.display = "block";
    target.style.left = `${100 * (j + 0.5) / padded}%`;
    target.style.top = `${100 * (i + 0.5) / padded}%`;
    const what = i === j ? `${names[i]} predicted correctly` : `${names[i]} predicted as ${names[j]}`;
    showTip(event, `${what}\n${n.toLocaleString("en")} of ${totals[i].toLocaleString("en")} images, ${(100 * n / totals[i]).toFixed(1)} %`);
  });
}

// The table of classes.
for (const table of document.querySelectorAll("table.classes")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button")?.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const order = column === 0 ? (a, b) => value(a).localeCompare(value(b)) : (a, b) => value(a) - value(b);
      rows.sort((a, b) => up ? order(a, b) : order(b, a));
      body.append(...rows);
    });
  });
  const search = table.closest("section").querySelector("input[type=search]");
  search?.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].dataset.value.includes(wanted);
  });
}

// Light or dark: the system's setting until the reader presses the button.
const root = document.documentElement;
const remember = (theme) => { try { localStorage.setItem("jaxvision-theme", theme); } catch { /* some browsers have no storage for local files */ } };
const remembered = () => { try { return localStorage.getItem("jaxvision-theme"); } catch { return null; } };
if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember(root.dataset.theme);
});
