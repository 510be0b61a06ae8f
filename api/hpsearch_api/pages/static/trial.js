// The page of a trial: moves while the trial runs.
import { refresh, throttle } from "./common.js";
import { figures } from "./figures.js";
import { follow } from "./live.js";

const { study, trial, lastEvent } = document.body.dataset;
const summary = document.getElementById("summary");
const plots = figures();
const update = throttle(
  async () => {
    await refresh(summary, summary.dataset.part);
    await plots.update();
  },
  () => 1000,
);
const isOpen = () => ["queued", "running"].includes(summary.firstElementChild.dataset.state);

if (isOpen()) {
  const stop = follow(study, Number(lastEvent), (kind, data) => {
    if (kind === "trial" && data.number === Number(trial)) update();
    if (kind === "study" && ["completed", "cancelled", "failed"].includes(data.state)) {
      update();
      stop();
    }
  });
  setInterval(() => document.hidden || !isOpen() || update(), 5000);
}
