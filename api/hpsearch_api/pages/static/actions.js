// What a user does to a study: plain calls of the HTTP interface. What goes wrong is said in words where it was done.
import { ask } from "./common.js";

/** Call the interface; returns its answer, or throws an Error whose message is the problem in words. */
export async function call(method, url, body) {
  const options = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await ask(url, options).catch(() => {
    throw new Error("The server does not answer; nothing was changed as far as this page knows.");
  });
  if (response.ok) return response.status === 204 ? null : response.json();
  const problem = await response.json().catch(() => ({}));
  throw new Error(inWords(problem) ?? `The server answered ${response.status}.`);
}

/** A problem document as text: its detail, or each wrong place on a line of its own. */
export function inWords({ detail, errors }) {
  if (!errors?.length) return detail;
  return errors.map(({ loc, msg }) => (loc ? `${loc}: ${msg}` : msg)).join("\n");
}

/** Do something, with the button that asked for it out of reach meanwhile; say in `place` what went wrong. */
export async function attempt(place, button, work) {
  place.hidden = true;
  if (button) button.disabled = true;
  try {
    return await work();
  } catch (error) {
    place.textContent = error.message;
    place.hidden = false;
    place.scrollIntoView({ block: "nearest" });
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}
