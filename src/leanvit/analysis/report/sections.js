// Sections that only show: a function each, which says whether there is anything to show.

// ---------------------------------------------------------------- overview

function overview() {
  $("title").textContent = DATA.title;
  $("made").textContent = `leanvit ${DATA.leanvit} · ${DATA.made}`;
  const trained = MODELS.filter((model) => model.trained).length;
  const bare = MODELS.length - trained;
  const count = (n, word) => `${n} ${word} network${n === 1 ? "" : "s"}`;
  const who = [trained ? count(trained, "trained") : "", bare ? count(bare, "untrained") : ""].filter(Boolean);
  $("subtitle").textContent = `${who.join(" and ")}, looked at on ${figure(DATA.images)} images of “${DATA.data}”.`;
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
  if (all.maps) {
    $("attention-maps").hidden = false;
    $("attention-maps").querySelector(".scroll").append(picture(all.maps, "Maps of attention"));
  }
  return true;
}

function boxesOf(all, measure, k) {
  const traces = all.models.map(({ model, blocks }) => {
    const heads = blocks.flatMap((block, depth) => block.map((head, i) => [String(depth), head[k], i]));
    return { type: "box", meta: model, x: heads.map((one) => one[0]), y: heads.map((one) => one[1]),
      customdata: heads.map((one) => one[2]), boxpoints: "all", jitter: 0.5, pointpos: 0, line: { width: 1.3, color: color(model) },
      fillcolor: `${color(model)}33`, marker: { ...markerOf(model), size: 5, opacity: 0.85 }, offsetgroup: String(model),
      hoveron: "points", hovertemplate: `block %{x}, head %{customdata}: %{y:.3~g}<extra>${plain(short(modelName(model)))}</extra>` };
  });
  const depth = Math.max(...all.models.map((one) => one.blocks.length));
  return { traces: [...traces, ...uniformLines(all, measure.key)],
    look: { boxmode: "group", boxgap: 0.25, boxgroupgap: 0.15, yaxis: { title: measure.unit || measure.title },
      xaxis: { title: "block, from 0", type: "category", categoryarray: Array.from({ length: depth }, (_, i) => String(i)) } } };
}

/** Attention that falls everywhere alike: one line, or one a model where grids differ. */
function uniformLines(all, key) {
  const rows = all.models.map(({ model, uniform }) => ({ model, y: (uniform || []).map((one) => one[key]) }))
    .filter(({ y }) => y.some(finite));
  const longest = rows.reduce((found, row) => row.y.length > found.length ? row.y : found, []);
  const alike = rows.every(({ y }) => y.every((value, i) => Math.abs(value - longest[i]) < 1e-6));
  return (alike ? rows.filter(({ y }) => y === longest) : rows).map(({ model, y }) => ({
    type: "scatter", mode: "lines", x: y.map((_, i) => String(i)), y, meta: alike ? "uniform" : model,
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
