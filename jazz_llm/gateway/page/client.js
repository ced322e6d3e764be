/**
 * Ask LLMs through a jazz_llm gateway: `jazz-llm gateway`, then with a copy of this file in a page or in Node 20 or later
 *
 *     import { GatewayClient } from "./client.js";  // Node: name the copy client.mjs; a page that --allow-origin lets in
 *                                                   // may take http://127.0.0.1:7562/client.js itself
 *
 *     const gateway = new GatewayClient("ws://127.0.0.1:7562");  // Node before 22: a second argument, { WebSocket } of "ws"
 *     await gateway.loadProvider("groq", { api_key: key });
 *     const messages = [{ role: "user", content: "Name three colours." }];
 *     await gateway.generateStream(messages, { model_id: "llama-3.3-70b-versatile" }, (chunk) => console.log(chunk));
 *
 * Every call rejects with a GatewayError, also those that wait when the connection ends. A client does not connect again: make a
 * new one, and load its provider. The protocol is written down in the docstring of the Python package jazz_llm.gateway.
 *
 * @module
 */

/**
 * @typedef {"SUCCESS" | "UNEXPECTED" | "AUTHORIZATION" | "INVALID_PROMPT" | "INVALID_PROVIDER" | "INVALID_MODEL" | "TIMEOUT" | "INTERRUPT"} ErrorCode
 *
 * @typedef {object} Message
 * @property {"system" | "user" | "assistant" | "tool" | "function"} role
 * @property {string} content
 * @property {string} [name]
 *
 * @typedef {object} Params What is left out is the gateway's choice.
 * @property {string} [model_id]
 * @property {string} [character_name] Names the assistant, where the provider takes names.
 * @property {number} [temperature]
 * @property {number} [max_output_length] In tokens.
 * @property {string[] | number[] | null} [stop_tokens]
 * @property {number | null} [timeout_ms] For a whole answer, or between two chunks of a stream.
 *
 * @typedef {object} LoadParams
 * @property {string} [api_key] Left out: the gateway's own key for this provider, if it has one.
 * @property {string} [preload_model_id] A model to warm up.
 * @property {string} [base_url] An endpoint of your own; the gateway's own keys are never sent there.
 *
 * @typedef {object} CallOptions
 * @property {AbortSignal} [signal] Aborting interrupts this one generation.
 *
 * @typedef {object} Usage In tokens; null is not reported.
 * @property {number} prompt_tokens
 * @property {number} completion_tokens
 * @property {number} total_tokens
 * @property {number | null} [cached_tokens]
 * @property {number | null} [reasoning_tokens]
 * @property {number | null} [cost] In US dollars.
 * @property {boolean} [estimated] Counted from the length of the text, not by the provider.
 *
 * @typedef {object} Done
 * @property {boolean} is_error
 * @property {ErrorCode} error
 * @property {string | null} [error_detail]
 * @property {string | null} [finish_reason]
 * @property {Usage | null} [usage]
 *
 * @typedef {object} Providers
 * @property {string[]} providers
 * @property {string[]} [key_needed] Those that want a key and for which the gateway has none.
 * @property {string[]} [base_url_needed] Those whose URL holds a part of your own.
 *
 * @typedef {object} Ended
 * @property {number} code Of the WebSocket: 1001 is a gateway that was shut down, 1006 a lost connection.
 * @property {string} reason
 * @property {boolean} opened Whether the connection had been there at all.
 *
 * @typedef {object} Socket What is used of a WebSocket, the browser's or that of "ws".
 * @property {number} readyState
 * @property {((event: any) => void) | null} onopen
 * @property {((event: any) => void) | null} onmessage
 * @property {((event: any) => void) | null} onclose
 * @property {((event: any) => void) | null} onerror
 * @property {(text: string) => void} send
 * @property {() => void} close
 *
 * @typedef {new (url: string, protocols: string[]) => Socket} SocketClass
 *
 * @typedef {object} ClientOptions
 * @property {string} [token] The gateway's token, where it wants one. It goes out as the subprotocol `bearer.<token>`.
 * @property {SocketClass} [WebSocket] For Node before 22, which has none of its own.
 *
 * @typedef {object} Call
 * @property {(message: any) => void} resolve
 * @property {(error: unknown) => void} reject
 * @property {(chunk: string) => void} [onChunk]
 * @property {ReturnType<typeof setTimeout>} patience
 */

const OPEN = 1;
const PATIENCE_MS = 5000; // for the first answer to a request; the gateway sends it within 50 ms, whatever the provider does
const LOST = 1006;
const LOCAL = "ws://127.0.0.1:7562";
const WHY_ENDED = new Map([
  [1001, "The gateway was shut down."],
  [1008, "The gateway ended the connection, since the answers were not read fast enough."],
  [1009, "The gateway ended the connection: a message was too large."],
]);

/** A call that failed; `message` is a sentence for people. */
export class GatewayError extends Error {
  /**
   * @param {ErrorCode} code
   * @param {string} message
   * @param {Partial<Done>} [done] The message that ended the call.
   */
  constructor(code, message, done = {}) {
    super(message);
    this.name = "GatewayError";
    /** @type {ErrorCode} */
    this.code = code;
    /** @type {Usage | null} What the call used nevertheless, where that is known. */
    this.usage = done.usage ?? null;
    /** @type {string | null} */
    this.finish_reason = done.finish_reason ?? null;
  }
}

/** One connection to a gateway. It is made at once; calls wait until it is open. */
export class GatewayClient {
  /** @type {Socket} */
  #socket;
  /** @type {Map<string, Call>} */
  #calls = new Map();
  #count = 0;

  /**
   * @param {string} [url] Left out: the gateway that served this file, else the one on this machine.
   * @param {ClientOptions} [options]
   * @throws {GatewayError} where there is no WebSocket, or the token cannot be sent.
   */
  constructor(url = home(), options = {}) {
    this.#socket = connect(url, options);
    let opened = false;
    /** @type {Promise<Ended>} Resolves when the connection ended or was never made; it never rejects. */
    this.closed = new Promise((resolve) => {
      this.#socket.onclose = ({ code, reason }) => resolve({ code, reason: String(reason), opened });
      // Node 20 does not fire "close" where the connection was never made.
      this.#socket.onerror = () => opened || resolve({ code: LOST, reason: "", opened });
    });
    this.closed.then(({ code }) => this.#rejectAll(new GatewayError("UNEXPECTED", WHY_ENDED.get(code) ?? "The connection to the gateway was lost.")));
    /** @type {Promise<void>} Resolves once the connection is there, else rejects. */
    this.opened = new Promise((resolve, reject) => {
      this.#socket.onopen = () => resolve(void (opened = true));
      this.closed.then(() => reject(new GatewayError("UNEXPECTED", `The gateway at ${url} cannot be reached, or wants a token.`)));
    });
    this.opened.catch(() => {}); // who waits for a call is told by the call
    this.#socket.onmessage = ({ data }) => this.#receive(JSON.parse(data));
  }

  /** Whether the connection is there now. */
  get isOpen() {
    return this.#socket.readyState === OPEN;
  }

  /**
   * Return the names of the providers that the gateway knows.
   *
   * @returns {Promise<string[]>}
   */
  async getProviders() {
    return (await this.describeProviders()).providers;
  }

  /**
   * Return the names of the providers, and what each needs to be loaded.
   *
   * @returns {Promise<Providers>}
   */
  async describeProviders() {
    return await this.#request({ type: "get_providers" });
  }

  /**
   * Load a provider for this connection, in place of the one before; resolves when its key and endpoint have proved good.
   *
   * @param {string} provider
   * @param {LoadParams} [params]
   * @returns {Promise<void>}
   */
  async loadProvider(provider, params = {}) {
    await this.#request({ ...params, type: "load", provider });
  }

  /**
   * Return the ids of the loaded provider's models; none where it has no list.
   *
   * @returns {Promise<string[]>}
   */
  async getModels() {
    return (await this.#request({ type: "get_models" })).models;
  }

  /**
   * Return the whole answer.
   *
   * @param {Message[]} messages
   * @param {Params} [params]
   * @param {CallOptions} [options]
   * @returns {Promise<string>}
   */
  async generate(messages, params = {}, options = {}) {
    return (await this.#request({ type: "generate", messages, params, stream: false }, options)).response;
  }

  /**
   * Call `callback` with each piece of the answer; resolves when the answer is whole. An error of `callback` ends the call.
   *
   * @param {Message[]} messages
   * @param {Params} params
   * @param {(chunk: string) => void} callback
   * @param {CallOptions} [options]
   * @returns {Promise<Done>}
   */
  async generateStream(messages, params, callback, options = {}) {
    return await this.#request({ type: "generate", messages, params, stream: true }, { ...options, onChunk: callback });
  }

  /**
   * End every generation of this connection; each rejects with the code INTERRUPT. One alone is ended by its `signal`.
   *
   * @returns {Promise<void>}
   */
  async interrupt() {
    await this.#request({ type: "interrupt" });
  }

  /**
   * Shut the gateway down, for every client. The gateway does so only where it runs on the same machine.
   *
   * @returns {Promise<void>}
   */
  async close() {
    await this.#request({ type: "close" });
  }

  /** End this connection alone; what it was generating is interrupted. */
  disconnect() {
    this.#socket.close();
  }

  /**
   * @param {Record<string, unknown>} fields
   * @param {CallOptions & {onChunk?: (chunk: string) => void}} [options]
   * @returns {Promise<any>} the message that ends the call
   */
  async #request(fields, { signal, onChunk } = {}) {
    await this.opened;
    if (signal?.aborted) throw new GatewayError("INTERRUPT", "The generation was stopped before it began.");
    const id = `js-${++this.#count}`; // needs to be unique in this connection only; crypto.randomUUID is for https alone
    const stop = () => this.#send({ type: "interrupt", target: id, unique_request_id: `${id}-stop` });
    signal?.addEventListener("abort", stop);
    try {
      return await new Promise((resolve, reject) => {
        const patience = setTimeout(() => reject(new GatewayError("UNEXPECTED", "The gateway does not answer.")), PATIENCE_MS);
        this.#calls.set(id, { resolve, reject, onChunk, patience });
        if (!this.#send({ ...fields, unique_request_id: id })) reject(new GatewayError("UNEXPECTED", "The connection to the gateway was lost."));
      });
    } finally {
      clearTimeout(this.#calls.get(id)?.patience);
      this.#calls.delete(id);
      signal?.removeEventListener("abort", stop);
    }
  }

  /**
   * @param {object} message
   * @returns {boolean} whether it went out: a closed WebSocket drops what it is given without a word
   */
  #send(message) {
    if (this.isOpen) this.#socket.send(JSON.stringify(message));
    return this.isOpen;
  }

  /** @param {any} message */
  #receive(message) {
    const call = this.#calls.get(message.unique_request_id);
    if (!call) return;
    clearTimeout(call.patience);
    if (message.type === "generate_stream_chunk") this.#pass(call, message);
    else if (message.is_error || message.type === "error") call.reject(failure(message));
    else if (LAST.has(message.type)) call.resolve(message);
  }

  /**
   * @param {Call} call
   * @param {any} message
   */
  #pass(call, { chunk, unique_request_id: id }) {
    try {
      call.onChunk?.(chunk);
    } catch (error) {
      call.reject(error);
      this.#calls.delete(id);
      this.#send({ type: "interrupt", target: id, unique_request_id: `${id}-stop` });
    }
  }

  /** @param {GatewayError} error */
  #rejectAll(error) {
    for (const call of this.#calls.values()) call.reject(error);
  }
}

/** The messages after which nothing more comes for a request; the other acks only say that it has arrived. */
const LAST = new Set(["load_done", "generate_done", "generate_stream_done", "get_providers_done", "get_models_done", "interrupt_ack", "close_ack"]);

/** @param {any} message */
function failure(message) {
  return new GatewayError(message.error, message.error_detail || `The gateway says ${message.error}.`, message);
}

/** @returns {string} the URL of the gateway that served this file, else of the one on this machine */
function home() {
  return import.meta.url.startsWith("http") ? new URL("/", import.meta.url).href.replace(/^http/, "ws") : LOCAL;
}

/**
 * @param {string} url
 * @param {ClientOptions} options
 * @returns {Socket}
 */
function connect(url, { token, WebSocket = /** @type {SocketClass | undefined} */ (/** @type {any} */ (globalThis).WebSocket) }) {
  if (!WebSocket) throw new GatewayError("UNEXPECTED", 'There is no WebSocket here: give that of the package "ws" as the option WebSocket.');
  try {
    return new WebSocket(url, token ? [`bearer.${token}`] : []);
  } catch (error) {
    const detail = error instanceof Error ? error.message : String(error);
    const why = token ? "The token holds characters that cannot be sent" : detail;
    throw new GatewayError("AUTHORIZATION", `The connection to ${url} cannot be made: ${why}.`);
  }
}
