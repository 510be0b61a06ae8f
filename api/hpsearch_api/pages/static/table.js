// The table of trials: sort, filter and page without a reload; the address says what is shown.
import { refresh } from "./common.js";

/** `open(number, event)` is called for a click on a row. */
export function table(target, open) {
  const part = target.dataset.part;
  let depth = 0; // pages that Back can leave without leaving the study

  const load = async () => {
    await refresh(target, part + location.search);
    dress();
  };
  const dress = () => {
    const back = target.querySelector("[data-back]");
    if (back) back.hidden = depth === 0;
  };
  const go = (search) => {
    depth += 1;
    history.pushState({ depth }, "", search);
    return load();
  };

  target.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target.closest("a[data-table]");
    if (link) {
      event.preventDefault();
      go(link.dataset.table);
    } else if (event.target.closest("[data-back]")) {
      history.back();
    } else if (!event.target.closest("a, button, select, label") && getSelection().isCollapsed) {
      const href = event.target.closest("tr[data-href]")?.dataset.href;
      if (href) open(href.split("/").at(-1), event);
    }
  });
  target.addEventListener("change", (event) => {
    const form = event.target.closest("form");
    if (!form) return;
    if (event.target.form?.elements.range_low === event.target && !form.elements.range_high.value) return;
    const chosen = [...new FormData(form)].filter(([, value]) => value);
    go(`?${new URLSearchParams(chosen)}`);
  });
  addEventListener("popstate", (event) => {
    depth = event.state?.depth ?? 0;
    load();
  });
  dress();
  /** Show only trials within ranges `[key, low, high]`; a new range of a key takes the place of the old one. */
  const within = (ranges) => {
    const query = new URLSearchParams(location.search);
    const keys = new Set(ranges.map(([key]) => key));
    const kept = query.getAll("within").filter((text) => !keys.has(text.split(":").slice(0, -2).join(":")));
    query.delete("within");
    query.delete("after");
    const added = ranges.map(([key, low, high]) => `${key}:${Number(low.toPrecision(6))}:${Number(high.toPrecision(6))}`);
    for (const text of [...kept, ...added]) query.append("within", text);
    return go(`?${query}`);
  };
  return { refresh: load, within };
}
