// One figure alone; its address says what is chosen and how far it is zoomed.
import { throttle } from "./common.js";
import { figures } from "./figures.js";
import { follow } from "./live.js";

const { study, lastEvent, state } = document.body.dataset;
const plots = figures({
  onOpen: (number) => location.assign(`/studies/${encodeURIComponent(study)}/trials/${number}`),
  zoom: location.hash.slice(1),
  onView: (query, zoom) => history.replaceState(null, "", `?${query}${zoom ? `#${zoom}` : ""}`),
});
const update = throttle(() => plots.update(), () => 2000);
if (!["completed", "cancelled", "failed"].includes(state)) follow(study, Number(lastEvent), update);
