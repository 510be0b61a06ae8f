// Figures: the server's Plotly JSON in the page's colours, drawn when in view, redrawn so that zoom and selection stay.
import { Unreachable, ask } from "./common.js";
import { save } from "./saving.js";

const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "autoScale2d", "toImage"],
};
/** Resolves when Plotly is there; its script runs after this one. */
const plotly = new Promise((resolve) => {
  if (window.Plotly) resolve();
  else document.getElementById("plotly").addEventListener("load", resolve);
});
const NARROW = matchMedia("(max-width: 720px)");

let turn = Promise.resolve();
/** One figure after the other, in the order asked: the first is seen before the second is begun. */
function inTurn(work) {
  const mine = turn.then(work);
  turn = mine.catch(() => {}).then(() => new Promise((resolve) => setTimeout(resolve)));
  return mine;
}

/** A colour of the style sheet as Plotly understands it. */
function color(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** The layout in the page's theme; the title stands in the page already. */
function themed(layout, id) {
  const [ink, dim, line, raised] = ["ink", "dim", "grid", "raised"].map(color);
  const own = {
    ...layout,
    title: undefined,
    autosize: true,
    uirevision: id,
    font: { ...layout.font, color: ink, family: getComputedStyle(document.body).fontFamily },
    margin: { ...layout.margin, t: 48, ...(NARROW.matches ? { l: 48, r: 8 } : {}) },
    hoverlabel: { bgcolor: raised, bordercolor: line, font: { color: ink, size: 12 }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: dim, activecolor: ink },
  };
  for (const key of Object.keys(own)) {
    if (/^[xy]axis\d*$/.test(key)) own[key] = { ...own[key], gridcolor: line, linecolor: line, tickcolor: line };
  }
  own.annotations = layout.annotations?.map((text) => ({ bgcolor: raised, borderpad: 1, ...text }));
  if (own.coloraxis && NARROW.matches) {
    own.coloraxis = {
      ...own.coloraxis,
      colorbar: { ...own.coloraxis.colorbar, orientation: "h", y: -0.2, yanchor: "top", title: { text: "" } },
    };
  }
  return own;
}

/** Notes come as Plotly's text, in which `&lt;` stands for `<`. */
function plainText(text) {
  return new DOMParser().parseFromString(text, "text/html").body.textContent;
}

class Figure {
  constructor(element, { onOpen, onBrush, onView, zoom }) {
    Object.assign(this, { element, onOpen, onBrush, onView, zoom });
    this.area = element.querySelector(".plot-area");
    this.isVisible = false;
    this.isStale = true;
    this.text = null;
    this.choices = [...element.querySelectorAll("[data-query]")];
    for (const choice of this.choices) {
      choice.before = choice.value;
      choice.addEventListener("change", () => this.choose(choice));
    }
    for (const button of element.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => this.figure && save(this, button.dataset.save));
    }
  }

  /** What is chosen, as a query. */
  query() {
    const query = new URLSearchParams(this.element.dataset.fixed ?? "");
    for (const choice of this.choices) if (choice.value) query.set(choice.dataset.query, choice.value);
    return query;
  }

  /** Where the figure is asked for; with `few` true a quick one of few points, if there is such a one. */
  url(few) {
    const query = this.query();
    const { figure, fixed, few: points } = this.element.dataset;
    const inColumns = ["axis", "slice", "activations"].includes(figure) || (figure === "curves" && fixed);
    if (NARROW.matches && inColumns) query.set("columns", "1");
    if (few && points) query.set("points", points);
    return `${this.element.dataset.url}${query.size ? "?" : ""}${query}`;
  }

  /** Two axes that would show the same change places. */
  choose(choice) {
    const twin = this.choices.find((other) => other !== choice && other.value === choice.value);
    if (twin) twin.value = twin.before = choice.before;
    choice.before = choice.value;
    const link = this.element.querySelector("[data-link]");
    if (link) link.search = this.query();
    this.zoom = "";
    this.onView?.(this.query(), "");
    this.update();
  }

  /** Fetch and draw, or only remember to, while nobody can see it. */
  async update() {
    this.isStale = true;
    if (!this.isVisible || this.isBusy) return;
    this.isBusy = true;
    try {
      while (this.isStale) {
        this.isStale = false;
        const url = this.url();
        const few = this.text === null;
        const response = await ask(this.url(few), { headers: { Accept: "application/json" } });
        if (!response.ok) {
          const problem = await response.json().catch(() => ({}));
          this.say(problem.detail ?? `The server answered ${response.status}.`);
          continue;
        }
        const text = await response.text();
        if (text !== this.text || url !== this.drawn) await this.draw(JSON.parse(text), url);
        this.text = text;
        this.isStale ||= few && this.figure.layout.meta?.more; // many points take their time: they come second
      }
    } catch (error) {
      this.isStale = true; // nobody answered: once more with the next event
      if (!(error instanceof Unreachable)) throw error;
    } finally {
      this.isBusy = false;
    }
  }

  async draw(figure, url) {
    this.figure = figure;
    this.drawn = url;
    this.say(plainText(figure.layout.title?.subtitle?.text ?? ""));
    this.offer(figure.layout.meta?.metrics);
    // Plotly writes defaults into what it is given; the server's answer is kept as it came.
    const { data, layout } = structuredClone(figure);
    const shown = themed(layout, url);
    this.area.style.height = shown.height ? `${shown.height}px` : ""; // no jump when the next one is as high
    if (!this.isBound) unzip(shown, this.zoom);
    const selects = layout.meta?.brush || layout.meta?.axes;
    const config = selects ? CONFIG : { ...CONFIG, modeBarButtonsToRemove: [...CONFIG.modeBarButtonsToRemove, "select2d"] };
    await plotly;
    await inTurn(() => Plotly.react(this.area, data, shown, config));
    this.element.dataset.drawn = String(Number(this.element.dataset.drawn ?? 0) + 1);
    if (!this.isBound) this.bind();
  }

  bind() {
    this.isBound = true;
    this.area.on("plotly_click", ({ points, event }) => {
      const number = points[0]?.customdata?.[0];
      if (Number.isInteger(number)) this.onOpen?.(number, event);
    });
    this.area.on("plotly_selected", (event) => {
      const { ranges, choices } = brushed(event?.range, this.figure.layout.meta ?? {});
      if (ranges.length + choices.length) this.onBrush?.(ranges, choices);
    });
    this.area.on("plotly_relayout", () => this.onView?.(this.query(), zipped(this.area.layout)));
  }

  /** Put the metrics that a study has turned out to report into the choice of curves. */
  offer(metrics) {
    const choice = this.choices.find((select) => select.dataset.query === "metric");
    const known = new Set([...(choice?.options ?? [])].map((option) => option.value));
    for (const name of metrics ?? []) if (choice && !known.has(name)) choice.append(new Option(name, name));
  }

  say(text) {
    this.element.querySelector(".plot-note").textContent = text;
  }

  recolor() {
    if (this.figure) this.draw(this.figure, this.drawn);
  }
}

/** The `ranges` (`[key, low, high]`) and `choices` (`[key, choices]`) of a drawn box, on the axes that `meta` names. */
function brushed(range, { brush, axes }) {
  if (!range) return { ranges: [], choices: [] };
  if (axes) return acrossAxes(range, axes);
  const ranges = Object.entries(brush ?? {})
    .filter(([axis]) => range[axis]?.every((end) => typeof end === "number"))
    .map(([axis, key]) => [key, Math.min(...range[axis]), Math.max(...range[axis])]);
  return { ranges, choices: [] };
}

/** Of parallel coordinates: the box's height on each axis that it covers. */
function acrossAxes({ x, y }, axes) {
  const [left, right] = [Math.min(...x), Math.max(...x)];
  const [foot, head] = [Math.min(...y), Math.max(...y)];
  const covered = axes.filter((_, i) => i >= left && i <= right);
  const ranges = covered.filter(({ labels }) => !labels.length).map(({ key, low, high, log }) => {
    const ends = [foot, head].map((place) => low + place * (high - low));
    return [key, ...(log ? ends.map((end) => 10 ** end) : ends)];
  });
  const choices = covered.filter(({ labels }) => labels.length).map(({ key, choices: all }) => {
    const middle = (i) => (i + 0.5) / all.length;
    return [key, all.filter((_, i) => middle(i) >= foot && middle(i) <= head).flat()];
  });
  return { ranges, choices };
}

/** The zoom of a layout as text: `xaxis=-3,-1&yaxis=0,1`. */
function zipped(layout) {
  const zoomed = Object.entries(layout).filter(([key, axis]) => /^[xy]axis\d*$/.test(key) && axis.autorange === false);
  return zoomed.map(([key, { range }]) => `${key}=${range.map((end) => Number(end).toPrecision(6)).join()}`).join("&");
}

function unzip(layout, text) {
  for (const [key, value] of new URLSearchParams(text ?? "")) {
    const range = value.split(",").map(Number);
    if (/^[xy]axis\d*$/.test(key) && layout[key] && range.length === 2 && range.every(Number.isFinite)) {
      layout[key] = { ...layout[key], range, autorange: false };
    }
  }
}

/**
 * All figures of the page. `onOpen(number, event)`: a trial's point was clicked; `onBrush(ranges, choices)`: a box was drawn;
 * `onView(query, zoom)`: something else is chosen or zoomed.
 */
export function figures(options = {}) {
  const all = [...document.querySelectorAll("figure[data-figure]")].map((element) => new Figure(element, options));
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        const figure = all.find(({ element }) => element === entry.target);
        figure.isVisible = entry.isIntersecting;
        if (figure.isVisible && figure.isStale) figure.update();
      }
    },
    { rootMargin: "400px" },
  );
  for (const { element } of all) watch.observe(element);
  document.addEventListener("theme", () => all.forEach((figure) => figure.recolor()));
  NARROW.addEventListener("change", () => all.forEach((figure) => figure.update()));
  return { update: () => Promise.all(all.map((figure) => figure.update())) };
}
