"use strict";
// What the page does. Its data are in the blocks that analysis/html_page.py writes: "report", and a "plot-<n>" for each
// model and a "picture-<n>" for each image, which are read only when they are shown.
// Everything that comes from a file's name or a category goes into the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id).textContent);
const report = read("report");
const models = [];
const [TRUTH, PREDICTION, OVERLAP] = report.colours;

// ---- sorting: a click on a column's name

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === (column ? "descending" : "ascending") ? 1 : -1;
    const sign = column ? down : -down; // numbers: largest first; names: from A to Z
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => sign * compare(value(a), value(b)) || 0);
    const known = rows.filter((row) => value(row) !== "");
    table.tBodies[0].append(...known, ...rows.filter((row) => value(row) === ""));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  }));
}

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return a === "" || b === "" || Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}

// ---- filters

function wanted() {
  const number = (id, empty) => ($(id).value === "" ? empty : Number($(id).value));
  const [smallest, largest] = $("size").value.split(",").map((text) => (text === "inf" ? Infinity : Number(text)));
  return {
    kind: $("kind").value, top: Number($("top").value), label: Number($("class").value), smallest, largest,
    iouFrom: number("iou-from", 0), iouTo: number("iou-to", 1),
    scoreFrom: number("score-from", -Infinity), scoreTo: number("score-to", Infinity),
  };
}

function applyFilters() {
  const want = wanted();
  models.forEach((model, number) => {
    const { score, label, area } = model.source.data;
    const iou = model.source.data[want.kind];
    const kept = new Array(score.length);
    for (let n = 0; n < kept.length; n++) {
      kept[n] = n < want.top && (want.label < 0 || label[n] === want.label)
        && area[n] >= want.smallest && area[n] < want.largest
        && iou[n] >= want.iouFrom && iou[n] <= want.iouTo && score[n] >= want.scoreFrom && score[n] <= want.scoreTo;
    }
    const changed = model.kind !== want.kind;
    if (changed) {
      model.source.data = { ...model.source.data, iou, gap: score.map((value, n) => value - iou[n]) };
      model.kind = want.kind;
    }
    model.kept = kept;
    model.filter.booleans = kept;
    if (changed) model.view.change.emit(); // the table looks at its data again when its view has changed, not before
    summarise(number, statistics(score, iou, kept));
  });
}

function statistics(x, y, kept) {
  let [count, sumX, sumY] = [0, 0, 0];
  for (let n = 0; n < kept.length; n++) if (kept[n]) { count++; sumX += x[n]; sumY += y[n]; }
  const [meanX, meanY] = [sumX / count, sumY / count];
  let [xx, yy, xy] = [0, 0, 0];
  for (let n = 0; n < kept.length; n++) if (kept[n]) {
    const [dx, dy] = [x[n] - meanX, y[n] - meanY];
    xx += dx * dx; yy += dy * dy; xy += dx * dy;
  }
  return [count, meanX, meanY, xy / Math.sqrt(xx * yy)];
}

function summarise(number, values) {
  const row = [...$("summary").tBodies[0].rows].find((candidate) => Number(candidate.dataset.model) === number);
  values.forEach((value, n) => {
    const known = Number.isFinite(value);
    row.cells[n + 1].textContent = known ? value.toFixed(n ? 3 : 0) : "–";
    row.cells[n + 1].dataset.value = known ? value : "";
  });
}

// ---- one prediction on its image

let shown = null;

function show(model, point) {
  shown = { model, point };
  const { source } = model;
  const at = (column) => source.data[column][point];
  const picture = read(`picture-${at("picture")}`);
  const truth = at("truth_same") >= 0 && $("kind").value === "same" ? at("truth_same") : at("truth_any");
  const facts = [
    ["model", report.models[model.number]], ["class", report.categories[at("label")]],
    ["score", at("score").toFixed(3)],
    ["IoU, this class", at("same").toFixed(3)], ["IoU, any class", at("any").toFixed(3)],
    ["ground truth", truth < 0 ? "none overlaps" : report.categories[picture.truths[truth].label]],
    ["mask", `${at("area")} pixels`], ["image", `${picture.name} (id ${picture.id})`],
  ];
  if (!picture.jpeg) facts.push(["picture", report.pictureless]);
  $("facts").replaceChildren(...facts.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  $("hint").hidden = true;
  $("details").hidden = $("picture").hidden = false;
  const truths = truth < 0 ? [] : [picture.truths[truth]];
  return paint(picture, $("all-truths").checked ? picture.truths : truths, picture.masks[at("mask")]);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

async function paint(picture, truths, mask) {
  const [height, width] = picture.size;
  const inTruth = new Uint8Array(height * width);
  for (const truth of truths) fill(inTruth, truth.counts, height, width);
  const inPrediction = fill(new Uint8Array(height * width), mask, height, width);
  const overlay = new ImageData(width, height);
  for (let n = 0; n < inTruth.length; n++) {
    if (!inTruth[n] && !inPrediction[n]) continue;
    overlay.data.set(inTruth[n] && inPrediction[n] ? OVERLAP : inTruth[n] ? TRUTH : PREDICTION, 4 * n);
    overlay.data[4 * n + 3] = 255;
  }
  const masks = new OffscreenCanvas(width, height);
  masks.getContext("2d").putImageData(overlay, 0, 0);
  const mine = shown;
  const photo = new Image();
  if (picture.jpeg) {
    photo.src = `data:image/jpeg;base64,${picture.jpeg}`;
    await photo.decode();
    if (mine !== shown) return; // another prediction was chosen meanwhile
  }
  const canvas = $("picture");
  const scale = Math.max(1, Math.round(640 / Math.max(height, width)));
  [canvas.width, canvas.height] = [scale * width, scale * height];
  const context = canvas.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.filter = $("grey").checked ? "grayscale(1)" : "none";
  if (picture.jpeg) context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.globalAlpha = Number($("opacity").value);
  context.imageSmoothingEnabled = false;
  context.drawImage(masks, 0, 0, canvas.width, canvas.height);
  canvas.scrollIntoView({ block: "nearest" }); // in a narrow window it is below the plots
  canvas.dataset.shown = `${mine.model.number}-${mine.point}`;
}

/** Sets the pixels of a COCO run-length encoding (column by column) in `mask_HW`. */
function fill(mask_HW, counts, height, width) {
  const runs = [];
  for (let place = 0; place < counts.length;) {
    let [run, shift, digit] = [0, 0, 0];
    do {
      digit = counts.charCodeAt(place++) - 48;
      run |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16 && shift < 32) run |= -1 << shift;
    runs.push(runs.length > 2 ? run + runs[runs.length - 2] : run);
  }
  let pixel = 0;
  runs.forEach((run, n) => {
    if (n % 2) for (let p = pixel; p < pixel + run; p++) mask_HW[(p % height) * width + Math.floor(p / height)] = 1;
    pixel += run;
  });
  return mask_HW;
}

// ---- plots

async function embed(number) {
  const views = await Bokeh.embed.embed_item(read(`plot-${number}`), `target-${number}`);
  const { document: plot } = [...views.roots][0].model;
  const model = {
    number, kind: "", source: plot.get_model_by_name("points"), filter: plot.get_model_by_name("kept"),
    view: plot.get_model_by_name("view"), figure: plot.get_model_by_name("figure"),
  };
  const { label, picture } = model.source.data;
  model.source.data = {
    ...model.source.data, category: Array.from(label, (n) => report.categories[n]),
    image: Array.from(picture, (n) => report.images[n]),
  };
  model.figure.on_event("tap", ({ x, y }) => {
    const nearest = nearestPoint(model, x, y);
    model.source.selected.indices = nearest < 0 ? [] : [nearest];
  });
  model.source.selected.properties.indices.change.connect(() => {
    const [point] = model.source.selected.indices;
    if (point === undefined) return;
    models.filter((other) => other !== model).forEach((other) => { other.source.selected.indices = []; });
    show(model, point);
  });
  return model;
}

/** The nearest point that is shown, within 2 % of the axes; -1 if there is none. */
function nearestPoint(model, x, y) {
  const { score, iou } = model.source.data;
  const { x_range, y_range } = model.figure;
  const [width, height] = [x_range.end - x_range.start, y_range.end - y_range.start];
  let [best, smallest] = [-1, 0.02];
  for (let n = 0; n < score.length; n++) {
    if (!model.kept[n]) continue;
    const distance = Math.hypot((score[n] - x) / width, (iou[n] - y) / height);
    if (distance < smallest) [best, smallest] = [n, distance];
  }
  return best;
}

function linkRanges() {
  for (const axis of ["x_range", "y_range"]) for (const model of models) {
    const range = model.figure[axis];
    for (const end of ["start", "end"]) range.properties[end].change.connect(() => {
      for (const other of models) if (other.figure[axis][end] !== range[end]) other.figure[axis][end] = range[end];
    });
  }
}

async function start() {
  [...$("summary").tBodies[0].rows].forEach((row, number) => { row.dataset.model = number; });
  for (let number = 0; number < report.models.length; number++) models.push(await embed(number));
  linkRanges();
  applyFilters();
  $("filters").addEventListener("input", applyFilters);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () => setTimeout(applyFilters)); // after the fields have been reset
  for (const id of ["opacity", "grey", "all-truths", "kind"]) $(id).addEventListener("input", () => {
    if (shown) { shown = { ...shown }; show(shown.model, shown.point); }
  });
  for (const row of $("classes").tBodies[0].rows) row.addEventListener("click", () => {
    $("class").value = row.dataset.label;
    applyFilters();
    $("explorer").scrollIntoView();
  });
  document.body.dataset.ready = "yes";
}

start();
