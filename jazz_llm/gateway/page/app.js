/**
 * The gateway's own page: a chat over client.js. All text of models, providers and people becomes text nodes, never HTML, and
 * nothing is remembered but in memory.
 *
 * @module
 */
import { GatewayClient, GatewayError } from "./client.js";

/**
 * @typedef {import("./client.js").Usage} Usage
 * @typedef {{provider: string, params: import("./client.js").LoadParams}} Wanted
 * @typedef {{question: string, answer: string, view: View}} Turn
 * @typedef {{node: HTMLElement, heading: HTMLElement, text: Text, facts: HTMLElement, failure: HTMLElement, again: HTMLButtonElement}} View
 */

const OTHER = "(other endpoint)"; // of the user's own: no provider of the gateway's list
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const SPOKEN_FOR_MS = 2000;
const ROWS = 8;
const NEAR_PX = 80; // this near to its end, the page is at its end

/** @type {<T extends HTMLElement>(id: string, type: new () => T) => T} */
const part = (id, type) => {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new TypeError(`index.html has no ${type.name} ${id}`);
  return found;
};

const status = part("status", HTMLElement);
const tokenForm = part("token-form", HTMLFormElement);
const token = part("token", HTMLInputElement);
const tokenError = part("token-error", HTMLElement);
const setup = part("setup", HTMLDetailsElement);
const summary = part("setup-summary", HTMLElement);
const loadForm = part("load-form", HTMLFormElement);
const loadFields = part("load-fields", HTMLFieldSetElement);
const provider = part("provider", HTMLSelectElement);
const urlField = part("url-field", HTMLElement);
const baseUrl = part("base-url", HTMLInputElement);
const keyField = part("key-field", HTMLElement);
const apiKey = part("api-key", HTMLInputElement);
const keyHint = part("key-hint", HTMLElement);
const loadButton = part("load", HTMLButtonElement);
const loadError = part("load-error", HTMLElement);
const log = part("log", HTMLElement);
const spoken = part("spoken", HTMLElement);
const askForm = part("ask-form", HTMLFormElement);
const modelRow = part("model-row", HTMLElement);
const model = part("model", HTMLSelectElement);
const modelId = part("model-id", HTMLInputElement);
const newButton = part("new", HTMLButtonElement);
const prompt = part("prompt", HTMLTextAreaElement);
const sendButton = part("send", HTMLButtonElement);
const stopButton = part("stop", HTMLButtonElement);

/** @type {GatewayClient | null} */
let gateway = null;
/** @type {Wanted | null} What was loaded last: it is loaded again after a lost connection. */
let wanted = null;
let ready = false; // whether it is loaded on this very connection
let loading = false;
/** @type {AbortController | null} */
let running = null;
/** @type {Turn[]} */
let turns = [];
/** @type {{key?: Set<string>, url?: Set<string>}} */
let needs = {};
let failures = 0; // connections in a row that were not made
let refusals = 0; // those of them where the gateway was there

// ------------------------------------------------------------------------------------------------------------ the connection

function connect() {
  try {
    gateway = new GatewayClient(undefined, { token: token.value });
  } catch (error) {
    askForToken(sentence(error));
    return;
  }
  gateway.closed.then(lost);
  opened(gateway).catch((error) => gateway?.isOpen && say(sentence(error))); // else `lost` says it
}

/** @param {GatewayClient} asked */
async function opened(asked) {
  await asked.opened;
  failures = refusals = 0;
  showProviders(await asked.describeProviders());
  say("Connected");
  refresh();
  if (!tokenForm.hidden) provider.focus();
  tokenForm.hidden = true;
  if (wanted) await load(wanted);
}

/** @param {import("./client.js").Ended} ended */
async function lost({ opened: had }) {
  gateway = null;
  ready = false;
  refresh();
  // A browser does not tell a refused WebSocket from one that nobody answers; the page itself is served without a token.
  const there = !had && (await fetch("/", { cache: "no-store" }).then((answer) => answer.ok, () => false));
  refusals = there ? refusals + 1 : 0;
  if (refusals > 1) { // the first may be a gateway that had only just come back
    askForToken(token.value ? "The gateway did not take this token." : "");
    return;
  }
  if (!there) say("The gateway is not there. This page connects as soon as it is back.");
  setTimeout(connect, there ? 0 : Math.min(FIRST_WAIT_MS * 2 ** failures++, LONGEST_WAIT_MS));
}

/** @param {string} why */
function askForToken(why) {
  refusals = 0;
  say("This gateway wants a token.");
  tokenForm.hidden = false;
  tokenError.textContent = why;
  token.focus();
  token.select();
}

// --------------------------------------------------------------------------------------------------------------- the provider

/** @param {import("./client.js").Providers} described */
function showProviders({ providers, key_needed: key, base_url_needed: url }) {
  const chosen = provider.value;
  needs = { key: key && new Set(key), url: url && new Set(url) };
  const options = providers.map((name) => new Option(`${name}${needed(name)}`, name));
  provider.replaceChildren(new Option("Choose…", ""), ...options, new Option("Other endpoint…", OTHER));
  provider.value = chosen;
  if (provider.selectedIndex >= 0) return;
  provider.value = "";
  providerChosen();
}

/** @param {string} name */
function needed(name) {
  if (needs.url?.has(name)) return " (endpoint needed)";
  return needs.key?.has(name) ? " (key needed)" : "";
}

function providerChosen() {
  const name = provider.value;
  const ownUrl = name === OTHER || Boolean(needs.url?.has(name));
  const ownKey = !ownUrl && Boolean(needs.key?.has(name));
  apiKey.value = baseUrl.value = ""; // a key must not go to the provider that is chosen next
  urlField.hidden = !ownUrl;
  baseUrl.required = ownUrl;
  keyField.hidden = name === "";
  apiKey.required = ownKey;
  loadError.textContent = "";
  keyHint.textContent = `${keyAdvice(name, ownUrl, ownKey)} A key is kept in memory only.`;
}

/**
 * @param {string} name
 * @param {boolean} ownUrl
 * @param {boolean} ownKey
 */
function keyAdvice(name, ownUrl, ownKey) {
  if (ownUrl) return "Where the endpoint wants one: the gateway's own keys are not sent to an address typed here.";
  if (ownKey) return `${name} needs a key, and the gateway has none for it.`;
  return needs.key ? "Not needed: leave it empty." : "Leave it empty to use the gateway's own key, if it has one.";
}

/** @param {Event} event */
async function loadChosen(event) {
  event.preventDefault();
  if (loading || running || !gateway) return;
  const params = { api_key: apiKey.value.trim() || undefined, base_url: baseUrl.value.trim() || undefined };
  await load({ provider: provider.value, params });
  if (ready) prompt.focus();
  else loadButton.focus();
}

/** @param {Wanted} next */
async function load(next) {
  const asked = gateway;
  if (!asked) return;
  loading = true;
  ready = false;
  loadError.textContent = "";
  refresh();
  try {
    await asked.loadProvider(next.provider, next.params);
    showModels(await asked.getModels(), next === wanted);
    wanted = next;
    ready = true;
    setup.open = false;
  } catch (error) {
    loadError.textContent = sentence(error);
    setup.open = true;
    if (asked.isOpen) wanted = null;
  } finally {
    loading = false;
    refresh();
  }
}

/**
 * @param {string[]} ids
 * @param {boolean} again whether to keep to the model that was chosen
 */
function showModels(ids, again) {
  const chosen = model.value;
  model.replaceChildren(...ids.map((id) => new Option(id, id)), new Option("Another model…", ""));
  model.value = again && ["", ...ids].includes(chosen) ? chosen : (ids[0] ?? "");
  modelChosen();
}

/** @returns {string} what the loaded provider is called here */
function whom() {
  return wanted?.params.base_url ? new URL(wanted.params.base_url).host : (wanted?.provider ?? "");
}

function modelChosen() {
  modelId.hidden = model.value !== "";
  modelId.required = !modelId.hidden;
  modelId.disabled = modelId.hidden;
}

// ----------------------------------------------------------------------------------------------------------- the conversation

/** @param {Event} event */
async function ask(event) {
  event.preventDefault();
  const question = prompt.value.trim();
  if (!question || !mayAsk()) return;
  leaveBehind(turns.at(-1));
  const turn = { question, answer: "", view: draw(question) };
  turns.push(turn);
  turn.view.again.addEventListener("click", () => mayAsk() && answer(turn));
  prompt.value = "";
  prompt.rows = 1;
  await answer(turn);
}

/** @param {Turn} turn */
async function answer(turn) {
  if (!gateway) return;
  const stop = (running = new AbortController());
  turn.answer = "";
  start(turn.view);
  refresh();
  prompt.focus();
  const began = performance.now();
  let first = 0;
  /** @param {string} chunk */
  const take = (chunk) => {
    if (!first) {
      first = performance.now();
      turn.view.facts.textContent = waited(began, first);
    }
    turn.answer += chunk;
    turn.view.text.appendData(chunk);
    speak(chunk);
    follow();
  };
  const params = { model_id: model.value || modelId.value.trim(), stop_tokens: null, timeout_ms: null };
  let usage = null;
  let end = "";
  try {
    const done = await gateway.generateStream(history(turn), params, take, { signal: stop.signal });
    usage = done.usage;
    end = ending(done.finish_reason, turn.answer);
  } catch (error) {
    usage = error instanceof GatewayError ? error.usage : null;
    end = error instanceof GatewayError && error.code === "INTERRUPT" && stop.signal.aborted ? "Stopped" : "";
    if (!end) turn.view.failure.textContent = sentence(error);
    turn.view.again.hidden = Boolean(end);
  }
  running = null;
  finish(turn, [end, ...(first || usage ? facts(usage, began, first, performance.now()) : [])]);
}

/**
 * Return what is sent: each question that was answered, if only in part, and the one that is asked now.
 *
 * @param {Turn} now
 * @returns {import("./client.js").Message[]}
 */
function history(now) {
  /** @type {import("./client.js").Message[]} */
  const messages = [];
  for (const turn of turns) {
    if (turn.answer || turn === now) messages.push({ role: "user", content: turn.question });
    if (turn.answer) messages.push({ role: "assistant", content: turn.answer });
  }
  return messages;
}

/**
 * @param {string | null | undefined} reason
 * @param {string} text
 */
function ending(reason, text) {
  if (reason === "length") return "Cut off: the limit of tokens was reached";
  return text ? "" : "The model gave an empty answer";
}

/**
 * @param {Usage | null | undefined} usage
 * @param {number} began in ms, as are the others
 * @param {number} first 0 where nothing came
 * @param {number} end
 */
function facts(usage, began, first, end) {
  const about = usage?.estimated ? "about " : "";
  const speed = usage && usage.completion_tokens > 1 && end > first ? (usage.completion_tokens * 1000) / (end - first) : 0;
  return [
    usage ? `${about}${usage.prompt_tokens} + ${usage.completion_tokens} tokens` : "usage not reported",
    usage?.reasoning_tokens ? `${usage.reasoning_tokens} of them reasoning` : "",
    usage?.cost ? `$${usage.cost.toPrecision(2)}` : "",
    first ? waited(began, first) : "",
    speed ? `${about}${speed.toFixed(1)} tokens/s` : "",
  ];
}

/**
 * Only the last turn can be tried again.
 *
 * @param {Turn | undefined} turn
 */
function leaveBehind(turn) {
  if (!turn) return;
  turn.view.again.remove();
  if (!turn.answer) turn.view.facts.textContent = "Left out of what follows";
}

/**
 * @param {number} began
 * @param {number} first
 */
function waited(began, first) {
  return `first token after ${((first - began) / 1000).toFixed(2)} s`;
}

function stopAnswer() {
  running?.abort();
  refresh();
  prompt.focus();
}

function startAgain() {
  turns = [];
  log.replaceChildren();
  refresh();
  prompt.focus();
}

// ------------------------------------------------------------------------------------------------------------- what is shown

/**
 * @param {string} kind
 * @param {string} who
 */
function article(kind, who) {
  const node = document.createElement("article");
  node.className = `turn ${kind}`;
  const heading = document.createElement("h2");
  heading.textContent = who;
  const text = document.createElement("div");
  text.className = "text";
  node.append(heading, text);
  log.append(node);
  return { node, heading, text: /** @type {Text} */ (text.appendChild(document.createTextNode(""))) };
}

/**
 * @param {string} question
 * @returns {View}
 */
function draw(question) {
  article("user", "You").text.data = question;
  const { node, heading, text } = article("assistant", "");
  const info = document.createElement("p");
  info.className = "facts";
  const failure = document.createElement("p");
  failure.className = "error";
  failure.setAttribute("role", "alert");
  const again = document.createElement("button");
  again.type = "button";
  again.className = "quiet";
  again.textContent = "Try again";
  node.append(failure, info, again);
  return { node, heading, text, facts: info, failure, again };
}

/** @param {View} view */
function start(view) {
  view.heading.textContent = `${whom()} · ${model.value || modelId.value}`;
  view.text.data = view.failure.textContent = "";
  view.again.hidden = true;
  view.facts.textContent = "Waiting for the first token…";
  view.node.classList.add("running");
  view.node.setAttribute("aria-busy", "true");
  spoken.textContent = "";
  pending = "";
  following = true;
  follow();
}

/**
 * @param {Turn} turn
 * @param {string[]} said
 */
function finish({ view }, said) {
  view.node.classList.remove("running");
  view.node.removeAttribute("aria-busy");
  view.facts.textContent = said.filter(Boolean).join(" · ");
  speak("\n");
  setTimeout(() => running || spoken.replaceChildren(), SPOKEN_FOR_MS); // or it would be met twice by who reads on
  refresh();
  follow();
}

let pending = "";

/**
 * Hand sentence by sentence to screen readers: piece by piece they would read fragments.
 *
 * @param {string} chunk
 */
function speak(chunk) {
  pending += chunk;
  const end = Math.max(...[". ", "! ", "? ", "。", "\n"].map((mark) => pending.lastIndexOf(mark))) + 1;
  const whole = pending.slice(0, end).trim();
  pending = pending.slice(end);
  if (!whole) return;
  const node = document.createElement("p");
  node.textContent = whole;
  spoken.append(node);
}

let following = true; // until the reader scrolls up
let scrolling = 0;
let place = 0;

/** Tell whether the reader scrolled up; where the text only grew faster than it was followed, the place did not go up. */
function scrolled() {
  if (innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR_PX) following = true;
  else if (scrollY < place) following = false;
  place = scrollY;
}

function follow() {
  if (!following || scrolling) return;
  scrolling = requestAnimationFrame(() => {
    scrolling = 0;
    scrollTo(0, document.documentElement.scrollHeight);
  });
}

/** @param {string} text */
function say(text) {
  if (status.textContent !== text) status.textContent = text;
}

function mayAsk() {
  return Boolean(gateway && ready && !running);
}

function refresh() {
  loadFields.disabled = !gateway?.isOpen || loading || Boolean(running);
  loadButton.textContent = loading ? "Loading…" : "Load";
  summary.textContent = wanted ? `Provider: ${whom()}` : "Choose a provider";
  modelRow.hidden = !wanted;
  prompt.disabled = !wanted; // but not while a connection is lost: what is being typed stays
  prompt.placeholder = wanted ? "Message" : "Load a provider first";
  sendButton.disabled = !mayAsk();
  sendButton.hidden = Boolean(running);
  stopButton.hidden = !running;
  stopButton.disabled = Boolean(running?.signal.aborted);
  for (const { view } of turns.slice(-1)) view.again.disabled = !mayAsk();
  newButton.disabled = Boolean(running) || !turns.length;
}

/** @param {unknown} error */
function sentence(error) {
  const text = error instanceof Error ? error.message : String(error);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

// --------------------------------------------------------------------------------------------------------------- keys and clicks

/** @param {KeyboardEvent} event */
function typed(event) {
  // Enter also ends a word that is being composed (Japanese, Chinese); Safari says so by 229 alone.
  const plain = !event.shiftKey && !event.isComposing && event.keyCode !== 229;
  if (event.key !== "Enter" || !plain) return;
  event.preventDefault();
  askForm.requestSubmit();
}

tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  tokenError.textContent = "";
  say("Connecting…");
  connect();
});
provider.addEventListener("change", providerChosen);
loadForm.addEventListener("submit", loadChosen);
model.addEventListener("change", modelChosen);
askForm.addEventListener("submit", ask);
stopButton.addEventListener("click", stopAnswer);
newButton.addEventListener("click", startAgain);
prompt.addEventListener("keydown", typed);
prompt.addEventListener("input", () => (prompt.rows = Math.min(ROWS, prompt.value.split("\n").length)));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && running) stopAnswer();
});
addEventListener("scroll", scrolled, { passive: true });
connect();
