// The images: chosen, in an order, a page at a time; one of them large.

import * as draws from "./canvas.js";
import * as files from "./files.js";

const PAGE = 12;   // images on a page
const KEPT = 40;   // chunks that stay unpacked
const SIDE = 160;  // pixels of a panel

const by = (id) => document.getElementById(id);
const ground = () => getComputedStyle(document.documentElement).getPropertyValue("--card").trim();

// From no attention to all of it.
const GLOW = [[8, 8, 24], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

let data = null;
let places = [];       // of the images that are chosen, in their order
let first = 0;         // the first on the page
let cards = [];        // what the page shows: {claim, pictures, panels}
let large = null;      // the image that is shown large: its place among the chosen, {claim, pictures}
let token = null;      // the token that is read
const chunks = new Map();

const radius = () => Number(by("radius").value);
const base = (name) => name.split(/[\\/]/).pop() || name;
const orders = {
  "worst first": () => 0,
  "best first": (one, other) => other - one,
  "smallest class radius first": (one, other) => less("class_radius", one, other),
  "largest class radius first": (one, other) => less("class_radius", other, one),
  "smallest explanation radius first": (one, other) => less("attention_radius", one, other),
  "largest explanation radius first": (one, other) => less("attention_radius", other, one),
  "fewest tokens open first": (one, other) => open(one) - open(other),
  "most tokens open first": (one, other) => open(other) - open(one),
  "by name": (one, other) => data.columns.image[one].localeCompare(data.columns.image[other], "en", { numeric: true }),
};
const less = (column, one, other) => data.columns[column][one] - data.columns[column][other];
const open = (place) => data.columns.tokens[place] - data.columns.in[place] - data.columns.out[place];

export async function begin(found) {
  data = found;
  const count = data.columns.image.length;
  by("gallery-words").textContent =
    (count < data.images ? `The ${count.toLocaleString("en")} worst of ${data.images.toLocaleString("en")} images. ` : "") +
    ("broken" in data.columns ? "Certificates that an attack broke come first; then" : "The worst come first:") +
    " certified and wrong, then wrong, then without a certificate, then with the smallest. " +
    "A name opens its image. Explanations are drawn as light, the brighter the more; outlined are the k tokens, " +
    "green where their place is certified.";
  by("group").append(new Option(`all ${count.toLocaleString("en")}`, ""));
  for (const [name, of] of Object.entries(data.groups)) {
    by("group").append(new Option(`${name} (${of.length.toLocaleString("en")})`, name));
  }
  const mapped = "in" in data.columns;
  for (const name of Object.keys(orders)) if (mapped || !name.includes("open")) by("order").append(new Option(name, name));
  by("at").hidden = !mapped;
  const most = Math.max(0.01, Math.ceil(100 * Math.max(data.widest, data.radius)) / 100);
  for (const slider of [by("radius"), by("large-radius")]) {
    slider.max = most;
    slider.value = draws.digits(data.radius, 2);
    slider.addEventListener("input", () => moved(slider));
  }
  for (const id of ["search", "group", "order"]) by(id).addEventListener("input", choose);
  by("before").addEventListener("click", () => turn(first - PAGE));
  by("after").addEventListener("click", () => turn(first + PAGE));
  by("save").addEventListener("click", keep);
  by("large-before").addEventListener("click", () => enlarge(large.place - 1));
  by("large-after").addEventListener("click", () => enlarge(large.place + 1));
  by("close").addEventListener("click", () => by("large").close());
  by("canvas").addEventListener("pointermove", (event) => read(large && draws.pointed(by("canvas"), large.claim, event)));
  by("canvas").addEventListener("pointerleave", () => read(null));
  by("canvas").addEventListener("keydown", step);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { cards.forEach(paint); paintLarge(); });
  said();
  await choose();
}

async function choose() {
  const wanted = by("search").value.trim().toLowerCase();
  const { image, label = [], class: said } = data.columns;
  const all = by("group").value ? data.groups[by("group").value] : image.map((_, place) => place);
  const matches = (place) => [image[place], label[place], said[place]].some((text) => text?.toLowerCase().includes(wanted));
  places = all.filter((place) => !wanted || matches(place)).sort(orders[by("order").value]);
  await turn(0);
}

async function turn(to) {
  first = Math.max(0, Math.min(to, Math.floor((places.length - 1) / PAGE) * PAGE));
  const shown = places.slice(first, first + PAGE);
  const made = shown.map((place, number) => card(place, first + number));
  const found = await Promise.all(shown.map(loaded));
  if (shown.some((place, number) => place !== places[first + number])) return; // something else was chosen meanwhile
  cards = found.map((each, number) => ({ ...each, panels: panels(made[number], each) }));
  by("cards").replaceChildren(...made);
  by("before").disabled = first === 0;
  by("after").disabled = first + PAGE >= places.length;
  by("place").textContent = places.length
    ? `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")} of ${places.length.toLocaleString("en")}`
    : "no image is so";
  cards.forEach(paint);
}

// What is drawn of an image: its claim, and its pictures or null.
async function loaded(place) {
  const number = Math.floor(place / data.chunk);
  let chunk = chunks.get(number);
  if (!chunk) {
    const lines = by(`chunk-${number}`).textContent.split("\n");
    chunk = { claims: files.unpacked(lines[0]), strips: lines.slice(1) };
    chunks.set(number, chunk);
    if (chunks.size > KEPT) chunks.delete(chunks.keys().next().value);
  }
  const [claims, pictures] = await Promise.all([chunk.claims, files.panels(chunk.strips[place % data.chunk])]);
  return { claim: claims[place % data.chunk], pictures };
}

function card(place, number) {
  const item = document.createElement("li");
  const name = document.createElement("button");
  name.type = "button";
  name.textContent = base(data.columns.image[place]);
  name.title = data.columns.image[place];
  name.addEventListener("click", () => enlarge(number));
  item.append(name, words(place));
  return item;
}

function words(place) {
  const made = document.createElement("p");
  const of = (name) => data.columns[name]?.[place] ?? null;
  const within = (radius) => (radius > 0 ? `within ${draws.digits(radius, 3)}` : "not certified");
  const label = of("label");
  const verdict = document.createElement("span");
  verdict.textContent = `says ${of("class")}`;
  if (label !== null && label !== of("class")) {
    verdict.className = "wrong";
    verdict.textContent += `, is ${label}`;
  }
  if (of("broken")) {
    verdict.className = "wrong";
    verdict.textContent += ", and an attack broke its certificate";
  }
  const plain = of("plain") !== null && of("plain") !== of("class") ? `; the plain model says ${of("plain")}` : "";
  const answer = of("answer") === null ? "" : `; decision: ${of("answer")}`;
  made.append(verdict, `${plain}. Class ${within(of("class_radius"))}; explanation ${within(of("attention_radius"))}${answer}.`);
  return made;
}

// A canvas for each thing that is known of an image.
function panels(item, { claim, pictures }) {
  const place = document.createElement("div");
  place.className = "panels";
  const kinds = {
    image: pictures && "image", noisy: pictures && "one noisy copy", denoised: pictures && "the copy, denoised",
    plain: claim.plain && "plain attention", smoothed: "smoothed attention", map: claim.map_radii && "certified map",
  };
  const made = Object.entries(kinds).filter(([, said]) => said).map(([kind, said]) => {
    const [figure, caption, canvas] = ["figure", "figcaption", "canvas"].map((name) => document.createElement(name));
    canvas.width = SIDE;
    canvas.height = Math.round((SIDE * claim.size[0]) / claim.size[1]);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", said);
    caption.textContent = said;
    figure.append(canvas, caption);
    place.append(figure);
    return { kind, canvas, caption };
  });
  item.append(place);
  return made;
}

function paint({ claim, pictures, panels }) {
  for (const panel of panels) {
    view(panel.canvas, panel.kind, claim, pictures);
    if (panel.kind === "map") {
      const [out, unknown, inside] = counted(claim);
      panel.caption.textContent = `map: in ${inside}, open ${unknown}, out ${out}`;
      panel.canvas.setAttribute("aria-label", `certified map at radius ${radius().toFixed(2)}: ${inside} tokens in, ${unknown} open, ${out} out`);
    }
  }
}

const counted = (claim) => {
  const sides = draws.sides(claim, radius());
  return [-1, 0, 1].map((side) => sides.filter((each) => each === side).length);
};

function view(canvas, kind, claim, pictures) {
  const number = { noisy: 1, denoised: 2 }[kind] ?? 0;
  draws.picture(canvas, pictures?.[number], ground());
  if (kind === "plain") light(canvas, claim.plain, claim.grid);
  if (kind === "smoothed") {
    light(canvas, claim.smoothed ?? claim.votes, claim.grid);
    draws.outlines(canvas, claim);
  }
  if (kind === "map") draws.map(canvas, claim, radius());
}

// Attention as light on the darkened picture.
function light(canvas, values, [rows, columns]) {
  const pen = canvas.getContext("2d");
  const [w, h] = [canvas.width / columns, canvas.height / rows];
  pen.save();
  pen.globalCompositeOperation = "saturation";
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.restore();
  const most = Math.max(...values, 1e-12);
  values.forEach((value, token) => {
    const at = (value / most) * (GLOW.length - 1);
    const low = Math.min(GLOW.length - 2, Math.floor(at));
    const colour = GLOW[low].map((each, channel) => Math.round(each + (at - low) * (GLOW[low + 1][channel] - each)));
    pen.fillStyle = `rgb(${colour.join(" ")} / 0.62)`;
    const [left, top] = [Math.round((token % columns) * w), Math.round(Math.floor(token / columns) * h)];
    const [right, bottom] = [Math.round(((token % columns) + 1) * w), Math.round((Math.floor(token / columns) + 1) * h)];
    pen.fillRect(left, top, right - left, bottom - top);
  });
}

function moved(slider) {
  for (const other of [by("radius"), by("large-radius")]) other.value = slider.value;
  said();
  for (const each of cards) paint({ ...each, panels: each.panels.filter(({ kind }) => kind === "map") });
  paintLarge();
}

function said() {
  for (const id of ["radius-shown", "large-radius-shown"]) by(id).textContent = radius().toFixed(2);
}

async function enlarge(number) {
  const place = places[number];
  const found = await loaded(place);
  large = { ...found, place: number };
  token = null;
  by("large-title").textContent = base(data.columns.image[place]);
  by("large-words").replaceChildren(...words(place).childNodes);
  by("large-before").disabled = number === 0;
  by("large-after").disabled = number === places.length - 1;
  const { claim, pictures } = large;
  const kinds = {
    image: pictures && "image", noisy: pictures && "noisy copy", denoised: pictures && "denoised copy",
    plain: claim.plain && "plain attention", smoothed: "smoothed attention", map: claim.map_radii && "certified map",
  };
  const chosen = document.querySelector("[name=view]:checked")?.value ?? "map";
  const there = Object.entries(kinds).filter(([, said]) => said);
  const shown = there.some(([kind]) => kind === chosen) ? chosen : "smoothed";
  by("views").replaceChildren(...there.map(([kind, said]) => {
    const [label, input] = [document.createElement("label"), document.createElement("input")];
    Object.assign(input, { type: "radio", name: "view", value: kind, checked: kind === shown });
    input.addEventListener("input", paintLarge);
    label.append(input, ` ${said}`);
    return label;
  }));
  by("canvas").height = Math.round((by("canvas").width * claim.size[0]) / claim.size[1]);
  paintLarge();
  if (!by("large").open) by("large").showModal();
}

function paintLarge() {
  if (!large) return;
  const { claim, pictures } = large;
  const kind = document.querySelector("[name=view]:checked").value;
  const canvas = by("canvas");
  view(canvas, kind, claim, pictures);
  by("legend").hidden = kind !== "map";
  let label = document.querySelector("[name=view]:checked").parentElement.textContent.trim();
  if (kind === "map") {
    const [out, unknown, inside] = counted(claim);
    for (const [id, count] of [["in", inside], ["open", unknown], ["out", out]]) by(id).textContent = count;
    label += ` at radius ${radius().toFixed(2)}: ${inside} tokens in, ${unknown} open, ${out} out`;
  }
  canvas.setAttribute("aria-label", `${by("large-title").textContent}: ${label}`);
  by("token").textContent = token === null ? "Arrow keys, or the pointer, read a token." : draws.words(claim, token, claim.copies);
  if (token !== null) draws.cursor(canvas, claim, token);
}

function read(next) {
  if (!large || next === token) return;
  token = next;
  paintLarge();
}

function step(event) {
  const next = large ? draws.stepped(large.claim, token, event.key) : undefined;
  if (next === undefined || (next === null && token === null)) return; // Escape closes where no token is read
  event.preventDefault();
  read(next);
}

function keep() {
  const names = Object.keys(data.columns);
  files.save("images.csv", files.csv(names, places.map((place) => names.map((name) => data.columns[name][place]))));
}
