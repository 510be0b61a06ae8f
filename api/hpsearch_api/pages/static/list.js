// Pages that are one list: fetched again every few seconds while somebody looks.
import { refresh } from "./common.js";

const compare = document.querySelector("[data-compare]");
/** A comparison takes two. */
function count() {
  if (compare) compare.disabled = document.querySelectorAll("input[name=study]:checked").length < 2;
}

for (const target of document.querySelectorAll("[data-part][data-every]")) {
  const tick = async () => {
    if (!document.hidden) await refresh(target, target.dataset.part).catch(() => {});
    count();
    setTimeout(tick, 1000 * Number(target.dataset.every));
  };
  setTimeout(tick, 1000 * Number(target.dataset.every));
}
document.addEventListener("change", ({ target }) => {
  if (target.matches("[data-filters] select")) target.form.requestSubmit();
  count();
});
count();
