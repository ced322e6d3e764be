// A client of our own that is as strict as the one published with the protocol: each call waits at most a second for its ack
// (getProviders and getModels, which have none, for their done message), every frame is looked up by type and id, and a type
// that it does not know is a TypeError. What it would only log is kept in `complaints`. It sends what the published one sends.
//
//     node published_client.mjs <module of "ws", or "own" for Node's WebSocket> <url>
//
// goes through every method, and prints what came of it as JSON.

const TYPES = [
  "load_ack", "generate_ack", "interrupt_ack", "close_ack", "load_done", "generate_done", "generate_streamed",
  "generate_stream_done", "generate_stream_chunk", "get_providers_done", "get_models_done",
];
const PATIENCE_MS = 1000;
const DEFAULTS = { model_id: "", character_name: "AI", temperature: 1.0, max_output_length: 200, stop_tokens: ["\r", "\n"], timeout_ms: 60_000 };

class PublishedClient {
  constructor(WebSocket, url) {
    this.listeners = Object.fromEntries(TYPES.map((type) => [type, {}]));
    this.complaints = [];
    this.socket = new WebSocket(url);
    this.socket.onmessage = (event) => this.receive(event);
    this.opened = new Promise((resolve) => (this.socket.onopen = resolve));
    this.ended = new Promise((resolve) => (this.socket.onclose = ({ code }) => resolve(code)));
  }

  receive(event) {
    const message = JSON.parse(event.data.toString());
    const listener = this.listeners[message.type][message.unique_request_id];
    if (!listener) {
      this.complaints.push(`nobody waits for ${event.data}`);
      return;
    }
    if (message.type !== "generate_stream_chunk") delete this.listeners[message.type][message.unique_request_id];
    listener(message);
  }

  async call(fields, types, onChunk = () => {}) {
    const id = crypto.randomUUID();
    this.listeners.generate_stream_chunk[id] = ({ chunk }) => onChunk(chunk);
    const [first, ...later] = types.map((type) => new Promise((resolve) => (this.listeners[type][id] = resolve)));
    this.socket.send(JSON.stringify({ ...fields, unique_request_id: id }));
    let timer;
    const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${types[0]} came too late.`)), PATIENCE_MS)));
    const answer = await Promise.race([first, late]);
    clearTimeout(timer);
    const last = (await Promise.all(later)).at(-1) ?? answer;
    delete this.listeners.generate_stream_chunk[id];
    return last;
  }

  async getProviders() {
    return (await this.call({ type: "get_providers" }, ["get_providers_done"])).providers;
  }

  async getModels() {
    return (await this.call({ type: "get_models" }, ["get_models_done"])).models;
  }

  async loadProvider(provider, { api_key, preload_model_id }) {
    const done = await this.call({ type: "load", provider, api_key, preload_model_id }, ["load_ack", "load_done"]);
    if (done.is_error) throw new Error(`Failed to load provider. Error: ${done.error}`);
    return done.provider;
  }

  async generate(messages, params) {
    const asked = { type: "generate", messages, params: { ...DEFAULTS, ...params }, stream: false };
    const done = await this.call(asked, ["generate_ack", "generate_done"]);
    if (done.is_error) throw new Error(`Failed to generate response. Error: ${done.error}`);
    return done.response;
  }

  async generateStream(messages, params, callback) {
    const asked = { type: "generate", messages, params, stream: true };
    const done = await this.call(asked, ["generate_ack", "generate_stream_done"], callback);
    if (done.is_error) throw new Error(`Failed to generate response. Error: ${done.error}`);
  }

  async interrupt() {
    await this.call({ type: "interrupt" }, ["interrupt_ack"]);
  }

  async close() {
    await this.call({ type: "close" }, ["close_ack"]);
  }
}

const failure = (promise) => promise.then(() => "no error", (error) => error.message);
const user = (content) => [{ role: "system", content: "Be short.", name: undefined }, { role: "user", content, name: "DEV" }];

async function everything(client) {
  const found = {};
  await client.opened;
  found.providers = await client.getProviders();
  found.modelsBefore = await client.getModels();
  found.before = await failure(client.generate(user("hi"), {}));
  found.streamBefore = await failure(client.generateStream(user("hi"), {}, () => {}));
  found.unknown = await failure(client.loadProvider("nobody", {}));
  found.badKey = await failure(client.loadProvider("fake", { api_key: "sk-bad" }));
  found.loaded = await client.loadProvider("fake", { api_key: "sk-good", preload_model_id: "small" });
  found.models = await client.getModels();
  found.answer = await client.generate(user("hi"), { model_id: "small" });
  found.badModel = await failure(client.generate(user("hi"), { model_id: "none" }));
  found.noMessages = await failure(client.generate([], { model_id: "small" }));
  found.chunks = [];
  await client.generateStream(user("hi"), { model_id: "small", stop_tokens: null, timeout_ms: null }, (chunk) => found.chunks.push(chunk));
  found.timeout = await failure(client.generate(user("wait"), { model_id: "small", timeout_ms: 200 }));
  found.interrupted = await interrupted(client);
  const last = failure(client.generateStream(user("wait"), { model_id: "small" }, () => client.close()));
  found.closed = await last;
  found.code = await client.ended;
  found.complaints = client.complaints;
  return found;
}

async function interrupted(client) {
  const params = { model_id: "small" };
  let started;
  const first = new Promise((resolve) => (started = resolve));
  const both = [failure(client.generateStream(user("wait"), params, started)), failure(client.generate(user("wait"), params))];
  await first;
  await client.interrupt();
  return await Promise.all(both);
}

const [module, url] = process.argv.slice(2);
const WebSocket = module === "own" ? globalThis.WebSocket : (await import(module)).WebSocket;
console.log(JSON.stringify(await everything(new PublishedClient(WebSocket, url))));
