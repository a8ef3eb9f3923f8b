// The report: what the page carries, unpacked and shown.

import * as charts from "./charts.js";
import * as files from "./files.js";
import * as gallery from "./gallery.js";

const by = (id) => document.getElementById(id);
const made = (name, text = "", kind = "") => {
  const element = document.createElement(name);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
};

function summary({ headline, terms, says, not_said: not }) {
  by("says").textContent = says;
  by("not-said").textContent = not;
  for (const [value, what] of headline) {
    const each = made("div");
    each.append(made("p", value, "large"), made("p", what, "quiet"));
    by("headline").append(each);
  }
  for (const [name, value, words] of terms) by("terms").append(made("dt", name), made("dd", value), made("dd", words));
}

function section({ id, title, words, views }) {
  const element = made("section");
  element.id = id;
  const heading = made("h2", title);
  heading.id = `${id}-title`;
  element.setAttribute("aria-labelledby", heading.id);
  element.append(heading);
  if (words) element.append(made("p", words, "quiet"));
  const parts = made("div", "", "parts");
  const show = (view) => parts.replaceChildren(...view.parts.map(charts.figure));
  if (views.length > 1) {
    const choice = made("select");
    choice.setAttribute("aria-label", `${title}: what is asked`);
    choice.append(...views.map(({ name }, place) => new Option(name, place)));
    choice.addEventListener("input", () => show(views[Number(choice.value)]));
    element.append(choice);
  }
  element.append(parts);
  show(views[0]);
  return element;
}

async function begin() {
  const data = await files.unpacked(by("data").textContent);
  by("fvit").textContent = data.fvit;
  summary(data.summary);
  by("sections").append(...data.sections.map(section));
  for (const each of document.querySelectorAll("main section")) {
    const link = made("a", each.querySelector("h2").textContent);
    link.href = `#${each.id}`;
    by("contents").append(link);
  }
  await gallery.begin(data);
  document.body.dataset.ready = "";
}

begin().catch((error) => {
  by("problem").textContent = `This browser cannot show the report: ${error.message}`;
  throw error;
});
