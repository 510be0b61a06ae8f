// What every page needs: fragments swapped without a jump, times that people read, and the state of the connection.

const status = document.getElementById("connection");
let lost = false;
let quiet = 0;

/** Say that the server does not answer. */
export function connectionLost() {
  if (lost) return;
  lost = true;
  clearTimeout(quiet);
  status.textContent = "Connection lost, trying again…";
  status.dataset.state = "lost";
}

/** Say that it answers again; says nothing if it was never gone. */
export function connectionFound() {
  if (!lost) return;
  lost = false;
  status.textContent = "Connected again";
  status.dataset.state = "found";
  quiet = setTimeout(() => {
    status.textContent = "";
    delete status.dataset.state;
  }, 5000);
}

/** Nobody answered. */
export class Unreachable extends Error {}

/** Fetch from this server. A server that cannot be reached is said on the page; any answer counts as reached. */
export async function ask(url, options = {}) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    connectionLost();
    throw new Unreachable(url, { cause: error });
  }
  connectionFound();
  return response;
}

/** Put a fragment that this server rendered in place of the content of `target`, if it has changed. */
export async function refresh(target, url) {
  const response = await ask(url, { headers: { Accept: "text/html" } });
  if (!response.ok) return false;
  const html = await response.text();
  if (target.fragment === html) return false;
  target.fragment = html;
  const active = target.contains(document.activeElement) ? document.activeElement : null;
  const scrolled = new Map();
  for (const box of target.querySelectorAll(".scroll[data-key]")) scrolled.set(box.dataset.key, box.scrollLeft);
  const opened = new Set([...target.querySelectorAll("details[data-key][open]")].map((box) => box.dataset.key));
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const box of template.content.querySelectorAll("details[data-key]")) box.open = opened.has(box.dataset.key);
  keepForms(target, template.content);
  for (const box of target.querySelectorAll("input[type=checkbox][data-key]:checked")) {
    const same = template.content.querySelector(`[data-key="${CSS.escape(box.dataset.key)}"]`);
    if (same) same.checked = true;
  }
  target.replaceChildren(template.content);
  for (const box of target.querySelectorAll(".scroll[data-key]")) box.scrollLeft = scrolled.get(box.dataset.key) ?? 0;
  if (active?.isConnected) active.focus({ preventScroll: true }); // it was kept, with the form around it
  else if (active?.dataset.key) target.querySelector(`[data-key="${CSS.escape(active.dataset.key)}"]`)?.focus({ preventScroll: true });
  decorate(target);
  return true;
}

/** Forms that somebody writes in stay as they are. */
function keepForms(target, content) {
  for (const form of target.querySelectorAll("form[data-keep][data-dirty]")) {
    content.querySelector(`form[data-keep][data-key="${CSS.escape(form.dataset.key)}"]`)?.replaceWith(form);
  }
}

/** Call `work` at most once per `wait()` milliseconds, and once more after the last call. */
export function throttle(work, wait) {
  let timer = 0;
  let running = false;
  let again = false;
  const run = async () => {
    timer = 0;
    running = true;
    again = false;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Unreachable)) console.error(error);
    }
    running = false;
    if (again) timer = setTimeout(run, wait());
  };
  return () => {
    if (running) again = true;
    else if (!timer) timer = setTimeout(run, wait());
  };
}

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** Write times as `5 minutes ago`, with the exact one on hover. */
export function decorate(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title ||= time.textContent;
    const seconds = (Date.parse(time.dateTime) - Date.now()) / 1000;
    const [unit, size] = UNITS.find(([, s]) => Math.abs(seconds) >= s) ?? UNITS.at(-1);
    time.textContent = Math.abs(seconds) < 5 ? "just now" : relative.format(Math.round(seconds / size), unit);
  }
  for (const place of root.querySelectorAll("[data-origin]")) place.textContent = location.origin;
}

decorate(document);
setInterval(() => document.hidden || decorate(document), 10_000);
