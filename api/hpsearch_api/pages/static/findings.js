// Flags and proposals: acknowledge one, open the other, with changes or as it is.
import { attempt, call } from "./actions.js";

/** `api` is the study's address in the interface; `changed()` is called when something was done. */
export function findings(target, api, problem, changed) {
  target.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-acknowledge=undo]");
    if (button) acknowledge(button, button, null);
  });
  target.addEventListener("submit", (event) => {
    event.preventDefault();
    const form = event.target;
    const button = form.querySelector("button:not([type=button])");
    if (form.dataset.acknowledge) acknowledge(form, button, form.elements.note.value);
    else open(form, button);
  });
  target.addEventListener("input", ({ target: { form } }) => {
    form.dataset.dirty = "";
    if (form.dataset.open) form.querySelector("[data-cost]").textContent = cost(form);
  });

  async function acknowledge(element, button, note) {
    const { stage, parameter, side } = element.dataset;
    await attempt(problem, button, () => call("POST", `${api}/flags/acknowledge`, { stage, parameter, side, note }));
    delete element.dataset.dirty;
    changed();
  }

  async function open(form, button) {
    const place = form.querySelector("[data-problem]");
    const opened = await attempt(place, button, () => call("POST", `${api}/stages`, asked(form)));
    if (!opened) return;
    delete form.dataset.dirty;
    changed();
  }
}

/** What the form says, only where it was changed; `{proposal}` alone opens what is proposed. */
function asked(form) {
  const body = { proposal: form.dataset.open };
  for (const input of form.querySelectorAll("input")) {
    if (input.value === input.dataset.was) continue;
    const { name, value, dataset } = input;
    if (!dataset.param) body[name] = Number(value);
    else ((body.space ??= {})[dataset.param] ??= {})[name] = number(value, `${dataset.param}, ${name}`);
  }
  return body;
}

function number(text, what) {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new Error(`${what}: ${text || "nothing"} is no number.`);
  return value;
}

function cost(form) {
  const of = (name) => Number(form.elements[name]?.value || 0);
  const trials = form.elements.top ? of("top") * (form.elements.seeds ? of("seeds") : 1) : of("trials");
  return (trials * of("epochs") * Number(form.dataset.each)).toLocaleString("en");
}
