// The page: one refinement at a time, drawn as its certificates arrive.

const SECONDS = 30;
const by = (id) => document.getElementById(id);
const terms = ["sigma", "k", "beta", "radius"];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

let models = [];
let limits = {};
let key = "";
let image = null;      // {body, bitmap, name}
let running = null;    // the AbortController of the refinement under way
let shown = [];        // its certificates, as objects
let record = "";       // the last of them as it was sent: JavaScript's numbers would spoil a 64-bit seed

const value = (id) => Number(by(id).value);
const model = () => models.find((each) => each.name === by("model").value) ?? models[0];
const headers = () => (key ? { Authorization: `Bearer ${key}` } : {});

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

function own(file) {
  if (!file) return;
  for (const each of by("samples").children) each.setAttribute("aria-pressed", "false");
  take(file, file.name);
}

async function take(body, name) {
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(body);
  } catch {
    // A format that the service reads and this browser does not: the map alone is drawn.
  }
  image = { body, bitmap, name };
  await refine();
}

async function refine() {
  if (!image || !models.length) return;
  running?.abort();
  const mine = (running = new AbortController());
  shown = [];
  record = "";
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
  by("radius").max = (2 * value("sigma")).toFixed(2);
  by("kept").textContent = `${kept()} of the ${value("k")}`;
}

// The most tokens that are less than a break: k − k0 + 1, in whole tenths so that 0.8·10 is 8.
const kept = () => Math.ceil((Math.round(value("beta") * 10) * value("k")) / 10);

function say(what) {
  const last = shown.at(-1);
  if (!last) return;
  const { class: of, attention, copies } = last;
  by("status").textContent =
    `${what} Class ${of.label}` +
    (of.abstained ? " is not certified" : ` stays within ${of.radius_l2.toFixed(3)}`) +
    "; the explanation " +
    (attention.abstained ? "is not certified" : `stays within ${attention.radius_l2.toFixed(3)}`) +
    ` (${copies.toLocaleString("en")} copies).`;
}

function draw() {
  const last = shown.at(-1);
  by("stop").disabled = !running;
  by("save").disabled = !record;
  by("hint").hidden = Boolean(image);
  by("class").textContent = last ? last.class.label : "–";
  by("copies").textContent = last ? last.copies.toLocaleString("en") : "–";
  const radii = last?.attention.token_radii ?? [];
  by("tokens").textContent = last ? `${radii.filter((radius) => radius > 0).length} / ${last.attention.k}` : "–";
  meter("class", last?.class);
  meter("attention", last?.attention);
  chart();
  paint(last?.attention);
}

function meter(name, claim) {
  const most = 3 * value("sigma");
  const radius = claim?.radius_l2 ?? 0;
  const goal = value("radius");
  const track = document.querySelector(`.meter.${name} .track`);
  track.querySelector(".fill").style.width = `${Math.min(100, (100 * radius) / most)}%`;
  track.querySelector(".goal").style.left = `calc(${Math.min(100, (100 * goal) / most)}% - 1.5px)`;
  by(`${name}-radius`).textContent = claim ? (claim.abstained ? "not certified" : radius.toFixed(3)) : "–";
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
  const most = Math.max(2 * value("sigma"), ...shown.map((each) => each.class.radius_l2), 1e-9);
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
    const points = shown.map((each) => `${x(each.copies)},${y(each[claim].radius_l2)}`).join(" ");
    parts.push(make("polyline", { class: `of-${claim}`, points }));
  }
  by("chart").replaceChildren(...parts);
}

function paint(attention) {
  const canvas = by("canvas");
  if (image) {
    const [rows, columns] = model().image_size;
    const height = Math.round((canvas.width * rows) / columns);
    if (canvas.height !== height) canvas.height = height;
  }
  const pen = canvas.getContext("2d");
  pen.fillStyle = style("--card");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (image?.bitmap) {
    // As the service does: scaled to cover, cut at the centre.
    const { width, height } = image.bitmap;
    const scale = Math.max(canvas.width / width, canvas.height / height);
    const [w, h] = [canvas.width / scale, canvas.height / scale];
    pen.drawImage(image.bitmap, (width - w) / 2, (height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
  }
  if (!attention) {
    canvas.setAttribute("aria-label", image ? `Picture ${image.name}` : "No picture yet");
    return;
  }
  const [rows, columns] = attention.grid;
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  const copies = attention.votes.reduce((sum, each) => sum + each, 0) / attention.k;
  attention.votes.forEach((votes, token) => {
    pen.fillStyle = `rgb(8 10 20 / ${0.62 * (1 - votes / copies)})`;
    pen.fillRect((token % columns) * w, Math.floor(token / columns) * h, w, h);
  });
  const most = Math.max(...attention.token_radii, 1e-9);
  attention.tokens.forEach((token, place) => {
    const radius = attention.token_radii[place];
    pen.lineWidth = radius > 0 ? 3 + (6 * radius) / most : 2;
    pen.strokeStyle = radius > 0 ? "#00e0a0" : "#c3cad9";
    pen.setLineDash(radius > 0 ? [] : [7, 6]);
    const gap = pen.lineWidth / 2 + 1;
    pen.strokeRect((token % columns) * w + gap, Math.floor(token / columns) * h + gap, w - 2 * gap, h - 2 * gap);
  });
  const sure = attention.token_radii.filter((radius) => radius > 0).length;
  canvas.setAttribute(
    "aria-label",
    `Picture ${image.name} with its explanation: ${attention.k} tokens outlined, ${sure} of them certified`,
  );
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
  if (id !== "radius") by(id).addEventListener("change", refine);
}
by("model").addEventListener("change", () => { fit(); refine(); });
by("file").addEventListener("change", ({ target }) => own(target.files[0]));
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
    const dropped = type === "drop" && event.dataTransfer.files[0];
    if (dropped) own(dropped);
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
label();
draw();
begin();
