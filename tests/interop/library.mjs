// Programs built on the published client library, against our Gateway. They run in this process.

import { createHash, generateKeyPairSync, sign } from "node:crypto";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import * as lib from "./lib.mjs";
import { check, until } from "./lib.mjs";
import { pendingSurface, recordings, runsUname, test } from "./steps.mjs";

const module = join(lib.packages, "node_modules", "@openclaw", "gateway-client", "dist", "index.mjs");
const { GatewayClient } = await import(pathToFileURL(module));

const RAW_KEY_BYTES = 32;

/** The key of a device and the tokens that it was given: what the library leaves to its host. */
export class Identity {
  constructor() {
    const { publicKey, privateKey } = generateKeyPairSync("ed25519");
    this.tokens = new Map();
    this.device = {
      deviceId: createHash("sha256").update(rawKey(publicKey)).digest("hex"),
      publicKeyPem: publicKey.export({ type: "spki", format: "pem" }),
      privateKeyPem: privateKey.export({ type: "pkcs8", format: "pem" }),
    };
    this.hostDeps = {
      signDevicePayload: (pem, payload) => sign(null, Buffer.from(payload), pem).toString("base64url"),
      publicKeyRawBase64UrlFromPem: () => rawKey(publicKey).toString("base64url"),
      loadDeviceAuthToken: ({ role }) => this.tokens.get(role) ?? null,
      storeDeviceAuthToken: ({ role, token, scopes }) => this.tokens.set(role, { token, scopes }),
      clearDeviceAuthToken: ({ role }) => this.tokens.delete(role),
    };
  }
}

const rawKey = (key) => key.export({ type: "spki", format: "der" }).subarray(-RAW_KEY_BYTES);

const all = new Set();

/** One client of the library, and all that it told its host. */
export class Party {
  constructor(gateway, options = {}, identity) {
    Object.assign(this, { hellos: [], events: [], errors: [], closes: [], gaps: [], paused: [] });
    this.client = new GatewayClient({
      url: `ws://127.0.0.1:${gateway.recorder.port}`,
      deviceIdentity: identity?.device ?? null,
      hostDeps: identity?.hostDeps,
      onHelloOk: (hello) => this.hellos.push(hello),
      onEvent: (event) => this.events.push(event),
      onConnectError: (error) => this.errors.push(error),
      onClose: (code, reason) => this.closes.push({ code, reason }),
      onGap: (gap) => this.gaps.push(gap),
      onReconnectPaused: (why) => this.paused.push(why),
      ...options,
    });
    all.add(this);
    this.client.start();
  }

  /** The hello-ok with this number, from 1. */
  hello(count = 1) {
    return until(`hello-ok ${count}`, lib.STEP_MS, () => this.hellos[count - 1], 50).catch((error) => {
      throw new Error(`${error.message}\n${this.errors.map(({ message }) => message).join("\n")}`);
    });
  }

  /** How the first connect failed. */
  refusal() {
    return until("a refusal", lib.STEP_MS, () => this.errors[0], 50);
  }

  event(name, holds = () => true) {
    const found = () => this.events.find(({ event, payload }) => event === name && holds(payload));
    return until(`the event ${name}`, lib.STEP_MS, found, 50);
  }

  call(method, params = {}) {
    return this.client.request(method, params);
  }

  async stop() {
    all.delete(this);
    await this.client.stopAndWait();
  }
}

export const stopParties = () => Promise.all([...all].map((party) => party.stop()));

/** The error of a call that must fail. */
export async function fails(call) {
  const outcome = await call.then(
    (value) => ({ value }),
    (error) => ({ error }),
  );
  check(outcome.error, "it did not fail", outcome.value);
  return outcome.error;
}

/** How a Gateway ends, and with which close a client learns of it. */
const ENDS = [
  ["a restart", (program) => program.stop(), 1012],
  ["a SIGKILL", (program) => program.kill(), 1006],
];
const SCOPES = ["operator.read", "operator.write"];
/** A client with a key of its own. A backend on loopback needs none. */
const DEVICE = { clientName: "openclaw-linux", mode: "ui", platform: "linux", deviceFamily: "Linux", scopes: SCOPES };

/** The shared secret in both modes, and a device that is paired silently. */
async function secrets(mode) {
  const gateway = await lib.Gateway.start(`library-${mode}`, mode);
  recordings.set(`library-${mode}`, gateway.recorder);
  const label = `client library, ${mode}`;
  await test(`${label}: connects without a device, and calls`, async () => {
    const party = new Party(gateway, { [mode]: gateway.secret });
    const hello = await party.hello();
    check(hello.type === "hello-ok" && hello.protocol === 4, "no hello-ok of protocol 4", hello);
    check(hello.auth.scopes.includes("operator.admin"), "not the scopes that it asked for", hello.auth);
    check((await party.call("health")).ok === true, "health is not ok");
    const { nodes } = await party.call("node.list");
    check(Array.isArray(nodes) && nodes.length === 0, "node.list", nodes);
    const error = await fails(party.call("no.such.method"));
    check(error.name === "GatewayClientRequestError" && error.gatewayCode === "INVALID_REQUEST", "another error", error);
    await party.stop();
  });
  await test(`${label}: a wrong secret is refused, and it does not try again`, async () => {
    const party = new Party(gateway, { [mode]: "0".repeat(32) });
    const { details } = await party.refusal();
    check(details.code === `AUTH_${mode.toUpperCase()}_MISMATCH`, "another refusal", details);
    await until("reconnecting is paused", lib.STEP_MS, () => party.paused[0], 50);
    check(party.hellos.length === 0, "it was admitted");
    await party.stop();
  });
  await test(`${label}: a device of its own is paired silently on loopback, and gets a token`, async () => {
    const identity = new Identity();
    const party = new Party(gateway, { ...DEVICE, [mode]: gateway.secret }, identity);
    const { auth } = await party.hello();
    check(auth.deviceToken && auth.role === "operator", "no device token", Object.keys(auth));
    check(identity.tokens.get("operator").scopes.join() === SCOPES.join(), "other scopes", auth.scopes);
    await party.stop();
  });
  return gateway;
}

/** Pairing by hand, the device's own token, and what becomes of it. */
async function devices() {
  const config = { gateway: { nodes: { pairing: { autoApproveLocal: false } } } };
  const gateway = await lib.Gateway.start("library-manual", "token", config);
  recordings.set("library-manual", gateway.recorder);
  const operator = new Party(gateway, { token: gateway.secret });
  await operator.hello();
  const identity = new Identity();
  const { deviceId } = identity.device;
  const ofDevice = (payload) => payload.deviceId === deviceId;

  const paired = await test("client library: a device of its own pends, and an operator is told and approves", async () => {
    const asking = new Party(gateway, { ...DEVICE, token: gateway.secret }, identity);
    const { details } = await asking.refusal();
    check(details.code === "PAIRING_REQUIRED", "another refusal", details);
    const { payload } = await operator.event("device.pair.requested", ofDevice);
    check(payload.requestId === details.requestId, "another request", [payload, details]);
    await asking.stop();
    const answer = await operator.call("device.pair.approve", { requestId: details.requestId });
    check(answer.device.deviceId === deviceId, "another device", answer);
    await operator.event("device.pair.resolved", (resolved) => ofDevice(resolved) && resolved.decision === "approved");
    const party = new Party(gateway, { ...DEVICE, token: gateway.secret }, identity);
    check((await party.hello()).auth.deviceToken, "no device token");
    await party.stop();
  });
  if (!paired) return gateway;

  const sent = (conn) =>
    gateway.recorder.lines.find((line) => line.conn === conn && line.frame?.method === "connect").frame.params;
  const back = await test("client library: it comes back with its device token alone", async () => {
    const party = new Party(gateway, DEVICE, identity);
    const hello = await party.hello();
    check(hello.auth.scopes.join() === SCOPES.join(), "other scopes", hello.auth);
    const { auth } = sent(gateway.recorder.connections);
    // It stands in `token` and in `deviceToken`.
    const { token } = identity.tokens.get("operator");
    check(Object.values(auth).every((value) => value === token), "it sent something else", Object.keys(auth));
    const error = await fails(party.call("device.pair.list"));
    check(error.message.includes("missing scope"), "it may do more than it was approved for", error);
    return party;
  });
  if (!back) return gateway;

  for (const [how, end, code] of ENDS) {
    await test(`client library: after ${how} it reconnects by itself, with the device token`, async () => {
      const count = back.hellos.length;
      const told = back.closes.length;
      await end(gateway.program);
      const closed = await until("the close", lib.STEP_MS, () => back.closes[told], 50);
      check(closed.code === code, "another close", closed);
      await gateway.begin();
      await back.hello(count + 1);
      check((await back.call("health")).ok === true, "health is not ok");
      check(back.gaps.length === 0, "it missed events", back.gaps);
    });
  }
  await test("client library: the operator came back as well", () => operator.hello(3));

  await test("client library: events of a turn arrive in order, up to its end", async () => {
    await back.call("chat.send", { sessionKey: "main", message: "/run true", idempotencyKey: "library-1" });
    const { payload } = await back.event("chat", ({ state }) => ["final", "error"].includes(state));
    check(payload.sessionKey?.endsWith("main"), "another session", payload);
    check(back.gaps.length === 0, "it missed events", back.gaps);
  });

  await test("client library: a rotated token takes the old one's place", async () => {
    const before = back.closes.length;
    const issued = await operator.call("device.token.rotate", { deviceId, role: "operator" });
    await until("its connection is closed", lib.STEP_MS, () => back.closes[before], 50);
    await back.stop();
    check(issued.rotatedAtMs > 0 && issued.deviceId === deviceId, "another answer", Object.keys(issued));
    const old = new Party(gateway, DEVICE, identity);
    const { details } = await old.refusal();
    check(details.code === "AUTH_DEVICE_TOKEN_MISMATCH", "another refusal", details);
    await until("the library forgets it", lib.STEP_MS, () => !identity.tokens.has("operator"), 50);
    await old.stop();
  });

  await test("client library: a removed device is closed at once and must pair again", async () => {
    const party = new Party(gateway, { ...DEVICE, token: gateway.secret }, identity);
    await party.hello();
    await operator.call("device.pair.remove", { deviceId });
    await until("its connection is closed", lib.STEP_MS, () => party.closes[0], 50);
    await party.stop();
    const again = new Party(gateway, { ...DEVICE, token: gateway.secret }, identity);
    await again.refusal();
    check(again.hellos.length === 0, "it was admitted", again.hellos);
    await again.stop();
  });
  return gateway;
}

const SNAPSHOT = { security: "full", ask: "off", askFallback: "deny", autoAllowSkills: false, allowlistRules: [] };

/** A node of protocol 3: the envelope that the library keeps for old Gateways, then the frames of any node. */
export class OldNode extends Party {
  constructor(gateway, name, secret, identity) {
    const envelope = { clientName: "node-host", mode: "node", role: "node", minProtocol: 3, maxProtocol: 3 };
    const commands = ["system.run", "system.run.prepare"];
    const offer = { clientDisplayName: name, platform: "linux", scopes: [], caps: ["system"], commands };
    super(gateway, { ...envelope, ...offer, ...secret, onEvent: (event) => this.take(event) }, identity);
  }

  async take({ event, payload: request }) {
    if (event !== "node.invoke.request") return;
    const { command: argv, rawCommand, ...params } = JSON.parse(request.paramsJSON);
    const answers = {
      "system.run.prepare": () => {
        const { agentId = null, sessionKey = null } = params;
        const text = { commandText: argv.join(" "), commandPreview: rawCommand ?? null };
        return { plan: { argv, cwd: lib.work, ...text, agentId, sessionKey, policySnapshot: SNAPSHOT } };
      },
      "system.run": async () => {
        const { code, out, err } = await lib.run(argv[0], argv.slice(1), { PATH: process.env.PATH });
        return { exitCode: code, timedOut: false, success: code === 0, stdout: out, stderr: err, error: null };
      },
    };
    const payloadJSON = JSON.stringify(await answers[request.command]());
    await this.call("node.invoke.result", { id: request.id, nodeId: request.nodeId, ok: true, payloadJSON });
  }
}

async function protocol3() {
  const gateway = await lib.Gateway.start("protocol-3", "token");
  recordings.set("protocol-3", gateway.recorder);
  const identity = new Identity();
  const runs = () => runsUname(gateway, "/run @old uname -a");
  const paired = await test("node of protocol 3: is paired, and runs once its surface is approved", async () => {
    const node = new OldNode(gateway, "old", { token: gateway.secret }, identity);
    const hello = await node.hello();
    check(hello.protocol === 4 && hello.auth.role === "node", "another hello-ok", hello.auth);
    const asked = gateway.recorder.lines.find(({ frame }) => frame?.method === "connect").frame.params;
    check(asked.minProtocol === 3 && asked.maxProtocol === 3, "not the envelope of protocol 3", asked);
    const { requestId } = await pendingSurface(gateway, "old");
    await gateway.json(["nodes", "approve", requestId]);
    await runs();
    await node.stop();
  });
  if (!paired) return;
  const node = new OldNode(gateway, "old", {}, identity);
  await test("node of protocol 3: comes back with its device token alone, and runs", async () => {
    await node.hello();
    await runs();
  });
  for (const [how, end] of ENDS) {
    await test(`node of protocol 3: after ${how} of the gateway it reconnects by itself and runs`, async () => {
      const count = node.hellos.length;
      await end(gateway.program);
      await gateway.begin();
      await node.hello(count + 1);
      await runs();
      check(node.errors.length === 0, "a connect was refused", node.errors);
    });
  }
}

/** The published client library against our Gateway. */
export async function library() {
  await Promise.all([secrets("token"), secrets("password"), devices(), protocol3()]);
}
