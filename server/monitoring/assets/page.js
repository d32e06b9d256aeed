"use strict";
// The page of a run: asks for state.json and draws it. Texts are set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const PERIOD = 1000, SLOW = 10000, LONGEST = 30000, PATIENCE = 15000;
const SOON = 3 * 86400000; // before the end of a certificate
const get = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") || "";
let access = "open"; // or what it takes to look: a token, a certificate, either
let failures = 0, timer = 0, last = null, tag = "", told = 0;

if (location.hash.startsWith("#token=")) {
  token = decodeURIComponent(location.hash.slice(7));
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

/* small helpers */

function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
function draw(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
function put(element, text) { if (element.textContent !== text) element.textContent = text; }
function pairs(list, entries, none) {
  list.replaceChildren(...entries.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
  if (!entries.length && none) list.append(make("div", {}, make("dt", {}, none)));
}
function duration(seconds) {
  if (seconds < 0.9995) return `${seconds < 0.0995 ? +(seconds * 1000).toPrecision(2) : Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 99.5) return `${Math.round(seconds)} s`;
  if (seconds < 5970) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.round(seconds / 86400)} days`;
}
function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (count >= 999.5 && place < units.length - 1) { count /= 1000; place += 1; }
  return `${place ? count.toPrecision(3) : count} ${units[place]}`;
}
const whole = (number) => number.toLocaleString("en").replaceAll(",", " ");
const percent = (share) => `${Math.abs(share) < 0.0005 ? "0.0" : (100 * share).toFixed(1)} %`;
const isShare = (name) => name.includes("accuracy");
function score(name, value) {
  if (isShare(name)) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  if (value === 0 || (size >= 0.001 && size < 10000)) return String(+value.toPrecision(4));
  return value.toExponential(2);
}

/* curves */

const CHARTS = [
  ["Accuracy", (name) => name.includes("accuracy")],
  ["Loss", (name) => name.includes("loss")],
  ["Effective workers", (name) => name === "effective"],
  ["Other metrics", () => true],
];
const LABELS = { accuracy: "held-out", ema_accuracy: "of the average", loss: "held-out", train_loss: "training", ema_loss: "of the average", effective: "" };
const drawn = new Map();

function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
  return found;
}

function chart(title) {
  const caption = make("figcaption"), svg = draw("svg", { class: "chart", role: "img" });
  const figure = make("figure", {}, caption, svg), tip = make("div", { class: "tip", hidden: "" });
  figure.append(tip);
  const made = { title, figure, caption, svg, tip, series: [], key: "" };
  svg.addEventListener("pointermove", (event) => point(made, event.clientX));
  svg.addEventListener("pointerleave", () => { tip.hidden = true; made.cross?.setAttribute("visibility", "hidden"); });
  return made;
}

function plot(one) {
  const width = one.svg.clientWidth || 400, height = one.svg.clientHeight || 190;
  const points = one.series.flatMap((series) => series.points);
  const rounds = points.map((p) => p[0]), values = points.map((p) => p[1]);
  const first = Math.min(...rounds), final = Math.max(...rounds, first + 1);
  let low = Math.min(...values), high = Math.max(...values);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.05;
  low = one.series[0].name === "effective" ? 0 : Math.min(...values) >= 0 ? Math.max(0, low - room) : low - room;
  high += room;
  if (isShare(one.series[0].name)) high = Math.min(high, 1);
  if (high <= low) low = high - room;
  const marks = ticks(low, high, 4), text = (value) => (isShare(one.series[0].name) ? `${+(100 * value).toFixed(2)} %` : String(+value.toPrecision(6)));
  const left = Math.max(...marks.map((mark) => text(mark).length)) * 6.4 + 10, right = 10, top = 10, bottom = 22;
  const x = (round) => left + ((round - first) / (final - first)) * (width - left - right);
  const y = (value) => top + (1 - (value - low) / (high - low)) * (height - top - bottom);
  one.svg.replaceChildren();
  one.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const mark of marks) {
    one.svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
    const label = draw("text", { x: left - 7, y: y(mark) + 4, "text-anchor": "end" });
    label.textContent = text(mark);
    one.svg.append(label);
  }
  one.svg.append(draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  const across = ticks(first, final, width < 420 ? 3 : 6).filter(Number.isInteger);
  across.forEach((mark) => {
    const label = draw("text", { x: x(mark), y: height - 6, "text-anchor": x(mark) > width - 40 ? "end" : x(mark) < left + 10 ? "start" : "middle" });
    label.textContent = whole(mark);
    one.svg.append(label);
  });
  one.series.forEach((series, place) => {
    const path = series.points.map(([round, value], i) => `${i ? "L" : "M"}${x(round).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    one.svg.append(draw("path", { class: `line s${place % 4}`, d: path }));
    const [round, value] = series.points.at(-1);
    one.svg.append(draw("circle", { class: `f${place % 4}`, cx: x(round), cy: y(value), r: 3 }));
  });
  one.cross = draw("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
  one.svg.append(one.cross);
  Object.assign(one, { x, first, final, left, right, width });
  const said = one.series.map((series) => {
    const all = series.points.map((p) => p[1]);
    return `${series.label || one.title}: now ${score(series.name, all.at(-1))}, lowest ${score(series.name, Math.min(...all))}, highest ${score(series.name, Math.max(...all))}`;
  });
  one.svg.setAttribute("aria-label", `${one.title}, rounds ${first} to ${final}. ${said.join(". ")}`);
}

function point(one, clientX) {
  if (!one.x) return;
  const box = one.svg.getBoundingClientRect(), inside = clientX - box.left;
  const round = one.first + ((inside - one.left) / (one.width - one.left - one.right)) * (one.final - one.first);
  const nearest = (points) => points.reduce((best, p) => (Math.abs(p[0] - round) < Math.abs(best[0] - round) ? p : best));
  const at = nearest(one.series[0].points)[0];
  one.tip.replaceChildren(make("div", { class: "soft" }, `round ${whole(at)}`), ...one.series.map((series) => {
    const [, value] = nearest(series.points);
    return make("div", {}, `${series.label || one.title} `, make("b", {}, score(series.name, value)));
  }));
  one.tip.hidden = false;
  const place = one.x(at);
  one.cross.setAttribute("x1", place); one.cross.setAttribute("x2", place); one.cross.setAttribute("visibility", "visible");
  const wide = one.tip.offsetWidth, over = place + 14 + wide > one.width;
  one.tip.style.left = `${over ? Math.max(0, place - wide - 12) : place + 12}px`;
  one.tip.style.top = `${one.svg.offsetTop + 12}px`;
}

function curves(state) {
  const left = new Map(Object.entries(state.curves)), wanted = [];
  for (const [title, fits] of CHARTS) {
    const names = [...left.keys()].filter(fits);
    names.sort((a, b) => a.length - b.length);
    const series = names.map((name) => ({ name, points: left.get(name), label: LABELS[name] ?? name.replaceAll("_", " ") }));
    names.forEach((name) => left.delete(name));
    for (let at = 0; at < series.length; at += 4) wanted.push([at ? `${title} ${at / 4 + 1}` : title, series.slice(at, at + 4)]);
  }
  for (const [title, series] of wanted) {
    if (!drawn.has(title)) drawn.set(title, chart(title));
    const one = drawn.get(title), key = JSON.stringify(series.map((s) => [s.name, s.points.length, s.points.at(-1)]));
    if (key === one.key) continue;
    one.series = series; one.key = key;
    one.caption.replaceChildren(make("b", {}, title), ...series.filter((s) => s.label || series.length > 1).map((s) => {
      const place = series.indexOf(s);
      return make("span", {}, make("i", { class: `b${place % 4}` }), `${s.label} ${score(s.name, s.points.at(-1)[1])}`);
    }));
  }
  const figures = wanted.map(([title]) => drawn.get(title).figure), box = get("curves");
  if (!figures.length) box.replaceChildren(make("p", { class: "empty" }, "The model has not been evaluated yet."));
  else if (figures.length !== box.children.length || figures.some((f, i) => box.children[i] !== f)) box.replaceChildren(...figures);
  for (const [title] of wanted) {
    const one = drawn.get(title);
    const size = `${one.svg.clientWidth} ${one.key}`;
    if (one.drawn !== size) { plot(one); one.drawn = size; }
  }
}

/* workers */

const rows = new Map();
const COLUMNS = [
  ["Worker"], ["State", "dot"], ["Last outcome", "outcome"], ["Reason", "reason"], ["Last seen", "when"],
  ["Age", "number"], ["Weights of the last rounds", "weights"], ["Share", "number wide"], ["Certificate until", "when wide"],
];
const WORDS = { counted: "counted", dropped: "dropped", gated: "gated", missing: "missing", declined: "declined", revoked: "expelled", unused: "not used" };

function strip(worker, state, equal) {
  const count = Math.max(state.window.length, 30), paths = {};
  worker.weights.forEach((cell, place) => {
    let kind = null;
    if (typeof cell === "string") kind = cell === "dropped" || cell === "revoked" ? "dropped" : "gone";
    else if (cell !== null) {
      const ratio = cell / equal;
      kind = ratio < 0.01 ? "zero" : ratio < 0.4 ? "w1" : ratio < 0.8 ? "w2" : ratio < 1.25 ? "w3" : ratio < 2 ? "w4" : "w5";
    }
    if (kind) paths[kind] = (paths[kind] || "") + `M${place} 0h.86v1h-.86z`;
  });
  return [count, paths];
}

function worker(one, state, equal) {
  let row = rows.get(one.name);
  if (!row) {
    const cells = COLUMNS.map(([label, kind], place) => make(place ? "td" : "th", { role: place ? "cell" : "rowheader", ...(place ? {} : { scope: "row" }), ...(kind ? { class: kind } : {}), "data-label": label }));
    const svg = draw("svg", { class: "strip", role: "img", preserveAspectRatio: "none" });
    cells[6].append(svg);
    row = { tr: make("tr", { role: "row" }, ...cells), cells, svg, key: "" };
    cells[0].append(one.name);
    if (one.byzantine) cells[0].append(make("span", { class: "mark" }, "attacks"));
    rows.set(one.name, row);
  }
  const key = JSON.stringify([one, state.window.length, equal]);
  if (key === row.key) return row;
  row.key = key;
  const [, status, outcome, reason, seen, age, , share, until] = row.cells;
  const answer = one.answer === "asked" ? ", awaited" : one.answer ? `, ${one.answer}` : "";
  status.className = `dot ${one.state}`;
  put(status, one.state ? one.state + answer : "");
  outcome.replaceChildren(one.outcome ? make("span", { class: `kind ${one.outcome}` }, WORDS[one.outcome] || one.outcome) : make("span", { class: "soft" }, "nothing yet"));
  if (one.outcome && one.outcome_round !== null) outcome.append(make("span", { class: "soft" }, ` in round ${whole(one.outcome_round)}`));
  put(reason, one.reason);
  put(seen, one.seen_seconds === null ? "" : one.seen_seconds < 2 ? "now" : `${duration(one.seen_seconds)} ago`);
  put(age, one.age === null ? "" : String(one.age));
  const weights = one.weights.filter((cell) => typeof cell === "number");
  const mean = weights.length ? weights.reduce((a, b) => a + b, 0) / weights.length : null;
  put(share, mean === null ? "" : percent(mean));
  until.classList.toggle("soon", one.certificate_expires !== null && one.certificate_expires * 1000 < Date.now() + SOON);
  put(until, one.certificate_expires === null ? "" : new Date(one.certificate_expires * 1000).toISOString().slice(0, 10));
  const [count, paths] = strip(one, state, equal);
  row.svg.setAttribute("viewBox", `0 0 ${count} 1`);
  row.svg.replaceChildren(...Object.entries(paths).map(([kind, d]) => draw("path", { class: kind, d })));
  const zero = weights.filter((cell) => cell / equal < 0.01).length, without = one.weights.filter((cell) => typeof cell === "string").length;
  row.svg.setAttribute("aria-label", mean === null ? "no weights" : `mean weight ${(100 * mean).toFixed(1)} %, no weight in ${zero} and no vector in ${without} of the last ${one.weights.length} rounds`);
  row.doubtful = one.state === "absent" || !["", "counted"].includes(one.outcome) || (weights.length > 0 && mean < 0.1 * equal);
  return row;
}

function workers(state) {
  const sums = state.workers.length ? state.window.map((_, place) => state.workers.filter((one) => typeof one.weights[place] === "number").length) : [];
  const equal = 1 / Math.max(1, ...sums);
  const found = state.workers.map((one) => worker(one, state, equal)), body = get("rows");
  const doubtful = found.filter((row) => row.doubtful), only = get("doubtful").checked;
  const shown = (only ? doubtful : found).map((row) => row.tr);
  if (shown.length !== body.children.length || shown.some((tr, place) => body.children[place] !== tr)) body.replaceChildren(...shown);
  put(get("doubtful-text"), `only the ${doubtful.length} to look at`);
  get("doubtful").parentElement.hidden = !doubtful.length && !only;
  const hidden = [
    !found.some((row) => row.cells[1].textContent), false, !state.workers.some((one) => one.reason), !state.workers.some((one) => one.seen_seconds !== null),
    !state.workers.some((one) => one.age !== null), !state.workers.some((one) => one.weights.some((c) => c !== null)), !state.workers.some((one) => one.weights.some((c) => typeof c === "number")), !state.workers.some((one) => one.certificate_expires !== null),
  ];
  [...get("heads").children].forEach((head, place) => { if (place) head.hidden = hidden[place - 1]; });
  for (const row of found) row.cells.forEach((cell, place) => { if (place) cell.hidden = hidden[place - 1]; });
  get("legend").hidden = hidden[5];
  const out = state.workers_total - state.workers.length;
  get("left-out").hidden = out <= 0;
  put(get("left-out"), `${whole(out)} more workers are not listed.`);
}

function furniture() {
  get("heads").append(...COLUMNS.map(([label, kind]) => make("th", { role: "columnheader", scope: "col", ...(kind && kind.includes("number") ? { class: "number" } : {}) }, label)));
  const colours = [["w1", "less than an equal share"], ["w3", "about an equal share"], ["w5", "twice and more"], ["zero", "no weight"], ["dropped", "dropped as faulty"], ["gone", "no vector"], ["none", "not asked"]];
  get("legend").append(...colours.map(([kind, text]) => {
    const svg = draw("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    svg.append(draw("rect", { class: `key ${kind}`, x: 0.5, y: 0.5, width: 9, height: 9, rx: 1.5 }));
    return make("li", {}, svg, text);
  }));
  get("doubtful").addEventListener("change", () => last && workers(last));
}

/* the rest */

const STATES = { running: "running", finished: "finished", failed: "failed", interrupted: "interrupted", stopped: "stopped", lost: "no contact" };

function tile(name, value, more = "") { return [name, value, more]; }

function tiles(state) {
  const found = [], has = (name) => state.scores[name] !== undefined;
  if (has("accuracy")) found.push(tile("Accuracy", score("accuracy", state.scores.accuracy)));
  if (has("loss")) found.push(tile("Loss", score("loss", state.scores.loss)));
  found.push(tile("Rounds", whole(state.round), ` of ${whole(state.rounds)}`));
  found.push(state.present === null ? tile("Workers", whole(state.workers_total)) : tile("Connected", whole(state.present), ` of ${whole(state.workers_total)} workers`));
  if (has("effective")) found.push(tile("Effective workers", state.scores.effective.toFixed(1)));
  const left = state.rate && state.state === "running" ? (state.rounds - state.round) / state.rate : null;
  if (left !== null && left > 0) found.push(tile("Time left", duration(left)));
  else if (state.elapsed !== null) found.push(tile("Time", duration(state.elapsed)));
  const list = get("tiles");
  while (list.children.length > found.length) list.lastChild.remove();
  found.forEach(([name, value, more], place) => {
    if (!list.children[place]) list.append(make("div", {}, make("dt"), make("dd", {}, document.createTextNode(""), make("small"))));
    const [dt, dd] = list.children[place].children;
    put(dt, name); put(dd.lastChild, more);
    if (dd.firstChild.nodeValue !== value) dd.firstChild.nodeValue = value;
  });
}

function phases(state) {
  const parts = Object.entries(state.seconds).filter(([, seconds]) => seconds > 0), total = parts.reduce((sum, [, s]) => sum + s, 0);
  const box = get("phases");
  if (!total) return box.replaceChildren(make("p", { class: "empty" }, "No round is done yet."));
  const svg = draw("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  let at = 0;
  parts.forEach(([, seconds], place) => {
    svg.append(draw("rect", { class: `f${place % 4}`, x: at, y: 0, width: (100 * seconds) / total, height: 1 }));
    at += (100 * seconds) / total;
  });
  const list = make("dl", { class: "facts" });
  pairs(list, [...parts.map(([name, seconds]) => [name, duration(seconds)]), ["together", duration(total)]]);
  [...list.children].slice(0, parts.length).forEach((row, place) => row.firstChild.prepend(make("i", { class: `swatch b${place % 4}` })));
  box.replaceChildren(make("div", { class: "stack" }, svg), list);
}

function show(state) {
  last = state;
  document.querySelector("main").hidden = false;
  document.title = `${state.state === "running" ? `${Math.floor((100 * state.round) / Math.max(1, state.rounds))} % · ` : ""}${state.title || state.run} · Varangian`;
  put(get("title"), state.title || state.run);
  put(get("run"), state.run + (state.started ? ` · since ${state.started}` : ""));
  const badge = get("state");
  badge.className = `badge ${state.state}`;
  put(badge, STATES[state.state] || state.state);
  put(get("sentence"), state.sentence);
  const bar = get("progress");
  bar.setAttribute("aria-valuemax", state.rounds); bar.setAttribute("aria-valuenow", state.round);
  bar.firstChild.style.width = `${(100 * state.round) / Math.max(1, state.rounds)}%`;
  const warnings = get("warnings"), texts = state.warnings.join("\n");
  if (warnings.dataset.key !== texts) { warnings.dataset.key = texts; warnings.replaceChildren(...state.warnings.map((text) => make("p", { class: "warning" }, text))); }
  tiles(state); curves(state); workers(state); phases(state);
  const facts = Object.entries(state.facts);
  if (state.received !== null) facts.push(["received, sent", `${bytes(state.received)}, ${bytes(state.sent)}`]);
  if (state.checkpoint !== null) facts.push(["newest checkpoint", `round ${whole(state.checkpoint)}`]);
  if (state.elapsed !== null) facts.push([state.state === "running" ? "running for" : "took", duration(state.elapsed)]);
  if (state.rate) facts.push(["speed", state.rate >= 1 ? `${+state.rate.toPrecision(2)} rounds/s` : `${duration(1 / state.rate)} a round`]);
  pairs(get("facts"), facts);
  pairs(get("refusals"), Object.entries(state.refusals).sort((a, b) => b[1] - a[1]).map(([code, count]) => [code, whole(count)]), "none");
  document.documentElement.dataset.ready = "yes";
}

/* asking */

async function ask() {
  clearTimeout(timer);
  let wait = document.hidden ? SLOW : PERIOD;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    if (tag) headers["If-None-Match"] = tag;
    const reply = await fetch("state.json", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (reply.status === 401) return needToken(await reply.text());
    if (!reply.ok && reply.status !== 304) throw new Error(`the server answers ${reply.status}`);
    if (reply.status === 200) { tag = reply.headers.get("ETag") || ""; show(await reply.json()); } else if (failures) show(last);
    failures = 0; told = Date.now();
    get("contact").hidden = true; get("token").hidden = true;
    if (last && last.state !== "running") wait = SLOW;
  } catch (error) {
    failures += 1;
    wait = Math.min(LONGEST, PERIOD * 2 ** failures);
    if (failures > 1) lost();
  }
  timer = setTimeout(ask, wait);
}

function lost() {
  const over = last && last.state !== "running";
  get("contact").hidden = false;
  put(get("contact"), `The server does not answer${told ? ` since ${new Date(told).toLocaleTimeString()}` : ""}${over ? ": the run is over." : ". This is the last that it said; its folder has the rest: varangian status RUN --serve"}`);
  if (!over) { get("state").className = "badge lost"; put(get("state"), STATES.lost); }
}

function needToken(text) {
  document.documentElement.dataset.ready = "yes";
  put(get("state"), "locked");
  get("contact").hidden = access !== "certificate";
  get("token").hidden = access === "certificate";
  if (access === "certificate") return put(get("contact"), text.trim());
  put(get("wrong"), token ? text.trim() : "");
  get("secret").focus();
}

get("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = get("secret").value.trim();
  sessionStorage.setItem("token", token);
  get("secret").value = "";
  ask();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
let resized = 0;
addEventListener("resize", () => { cancelAnimationFrame(resized); resized = requestAnimationFrame(() => last && curves(last)); });

async function start() {
  furniture();
  try { access = (await (await fetch("access", { cache: "no-store" })).text()).trim(); } catch { /* asked again below */ }
  if (access === "token" && !token) needToken(""); else ask();
}
start();
