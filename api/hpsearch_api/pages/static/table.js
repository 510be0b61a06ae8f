// The table of trials: sort, filter and scroll without a reload; the address says what is shown.
import { refresh } from "./common.js";
import { rows } from "./rows.js";

/** `open(number, event)` is called for a click on a row. */
export function table(target, open) {
  const { part } = target.dataset;
  const scrolled = rows(target, part);

  const load = async () => {
    const { search } = location;
    const active = target.contains(document.activeElement) ? document.activeElement : null;
    if ((await refresh(target, part + search)) || search !== shown) scrolled.adopt(search);
    shown = search;
    if (active?.isConnected && active !== document.activeElement) active.focus({ preventScroll: true });
  };
  const go = (search) => {
    history.pushState(null, "", search);
    return load();
  };
  let shown = location.search;
  scrolled.adopt(shown);

  target.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const link = event.target.closest("a[data-table]");
    if (link) {
      event.preventDefault();
      go(link.dataset.table);
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
  addEventListener("popstate", load);

  /** Show only trials within ranges `[key, low, high]` and of choices `[key, choices]`; of each key the newest counts. */
  const within = (ranges, choices = []) => {
    const query = new URLSearchParams(location.search);
    const keys = [...ranges, ...choices].map(([key]) => key);
    const others = (name) => query.getAll(name).filter((text) => !keys.some((key) => text.startsWith(`${key}:`)));
    const kept = { within: others("within"), among: others("among") };
    for (const name of ["within", "among", "after"]) query.delete(name);
    const short = (end) => Number(end.toPrecision(6));
    kept.within.push(...ranges.map(([key, low, high]) => `${key}:${short(low)}:${short(high)}`));
    kept.among.push(...choices.map(([key, some]) => `${key}:${JSON.stringify(some)}`));
    for (const [name, texts] of Object.entries(kept)) for (const text of texts) query.append(name, text);
    return go(`?${query}`);
  };
  return { refresh: load, within };
}
