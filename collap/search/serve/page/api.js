// The server's HTTP API, which /openapi.json describes. What goes wrong is an Error whose message is one line.

/** Ask for JSON. */
export async function ask(path, parameters = {}, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== "" && value !== null && value !== undefined) query.set(name, value);
  }
  let response;
  try {
    response = await fetch(`${path}?${query}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is collap serve running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `the server answered ${response.status}`);
  return content;
}

export const track = (id, what) => `api/tracks/${encodeURIComponent(id)}/${what}`;
