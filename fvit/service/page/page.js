// The page: one refinement at a time, drawn as its certificates arrive; or records, each with its image.

import * as draws from "./canvas.js";

const SECONDS = 30;
const by = (id) => document.getElementById(id);
const terms = ["sigma", "k", "beta"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let models = [];
let limits = {};
let key = "";
let image = null;      // {body, bitmap, name}
let running = null;    // the AbortController of the refinement under way
let shown = [];        // its certificates, as objects
let record = "";       // the last of them as it was sent: JavaScript's numbers would spoil a 64-bit seed
let opened = [];       // records from a file, as lines
let pictures = {};     // images that came with them, by the SHA-256 of their files
let token = null;      // the token that is read

const value = (id) => Number(by(id).value);
const model = () => models.find((each) => each.name === by("model").value) ?? models[0];
const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});
const explained = (each) => (each.explanations ?? [each.attention])[Number(by("size").value)];
const claim = () => (shown.length ? explained(shown.at(-1)) : null);
const sigma = () => shown.at(-1)?.sigma ?? value("sigma");
const mapped = () => document.querySelector("[name=view]:checked").value === "map";

async function begin() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) return complain(answer);
  ({ models, limits } = await answer.clone().json());
  const { samples } = await answer.json();
  by("problem").textContent = "";
  by("key-form").hidden = true;
  by("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  by("model-choice").hidden = models.length < 2;
  by("samples").replaceChildren(...samples.map(sample));
  fit();
}

function fit() {
  const { grid, sigmas } = model();
  by("k").max = Math.max(1, Math.min(64, Math.floor((grid[0] * grid[1]) / 2)));
  by("sigma").min = Math.max(0.05, Math.ceil(sigmas[0] * 20) / 20);
  by("sigma").max = Math.min(1, Math.floor(sigmas.at(-1) * 20 + 1e-4) / 20);
  label();
}

function sample(path) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  const name = path.split("/").pop().replace(/\.png$/, "");
  button.type = "button";
  button.title = name;
  button.setAttribute("aria-pressed", "false");
  picture.src = path.slice(1);
  picture.alt = `Sample ${name}`;
  button.append(picture);
  button.addEventListener("click", async () => {
    const answer = await fetch(path.slice(1));
    const body = await answer.blob();
    for (const each of by("samples").children) each.setAttribute("aria-pressed", String(each === button));
    await take(body, name);
  });
  return button;
}

async function own(files) {
  if (!files.length) return;
  for (const each of by("samples").children) each.setAttribute("aria-pressed", "false");
  const named = (file) => /\.(jsonl|ndjson|json)$/i.test(file.name);
  const [records, images] = [files.filter(named), files.filter((file) => !named(file))];
  for (const file of images) pictures[await digest(file)] = await decoded(file, file.name);
  if (records.length) {
    const texts = await Promise.all(records.map((file) => file.text()));
    opened = texts.flatMap((text) => text.split("\n").filter((line) => line.trim()));
    by("record").replaceChildren(...opened.map((line, place) => new Option(titled(line, place), place)));
    by("record-choice").hidden = opened.length < 2;
  }
  // An image of an opened record goes with it; any other is asked about.
  const found = opened.findIndex((line) => images.length && pictures[parsed(line)?.sha256]);
  if (records.length || found >= 0) {
    by("record").value = Math.max(0, found);
    await open();
  } else {
    await take(images[0], images[0].name);
  }
}

const parsed = (line) => {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
};
const titled = (line, place) => `${place + 1}: ${String(parsed(line)?.image ?? "no record").split("/").pop()}`;

async function digest(file) {
  if (!crypto.subtle) return file.name; // a page from elsewhere over plain HTTP: records and images stay apart
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(bytes, (each) => each.toString(16).padStart(2, "0")).join("");
}

async function decoded(body, name) {
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(body);
  } catch {
    // A format that the service reads and this browser does not: the map alone is drawn.
  }
  return { body, bitmap, name };
}

async function take(body, name) {
  image = await decoded(body, name);
  by("record-choice").hidden = true;
  opened = [];
  await refine();
}

// A record is drawn if all of it follows from its counts.
async function open() {
  running?.abort();
  const mine = (running = new AbortController());
  const line = opened[Number(by("record").value)] ?? "";
  shown = [];
  record = "";
  image = null;
  by("problem").textContent = "";
  by("status").textContent = "The record is being verified.";
  draw();
  try {
    const answer = await fetch("v1/verify", {
      method: "POST", body: line, signal: mine.signal,
      headers: { ...headers(), "Content-Type": "application/json" },
    });
    if (!answer.ok) return await complain(answer);
    const { follows, findings } = await answer.json();
    if (running !== mine) return;
    if (!follows) throw new Error(`This record is not drawn. ${findings.slice(0, 3).join("; ")}`);
    shown = [JSON.parse(line)];
    record = line;
    image = pictures[shown[0].sha256] ?? { body: null, bitmap: null, name: shown[0].image };
    sized();
    label();
    say("Opened: all of it follows from its counts.");
  } catch (error) {
    if (running !== mine) return;
    by("status").textContent = "";
    by("problem").textContent = error.message;
  } finally {
    if (running === mine) {
      running = null;
      draw();
    }
  }
}

function sized() {
  const sizes = shown.at(-1)?.explanations ?? [];
  by("size").replaceChildren(...sizes.map((each, place) => new Option(each.k, place)));
  by("size-choice").hidden = sizes.length < 2;
}

async function refine() {
  if (!image?.body || !models.length) return;
  running?.abort();
  const mine = (running = new AbortController());
  shown = [];
  record = "";
  sized();
  by("problem").textContent = "";
  by("status").textContent = "Drawing the first copies.";
  draw();
  const asked = new URLSearchParams({
    model: model().name, sigma: value("sigma"), k: value("k"), beta: value("beta"),
    seconds: Math.min(SECONDS, limits.seconds),
  });
  try {
    const answer = await fetch(`v1/refine?${asked}`, {
      method: "POST", body: image.body, signal: mine.signal,
      headers: { ...headers(), Accept: "application/x-ndjson", "Content-Type": "application/octet-stream" },
    });
    if (!answer.ok) return await complain(answer);
    for await (const line of lines(answer.body)) {
      if (running !== mine) return;
      const found = JSON.parse(line);
      if (found.type) throw new Error(found.detail);
      shown.push(found);
      record = line;
      draw();
      if (shown.length === 1) by("status").textContent = "Copies are being drawn.";
    }
    say("Finished.");
  } catch (error) {
    if (running !== mine) return;
    if (error.name === "AbortError") say("Stopped.");
    else by("problem").textContent = error.message;
  } finally {
    if (running === mine) {
      running = null;
      draw();
    }
  }
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value: text } = await reader.read();
    if (done) return;
    const whole = (rest + text).split("\n");
    rest = whole.pop();
    yield* whole.filter(Boolean);
  }
}

async function complain(answer) {
  let said = `The service answered ${answer.status}.`;
  try {
    said = (await answer.json()).detail;
  } catch {
    // Something between here and the service answered.
  }
  by("problem").textContent = said;
  by("status").textContent = "";
  if (answer.status === 401) {
    by("key-form").hidden = false;
    by("key").focus();
  }
}

function label() {
  by("sigma-shown").textContent = value("sigma").toFixed(2);
  by("k-shown").textContent = value("k");
  by("beta-shown").textContent = value("beta").toFixed(1);
  by("radius-shown").textContent = value("radius").toFixed(2);
  by("radius").max = (3 * sigma()).toFixed(2);
  const { k, beta } = claim() ?? { k: value("k"), beta: value("beta") };
  by("kept").textContent = `${kept(k, beta)} of the ${k}`;
  by("most").textContent = k;
  by("alpha").textContent = shown.at(-1)?.alpha ?? 0.001;
}

// The fewest tokens that are no break: k − k0 + 1. What floats add to a whole number is no token.
const kept = (k, beta) => Math.ceil(beta * k - 1e-9);

function say(what) {
  const last = shown.at(-1);
  if (!last) return;
  const { class: of, copies } = last;
  const attention = explained(last);
  by("status").textContent =
    `${what} Class ${of.label}` +
    (of.abstained ? " is not certified" : ` stays within ${draws.digits(of.radius_l2, 3)}`) +
    "; the explanation " +
    (attention.abstained ? "is not certified" : `stays within ${draws.digits(attention.radius_l2, 3)}`) +
    ` (${copies.toLocaleString("en")} copies).`;
}

function draw() {
  const last = shown.at(-1);
  const attention = claim();
  by("stop").disabled = !running;
  by("save").disabled = !record;
  by("hint").hidden = Boolean(image || last);
  by("class").textContent = last ? last.class.label : "–";
  by("copies").textContent = last ? last.copies.toLocaleString("en") : "–";
  const radii = attention?.token_radii ?? [];
  by("tokens").textContent = last ? `${radii.filter((radius) => radius > 0).length} / ${attention.k}` : "–";
  meter("class", last?.class);
  meter("attention", attention);
  chart();
  paint(attention);
}

function meter(name, claim) {
  const most = 3 * sigma();
  const radius = claim?.radius_l2 ?? 0;
  const goal = value("radius");
  const track = document.querySelector(`.meter.${name} .track`);
  track.querySelector(".fill").style.width = `${Math.min(100, (100 * radius) / most)}%`;
  track.querySelector(".goal").style.left = `calc(${Math.min(100, (100 * goal) / most)}% - 1.5px)`;
  by(`${name}-radius`).textContent = claim ? (claim.abstained ? "not certified" : draws.digits(radius, 3)) : "–";
  const yes = Boolean(claim) && !claim.abstained && radius >= goal;
  const answer = by(`${name}-answer`);
  answer.className = yes ? "answer yes" : "answer";
  answer.textContent = claim ? `at r = ${goal.toFixed(2)}: ${yes ? "certified" : "not certified by these copies"}` : "";
}

function chart() {
  const [left, right, top, bottom] = [34, 470, 8, 128];
  const make = (name, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [attribute, each] of Object.entries(attributes)) element.setAttribute(attribute, each);
    element.textContent = text;
    return element;
  };
  const most = Math.max(2 * sigma(), ...shown.map((each) => each.class.radius_l2), 1e-9);
  const end = Math.max(100, shown.at(-1)?.copies ?? 0);
  const x = (copies) => left + ((right - left) * Math.log(copies / 24)) / Math.log(end / 24);
  const y = (radius) => bottom - ((bottom - top) * radius) / most;
  const parts = [make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom })];
  for (const radius of [0, most / 2, most]) {
    parts.push(make("text", { x: left - 5, y: y(radius) + 4, "text-anchor": "end" }, radius.toFixed(2)));
  }
  for (const copies of [24, 100, 300, 1000, 3000, 10000, 30000, 100000].filter((each) => each <= end)) {
    parts.push(make("text", { x: x(copies), y: bottom + 15, "text-anchor": "middle" }, copies.toLocaleString("en")));
  }
  const goal = y(Math.min(most, value("radius")));
  parts.push(make("polyline", { class: "of-goal", points: `${left},${goal} ${right},${goal}` }));
  for (const claim of ["class", "attention"]) {
    const of = (each) => (claim === "class" ? each.class : explained(each));
    const points = shown.map((each) => `${x(each.copies)},${y(of(each).radius_l2)}`).join(" ");
    parts.push(make("polyline", { class: `of-${claim}`, points }));
  }
  by("chart").replaceChildren(...parts);
}

function paint(attention) {
  const canvas = by("canvas");
  const [rows, columns] = shown.at(-1)?.size ?? (image ? model().image_size : [1, 1]);
  const height = Math.round((canvas.width * rows) / columns);
  if (canvas.height !== height) canvas.height = height;
  draws.picture(canvas, image?.bitmap, style("--card"));
  const sides = attention && draws.sides(attention, value("radius"));
  by("legend").hidden = !(sides && mapped());
  read();
  if (!attention) {
    canvas.setAttribute("aria-label", image ? `Picture ${image.name}` : "No picture yet");
    return;
  }
  if (mapped() && sides) {
    draws.map(canvas, attention, value("radius"));
    const [out, unknown, inside] = [-1, 0, 1].map((side) => sides.filter((each) => each === side).length);
    by("in").textContent = inside;
    by("open").textContent = unknown;
    by("out").textContent = out;
    canvas.setAttribute(
      "aria-label",
      `Certified map of ${image.name} at radius ${value("radius").toFixed(2)}: ` +
        `${inside} tokens in, ${unknown} open, ${out} out`,
    );
  } else {
    draws.explanation(canvas, attention);
    const sure = attention.token_radii.filter((radius) => radius > 0).length;
    canvas.setAttribute(
      "aria-label",
      `Picture ${image.name} with its explanation: ${attention.k} tokens outlined, ${sure} of them certified` +
        (mapped() ? "; means have no map" : ""),
    );
  }
  if (token !== null) draws.cursor(canvas, attention, token);
}

// What the record says of one token.
function read() {
  const attention = claim();
  if (!attention || token === null || token >= attention.votes.length) {
    token = null;
    by("token").textContent = "Arrow keys, or the pointer, read a token.";
    return;
  }
  by("token").textContent = draws.words(attention, token, shown.at(-1).copies);
}

function point(event) {
  const attention = claim();
  const found = attention && draws.pointed(by("canvas"), attention, event);
  if (!attention || found === token) return;
  token = found;
  draw();
}

function step(event) {
  const attention = claim();
  const next = attention ? draws.stepped(attention, token, event.key) : undefined;
  if (next === undefined) return;
  event.preventDefault();
  token = next;
  draw();
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([record + "\n"], { type: "application/x-ndjson" }));
  link.download = "certificates.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

for (const id of terms) {
  by(id).addEventListener("input", () => { label(); draw(); });
  by(id).addEventListener("change", refine);
}
for (const each of [by("radius"), by("size"), ...document.querySelectorAll("[name=view]")]) {
  each.addEventListener("input", () => { label(); draw(); });
}
by("record").addEventListener("input", open);
by("canvas").addEventListener("pointermove", point);
by("canvas").addEventListener("pointerleave", () => { token = null; draw(); });
by("canvas").addEventListener("keydown", step);
by("model").addEventListener("change", () => { fit(); refine(); });
by("file").addEventListener("change", ({ target }) => own([...target.files]));
by("stop").addEventListener("click", () => running?.abort());
by("save").addEventListener("click", save);
by("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = by("key").value.trim();
  begin();
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  by("drop").addEventListener(type, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop") own([...event.dataTransfer.files]);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
label();
draw();
begin();
