// The chat page. Everything that comes from the Gateway is put on the page as text, never as markup.
"use strict";

const CLIENT = { id: "webchat-ui", mode: "webchat", version: "1", platform: "web" };
const SCOPES = ["operator.read", "operator.write", "operator.approvals"];
const SESSION = "main";
const ITEMS_MAX = 500;
const CALL_TIMEOUT_MS = 60_000;
// What a person at the sign-in form can do about a refusal; the Gateway's own words are for the program that calls it.
const ADVICE = {
  AUTH_BOOTSTRAP_TOKEN_INVALID:
    "This sign-in link has expired or was used before: each works once, in one browser. Get a new one, or sign in here.",
  AUTH_PASSWORD_MISMATCH: "That is not this Gateway's password.",
  AUTH_TOKEN_MISMATCH: "That is not this Gateway's token.",
  AUTH_RATE_LIMITED: "Too many wrong attempts came from here. Wait a while, then try again.",
  AUTH_DEVICE_TOKEN_MISMATCH: "This browser is no longer signed in. Sign in again.",
  PAIRING_LAPSED: "The request was declined, or nobody answered in time. Sign in to ask again.",
};

const $ = (id) => document.getElementById(id);
const encoder = new TextEncoder();

let device = null; // { keys, id, publicKey, token }
let credential = takeBootstrapLink(); // what the user brought: { bootstrapToken } or { password }; never stored
let socket = null;
let calls = new Map();
let nextId = 1;
let attempts = 0;
let sessionKey = "";
let activeRun = "";
let pending = ""; // the pairing request that this page waits for
let unconfirmed = null; // { key, text }: sent, and not yet acknowledged
let items = new Map(); // by run or tool call: what is still changing on the page

// Identity: a key pair whose private half cannot be read out, not even by this page.

function takeBootstrapLink() {
  const code = new URLSearchParams(location.hash.slice(1)).get("bootstrap");
  // The code leaves the address bar and the history before anything else happens.
  if (location.hash) history.replaceState(null, "", location.pathname);
  return code ? { bootstrapToken: code } : null;
}

function database() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("portcullis", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("device");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}

async function stored(mode, act) {
  const db = await database();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = db.transaction("device", mode);
      const request = act(transaction.objectStore("device"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    db.close();
  }
}

const saveDevice = () => stored("readwrite", (store) => store.put(device, "this"));

async function loadDevice() {
  device = await stored("readonly", (store) => store.get("this"));
  if (device) return;
  const keys = await crypto.subtle.generateKey({ name: "Ed25519" }, false, ["sign", "verify"]);
  const raw = new Uint8Array(await crypto.subtle.exportKey("raw", keys.publicKey));
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", raw));
  const id = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  device = { keys, id, publicKey: toBase64Url(raw), token: null };
  await saveDevice();
}

function toBase64Url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// Connection.

function connect() {
  if ($("gate").hidden || $("pairing").hidden) show("wait", attempts ? "connecting again" : "connecting");
  socket?.close();
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const mine = (socket = new WebSocket(`${scheme}//${location.host}/`));
  let silence = 0;
  let patience = 60_000;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => mine.close(), patience);
  };
  heard();
  mine.onmessage = async ({ data }) => {
    if (mine !== socket || typeof data !== "string") return;
    heard();
    const frame = JSON.parse(data);
    if (frame.type === "res") return settle(frame);
    if (frame.type !== "event") return;
    if (frame.event !== "connect.challenge") return onEvent(frame.event, frame.payload ?? {});
    try {
      const hello = await call("connect", await connectParams(frame.payload));
      patience = 2 * Math.max(hello.policy?.tickIntervalMs ?? 30_000, 5_000);
      await admitted(hello);
    } catch (error) {
      refused(mine, error);
    }
  };
  mine.onclose = () => {
    clearTimeout(silence);
    if (mine !== socket) return;
    for (const { reject } of calls.values()) reject({ message: "the connection was lost" });
    calls.clear();
    if (mine.stays) return;
    again(Math.min(30_000, 1_000 * 2 ** attempts++));
  };
}

function again(delay) {
  socket = null;
  if (!$("chat").hidden) show("off", "offline, trying again");
  setTimeout(connect, delay);
}

// A browser that is signed in needs no link, least of all the one that it used itself.
const usesToken = () => device.token && !credential?.password;

async function connectParams({ nonce, ts }) {
  const auth = usesToken() ? { deviceToken: device.token } : (credential ?? {});
  const token = auth.deviceToken ?? auth.bootstrapToken ?? "";
  const signed = [
    "v3", device.id, CLIENT.id, CLIENT.mode, "operator", SCOPES.join(","), ts, token, nonce, CLIENT.platform, "",
  ].join("|");
  const signature = await crypto.subtle.sign({ name: "Ed25519" }, device.keys.privateKey, encoder.encode(signed));
  return {
    minProtocol: 4,
    maxProtocol: 4,
    client: CLIENT,
    role: "operator",
    scopes: SCOPES,
    caps: ["tool-events"],
    auth,
    device: {
      id: device.id,
      publicKey: device.publicKey,
      signature: toBase64Url(new Uint8Array(signature)),
      signedAt: ts,
      nonce,
    },
  };
}

async function admitted(hello) {
  attempts = 0;
  pending = "";
  if (hello.auth?.deviceToken) {
    device.token = hello.auth.deviceToken;
    await saveDevice();
  }
  // With a device token of its own the page needs the user's secret no more.
  if (device.token) credential = null;
  const startup = await call("chat.startup", { sessionKey: SESSION, limit: 100 });
  $("gate").hidden = true;
  $("chat").hidden = false;
  const missing = SCOPES.filter((scope) => !(hello.auth?.scopes ?? SCOPES).includes(scope));
  show("on", missing.length ? `connected without ${missing.join(", ")}` : "connected");
  showHistory(startup);
  $("text").focus();
}

// A refused connect: what to do about it depends on its code.
async function refused(mine, error) {
  let code = error.details?.code ?? error.code;
  if (code === "PAIRING_REQUIRED") {
    const request = error.details?.requestId ?? "";
    if (!pending || pending === request) {
      mine.stays = true;
      mine.close();
      pending = request;
      showPairing(request);
      return again(3_000);
    }
    // Another request than before: that one is gone, and asking on by itself would only pester the operator.
    code = "PAIRING_LAPSED";
    error = { code };
  }
  pending = "";
  if (!code || error.retryable || code === "UNAVAILABLE") {
    if (!$("chat").hidden && code) note(sentence(error), "bad");
    return mine.close();
  }
  mine.stays = true;
  mine.close();
  socket = null;
  if (usesToken() && code === "AUTH_DEVICE_TOKEN_MISMATCH") {
    device.token = null;
    await saveDevice();
    if (credential) return connect();
  }
  credential = null;
  const asked = ["AUTH_TOKEN_MISSING", "AUTH_PASSWORD_MISSING"].includes(code);
  showSignIn(asked ? "" : ADVICE[code] ? `${ADVICE[code]} (${code})` : sentence(error));
}

function sentence(error) {
  const more = error.details?.remediationHint ?? error.details?.remedy;
  const code = error.details?.code ?? error.code;
  return `${error.message ?? "refused"}${more ? `. ${more}` : ""}${code ? ` (${code})` : ""}`;
}

function call(method, params) {
  return new Promise((resolve, reject) => {
    if (socket?.readyState !== WebSocket.OPEN) return reject({ message: "not connected" });
    const id = String(nextId++);
    const timer = setTimeout(() => {
      calls.delete(id);
      socket?.close(); // what became of the request is found out from the history
      reject({ message: `${method}: no answer within ${CALL_TIMEOUT_MS / 1000} s` });
    }, CALL_TIMEOUT_MS);
    calls.set(id, { resolve, reject, timer });
    socket.send(JSON.stringify({ type: "req", id, method, params }));
  });
}

function settle({ id, ok, payload, error }) {
  const waiting = calls.get(id);
  if (!waiting) return;
  calls.delete(id);
  clearTimeout(waiting.timer);
  if (ok) waiting.resolve(payload ?? {});
  else waiting.reject(error ?? { message: "refused" });
}

// Events of runs.

function onEvent(name, payload) {
  if (payload.sessionKey !== sessionKey || !payload.runId) return;
  if (name === "chat") onChat(payload);
  if (name === "agent" && payload.stream === "tool") onTool(payload.runId, payload.data ?? {});
}

function onChat({ runId, state, message, errorMessage, stopReason }) {
  if (state === "status" || state === "delta") setActive(runId);
  if (message) say(`reply ${runId}`, "assistant", textOf(message.content));
  if (state === "error") note(errorMessage ?? "the turn failed", "bad");
  if (state === "aborted") note(stopReason === "shutdown" ? "The Gateway stopped during this turn." : "This turn was stopped on request.", "note");
  if (["final", "error", "aborted"].includes(state)) {
    items.delete(`reply ${runId}`);
    if (activeRun === runId) setActive("");
  }
}

function onTool(runId, { phase, name, toolCallId, args, partialResult, result, isError }) {
  const key = `tool ${runId} ${toolCallId}`;
  if (phase === "start") startTool(key, name, args);
  if (phase === "update") fillTool(key, name, textOf(partialResult?.content));
  if (phase === "result") endTool(key, name, textOf(result?.content), isError, result?.details);
}

// The page.

function show(state, text) {
  $("state").dataset.state = state;
  $("state").textContent = text;
}

function showGate(part) {
  $("chat").hidden = true;
  $("gate").hidden = false;
  $("sign-in").hidden = part !== "sign-in";
  $("pairing").hidden = part !== "pairing";
}

function showSignIn(why) {
  showGate("sign-in");
  show("off", "not signed in");
  $("gate-why").textContent = why;
  $("secret").focus();
}

function showPairing(requestId) {
  const id = /^[\w-]{1,64}$/.test(requestId ?? "?") ? requestId : "<request>";
  showGate("pairing");
  show("wait", "waiting for approval");
  $("approve").textContent = `portcullis devices approve ${id}`;
}

function showHistory({ sessionKey: key, messages = [], inFlightRun }) {
  sessionKey = key;
  items = new Map();
  $("log").replaceChildren();
  for (const message of messages) showMessage(message);
  setActive(inFlightRun?.runId ?? "");
  if (inFlightRun?.text) say(`reply ${inFlightRun.runId}`, "assistant", inFlightRun.text);
  if (!messages.length) note("Nothing was said here yet. Try /nodes, then /run uname -a.", "note");
  if (unconfirmed) {
    const arrived = messages.some((message) => message.idempotencyKey === `${unconfirmed.key}:user`);
    if (!arrived && !$("text").value) $("text").value = unconfirmed.text;
    if (!arrived) note("Your last message did not arrive. It is in the field below.", "bad");
    unconfirmed = null;
  }
  toEnd(true);
}

function showMessage({ role, content, toolCallId, toolName, isError, details, __openclaw: record }) {
  const parts = Array.isArray(content) ? content : [];
  const text = textOf(content);
  for (const part of parts) {
    if (part.type === "toolCall") startTool(`tool ${record?.runId} ${part.id}`, part.name, part.arguments);
  }
  if (role === "toolResult") endTool(`tool ${record?.runId} ${toolCallId}`, toolName, text, isError, details);
  else if (role === "custom") note(text, "note");
  else if (text) say(null, role === "user" ? "user" : "assistant", text);
}

function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.filter((part) => part.type === "text").map((part) => part.text ?? "").join("");
}

function add(element) {
  const follows = isAtEnd();
  element.classList.add("item");
  $("log").append(element);
  while ($("log").childElementCount > ITEMS_MAX) $("log").firstElementChild.remove();
  toEnd(follows);
  return element;
}

function note(text, kind) {
  const item = document.createElement("div");
  item.classList.add("note", kind);
  item.append(paragraph(text));
  add(item);
}

// Shows a message, or more of one that is still growing.
function say(key, kind, text) {
  const follows = isAtEnd();
  let item = key && items.get(key);
  if (!item) {
    item = document.createElement("div");
    item.classList.add(kind);
    add(item);
    if (key) items.set(key, item);
  }
  item.replaceChildren(...(kind === "user" ? [paragraph(text)] : blocks(text)));
  toEnd(follows);
  return item;
}

// Paragraphs, and fenced blocks in monospace.
function blocks(text) {
  const made = [];
  let lines = [];
  let fence = "";
  const flush = (tag) => {
    if (lines.length) made.push(tag === "pre" ? output(lines.join("\n")) : prose(lines.join("\n")));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const opens = !fence && /^(`{3,})[\w-]*$/.exec(line);
    if (opens) {
      flush("p");
      fence = opens[1];
    } else if (fence && line === fence) {
      flush("pre");
      fence = "";
    } else {
      lines.push(line);
    }
  }
  flush(fence ? "pre" : "p");
  return made;
}

function paragraph(text) {
  const element = document.createElement("p");
  element.textContent = text;
  return element;
}

// A paragraph with `code` in monospace.
function prose(text) {
  const element = document.createElement("p");
  text.split(/`([^`\n]+)`/).forEach((part, index) => {
    const code = index % 2 ? document.createElement("code") : null;
    if (code) code.textContent = part;
    element.append(code ?? part);
  });
  return element;
}

function output(text) {
  const element = document.createElement("pre");
  element.tabIndex = 0;
  element.textContent = text;
  return element;
}

function startTool(key, name, args) {
  const follows = isAtEnd();
  const item = document.createElement("details");
  const title = document.createElement("summary");
  const what = args?.command ?? args?.bins?.join(" ") ?? "";
  item.what = `${name}${args?.node ? ` @${args.node}` : ""}${what ? `: ${what}` : ""}`;
  title.textContent = `${item.what} \u00b7 running`;
  item.open = true;
  item.append(title, output("The output comes when this ends."));
  add(item);
  items.set(key, item);
  toEnd(follows);
  return item;
}

function fillTool(key, name, text) {
  const follows = isAtEnd();
  const item = items.get(key) ?? startTool(key, name);
  item.lastElementChild.textContent = text;
  item.lastElementChild.scrollTop = item.lastElementChild.scrollHeight;
  toEnd(follows);
}

function endTool(key, name, text, isError, details) {
  const item = items.get(key) ?? startTool(key, name);
  fillTool(key, name, text);
  items.delete(key);
  const facts = [details?.nodeName, details?.exitCode == null ? "" : `exit ${details.exitCode}`];
  if (details?.durationMs != null) facts.push(`${details.durationMs} ms`);
  if (isError) facts.push(details?.code ?? "failed");
  facts.push({ no: "not sent", yes: "sent", unknown: "may have run" }[details?.dispatched]);
  item.firstElementChild.textContent = [item.what, ...facts].filter(Boolean).join(" \u00b7 ");
  item.firstElementChild.classList.toggle("bad", Boolean(isError));
  item.open = false;
}

function isAtEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function toEnd(follows) {
  if (follows) $("log").scrollTop = $("log").scrollHeight;
}

function setActive(runId) {
  activeRun = runId;
  $("stop").hidden = !runId;
}

function fitText() {
  const text = $("text");
  text.rows = Math.min(10, text.value.split("\n").length);
}

// What the user does.

async function sendMessage() {
  const text = $("text").value;
  if (!text.trim() || unconfirmed) return;
  const key = crypto.randomUUID();
  unconfirmed = { key, text };
  $("send").disabled = true;
  $("text").value = "";
  fitText();
  const mine = say(null, "user", text);
  toEnd(true);
  try {
    await call("chat.send", { sessionKey, message: text, idempotencyKey: key });
    unconfirmed = null;
  } catch (error) {
    mine.classList.add("bad");
    note(`Not sent: ${sentence(error)}`, "bad");
    // After a lost connection the history will tell whether it arrived; it is never sent twice by itself.
    if (error.code) unconfirmed = null;
    if (error.code && !$("text").value) $("text").value = text;
  } finally {
    $("send").disabled = false;
    $("text").focus();
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendMessage();
});
$("text").addEventListener("input", fitText);
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  sendMessage();
});
$("stop").addEventListener("click", async () => {
  try {
    await call("chat.abort", { sessionKey, runId: activeRun });
  } catch (error) {
    note(sentence(error), "bad");
  }
});
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  credential = { password: $("secret").value };
  $("secret").value = "";
  attempts = 0;
  $("gate-why").textContent = "";
  connect();
});

async function start() {
  if (!window.isSecureContext || !crypto.subtle) {
    return show("off", "this page needs https, or http on localhost: the browser offers no keys elsewhere");
  }
  try {
    await loadDevice();
  } catch (error) {
    return show("off", `this browser cannot keep an Ed25519 key (${error?.name ?? "unknown"}); a current one can`);
  }
  if (credential || device.token) connect();
  else showSignIn("");
}

start();
