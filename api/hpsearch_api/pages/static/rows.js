// The rows of the table: fetched page by page as one scrolls; pages far from the view leave the document again.
import { Unreachable, ask, decorate } from "./common.js";

const NEAR = 200; // pixels beyond the view within which rows are there
const FAR = 3000; // pixels beyond the view after which they are taken out

/** The scrolled rows of the table in `target`, whose part of the page is at `part`. */
export function rows(target, part) {
  /** Each with the address of its query, its body, and whether that is empty (taken out) or of an earlier time. */
  let pages = [];
  let shown = null; // the query that the pages are of
  let top = 0;
  let isBusy = false;

  const box = () => target.querySelector(".rows");

  /** The table was put in place anew; with the same query as before the place scrolled to stays. */
  function adopt(search) {
    const body = box().querySelector("tbody");
    const kept = search === shown ? pages.slice(1) : [];
    pages = [{ search, body }, ...kept];
    shown = search;
    for (const page of kept) {
      page.isOld = !page.isOut;
      box().querySelector("table").append(page.body);
    }
    box().scrollTop = kept.length ? top : 0;
    box().addEventListener("scroll", settle, { passive: true });
    link();
    settle();
  }

  /** Each page begins where the one before it ends; what comes after the last one is gone. */
  function link() {
    let row = 2; // the head is the first
    pages.forEach((page, i) => {
      const next = pages[i + 1];
      if (next && !page.isOut && page.body.dataset.next !== next.search) {
        next.search = page.body.dataset.next;
        next.isOld = true;
      }
      if (!page.isOut) page.n = page.body.rows.length;
      if (!page.isOut) [...page.body.rows].forEach((each, k) => each.setAttribute("aria-rowindex", row + k));
      row += page.n;
    });
    const end = pages.findIndex((page, i) => i > 0 && page.search === "");
    if (end > 0) for (const page of pages.splice(end)) page.body.remove();
  }

  /** Fetch what is missing near the view, and take out what is far from it. */
  async function settle() {
    top = box().scrollTop;
    if (isBusy) return;
    isBusy = true;
    try {
      for (let work = wanted(); work; work = wanted()) await work();
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error; // nobody answers: once more with the next scrolling
    } finally {
      isBusy = false;
    }
    for (const page of pages) if (!page.isOut && distance(page) > FAR && !page.body.contains(document.activeElement)) takeOut(page);
  }

  function wanted() {
    const missing = pages.find((page) => (page.isOut || page.isOld) && distance(page) < NEAR);
    if (missing) return () => fill(missing);
    const last = pages.at(-1);
    const { next } = last.body.dataset;
    if (last.isOut || !next || box().getBoundingClientRect().bottom + NEAR < last.body.getBoundingClientRect().bottom) return null;
    return () => fill({ search: next });
  }

  /** Fetch a page, and put it in its place or, if it is new, after the last one. */
  async function fill(page) {
    const { search } = page;
    const response = await ask(part + search, { headers: { Accept: "text/html" } });
    const template = document.createElement("template");
    template.innerHTML = await response.text();
    const body = template.content.querySelector(".trials tbody");
    const isNew = !page.body;
    if (isNew ? pages.at(-1).body.dataset.next !== search : !pages.includes(page) || page.search !== search) return; // meanwhile
    if (!body) throw new Error(`no rows at ${search}`);
    const active = page.body?.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    if (isNew) box().querySelector("table").append(body);
    else page.body.replaceWith(body);
    Object.assign(page, { body, isOut: false, isOld: false });
    if (isNew) pages.push(page);
    decorate(body);
    if (active) body.querySelector(`[data-key="${CSS.escape(active)}"]`)?.focus({ preventScroll: true });
    link();
  }

  /** Leave one empty row as high as the page was. */
  function takeOut(page) {
    const empty = document.createElement("tbody");
    empty.dataset.next = page.body.dataset.next;
    empty.insertRow().insertCell().style.height = `${page.body.offsetHeight}px`;
    empty.ariaHidden = "true";
    page.body.replaceWith(empty);
    Object.assign(page, { body: empty, isOut: true, isOld: false });
  }

  /** How far a page is from the view, in pixels. */
  function distance(page) {
    const view = box().getBoundingClientRect();
    const { top: above, bottom: below } = page.body.getBoundingClientRect();
    return Math.max(above - view.bottom, view.top - below, 0);
  }

  target.addEventListener("keydown", async (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.closest(".rows") || event.altKey || event.ctrlKey || event.metaKey) return;
    const links = () => [...box().querySelectorAll("tbody td:first-child a")];
    const at = links().indexOf(event.target.closest("tr")?.querySelector("td:first-child a"));
    if (at < 0 && event.target !== box()) return;
    event.preventDefault();
    const go = (to) => {
      to?.focus({ preventScroll: true });
      to?.scrollIntoView({ block: "nearest" });
    };
    go(at < 0 ? links().find((link) => link.getBoundingClientRect().top > box().getBoundingClientRect().top + 30) : links()[at + step]);
  });
  return { adopt };
}
