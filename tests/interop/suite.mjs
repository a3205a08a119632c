// The tests of the official programs, and the end of every run. `run` starts this under Node 24; see there for the environment.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { administration } from "./administration.mjs";
import { approvals } from "./approvals.mjs";
import * as compare from "./compare.mjs";
import * as lib from "./lib.mjs";
import { check, until } from "./lib.mjs";
import { Identity, Party, fails, library, stopParties } from "./library.mjs";
import {
  UNAME,
  WHICH,
  admitted,
  counts,
  official,
  pendingSurface,
  programs,
  recordings,
  refusedBy,
  runsUname,
  startNode,
  startOurNode,
  succeeds,
  test,
} from "./steps.mjs";

const only = process.argv[2] ?? "";

/** Silent pairing, a pending surface, approval by our CLI, and a command through our agent. */
async function firstContact(gateway, name, message, whilePending = async () => {}) {
  const node = startNode(name, gateway, gateway.secretEnv);
  const label = `${gateway.mode} mode`;
  const request = await test(`${label}: the official node connects and its surface pends`, async () => {
    const found = await pendingSurface(gateway, name);
    check(found.commands.includes("system.run"), "system.run is not asked for", found);
    return found;
  });
  if (!request) {
    console.log(lib.clip(node.program.err).replace(/^/gm, "     | "));
    return node;
  }
  node.id = request.nodeId;
  await test(`${label}: its device was paired silently on loopback`, async () => {
    const { paired, pending } = await gateway.json(["devices", "list"]);
    const device = paired.find((entry) => entry.deviceId === node.id);
    check(device?.approvedVia === "silent" && pending.length === 0, "not paired silently", { paired, pending });
    const hello = gateway.recorder.lines.find(({ frame }) => frame?.payload?.auth?.deviceToken);
    check(hello, "its hello-ok carries no device token");
  });
  await test(`${label}: before the approval no command reaches it`, async () => {
    const result = await gateway.cli(["nodes", "invoke", "--node", node.id, ...WHICH]);
    check(result.code !== 0, "the command ran", result.text);
    const sent = gateway.recorder.lines.filter(({ frame }) => frame?.event === "node.invoke.request");
    check(sent.length === 0, "the node was asked to run it", sent);
  });
  await whilePending(node, request);
  await test(`${label}: our CLI approves the surface`, async () => {
    const result = await gateway.cli(["nodes", "approve", request.requestId]);
    check(result.code === 0, `exit code ${result.code}`, result.text);
    check(result.out.includes("system.run"), "system.run is not among what was approved", result.text);
  });
  await test(`${label}: our agent runs ${message.replace(node.id, "…")} on it`, () => runsUname(gateway, message));
  return node;
}

async function tokenMode() {
  const gateway = await lib.Gateway.start("token", "token");
  recordings.set("token", gateway.recorder);
  const home = lib.officialHome("token-cli", gateway.clientConfig);
  const node = await firstContact(gateway, "alpha", "/run uname -a", async (pending, request) => {
    await official(home, ["nodes", "status"], "Paired: 1 · Connected: 1", /pending/i);
    await official(home, ["nodes", "pending"], request.requestId.slice(0, 8));
  });
  if (!node.id) return;

  await official(home, ["gateway", "call", "health"], '"ok": true');
  await official(home, ["health"], /Gateway probe duration|Gateway|Agents/);
  await official(home, ["gateway", "status"], "Connectivity probe: ok", /read/);
  await official(home, ["devices", "list"], "Paired (1)");
  await official(home, ["nodes", "status"], "Paired: 1 · Connected: 1", node.id.slice(0, 8));
  await official(home, ["nodes", "list"], "Pending: 0 · Paired: 1");
  await official(home, ["nodes", "describe", "--node", "alpha"], "system.run", "system.which");
  await official(home, ["nodes", "invoke", "--node", "alpha", ...WHICH], /"sh": ".*\/bin\/sh"/, node.id);
  await test("official CLI: nodes invoke of an unknown command is refused", () =>
    refusedBy(home, ["nodes", "invoke", "--node", "alpha", "--command", "camera.snap", "--params", "{}"], "camera.snap"),
  );
  await test("official CLI: a wrong token is refused", async () => {
    const wrong = lib.officialHome("token-wrong", { ...gateway.clientConfig, auth: { mode: "token", token: "0".repeat(32) } });
    await refusedBy(wrong, ["gateway", "call", "health"], "unauthorized");
  });
  await test("official CLI: no token is refused", async () => {
    const none = lib.officialHome("token-none", { port: gateway.recorder.port });
    await refusedBy(none, ["gateway", "call", "health"]);
  });
  await test("our CLI over the WebSocket: health, nodes list, nodes invoke", async () => {
    for (const args of [["health"], ["nodes", "list"], ["nodes", "invoke", "--node", node.id, ...WHICH]]) {
      const result = await gateway.remoteCli(args);
      check(result.code === 0, `portcullis ${args.join(" ")}: exit code ${result.code}`, result.text);
    }
  });
  await restart(gateway, node);
}

async function restart(gateway, first) {
  await first.program.stop();
  const before = admitted(gateway).length;
  const node = startNode("alpha", gateway, {}, first.home);
  const usesDeviceToken = (line) => Object.keys(line.frame.params.auth ?? {}).join() === "deviceToken";
  const again = await test("restart: the official node comes back with its device token alone", async () => {
    const line = await until("an admitted connect", lib.NODE_START_MS, () => admitted(gateway)[before]);
    check(usesDeviceToken(line), "it sent something else", Object.keys(line.frame.params.auth ?? {}));
  });
  if (!again) {
    console.log(lib.clip(node.program.err).replace(/^/gm, "     | "));
    return;
  }
  await test("restart: and needs no new approval", () => runsUname(gateway, "/run @alpha uname -a"));
  await test("restart: the gateway takes leave with `shutdown` and close 1012", async () => {
    const exit = await gateway.program.stop();
    check(exit === 0, `exit code ${exit}`, gateway.program.err);
    const { lines } = gateway.recorder;
    const { conn } = admitted(gateway).at(-1);
    const farewell = lines.filter((line) => line.conn === conn && line.dir === "g2c").slice(-3);
    check(farewell.some(({ frame }) => frame?.event === "shutdown"), "no shutdown event", farewell);
    check(farewell.some(({ op, code }) => op === "close" && code === 1012), "no close 1012", farewell);
  });
  await test("restart: the node reconnects by itself and runs again", async () => {
    const count = admitted(gateway).length;
    await gateway.begin();
    const line = await until("an admitted connect", lib.STEP_MS, () => admitted(gateway)[count]);
    check(usesDeviceToken(line), "it sent something else", Object.keys(line.frame.params.auth ?? {}));
    check(node.program.alive, "the node ended", node.program.err);
    await runsUname(gateway, "/run @alpha uname -a");
  });
}

/** The official node while the gateway ends in the middle of a command. */
async function crash() {
  const gateway = await lib.Gateway.start("crash", "token", { tools: { exec: { mode: "full" } } });
  recordings.set("crash", gateway.recorder);
  const node = startNode("kappa", gateway, gateway.secretEnv);
  const { requestId, nodeId } = await pendingSurface(gateway, "kappa");
  await gateway.json(["nodes", "approve", requestId]);
  // With a device: who asks again must be the same.
  const scopes = ["operator.read", "operator.write"];
  const device = { token: gateway.secret, clientName: "openclaw-linux", mode: "ui", scopes };
  const operator = new Party(gateway, device, new Identity());
  await operator.hello();
  const log = join(lib.work, "crash-log");
  const ran = (key) => (existsSync(log) ? readFileSync(log, "utf8").split("\n") : []).filter((line) => line === key).length;
  const invoke = (key, then) =>
    operator.call("node.invoke", {
      nodeId,
      command: "system.run",
      params: { command: ["/bin/sh", "-c", `echo ${key} >> ${log}; ${then}`] },
      idempotencyKey: key,
    });
  const whole = async (key) => {
    const { payload } = await until("the node serves", lib.STEP_MS, () => invoke(key, "echo done"));
    check(payload.stdout === "done\n" && ran(key) === 1, "another result", payload);
  };

  await test("official node: the same key again is answered without another run", async () => {
    await whole("whole");
    await whole("whole");
  });
  for (const [how, end] of [
    ["a SIGKILL", (program) => program.kill()],
    ["a restart", (program) => program.stop()],
  ]) {
    const key = how.replaceAll(" ", "-");
    await test(`official node: ${how} of the gateway amid a command: it reconnects, and nothing runs twice`, async () => {
      const [nodes, hellos] = [admitted(gateway).length, operator.hellos.length];
      const cut = fails(invoke(key, "sleep 3"));
      await until("the command runs", lib.STEP_MS, () => ran(key) === 1, 20);
      await end(gateway.program);
      await cut;
      await gateway.begin();
      await operator.hello(hellos + 1);
      await until("the node is back", lib.NODE_START_MS, () => admitted(gateway).length > nodes);
      check(node.program.alive, "the node ended", node.program.err);
      const again = await fails(invoke(key, "sleep 3"));
      const { dispatched, nodeError } = again.details;
      check(dispatched === "unknown" && nodeError.code === "INTERRUPTED", "another answer", again.details);
      await whole(`after-${key}`);
      await lib.sleep(3000);
      check(ran(key) === 1, "it ran again under the same key", ran(key));
    });
  }
}

async function passwordMode() {
  const gateway = await lib.Gateway.start("password", "password");
  recordings.set("password", gateway.recorder);
  const home = lib.officialHome("password-cli", gateway.clientConfig);
  const node = await firstContact(gateway, "beta", "/run @beta uname -a");
  if (!node.id) return;
  await official(home, ["gateway", "call", "health"], '"ok": true');
  await test("official CLI: a wrong password is refused", async () => {
    const auth = { mode: "password", password: "not the password" };
    const wrong = lib.officialHome("password-wrong", { ...gateway.clientConfig, auth });
    await refusedBy(wrong, ["gateway", "call", "health"], "unauthorized");
  });
  await test("official node: a wrong password ends it", async () => {
    const wrong = startNode("impostor", gateway, { OPENCLAW_GATEWAY_PASSWORD: "not the password" });
    const exit = await Promise.race([wrong.program.done, lib.sleep(lib.NODE_START_MS).then(() => "timeout")]);
    check(exit === 1, `exit code ${exit}`, wrong.program.err);
    const { paired, pending } = await gateway.json(["devices", "list"]);
    check(paired.length === 1 && pending.length === 0, "it left a trace", { paired, pending });
  });
}

async function manualPairing() {
  const config = { gateway: { nodes: { pairing: { autoApproveLocal: false } } } };
  const gateway = await lib.Gateway.start("manual", "token", config);
  recordings.set("manual", gateway.recorder);
  const home = lib.officialHome("manual-cli", gateway.clientConfig);
  const node = startNode("gamma", gateway, gateway.secretEnv);
  const pendingDevice = (name) =>
    until(`${name} pends as a device`, lib.NODE_START_MS, async () => {
      const { pending } = await gateway.json(["devices", "list"]);
      return pending.find((request) => request.displayName === name);
    });
  const device = await test("autoApproveLocal false: the official node pends as a device", async () => {
    const found = await pendingDevice("gamma");
    check(admitted(gateway).length === 0, "it was admitted");
    check(found.role === "node", "not as a node", found);
    return found;
  });
  if (!device) {
    console.log(lib.clip(node.program.err).replace(/^/gm, "     | "));
    return;
  }
  await test("autoApproveLocal false: after `portcullis devices approve` the node continues by itself", async () => {
    const result = await gateway.cli(["devices", "approve", device.requestId]);
    check(result.code === 0, `exit code ${result.code}`, result.text);
    await until("an admitted connect", lib.STEP_MS, () => admitted(gateway).length > 0);
    check(node.program.alive, "the node ended", node.program.err);
  });
  const surface = await test("autoApproveLocal false: then its surface pends", () => pendingSurface(gateway, "gamma"));
  if (surface) {
    await official(home, ["nodes", "approve", surface.requestId], "system.run");
    await test("autoApproveLocal false: our agent runs /run uname -a on it", () => runsUname(gateway, "/run uname -a"));
  }

  const ours = await test("official CLI: devices list shows our own node host, pending", async () => {
    startOurNode("delta", gateway.recorder.port, gateway.secretEnv);
    const found = await pendingDevice("delta");
    await succeeds(home, ["devices", "list"], "delta", /Pending \(1\)/);
    return found;
  });
  if (!ours) return;
  await official(home, ["devices", "approve", ours.requestId], "Approved");
  await test("official CLI approves the surface of our own node host, which then runs a command", async () => {
    const pending = await pendingSurface(gateway, "delta");
    await succeeds(home, ["nodes", "approve", pending.requestId]);
    await runsUname(gateway, "/run @delta uname -a");
  });
}

/** Our node host and our CLI against the reference's Gateway. */
async function reference() {
  const port = await lib.freePort();
  const token = "reference-token-0123456789abcdef";
  const home = lib.officialHome("reference", { port, auth: { mode: "token", token } });
  const gateway = { recorder: await lib.Recorder.listen(() => port) };
  const env = lib.ourEnv(lib.ourHome("theirs"));
  const plain = (...args) =>
    lib.run(lib.portcullis, [...args, "--url", `ws://127.0.0.1:${port}`, "--token", token], env);
  const cli = (...args) => plain(...args, "--json");
  const json = async (...args) => {
    const result = await cli(...args);
    check(result.code === 0, `portcullis ${args.join(" ")}: exit code ${result.code}`, result.text);
    return JSON.parse(result.out);
  };
  const begin = async () => {
    gateway.program = lib.officialGateway(home, port);
    programs.push(gateway.program);
    await until("the reference is ready", lib.NODE_START_MS, async () => {
      check(gateway.program.alive, "the reference ended", gateway.program.err);
      return (await cli("health")).code === 0;
    });
  };
  if (!(await test("reference gateway: our CLI reads its health", begin))) return;
  let node;
  const startOurs = (secret) => {
    node = startOurNode("epsilon", gateway.recorder.port, secret, { tools: { exec: { mode: "full" } } });
  };
  const invoke = (command, params) =>
    json("nodes", "invoke", "--node", "epsilon", "--command", command, "--params", JSON.stringify(params));
  const runs = async (limitMs = lib.STEP_MS) => {
    const { payload } = await until("system.run", limitMs, () => invoke("system.run", { command: ["uname", "-a"] }));
    check(payload.stdout.trim() === UNAME && payload.exitCode === 0, "another result", payload);
  };

  startOurs({ OPENCLAW_GATEWAY_TOKEN: token });
  const request = await test("reference gateway: our node host connects and its surface pends", () =>
    until("the surface of epsilon pends", lib.STEP_MS, async () => {
      const { pending } = await json("nodes", "pending");
      return pending.find((entry) => entry.stage === "surface" && entry.displayName === "epsilon");
    }),
  );
  if (!request) return;
  await test("reference gateway: our CLI approves it and invokes system.which", async () => {
    await json("nodes", "approve", request.requestId);
    const { payload } = await until("system.which is answered", lib.STEP_MS, () => invoke("system.which", { bins: ["sh"] }));
    check(payload.bins.sh.endsWith("/bin/sh"), "no path of sh", payload);
  });
  await test("reference gateway: our node host prepares a command, and runs one", async () => {
    const { payload } = await invoke("system.run.prepare", { command: ["uname", "-a"] });
    check(payload.plan.commandText.endsWith("uname -a"), "another plan", payload);
    await runs();
    const failed = await invoke("system.run", { command: ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"] });
    const { exitCode, success, stdout, stderr } = failed.payload;
    check(exitCode === 3 && !success && stdout === "out\n" && stderr === "err\n", "another result", failed.payload);
  });
  await test("reference gateway: our CLI lists, describes and renames, and lists devices", async () => {
    for (const args of [["nodes", "list"], ["nodes", "status"]]) {
      const [{ nodeId, connected, commands }] = (await json(...args)).nodes;
      check(nodeId === request.nodeId && connected && commands.includes("system.run"), args.join(" "));
    }
    check((await json("nodes", "describe", "--node", "epsilon")).nodeId === request.nodeId, "another node");
    await json("nodes", "rename", "--node", "epsilon", "--name", "omega");
    check((await json("nodes", "describe", "--node", "omega")).displayName === "omega", "it has its old name");
    await json("nodes", "rename", "--node", "omega", "--name", "epsilon");
    const { paired } = await json("devices", "list");
    check(paired.some(({ deviceId, role }) => deviceId === request.nodeId && role === "node"), "no such device", paired);
    for (const args of [["nodes", "list"], ["nodes", "describe", "--node", "epsilon"], ["devices", "list"]]) {
      const { code, out, text } = await plain(...args);
      check(code === 0 && out.includes("epsilon"), `${args.join(" ")}: exit code ${code}`, text);
    }
  });
  const dials = (count) =>
    until("our node host is admitted again", lib.NODE_START_MS, () => admitted(gateway).length > count && admitted(gateway).at(-1));
  await test("reference gateway: our node host comes back with its device token alone", async () => {
    await node.stop();
    const count = admitted(gateway).length;
    startOurs({});
    const { frame } = await dials(count);
    const auth = Object.keys(frame.params.auth ?? {}).join();
    check(auth === "deviceToken", "it sent something else", auth);
    await runs();
  });
  for (const [how, end] of [
    ["a restart", (program) => program.stop()],
    ["a SIGKILL", (program) => program.kill()],
  ]) {
    await test(`reference gateway: after ${how} our node host reconnects by itself and runs`, async () => {
      const count = admitted(gateway).length;
      await end(gateway.program);
      await begin();
      await dials(count);
      check(node.alive, "our node host ended", node.err);
      await runs();
    });
  }
}

/** Frames that we sent, against the published schema and against what the reference sends. */
async function wire() {
  const kept = process.env.PORTCULLIS_INTEROP_KEEP;
  const directory = kept ?? join(lib.work, "recordings");
  mkdirSync(directory, { recursive: true });
  const files = [...recordings].map(([name, recorder]) => {
    const file = join(directory, `${name}.jsonl`);
    writeFileSync(file, recorder.text());
    return file;
  });
  await test("every frame that we sent is valid against the published schema", async () => {
    const validator = compare.installValidator(lib.packages);
    const result = await lib.run(process.execPath, [validator, ...files], { PATH: process.env.PATH });
    check(result.code === 0, `validate.mjs: exit code ${result.code}`, result.text.slice(-3000));
  });
  const wireDirectory = process.env.PORTCULLIS_WIRE;
  if (existsSync(wireDirectory)) {
    await test("expected/ is what the recordings of the reference hold", () => compare.checkExpected(wireDirectory));
  } else {
    console.log("SKIP expected/ is what the recordings of the reference hold: there are no recordings here");
  }
  await test("docs/COMPATIBILITY.md lists each wire difference, and no other", () => compare.checkTable(files));
}

const groups = { tokenMode, crash, passwordMode, manualPairing, administration, approvals, library, reference };
const chosen = Object.keys(groups).filter((name) => name.includes(only));
if (chosen.length === 0) {
  console.error(`no group holds "${only}"; there are ${Object.keys(groups).join(", ")}`);
  process.exit(2);
}
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => lib.stopAll().finally(() => process.exit(2)));
}
const broken = (name) => (error) => test(name, () => Promise.reject(error));
const run = (names) => Promise.all(names.map((name) => groups[name]().catch(broken(name))));
// The heaviest come last: a program of the reference that shares two cores with ten others misses its limits.
const last = ["approvals", "reference"];
await run(chosen.filter((name) => !last.includes(name)));
await run(chosen.filter((name) => last.includes(name)));
await stopParties();
await Promise.all(programs.map((program) => program.stop()));
if (chosen.length === Object.keys(groups).length) await wire();
for (const recorder of recordings.values()) recorder.close();
const kept = process.env.PORTCULLIS_INTEROP_KEEP;
if (kept) {
  mkdirSync(kept, { recursive: true });
  for (const [name, recorder] of recordings) writeFileSync(join(kept, `${name}.jsonl`), recorder.text());
  for (const { name, out, err } of programs) writeFileSync(join(kept, `${name}.log`), `${out}\n${err}`);
}
await lib.stopAll();
console.log(`${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 ? 0 : 1);
