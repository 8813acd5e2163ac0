// Elements, made of text that may come from anywhere: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; children are elements, or text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Make an element of a drawing. */
export function shape(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Show a line of text, or hide the place of one that is empty. */
export function say(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

/** Seconds as a clock shows them: 83.4 is 1:23. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const digits = parts.map((part) => String(part).padStart(2, "0"));
  return parts[0] ? `${parts[0]}:${digits[1]}:${digits[2]}` : `${parts[1]}:${digits[2]}`;
}

/** A waveform as one path over a drawing 1000 wide and 100 high, which its loudest part fills. */
export function wave(peaks) {
  const width = 1000 / peaks.length;
  const loudest = Math.max(...peaks, 0.01);
  const bars = peaks.map((peak, i) => {
    const height = Math.max(1, (48 * peak) / loudest);
    return `M${i * width} ${50 - height}h${0.7 * width}v${2 * height}h${-0.7 * width}z`;
  });
  return shape("path", { class: "wave", d: bars.join("") });
}
