// One stream of a study's events, resumed without a gap.
import { connectionFound, connectionLost } from "./common.js";

const RETRY_MS = 3000;

/**
 * Follow a study from event number `after` on.
 * EventSource comes back by itself while the server is away; it gives up on an answer other than 200 (a proxy's 502),
 * so that case is retried here, from the last event seen.
 */
export function follow(study, after, onEvent) {
  let source;
  let timer = 0;
  let stopped = false;
  const url = () => `/api/v1/studies/${encodeURIComponent(study)}/events?after=${after}`;
  const receive = (message) => {
    after = Math.max(after, Number(message.lastEventId) || 0);
    onEvent(message.type, JSON.parse(message.data));
  };
  const open = () => {
    source = new EventSource(url());
    source.onopen = connectionFound;
    source.onerror = () => {
      if (stopped) return;
      connectionLost();
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, RETRY_MS);
    };
    for (const kind of ["study", "stage", "trial", "flag", "test"]) source.addEventListener(kind, receive);
  };
  open();
  const stop = () => {
    stopped = true;
    clearTimeout(timer);
    source.close();
  };
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    stopped = false;
    open();
  });
  return stop;
}
