// The report page: draws what the JSON in #report-data says. No library but Plotly, no network.
// Whatever comes from the data is hostile: it reaches the page as text, never as markup.
(() => {
"use strict";

const DATA = JSON.parse(document.getElementById("report-data").textContent);
const MODELS = DATA.models || [];
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]; // Okabe and Ito
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const STROKES = ["", "7 4", "2 4", "7 4 2 4", "12 4", "12 4 2 4"];
const MARKERS = ["circle", "square", "triangle-up", "diamond", "cross", "x"];
const SIGNS = ["●", "■", "▲", "◆", "✚", "✖"];
const VIRIDIS = stops("440154470d6048186a482374472d7b4537814240863e49893b528b375b8d33638d2f6b8e2c728e" +
  "297a8e26828e23898e21918c1f988b1fa08822a78528ae8032b67a3fbc734ec36b5ec96270cf5784d44b98d83eaddc30" +
  "c2df23d8e219ece51bfde725");
const MAGMA = stops("0000040a08221d114736106b51127c6a1c818326819c2e7fb73779d0416fe75263f56b5cfc8961" +
  "fea772fec488fde2a3fcfdbf");

// ---------------------------------------------------------------- small things

const $ = (id) => document.getElementById(id);

/** An element with attributes and children; children that are strings become text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  set(node, attributes);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(node, attributes);
  node.append(...children);
  return node;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
}

/** A picture of the report; anything but picture data is left out. */
function picture(src, alt, attributes = {}) {
  const safe = /^data:image\/(png|jpeg|webp|gif);base64,/.test(src || "");
  return el("img", { alt, decoding: "async", ...attributes, src: safe ? src : null });
}

/** Text for Plotly, which reads labels as markup and templates. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;")
  .replace(/>/g, "&gt;").replace(/%\{/g, "%&#123;");

const short = (text, most = 32) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`;
const finite = (value) => typeof value === "number" && Number.isFinite(value);
const filled = (list) => Array.isArray(list) && list.length > 0;
const unique = (list) => [...new Set(list)];
const modelName = (index) => MODELS[index] ? MODELS[index].name : `model ${index}`;
const color = (index) => COLORS[index % COLORS.length];

/** A number for reading: about four figures, no more. */
function figure(value) {
  if (!finite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-GB");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-GB");
  if (size < 0.001) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3);
}

/** Colours, as [r, g, b], from a row of hexadecimal triples. */
function stops(hex) {
  return hex.match(/.{6}/g).map((one) => one.match(/../g).map((two) => parseInt(two, 16)));
}

/** The colour of a number from 0 to 1. */
function shade(scale, value) {
  const place = Math.min(1, Math.max(0, value)) * (scale.length - 1);
  const low = Math.min(scale.length - 2, Math.floor(place));
  return scale[low].map((part, i) => Math.round(part + (scale[low + 1][i] - part) * (place - low)));
}

const plotlyScale = (scale) =>
  scale.map((rgb, i) => [i / (scale.length - 1), `rgb(${rgb.join(",")})`]);

const cssScale = (scale) =>
  `linear-gradient(to right, ${scale.map((rgb) => `rgb(${rgb.join(",")})`).join(",")})`;

/** The line and marker that stand for a model in every chart. */
function swatch(index) {
  const k = index % COLORS.length;
  const line = svg("line", { x1: 1, y1: 7, x2: 33, y2: 7, stroke: COLORS[k], "stroke-width": 2.5,
    "stroke-dasharray": STROKES[k] });
  const sign = svg("text", { x: 17, y: 11.5, "text-anchor": "middle", fill: COLORS[k], "font-size": 12 });
  sign.textContent = SIGNS[k];
  return svg("svg", { class: "swatch", viewBox: "0 0 34 14", "aria-hidden": "true" }, line, sign);
}

const untrained = (index) =>
  MODELS[index] && !MODELS[index].trained ? el("span", { class: "badge" }, "untrained") : null;

/** A model's sign, name and whether it is trained. */
const named = (index) => el("span", { class: "named" }, swatch(index), el("span", { class: "who" },
  el("span", { class: "name", title: modelName(index) }, modelName(index)), untrained(index)));

// ---------------------------------------------------------------- charts

const charts = []; // {host, make}: drawn when they come near, and again when the scheme changes

function loadPlotly() {
  if (!window.Plotly) {
    const script = el("script");
    script.nonce = "report";
    script.textContent = $("plotly-source").textContent;
    document.head.append(script);
  }
  return window.Plotly;
}

function ink() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { text: read("--ink"), soft: read("--soft"), grid: read("--line"), card: read("--card") };
}

/** What all charts share; `extra` may change any of it. */
function layout(extra) {
  const colors = ink();
  const axis = { gridcolor: colors.grid, linecolor: colors.grid, zeroline: false, automargin: true,
    tickfont: { color: colors.soft, size: 12 } };
  const titled = (own) => ({ ...axis, ...own,
    title: { text: own && own.title ? plain(own.title) : "", font: { size: 12, color: colors.soft }, standoff: 8 } });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, color: colors.text, size: 12 },
    margin: { l: 56, r: 14, t: 12, b: 44 },
    hoverlabel: { bgcolor: colors.card, bordercolor: colors.grid, font: { color: colors.text }, align: "left" },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...extra, xaxis: titled(extra.xaxis), yaxis: titled(extra.yaxis),
  };
}

function draw(chart) {
  const plotly = loadPlotly();
  const { traces, look } = chart.make();
  for (const trace of traces) if (chart.hidden.has(trace.meta)) trace.visible = false;
  plotly.react(chart.host, traces, layout(look), { responsive: true, displayModeBar: false, scrollZoom: false });
  chart.host.dataset.drawn = "yes";
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((one) => one.host === entry.target);
    if (entry.isIntersecting && chart) { near.unobserve(chart.host); draw(chart); }
  }
}, { rootMargin: "400px" });

/** Add a chart under a heading of its own; `make` returns {traces, look}. */
function addChart(parent, title, unit, make, kind = "") {
  const host = el("div", { class: `chart ${kind}`, role: "img", "aria-label": title || "Heat map" });
  const heading = el("h3", {}, title, unit ? el("small", {}, unit) : null);
  parent.append(el("figure", { class: "card" }, title ? heading : null, host));
  const chart = { host, make, hidden: new Set() };
  charts.push(chart);
  near.observe(host);
  return chart;
}

function redraw() {
  for (const chart of charts) if (chart.host.dataset.drawn) draw(chart);
}

/** Buttons that show and hide models in some charts. */
function legend(parent, models, own, note) {
  for (const model of models) {
    const button = el("button", { type: "button", "aria-pressed": "true", "data-model": model,
      title: "Show or hide" }, named(model));
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      set(button, { "aria-pressed": shown ? "true" : "false" });
      for (const chart of own) {
        chart.hidden[shown ? "delete" : "add"](model);
        if (chart.host.dataset.drawn) draw(chart);
      }
    });
    parent.append(button);
  }
  if (note) parent.append(el("span", { class: "note" }, note));
}

const lineOf = (model, dash = model) => ({ color: color(model), width: 2.2, dash: DASHES[dash % DASHES.length] });
const markerOf = (model) => ({ color: color(model), size: 7, symbol: MARKERS[model % MARKERS.length], maxdisplayed: 9 });

// ---------------------------------------------------------------- overview

function overview() {
  $("title").textContent = DATA.title;
  $("made").textContent = `leanvit ${DATA.leanvit} · ${DATA.made}`;
  const trained = MODELS.filter((model) => model.trained).length;
  const bare = MODELS.length - trained;
  const count = (n, word) => `${n} ${word} network${n === 1 ? "" : "s"}`;
  const who = [trained ? count(trained, "trained") : "", bare ? count(bare, "untrained") : ""].filter(Boolean);
  $("subtitle").textContent = `${who.join(" and ")}, looked at on ${figure(DATA.images)} images: ${DATA.data}.`;
  for (const [index, model] of MODELS.entries()) {
    const facts = el("dl", {}, (model.facts || []).map(([label, value]) =>
      el("div", {}, el("dt", {}, String(label)), el("dd", {}, String(value)))));
    $("cards").append(el("article", { class: "card model", "data-model": index, style: `--own:${color(index)}` },
      el("h2", {}, named(index)), facts));
  }
  $("foot").textContent = `Made by leanvit ${DATA.leanvit} on ${DATA.made}. This file holds all that it shows and asks nothing of the network.`;
}

// ---------------------------------------------------------------- curves

function curves() {
  if (!(DATA.curves || []).some((one) => filled(one.panels))) return false;
  const panels = new Map(); // title and unit -> the series of all models
  for (const { model, panels: own } of DATA.curves) {
    for (const panel of own) {
      const key = JSON.stringify([panel.title, panel.unit]);
      if (!panels.has(key)) panels.set(key, { ...panel, series: [] });
      panels.get(key).series.push(...panel.series.map((one) => ({ ...one, model })));
    }
  }
  const own = [...panels.values()].map((panel) =>
    addChart($("curves-charts"), panel.title, panel.unit, () => curveOf(panel)));
  legend($("curves-legend"), unique(DATA.curves.map((one) => one.model)), own);
  return true;
}

function curveOf(panel) {
  const names = unique(panel.series.map((one) => one.name));
  const traces = panel.series.map((one) => {
    const several = names.length > 1;
    const name = several ? `${modelName(one.model)}: ${one.name}` : modelName(one.model);
    return { type: "scatter", mode: "lines+markers", x: one.x, y: one.y, meta: one.model, connectgaps: false,
      line: lineOf(one.model, several ? names.indexOf(one.name) : one.model), marker: markerOf(one.model),
      hovertemplate: `step %{x}: %{y:.4~g}<extra>${plain(short(name, 48))}</extra>` };
  });
  return { traces: [...traces, ...(names.length > 1 ? endNames(panel) : [])],
    look: { margin: { l: 56, r: names.length > 1 ? 74 : 14, t: 12, b: 44 }, xaxis: { title: "step", ...widthOf(panel) },
      yaxis: { title: panel.unit || panel.title } } };
}

/** The steps shown: from the first to the last, so that names stand to the right of the lines. */
function widthOf(panel) {
  const steps = panel.series.flatMap((one) => [one.x[0], one.x[one.x.length - 1]]).filter(finite);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  return first < last ? { range: [first - 0.02 * (last - first), last + 0.01 * (last - first)] } : {};
}

/** The name of each series, written at the end of its line. */
function endNames(panel) {
  return panel.series.map((one) => {
    const last = one.y.reduce((found, y, i) => finite(y) ? i : found, -1);
    return { type: "scatter", mode: "text", x: [one.x[last]], y: [one.y[last]], meta: one.model, hoverinfo: "skip",
      text: [`\u2002${plain(short(one.name, 14))}`], textposition: "middle right", cliponaxis: false,
      textfont: { color: ink().soft, size: 11 } };
  }).filter((trace) => trace.x[0] !== undefined);
}

// ---------------------------------------------------------------- results

const LOWER = /loss|error|perplexity|seconds|time|latency|\bmce\b/i;
const UNRATED = /param|epoch|step|images|size|dim|macs|flops|seed|^k$/i;

/** The best value of a column, or null where no such thing is to be said. */
function bestOf(title, values) {
  const numbers = values.filter(finite);
  if (numbers.length < 2 || UNRATED.test(title) || new Set(numbers).size < 2) return null;
  return LOWER.test(title) ? Math.min(...numbers) : Math.max(...numbers);
}

/** Digits after the point, the same for the whole column. */
function digitsOf(values) {
  const numbers = values.filter(finite);
  const most = Math.max(...numbers.map(Math.abs)) >= 10 ? 1 : 3;
  return Math.min(most, Math.max(...numbers.map((value) => (String(value).split(".")[1] || "").length)));
}

function results() {
  const table = DATA.results;
  if (!table || !filled(table.rows)) return false;
  const state = { column: -1, down: true };
  const heads = table.columns.map((title, column) => {
    const button = el("button", { type: "button" }, String(title), el("span", { "aria-hidden": "true", class: "arrow" }));
    button.addEventListener("click", () => {
      state.down = state.column === column ? !state.down : table.rows.some((row) => finite(row[column]));
      state.column = column;
      fill();
    });
    return el("th", { scope: "col", "aria-sort": "none" }, button);
  });
  const body = el("tbody");
  function fill() {
    heads.forEach((head, i) => set(head, { "aria-sort": i !== state.column ? "none" : state.down ? "descending" : "ascending" }));
    body.replaceChildren(...sorted(table.rows, state).map((row) => resultRow(table, row)));
  }
  $("results-table").append(el("thead", {}, el("tr", {}, heads)), body);
  fill();
  return true;
}

/** Rows by one column; what is missing goes last either way. */
function sorted(rows, { column, down }) {
  if (column < 0) return rows;
  const missing = (value) => value === null || value === undefined;
  return [...rows].sort((one, other) => {
    const [a, b] = [one[column], other[column]];
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    const order = finite(a) && finite(b) ? a - b : String(a).localeCompare(String(b), "en");
    return down ? -order : order;
  });
}

function resultRow(table, row) {
  const model = MODELS.findIndex((one) => one.name === row[0]);
  return el("tr", {}, row.map((value, column) => {
    if (column === 0) return el("th", { scope: "row" }, model >= 0 ? named(model) : String(value));
    if (!finite(value)) return el("td", { class: "word" }, value === null ? "–" : String(value));
    const values = table.rows.map((one) => one[column]);
    const best = bestOf(table.columns[column], values) === value;
    return el("td", { class: best ? "best" : null, title: String(value) },
      best ? el("span", { class: "star" }, el("span", { "aria-hidden": "true" }, "★"), el("span", { class: "hidden" }, "best: ")) : null,
      value.toLocaleString("en-GB", { minimumFractionDigits: digitsOf(values), maximumFractionDigits: digitsOf(values) }));
  }));
}

// ---------------------------------------------------------------- explorer: what the data says

const EXPLORER = DATA.explorer || {};
const bytesOf = new Map(); // record -> its numbers, decoded when first asked for

function bytes(base64, record) {
  if (!bytesOf.has(record)) {
    const raw = atob(base64);
    const values = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) values[i] = raw.charCodeAt(i);
    bytesOf.set(record, values);
  }
  return bytesOf.get(record);
}

/** Cosines of one left region with all right ones. */
function cosines(record, region) {
  const size = record.grid[0] * record.grid[1];
  const [low, high] = record.range;
  const row = bytes(record.similarity, record).subarray(region * size, (region + 1) * size);
  return Array.from(row, (byte) => low + byte / 255 * (high - low));
}

/** Attention of one region, its maximum 1; the mean is over heads that each sum to 1. */
function attended(record, region, head) {
  const size = record.grid[0] * record.grid[1];
  const values = bytes(record.values, record);
  const heads = head === "mean" ? Array.from({ length: record.heads }, (_, i) => i) : [Number(head)];
  const mean = new Array(size).fill(0);
  for (const one of heads) {
    const row = values.subarray((one * size + region) * size, (one * size + region + 1) * size);
    const sum = row.reduce((total, value) => total + value, 0) || 1;
    row.forEach((value, i) => { mean[i] += value / sum; });
  }
  const most = Math.max(...mean) || 1;
  return mean.map((value) => value / most);
}

const largest = (values) => values.reduce((best, value, i) => value > values[best] ? i : best, 0);
const place = (region, [, w]) => [Math.floor(region / w), region % w];

/** How many regions away, the larger of both directions. */
function away(one, other, grid) {
  const [[y, x], [v, u]] = [place(one, grid), place(other, grid)];
  return Math.max(Math.abs(y - v), Math.abs(x - u));
}

/** Whether the match of a region is right: "yes", "no" or "unknown"; one region off is right. */
function hit(record, region) {
  const truth = record.truth ? record.truth[region] : -1;
  if (truth < 0) return "unknown";
  return away(record.match[region], truth, record.grid) <= 1 ? "yes" : "no";
}

const tallies = new Map();

/** What all regions of a pair come to; the chance is that of a match drawn at random. */
function tally(record) {
  if (!tallies.has(record)) tallies.set(record, tallied(record));
  return tallies.get(record);
}

function tallied(record) {
  const size = record.match.length;
  const sum = { known: 0, right: 0, chance: 0, back: record.cycle.reduce((total, one) => total + one, 0) / size };
  for (let region = 0; region < size; region++) {
    const truth = record.truth ? record.truth[region] : -1;
    if (truth < 0) continue;
    sum.known += 1;
    sum.right += hit(record, region) === "yes" ? 1 : 0;
    for (let other = 0; other < size; other++) sum.chance += away(other, truth, record.grid) <= 1 ? 1 / size : 0;
  }
  if (sum.known) sum.chance /= sum.known;
  return sum;
}

/** The region of another grid that lies at the same place. */
function moved(region, from, to) {
  const [y, x] = place(region, from);
  const [v, u] = [Math.floor((y + 0.5) / from[0] * to[0]), Math.floor((x + 0.5) / from[1] * to[1])];
  return v * to[1] + u;
}

// ---------------------------------------------------------------- explorer: state

const state = { mode: "matches", pair: 0, model: 0, layer: "", block: 0, head: "mean", region: -1, grid: null,
  compare: false, all: false, stretch: false, opacity: 0.6, held: false };

const records = () => state.mode === "matches" ? EXPLORER.matches || [] : EXPLORER.attention || [];
const depthKey = () => state.mode === "matches" ? "layer" : "block";
const current = () => recordOf(state.model);

/** The record of a model at the chosen pair and depth; its last depth where it lacks that one. */
function recordOf(model) {
  const own = records().filter((one) => one.pair === state.pair && one.model === model);
  return own.find((one) => one[depthKey()] === state[depthKey()]) || own[own.length - 1];
}

/** Bring the choices to something that is there, and the region to the same place of the grid. */
function settle() {
  const keep = (value, options) => options.includes(value) ? value : options[options.length - 1];
  const pairs = unique(records().map((one) => one.pair)).sort((a, b) => a - b);
  if (!pairs.includes(state.pair)) state.pair = pairs[0];
  const here = records().filter((one) => one.pair === state.pair);
  const models = unique(here.map((one) => one.model));
  if (!models.includes(state.model)) state.model = models[0];
  const depths = unique(here.filter((one) => one.model === state.model).map((one) => one[depthKey()]));
  state[depthKey()] = keep(state[depthKey()], depths);
  const record = current();
  const [h, w] = record.grid;
  if (state.region < 0) state.region = Math.floor(h / 2) * w + Math.floor(w / 2);
  else if (state.grid) state.region = moved(state.region, state.grid, record.grid);
  state.grid = record.grid;
  if (state.mode === "attention" && state.head !== "mean" && Number(state.head) >= record.heads) state.head = "mean";
  return { pairs, models, depths };
}

// ---------------------------------------------------------------- explorer: what is on the page

let ui = null;

/** A picture with a map and outlines over it. */
function stage(attributes = {}) {
  const image = el("img", { alt: "", draggable: "false" });
  const map = el("canvas", { class: "map" });
  const marks = svg("svg", { class: "marks", preserveAspectRatio: "none", "aria-hidden": "true" });
  const root = el("div", { class: "stage", ...attributes }, image, map, marks);
  return { root, image, map, marks };
}

function select(label, id, onChange) {
  const node = el("select", { id });
  node.addEventListener("change", () => { onChange(node.value); refresh(); });
  const root = el("label", {}, label, " ", node);
  return { root, node };
}

function checkbox(label, id, onChange) {
  const node = el("input", { type: "checkbox", id });
  node.addEventListener("change", () => { onChange(node.checked); refresh(); });
  return { root: el("label", { class: "check" }, node, " ", label), node };
}

function options(node, entries, value) {
  const key = JSON.stringify(entries);
  if (node.dataset.key !== key) {
    node.replaceChildren(...entries.map(([one, label]) => el("option", { value: one }, label)));
    node.dataset.key = key;
  }
  node.value = String(value);
}

function correspondence() {
  const has = { matches: filled(EXPLORER.matches), attention: filled(EXPLORER.attention) };
  if (!filled(EXPLORER.pairs) || !(has.matches || has.attention)) return false;
  state.mode = has.matches ? "matches" : "attention";
  state.model = Math.max(0, MODELS.findIndex((one) => one.trained));
  ui = build(has.matches && has.attention);
  $("explorer").append(ui.controls, ui.stages, ui.below);
  listen(ui.left.root);
  refresh();
  return true;
}

function build(both) {
  const modes = ["matches", "attention"].map((mode) => {
    const button = el("button", { type: "button", id: `mode-${mode}`, "aria-pressed": "false" }, mode);
    button.addEventListener("click", () => { state.mode = mode; refresh(); });
    return button;
  });
  const made = {
    modes,
    pair: select("Pair", "explorer-pair", (value) => { state.pair = Number(value); }),
    model: select("Model", "explorer-model", (value) => { state.model = Number(value); }),
    layer: select("Layer", "explorer-layer", (value) => { state.layer = value; }),
    block: select("Block", "explorer-block", (value) => { state.block = Number(value); }),
    head: select("Head", "explorer-head", (value) => { state.head = value; }),
    compare: checkbox("compare all models", "explorer-compare", (value) => { state.compare = value; }),
    all: checkbox("show all matches", "explorer-all", (value) => { state.all = value; }),
    stretch: checkbox("stretch colours to this region", "explorer-stretch", (value) => { state.stretch = value; }),
    opacity: el("input", { type: "range", id: "explorer-opacity", min: 0, max: 100, value: 60 }),
    left: stage({ id: "explorer-left", tabindex: 0, role: "application", "aria-roledescription": "picture of regions",
      "aria-label": "Left picture. The arrow keys choose a region.", "aria-describedby": "explorer-words" }),
    right: stage({ id: "explorer-right" }),
    minis: el("div", { id: "explorer-minis", class: "minis" }),
    heads: el("div", { id: "explorer-heads", class: "heads" }),
    leftName: el("figcaption", {}), rightName: el("figcaption", { id: "explorer-right-name" }),
    scale: el("div", { class: "scale" }, el("span", { id: "scale-low" }), el("i", { style: `background:${cssScale(VIRIDIS)}` }),
      el("span", { id: "scale-high" }), el("span", { id: "scale-unit", class: "note" })),
    key: el("p", { class: "key note", id: "explorer-key" }),
    words: el("p", { id: "explorer-words", class: "words", "aria-live": "polite" }),
    accuracy: el("p", { id: "explorer-accuracy", class: "words" }),
    lines: svg("svg", { class: "lines", id: "explorer-lines", "aria-hidden": "true" }),
  };
  made.opacity.addEventListener("input", () => { state.opacity = made.opacity.value / 100; paintRegion(); });
  made.controls = el("div", { class: "controls" },
    both ? el("div", { class: "modes", role: "group", "aria-label": "What to show" }, modes) : null,
    [made.pair, made.model, made.layer, made.block, made.head].map((one) => one.root),
    [made.compare, made.all, made.stretch].map((one) => one.root),
    el("label", {}, "Opacity of the map ", made.opacity));
  made.stages = el("div", { class: "stages" }, el("figure", {}, made.left.root, made.leftName),
    el("figure", { class: "target" }, made.right.root, made.minis, made.rightName, made.scale), made.lines);
  made.below = el("div", { class: "below" }, made.key, made.words, made.accuracy, made.heads);
  new ResizeObserver(() => paintLines()).observe(made.stages);
  return made;
}

/** Hover, tap, click and arrow keys. A click of the mouse holds the region, another lets it go. */
function listen(root) {
  let touch = false;
  const at = (event) => {
    const box = root.getBoundingClientRect();
    const [h, w] = state.grid;
    const cell = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
    return cell((event.clientY - box.top) / box.height, h) * w + cell((event.clientX - box.left) / box.width, w);
  };
  root.addEventListener("pointerdown", (event) => { touch = event.pointerType === "touch"; });
  root.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch" && !state.held) choose(at(event));
  });
  root.addEventListener("click", (event) => {
    if (!touch) state.held = !state.held;
    choose(at(event), true);
  });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [h, w] = state.grid;
    const [y, x] = place(state.region, state.grid);
    const inside = (value, count) => Math.min(count - 1, Math.max(0, value));
    choose(inside(y + step[0], h) * w + inside(x + step[1], w));
  });
}

function choose(region, always = false) {
  if (region === state.region && !always) return;
  state.region = region;
  paintRegion();
}

// ---------------------------------------------------------------- explorer: drawing

/** Everything, after a choice. */
function refresh() {
  const { pairs, models, depths } = settle();
  const matches = state.mode === "matches";
  const record = current();
  for (const button of ui.modes) set(button, { "aria-pressed": String(button.id === `mode-${state.mode}`) });
  options(ui.pair.node, pairs.map((i) => [i, EXPLORER.pairs[i].name]), state.pair);
  options(ui.model.node, models.map((i) => [i, modelName(i) + (MODELS[i] && !MODELS[i].trained ? " (untrained)" : "")]), state.model);
  if (matches) options(ui.layer.node, depths.map((one) => [one, one]), state.layer);
  else {
    options(ui.block.node, depths.map((one) => [one, one + 1]), state.block);
    options(ui.head.node, [["mean", "mean of heads"], ...Array.from({ length: record.heads }, (_, i) => [i, i + 1])], state.head);
  }
  ui.layer.root.hidden = ui.all.root.hidden = ui.stretch.root.hidden = !matches;
  ui.block.root.hidden = ui.head.root.hidden = matches;
  ui.compare.root.hidden = models.length < 2;
  ui.all.node.disabled = state.compare;
  const pair = EXPLORER.pairs[state.pair];
  showPicture(ui.left, pair.left, `${pair.name}, left`);
  ui.leftName.textContent = matches ? "Left: choose a region here" : "Choose a region here";
  const over = state.compare && models.length > 1;
  ui.right.root.hidden = over;
  ui.minis.replaceChildren(...(over ? models.map((model) => mini(model, pair)) : []));
  showPicture(ui.right, matches ? pair.right : pair.left, `${pair.name}, ${matches ? "right" : "attention"}`);
  ui.rightName.textContent = matches ? "Right: how alike each region is to the chosen one" : "Where the chosen region attends, in the same picture";
  headPictures(matches || over ? null : record, pair);
  paintAccuracy(record);
  paintRegion();
}

function showPicture(one, src, alt) {
  if (one.image.shown === src) return;
  const fresh = picture(src, alt, { draggable: "false" });
  fresh.shown = src;
  fresh.addEventListener("load", () => paintLines());
  one.image.replaceWith(fresh);
  one.image = fresh;
}

/** A small stage that has its height before its picture is there, so that nothing jumps. */
function smallStage() {
  const { naturalWidth: width, naturalHeight: height } = ui.left.image;
  return stage({ style: width ? `aspect-ratio:${width}/${height}` : null });
}

/** One small picture of a model, for comparing all of them. */
function mini(model, pair) {
  const one = smallStage();
  showPicture(one, state.mode === "matches" ? pair.right : pair.left, modelName(model));
  const words = el("figcaption", { class: "said" });
  const root = el("figure", { class: "mini", "data-model": model }, named(model), one.root, words);
  root.parts = { one, words, model };
  return root;
}

/** One small picture a head; a click chooses it. */
function headPictures(record, pair) {
  const heads = record ? ["mean", ...Array.from({ length: record.heads }, (_, i) => i)] : [];
  ui.heads.replaceChildren(...heads.map((head) => {
    const one = smallStage();
    showPicture(one, pair.left, "");
    const button = el("button", { type: "button", "data-head": head, "aria-pressed": String(String(head) === state.head) },
      one.root, head === "mean" ? "mean" : `head ${head + 1}`);
    button.addEventListener("click", () => { state.head = String(head); refresh(); ui.heads.querySelector(`[data-head="${head}"]`).focus(); });
    button.parts = one;
    return button;
  }));
}

/** The map and the outlines of one stage; says what came out. */
function paintStage(one, record, region) {
  const matches = state.mode === "matches";
  const values = matches ? cosines(record, region) : attended(record, region, state.head);
  const range = !matches ? [0, 1] : state.stretch ? [Math.min(...values), Math.max(...values)] : record.range;
  paintMap(one.map, values, record.grid, range);
  one.map.style.opacity = state.opacity;
  const target = matches ? record.match[region] : largest(values);
  const truth = matches && record.truth ? record.truth[region] : -1;
  one.marks.replaceChildren();
  if (truth >= 0) outline(one.marks, truth, record.grid, "truth");
  if (matches) outline(one.marks, target, record.grid, "match");
  else outline(one.marks, region, record.grid, "region");
  return { target, truth, values, range };
}

function paintMap(canvas, values, [h, w], [low, high]) {
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const context = canvas.getContext("2d", { willReadFrequently: true }); // tiny: no business of the GPU
  const image = context.createImageData(w, h);
  values.forEach((value, i) => {
    image.data.set([...shade(VIRIDIS, (value - low) / (high - low || 1)), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

/** A box around a region, light on dark so that it shows on any picture. */
function outline(marks, region, [h, w], kind) {
  set(marks, { viewBox: `0 0 ${w} ${h}` });
  const [y, x] = place(region, [h, w]);
  for (const layer of ["under", "over"]) {
    marks.append(svg("rect", { x, y, width: 1, height: 1, class: `${kind} ${layer}`, "data-region": region }));
  }
}

/** What depends on the region: maps, outlines, words and the state on the element. */
function paintRegion() {
  const record = current();
  ui.left.marks.replaceChildren();
  outline(ui.left.marks, state.region, record.grid, "region");
  if (state.mode === "matches" && state.all && !state.compare) paintMarks(record);
  const seen = paintStage(ui.right, record, state.region);
  for (const { parts } of ui.minis.children) paintMini(parts, record);
  for (const button of ui.heads.children) {
    const head = button.dataset.head;
    paintMap(button.parts.map, attended(record, state.region, head), record.grid, [0, 1]);
    button.parts.map.style.opacity = state.opacity;
  }
  paintScale(seen);
  state.mode === "matches" ? sayMatch(record, seen) : sayAttention(record, seen);
  expose(record, seen);
  paintLines();
}

function paintMini({ one, words, model }, chosen) {
  const record = recordOf(model);
  const region = moved(state.region, chosen.grid, record.grid);
  const { target, values } = paintStage(one, record, region);
  const figure = one.root.parentNode;
  if (state.mode === "attention") {
    words.textContent = `block ${record.block + 1}: half on ${halfOf(values)} of ${values.length} regions`;
    Object.assign(figure.dataset, { region, peak: target });
    return;
  }
  const verdict = { yes: "✓ right", no: "✕ wrong", unknown: "" }[hit(record, region)];
  const sum = tally(record);
  const whole = sum.known ? `; of all ${percent(sum.right / sum.known)}` : "";
  words.textContent = [`${record.layer}: ${values[target].toFixed(2)}`, verdict].filter(Boolean).join(", ") + whole;
  Object.assign(figure.dataset, { region, match: target, hit: hit(record, region), layer: record.layer });
}

function paintScale({ range }) {
  const matches = state.mode === "matches";
  const own = matches && state.compare && !state.stretch;
  $("scale-low").textContent = own ? "least" : matches ? range[0].toFixed(2) : "0";
  $("scale-high").textContent = own ? "most" : matches ? range[1].toFixed(2) : "most";
  $("scale-unit").textContent = matches ? (own ? "cosine, on each model's own scale" : "cosine") : "attention, as a share of the largest";
  ui.key.textContent = !matches ? "Solid box: the chosen region." : current().truth
    ? "Solid box: the best match. Dashed box: the right place." + (state.all && !state.compare ? " ● right, ✕ wrong; lines join regions that choose each other, dashed where wrong." : "")
    : "Solid box: the best match." + (state.all && !state.compare ? " Lines join regions that choose each other." : "");
}

const spot = (region, grid) => {
  const [y, x] = place(region, grid);
  return `row ${y + 1}, column ${x + 1}`;
};

/** Where several models are shown, the words say whose they are. */
const spoken = () => state.compare ? `${modelName(state.model)}: r` : "R";

function sayMatch(record, { target, truth, values }) {
  const off = truth < 0 ? 0 : away(target, truth, record.grid);
  const verdict = truth < 0 ? "The right place is not known." : off === 0 ? "That is the right place."
    : off === 1 ? "That is right to within one region." : `That is wrong: the right place is ${off} regions away.`;
  const back = record.cycle[state.region] ? "It is matched back." : "It is not matched back.";
  ui.words.textContent = `${spoken()}egion at ${spot(state.region, record.grid)} of ${record.grid[0]} × ${record.grid[1]}: ` +
    `the best match is ${spot(target, record.grid)}, cosine ${values[target].toFixed(2)}. ${verdict} ${back}` +
    (state.held ? " Held; click again to let go." : "");
}

/** The fewest regions that hold half of the attention. */
function halfOf(values) {
  const down = [...values].sort((a, b) => b - a);
  const whole = down.reduce((sum, value) => sum + value, 0);
  let [sum, count] = [0, 0];
  while (sum < whole / 2 && count < down.length) sum += down[count++];
  return count;
}

function sayAttention(record, { target, values }) {
  const head = state.head === "mean" ? "the mean of heads" : `head ${Number(state.head) + 1}`;
  ui.words.textContent = `${spoken()}egion at ${spot(state.region, record.grid)}: in block ${record.block + 1}, ${head} attends the most to ` +
    `${spot(target, record.grid)}; half of it falls on ${halfOf(values)} of ${values.length} regions.` +
    (state.held ? " Held; click again to let go." : "");
}

function paintAccuracy(record) {
  ui.accuracy.hidden = state.mode !== "matches";
  ui.accuracy.textContent = "";
  delete $("explorer").dataset.accuracy;
  if (state.mode !== "matches") return;
  const sum = tally(record);
  const back = `${percent(sum.back)} of all regions are matched back.`;
  ui.accuracy.textContent = sum.known
    ? `Whole pair, ${modelName(state.model)}, ${record.layer}: ${sum.right} of the ${sum.known} regions whose right place is known find it ` +
      `(${percent(sum.right / sum.known, 1)}; chance ${percent(sum.chance, 1)}). ${back}`
    : `Whole pair, ${modelName(state.model)}, ${record.layer}: the right places are not known. ${back}`;
  if (sum.known) $("explorer").dataset.accuracy = (sum.right / sum.known).toFixed(4);
}

/** A sign on each left region: its match is right or wrong. */
function paintMarks(record) {
  for (let region = 0; region < record.match.length; region++) {
    const [y, x] = place(region, record.grid);
    const verdict = hit(record, region);
    if (verdict === "yes") ui.left.marks.append(svg("circle", { cx: x + 0.5, cy: y + 0.5, r: 0.12, class: "yes" }));
    if (verdict === "no") ui.left.marks.append(svg("path", { d: `M${x + 0.36} ${y + 0.36}l.28 .28m0 -.28l-.28 .28`, class: "no" }));
  }
}

/** Lines between regions that choose each other, across both pictures. */
function paintLines() {
  if (!ui) return;
  ui.lines.replaceChildren();
  if (state.mode !== "matches" || !state.all || state.compare) return;
  const record = current();
  const frame = ui.stages.getBoundingClientRect();
  const point = (root, region) => {
    const box = root.getBoundingClientRect();
    const [y, x] = place(region, record.grid);
    return [box.left - frame.left + (x + 0.5) / record.grid[1] * box.width, box.top - frame.top + (y + 0.5) / record.grid[0] * box.height];
  };
  set(ui.lines, { viewBox: `0 0 ${frame.width} ${frame.height}` });
  record.match.forEach((match, region) => {
    if (!record.cycle[region]) return;
    const [[x1, y1], [x2, y2]] = [point(ui.left.root, region), point(ui.right.root, match)];
    const kind = `${hit(record, region)}${region === state.region ? " chosen" : ""}`;
    ui.lines.append(svg("line", { x1, y1, x2, y2, class: kind }));
  });
}

/** The state as data attributes, for whoever wants to check it. */
function expose(record, { target, values, truth }) {
  const matches = state.mode === "matches";
  const said = { mode: state.mode, pair: state.pair, model: state.model, region: state.region, compare: state.compare, all: state.all,
    held: state.held, grid: record.grid.join("x"), layer: matches ? record.layer : null, block: matches ? null : record.block,
    head: matches ? null : state.head, match: matches ? target : null, peak: largest(values), truth: truth >= 0 ? truth : null,
    similarity: matches ? values[target].toFixed(4) : null, hit: matches ? hit(record, state.region) : null,
    cycle: matches ? record.cycle[state.region] : null };
  set($("explorer"), Object.fromEntries(Object.entries(said).map(([name, value]) => [`data-${name}`, value === false ? "false" : value === true ? "true" : value])));
}

// ---------------------------------------------------------------- features as colours

function pca() {
  if (!filled(DATA.pca) || !filled(DATA.gallery)) return false;
  const host = $("pca-gallery");
  set(host, { style: `--columns:${DATA.pca.length + 1}` });
  const half = DATA.gallery.length > 1 && DATA.pca.length < 4 ? Math.ceil(DATA.gallery.length / 2) : DATA.gallery.length;
  for (let start = 0; start < DATA.gallery.length; start += half) {
    const block = el("div", { class: "block" }, el("div", { class: "head" }, "image"), DATA.pca.map(pcaHead));
    DATA.gallery.slice(start, start + half).forEach((image, i) => {
      block.append(el("figure", {}, picture(image.src, image.name, { title: image.name, loading: "lazy" }),
        el("figcaption", {}, image.class || image.name)));
      for (const one of DATA.pca) {
        block.append(el("figure", {}, picture(one.src[start + i], `${image.name}: features of ${modelName(one.model)}`,
          { class: "pixels", loading: "lazy", "data-model": one.model, title: modelName(one.model) })));
      }
    });
    host.append(block);
  }
  return true;
}

function pcaHead(one) {
  const whole = one.explained.reduce((sum, share) => sum + share, 0);
  const bars = el("span", { class: "bars", "aria-hidden": "true" },
    one.explained.map((share) => el("i", { style: `width:${(100 * share).toFixed(1)}%` })));
  return el("div", { class: "head" }, named(one.model), bars,
    el("small", {}, `${one.explained.map((share) => Math.round(100 * share)).join(" + ")} = ${percent(whole)} of the variance`),
    finite(one.foreground) ? el("small", {}, `foreground ${percent(one.foreground)}`) : null);
}

// ---------------------------------------------------------------- attention

function attention() {
  const all = DATA.attention;
  if (!all || !filled(all.models) || !filled(all.measures)) return false;
  const own = all.measures.map((measure, k) =>
    addChart($("attention-charts"), measure.title, measure.unit, () => boxesOf(all, measure, k), "wide"));
  legend($("attention-legend"), all.models.map((one) => one.model), own, "dashed: everywhere alike");
  return true;
}

function boxesOf(all, measure, k) {
  const traces = all.models.map(({ model, blocks }) => {
    const heads = blocks.flatMap((block, depth) => block.map((head, i) => [String(depth + 1), head[k], i + 1]));
    return { type: "box", meta: model, x: heads.map((one) => one[0]), y: heads.map((one) => one[1]),
      customdata: heads.map((one) => one[2]), boxpoints: "all", jitter: 0.5, pointpos: 0, line: { width: 1.3, color: color(model) },
      fillcolor: `${color(model)}33`, marker: { ...markerOf(model), size: 5, opacity: 0.85 }, offsetgroup: String(model),
      hoveron: "points", hovertemplate: `block %{x}, head %{customdata}: %{y:.3~g}<extra>${plain(short(modelName(model)))}</extra>` };
  });
  const depth = Math.max(...all.models.map((one) => one.blocks.length));
  return { traces: [...traces, ...uniformLines(all, measure.key)],
    look: { boxmode: "group", boxgap: 0.25, boxgroupgap: 0.15, yaxis: { title: measure.unit || measure.title },
      xaxis: { title: "block", type: "category", categoryarray: Array.from({ length: depth }, (_, i) => String(i + 1)) } } };
}

/** Attention that falls everywhere alike: one line, or one a model where grids differ. */
function uniformLines(all, key) {
  const rows = all.models.map(({ model, uniform }) => ({ model, y: (uniform || []).map((one) => one[key]) }))
    .filter(({ y }) => y.some(finite));
  const longest = rows.reduce((found, row) => row.y.length > found.length ? row.y : found, []);
  const alike = rows.every(({ y }) => y.every((value, i) => Math.abs(value - longest[i]) < 1e-6));
  return (alike ? rows.filter(({ y }) => y === longest) : rows).map(({ model, y }) => ({
    type: "scatter", mode: "lines", x: y.map((_, i) => String(i + 1)), y, meta: alike ? "uniform" : model,
    line: { color: alike ? ink().soft : color(model), width: 1.6, dash: "dash" },
    hovertemplate: `everywhere alike: %{y:.3~g}<extra>${alike ? "" : plain(short(modelName(model)))}</extra>` }));
}

// ---------------------------------------------------------------- layers

function cka() {
  if (!filled(DATA.cka)) return false;
  const choice = $("cka-pair");
  DATA.cka.forEach((one, i) => choice.append(el("option", { value: i },
    one.left === one.right ? `${modelName(one.left)} with itself` : `${modelName(one.left)} and ${modelName(one.right)}`)));
  if (DATA.cka.length < 2) $("cka-choice").hidden = true;
  const chart = addChart($("cka-chart"), "", "", () => ckaOf(DATA.cka[Number(choice.value)]), "square");
  choice.addEventListener("change", () => { if (chart.host.dataset.drawn) draw(chart); });
  return true;
}

function ckaOf(one) {
  const [y, x] = [one.left_layers, one.right_layers].map((names) => names.map((_, i) => i));
  const ticks = (names) => ({ tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map((name) => plain(short(name, 14))) });
  const text = one.left_layers.map((left) => one.right_layers.map((right) => plain(`${short(left)} × ${short(right)}`)));
  const heat = { type: "heatmap", x, y, z: one.values, text, zmin: 0, zmax: 1, colorscale: plotlyScale(MAGMA), xgap: 1, ygap: 1,
    hovertemplate: "%{text}: %{z:.2f}<extra></extra>",
    colorbar: { title: { text: "CKA", side: "right" }, thickness: 12, outlinewidth: 0, tickvals: [0, 0.25, 0.5, 0.75, 1] } };
  return { traces: [heat], look: { margin: { l: 60, r: 10, t: 12, b: 60 },
    xaxis: { title: short(modelName(one.right), 48), ...ticks(one.right_layers), showgrid: false },
    yaxis: { title: short(modelName(one.left), 48), ...ticks(one.left_layers), showgrid: false } } };
}

// ---------------------------------------------------------------- spectrum

function spectrum() {
  if (!filled(DATA.rank)) return false;
  const chart = addChart($("spectrum-chart"), "Singular values", "share of the largest", spectrumOf);
  legend($("spectrum-legend"), DATA.rank.map((one) => one.model), [chart]);
  const columns = unique(DATA.rank.flatMap((one) => Object.keys(one.figures || {})));
  const head = el("tr", {}, el("th", { scope: "col" }, "model"), columns.map((name) => el("th", { scope: "col", class: "number" }, name)));
  const rows = DATA.rank.map((one) => el("tr", {}, el("th", { scope: "row" }, named(one.model)),
    columns.map((name) => el("td", {}, figure((one.figures || {})[name])))));
  $("spectrum-table").append(el("thead", {}, head), el("tbody", {}, rows));
  return true;
}

function spectrumOf() {
  const traces = DATA.rank.map(({ model, values }) => ({ type: "scatter", mode: "lines+markers", meta: model,
    x: values.map((_, i) => i + 1), y: values.map((value) => value > 0 ? value : null), line: lineOf(model), marker: markerOf(model),
    hovertemplate: `direction %{x}: %{y:.3~g}<extra>${plain(short(modelName(model)))}</extra>` }));
  return { traces, look: { xaxis: { title: "direction" }, yaxis: { title: "share of the largest", type: "log", exponentformat: "power", dtick: 1 } } };
}

// ---------------------------------------------------------------- neighbours

function neighbours() {
  const all = DATA.retrieval;
  if (!all || !filled(all.queries) || !filled(all.models)) return false;
  $("neighbours-list").append(...all.queries.map((query, q) => {
    const asked = all.pictures[query];
    const head = el("figure", { class: "query" }, picture(asked.src, asked.name, { title: asked.name, loading: "lazy" }),
      el("figcaption", {}, asked.class || asked.name));
    const rows = all.models.map(({ model, neighbors }) => el("div", { class: "row", "data-model": model }, named(model),
      el("div", { class: "found" }, neighbors[q].map(([index, cosine]) => neighbour(all.pictures[index], asked, cosine)))));
    return el("article", { class: "card asked" }, head, el("div", { class: "answers" }, rows));
  }));
  return true;
}

function neighbour(found, asked, cosine) {
  const known = found.class !== null && asked.class !== null && found.class !== undefined;
  const same = known && found.class === asked.class;
  const said = known ? (same ? "same class" : `another class: ${found.class}`) : "class unknown";
  return el("figure", { class: known ? (same ? "same" : "other") : "unknown", "data-same": known ? (same ? "yes" : "no") : "unknown" },
    picture(found.src, `${found.name}, ${said}`, { title: `${found.name}: ${said}`, loading: "lazy" }),
    el("figcaption", {}, known ? el("b", { "aria-hidden": "true" }, same ? "✓ " : "✕ ") : null, finite(cosine) ? cosine.toFixed(2) : ""));
}

// ---------------------------------------------------------------- pictures, notes, navigation

function pictures() {
  if (!filled(DATA.pictures)) return false;
  $("pictures-list").append(...DATA.pictures.map((one) => el("figure", { class: "card wide" },
    el("h3", {}, one.title, " ", named(one.model)),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": one.title }, picture(one.src, one.title, { loading: "lazy" })),
    one.text ? el("figcaption", {}, one.text) : null)));
  return true;
}

function notes() {
  if (!filled(DATA.notes)) return false;
  $("notes-list").append(...DATA.notes.map((note) => el("li", {}, note)));
  return true;
}

/** Links to the sections that are there; the one in view is marked. */
function navigation() {
  const links = new Map();
  for (const section of document.querySelectorAll("section[data-nav]")) {
    const link = el("a", { href: `#${section.id}` }, section.dataset.nav);
    links.set(section, link);
    $("nav").firstElementChild.append(el("li", {}, link));
  }
  const list = $("nav").firstElementChild;
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(target);
      link.setAttribute("aria-current", "true");
      list.scrollLeft = link.offsetLeft - list.clientWidth / 2 + link.offsetWidth / 2;
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  links.forEach((_, section) => watch.observe(section));
}

function start() {
  const parts = { curves, results, correspondence, pca, attention, cka, spectrum, neighbours, pictures, notes };
  overview();
  for (const [id, part] of Object.entries(parts)) if (!part()) $(id).remove();
  navigation();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => charts.forEach(draw));
  document.documentElement.dataset.ready = "yes";
}

start();
})();
