// Pages that are one list: fetched again every few seconds while somebody looks.
import { refresh } from "./common.js";

for (const target of document.querySelectorAll("[data-part][data-every]")) {
  const tick = async () => {
    if (!document.hidden) await refresh(target, target.dataset.part).catch(() => {});
    setTimeout(tick, 1000 * Number(target.dataset.every));
  };
  setTimeout(tick, 1000 * Number(target.dataset.every));
}
