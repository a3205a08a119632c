// Approvals of commands: the official CLI sets a node's policy, and programs on the published client library ask and decide.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import * as lib from "./lib.mjs";
import { check } from "./lib.mjs";
import { Party, fails } from "./library.mjs";
import { pendingSurface, refusedBy, recordings, startNode, startOurNode, succeeds, test } from "./steps.mjs";

const PATTERN = "/usr/bin/uname";

/** The official CLI reads and replaces the policy of a node, and edits its allowlist. */
async function policy(gateway, home, name) {
  const json = async (...words) => JSON.parse((await succeeds(home, ["approvals", ...words, "--node", name, "--json"])).out);
  const allowed = ({ file }) => Object.values(file.agents ?? {}).flatMap(({ allowlist = [] }) => allowlist.map((rule) => rule.pattern));
  await test(`official CLI: approvals get and set, for ${name}`, async () => {
    const before = await json("get");
    check(before.file.version === 1 && typeof before.hash === "string", "no policy", before);
    const file = join(lib.work, `${name}-policy.json`);
    writeFileSync(file, JSON.stringify({ version: 1, defaults: { security: "allowlist", ask: "always" }, agents: {} }));
    const after = await json("set", "--file", file);
    const { security, ask } = after.file.defaults;
    check(security === "allowlist" && ask === "always" && after.hash !== before.hash, "not what was set", after);
  });
  await test(`official CLI: approvals allowlist add and remove, for ${name}`, async () => {
    check(allowed(await json("allowlist", "add", PATTERN)).includes(PATTERN), "it was not added");
    check(!allowed(await json("allowlist", "remove", PATTERN)).includes(PATTERN), "it was not removed");
  });
}

let keys = 0;

const WRITER = ["operator.read", "operator.write"];

/** Who asks: whoever may is also among those who are asked. */
class Asking extends Party {
  constructor(gateway, nodeId) {
    super(gateway, { token: gateway.secret, scopes: [...WRITER, "operator.approvals"] });
    this.nodeId = nodeId;
  }

  invoke(command, params) {
    keys += 1;
    return this.call("node.invoke", { nodeId: this.nodeId, command, params, idempotencyKey: `approvals-${keys}` });
  }

  async plan(argv) {
    return (await this.invoke("system.run.prepare", { command: argv })).payload.plan;
  }

  /** Resolves with the id once the request stands; `this.decided` is the last answer. */
  ask(plan) {
    const { argv, commandText, cwd } = plan;
    const shown = { command: commandText, commandArgv: argv, cwd, nodeId: this.nodeId, host: "node" };
    return new Promise((resolve, reject) => {
      const options = { expectFinal: true, onAccepted: ({ id }) => resolve(id) };
      const params = { ...shown, systemRunPlan: plan, timeoutMs: 60_000, twoPhase: true };
      this.decided = this.client.request("exec.approval.request", params, options);
      this.decided.catch(reject);
    });
  }

  run(plan, id) {
    const { argv, commandText, cwd } = plan;
    const approved = { runId: id, approved: true, approvalDecision: "allow-once" };
    return this.invoke("system.run", { command: argv, rawCommand: commandText, systemRunPlan: plan, cwd, ...approved });
  }
}

/** From a request to its one run, and to its denial. */
async function decisions(gateway, name, nodeId) {
  const asking = new Asking(gateway, nodeId);
  const approver = new Party(gateway, { token: gateway.secret });
  const writer = new Party(gateway, { token: gateway.secret, scopes: WRITER });
  await Promise.all([asking, approver, writer].map((party) => party.hello()));
  const required = (error) => error.details?.code === "APPROVAL_REQUIRED";
  await test(`client library: what it approves runs once on ${name}`, async () => {
    const plan = await asking.plan(["echo", "approved hello"]);
    const id = await asking.ask(plan);
    const { payload } = await approver.event("exec.approval.requested", (request) => request.id === id);
    check(payload.request.command === plan.commandText && payload.request.nodeId === nodeId, "another request", payload);
    const listed = (await approver.call("exec.approval.list")).find((entry) => entry.id === id);
    check(JSON.stringify(listed.request) === JSON.stringify(payload.request), "the list says something else", listed);
    const got = await approver.call("exec.approval.get", { id });
    check(got.commandText === plan.commandText, "another command", got);
    const early = await fails(asking.run(plan, id));
    check(required(early), "it ran before it was approved", early.message);
    const refused = await fails(writer.call("exec.approval.resolve", { id, decision: "allow-once" }));
    check(refused.details?.missingScope === "operator.approvals", "who may only write decided", refused.message);
    await approver.call("exec.approval.resolve", { id, decision: "allow-once" });
    check((await asking.decided).decision === "allow-once", "another decision");
    await approver.event("exec.approval.resolved", (resolved) => resolved.id === id && resolved.decision === "allow-once");
    const { payload: result } = await asking.run(plan, id);
    check(result.stdout === "approved hello\n" && result.exitCode === 0, "another result", result);
    check(required(await fails(asking.run(plan, id))), "it ran twice");
  });
  await test(`client library: what it denies does not run on ${name}`, async () => {
    const plan = await asking.plan(["echo", "denied"]);
    const id = await asking.ask(plan);
    await approver.call("exec.approval.resolve", { id, decision: "deny" });
    check((await asking.decided).decision === "deny", "another decision");
    check(required(await fails(asking.run(plan, id))), "it ran");
  });
}

/** The official CLI lists and decides through the methods for approvals of every kind. */
async function unified(gateway, home, nodeId) {
  const asking = new Asking(gateway, nodeId);
  await asking.hello();
  await test(`official CLI: approvals pending shows a request, and resolve allows it once`, async () => {
    const plan = await asking.plan(["echo", "by the CLI"]);
    const id = await asking.ask(plan);
    const { out } = await succeeds(home, ["approvals", "pending"]);
    check(out.includes(id) && out.includes("by the CLI"), "it is not shown", out);
    await refusedBy(home, ["approvals", "resolve", id, "allow-always"], "not allowed for exec approvals");
    const resolved = JSON.parse((await succeeds(home, ["approvals", "resolve", id, "allow-once", "--json"])).out);
    check(resolved.applied && resolved.approval.decision === "allow-once", "it was not taken", JSON.stringify(resolved));
    check((await asking.decided).decision === "allow-once", "who asked heard another decision");
    check((await asking.run(plan, id)).payload.stdout === "by the CLI\n", "it did not run");
    await succeeds(home, ["approvals", "resolve", id, "allow-once"]);
    await refusedBy(home, ["approvals", "resolve", id, "deny"], "already resolved with allow-once");
  });
  await test(`official CLI: approvals resolve denies`, async () => {
    const id = await asking.ask(await asking.plan(["echo", "denied by the CLI"]));
    await succeeds(home, ["approvals", "resolve", id, "deny"]);
    check((await asking.decided).decision === "deny", "another decision");
  });
}

export async function approvals() {
  const gateway = await lib.Gateway.start("approvals", "token");
  recordings.set("approvals", gateway.recorder);
  const home = lib.officialHome("approvals-cli", gateway.clientConfig);
  startOurNode("zeta", gateway.recorder.port, gateway.secretEnv);
  startNode("eta", gateway, gateway.secretEnv);
  for (const name of ["zeta", "eta"]) {
    const { requestId, nodeId } = await pendingSurface(gateway, name);
    await gateway.json(["nodes", "approve", requestId]);
    await policy(gateway, home, name);
    await decisions(gateway, name, nodeId);
    if (name === "zeta") await unified(gateway, home, nodeId);
  }
}
