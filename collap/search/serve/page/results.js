// The list of hits: what was found, where in the song, and why.

import { ask, track } from "./api.js";
import { clock, element, shape, wave } from "./dom.js";

/** What a song is called: its title, else the name of its file. */
export const nameOf = (hit) => hit.title || hit.path.split("/").pop();

/** Show hits in a list; `play(hit, seconds, item)` is called for a span, `more(hit, seconds)` for others like it. */
export function showHits(list, hits, play, more) {
  list.replaceChildren(...hits.map((hit) => item(hit, play, more)));
}

function item(hit, play, more) {
  const made = element("li");
  const start = (seconds) => () => play(hit, seconds, made);
  const first = hit.spans.length ? hit.spans[0].start : 0;
  const picture = element("button", { className: "picture", type: "button", onclick: start(first) });
  picture.setAttribute("aria-label", `Listen to ${nameOf(hit)} from ${clock(first)}`);
  showPicture(picture, hit);
  const about = element("div", {}, element("h2", { textContent: nameOf(hit) }), facts(hit), score(hit), copies(hit));
  about.append(spans(hit, start), sentences(hit, start));
  const others = element("button", { type: "button", textContent: "More like this" });
  others.onclick = () => more(hit, first);
  others.setAttribute("aria-label", `More like ${nameOf(hit)} at ${clock(first)}`);
  about.append(element("p", {}, others));
  made.append(picture, about);
  return made;
}

function facts(hit) {
  const known = [hit.artist, hit.album, hit.year, hit.genre, clock(hit.seconds)];
  return element("p", { className: "faint", textContent: known.filter(Boolean).join(" · ") });
}

/** How much a song stands out, in the measure of this library, and whether that is much for a description. */
function score(hit) {
  const known = [`score ${hit.score.toFixed(3)}`, `${hit.deviations.toFixed(1)} deviations above the mean`];
  if (hit.match !== null) known.push(`fits better than ${Math.floor(100 * hit.match)} % of descriptions`);
  return element("p", { className: "faint", textContent: known.join(" · ") });
}

/** Other files of the same recording. */
function copies(hit) {
  if (!hit.copies.length) return "";
  return element("p", { className: "faint", textContent: `Also here: ${hit.copies.join(" · ")}` });
}

function spans(hit, start) {
  const made = element("ul", { className: "spans" });
  made.setAttribute("aria-label", "Where it is heard");
  for (const span of hit.spans) {
    const text = `${clock(span.start)} – ${clock(span.end)}`;
    const button = element("button", { type: "button", textContent: text, onclick: start(span.start) });
    button.title = `score ${span.score.toFixed(3)}`;
    made.append(element("li", {}, button));
  }
  return made;
}

/** Which sentence of a description is heard where; nothing for a description of one. */
function sentences(hit, start) {
  if (hit.sentences.length < 2) return "";
  const list = element("ul", { className: "sentences" });
  for (const sentence of hit.sentences) {
    const text = `${clock(sentence.start)} – ${clock(sentence.end)}`;
    const place = sentence.heard
      ? element("button", { type: "button", textContent: text, onclick: start(sentence.start) })
      : element("span", { className: "faint", textContent: "not heard" });
    list.append(element("li", {}, place, element("span", { textContent: sentence.text })));
  }
  return element("details", {}, element("summary", { textContent: "Which sentence is heard where" }), list);
}

/** Show the cover of a song, else its waveform, once it comes into view. */
function showPicture(place, hit) {
  const image = element("img", { alt: "", loading: "lazy" });
  image.onerror = async () => {
    image.remove();
    const { peaks } = await ask(track(hit.id, "waveform")).catch(() => ({ peaks: [0] }));
    const drawing = shape("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", "aria-hidden": "true" });
    drawing.append(wave(peaks));
    place.append(drawing);
  };
  image.src = track(hit.id, "cover");
  place.append(image);
}

/** Let arrow keys go from song to song, and within one from span to span. */
export function arrowKeys(event) {
  const step = { ArrowDown: 1, ArrowUp: -1, ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const own = document.activeElement.closest("#results > li");
  if (!step || !own || event.altKey || event.ctrlKey || event.metaKey) return;
  const across = event.key === "ArrowRight" || event.key === "ArrowLeft";
  const places = across ? [...own.querySelectorAll("button")] : [...own.parentElement.children];
  const next = places[places.indexOf(across ? document.activeElement : own) + step];
  if (!next) return;
  event.preventDefault();
  (across ? next : next.querySelector("button")).focus();
}
