// The explorer: matches and attention of the region that a visitor points at.

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
  options(ui.model.node, models.map((i) => [i, modelName(i) + (MODELS[i] && !MODELS[i].trained && !saysSo(i) ? " (untrained)" : "")]), state.model);
  if (matches) options(ui.layer.node, depths.map((one) => [one, one]), state.layer);
  else {
    options(ui.block.node, depths.map((one) => [one, one]), state.block);
    options(ui.head.node, [["mean", "mean of heads"], ...Array.from({ length: record.heads }, (_, i) => [i, i])], state.head);
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
      one.root, head === "mean" ? "mean" : `head ${head}`);
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
    words.textContent = `block ${record.block}: half on ${halfOf(values)} of ${values.length} regions`;
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
  const head = state.head === "mean" ? "the mean of heads" : `head ${Number(state.head)}`;
  ui.words.textContent = `${spoken()}egion at ${spot(state.region, record.grid)}: in block ${record.block}, ${head} attends the most to ` +
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
