// Charts and tables, each with its numbers to read and to keep.

import * as files from "./files.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 240;
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 10, 10, 38];

const element = (name, attributes = {}, text = "") => {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, each] of Object.entries(attributes)) made.setAttribute(attribute, each);
  made.textContent = text;
  return made;
};

const html = (name, text = "", kind = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
};

// A figure with a heading, what it shows, its numbers and their CSV.
export function figure(part) {
  const made = html("figure");
  made.append(html("h3", part.title));
  if (part.words) made.append(html("figcaption", part.words));
  const { columns, rows } = numbers(part);
  const save = html("button", "Save as CSV");
  save.type = "button";
  save.setAttribute("aria-label", `Save ${part.title} as CSV`);
  save.addEventListener("click", () => files.save(`${part.id}.csv`, files.csv(columns, rows)));
  if (part.kind === "table") {
    made.className = "wide";
    made.append(table(part.title, columns, rows), row(save));
    return made;
  }
  const place = html("div");
  made.append(place);
  if (part.kind === "lines") made.append(keys(part.lines));
  const shown = html("details");
  shown.append(html("summary", "Numbers"));
  shown.addEventListener("toggle", () => shown.open && shown.children.length < 2 && shown.append(table(part.title, columns, rows)));
  made.append(shown, row(save));
  new ResizeObserver(() => draw(place, part)).observe(place);
  return made;
}

// What CSV and table hold of a part.
export function numbers(part) {
  if (part.kind === "table") return part;
  if (part.kind === "bars") return { columns: ["from", "to", "images"], rows: part.bins };
  return {
    columns: ["line", part.x, part.y, "from", "to"],
    rows: part.lines.flatMap(({ name, points }) => points.map((point) => [name, ...point])),
  };
}

function row(...children) {
  const made = html("div", "", "row");
  made.append(...children);
  return made;
}

function table(title, columns, rows) {
  const made = html("div", "", "table");
  made.tabIndex = 0;
  made.setAttribute("role", "region");
  made.setAttribute("aria-label", `Numbers of ${title}`);
  const inside = html("table");
  const [head, body] = [html("thead"), html("tbody")];
  const line = html("tr");
  for (const column of columns) {
    const cell = html("th", column);
    cell.scope = "col";
    line.append(cell);
  }
  head.append(line);
  for (const each of rows) {
    const made = html("tr");
    for (const cell of each) {
      const number = typeof cell === "number";
      made.append(html("td", cell === null ? "–" : number ? String(Math.round(cell * 1e4) / 1e4) : cell, number ? "number" : ""));
    }
    body.append(made);
  }
  inside.append(head, body);
  made.append(inside);
  return made;
}

function keys(lines) {
  const list = html("ul", "", "keys");
  lines.forEach(({ name }, place) => {
    const [item, sample] = [html("li"), element("svg", { viewBox: "0 0 44 12", "aria-hidden": "true" })];
    sample.append(element("polyline", { class: `line-${place}`, points: "1,6 43,6" }));
    item.append(sample, name);
    list.append(item);
  });
  return list;
}

// Round steps that divide what is shown into about five.
function ticks(low, high, least = 0) {
  if (!(high > low)) return [low];
  const rough = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, unit * [1, 2, 5, 10].find((each) => unit * each >= rough * 0.999));
  const found = [];
  for (let at = Math.max(0, Math.ceil(low / step - 1e-9)); at * step <= high + step * 1e-9; at++) found.push(at * step);
  return found;
}

const short = (value) => String(Math.round(value * 1e6) / 1e6);

function draw(place, part) {
  const width = Math.max(240, Math.round(place.clientWidth));
  if (place.firstChild?.viewBox?.baseVal.width === width) return; // as wide as it is drawn
  const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": part.title });
  const bars = part.kind === "bars";
  const xs = bars ? part.bins.flatMap(([from, to]) => [from, to]) : part.lines.flatMap(({ points }) => points.map(([x]) => x));
  const ys = bars ? part.bins.map(([, , count]) => count) : part.lines.flatMap(({ points }) => points.map(([, y]) => y));
  if (!xs.length) {
    svg.append(element("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing to draw"));
    place.replaceChildren(svg);
    return;
  }
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const most = part.share ? 1 : Math.max(...ys, 1e-9);
  const x = (value) => LEFT + ((width - LEFT - RIGHT) * (value - first)) / (last - first || 1);
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / most;
  for (const each of ticks(0, most, bars ? 1 : 0)) {
    svg.append(element("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(each), y2: y(each) }));
    const said = part.share ? `${Math.round(100 * each)} %` : each.toLocaleString("en");
    svg.append(element("text", { x: LEFT - 5, y: y(each) + 4, "text-anchor": "end" }, said));
  }
  for (const each of ticks(first, last)) {
    svg.append(element("text", { x: x(each), y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, short(each)));
  }
  svg.append(element("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, part.x));
  if (bars) {
    for (const [from, to, count] of part.bins) {
      const size = { x: x(from) + 0.5, width: Math.max(0.5, x(to) - x(from) - 1), y: y(count), height: HEIGHT - BOTTOM - y(count) };
      const bar = element("rect", { class: "bar", ...size });
      bar.append(element("title", {}, `${short(from)} to ${short(to)}: ${count} images`));
      svg.append(bar);
    }
  } else {
    part.lines.forEach(({ points }, number) => {
      const wide = points.filter(([, , low]) => low !== null);
      const edge = [...wide.map(([at, , , high]) => [at, high]), ...wide.map(([at, , low]) => [at, low]).reverse()];
      const path = (pairs) => pairs.map(([at, value]) => `${x(at)},${y(value)}`).join(" ");
      svg.append(element("polygon", { class: `band band-${number}`, points: path(edge) }));
      svg.append(element("polyline", { class: `line-${number}`, points: path(points) }));
    });
  }
  place.replaceChildren(svg);
}
