// Validates a recording of frames against `protocol.schema.json` of @openclaw/gateway-protocol.
//
//   node validate.mjs [--client] [--exceptions FILE] RECORDING.jsonl...
//
// A recording has one JSON object a line: `{dir: "g2c" | "c2g", conn, frame}`; lines whose frame is no object are
// skipped. Checked are the frames that the Gateway sends or, with --client, those that clients and nodes send: the
// envelope always, and the payload where the schema names one. A fault that exceptions.json lists, with its reason, is
// counted and not reported. Exit code: 0 when nothing else was found, 1 for faults, 2 when there was nothing to check.

import { readFileSync } from "node:fs";
import { Ajv } from "ajv";

/** Schema of `payload`, by method: the published schema names few results. */
const RESULTS = {
  connect: "HelloOk",
  "agent.identity.get": "AgentIdentityResult",
  "agents.list": "AgentsListResult",
  "device.token.rotate": "DeviceTokenRotateResult",
  "exec.approvals.node.get": "ExecApprovalsNodeSnapshot",
  "exec.approvals.node.set": "ExecApprovalsNodeSnapshot",
  "models.list": "ModelsListResult",
  "node.event": "NodeEventResult",
  "node.pending.drain": "NodePendingDrainResult",
};

/** Schema of an event's `payload`; a function where the schema names only a part. */
const EVENTS = {
  agent: "AgentEvent",
  chat: "ChatEvent",
  "device.pair.requested": "DevicePairRequestedEvent",
  "device.pair.resolved": "DevicePairResolvedEvent",
  health: { part: "Snapshot", path: "health" },
  "node.invoke.request": "NodeInvokeRequestEvent",
  presence: { part: "Snapshot", path: "presence", of: (payload) => payload.presence },
  shutdown: "ShutdownEvent",
  tick: "TickEvent",
};

/** Answers without a schema of their own that are a part of another. */
const PARTS = {
  health: { part: "Snapshot", path: "health" },
  "system-presence": { part: "Snapshot", path: "presence" },
};

/** Schema of `params`, where its name does not follow from the method's. */
const PARAMS = {
  "agent.identity.get": "AgentIdentityParams",
};

// The package does not export its schema by name.
const schema = JSON.parse(
  readFileSync(new URL("node_modules/@openclaw/gateway-protocol/protocol.schema.json", import.meta.url)),
);
const ajv = new Ajv({ strict: false, allErrors: true });
ajv.addSchema(schema);

const options = { client: false, exceptions: new URL("exceptions.json", import.meta.url), files: [] };
const args = process.argv.slice(2);
while (args.length > 0) {
  const arg = args.shift();
  if (arg === "--client") options.client = true;
  else if (arg === "--exceptions") options.exceptions = args.shift();
  else options.files.push(arg);
}
if (options.files.length === 0) {
  console.error("usage: node validate.mjs [--client] [--exceptions FILE] RECORDING.jsonl...");
  process.exit(2);
}
const exceptions = JSON.parse(readFileSync(options.exceptions)).map((entry) => {
  if (!entry.schema || !entry.path || !entry.fault || !entry.reason) {
    throw new Error(`an exception lacks schema, path, fault or reason: ${JSON.stringify(entry)}`);
  }
  return { ...entry, used: 0 };
});

const compiled = new Map();
function validator(name) {
  const key = typeof name === "string" ? name : `${name.part}.${name.path}`;
  if (!compiled.has(key)) {
    const pointer =
      typeof name === "string" ? `#/definitions/${name}` : `#/definitions/${name.part}/properties/${name.path}`;
    compiled.set(key, ajv.compile({ $ref: `${schema.$id}${pointer}` }));
  }
  return { key, validate: compiled.get(key) };
}

/** The params schema of a method: `node.pair.list` -> `NodePairListParams`. */
function paramsSchema(method) {
  const words = method.split(/[.-]/).map((word) => word[0].toUpperCase() + word.slice(1));
  const name = PARAMS[method] ?? `${words.join("")}Params`;
  return name in schema.definitions ? name : undefined;
}

const counts = { frames: 0, payloads: 0, excepted: 0, faults: 0 };
const unnamed = new Map();

/** Array indices are of no interest: `/presence/3/host` -> `/presence/[]/host`. */
const generalised = (path) => path.replace(/\/\d+(?=\/|$)/g, "/[]") || "/";

function describe(error) {
  const named = error.params.additionalProperty ?? error.params.missingProperty;
  return named === undefined ? error.keyword : `${error.keyword} ${named}`;
}

function check(where, name, value) {
  const { key, validate } = validator(name);
  if (validate(value)) return;
  const seen = new Set();
  for (const error of validate.errors) {
    const path = generalised(error.instancePath);
    const fault = describe(error);
    // A union reports each of its members; the members' own faults say more than "anyOf".
    const id = `${path} ${fault}`;
    if (seen.has(id)) continue;
    seen.add(id);
    const exception = exceptions.find((entry) => entry.schema === key && entry.path === path && entry.fault === fault);
    if (exception) {
      exception.used += 1;
      counts.excepted += 1;
      continue;
    }
    counts.faults += 1;
    console.log(`${where}: ${key} at ${path}: ${fault} (${error.message})`);
  }
}

function checkPayload(where, name, payload, what) {
  if (name === undefined) {
    unnamed.set(what, (unnamed.get(what) ?? 0) + 1);
    return;
  }
  counts.payloads += 1;
  check(where, name, typeof name === "object" && name.of ? name.of(payload) : payload);
}

for (const file of options.files) {
  const calls = new Map();
  const lines = readFileSync(file, "utf8").split("\n");
  for (const [index, line] of lines.entries()) {
    if (line.trim() === "") continue;
    const { dir, conn, frame } = JSON.parse(line);
    if (frame === null || typeof frame !== "object") continue;
    const where = `${file}:${index + 1}`;
    const call = `${conn} ${frame.id}`;
    if (dir === "c2g" && frame.type === "req") calls.set(call, frame.method);
    if ((dir === "c2g") !== options.client) continue;
    counts.frames += 1;
    if (frame.type === "req") {
      check(where, "RequestFrame", frame);
      const name = typeof frame.method === "string" && frame.method ? paramsSchema(frame.method) : undefined;
      if (frame.params !== undefined) checkPayload(where, name, frame.params, `params of ${frame.method}`);
    } else if (frame.type === "res") {
      check(where, "ResponseFrame", frame);
      const method = calls.get(call);
      if (frame.ok) checkPayload(where, RESULTS[method] ?? PARTS[method], frame.payload, `answer to ${method}`);
    } else if (frame.type === "event") {
      check(where, "EventFrame", frame);
      checkPayload(where, EVENTS[frame.event], frame.payload, `event ${frame.event}`);
    } else {
      counts.faults += 1;
      console.log(`${where}: neither req, res nor event`);
    }
  }
}

const names = [...unnamed].sort().map(([what, count]) => `${what} (${count})`);
if (names.length > 0) console.log(`no schema for: ${names.join(", ")}`);
for (const entry of exceptions.filter((entry) => entry.used === 0)) {
  console.log(`not needed here: ${entry.schema} at ${entry.path}: ${entry.fault}`);
}
console.log(
  `${counts.frames} frames, ${counts.payloads} with a payload schema, ${counts.excepted} faults excepted, ${counts.faults} faults`,
);
if (counts.faults > 0) process.exit(1);
if (counts.frames === 0 || counts.payloads === 0) process.exit(2);
