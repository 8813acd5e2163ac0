// The page: what is asked for, in the form and in the address, and what is answered.

import { ask } from "./api.js";
import { byId, clock, element, say } from "./dom.js";
import { place, play } from "./player.js";
import { arrowKeys, nameOf, showHits } from "./results.js";

const FIELDS = ["q", "not", "filter", "min_seconds", "max_seconds", "k"];
const form = byId("search");
let like = null; // { id, seconds, name }: sounds like this moment
let running = null; // the request that is waited for
let limits = {};

/** What the form says, by the names of the API. */
function asked() {
  const values = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value.trim()]));
  return like ? { ...values, q: "", like: `${like.id}@${like.seconds.toFixed(2)}` } : values;
}

/** Ask for hits, and show them or what is wrong; an earlier request is given up. */
async function answer(request) {
  running?.abort();
  const own = (running = new AbortController());
  document.body.classList.add("busy");
  say("error", "");
  say("status", "Searching …");
  try {
    const { hits, notes, milliseconds } = await request(own.signal);
    showHits(byId("results"), hits, listen, moreLike);
    const found = hits.length === 1 ? "1 song" : `${hits.length} songs`;
    say("status", [`${found} in ${Math.round(milliseconds)} ms`, ...notes].join("; "));
  } catch (error) {
    if (running !== own) return;
    byId("results").replaceChildren();
    say("status", "");
    say("error", error.message);
  } finally {
    if (running === own) document.body.classList.remove("busy");
  }
}

function search() {
  const query = asked();
  if (!query.q && !query.like) {
    say("error", "Say what to look for, or choose a clip.");
    byId("q").focus();
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams(Object.entries(query).filter(([, value]) => value))}`);
  answer((signal) => ask("api/search", { ...query, curve: true }, { signal }));
}

function listen(hit, seconds, item) {
  for (const other of byId("results").children) other.removeAttribute("aria-current");
  item.setAttribute("aria-current", "true");
  play(hit, seconds);
}

/** Search for what sounds like a moment, instead of like words. */
function moreLike(hit, seconds) {
  setLike({ id: hit.id, seconds, name: nameOf(hit) });
  byId("q").value = "";
  search();
  window.scrollTo({ top: 0 });
}

function setLike(moment) {
  like = moment;
  byId("like").hidden = !moment;
  byId("like-what").textContent = moment ? `Like ${moment.name} at ${clock(moment.seconds)}` : "";
}

function similar(file) {
  if (file.size > limits.upload_bytes) {
    say("error", `${file.name} has ${megabytes(file.size)}; expected at most ${megabytes(limits.upload_bytes)}`);
    return;
  }
  setLike(null);
  const { filter, k, min_seconds, max_seconds } = asked();
  const options = { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } };
  const parameters = { filter, k, min_seconds, max_seconds, curve: true };
  answer((signal) => ask("api/similar", parameters, { ...options, signal }));
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

async function showStatistics() {
  const statistics = await ask("api/stats");
  limits = statistics.limits;
  const long = statistics.hours < 2 ? `${Math.round(60 * statistics.hours)} minutes` : `${Math.round(statistics.hours)} hours`;
  byId("library").textContent = `${statistics.tracks} songs, ${long}`;
  byId("filter-help").textContent = statistics.filter_help;
  const shown = {
    Songs: statistics.tracks, Hours: statistics.hours.toFixed(2), Size: megabytes(statistics.bytes),
    Model: statistics.model, "Could not be read": statistics.failed, Published: `${statistics.generation} times`,
    Genres: statistics.genres.map(({ name, tracks }) => `${name} (${tracks})`).join(", "),
  };
  const rows = Object.entries(shown).filter(([, value]) => value !== "");
  byId("statistics-list").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

/** Take over what the address asks for. */
function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of FIELDS) if (query.has(name)) form.elements[name].value = query.get(name);
  byId("filters").open = ["filter", "min_seconds", "max_seconds"].some((name) => query.get(name));
  const [id, seconds] = (query.get("like") || "").split("@");
  if (id) setLike({ id, seconds: Number(seconds) || 0, name: "a song" });
  if (query.get("q") || id) search();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
byId("q").addEventListener("input", () => setLike(null)); // words take the place of the moment
byId("q").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
byId("like-clear").addEventListener("click", () => setLike(null));
byId("more").addEventListener("click", () => moreLike(place().hit, place().seconds));
byId("clip").addEventListener("change", (event) => event.target.files[0] && similar(event.target.files[0]));
document.addEventListener("keydown", arrowKeys);
for (const [name, on] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", on);
    if (name === "drop" && event.dataTransfer.files.length) similar(event.dataTransfer.files[0]);
  });
}

showStatistics().catch((error) => say("error", error.message));
readAddress();
