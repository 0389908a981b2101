"use strict";

// Tables: a click on a heading sorts by its column, a second one the other way round; what has no value stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    const key = (row) => {
      const text = row.cells[column]?.dataset.value ?? row.cells[column]?.textContent.trim() ?? "";
      return text === "" || isNaN(text) ? text : Number(text);
    };
    button.addEventListener("click", () => {
      const numbers = heading.classList.contains("number");
      const before = heading.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : numbers; // of numbers, the largest first
      const compare = (a, b) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return falling ? -order : order;
      };
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      table.tBodies[0].append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
}

// The confusion matrix of many classes: which ones the pointer is at.
for (const picture of document.querySelectorAll("img.heat")) {
  const names = JSON.parse(picture.dataset.names);
  const said = picture.parentElement.querySelector("output");
  const classes = (share) => {
    const cells = picture.naturalWidth; // each of several classes, where there are more
    const cell = Math.min(cells - 1, Math.max(0, Math.floor(share * cells)));
    const [first, end] = [cell, cell + 1].map((i) => Math.floor((i * names.length) / cells));
    return end - first > 1 ? `${names[first]} … ${names[end - 1]} (${first} to ${end - 1})` : `${names[first]} (${first})`;
  };
  const point = (event) => {
    const box = picture.getBoundingClientRect();
    said.textContent = `is ${classes((event.clientY - box.top) / box.height)}, predicted ${classes((event.clientX - box.left) / box.width)}`;
  };
  picture.addEventListener("pointermove", point);
  picture.addEventListener("pointerdown", point);
}

// Curves. All charts show the same steps; runs are hidden in all of them, a metric in its own.
const source = document.getElementById("curves");
if (source) {
  const { runs, charts } = JSON.parse(source.textContent);
  const DASHES = ["", "7 4", "2 3", "9 3 2 3", "1 5"];
  const LEFT = 52, RIGHT = 24, TOP = 8, BOTTOM = 36;
  const hiddenRuns = new Set();
  const whole = document.getElementById("whole");
  let steps = null; // [first, last] of what is shown; null: all
  const drawAll = () => views.forEach((view) => view.draw());

  const element = (name, attributes = {}, text = "") => {
    const svg = ["svg", "line", "path", "text", "rect", "circle", "g"].includes(name);
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text) node.textContent = text;
    return node;
  };
  const show = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) return Number(value.toPrecision(3)).toExponential();
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  };
  const setSteps = (range) => {
    steps = range;
    whole.hidden = range === null;
    drawAll();
  };

  const makeView = (chart) => {
    const hiddenNames = new Set();
    // One run: a colour for each metric. Several: a colour for each run.
    const colour = (s) => `var(--c${(runs.length > 1 ? s.run : chart.names.indexOf(s.name)) % 8})`;
    const dash = (s) => DASHES[chart.names.indexOf(s.name) % DASHES.length];
    const box = element("div", { class: "chart" });
    const title = element("h3", {}, chart.title);
    if (chart.unit) title.append(" ", element("small", {}, chart.unit));
    const legend = element("div", { class: "legend" });
    const plot = element("div", { class: "plot" });
    const tip = element("div", { class: "tip" });
    tip.hidden = true;
    box.append(title, legend, plot);
    for (const name of chart.names) {
      const button = element("button", { type: "button", "aria-pressed": "true", "data-name": name });
      const sample = element("svg", { width: 26, height: 8, "aria-hidden": "true" });
      const style = runs.length > 1 ? "currentColor" : `var(--c${chart.names.indexOf(name) % 8})`;
      sample.append(element("line", { x1: 1, x2: 25, y1: 4, y2: 4, "stroke-width": 2, "stroke-dasharray": dash({ name }), style: `stroke:${style}` }));
      button.append(sample, name);
      button.addEventListener("click", () => {
        hiddenNames.has(name) ? hiddenNames.delete(name) : hiddenNames.add(name);
        button.setAttribute("aria-pressed", String(!hiddenNames.has(name)));
        draw();
      });
      legend.append(button);
    }

    let scale = null; // how steps and values lie on the screen, for the pointer
    const draw = () => {
      const visible = chart.series.filter((s) => !hiddenRuns.has(s.run) && !hiddenNames.has(s.name));
      const width = Math.max(220, Math.round(plot.clientWidth)), height = Math.round(Math.min(260, Math.max(190, width * 0.5)));
      const every = visible.flatMap((s) => s.points);
      const all = every.map((p) => p[0]);
      let [first, last] = steps ?? [all.reduce((a, b) => Math.min(a, b), Infinity), all.reduce((a, b) => Math.max(a, b), -Infinity)];
      const values = every.filter((p) => p[0] >= first && p[0] <= last).map((p) => p[1]);
      let low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
      if (!values.length) [first, last, low, high] = [...(steps ?? [0, 1]), 0, 1];
      if (first === last) [first, last] = [first - 0.5, last + 0.5];
      const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
      [low, high] = [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
      const x = (step) => LEFT + ((step - first) / (last - first)) * (width - LEFT - RIGHT);
      const y = (value) => height - BOTTOM - ((value - low) / (high - low)) * (height - TOP - BOTTOM);
      scale = { visible, first, last, width, height, x, y };

      const label = `${chart.title} by step`;
      const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
      for (const value of ticks(low, high, 5)) {
        svg.append(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
        svg.append(element("text", { class: "right", x: LEFT - 6, y: y(value) + 4 }, show(value)));
      }
      for (const step of ticks(first, last, Math.max(2, Math.floor(width / 90)))) {
        svg.append(element("line", { class: "axis", x1: x(step), x2: x(step), y1: height - BOTTOM, y2: height - BOTTOM + 4 }));
        svg.append(element("text", { class: "middle", x: x(step), y: height - BOTTOM + 16 }, show(step)));
      }
      svg.append(element("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: height - BOTTOM, y2: height - BOTTOM }));
      svg.append(element("text", { class: "middle", x: (LEFT + width - RIGHT) / 2, y: height - 4 }, "step"));
      for (const s of visible) {
        const within = s.points.filter((p, i) => (s.points[i + 1]?.[0] ?? p[0]) >= first && (s.points[i - 1]?.[0] ?? p[0]) <= last);
        const group = element("g", { "data-run": s.run, "data-name": s.name, style: `stroke:${colour(s)}; fill:${colour(s)}` });
        const line = within.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join("L");
        if (within.length > 1) group.append(element("path", { d: "M" + line, fill: "none", style: "fill:none", "stroke-width": 1.7, "stroke-dasharray": dash(s), "stroke-linejoin": "round" }));
        if (within.length < 30) for (const [step, value] of within) group.append(element("circle", { cx: x(step), cy: y(value), r: 2.4 }));
        const clip = element("svg", { x: LEFT - 3, y: 0, width: width - LEFT - RIGHT + 6, height, viewBox: `${LEFT - 3} 0 ${width - LEFT - RIGHT + 6} ${height}` });
        clip.append(group);
        svg.append(clip);
      }
      svg.append(element("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" }));
      svg.append(element("rect", { class: "chosen", y: TOP, height: height - TOP - BOTTOM, visibility: "hidden" }));
      tip.hidden = true;
      plot.replaceChildren(svg, tip);
    };

    const stepAt = (event) => {
      const { first, last, width } = scale;
      const share = (event.clientX - plot.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
      return first + Math.min(1, Math.max(0, share)) * (last - first);
    };
    const nearest = (points, step) => points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a));
    const hover = (event) => {
      const step = stepAt(event), { visible, first, last, width, x } = scale;
      const rows = visible.map((s) => [s, nearest(s.points, step)]).filter(([, p]) => p[0] >= first && p[0] <= last);
      const cursor = plot.querySelector(".cursor");
      if (!rows.length) return;
      const at = rows.map(([, p]) => p[0]).reduce((a, b) => (Math.abs(b - step) < Math.abs(a - step) ? b : a));
      cursor.setAttribute("x1", x(at));
      cursor.setAttribute("x2", x(at));
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(element("div", {}, `step ${show(at)}`));
      for (const [s, [its, value]] of rows) {
        const row = element("div");
        const name = (runs.length > 1 ? `${runs[s.run]} ` : "") + s.name + (its === at ? "" : ` at ${show(its)}`);
        row.append(element("span", { class: "run", style: `color:${colour(s)}` }), element("span", {}, name), element("b", {}, show(value)));
        tip.append(row);
      }
      tip.hidden = false;
      const left = x(at) > width / 2;
      tip.style.left = left ? "" : `${x(at) + 10}px`;
      tip.style.right = left ? `${width - x(at) + 10}px` : "";
    };

    let start = null; // where a drag began
    const mark = (event) => {
      const chosen = plot.querySelector(".chosen"), [a, b] = [start, stepAt(event)].sort((p, q) => p - q);
      chosen.setAttribute("x", scale.x(a));
      chosen.setAttribute("width", scale.x(b) - scale.x(a));
      chosen.setAttribute("visibility", "visible");
    };
    plot.addEventListener("pointermove", (event) => {
      hover(event);
      if (start !== null) mark(event);
    });
    plot.addEventListener("pointerdown", (event) => {
      hover(event);
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      start = stepAt(event);
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const range = [start, stepAt(event)].sort((a, b) => a - b);
      start = null;
      if (scale.x(range[1]) - scale.x(range[0]) > 8) setSteps(range);
      else plot.querySelector(".chosen").setAttribute("visibility", "hidden");
    });
    plot.addEventListener("pointerleave", () => {
      tip.hidden = true;
      plot.querySelector(".cursor").setAttribute("visibility", "hidden");
    });
    plot.addEventListener("dblclick", () => setSteps(null));
    return { box, draw };
  };

  const views = charts.map(makeView);
  document.getElementById("charts").append(...views.map((view) => view.box));
  for (const button of document.querySelectorAll("button.toggle")) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run);
      hiddenRuns.has(run) ? hiddenRuns.delete(run) : hiddenRuns.add(run);
      button.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
      drawAll();
    });
  }
  whole.addEventListener("click", () => setSteps(null));
  let drawnWidth = 0;
  new ResizeObserver(() => {
    const width = document.getElementById("charts").clientWidth;
    if (width !== drawnWidth) drawAll();
    drawnWidth = width;
  }).observe(document.getElementById("charts"));
}
