// The page of a study: follows its events, fetches again what they change, and steers the study.
import { ask, refresh, throttle } from "./common.js";
import { figures } from "./figures.js";
import { follow } from "./live.js";
import { table } from "./table.js";

const { study, lastEvent } = document.body.dataset;
const api = `/api/v1/studies/${encodeURIComponent(study)}`;
const FINAL = ["completed", "cancelled", "failed"];
const summary = document.getElementById("summary");
const problem = document.getElementById("problem");
const announce = document.getElementById("announce");

const open = (number, event) => {
  const url = `/studies/${encodeURIComponent(study)}/trials/${number}`;
  if (event?.ctrlKey || event?.metaKey) window.open(url, "_blank", "noopener");
  else location.assign(url);
};
const plots = figures(open);
const trials = table(document.getElementById("trials"), open);

let cost = 0;
// Figures of many trials take longer to fetch and draw; they are then asked for less often.
const update = throttle(
  async () => {
    const begun = performance.now();
    await refresh(summary, summary.dataset.part);
    showActions();
    await Promise.all([trials.refresh(), plots.update()]);
    cost = performance.now() - begun;
  },
  () => Math.max(1000, 4 * cost),
);

const current = () => summary.firstElementChild.dataset;

function showActions() {
  const { state } = current();
  const shown = { pause: state === "running", resume: state === "paused", cancel: !FINAL.includes(state) };
  for (const button of document.querySelectorAll("[data-action]")) button.hidden = !shown[button.dataset.action];
  say(state);
}

let said = "";
/** Tell screen readers of a new state and of every tenth of the way, not of every trial. */
function say(state) {
  const bar = summary.querySelector("[role=progressbar]");
  const tenth = Math.floor((10 * Number(bar.ariaValueNow)) / Math.max(Number(bar.ariaValueMax), 1));
  const key = `${state} ${tenth}`;
  if (said && key !== said) announce.textContent = `Study ${state}. ${bar.ariaValueText}.`;
  said = key;
}
say(current().state);

async function steer(action) {
  problem.hidden = true;
  const response = await ask(`${api}/${action}`, { method: "POST" }).catch(() => null);
  if (!response?.ok) {
    const { detail } = response ? await response.json().catch(() => ({})) : {};
    problem.textContent = detail ?? `The study could not be told to ${action}: the server does not answer.`;
    problem.hidden = false;
  }
  update();
}

const dialog = document.getElementById("confirm");
dialog.addEventListener("close", () => dialog.returnValue === "cancel" && steer("cancel"));
document.getElementById("actions").addEventListener("click", ({ target }) => {
  const { action } = target.closest("[data-action]")?.dataset ?? {};
  if (action === "cancel") {
    dialog.returnValue = "keep";
    dialog.showModal();
  } else if (action) steer(action);
});

if (!FINAL.includes(current().state)) {
  const stop = follow(study, Number(lastEvent), (kind, data) => {
    update();
    if (kind === "study" && FINAL.includes(data.state)) stop();
  });
  // Steps of running trials are no events; their curves move with the clock.
  setInterval(() => {
    if (!document.hidden && Number(current().running) > 0) update();
  }, 5000);
}
document.addEventListener("visibilitychange", () => document.hidden || FINAL.includes(current().state) || update());
