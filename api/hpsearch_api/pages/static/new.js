// The page of a new study: an editor that is checked by the server while one writes, and what the study would cost.
import { attempt, inWords } from "./actions.js";
import { ask, throttle } from "./common.js";
import { complete } from "./completion.js";

const text = document.getElementById("text");
const gutter = document.getElementById("gutter");
const list = document.getElementById("suggestions");
const verdict = document.getElementById("verdict");
const submit = document.getElementById("submit");
const problem = document.getElementById("problem");
const example = document.getElementById("example");
const DRAFT = "hpsearch-draft";

let schema = null;
let faults = [];
let checked = "";
ask("/new/schema.json").then(async (response) => {
  schema = await response.json();
});

const initial = text.value;
if (!text.value) text.value = sessionStorage.getItem(DRAFT) ?? example.value;
example.addEventListener("change", () => {
  text.value = example.value || initial;
  changed();
});

// -- checking ----------------------------------------------------------------------------------------------------

const check = throttle(
  async () => {
    const asked = text.value;
    const headers = { "Content-Type": "application/yaml", Accept: "application/json" };
    const response = await ask("/api/v1/studies/validate", { method: "POST", headers, body: asked });
    const found = await response.json();
    if (!response.ok) {
      show({ valid: false, errors: [{ loc: "", msg: inWords(found), line: 1 }], stages: [] });
      return;
    }
    checked = asked;
    show(found);
  },
  () => 250,
);

function show(found) {
  faults = found.errors;
  const n = faults.length;
  verdict.textContent = found.valid ? `${found.name} can be submitted.` : `${n} ${n === 1 ? "place is" : "places are"} wrong.`;
  verdict.className = found.valid ? "good" : "bad";
  document.getElementById("errors").replaceChildren(...faults.map(errorItem));
  document.getElementById("plan").hidden = !found.valid;
  submit.disabled = !found.valid || checked !== text.value;
  text.setAttribute("aria-invalid", String(!found.valid));
  if (found.valid) {
    document.getElementById("cost").textContent = found.n_epochs.toLocaleString("en");
    document.getElementById("stages").replaceChildren(...found.stages.map(stageRow));
    document.getElementById("space").replaceChildren(...Object.entries(found.space).map(([name, param]) => range(name, param)));
  }
  number();
}

function errorItem({ loc, msg, line }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "link";
  button.textContent = `line ${line}`;
  button.addEventListener("click", () => goTo(line));
  item.append(button, ` ${loc ? `${loc}: ` : ""}${msg}`);
  return item;
}

function stageRow({ name, n_trials: trials, epochs, n_epochs: all }) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  row.append(head);
  for (const n of [trials, epochs, all]) {
    const cell = row.insertCell();
    cell.className = "num right";
    cell.textContent = n.toLocaleString("en");
  }
  return row;
}

const SVG = "http://www.w3.org/2000/svg";

/** A parameter drawn on its own scale: a tick for every decade, or its choices. */
function range(name, param) {
  const box = document.createElement("div");
  box.className = "space-row";
  const label = document.createElement("b");
  label.textContent = name;
  box.append(label);
  if (param.choices) {
    const words = document.createElement("span");
    words.className = "small";
    words.textContent = param.choices.map((choice) => JSON.stringify(choice)).join(", ");
    box.append(words);
    return box;
  }
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("viewBox", "0 0 100 10");
  drawn.setAttribute("preserveAspectRatio", "none");
  drawn.setAttribute("aria-hidden", "true");
  drawn.append(rect(0, 4, 100, 2, "span"));
  for (const place of ticks(param)) drawn.append(rect(place - 0.25, 1, 0.5, 8, "mark"));
  const ends = document.createElement("span");
  ends.className = "num small dim";
  ends.textContent = `${short(param.low)} to ${short(param.high)}${param.log ? ", log" : ""}${param.type === "int" ? ", whole" : ""}`;
  box.append(drawn, ends);
  return box;
}

/** `1e-6` for 0.000001. */
function short(number) {
  const size = Math.abs(number);
  return size && (size < 1e-3 || size >= 1e5) ? number.toExponential().replace("e+", "e") : String(number);
}

function rect(x, y, width, height, name) {
  const shape = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ x, y, width, height, class: name })) shape.setAttribute(key, value);
  return shape;
}

function ticks({ low, high, log }) {
  if (!log) return [0, 25, 50, 75, 100];
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const places = [];
  for (let power = Math.ceil(a - 1e-9); power <= b + 1e-9 && places.length < 60; power += 1) places.push((100 * (power - a)) / (b - a));
  return places;
}

// -- the editor --------------------------------------------------------------------------------------------------

function number() {
  const wrong = new Set(faults.map(({ line }) => line));
  const n = text.value.split("\n").length;
  gutter.replaceChildren(
    ...Array.from({ length: n }, (_, i) => {
      const line = document.createElement("div");
      line.textContent = String(i + 1);
      if (wrong.has(i + 1)) {
        line.className = "wrong";
        line.title = faults.filter((fault) => fault.line === i + 1).map((fault) => fault.msg).join("\n");
      }
      return line;
    }),
  );
  gutter.scrollTop = text.scrollTop;
}

function goTo(line) {
  const lines = text.value.split("\n");
  const from = lines.slice(0, line - 1).reduce((sum, each) => sum + each.length + 1, 0);
  text.focus();
  text.setSelectionRange(from, from + (lines[line - 1]?.length ?? 0));
}

function changed() {
  sessionStorage.setItem(DRAFT, text.value);
  submit.disabled = true;
  number();
  check();
}

text.addEventListener("scroll", () => {
  gutter.scrollTop = text.scrollTop;
  close();
});
text.addEventListener("input", ({ inputType }) => {
  changed();
  if (inputType?.startsWith("insertText")) suggest();
  else close();
});
text.addEventListener("blur", () => setTimeout(close, 150));
text.addEventListener("click", close);

let leaves = false; // Escape, then Tab: leaves the editor instead of indenting
text.addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey } = event;
  const isOpen = !list.hidden;
  if (key === "Enter" && (ctrlKey || metaKey)) submit.click();
  else if (key === " " && ctrlKey) suggest();
  else if (isOpen && (key === "ArrowDown" || key === "ArrowUp")) move(key === "ArrowDown" ? 1 : -1);
  else if (isOpen && (key === "Enter" || key === "Tab")) take(list.querySelector("[aria-selected=true]"));
  else if (key === "Escape") {
    leaves = !isOpen;
    close();
    return;
  } else if (key === "Tab" && !event.shiftKey && !leaves) insert("  ");
  else if (key === "Enter") insert(`\n${indent()}`);
  else {
    leaves = false;
    return;
  }
  event.preventDefault();
});

/** The indentation of the line of the caret, deeper behind a colon. */
function indent() {
  const line = text.value.slice(0, text.selectionStart).split("\n").at(-1);
  return /^\s*/.exec(line)[0] + (/:\s*$/.test(line) ? "  " : "");
}

/** Type text as the user would, so that it can be undone. */
function insert(typed) {
  document.execCommand("insertText", false, typed);
}

let offered = null;
function suggest() {
  offered = schema && complete(text.value, text.selectionStart, schema);
  if (!offered) {
    close();
    return;
  }
  list.replaceChildren(
    ...offered.words.slice(0, 40).map(({ text: word, about }, i) => {
      const item = document.createElement("li");
      item.role = "option";
      item.id = `suggestion-${i}`;
      item.dataset.word = word;
      item.ariaSelected = String(i === 0);
      const hint = document.createElement("span");
      hint.className = "dim small";
      hint.textContent = about;
      item.append(word, hint);
      item.addEventListener("mousedown", (event) => {
        event.preventDefault();
        take(item);
      });
      return item;
    }),
  );
  const lines = text.value.slice(0, text.selectionStart).split("\n");
  const style = getComputedStyle(text);
  const top = lines.length * parseFloat(style.lineHeight) + parseFloat(style.paddingTop) - text.scrollTop;
  list.hidden = false;
  list.style.top = `${Math.min(top, text.clientHeight - 40)}px`;
  list.style.left = `calc(3.4rem + ${Math.min(lines.at(-1).length, 44)}ch)`;
  text.setAttribute("aria-activedescendant", "suggestion-0");
}

function move(step) {
  const items = [...list.children];
  const at = items.findIndex((item) => item.ariaSelected === "true");
  const next = items[(at + step + items.length) % items.length];
  items[at].ariaSelected = "false";
  next.ariaSelected = "true";
  next.scrollIntoView({ block: "nearest" });
  text.setAttribute("aria-activedescendant", next.id);
}

function take(item) {
  const { word } = item.dataset;
  const { from, isKey } = offered;
  text.setSelectionRange(from, text.selectionStart);
  insert(isKey ? `${word}: ` : word); // the event of that proposes what may follow
  if (!isKey) close();
}

function close() {
  list.hidden = true;
  text.removeAttribute("aria-activedescendant");
}

submit.addEventListener("click", async () => {
  const study = await attempt(problem, submit, async () => {
    const headers = { "Content-Type": "application/yaml", Accept: "application/json" };
    const response = await ask("/api/v1/studies", { method: "POST", headers, body: text.value });
    const answer = await response.json();
    if (!response.ok) throw new Error(inWords(answer));
    return answer;
  });
  if (!study) return;
  sessionStorage.removeItem(DRAFT);
  location.assign(`/studies/${encodeURIComponent(study.name)}`);
});

changed();
