// The report page: draws what the JSON in #report-data says. No library but Plotly, no network.
// Whatever comes from the data is hostile: it reaches the page as text, never as markup.
// What all sections use.

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

/** Whether a model's name says already that it is untrained. */
const saysSo = (index) => /untrained$/.test(modelName(index));
const untrained = (index) =>
  MODELS[index] && !MODELS[index].trained && !saysSo(index) ? el("span", { class: "badge" }, "untrained") : null;

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
