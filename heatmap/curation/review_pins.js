"use strict";

// How the other landmarks of a face follow the pinned ones. review.js comes after this.
//
// Points are flat arrays x0, y0, x1, y1, ... in pixels of the crop, NaN where unlabelled. Landmarks
// are counted by i, coordinates by c, and components of the shape model by k.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { landmarks: count, columns, groups, curves, faces } = data;
const DOUBTFUL = 3; // times the expected error from the prediction
const REACH = { mouse: 12, pen: 16, touch: 26 }; // CSS pixels to the nearest landmark
const INDEPENDENT = 20; // landmarks of a face whose errors are independent; neighbours err together
const NEAR = 2, FAR = 3.5; // deviations up to which a label is kept fully, and at all
const GATE = 1.6; // times the expected squared error up to which a label is placed as a whole
const PLACING = 0.02; // of the face size: accuracy with which pins place a whole label
const BEND = 0.05; // of the face size: reach of a pin in its group beyond the shape model

function floats(base64) {
  return new Float32Array(Uint8Array.from(atob(base64), (byte) => byte.charCodeAt(0)).buffer);
}

const basis = floats(data.basis), noise = floats(data.noise); // (P, 2, K) and (P,)
const K = basis.length / (2 * count);
const correlated = Math.max(1, count / INDEPENDENT);
const groupNames = Object.keys(groups);
const groupOf = new Int32Array(count);
groupNames.forEach((name, index) => groupOf.fill(index, ...groups[name]));

const distance = (a, b, i, j = i) =>
  Math.hypot(a[2 * i] - b[2 * j], a[2 * i + 1] - b[2 * j + 1]);
const isKnown = (points, i) => Number.isFinite(points[2 * i]);
const pointOf = (points, i) => points.subarray(2 * i, 2 * i + 2);

/** Decodes a face, once, and turns the shape model into its crop. */
function prepare(face) {
  if (face.basis) return;
  for (const name of ["label", "predicted", "expected", "mean"]) face[name] = floats(face[name]);
  const [re, im] = face.factor;
  face.variance = noise.map((value) => value ** 2 * (re ** 2 + im ** 2));
  // of the prediction; a distance is on average sqrt(pi / 2) deviations per axis
  face.error = face.expected.map((px) => correlated * px ** 2 * 2 / Math.PI);
  face.basis = basis.map((value, at) =>
    (at % (2 * K) < K ? re * value - im * basis[at + K] : re * value + im * basis[at - K]));
  face.decoded = Object.assign(new Image(), { onload: draw, src: face.image });
}

/** Replaces a positive definite matrix, flat by rows, by its lower Cholesky factor. */
function factorise(L, size) {
  for (let a = 0; a < size; a++) {
    for (let b = 0; b <= a; b++) {
      let sum = L[a * size + b];
      for (let c = 0; c < b; c++) sum -= L[a * size + c] * L[b * size + c];
      L[a * size + b] = a === b ? Math.sqrt(sum) : sum / L[b * size + b];
    }
  }
  return L;
}

/** Replaces values by the solution of L x = values. */
function solveLower(L, x) {
  const size = x.length;
  for (let a = 0; a < size; a++) {
    for (let b = 0; b < a; b++) x[a] -= L[a * size + b] * x[b];
    x[a] /= L[a * size + a];
  }
  return x;
}

/** Solves L L' x = values. */
function solve(L, values) {
  const x = solveLower(L, Float64Array.from(values)), size = x.length;
  for (let a = size - 1; a >= 0; a--) {
    for (let b = a + 1; b < size; b++) x[a] -= L[b * size + a] * x[b];
    x[a] /= L[a * size + a];
  }
  return x;
}

/** Fits origin + vectors (2P, size) * amounts, whose precision beforehand is `prior`. */
function leastSquares(vectors, size, prior, origin, weight, target) {
  const precision = new Float64Array(size * size), right = new Float64Array(size);
  for (let k = 0; k < size; k++) precision[k * size + k] = prior;
  for (let c = 0; c < 2 * count; c++) {
    const row = c * size, away = target[c] - origin[c], w = weight[c >> 1];
    for (let k = 0; k < size; k++) {
      const scaled = w * vectors[row + k], line = k * size;
      right[k] += scaled * away;
      for (let m = 0; m <= k; m++) precision[line + m] += scaled * vectors[row + m];
    }
  }
  const L = factorise(precision, size), amounts = solve(L, right);
  const points = Float64Array.from(origin);
  for (let at = 0; at < vectors.length; at++) {
    points[Math.floor(at / size)] += amounts[at % size] * vectors[at];
  }
  return { points, L };
}

/**
 * The label, or the label moved, turned and scaled as a whole, if that explains the pins and the
 * prediction much better, and as well as calibration expects.
 */
function placed(face, label, pinned, shown) {
  const vectors = new Float64Array(8 * count), target = Float64Array.from(face.predicted);
  const weight = Float64Array.from(face.error, (error, i) => (isKnown(label, i) ? 1 / error : 0));
  for (let i = 0; i < count; i++) {
    const [x, y] = pointOf(label, i);
    if (weight[i]) vectors.set([x, -y, 1, 0, y, x, 0, 1], 8 * i);
  }
  for (const i of pinned) {
    weight[i] = 1 / (PLACING * face.size) ** 2;
    target.set(pointOf(shown, i), 2 * i);
  }
  const { points } = leastSquares(vectors, 4, 1e-9, new Float64Array(2 * count), weight, target);
  const [before, after] = [label, points].map((them) => weight.reduce((sum, value, i) =>
    (value ? sum + value * distance(them, target, i) ** 2 : sum), 0));
  const isBetter = before > 2 * after + 8 && after < 2 * GATE * count / correlated;
  return isBetter ? points.map((value, c) => (isKnown(label, c >> 1) ? value : NaN)) : label;
}

/** How far a label may be trusted, from 0 to 1 by landmark; neighbours are judged together. */
function trusts(face, label, { points, L }) {
  const surprise = new Float64Array(count), solved = new Float64Array(K);
  for (let i = 0; i < count; i++) {
    if (!isKnown(label, i)) continue;
    let sum = 2 * face.variance[i]; // and what the fit leaves open along both axes
    for (let row = 2 * i * K; row < 2 * (i + 1) * K; row += K) {
      solved.set(face.basis.subarray(row, row + K));
      for (const value of solveLower(L, solved)) sum += value ** 2;
    }
    surprise[i] = distance(label, points, i) ** 2 / sum;
  }
  const wide = Math.round(count / 120);
  return surprise.map((_, i) => {
    const [start, stop] = groups[groupNames[groupOf[i]]];
    const from = Math.max(start, i - wide), to = Math.min(stop, i + wide + 1);
    let sum = 0;
    for (let j = from; j < to; j++) sum += surprise[j];
    return Math.min(1, Math.max(0, (FAR - Math.sqrt(sum / (to - from))) / (FAR - NEAR)));
  });
}

/** Bends the surroundings of the pinned landmarks, within their groups, so that they fit. */
function bend(face, points, pinned, shown) {
  const from = Float32Array.from(points), reach = 2 * (BEND * face.size) ** 2;
  const near = (i, j) =>
    (groupOf[i] === groupOf[j] ? Math.exp(-(distance(from, from, i, j) ** 2) / reach) : 0);
  // a tenth of the difference is the landmark's own, so that pins side by side bend nothing wildly
  const covariance = pinned.flatMap((i) => pinned.map((j) => near(i, j) + (i === j ? 0.1 : 0)));
  const L = factorise(covariance, pinned.length);
  for (const axis of [0, 1]) {
    const amounts = solve(L, pinned.map((i) => shown[2 * i + axis] - from[2 * i + axis]));
    pinned.forEach((j, index) => {
      for (let i = 0; i < count; i++) points[2 * i + axis] += amounts[index] * near(i, j);
    });
  }
}

/**
 * All landmarks, given the pinned ones: the conditional mean of a Gaussian of face shapes, with the
 * prediction as far as it is expected to be right, and the label where it is likely. How likely it
 * is depends on the others, so both are found in turn (Huber 1981, "Robust Statistics", 7.8).
 */
function completed(face, base, pins, shown) {
  const pinned = [...pins.keys()].filter((i) => !pins.get(i).alone && isKnown(base, i));
  const result = Float32Array.from(base);
  if (pinned.length) {
    const label = placed(face, base, pinned, shown);
    const weight = new Float64Array(count), target = new Float64Array(2 * count);
    let trust = new Float64Array(count), fitted;
    for (let iteration = 0; iteration < 3; iteration++) {
      for (let i = 0; i < count; i++) {
        const byPrediction = 1 / (face.variance[i] + face.error[i]);
        const byLabel = isKnown(label, i) ? trust[i] / (correlated * face.variance[i]) : 0;
        weight[i] = byPrediction + byLabel;
        for (const c of [2 * i, 2 * i + 1]) {
          const toLabel = byLabel ? byLabel / weight[i] * (label[c] - face.predicted[c]) : 0;
          target[c] = face.predicted[c] + toLabel;
        }
      }
      for (const i of pinned) {
        weight[i] = 1 / face.variance[i];
        target.set(pointOf(shown, i), 2 * i);
      }
      fitted = leastSquares(face.basis, K, 1, face.mean, weight, target);
      trust = trusts(face, label, fitted);
    }
    fitted.points.forEach((value, c) => {
      result[c] = value + trust[c >> 1] * (label[c] - value);
    });
    bend(face, result, pinned, shown);
  }
  for (const i of pins.keys()) result.set(pointOf(shown, i), 2 * i);
  return result;
}
