// The page of a study: follows its events, fetches again what they change, and steers the study.
import { attempt, call } from "./actions.js";
import { refresh, throttle } from "./common.js";
import { figures } from "./figures.js";
import { findings } from "./findings.js";
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
const trials = table(document.getElementById("trials"), open);
const plots = figures({ onOpen: open, onBrush: trials.within });

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
  const { state, preflight } = current();
  const shown = {
    pause: state === "running",
    resume: state === "paused" || (state === "preflight" && preflight === "failed"),
    cancel: !FINAL.includes(state),
    delete: FINAL.includes(state),
  };
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
showActions();

async function steer(action, button) {
  await attempt(problem, button, () => call("POST", `${api}/${action}`));
  watch();
  update();
}

async function remove() {
  const done = await attempt(problem, null, async () => {
    await call("DELETE", api);
    return true;
  });
  if (done) location.assign("/");
}

const dialogs = { cancel: document.getElementById("confirm"), delete: document.getElementById("remove") };
dialogs.cancel.addEventListener("close", () => dialogs.cancel.returnValue === "cancel" && steer("cancel"));
dialogs.delete.addEventListener("close", () => dialogs.delete.returnValue === "delete" && remove());
document.getElementById("actions").addEventListener("click", ({ target }) => {
  const button = target.closest("[data-action]");
  const { action } = button?.dataset ?? {};
  if (dialogs[action]) {
    dialogs[action].returnValue = "keep";
    dialogs[action].showModal();
  } else if (action) steer(action, button);
});

findings(summary, api, problem, () => {
  watch();
  update();
});

// What takes long to work out comes after the first paint.
if (summary.querySelector("[data-pending]")) refresh(summary, summary.dataset.part).catch(() => {});

let stop = null;
/** Follow the study's events; a completed one that runs again is followed again. */
function watch() {
  stop ??= follow(study, Number(current().lastEvent ?? lastEvent), (kind, data) => {
    update();
    if (kind !== "study" || !FINAL.includes(data.state)) return;
    stop();
    stop = null;
  });
}
if (!FINAL.includes(current().state)) watch();
// Steps of running trials are no events; their curves move with the clock.
setInterval(() => {
  if (!document.hidden && Number(current().running) > 0) update();
}, 5000);
document.addEventListener("visibilitychange", () => document.hidden || FINAL.includes(current().state) || update());
