// One player for all hits: the song, its waveform, and the score over its time as a curve that can be clicked.

import { ask, track } from "./api.js";
import { byId, clock, say, shape, wave } from "./dom.js";
import { nameOf } from "./results.js";

const STEP = 5; // seconds of an arrow key
const audio = byId("audio");
const curve = byId("curve");
let playing = null; // the hit
let now = null; // the line at the place that is heard

/** Play a hit from a second on. */
export async function play(hit, seconds) {
  const isNew = !playing || playing.id !== hit.id;
  playing = hit;
  byId("player").hidden = false;
  say("playing", [nameOf(hit), hit.artist].filter(Boolean).join(" · "));
  say("player-error", "");
  if (isNew) audio.src = track(hit.id, "audio");
  seek(seconds);
  draw(hit);
  await audio.play().catch((error) => {
    if (error.name !== "AbortError" && playing === hit) complain();
  });
}

/** What is played, and where: { hit, seconds }. */
export const place = () => ({ hit: playing, seconds: audio.currentTime });

/** Go to a second, also of a song of which nothing is known yet. */
function seek(seconds) {
  if (audio.readyState >= HTMLMediaElement.HAVE_METADATA) audio.currentTime = seconds;
  else audio.addEventListener("loadedmetadata", () => { audio.currentTime = seconds; }, { once: true });
}

async function complain() {
  const { src } = audio;
  const answer = await fetch(src, { method: "HEAD" }).catch(() => null);
  const gone = answer && !answer.ok && (await fetch(src).then((one) => one.json()).catch(() => ({}))).error;
  const kind = playing.path.split(".").pop();
  say("player-error", gone || `this browser cannot play it (${kind}); another player can, from its file`);
}

// ---- the curve

async function draw(hit) {
  const x = (seconds) => (1000 * Math.min(seconds, hit.seconds)) / hit.seconds;
  now = shape("line", { class: "now", y1: 0, y2: 100 });
  const marks = hit.spans.map(({ start, end }) =>
    shape("rect", { class: "span", x: x(start), y: 0, width: x(end) - x(start), height: 100 }));
  curve.replaceChildren(...marks, now);
  curve.setAttribute("aria-valuemax", Math.floor(hit.seconds));
  tick();
  if (hit.curve) now.before(line(hit.curve, x));
  const own = now;
  const { peaks } = await ask(track(hit.id, "waveform")).catch(() => ({ peaks: [0] }));
  if (now === own) curve.prepend(wave(peaks));
}

/** The score over time from the lowest to the highest of this song. */
function line({ starts, ends, scores }, x) {
  const lowest = Math.min(...scores);
  const range = Math.max(...scores) - lowest || 1;
  const points = scores.map((score, i) => `${x((starts[i] + ends[i]) / 2)},${95 - (90 * (score - lowest)) / range}`);
  return shape("polyline", { class: "line", points: points.join(" ") });
}

function tick() {
  if (!playing || !now) return;
  const x = (1000 * audio.currentTime) / playing.seconds;
  now.setAttribute("x1", x);
  now.setAttribute("x2", x);
  curve.setAttribute("aria-valuenow", Math.floor(audio.currentTime));
  curve.setAttribute("aria-valuetext", `${clock(audio.currentTime)} of ${clock(playing.seconds)}`);
}

audio.addEventListener("timeupdate", tick);
audio.addEventListener("seeking", tick);
audio.addEventListener("error", () => playing && complain());
curve.addEventListener("click", (event) => {
  const box = curve.getBoundingClientRect();
  seek((playing.seconds * (event.clientX - box.left)) / box.width);
});
curve.addEventListener("keydown", (event) => {
  const steps = { ArrowRight: STEP, ArrowUp: STEP, ArrowLeft: -STEP, ArrowDown: -STEP };
  if (event.key === "Enter" || event.key === " ") audio[audio.paused ? "play" : "pause"]();
  else if (event.key === "Home") seek(0);
  else if (steps[event.key]) seek(Math.min(Math.max(audio.currentTime + steps[event.key], 0), playing.seconds));
  else return;
  event.preventDefault();
});
