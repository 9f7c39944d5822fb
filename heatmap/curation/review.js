"use strict";

// ---- Edits and their history

// An edit is never changed: {review, base, shown, pins}. The base is the label before its pins.
const edits = faces.map(() => null), past = [], future = []; // of lists of [face, before, after]
let current = 0, visible = [], chosen = -1, group = 0, mode = "both";

function unedited(index) {
  prepare(faces[index]);
  const { label } = faces[index];
  return { review: "", base: label, shown: label, pins: new Map() };
}

const editOf = (index) => (edits[index] ??= unedited(index));

/** Applies edits [face, after] as one step of the history; equal keys of `joined` are one step. */
function change(after, joined = null) {
  const step = after.map(([face, edit]) => [face, editOf(face), edit]);
  if (joined && past.at(-1)?.joined === joined) step[0][1] = past.pop()[0][1];
  step.joined = joined;
  past.push(step);
  future.length = 0;
  step.forEach(([face, , edit]) => store(face, edit));
  refresh();
}

function travel(from, to, side) {
  const step = from.pop();
  if (!step) return;
  to.push(step);
  step.joined = null;
  step.forEach((one) => store(one[0], one[side]));
  show(step[0][0]);
}

const undo = () => travel(past, future, 1);
const redo = () => travel(future, past, 2);
const edit = (fields) => change([[current, { ...editOf(current), ...fields }]]);

/** The edit with a landmark moved to (x, y), alone or with the others. */
function moved(before, i, x, y, alone) {
  const shown = Float32Array.from(before.shown);
  shown.set([x, y], 2 * i);
  const pins = new Map(before.pins).set(i, { alone });
  const points = alone ? shown : completed(faces[current], before.base, pins, shown);
  return { ...before, review: "corrected", shown: points, pins };
}

function review(name) {
  const isTakenBack = editOf(current).review === name;
  edit({ ...(name === "good" ? unedited(current) : {}), review: isTakenBack ? "" : name });
}

function takePrediction() {
  const { base, shown, pins } = editOf(current);
  const [start, stop] = groups[groupNames[group]] ?? [0, count];
  const part = faces[current].predicted.subarray(2 * start, 2 * stop);
  const [newBase, newShown] = [base, shown].map((points) => Float32Array.from(points));
  newBase.set(part, 2 * start);
  newShown.set(part, 2 * start);
  const left = new Map([...pins].filter(([i]) => i < start || i >= stop));
  edit({ review: "corrected", base: newBase, shown: newShown, pins: left });
}

function unpin() {
  const { base, shown, pins } = editOf(current), left = new Map(pins);
  if (!left.delete(chosen)) return;
  edit({ pins: left, shown: completed(faces[current], base, left, shown) });
}

// ---- corrections.csv, as a download and row by row in local storage

let storage = null, isSaved = true;
const keyOf = (index) => `review ${data.table} ${faces[index].name}`;
const notice = (text) => { $("notice").textContent = text; };
const cellsOf = (line) => [...line.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)]
  .slice(0, columns.length)
  .map(([, cell]) => (cell[0] === '"' ? cell.slice(1, -1).replaceAll('""', '"') : cell));

/** A row of corrections.csv; only landmarks that differ from the label have coordinates. */
function rowOf(index) {
  const { name, label, scale, offset } = faces[index], { review, shown, pins } = editOf(index);
  const cells = [review, data.table, [...pins.keys()].join(" "), `"${name.replaceAll('"', '""')}"`];
  for (let c = 0; c < 2 * count; c++) {
    const isSame = distance(shown, label, c >> 1) < 1e-3 || !isKnown(shown, c >> 1);
    const text = review === "corrected" && !isSame;
    cells.push(text ? (shown[c] * scale + offset[c & 1]).toFixed(2) : "");
  }
  return cells.join(",");
}

/** A face and the edit that a row of corrections.csv describes. */
function editFrom([review, , pinned, name, ...coordinates]) {
  const index = faces.findIndex((face) => face.name === name);
  if (index < 0) return null;
  const { base, pins } = unedited(index), points = Float32Array.from(base);
  const { scale, offset } = faces[index];
  coordinates.forEach((cell, c) => { if (cell) points[c] = (cell - offset[c & 1]) / scale; });
  for (const i of pinned.split(" ").filter(Boolean)) pins.set(Number(i), { alone: false });
  return [index, { review, base: points, shown: points, pins }];
}

function save() {
  const rows = [...faces.keys()].filter((index) => edits[index]?.review).map(rowOf);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[columns, ...rows, ""].join("\n")]));
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  isSaved = true;
  notice(`Saved ${rows.length} reviewed faces as corrections.csv among the downloads.`);
}

async function openFile(file) {
  const [header, ...rows] = (await file.text()).split(/\r?\n/).filter(Boolean).map(cellsOf);
  if (String(header) !== String(columns)) {
    return notice(`${file.name} does not hold corrections of ${count} landmarks.`);
  }
  if (rows.some((cells) => cells[1] !== data.table)) {
    return notice(`${file.name} was made for another table of landmarks.`);
  }
  const found = rows.map(editFrom).filter(Boolean);
  if (found.length) change(found);
  notice(`Opened ${file.name}: ${found.length} of its ${rows.length} faces are on this page.`);
}

function store(index, edit) {
  edits[index] = edit;
  isSaved = false;
  try {
    if (edit.review) storage?.setItem(keyOf(index), rowOf(index));
    else storage?.removeItem(keyOf(index));
  } catch { warnOfStorage(); } // it is full
}

function restore() {
  try {
    storage = localStorage;
    const rows = [...faces.keys()].map((index) => storage.getItem(keyOf(index))).filter(Boolean);
    for (const [index, edit] of rows.map((row) => editFrom(cellsOf(row)))) edits[index] = edit;
  } catch { warnOfStorage(); } // the browser denies it
}

function warnOfStorage() {
  storage = null;
  notice("This browser cannot keep your work: save it before you close the page.");
}

// ---- Drawing

const canvas = $("canvas");
const view = { scale: 1, x: 0, y: 0 }; // CSS pixels: scale * crop + (x, y)
const toScreen = (x, y) => [view.scale * x + view.x, view.scale * y + view.y];
const toCrop = (x, y) => [(x - view.x) / view.scale, (y - view.y) / view.scale];
const screenOf = (points, i) => toScreen(points[2 * i], points[2 * i + 1]);
const excess = (shown, i) =>
  distance(shown, faces[current].predicted, i) / faces[current].expected[i];
let frame = 0;

function draw() {
  frame ||= requestAnimationFrame(() => { frame = 0; paint(); });
}

function paint() {
  const face = faces[current], { shown, pins } = editOf(current), ratio = devicePixelRatio;
  const context = canvas.getContext("2d"), side = data.crop * view.scale;
  const size = Math.min(3, 30 / Math.sqrt(count)) * Math.sqrt(view.scale);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  // the centre of the first pixel is 0
  if (face.decoded.complete) context.drawImage(face.decoded, ...toScreen(-0.5, -0.5), side, side);
  if (mode !== "label") paintPoints(context, face.predicted, "#4db5ff", size * 0.8);
  if (mode === "predicted") return;
  paintPoints(context, shown, "#ff9c4a", size);
  paintDots(context, shown, "#ffe94d", size * 1.3, (i) => excess(shown, i) > DOUBTFUL);
  paintDots(context, shown, "#fff", size + 3, (i) => pins.has(i));
  paintDots(context, shown, "#d6249f", size + 1.5, (i) => pins.has(i));
  if (chosen < 0) return;
  context.beginPath();
  context.arc(...screenOf(shown, chosen), size + 6, 0, 7);
  [context.lineWidth, context.strokeStyle] = [2, "#fff"];
  context.stroke();
}

function paintPoints(context, points, colour, size) {
  context.beginPath();
  for (const curve of curves) {
    curve.forEach((i, place) => {
      if (!isKnown(points, i)) return;
      const isJoined = place && isKnown(points, curve[place - 1]);
      context[isJoined ? "lineTo" : "moveTo"](...screenOf(points, i));
    });
  }
  [context.lineWidth, context.globalAlpha, context.strokeStyle] = [1, 0.55, colour];
  context.stroke();
  context.globalAlpha = 1;
  paintDots(context, points, colour, size, () => true);
}

function paintDots(context, points, colour, size, isPainted) {
  context.beginPath();
  for (let i = 0; i < count; i++) {
    if (!isKnown(points, i) || !isPainted(i)) continue;
    const [x, y] = screenOf(points, i);
    context.moveTo(x + size, y);
    context.arc(x, y, size, 0, 7);
  }
  context.fillStyle = colour;
  context.fill();
}

/** Shows the whole crop, and a label that leaves it by up to the crop's size. */
function fit() {
  const { clientWidth: width, clientHeight: height } = canvas, { crop } = data;
  const known = editOf(current).shown.filter(Number.isFinite);
  const low = Math.max(-crop, Math.min(9, ...known) - 9);
  const high = Math.min(2 * crop, Math.max(crop - 9, ...known) + 9);
  view.scale = Math.min(width, height) / (high - low);
  [view.x, view.y] = [width, height].map((side) => (side - view.scale * (low + high)) / 2);
  draw();
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const [u, v] = toCrop(x, y);
  view.scale = Math.min(40, Math.max(0.3, view.scale * factor));
  pan(x - toScreen(u, v)[0], y - toScreen(u, v)[1]);
}

function pan(x, y) {
  Object.assign(view, { x: view.x + x, y: view.y + y });
  draw();
}

// ---- Mouse, pen and fingers

const pointers = new Map(); // places by pointer
let dragged = null; // {i, before, offset, after}

function nearest(shown, [x, y], reach) {
  let best = -1;
  for (let i = 0; i < count; i++) {
    const [u, v] = screenOf(shown, i), away = Math.hypot(u - x, v - y);
    if (away < reach) [best, reach] = [i, away];
  }
  return best;
}

function press({ pointerId, pointerType, offsetX: x, offsetY: y }) {
  canvas.setPointerCapture(pointerId);
  pointers.set(pointerId, [x, y]);
  endDrag(); // a second finger zooms
  const before = editOf(current), isAlone = pointers.size === 1 && mode !== "predicted";
  const i = isAlone ? nearest(before.shown, [x, y], REACH[pointerType] ?? REACH.mouse) : -1;
  choose(i);
  if (i < 0) return;
  const [u, v] = screenOf(before.shown, i); // the landmark does not jump to the finger
  dragged = { i, before, offset: [u - x, v - y] };
}

function move({ pointerId, offsetX: x, offsetY: y, shiftKey }) {
  if (!pointers.has(pointerId)) return;
  const [oldX, oldY] = pointers.get(pointerId);
  pointers.set(pointerId, [x, y]);
  const other = [...pointers].find(([id]) => id !== pointerId)?.[1];
  if (other) {
    const [before, after] = [[oldX, oldY], [x, y]]
      .map(([u, v]) => Math.max(1, Math.hypot(u - other[0], v - other[1])));
    zoom(after / before, ...other);
  } else if (dragged) {
    const place = toCrop(x + dragged.offset[0], y + dragged.offset[1]);
    dragged.after = moved(dragged.before, dragged.i, ...place, shiftKey || $("alone").checked);
    edits[current] = dragged.after;
    draw();
  } else pan(x - oldX, y - oldY);
}

function release({ pointerId, type }) {
  pointers.delete(pointerId);
  endDrag(type === "pointerup");
}

function endDrag(isKept = false) {
  if (!dragged) return;
  const { before, after } = dragged;
  [dragged, edits[current]] = [null, before];
  if (after && isKept) change([[current, after]]);
  draw();
}

// ---- Everything around the face

function show(index) {
  if (index === undefined) return;
  endDrag();
  if (index !== current) chosen = -1;
  current = index;
  fit();
  refresh();
}

function step(by) {
  const next = visible.indexOf(current) + by;
  show(visible[Math.min(visible.length - 1, Math.max(0, next))]);
}

function choose(i) {
  chosen = i;
  if (i >= 0) group = groupOf[i];
  refresh();
}

function chooseBy(by) {
  const known = [...Array(count).keys()].filter((i) => isKnown(editOf(current).shown, i));
  choose(known.at((known.indexOf(chosen) + by + known.length) % known.length));
}

function chooseWorst() {
  const { shown } = editOf(current);
  const values = faces[current].expected.map((_, i) => (isKnown(shown, i) ? excess(shown, i) : -1));
  choose(values.indexOf(Math.max(...values)));
}

function nudge(x, y, { shiftKey }) {
  if (chosen < 0) return pan(-20 * x, -20 * y);
  const before = editOf(current), [u, v] = screenOf(before.shown, chosen);
  const after = moved(before, chosen, ...toCrop(u + x, v + y), shiftKey || $("alone").checked);
  change([[current, after]], `${current} ${chosen}`); // a row of presses is undone at once
}

function filter() {
  const text = $("filter-text").value.toLowerCase();
  const wanted = ["reason", "group", "side", "review"].map((name) => $(`filter-${name}`).value);
  visible = [...faces.keys()].filter((index) => {
    const { name, person, kinds, group, side } = faces[index];
    const own = [kinds, [group], [side], [edits[index]?.review || "open"]];
    return `${name} ${person}`.toLowerCase().includes(text)
      && wanted.every((value, at) => !value || own[at].includes(value));
  });
  $("list").replaceChildren(...visible.map((index) => {
    const item = $("item").content.cloneNode(true), button = item.querySelector("button");
    button.firstChild.textContent = faces[index].name;
    button.dataset.face = index;
    button.onclick = () => show(index);
    return item;
  }));
  if (!visible.includes(current)) show(visible[0]);
  refresh();
}

/** Scrolls the list, but not the page, to a button that is out of sight. */
function scrollList({ offsetTop, offsetHeight }) {
  const { scrollTop, clientHeight } = $("list");
  const isSeen = offsetTop >= scrollTop && offsetTop + offsetHeight <= scrollTop + clientHeight;
  if (!isSeen) $("list").scrollTop = offsetTop - clientHeight / 2;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const setPressed = (id, isOn) => $(id).setAttribute("aria-pressed", isOn);

function refresh() {
  const face = faces[current], { review, shown, pins } = editOf(current);
  $("name").textContent = face.name;
  $("facts").textContent = `${percent(face.share)} of the unexplained squared error; ${face.side}`
    + (face.person && `; person ${face.person}`);
  $("reasons").textContent = face.reasons.map((reason) => `${reason}.`).join("\n");
  for (const name of ["good", "bad", "corrected"]) setPressed(name, review === name);
  for (const name of ["label", "both", "predicted"]) setPressed(`show-${name}`, mode === name);
  $("undo").disabled = !past.length;
  $("redo").disabled = !future.length;
  $("unpin").disabled = !pins.has(chosen);
  $("group").value = group;
  const px = (value) => `${(value * face.scale).toFixed(1)} px`;
  $("landmark").textContent = chosen < 0 ? `${pins.size} landmarks pinned`
    : `Landmark ${chosen}, ${groupNames[groupOf[chosen]]}: `
      + `${px(distance(shown, face.predicted, chosen))} from the prediction, `
      + `expected ${px(face.expected[chosen])}`;
  const reviewed = edits.filter((one) => one?.review).length;
  $("progress").textContent = `${reviewed} of ${faces.length} reviewed`;
  for (const button of $("list").querySelectorAll("button")) {
    const index = Number(button.dataset.face);
    button.lastChild.textContent = edits[index]?.review || percent(faces[index].share);
    button.toggleAttribute("aria-current", index === current);
    if (index === current) scrollList(button);
  }
  draw();
}

const keys = {
  j: () => step(1), k: () => step(-1), g: () => review("good"), b: () => review("bad"),
  c: () => review("corrected"), u: undo, y: redo, x: unpin, p: takePrediction, s: save,
  w: chooseWorst, ",": () => chooseBy(-1), ".": () => chooseBy(1), Escape: () => choose(-1),
  "?": () => $("help").showModal(), 0: fit, 1: () => refresh((mode = "label")),
  2: () => refresh((mode = "both")), 3: () => refresh((mode = "predicted")),
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
  ArrowLeft: (event) => nudge(-1, 0, event), ArrowRight: (event) => nudge(1, 0, event),
  ArrowUp: (event) => nudge(0, -1, event), ArrowDown: (event) => nudge(0, 1, event),
};

function pressKey(event) {
  const { target, ctrlKey, metaKey, altKey, shiftKey } = event;
  if (altKey || $("help").open || target.matches("select, [type=search]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const withControl = { z: shiftKey ? redo : undo, y: redo, s: save };
  const action = (ctrlKey || metaKey ? withControl : keys)[key];
  if (!action) return;
  event.preventDefault();
  action(event);
}

function fillSelect(id, first, values) {
  const choices = [...new Set(values)].filter(Boolean).sort();
  $(id).replaceChildren(new Option(first, ""), ...choices.map((value) => new Option(value)));
  $(id).onchange = filter;
}

function start() {
  fillSelect("filter-reason", "Every reason", faces.flatMap((face) => face.kinds));
  fillSelect("filter-group", "Every group", faces.map((face) => face.group));
  fillSelect("filter-side", "Both sides of the split", faces.map((face) => face.side));
  fillSelect("filter-review", "Every review", ["open", "good", "bad", "corrected"]);
  $("filter-text").oninput = filter;
  $("group").append(...[...groupNames, "the whole face"].map((name, i) => new Option(name, i)));
  $("group").onchange = () => { group = Number($("group").value); refresh(); };
  for (const button of document.querySelectorAll("[data-key]")) {
    button.onclick = keys[button.dataset.key];
  }
  $("open").onclick = () => $("file").click();
  $("file").onchange = () => {
    if ($("file").files[0]) openFile($("file").files[0]);
    $("file").value = ""; // so that the same file can be opened again
  };
  [canvas.onpointerdown, canvas.onpointermove] = [press, move];
  canvas.onpointerup = canvas.onpointercancel = release;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 500), event.offsetX, event.offsetY);
  }, { passive: false });
  document.onkeydown = pressKey;
  window.onbeforeunload = (event) => { if (!isSaved && !storage) event.preventDefault(); };
  new ResizeObserver(() => {
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    fit();
  }).observe(canvas);
  restore();
  filter();
}

start();
