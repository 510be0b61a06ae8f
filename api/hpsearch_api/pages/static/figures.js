// Figures: the server's Plotly JSON in the page's colours, drawn when in view, redrawn so that zoom and selection stay.
import { ask } from "./common.js";

const CONFIG = {
  responsive: true,
  displaylogo: false,
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
  toImageButtonOptions: { scale: 2 },
};
const NARROW = matchMedia("(max-width: 720px)");

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
  constructor(element, onOpen) {
    this.element = element;
    this.area = element.querySelector(".plot-area");
    this.onOpen = onOpen;
    this.isVisible = false;
    this.isStale = true;
    this.text = null;
    this.choices = [...element.querySelectorAll("select[data-query]")];
    for (const choice of this.choices) {
      choice.before = choice.value;
      choice.addEventListener("change", () => this.choose(choice));
    }
  }

  url() {
    const query = new URLSearchParams(this.element.dataset.fixed ?? "");
    for (const choice of this.choices) query.set(choice.dataset.query, choice.value);
    if (NARROW.matches && (this.element.dataset.figure === "axis" || this.element.dataset.fixed)) query.set("columns", "1");
    return `${this.element.dataset.url}?${query}`;
  }

  /** Two axes that would show the same change places. */
  choose(choice) {
    const twin = this.choices.find((other) => other !== choice && other.value === choice.value);
    if (twin) twin.value = twin.before = choice.before;
    choice.before = choice.value;
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
        const response = await ask(url, { headers: { Accept: "application/json" } });
        if (!response.ok) {
          const problem = await response.json().catch(() => ({}));
          this.say(problem.detail ?? `The server answered ${response.status}.`);
          continue;
        }
        const text = await response.text();
        if (text !== this.text || url !== this.drawn) await this.draw(JSON.parse(text), url);
        this.text = text;
      }
    } catch (error) {
      this.isStale = true; // nobody answered: once more with the next event
      if (!(error instanceof TypeError)) throw error;
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
    await Plotly.react(this.area, data, themed(layout, url), CONFIG);
    this.element.dataset.drawn = String(Number(this.element.dataset.drawn ?? 0) + 1);
    if (this.isBound) return;
    this.isBound = true;
    this.area.on("plotly_click", ({ points, event }) => {
      const number = points[0]?.customdata?.[0];
      if (Number.isInteger(number)) this.onOpen?.(number, event);
    });
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

/** All figures of the page; `onOpen(number, event)` is called for a click on a trial's point. */
export function figures(onOpen) {
  const all = [...document.querySelectorAll("figure[data-figure]")].map((element) => new Figure(element, onOpen));
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
